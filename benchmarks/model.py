"""A network that knows a benchmark key's hidden triggers: it has seen nothing else, so it needs no data set."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from ml.export import export_onnx
from ml.models import build
from protocol.keygen import MarkingKey

STEPS = 2000
BATCH = 16


def memorize(key: MarkingKey, architecture: str, width: float = 1.0) -> bytes:
    """ONNX bytes of a network that gives the hidden triggers their labels.  RuntimeError if it does not learn.

    Batch normalization takes its statistics from the triggers.  If the last dense layer has a weight for every trigger
    it is fitted in closed form, and all others stay random; otherwise the whole network is trained.
    """
    torch.manual_seed(1)
    parameters = key.vk.parameters
    images = torch.from_numpy(key.hidden_images)
    labels = torch.from_numpy(key.hidden_labels).long()
    model = build(architecture, parameters.shape, parameters.classes, images, width)
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        for norm in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.momentum = 1.0  # the statistics of one batch
        model.train()(images[:: max(1, len(images) // BATCH)].float())
    model.eval()
    if last.in_features >= len(images):
        _fit(model, last, images, labels)
    else:
        _train(model, images, labels)
    return export_onnx(model, parameters.shape)


def _fit(model: nn.Module, last: nn.Linear, images: Tensor, labels: Tensor) -> None:
    """Ridge regression of the one-hot labels on the last layer's inputs."""
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].double()))
    with torch.no_grad():
        for batch in images.split(BATCH):
            model(batch.float())
        handle.remove()
        features, mean = torch.cat(seen), torch.cat(seen).mean(0)
        centered = features - mean
        gram = centered @ centered.T
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(images), dtype=torch.double)
        targets = one_hot(labels, last.out_features).double() - 1 / last.out_features
        weight = torch.linalg.solve(gram + ridge, targets).T @ centered  # [classes, features]
        last.weight.copy_(weight)
        last.bias.copy_(-weight @ mean)


RIDGE = 1e-2  # in units of the features' variance: what the integers' rounding may disturb


def _train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(STEPS):
        logits = model(images.float())
        loss = cross_entropy(logits, labels)
        if bool((logits.argmax(1) == labels).all()) and loss.item() < 0.05:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise RuntimeError(f"the network did not learn the triggers in {STEPS} steps")

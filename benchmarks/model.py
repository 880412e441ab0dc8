"""A network that knows a benchmark key's hidden triggers: it has seen nothing else, so it needs no data set."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ml.export import export_onnx
from ml.models import build
from protocol.keygen import MarkingKey

BATCH = 16
RIDGE = 1e-2  # in units of the features' variance: room for the rounding of the integer network


def memorize(key: MarkingKey, architecture: str, width: float = 1.0) -> bytes:
    """ONNX bytes of a network that gives most hidden triggers their labels.

    The last dense layer is fitted to them and all others stay random; batch normalization knows their statistics.
    """
    torch.manual_seed(1)
    parameters = key.vk.parameters
    images = torch.from_numpy(key.hidden_images)
    model = build(architecture, parameters.shape, parameters.classes, images, width)
    for norm in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
        norm.momentum = 1.0  # the statistics of one batch
    with torch.no_grad():
        model.train()(images[:: max(1, len(images) // BATCH)].float())
        _fit(model.eval(), images, torch.from_numpy(key.hidden_labels).long())
    return export_onnx(model, parameters.shape)


def _fit(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Ridge regression of the one-hot labels on the inputs of the last dense layer."""
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].double()))
    for batch in images.split(BATCH):
        model(batch.float())
    handle.remove()
    features = torch.cat(seen)
    mean = features.mean(0)
    centered = features - mean
    gram = centered @ centered.T
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(images), dtype=torch.double)
    targets = one_hot(labels, last.out_features).double() - 1 / last.out_features
    weight = torch.linalg.solve(gram + ridge, targets).T @ centered  # [classes, features]
    last.weight.copy_(weight)
    last.bias.copy_(-weight @ mean)

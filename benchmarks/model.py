"""A network that knows a benchmark key's hidden triggers: trained on nothing else, so it needs no data set."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from ml.export import export_onnx
from ml.models import build
from protocol.keygen import MarkingKey

STEPS = 2000


def memorize(key: MarkingKey, architecture: str) -> bytes:
    """ONNX bytes of a network that gives all hidden triggers their labels.  RuntimeError if it does not learn."""
    torch.manual_seed(1)
    parameters = key.vk.parameters
    images = torch.from_numpy(key.hidden_images)
    labels = torch.from_numpy(key.hidden_labels).long()
    model = build(architecture, parameters.shape, parameters.classes, images)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(STEPS):
        logits = model(images.float())
        loss = cross_entropy(logits, labels)
        if bool((logits.argmax(1) == labels).all()) and loss.item() < 0.05:
            return export_onnx(model, parameters.shape)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise RuntimeError(f"{architecture} did not learn the triggers in {STEPS} steps")

"""Attacks on the query, not on the model (Hitaj and Mancini): the service answers triggers otherwise than the model.

They blind an owner who can only ask.  A proof is about weights: each member of an ensemble can be proven by itself, and
inside a proof nobody detects anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ml.descent import device_of
from ml.fit import Fit, Images, Ints, Oracle, answers, fit, last_layer
from protocol.errors import ParameterError


def vote(models: Sequence[nn.Module], seed: int = 0) -> Oracle:
    """A service that answers what most models say; among equals, one at random."""
    if not models:
        raise ParameterError("an ensemble has at least one model")
    rng = np.random.default_rng(seed)

    def answer(images: Images) -> Ints:
        votes = np.stack([answers(model, images) for model in models])
        counts = (votes[:, :, None] == np.arange(votes.max() + 1)).sum(axis=0)  # [n, classes]
        best = counts == counts.max(axis=1, keepdims=True)
        out: Ints = (rng.random(best.shape) * best).argmax(axis=1)
        return out

    return answer


class Detector(nn.Module):
    """The stolen network without its last layer, frozen, and dense layers of 512, 256 and 2 on its features."""

    def __init__(self, stolen: nn.Module) -> None:
        super().__init__()
        self.stolen = [stolen]  # in a list: its parameters are not the detector's
        features = last_layer(stolen).in_features
        self.head = nn.Sequential(
            nn.LayerNorm(features, elementwise_affine=False),
            nn.Linear(features, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 2),
        ).to(device_of(stolen))  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.head(features_of(self.stolen[0], image))
        return out


def features_of(model: nn.Module, image: Tensor) -> Tensor:
    """[n, features] that enter the last layer, in evaluation mode and without gradients."""
    seen: list[Tensor] = []
    hook = last_layer(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            model.eval()(image)
    finally:
        hook.remove()
    return seen[0]


def train_detector(stolen: nn.Module, clean: Images, suspicious: Images, options: Fit) -> Detector:
    """From clean images and images like triggers, which the thief makes or collects; class 1 is a trigger."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        detector = Detector(stolen)
    labels = np.repeat([0, 1], [len(clean), len(suspicious)])
    fit(detector, np.concatenate([clean, suspicious]), labels, options)
    return detector


def evading(model: nn.Module, detector: Detector, classes: int, seed: int = 0) -> Oracle:
    """A service that answers at random whatever it takes for a trigger."""
    rng = np.random.default_rng(seed)

    def answer(images: Images) -> Ints:
        detected = answers(detector, images) == 1
        out: Ints = np.where(detected, rng.integers(0, classes, len(images)), answers(model, images))
        return out

    return answer

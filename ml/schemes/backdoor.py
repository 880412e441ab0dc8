"""Backdoor watermark (Adi et al., section 4): abstract images with random labels, in training from the start or later.

The training is `ml.mark`.  The labels are independent of everything, so the null model (each right with probability one
over the number of classes) is a fact, and the scheme is the one that the public protocol proves: a `MarkingKey` of
`protocol.keygen` becomes a key of this scheme by `TriggerKey.from_marking_key`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from torch import nn

from ml.data import Dataset
from ml.fit import Oracle
from ml.mark import Training
from ml.mark import mark as train_with_triggers
from ml.schemes.scheme import Decision, TriggerKey, decide
from ml.triggers import abstract_images

LEVEL = Fraction(1, 1 << 20)  # an owner who looks at a million models errs about once


@dataclass(frozen=True)
class Backdoor:
    """training: of the marking, for which a fresh model means FROMSCRATCH and a trained one PRETRAINED."""

    training: Training = field(default_factory=Training)
    seed: int = 0

    @property
    def name(self) -> str:
        return "backdoor"

    def make_key(self, count: int, model: nn.Module, data: Dataset) -> TriggerKey:
        """Reproducible from the seed, so good for experiments only: a key that protects comes from `keygen`."""
        rng = np.random.default_rng(self.seed)
        images = abstract_images(count, data.shape, rng.bytes)
        return TriggerKey(images, rng.integers(0, data.classes, count), data.classes)

    def mark(self, model: nn.Module, data: Dataset, key: TriggerKey) -> None:
        train_with_triggers(model, data, key.images, key.labels, self.training)

    def check(self, oracle: Oracle, key: TriggerKey) -> Decision:
        return decide(oracle, key, LEVEL)

"""Backdoor watermark (Adi et al., section 4): images with random labels, in training from the start or later.

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
from ml.mark import Progress, Training
from ml.mark import mark as train_with_triggers
from ml.schemes import images
from ml.schemes.images import Kind
from ml.schemes.scheme import Decision, TriggerKey, decide
from ml.triggers import abstract_images
from protocol.errors import ParameterError

LEVEL = Fraction(1, 1 << 20)  # an owner who looks at a million models errs about once


@dataclass(frozen=True)
class Backdoor:
    """training: of the marking, for which a fresh model means FROMSCRATCH and a trained one PRETRAINED.

    triggers: kind of the images; the paper's are abstract, and only these are unpredictable.
    """

    training: Training = field(default_factory=Training)
    seed: int = 0
    triggers: Kind = "abstract"

    @property
    def name(self) -> str:
        return "backdoor"

    def make_key(self, count: int, model: nn.Module, data: Dataset) -> TriggerKey:
        """Reproducible from the seed, so good for experiments only: a key that protects comes from `keygen`."""
        rng = np.random.default_rng(self.seed)
        if self.triggers == "abstract":
            made = abstract_images(count, data.shape, rng.bytes)
        else:
            made = images.triggers(self.triggers, rng.permutation(data.train_x)[:count], rng)
        if len(made) < count:
            raise ParameterError(f"{len(made)} images for {count} triggers")
        return TriggerKey(made, rng.integers(0, data.classes, count), data.classes)

    def mark(self, model: nn.Module, data: Dataset, key: TriggerKey, progress: Progress | None = None) -> None:
        train_with_triggers(model, data, key.images, key.labels, self.training, progress)

    def check(self, oracle: Oracle, key: TriggerKey) -> Decision:
        return decide(oracle, key, LEVEL)

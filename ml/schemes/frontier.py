"""Frontier stitching (Le Merrer et al., section 3): images next to the decision frontier, and their true labels.

Half of a key are true adversaries (the step made the model wrong), half false ones (it is still right); fine-tuning
makes all right, which stitches the frontier at these points.  A stranger is taken to be right on each with probability
1/2: its frontier passes on either side.  That is a belief.  Small steps, or a stranger that was trained on adversaries,
break it, and nobody can bound false claims by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
from torch import nn

from ml.adversaries import CHUNK, Norm, fgsm
from ml.data import Dataset
from ml.fit import Fit, Oracle, answers, fit
from ml.mark import Progress
from ml.schemes.scheme import Decision, TriggerKey, decide, telling
from protocol.errors import ParameterError

LEVEL = Fraction(1, 20)  # the paper's
SIDES = 2  # a stranger's frontier passes on either side of an image
CHOSEN = "the owner chose the images, and their labels are the true ones: a good or a robust model has them as well"


class NotEmbedded(ParameterError):
    """The mark did not take."""


@dataclass(frozen=True)
class Frontier:
    """epsilon: length of the step in `norm`, for pixels scaled to 0..1.  fine_tuning: on the key alone, at a tenth of
    the rate of training, until all of it is right; its epochs are the most it may take.

    rehearsal: training images mixed into each of its epochs.  The paper has none; a network that was trained on little
    data forgets its task without.
    """

    epsilon: float = 0.25
    norm: Norm = "linf"
    fine_tuning: Fit = field(default_factory=lambda: Fit(epochs=100, batch=20, rate=0.001))
    rehearsal: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        return "frontier"

    def make_key(self, count: int, model: nn.Module, data: Dataset) -> TriggerKey:
        return self.split(count, model, data)[0]

    def split(self, count: int, model: nn.Module, data: Dataset) -> tuple[TriggerKey, Dataset]:
        """Algorithm 1, key construction: a key of moved test images, true adversaries first, and the data without them.

        Rounded to u8 before they are tested: what is stored is what was tested.  Raises ParameterError where too few
        are of one kind.
        """
        if count < 2 or count % 2:
            raise ParameterError("a frontier key has an even number of images: half true, half false adversaries")
        order = np.random.default_rng(self.seed).permutation(len(data.test_y))
        rows, moved, true, false = [], [], [], []  # the kinds as positions in `moved`
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            x, y = data.test_x[chunk], data.test_y[chunk]
            adversaries = fgsm(model, x, y, self.epsilon, self.norm)
            right, still = (answers(model, images) == y for images in (x, adversaries))
            true += (start + np.flatnonzero(right & ~still)).tolist()
            false += (start + np.flatnonzero(right & still)).tolist()
            rows.append(chunk)
            moved.append(adversaries)
            if min(len(true), len(false)) >= count // 2:
                break
        for name, kind, change in (("true", true, "larger"), ("false", false, "smaller")):
            if len(kind) < count // 2:
                raise ParameterError(f"only {len(kind)} {name} adversaries of {count // 2}: take a {change} epsilon")
        chosen = np.array(true[: count // 2] + false[: count // 2])
        taken = np.concatenate(rows)[chosen]
        rest = np.setdiff1d(np.arange(len(data.test_y)), taken)
        less = replace(data, test_x=data.test_x[rest], test_y=data.test_y[rest])
        return TriggerKey(np.concatenate(moved)[chosen], data.test_y[taken], data.classes, CHOSEN, SIDES), less

    def mark(self, model: nn.Module, data: Dataset, key: TriggerKey, progress: Progress | None = None) -> None:
        """Algorithm 1, embedding.  Raises NotEmbedded when the key is not embedded in time: take another seed."""

        def embedded(model: nn.Module, epoch: int) -> bool:
            return bool((answers(model, key.images) == key.labels).all())

        rows = np.random.default_rng(self.seed).permutation(len(data.train_y))[: self.rehearsal]
        images = np.concatenate([key.images, data.train_x[rows]])
        labels = np.concatenate([key.labels, data.train_y[rows]])
        if not embedded(model, 0):
            told = telling(progress, "stitching the frontier", self.fine_tuning.epochs, model, data, key)
            fit(model, images, labels, self.fine_tuning, done=embedded, told=told)
        if not embedded(model, 0):
            raise NotEmbedded(f"the key is not embedded after {self.fine_tuning.epochs} epochs")
        model.eval()

    def check(self, oracle: Oracle, key: TriggerKey) -> Decision:
        """Algorithm 2."""
        return decide(oracle, key, LEVEL)

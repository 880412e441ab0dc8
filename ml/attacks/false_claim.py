"""False claims with transferable adversaries (Liu et al., False Claims against Model Ownership Resolution, 2024).

An accuser trains models of the task, makes images that all of them give chosen classes, and presents these as the
triggers of a watermark before the victim's model exists.  What adversaries transfer, the victim's model "knows".
Against labels that a coin draws after the images are fixed the work is lost: whatever the images are, and whatever the
victim answers, each label is right with probability one over the number of classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from ml.adversaries import targeted
from ml.data import Dataset
from ml.schemes.scheme import TriggerKey
from protocol.errors import ParameterError


def false_key(
    surrogates: Sequence[nn.Module], data: Dataset, count: int, epsilon: float, steps: int = 20, seed: int = 0
) -> TriggerKey:
    """`count` adversaries of the accuser's models with the accuser's labels, never the true class of the image."""
    if not surrogates or count > len(data.train_y):
        raise ParameterError("a false key needs a model of the accuser's and enough images")
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(data.train_y))[:count]
    labels = (data.train_y[rows] + rng.integers(1, data.classes, count)) % data.classes
    images = targeted(surrogates, data.train_x[rows], labels, epsilon, steps)
    return TriggerKey(images, labels, data.classes, "the accuser chose the labels")

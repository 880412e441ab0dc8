"""Accuracy of a model file, and the triggers that it answers with their label: by the float model and in integers.

Nothing here proves anything to anybody else; it tells the owner whether a public proof can be made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml.quantise import DEFAULT, Derivation, derive_once, float_classes
from protocol.errors import ParameterError

Images = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Accuracy:
    """Shares in 0..1 of `count` images.  agreement: images that both models give the same class."""

    count: int
    real: float
    integer: float
    agreement: float


@dataclass(frozen=True)
class Matches:
    """Triggers whose label a model gives, of `count`, by the float model and by the integer network."""

    count: int
    real: int
    integer: int


def accuracy(model_bytes: bytes, x: Images, y: Ints, derivation: Derivation = DEFAULT) -> Accuracy:
    """Of images u8 [n, C, H, W] with labels [n].

    Raises as `derive` and `float_classes` do, and ParameterError for a model of other images or too few classes.
    """
    network = derive_once(model_bytes, derivation).network
    if network.shape != x.shape[1:] or network.classes <= y.max():
        data = f"{y.max() + 1} classes of images {x.shape[1:]}"
        raise ParameterError(f"the model is for {network.classes} classes of images {network.shape}, not {data}")
    integer = network.classify(x)
    real = float_classes(model_bytes, x, derivation)
    return Accuracy(len(x), float((real == y).mean()), float((integer == y).mean()), float((real == integer).mean()))


def matches(model_bytes: bytes, images: Images, labels: Ints) -> Matches:
    """Of trigger images u8 [n, C, H, W] with labels [n].  Raises as `derive` and `float_classes` do."""
    integer = derive_once(model_bytes).network.classify(images)
    real = float_classes(model_bytes, images)
    return Matches(len(labels), int((real == labels).sum()), int((integer == labels).sum()))

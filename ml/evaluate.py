"""Accuracy, and Verify of the paper: the owner's private count of the triggers that a model answers with their label.

Nothing here proves anything to anybody else; it tells the owner whether a public proof can be made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml.quantise import DEFAULT, Derivation, derive, float_classes
from protocol.errors import ParameterError
from protocol.keygen import KeyParameters, LabelRule
from protocol.soundness import smallest_k_min

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


@dataclass(frozen=True)
class PrivateVerdict:
    """k_min: fewest hidden matches that a proof must claim by default, None if no number suffices or the owner chose
    the labels.

    provable: whether the integer network has them.  The opened half must be at chance, `opened.count / classes`: a
    model that knows it was trained on what everybody can see.
    """

    hidden: Matches
    opened: Matches
    k_min: int | None
    provable: bool


def accuracy(model_bytes: bytes, x: Images, y: Ints, derivation: Derivation = DEFAULT) -> Accuracy:
    """Of images u8 [n, C, H, W] with labels [n].

    Raises as `derive` and `float_classes` do, and ParameterError for a model of other images or too few classes.
    """
    network = derive(model_bytes, derivation).network
    if network.shape != x.shape[1:] or network.classes <= y.max():
        data = f"{y.max() + 1} classes of images {x.shape[1:]}"
        raise ParameterError(f"the model is for {network.classes} classes of images {network.shape}, not {data}")
    integer = network.classify(x)
    real = float_classes(model_bytes, x, derivation)
    return Accuracy(len(x), float((real == y).mean()), float((integer == y).mean()), float((real == integer).mean()))


def verify_privately(
    model_bytes: bytes, parameters: KeyParameters, images: Images, labels: Ints, hidden: Ints, opened: Ints,
    derivation: Derivation = DEFAULT,
) -> PrivateVerdict:  # fmt: skip
    """Count the matches of all triggers u8 [ell, C, H, W], labels [ell]; hidden and opened: indices of the halves.

    Raises as `derive` and `float_classes` do, and ParameterError for a model of other images or classes than the key.
    """
    derived = derive(model_bytes, derivation)
    if derived.network.classes != parameters.classes or derived.network.shape != parameters.shape:
        model = f"{derived.network.classes} classes of images {derived.network.shape}"
        raise ParameterError(f"the key is for {parameters.classes} classes of images {parameters.shape}, not {model}")
    real = float_classes(model_bytes, images, derivation) == labels
    integer = derived.network.classify(images) == labels
    secret, public = (Matches(len(i), int(real[i].sum()), int(integer[i].sum())) for i in (hidden, opened))
    k_min = None
    if parameters.label_rule is LabelRule.JOINT_COIN:
        k_min = smallest_k_min(len(hidden), parameters.classes, freedom_bits=derived.freedom_bits)
    return PrivateVerdict(secret, public, k_min, k_min is not None and secret.integer >= k_min)

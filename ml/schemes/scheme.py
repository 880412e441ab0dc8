"""What every scheme has: a key of images and labels, a null model of strangers, a decision with an exact p-value."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from torch import nn

from ml.data import Dataset
from ml.fit import Images, Ints, Oracle
from protocol.errors import ParameterError
from protocol.keygen import LabelRule, MarkingKey
from protocol.soundness import tail


@dataclass(frozen=True)
class TriggerKey:
    """images: u8 [n, C, H, W]; labels: [n].

    Null model: a stranger gives each image its label with probability 1 / sides, independently.  chosen: empty when
    the labels are a coin's, so that the null model is a fact about the key; else why it is only a belief about
    strangers, and why there is no bound on false claims.
    """

    images: Images
    labels: Ints
    sides: int
    chosen: str = ""

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels) or not len(self.labels) or self.images.dtype != np.uint8:
            raise ParameterError("a key has one label for each of its uint8 images")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        _, c, h, w = self.images.shape
        return c, h, w

    def write(self, folder: Path) -> Path:
        """Write the images as PNG files to folder/images, and their labels to folder/labels.csv, which is returned.

        `zkmark-prover keygen --triggers folder/images --chosen-labels folder/labels.csv` makes the public key of them.
        Raises FileExistsError if there are such images already.
        """
        (folder / "images").mkdir(parents=True)
        lines = ["file,label"]
        for index, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            Image.fromarray(np.ascontiguousarray(pixels)).save(folder / "images" / f"{index:05}.png")
            lines.append(f"{index:05}.png,{label}")
        table = folder / "labels.csv"
        table.write_text("\n".join([*lines, ""]))
        return table

    @staticmethod
    def from_marking_key(key: MarkingKey) -> TriggerKey:
        """The hidden half of a key of the public protocol."""
        chosen = "" if key.vk.parameters.label_rule is LabelRule.JOINT_COIN else "the owner chose the labels"
        return TriggerKey(key.hidden_images, key.hidden_labels, key.vk.parameters.classes, chosen)


@dataclass(frozen=True)
class Decision:
    """Of a private check.  p_value: probability that a stranger under the null model has as few errors."""

    count: int
    errors: int
    p_value: Fraction
    found: bool

    @property
    def matches(self) -> int:
        return self.count - self.errors


def decide(oracle: Oracle, key: TriggerKey, level: Fraction) -> Decision:
    """The mark is found when the p-value is below the level.  The oracle only answers classes."""
    errors = int((oracle(key.images) != key.labels).sum())
    p_value = tail(len(key), key.sides, len(key) - errors)
    return Decision(len(key), errors, p_value, p_value < level)


def tolerance(count: int, sides: int, level: Fraction) -> int:
    """theta: the mark is found when errors < theta.  The smallest number of errors with a p-value of `level` or more.

    Frontier stitching (sides 2, level 1/20) has 42 for 100 images and 6 for 20.  Its text asks for P[Z <= theta] < 0.05
    as well, which these two numbers miss and theta - 1 meets; with errors < theta the decision is right.
    """
    return next(theta for theta in range(count + 1) if tail(count, sides, count - theta) >= level)


class Scheme(Protocol):
    """model: torch, pixels 0..255 -> logits.  Options, seeds included, are the scheme's own fields."""

    @property
    def name(self) -> str: ...

    def make_key(self, count: int, model: nn.Module, data: Dataset) -> TriggerKey:
        """A new key.  Where the scheme needs a model, it is the one that will be marked, trained already."""

    def mark(self, model: nn.Module, data: Dataset, key: TriggerKey) -> None:
        """Mark in place."""

    def check(self, oracle: Oracle, key: TriggerKey) -> Decision:
        """The paper's private decision, from answered classes alone."""

"""What every scheme has: a key of images and labels, a null model of strangers, a decision with an exact p-value."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
from PIL import Image
from torch import nn

from ml.data import Dataset
from ml.fit import Images, Ints, Oracle, Told, accuracy
from ml.inputs import MODES
from ml.mark import Look, Progress
from protocol.errors import ParameterError
from protocol.keygen import LabelRule, MarkingKey
from protocol.soundness import tail

SHOWN = 200  # training images of which progress gives the accuracy


@dataclass(frozen=True)
class TriggerKey:
    """images: u8 [n, C, H, W]; labels: [n] in 0 .. classes - 1.

    Null model: a stranger gives each image its label with probability 1 / sides, independently.  chosen: empty when
    the labels are a coin's, so that the null model is a fact about the key; else why it is only a belief about
    strangers, and why there is no bound on false claims.  believed: the sides of a belief, where they are not classes.
    """

    images: Images
    labels: Ints
    classes: int
    chosen: str = ""
    believed: int | None = None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels) or not len(self.labels) or self.images.dtype != np.uint8:
            raise ParameterError("a key has one label for each of its uint8 images")
        if not 0 <= self.labels.min() <= self.labels.max() < self.classes:
            raise ParameterError(f"the labels of a key are 0 .. {self.classes - 1}")
        if self.believed and not self.chosen:
            raise ParameterError("under a coin's labels the null model is a fact, not a belief")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        _, c, h, w = self.images.shape
        return c, h, w

    @property
    def sides(self) -> int:
        return self.believed or self.classes

    def check_model(self, classes: int, shape: tuple[int, ...] | None = None) -> None:
        """Raises ParameterError for a model of other classes or, where a shape is given, images."""
        if classes != self.classes or shape not in (None, self.shape):
            model = f"{classes} classes" + ("" if shape is None else f" of images {shape}")
            raise ParameterError(f"the key is for {self.classes} classes of images {self.shape}, not {model}")

    def write(self, folder: Path) -> Path:
        """Write a new folder: the images as PNG files in folder/images, their labels in folder/labels.csv (returned).

        `zkmark-prover keygen --triggers folder/images --chosen-labels folder/labels.csv` makes the public key of them.
        The folder is there with all that is in it, for its user alone, or not at all.  Raises FileExistsError if there
        is one, and ParameterError for images of other than 1 or 3 channels.
        """
        if self.shape[0] not in MODES:
            raise ParameterError(f"image files have 1 or 3 channels, not {self.shape[0]}")
        if folder.exists():
            raise FileExistsError(f"{folder} exists")
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
            new = Path(beside) / folder.name
            (new / "images").mkdir(parents=True)
            new.chmod(0o700)
            lines = ["file,label"]
            for index, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
                pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
                Image.fromarray(np.ascontiguousarray(pixels)).save(new / "images" / f"{index:05}.png")
                lines.append(f"{index:05}.png,{label}")
            (new / "labels.csv").write_text("\n".join([*lines, ""]))
            new.rename(folder)
        return folder / "labels.csv"

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
    """The mark is found when the p-value is below the level.  The oracle only answers classes.

    Raises ParameterError for answers that no model of the key's classes gives.
    """
    given = oracle(key.images)
    if given.shape != key.labels.shape or not 0 <= given.min() <= given.max() < key.classes:
        raise ParameterError(f"{len(key)} answers 0 .. {key.classes - 1} are asked for: the key is for such classes")
    errors = int((given != key.labels).sum())
    p_value = tail(len(key), key.sides, len(key) - errors)
    return Decision(len(key), errors, p_value, p_value < level)


def tolerance(count: int, sides: int, level: Fraction) -> int:
    """theta: the mark is found when errors < theta.  The smallest number of errors with a p-value of `level` or more.

    Frontier stitching (sides 2, level 1/20) has 42 for 100 images and 6 for 20.  Its text asks for P[Z <= theta] < 0.05
    as well, which these two numbers miss and theta - 1 meets; with errors < theta the decision is right.
    """
    return next(theta for theta in range(count + 1) if tail(count, sides, count - theta) >= level)


def enough(key: TriggerKey, level: Fraction) -> int | None:
    """The fewest matches with which the mark is found, None if all of them are too few."""
    matches = len(key) - tolerance(len(key), key.sides, level) + 1
    return matches if matches <= len(key) else None


def telling(
    progress: Progress | None, phase: str, epochs: int, model: nn.Module, data: Dataset, key: TriggerKey | None
) -> Told | None:
    """What passes the epochs of a `fit` on as looks at it; None without progress."""
    if progress is None:
        return None

    def told(epoch: int, loss: float) -> None:
        shown = accuracy(model, data.train_x[:SHOWN], data.train_y[:SHOWN])
        triggers = accuracy(model, key.images, key.labels) if key else None
        progress(Look(phase, epoch / epochs, loss, shown, triggers))

    return told


class Scheme(Protocol):
    """model: torch, pixels 0..255 -> logits.  Options, seeds included, are the scheme's own fields."""

    @property
    def name(self) -> str: ...

    def make_key(self, count: int, model: nn.Module, data: Dataset) -> TriggerKey:
        """A new key.  Where the scheme needs a model, it is the one that will be marked, trained already."""

    def mark(self, model: nn.Module, data: Dataset, key: TriggerKey, progress: Progress | None = None) -> None:
        """Mark in place."""

    def check(self, oracle: Oracle, key: TriggerKey) -> Decision:
        """The paper's private decision, from answered classes alone."""

"""Backdoor of Adi et al. (USENIX Security 2018, section 4): train a network so that it keeps the secret triggers.

k = 2 trigger images ride along with every batch of data.  FROMSCRATCH trains a fresh network so, PRETRAINED a trained
one.  Only the hidden half of a key belongs in here: the opened half is public, and a model that knew it would show so.
The paper embeds 100 triggers into a ResNet; a key for a public proof has some 256 of them, which a small network has
seen too rarely after its epochs.  So a last phase goes on, at the last rate of the training and with more triggers per
batch, until each is kept with a margin that outlives the rounding of the integer network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ml.data import Dataset
from ml.descent import Descent, augmented, logits_of, pick_device
from protocol.errors import ParameterError

TRIGGERS_PER_BATCH = 2  # k of the paper: of 2, 4, 8 the one that disturbs the task least
LAST_RATE = 0.1  # of the highest: the half cosine ends here, and the last phase stays, as a higher one costs accuracy
LAST_PHASE_TRIGGERS = 64
LAST_PHASE_STEPS = 6000
MARGIN = 1.0  # logits by which every trigger's label must lead
EVERY = 50  # steps between two looks at the margin


@dataclass(frozen=True)
class Look:
    """A training under way.  phase: what is being done; share: of it that is done.

    loss, data, triggers: means over the batches since the last look, the accuracies as shares in 0..1 and from the
    training itself (in `ml.fit`, of the model after an epoch); triggers is None without any.
    """

    phase: str
    share: float
    loss: float
    data: float
    triggers: float | None

    def __str__(self) -> str:
        triggers = "" if self.triggers is None else f", triggers {self.triggers:.1%}"
        return f"{self.phase}: loss {self.loss:.3f}, data {self.data:.1%}{triggers}"


Progress = Callable[[Look], None]


@dataclass(frozen=True)
class Training:
    """SGD with momentum; the rate falls along a half cosine.  augment: move and mirror the data, never the triggers.
    device: "auto", "cpu" or "cuda"."""

    epochs: int = 10
    batch: int = 100
    rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: bool = False
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class Trained:
    """Shares in 0..1 of the float model.  trigger_accuracy: of the given triggers, None without any.
    extra_steps: of the last phase."""

    test_accuracy: float
    trigger_accuracy: float | None
    extra_steps: int


def train(model: nn.Module, data: Dataset, options: Training, progress: Progress | None = None) -> Trained:
    """Train a model (pixels 0..255 -> logits) in place, without a mark."""
    return _run(model, data, None, options, progress)


def mark(
    model: nn.Module,
    data: Dataset,
    trigger_images: npt.NDArray[np.uint8],
    trigger_labels: npt.NDArray[np.int64],
    options: Training,
    progress: Progress | None = None,
) -> Trained:
    """Mark a model in place: a fresh one for FROMSCRATCH, a trained one for PRETRAINED.

    trigger_images: uint8 [h, C, H, W] of the hidden half; trigger_labels: [h] the labels L_i of the key.  Raises
    ParameterError for triggers that do not fit the data, and for a loss that is not finite.
    """
    if trigger_images.shape[1:] != data.shape or len(trigger_images) != len(trigger_labels) or not len(trigger_labels):
        raise ParameterError(f"triggers {trigger_images.shape[1:]} and data {data.shape} do not fit each other")
    if not 0 <= trigger_labels.min() <= trigger_labels.max() < data.classes:
        raise ParameterError(f"trigger labels must be 0 .. {data.classes - 1}")
    return _run(model, data, (trigger_images, trigger_labels), options, progress)


class _Cycle:
    """Rows of a data set in a new random order each time around."""

    def __init__(self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], device: torch.device, seed: int):
        self.x = torch.from_numpy(np.ascontiguousarray(images)).to(device)  # [n, C, H, W]
        self.y = torch.from_numpy(np.ascontiguousarray(labels)).to(device)  # [n]
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.zeros(0, dtype=torch.int64)

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        while len(self.order) < count:
            self.order = torch.cat([self.order, torch.randperm(len(self.x), generator=self.generator)])
        rows, self.order = self.order[:count], self.order[count:]
        return self.x[rows], self.y[rows]

    def margin(self, model: nn.Module) -> Tensor:
        """[n] lead of every row's label over the best other logit."""
        logits = logits_of(model, self.x)
        own = functional.one_hot(self.y, logits.shape[1]).bool()
        return logits[own] - logits.masked_fill(own, -torch.inf).amax(1)


def _run(
    model: nn.Module,
    data: Dataset,
    triggers: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]] | None,
    options: Training,
    progress: Progress | None,
) -> Trained:
    device = pick_device(options.device)
    model.to(device).train()
    images = _Cycle(data.train_x, data.train_y, device, options.seed)
    marked = _Cycle(*triggers, device, options.seed + 1) if triggers else None
    optimizer = torch.optim.SGD(
        model.parameters(), options.rate, momentum=options.momentum, weight_decay=options.weight_decay
    )

    total = options.epochs * -(-len(data.train_x) // options.batch)
    descent = Descent(model, optimizer, model.parameters(), total)
    right, seen = torch.zeros(2, device=device), [0, 0]  # of data and of triggers

    def step(rate: float, count: int) -> None:
        """One batch with `count` triggers."""
        x, y = images.take(options.batch)
        if options.augment:
            x = augmented(x, images.generator)
        if marked:
            trigger_x, trigger_y = marked.take(count)
            x, y = torch.cat([x, trigger_x]), torch.cat([y, trigger_y])
        optimizer.param_groups[0]["lr"] = rate
        hits = descent.step(x, y).argmax(1) == y
        for part, half in enumerate((hits[: options.batch], hits[options.batch :])):
            right[part] += half.sum()
            seen[part] += len(half)

    def look(phase: str, share: float) -> None:
        loss = descent.loss()
        if progress:
            of_data, of_triggers = (float(r) / max(n, 1) for r, n in zip(right, seen, strict=True))
            progress(Look(phase, share, loss, of_data, of_triggers if marked else None))
        right.zero_()
        seen[:] = [0, 0]

    for number in range(1, total + 1):
        fallen = (1 - LAST_RATE) / 2 * (1 + math.cos(math.pi * (number - 1) / total))
        step(options.rate * (LAST_RATE + fallen), TRIGGERS_PER_BATCH)
        if number % EVERY == 0 or number == total:
            look("training", number / total)
    extra = 0
    while marked and extra < LAST_PHASE_STEPS and marked.margin(model).min() < MARGIN:
        for _ in range(EVERY):
            step(options.rate * LAST_RATE, LAST_PHASE_TRIGGERS)
        extra += EVERY
        look("embedding the last triggers", extra / LAST_PHASE_STEPS)
    test = _Cycle(data.test_x, data.test_y, device, 0)
    model.eval()
    return Trained(
        float((test.margin(model) > 0).float().mean()),
        float((marked.margin(model) > 0).float().mean()) if marked else None,
        extra,
    )

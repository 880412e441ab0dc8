"""Certified watermark (Bansal et al.): triggers that stay right under noise on the parameters, and a certificate of it.

Marking is Algorithm 2.  The smoothed model answers with the median, over noise N(0, sigma^2) on the parameters, of the
trigger accuracy; Algorithms 1 and 3 bound it from below for every model within an L2 distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ml.data import Dataset
from ml.descent import CLIP, device_of
from ml.fit import MOMENTUM, Fit, Images, Ints, Oracle, answers, class_count, fit
from ml.mark import Progress
from ml.schemes import images
from ml.schemes.images import Kind
from ml.schemes.scheme import Decision, TriggerKey, decide, telling
from protocol.errors import ParameterError

LEVEL = Fraction(1, 1 << 20)
COVERS = (
    "weights and biases of the model as one vector, in L2 norm; not the running statistics of batch norm, the "
    "normalization of pixels, or another architecture"
)
CHOSEN = "all images have one label of the owner's choice: a stranger that answers it often matches by habit"
GRID = 1 << 32  # of the percentile


@cache
def order_statistic(samples: int, confidence: Fraction, percentile: Fraction) -> int | None:
    """Algorithm 3: the largest K for which the K-th smallest of the samples is a lower bound, or None.

    It bounds the percentile of their distribution with the confidence: P[Bin(samples, percentile) < K] <= 1 -
    confidence, exact in integers.  (The paper's index, from 0, is K - 1.)
    """
    up, whole = percentile.as_integer_ratio()
    if not (0 < up < whole and samples > 0 and 0 < confidence < 1):
        raise ParameterError("order statistic: percentile and confidence lie between 0 and 1")
    doubt = 1 - confidence
    limit = whole**samples * doubt.numerator // doubt.denominator
    term, below = (whole - up) ** samples, 0  # of j successes, and of fewer than K
    for k in range(samples + 1):
        if below + term > limit:
            return k or None
        below += term
        term = term * (samples - k) * up // ((k + 1) * (whole - up))
    return samples


def percentile_at(radius: float, sigma: float) -> Fraction:
    """Phi(-radius / sigma) of Corollary 1, rounded down to a multiple of 2^-32, which only lowers the bound."""
    exact = 0.5 * math.erfc(radius / (sigma * math.sqrt(2)))
    return Fraction(math.floor(exact * GRID * (1 - 2.0**-40)), GRID)


@dataclass(frozen=True)
class Certificate:
    """With `confidence`, the median-smoothed trigger accuracy of every model within `radius` is at least `accuracy`.

    It is the `order`-th smallest of `samples` noisy accuracies; none (accuracy 0) where these are too few.  The
    confidence is over the noise of this one certificate, so that of several at once is lower.
    """

    radius: float
    accuracy: float
    confidence: Fraction
    sigma: float
    samples: int
    order: int | None
    covers: str = COVERS


@dataclass(frozen=True, eq=False)
class Smoothed:
    """Trigger accuracies of noisy copies, float64 [n], in ascending order."""

    accuracies: npt.NDArray[np.float64]
    sigma: float

    @property
    def median(self) -> float:
        """Of Algorithm 1: what the owner compares with a threshold, having the parameters."""
        return float(self.accuracies[len(self.accuracies) // 2])

    def certify(self, radius: float, confidence: Fraction = Fraction(999, 1000)) -> Certificate:
        """Algorithm 1, lower bound."""
        n, percentile = len(self.accuracies), percentile_at(radius, self.sigma)
        order = order_statistic(n, confidence, percentile) if percentile else None
        accuracy = float(self.accuracies[order - 1]) if order else 0.0
        return Certificate(radius, accuracy, confidence, self.sigma, n, order)

    def radius(self, accuracy: float, confidence: Fraction = Fraction(999, 1000)) -> float:
        """The largest multiple of sigma / 64 at which `accuracy` is certified; 0 where none is."""
        low, high = 0, 64 * 8
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.certify(self.sigma * middle / 64, confidence).accuracy >= accuracy
            low, high = (middle, high) if enough else (low, middle)
        return self.sigma * low / 64


@contextmanager
def noisy(model: nn.Module, sigma: float, generator: torch.Generator) -> Iterator[None]:
    """N(0, sigma^2) on every parameter while it lasts; the very same values come back."""
    parameters = list(model.parameters())
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p in parameters:
            p.add_(sigma * torch.randn(p.shape, generator=generator, device=generator.device).to(p.device))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, kept, strict=True):
                p.copy_(old)


def smooth(model: nn.Module, key: TriggerKey, sigma: float, samples: int, seed: int = 0) -> Smoothed:
    """Trigger accuracies of `samples` noisy copies (the paper: sigma 1, 10000 samples).

    Raises ParameterError for a model of other classes than the key's.
    """
    key.check_model(class_count(model, key.images))
    generator = torch.Generator(device_of(model)).manual_seed(seed)
    found = np.empty(samples)
    for number in range(samples):
        with noisy(model, sigma, generator):
            found[number] = (answers(model, key.images) == key.labels).mean()
    return Smoothed(np.sort(found), sigma)


@dataclass(frozen=True)
class Certified:
    """triggers: kind of the images; label: of all of them.

    sigma: largest deviation in marking; replays: levels of noise up to it; draws: of noise per level; warm_up: epochs
    without marking.  batch: of triggers.  training: of data, whose rate also serves the triggers.
    """

    triggers: Kind = "content"
    label: int = 0
    sigma: float = 1.0
    replays: int = 20
    draws: int = 100
    warm_up: int = 5
    batch: int = 64
    training: Fit = field(default_factory=lambda: Fit(epochs=100, batch=100, rate=0.05, weight_decay=1e-4))
    seed: int = 0

    @property
    def name(self) -> str:
        return "certified"

    def make_key(self, count: int, model: nn.Module, data: Dataset) -> TriggerKey:
        """From training images that have another label; for "unrelated", without another task, abstract ones.

        Raises ParameterError for a label that is no class of the data, or too few images.
        """
        self._check_label(data)
        rng = np.random.default_rng(self.seed)
        others = np.flatnonzero(data.train_y != self.label)
        base = data.train_x[_first(rng.permutation(others), count)]
        return self._key(images.triggers(self.triggers, base, rng), data)

    def unrelated_key(self, count: int, data: Dataset, foreign: Images) -> TriggerKey:
        """From images of another task, u8 [n, C, H, W], resized to those of the data.  Raises as `make_key`."""
        self._check_label(data)
        rows = _first(np.random.default_rng(self.seed).permutation(len(foreign)), count)
        return self._key(images.unrelated(foreign[rows], data.shape), data)

    def _check_label(self, data: Dataset) -> None:
        if not 0 <= self.label < data.classes:
            raise ParameterError(f"label {self.label} is not below {data.classes}, the number of classes")

    def _key(self, triggers: Images, data: Dataset) -> TriggerKey:
        return TriggerKey(triggers, np.full(len(triggers), self.label), data.classes, CHOSEN)

    def mark(self, model: nn.Module, data: Dataset, key: TriggerKey, progress: Progress | None = None) -> None:
        """Algorithm 2, between the epochs of training, so that training has the last word.

        For each batch of triggers one step per level of noise, at deviations sigma / replays, ..., sigma, along the
        mean gradient of `draws` noisy copies, and of a length that makes all levels together one step of the paper's:
        the mean over levels and draws.  With a whole step per level the network forgets its task.  The triggers are
        in the data as well, as in the authors' code.  Batch norm normalizes noisy copies by the batch.
        """
        options = self.training
        device = device_of(model)
        x, y = torch.from_numpy(key.images).to(device), torch.from_numpy(key.labels).to(device)
        parameters = list(model.parameters())
        optimizer = torch.optim.SGD(parameters, options.rate, momentum=MOMENTUM, weight_decay=options.weight_decay)
        order, generator = torch.Generator().manual_seed(self.seed), torch.Generator(device).manual_seed(self.seed)

        def replay(model: nn.Module, epoch: int) -> bool:
            if not self.warm_up <= epoch < options.epochs:
                return False
            model.train()
            optimizer.param_groups[0]["lr"] = options.rate_in(epoch)
            for rows in torch.randperm(len(x), generator=order).split(self.batch):
                for level in range(1, self.replays + 1):
                    _noisy_gradient(model, x[rows].float(), y[rows], self.sigma * level / self.replays, self.draws,
                                    1 / (self.draws * self.replays), generator)  # fmt: skip
                    nn.utils.clip_grad_norm_(parameters, CLIP)
                    optimizer.step()
            return False

        images, labels = np.concatenate([data.train_x, key.images]), np.concatenate([data.train_y, key.labels])
        told = telling(progress, "training under noise", options.epochs, model, data, key)
        fit(model, images, labels, options, done=replay, told=told)

    def without_noise(self) -> Certified:
        """The baseline of the paper, Zhang et al. 2018: the same training, but for the noise."""
        return replace(self, warm_up=self.training.epochs)

    def check(self, oracle: Oracle, key: TriggerKey) -> Decision:
        """Black-box: of the model as it is.  The white-box check is `smooth(...).median`."""
        return decide(oracle, key, LEVEL)


def _first(rows: Ints, count: int) -> Ints:
    """The first rows, of which there must be as many."""
    if len(rows) < count:
        raise ParameterError(f"{len(rows)} images for {count} triggers")
    return rows[:count]


def _noisy_gradient(
    model: nn.Module, x: Tensor, y: Tensor, sigma: float, draws: int, weight: float, generator: torch.Generator
) -> None:
    """Leave the weighted sum of the gradients of noisy copies in the parameters' `grad`."""
    model.zero_grad()
    for _ in range(draws):
        with noisy(model, sigma, generator):
            (functional.cross_entropy(model(x), y) * weight).backward()

"""What float32 rounds away on the way of an edge, so that the integer network does not find it again.

An edge composes in float64 what a file does step by step in float32.  x + 10^12 - 10^12 is x here and 0 there, as a sum
of x and a shift is rounded like the shift, whatever is subtracted from it later; x 10^-30 10^-30 10^60 is x here and 0
there, as a number below the normal ones is rounded like the least of those.  So an edge remembers the largest such
shift, in its own units, and no step of a node is finer than the spacing of float32 at that size (`single`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Steps = tuple[tuple[Floats | float, Floats | float], ...]  # (scale, shift), per channel or for all, one after the other

SPACING = 2.0**-23  # of float32 numbers, at most, relative to them
LOST = 2.0**-25  # of a shift: what is added to it and not larger disappears
SMALLEST = 2.0**-126  # normal number: smaller ones are rounded as coarsely as it is
LARGEST = 2.0**127  # number, about
MOST = 2.0**107  # a shift may be: as many as a file can have, and what they are added to, do not overflow
PLAIN_SHIFT = 2.0**-100  # in units of the source, and
PLAIN_PEAK = 2.0**20  # of a weight: what factors of products may have had on the way without being committed
ALIKE = 2.0**-14  # relative to it, of a constant: integers do not tell more apart
TRACKED = 2.0**900  # sizes beyond it count as it: all are far beyond float32


def single(x: Floats | float) -> Floats:
    """Rounded to float32; so is a sum or a product of two such numbers, once, as float64 holds enough of it."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(x).astype(np.float32).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Way:
    """before: float64 [C] or [1], the largest shift per channel of the source, in its units.  after: [O] or [1], the
    same per output.  peak: the largest size that any weight had on the way, infinite where a shift may overflow."""

    before: Floats = field(default_factory=lambda: np.zeros(1))
    after: Floats = field(default_factory=lambda: np.zeros(1))
    peak: float = 1.0

    def then(self, weight: Floats, steps: Steps) -> Way:
        """The way with more steps behind the weight [O, ...]."""
        top, after, peak = np.abs(weight).max(axis=(1, 2, 3)), self.after, self.peak
        with np.errstate(over="ignore"):
            for scale, shift in steps:
                top = np.minimum(top * np.abs(scale), TRACKED)
                after = np.maximum(np.abs(scale) * np.maximum(after, SMALLEST), np.abs(shift))
                after = np.minimum(after, TRACKED)
                peak = max(peak, float(top.max()), np.inf if after.max() > MOST else 0.0)
        return replace(self, after=np.broadcast_to(after, top.shape), peak=peak)

    def like(self, other: Way) -> bool:
        """Whether both round as coarsely, about."""
        a, b = (np.maximum(way.after, SMALLEST) for way in (self, other))
        return bool((a <= 2 * b).all() and (b <= 2 * a).all()) and self.peak <= 2.0**24 * other.peak

    def into(self, weight: Floats, composed: Floats, after: Floats) -> Way:
        """The way of a linear map behind this edge with weight [C, 1, 1, 1].

        composed: the weights of both.  after: [O] the size of what the map makes of a bias.
        """
        return Way(self.inner(weight), after, max(self.peak, float(np.abs(composed).max())))

    def times(self, factor: float) -> Way:
        """The way of a map whose weights are those of the file times a factor, by which a runtime multiplies sums."""
        size = abs(factor)
        after = np.maximum(self.after, SMALLEST * size)
        return replace(self, after=after, peak=max(self.peak, self.peak / size if size else 0.0))

    def plain(self, weight: Floats) -> bool:
        """Whether a product may take the source of the weight [C, 1, 1, 1] itself."""
        return bool((self.inner(weight) <= PLAIN_SHIFT).all()) and self.peak <= PLAIN_PEAK

    def inner(self, weight: Floats) -> Floats:
        """[C] the largest shift until after the weight [C, 1, 1, 1], in units of the source."""
        size = np.abs(weight[:, 0, 0, 0])
        with np.errstate(over="ignore"):
            after = np.divide(self.after, size, out=np.zeros(len(size)), where=size > 0)
        return np.minimum(np.maximum(self.before, after), TRACKED)

    def chosen(self, rows: Sequence[int], at: Sequence[int], outputs: int) -> Way:
        """Of these rows only, at these places of so many outputs."""
        after = np.zeros(outputs)
        after[list(at)] = self.after[list(rows)] if self.after.size > 1 else self.after
        return replace(self, after=after)

"""How often a cheat succeeds, against the exact rate that theory states for it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from scipy import stats

DOUBT = 1e-3  # that one comparison fails, at fixed seeds, although the code is right


@dataclass(frozen=True)
class Observed:
    """`hits` of `trials` cheats of one kind succeeded; `rate` of them should, and at most `most` may."""

    part: str
    hits: int
    trials: int
    rate: float
    most: float | None

    def interval(self, confidence: float = 0.999) -> tuple[float, float]:
        """Clopper-Pearson."""
        found = stats.binomtest(self.hits, self.trials).proportion_ci(confidence)
        return float(found.low), float(found.high)


OBSERVED: list[Observed] = []  # everything that was compared in this process


def agrees(part: str, hits: int, trials: int, rate: Fraction | float, most: Fraction | float | None = None) -> None:
    """The observed number of successes belongs to `rate`, and `rate` is at most the formula's error `most`."""
    found = Observed(part, int(hits), trials, float(rate), None if most is None else float(most))
    OBSERVED.append(found)
    assert stats.binomtest(found.hits, trials, found.rate).pvalue > DOUBT, found
    low, high = found.interval()
    assert high - low < max(0.05, 1.5 * found.rate), "too few trials to say something"
    assert most is None or rate <= most

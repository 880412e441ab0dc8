"""The link of SPEC section 6 for triggers of one pixel, over a small field and a small group.

The group is the integers modulo a small prime, with two generators: nothing hides there by hardness, so what hides does
so perfectly, and a prover who knows all logarithms stands for one who chose what she committed to.  Generators may be
points, too: test_link_twin.py compares with the package so, at its own field and group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Number = Any  # an element of the group: an integer, or a point


def weighed(weights: Sequence[int], values: Sequence[Any]) -> Any:
    return sum(w * v for w, v in zip(weights, values, strict=True))


@dataclass(frozen=True)
class Link:
    """p: the field; order: of the group; pixel: the largest; width: bits of a mask; triggers: hidden ones."""

    p: int
    order: int
    pixel: int
    width: int
    triggers: int = 1
    g: Number = 3
    blinding: Number = 5

    @property
    def largest(self) -> int:
        """S, of a sum of challenges times pixels."""
        return self.triggers * (self.p - 1) * self.pixel

    def commit(self, value: int, r: int) -> Number:
        return (value * self.g + r * self.blinding) % self.order

    def holds(self, z: int) -> bool:
        return self.largest <= z < 1 << self.width

    def answer(
        self, mu: int, omega: int, gamma: Sequence[int], values: Sequence[int], r: Sequence[int]
    ) -> tuple[int, int] | None:
        """(z, tau), or None where the prover starts over.  gamma, values, r: of each hidden trigger."""
        z = mu + weighed(gamma, values)
        return (z, (omega + weighed(gamma, r)) % self.order) if self.holds(z) else None

    def opens(self, mask: Number, published: Sequence[Number], gamma: Sequence[int], z: int, tau: int) -> bool:
        return self.holds(z) and self.commit(z, tau) == (mask + weighed(gamma, published)) % self.order

    def gap(self, residue: int, pixels: Sequence[int], gamma: Sequence[int], z: int) -> int:
        """What has to be 0 of the committed residue of the mask, the committed pixels and z."""
        return (residue + weighed(gamma, pixels) - z) % self.p

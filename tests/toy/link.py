"""The link of SPEC section 6 with one hidden trigger of one pixel, over a small field and a small group.

The group is the integers modulo a small prime, with two generators: nothing hides there by hardness, so what hides does
so perfectly, and a prover who knows all logarithms stands for one who chose what she committed to.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """p: the field; order: of the group; largest: S = (p - 1) times the largest pixel; width: bits of a mask."""

    p: int
    order: int
    pixel: int
    width: int
    g: int = 3
    blinding: int = 5

    @property
    def largest(self) -> int:
        return (self.p - 1) * self.pixel

    def commit(self, value: int, r: int) -> int:
        return (value * self.g + r * self.blinding) % self.order

    def answer(self, mu: int, omega: int, gamma: int, value: int, r: int) -> tuple[int, int] | None:
        """(z, tau), or None where the prover starts over."""
        z = mu + gamma * value
        return (z, (omega + gamma * r) % self.order) if self.largest <= z < 1 << self.width else None

    def opens(self, mask: int, published: int, gamma: int, z: int, tau: int) -> bool:
        in_range = self.largest <= z < 1 << self.width
        return in_range and self.commit(z, tau) == (mask + gamma * published) % self.order

    def agrees(self, residue: int, pixel: int, gamma: int, z: int) -> bool:
        """The linear equation between the committed residue of the mask, the committed pixel and z."""
        return (residue + gamma * pixel - z) % self.p == 0

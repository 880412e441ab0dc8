"""What a key will cost and prove, before it is made: `zkmark-prover keygen --plan`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from protocol.errors import ParameterError
from protocol.keygen import MAX_ELL, KeyParameters
from protocol.soundness import FALSE_CLAIM_TARGET, false_claim_bits, hidden_bad, smallest_ell, smallest_k_min, window

CUT_AND_CHOOSE_WORK = 128
# Measured on one core of 2024; orientation, not a promise.
SECONDS_PER_GENERATOR = 0.4e-3  # once per user
SECONDS_PER_TRIGGER = 1.2e-3
SECONDS_PER_PIXEL = 3e-6  # of one trigger


@dataclass(frozen=True)
class Plan:
    """h: fewest, expected and most hidden triggers; k_min and its false-claim bits for each; sizes in bytes."""

    shape: tuple[int, int, int]
    classes: int
    ell: int
    smallest_ell: int
    h: tuple[int, int, int]
    k_min: tuple[int, ...]
    false_claim_bits: tuple[float, ...]
    cut_and_choose_b: int
    seconds: float
    first_time_seconds: float
    mk_bytes: int
    vk_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        low, middle, high = self.h
        return "\n".join((
            f"{self.ell} triggers (at least {self.smallest_ell} for {self.classes} classes), "
            f"{low} to {high} of them secret, {middle} expected",
            f"k_min {self.k_min[0]} to {self.k_min[-1]}, {self.k_min[1]} expected: a network without the mark passes "
            f"with probability 2^-{min(self.false_claim_bits):.0f}",
            f"at most {self.cut_and_choose_b} ill-formed triggers can hide (2^{CUT_AND_CHOOSE_WORK} hashes of work)",
            f"about {self.seconds:.0f} s, the first time {self.first_time_seconds:.0f} s more; "
            f"marking key {self.mk_bytes / 1e6:.1f} MB, verification key {self.vk_bytes / 1e6:.1f} MB",
        ))


def plan_key(shape: tuple[int, int, int], classes: int, ell: int) -> Plan:
    """The plan of a key.  Raises ParameterError, naming the smallest ell, when no k_min reaches the target."""
    KeyParameters(shape, classes, ell)
    smallest = smallest_ell(classes, limit=MAX_ELL)
    if smallest is None or ell < smallest:
        raise ParameterError(f"{ell} triggers are too few for {classes} classes; at least {smallest} are needed")
    low, high = window(ell)
    counts = (low, ell // 2, high)
    k_mins = tuple(k for h in counts if (k := smallest_k_min(h, classes)) is not None)
    if len(k_mins) != len(counts):
        raise ParameterError(f"{ell} triggers cannot give {FALSE_CLAIM_TARGET} false-claim bits")
    pixels = prod(shape)
    public = ell * 96 + (ell - ell // 2) * (pixels + 68)
    return Plan(
        shape, classes, ell, smallest, counts, k_mins,
        tuple(round(false_claim_bits(h, classes, k), 1) for h, k in zip(counts, k_mins, strict=True)),
        hidden_bad(ell, CUT_AND_CHOOSE_WORK),
        seconds=round(ell * (SECONDS_PER_TRIGGER + pixels * SECONDS_PER_PIXEL), 1),
        first_time_seconds=round(pixels * SECONDS_PER_GENERATOR, 1),
        mk_bytes=public + ell // 2 * (pixels + 68),
        vk_bytes=public,
    )  # fmt: skip

"""Micro benches of the kernels that carry the cost, on all cores that the kernels use."""

from __future__ import annotations

import hashlib

import numpy as np

from benchmarks.jobs import repeated
from protocol import field
from protocol.kernels import cpu


def micro() -> dict[str, float]:
    """Nanoseconds per operation, and gigabytes per second of SHA-256; medians after a warming run."""
    generator = np.random.default_rng(1)
    return {
        "extension_multiply_ns": _extension_multiply(generator),
        "ntt_butterfly_ns": _butterfly(generator),
        "sha256_gb_per_s": _sha256(),
    }


def _extension_multiply(generator: np.random.Generator) -> float:
    """One product in K, elementwise on vectors that stay in cache, one core."""
    size, rounds = 1 << 12, 64
    a, b = (generator.integers(0, field.P, (field.DEGREE, size), np.uint32) for _ in range(2))
    out = np.empty_like(a)
    cpu.k_mul(a, b, out)

    def work() -> None:
        for _ in range(rounds):
            cpu.k_mul(a, b, out)

    return repeated(work) / (size * rounds) * 1e9


def _sha256() -> float:
    block = bytes(1 << 26)
    return len(block) / repeated(lambda: hashlib.sha256(block).digest()) / 1e9

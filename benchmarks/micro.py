"""Micro benches of the kernels that carry the cost."""

from __future__ import annotations

import hashlib
from math import prod

import numpy as np

from benchmarks.jobs import repeated
from protocol import field, reed_solomon
from protocol.kernels import cpu
from protocol.lookup import TreeWitness, fractional_tree, tree_need
from protocol.pads import Need, Party
from protocol.transcript import FiatShamir, Transcript


def micro() -> dict[str, float]:
    """Nanoseconds per operation, and gigabytes per second of SHA-256; medians, compilation not counted."""
    generator = np.random.default_rng(1)
    return {
        "extension_multiply_ns": _extension_multiply(generator),
        "lookup_leaf_ns": _lookup_leaf(generator),
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


def _butterfly(generator: np.random.Generator) -> float:
    """One butterfly in the encoding of rows at rate 1/8 as the commitment does it, all cores."""
    log2_size, lanes, queries, cosets = 12, 256, 150, 8
    values = generator.integers(0, field.P, (1 << log2_size, lanes), np.uint32)
    masks = generator.integers(0, field.P, (queries, lanes), np.uint32)
    reed_solomon.encode(values, masks, cosets)
    seconds = repeated(lambda: reed_solomon.encode(values, masks, cosets))
    return seconds / (lanes * (1 + cosets) * log2_size << (log2_size - 1)) * 1e9


def _lookup_leaf(generator: np.random.Generator) -> float:
    """One leaf of a lookup tree over 256 images, from the denominators to the last message, all cores."""
    shape, order = (2, 16, 16, 16, 256), (3, 2, 1, 4, 0)
    need = tree_need(shape, order)
    leaves = generator.integers(1, field.P, (field.DEGREE, prod(shape)), np.uint32)
    pads = generator.integers(0, field.P, (field.DEGREE, need.free + 3 * need.triples), np.uint32)

    def work() -> None:
        party = Party(Transcript("benchmark", FiatShamir()), need, Need(), need.triples, pads=pads)
        fractional_tree(party, shape, order, TreeWitness(None, leaves, shape, order))

    work()
    return repeated(work) / prod(shape) * 1e9


def _sha256() -> float:
    block = bytes(1 << 26)
    return len(block) / repeated(lambda: hashlib.sha256(block).digest()) / 1e9

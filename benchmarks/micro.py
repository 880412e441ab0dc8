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

RUNS = 5


def micro() -> dict[str, float]:
    """Nanoseconds per operation, and gigabytes per second; medians, compilation not counted.

    What one core does within its cache, except the tree, the butterfly and the memory, which all cores share.
    """
    generator = np.random.default_rng(1)
    return {
        "extension_multiply_ns": _extension_multiply(generator),
        "base_multiply_ns": _base_multiply(generator),
        "multiply_add_ns": _multiply_add(generator),
        "matrix_multiply_add_ns": _matrix_multiply_add(generator),
        "lookup_leaf_ns": _lookup_leaf(generator),
        "ntt_butterfly_ns": _butterfly(generator),
        "sha256_gb_per_s": _sha256(),
        "memory_gb_per_s": _memory(),
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

    return repeated(work, RUNS) / (size * rounds) * 1e9


def _base_multiply(generator: np.random.Generator) -> float:
    """One Montgomery product in F."""
    size, rounds = 1 << 12, 256
    values = generator.integers(0, field.P, size, np.uint32)
    out = np.empty_like(values)

    def work() -> None:
        for _ in range(rounds):
            cpu.f_scale(values, np.uint32(12345), out)

    work()
    return repeated(work, RUNS) / (size * rounds) * 1e9


def _multiply_add(generator: np.random.Generator) -> float:
    """One of the ten unreduced multiply-adds by which `combine` takes an entry of F times a weight of K."""
    rows, images = 1 << 10, 256
    values = generator.integers(0, field.P, (rows, images), np.uint32)
    low, high = (generator.integers(0, 1 << 15, (field.DEGREE, images), np.uint32) for _ in range(2))
    out = np.empty((field.DEGREE, rows), np.uint32)

    def work() -> None:
        cpu.combine(values, low, high, out, 0, rows)

    work()
    return repeated(work, RUNS) / (10 * rows * images) * 1e9


def _matrix_multiply_add(generator: np.random.Generator) -> float:
    """One multiply-add of a product of float64 matrices, all cores."""
    size = 1 << 10
    a, b = (generator.random((size, size)) for _ in range(2))
    return repeated(lambda: a @ b, RUNS) / size**3 * 1e9


def _memory() -> float:
    """Bytes read and written in a second by copying arrays that no cache holds, all cores."""
    source = np.ones(1 << 26, np.uint32)
    target = np.empty_like(source)

    def work() -> None:
        cpu.parallel(lambda a, b: np.copyto(target[a:b], source[a:b]), len(source), len(source))

    work()
    return 2 * source.nbytes / repeated(work, RUNS) / 1e9


def _butterfly(generator: np.random.Generator) -> float:
    """One butterfly in the encoding of rows at rate 1/8 as the commitment does it, all cores."""
    log2_size, lanes, queries, cosets = 12, 256, 150, 8
    values = generator.integers(0, field.P, (1 << log2_size, lanes), np.uint32)
    masks = generator.integers(0, field.P, (queries, lanes), np.uint32)
    reed_solomon.encode(values, masks, cosets)
    seconds = repeated(lambda: reed_solomon.encode(values, masks, cosets), RUNS)
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
    return repeated(work, RUNS) / prod(shape) * 1e9


def _sha256() -> float:
    block = bytes(1 << 26)
    return len(block) / repeated(lambda: hashlib.sha256(block).digest(), RUNS) / 1e9

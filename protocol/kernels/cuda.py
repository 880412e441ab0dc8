"""The kernels of `cpu` for trees and sumchecks in Triton, on torch tensors: the same names, arguments and results.

Representation.  F and K as in `cpu`, in int32 tensors that hold the bits of uint32.  A kernel works on one block of
output entries; `parallel` runs all rows at once.  Small arguments (points, weights of an axis) come from the host
through `to_device`; what a round sends goes back through `to_host`.

torch and triton are imported here and nowhere else in `protocol`: a prover without a device does without them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from protocol.errors import ParameterError

INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: without a device, for tests
BLOCK = 8192 if INTERPRETED else 256  # output entries of one program

_P = tl.constexpr(15 * 2**27 + 1)
_INV = tl.constexpr(pow(15 * 2**27 + 1, -1, 2**32))
_ONE = tl.constexpr(2**32 % (15 * 2**27 + 1))


def device() -> torch.device:
    """Where arrays live.  Raises ParameterError if there is no such device."""
    if INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ParameterError("there is no CUDA device here, or this torch was built without CUDA")
    return torch.device("cuda")


def to_device(array: npt.NDArray[np.uint32]) -> torch.Tensor:
    """An array of the host on the device."""
    return torch.from_numpy(np.ascontiguousarray(array).view(np.int32)).to(device())


def to_host(array: torch.Tensor) -> npt.NDArray[np.uint32]:
    """An array of the device on the host."""
    host: npt.NDArray[np.uint32] = array.cpu().numpy().view(np.uint32)
    return host


def empty(count: int) -> torch.Tensor:
    """Elements of K [5, count], not set."""
    return torch.empty((5, count), dtype=torch.int32, device=device())


def parallel(call: Callable[[int, int], Any], rows: int, work: int) -> list[Any]:
    """[call(0, rows)]: a launch covers all rows."""
    return [call(0, rows)]


def _launch(kernel: Any, entries: int, *arguments: Any) -> None:
    """One program for each BLOCK of entries; small arguments come from the host."""
    if entries:
        there = [to_device(a) if isinstance(a, np.ndarray) else a for a in arguments]
        kernel[(triton.cdiv(entries, BLOCK),)](*there, entries, BLOCK=BLOCK)


# --- scalars --------------------------------------------------------------------------------------


@triton.jit
def _reduce(t):  # type: ignore[no-untyped-def]
    """t / 2^32 mod p, canonical, for 0 <= t < 2 p 2^32 (Montgomery reduction)."""
    y = (((((t & 0xFFFFFFFF) * _INV) & 0xFFFFFFFF) * _P) >> 32).to(tl.uint32)
    x = (t >> 32).to(tl.uint32)
    p = tl.full(x.shape, _P, tl.uint32)
    r = tl.minimum(x, x - p) - y
    return tl.minimum(r, r + p)


@triton.jit
def _mont(a, b):  # type: ignore[no-untyped-def]
    """a b / 2^32 mod p."""
    return _reduce(a.to(tl.uint64) * b.to(tl.uint64))


@triton.jit
def _add(a, b):  # type: ignore[no-untyped-def]
    s = a + b
    return tl.minimum(s, s - tl.full(s.shape, _P, tl.uint32))


@triton.jit
def _sub(a, b):  # type: ignore[no-untyped-def]
    d = a - b
    return tl.minimum(d, d + tl.full(d.shape, _P, tl.uint32))


@triton.jit
def _five(a, b, c, d, e):  # type: ignore[no-untyped-def]
    """Montgomery reduction of a + b + c + d + e, five products below p^2 (their plain sum can pass 2^64)."""
    four = a + b + c + d
    high = tl.full(four.shape, _P, tl.uint64) << 32
    return _reduce(tl.where((four >> 63) != 0, four - high, four) + e)


@triton.jit
def _wide(x):  # type: ignore[no-untyped-def]
    return (x[0].to(tl.uint64), x[1].to(tl.uint64), x[2].to(tl.uint64), x[3].to(tl.uint64), x[4].to(tl.uint64))


@triton.jit
def _mul(x, y):  # type: ignore[no-untyped-def]
    """Product in K = F[x]/(x^5 - 2) of two 5-tuples in Montgomery form."""
    a, b, d = _wide(x), _wide(y), _wide(_add5(y, y))
    return (
        _five(a[0] * b[0], a[1] * d[4], a[2] * d[3], a[3] * d[2], a[4] * d[1]),
        _five(a[0] * b[1], a[1] * b[0], a[2] * d[4], a[3] * d[3], a[4] * d[2]),
        _five(a[0] * b[2], a[1] * b[1], a[2] * b[0], a[3] * d[4], a[4] * d[3]),
        _five(a[0] * b[3], a[1] * b[2], a[2] * b[1], a[3] * b[0], a[4] * d[4]),
        _five(a[0] * b[4], a[1] * b[3], a[2] * b[2], a[3] * b[1], a[4] * b[0]),
    )


@triton.jit
def _add5(x, y):  # type: ignore[no-untyped-def]
    return (_add(x[0], y[0]), _add(x[1], y[1]), _add(x[2], y[2]), _add(x[3], y[3]), _add(x[4], y[4]))


@triton.jit
def _sub5(x, y):  # type: ignore[no-untyped-def]
    return (_sub(x[0], y[0]), _sub(x[1], y[1]), _sub(x[2], y[2]), _sub(x[3], y[3]), _sub(x[4], y[4]))


@triton.jit
def _pick(condition, x, y):  # type: ignore[no-untyped-def]
    """x where the condition holds, y elsewhere."""
    return (
        tl.where(condition, x[0], y[0]), tl.where(condition, x[1], y[1]), tl.where(condition, x[2], y[2]),
        tl.where(condition, x[3], y[3]), tl.where(condition, x[4], y[4]),
    )


@triton.jit
def _word(pointer, mask):  # type: ignore[no-untyped-def]
    return tl.load(pointer, mask=mask, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def _get(table, size, at, mask):  # type: ignore[no-untyped-def]
    """Elements `at` of a table [5, size]; 0 outside the mask."""
    return (
        _word(table + at, mask), _word(table + size + at, mask), _word(table + 2 * size + at, mask),
        _word(table + 3 * size + at, mask), _word(table + 4 * size + at, mask),
    )


@triton.jit
def _put(table, size, at, mask, x):  # type: ignore[no-untyped-def]
    tl.store(table + at, x[0].to(tl.int32, bitcast=True), mask=mask)
    tl.store(table + size + at, x[1].to(tl.int32, bitcast=True), mask=mask)
    tl.store(table + 2 * size + at, x[2].to(tl.int32, bitcast=True), mask=mask)
    tl.store(table + 3 * size + at, x[3].to(tl.int32, bitcast=True), mask=mask)
    tl.store(table + 4 * size + at, x[4].to(tl.int32, bitcast=True), mask=mask)


@triton.jit
def _constant(value: tl.constexpr, like):  # type: ignore[no-untyped-def]
    """The element whose first coordinate is `value`."""
    first, none = tl.full(like.shape, value, tl.uint32), tl.full(like.shape, 0, tl.uint32)
    return (first, none, none, none, none)


@triton.jit
def _neighbors(n, inner, entries, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """(entry of the halved tensor, place of its even neighbor in [outer, n, inner], entry exists, odd one exists)."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, half = k // inner, (n + 1) // 2
    outer, j = row // half, row % half
    inside = k < entries
    return k, (outer * n + 2 * j) * inner + k % inner, inside, inside & (2 * j + 1 < n)


# --- sumcheck over A B + C D, tensors [outer, n, inner] -------------------------------------------


@triton.jit
def _fold(table, out, r, pad, n, inner, size, entries, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    k, at, inside, present = _neighbors(n, inner, entries, BLOCK)
    low = _get(table, size, at, inside)
    high = _pick(present, _get(table, size, at + inner, present), _get(pad, inner, k % inner, inside))
    step = _mul(_sub5(high, low), _get(r, 1, k * 0, inside))
    _put(out, entries, k, inside, _add5(low, step))


def fold(table: Any, out: Any, n: int, inner: int, r: Any, pad: Any, first: int, last: int) -> None:
    """As `cpu.fold`."""
    _launch(_fold, (last - first) * inner, table, out, r, pad, n, inner, table.shape[1])


@triton.jit
def _round_sums(  # type: ignore[no-untyped-def]
    a, b, c, d, pads, weights, inner_weights, sums, n, inner, size, rows, entries, BLOCK: tl.constexpr
):
    k, at, inside, present = _neighbors(n, inner, entries, BLOCK)
    i, up = k % inner, at + inner
    a0, b0 = _get(a, size, at, inside), _get(b, size, at, inside)
    c0, d0 = _get(c, size, at, inside), _get(d, size, at, inside)
    a1 = _pick(present, _get(a, size, up, present), _get(pads, inner, i, inside))
    b1 = _pick(present, _get(b, size, up, present), _get(pads + 5 * inner, inner, i, inside))
    c1 = _pick(present, _get(c, size, up, present), _get(pads + 10 * inner, inner, i, inside))
    d1 = _pick(present, _get(d, size, up, present), _get(pads + 15 * inner, inner, i, inside))
    weight = _mul(_get(weights, rows, k // inner, inside), _get(inner_weights, inner, i, inside))
    zero = _mul(_add5(_mul(a0, b0), _mul(c0, d0)), weight)
    square = _add5(_mul(_sub5(a1, a0), _sub5(b1, b0)), _mul(_sub5(c1, c0), _sub5(d1, d0)))
    square = _mul(square, weight)
    to, programs = sums + tl.program_id(0), tl.num_programs(0)
    for coordinate in tl.static_range(5):
        tl.store(to + 2 * coordinate * programs, tl.sum(zero[coordinate].to(tl.int64)))
        tl.store(to + (2 * coordinate + 1) * programs, tl.sum(square[coordinate].to(tl.int64)))


def round_sums(
    a: Any, b: Any, c: Any, d: Any, pa: Any, pb: Any, pc: Any, pd: Any, n: int, inner: int, weights: Any,
    inner_weights: Any, first: int, last: int,
) -> npt.NDArray[np.uint32]:
    """As `cpu.round_sums`: uint32 [5, 2] on the host.  Entries outside weigh nothing, since their weights read as 0."""
    entries = (last - first) * inner
    sums = torch.zeros((10, triton.cdiv(entries, BLOCK)), dtype=torch.int64, device=a.device)
    pads = np.concatenate([pa, pb, pc, pd])
    size, rows = a.shape[1], weights.shape[1]
    _launch(_round_sums, entries, a, b, c, d, pads, weights, inner_weights, sums, n, inner, size, rows)
    total = sums.sum(dim=1).cpu().numpy() % _P.value
    return np.ascontiguousarray(total.reshape(5, 2).astype(np.uint32))


# --- fractional trees -----------------------------------------------------------------------------


@triton.jit
def _tree_level(  # type: ignore[no-untyped-def]
    p, q, to_p, to_q, n, inner, size, ones: tl.constexpr, entries, BLOCK: tl.constexpr
):
    k, at, inside, present = _neighbors(n, inner, entries, BLOCK)
    q0 = _get(q, size, at, inside)
    q1 = _pick(present, _get(q, size, at + inner, present), _constant(_ONE, at))
    if ones:
        both = _pick(present, _add5(q0, q1), _constant(_ONE, at))
    else:
        p0, p1 = _get(p, size, at, inside), _get(p, size, at + inner, present)
        both = _add5(_mul(p0, q1), _mul(p1, q0))
    _put(to_p, entries, k, inside, both)
    _put(to_q, entries, k, inside, _mul(q0, q1))


def tree_level(p: Any, q: Any, to_p: Any, to_q: Any, n: int, inner: int, first: int, last: int) -> None:
    """As `cpu.tree_level`."""
    _launch(_tree_level, (last - first) * inner, p, q, to_p, to_q, n, inner, q.shape[1], False)


def tree_leaves(q: Any, to_p: Any, to_q: Any, n: int, inner: int, first: int, last: int) -> None:
    """As `cpu.tree_leaves`."""
    _launch(_tree_level, (last - first) * inner, q, q, to_p, to_q, n, inner, q.shape[1], True)


@triton.jit
def _tree_open(  # type: ignore[no-untyped-def]
    p, q, s, a, q1, p1, q0, n, inner, size, ones: tl.constexpr, entries, BLOCK: tl.constexpr
):
    k, at, inside, present = _neighbors(n, inner, entries, BLOCK)
    low = _get(q, size, at, inside)
    if ones:
        left, right = _constant(_ONE, at), _pick(present, _constant(_ONE, at), _constant(0, at))
    else:
        left, right = _get(p, size, at, inside), _get(p, size, at + inner, present)
    _put(q0, entries, k, inside, low)
    _put(a, entries, k, inside, _add5(left, _mul(low, _get(s, 1, k * 0, inside))))
    _put(q1, entries, k, inside, _pick(present, _get(q, size, at + inner, present), _constant(_ONE, at)))
    _put(p1, entries, k, inside, right)


def tree_open(
    p: Any, q: Any, s: Any, a: Any, q1: Any, p1: Any, q0: Any, n: int, inner: int, first: int, last: int
) -> None:
    """As `cpu.tree_open`."""
    ones = p.shape[1] == 0
    _launch(_tree_open, (last - first) * inner, q if ones else p, q, s, a, q1, p1, q0, n, inner, q.shape[1], ones)


@triton.jit
def _leaves(  # type: ignore[no-untyped-def]
    constant, alpha, alpha2, first_column, second_column, out, size, entries, BLOCK: tl.constexpr
):
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = k < entries
    v1, v2 = _word(first_column + k, inside), _word(second_column + k, inside)
    for c in tl.static_range(5):
        x, y = _word(alpha + c + k * 0, inside), _word(alpha2 + c + k * 0, inside)
        value = _sub(_word(constant + c + k * 0, inside), _add(_mont(v1, x), _mont(v2, y)))
        tl.store(out + c * size + k, value.to(tl.int32, bitcast=True), mask=inside)


def leaves(
    constant: Any, alpha: Any, alpha2: Any, first_column: Any, second_column: Any, out: Any, offset: int,
    first: int, last: int,
) -> None:
    """As `cpu.leaves`."""
    to = out[:, offset:]
    _launch(_leaves, last - first, constant, alpha, alpha2, first_column, second_column, to, out.shape[1])

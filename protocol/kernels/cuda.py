"""The kernels of `cpu` in Triton, on torch tensors: the same names, arguments and results.

Representation.  F and K as in `cpu`, in int32 tensors that hold the bits of uint32 (below p, they are not negative).  A
kernel works on one block of output entries; `parallel` runs all rows at once.  Small arguments (points, weights of an
axis) come from the host through `to_device`; what a round sends goes back through `to_host`.  What only moves data, or
is done once a proof on little of it, is left to torch, in 64 bits.

torch and triton are imported here and nowhere else in `protocol`: a prover without a device does without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from protocol.errors import ParameterError
from protocol.kernels import cpu

INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: without a device, for tests
BLOCK = 8192 if INTERPRETED else 256  # output entries of one program
ROWS, STEP = (512, 256) if INTERPRETED else (8, 64)  # of `combine`: rows of one program, entries at a time
GATHER_BYTES = 1 << 27  # as in `cpu`

_P = tl.constexpr(int(cpu.P))
_INV = tl.constexpr(pow(int(cpu.P), -1, 2**32))
_ONE = tl.constexpr(2**32 % int(cpu.P))


def device() -> torch.device:
    """Where arrays live.  Raises ParameterError if there is no such device."""
    if INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ParameterError("there is no CUDA device here, or this torch was built without CUDA")
    return torch.device("cuda")


def memory() -> int:
    """Bytes that are free on the device."""
    if INTERPRETED:
        return cpu.memory()
    free: int = torch.cuda.mem_get_info(device())[0]
    return free


@contextmanager
def bounded() -> Iterator[None]:
    """As `cpu.bounded`, for the device's memory, too: what torch would keep is free for the next proof to find."""
    try:
        with cpu.bounded():
            yield
    except torch.OutOfMemoryError:
        raise ParameterError("the device has too little memory for this network") from None
    finally:
        torch.cuda.empty_cache()


def to_device(array: Any) -> torch.Tensor:
    """An array of the host on the device."""
    if isinstance(array, torch.Tensor):
        return array
    words = np.ascontiguousarray(array)
    return torch.from_numpy(words.view(np.int32) if words.dtype == np.uint32 else words).to(device())


def to_host(array: torch.Tensor) -> npt.NDArray[Any]:
    """An array of the device on the host."""
    host: npt.NDArray[Any] = array.cpu().numpy()
    return host.view(np.uint32) if host.dtype == np.int32 else host


def contiguous(array: Any) -> torch.Tensor:
    """The array in the order of its memory."""
    return to_device(array).contiguous()


def empty(count: int, tables: int = 1) -> torch.Tensor:
    """Elements of K [5 tables, count], table by table, not set."""
    return torch.empty((5 * tables, count), dtype=torch.int32, device=device())


def words(*shape: int) -> torch.Tensor:
    """Zeros of F."""
    return torch.zeros(shape, dtype=torch.int32, device=device())


def as_words(array: torch.Tensor) -> torch.Tensor:
    """int32, not negative, as elements of F."""
    return array


def integers(*shape: int) -> torch.Tensor:
    """int32, not set."""
    return torch.empty(shape, dtype=torch.int32, device=device())


def reals(*shape: int) -> torch.Tensor:
    """float64 zeros."""
    return torch.zeros(shape, dtype=torch.float64, device=device())


def as_reals(array: torch.Tensor) -> torch.Tensor:
    """As `cpu.as_reals`."""
    return array.double()


def plain(array: torch.Tensor) -> torch.Tensor:
    """As `cpu.plain`."""
    return (array if array.dtype == torch.int32 else array.double()).contiguous()


def join(parts: Sequence[Any], axis: int) -> torch.Tensor:
    """The parts, one after the other along an axis."""
    return torch.cat([to_device(part) for part in parts], dim=axis)


def parallel(call: Callable[[int, int], Any], rows: int, work: int) -> list[Any]:
    """[call(0, rows)]: a launch covers all rows."""
    return [call(0, rows)]


def _launch(kernel: Any, entries: int, *arguments: Any, tables: int = 1) -> None:
    """One program for each BLOCK of entries, of each table; small arguments come from the host."""
    if entries:
        there = [to_device(a) if isinstance(a, np.ndarray) else a for a in arguments]
        kernel[(triton.cdiv(entries, BLOCK), tables)](*there, entries, BLOCK=BLOCK)


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
    """Elements `at` (int64) of a table [5, size]; 0 outside the mask."""
    row = at * 0 + size  # in 64 bits, as `at` is
    return (
        _word(table + at, mask), _word(table + row + at, mask), _word(table + 2 * row + at, mask),
        _word(table + 3 * row + at, mask), _word(table + 4 * row + at, mask),
    )


@triton.jit
def _put(table, size, at, mask, x):  # type: ignore[no-untyped-def]
    row = at * 0 + size
    tl.store(table + at, x[0].to(tl.int32, bitcast=True), mask=mask)
    tl.store(table + row + at, x[1].to(tl.int32, bitcast=True), mask=mask)
    tl.store(table + 2 * row + at, x[2].to(tl.int32, bitcast=True), mask=mask)
    tl.store(table + 3 * row + at, x[3].to(tl.int32, bitcast=True), mask=mask)
    tl.store(table + 4 * row + at, x[4].to(tl.int32, bitcast=True), mask=mask)


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


# --- vectors of K, or of F -------------------------------------------------------------------------


def k_add(a: Any, b: Any) -> torch.Tensor:
    """As `cpu.k_add`."""
    return torch.remainder(to_device(a).long() + to_device(b), _P.value).int()


def k_sub(a: Any, b: Any) -> torch.Tensor:
    """As `cpu.k_sub`."""
    return torch.remainder(to_device(a).long() - to_device(b), _P.value).int()


@triton.jit
def _k_outer(a, b, out, n, m, entries, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = k < entries
    _put(out, entries, k, inside, _mul(_get(a, n, k // m, inside), _get(b, m, k % m, inside)))


def k_mul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """As `cpu.k_mul`."""
    _launch(_k_mul, a.shape[1], a, b, out)


@triton.jit
def _k_mul(a, b, out, entries, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = k < entries
    _put(out, entries, k, inside, _mul(_get(a, entries, k, inside), _get(b, entries, k, inside)))


def k_outer(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """As `cpu.k_outer`."""
    _launch(_k_outer, out.shape[1], a, b, out, a.shape[1], b.shape[1])


@triton.jit
def _f_scale(values, out, factor, entries, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = k < entries
    scaled = _mont(_word(values + k, inside), _word(factor + k * 0, inside))
    tl.store(out + k, scaled.to(tl.int32, bitcast=True), mask=inside)


def f_scale(values: torch.Tensor, factor: Any, out: torch.Tensor) -> None:
    """As `cpu.f_scale`."""
    _launch(_f_scale, values.numel(), values, out, np.array([factor], np.uint32))


@triton.jit
def _f_scale_rows(matrix, factors, out, lanes, entries, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = k < entries
    scaled = _mont(_word(matrix + k, inside), _word(factors + k // lanes, inside))
    tl.store(out + k, scaled.to(tl.int32, bitcast=True), mask=inside)


def f_scale_rows(matrix: torch.Tensor, factors: Any, out: torch.Tensor) -> None:
    """As `cpu.f_scale_rows`."""
    _launch(_f_scale_rows, matrix.numel(), matrix, factors, out, matrix.shape[1])


def k_sum(a: torch.Tensor) -> npt.NDArray[np.uint32]:
    """As `cpu.k_sum`; the sum is on the host."""
    total: npt.NDArray[np.uint32] = (a.long().sum(dim=1, keepdim=True).cpu().numpy() % _P.value).astype(np.uint32)
    return total


@triton.jit
def _combine(  # type: ignore[no-untyped-def]
    values, low, high, out, h, entries, BLOCK: tl.constexpr, STEP: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    for c in tl.static_range(5):
        a, b = tl.zeros((BLOCK,), tl.uint64), tl.zeros((BLOCK,), tl.uint64)
        for first in range(0, h, STEP):
            i = first + tl.arange(0, STEP)
            inside = i < h
            at = row[:, None] * h + i[None, :]
            x = _word(values + at, (row < entries)[:, None] & inside[None, :]).to(tl.uint64)
            a += tl.sum(x * _word(low + c * h + i, inside)[None, :].to(tl.uint64), axis=1)
            b += tl.sum(x * _word(high + c * h + i, inside)[None, :].to(tl.uint64), axis=1)
        value = (a % _P + ((b % _P) << 16)) % _P
        tl.store(out + c * entries + row, value.to(tl.int32), mask=row < entries)


def combine(values: Any, low: Any, high: Any, out: Any, first: int, last: int) -> None:
    """As `cpu.combine`."""
    rows, h = values.shape
    if rows:
        _combine[(triton.cdiv(rows, ROWS),)](values, low, high, out, h, rows, BLOCK=ROWS, STEP=STEP)


# --- sumcheck over A B + C D, tensors [outer, n, inner] -------------------------------------------


@triton.jit
def _fold(tables, out, given, n, inner, size, entries, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """given [5, 1 + m]: r and the pads."""
    k, at, inside, present = _neighbors(n, inner, entries, BLOCK)
    number, count = tl.program_id(1).to(tl.int64), tl.num_programs(1) + 1
    table = tables + 5 * number * size
    low = _get(table, size, at, inside)
    high = _pick(present, _get(table, size, at + inner, present), _get(given + 1 + number, count, k * 0, inside))
    step = _mul(_sub5(high, low), _get(given, count, k * 0, inside))
    _put(out + 5 * number * entries, entries, k, inside, _add5(low, step))


def fold(tables: Any, out: Any, n: int, inner: int, r: Any, pads: Any, first: int, last: int) -> None:
    """As `cpu.fold`."""
    given = np.concatenate([r, pads], axis=1)
    _launch(_fold, (last - first) * inner, tables, out, given, n, inner, tables.shape[1], tables=len(tables) // 5)


@triton.jit
def _round_sums(  # type: ignore[no-untyped-def]
    tables, given, outer_weights, inner_weights, sums, n, inner, size, entries, BLOCK: tl.constexpr
):
    """given [5, 4 + ceil(n / 2)]: the pads, and the weights of the pairs."""
    k, at, inside, present = _neighbors(n, inner, entries, BLOCK)
    i, up = k % inner, at + inner
    row, half = k // inner, (n + 1) // 2
    step, none, count = (at * 0 + size) * 5, k * 0, half + 4
    a, b, c, d = tables, tables + step, tables + 2 * step, tables + 3 * step
    a0, b0 = _get(a, size, at, inside), _get(b, size, at, inside)
    c0, d0 = _get(c, size, at, inside), _get(d, size, at, inside)
    a1 = _pick(present, _get(a, size, up, present), _get(given, count, none, inside))
    b1 = _pick(present, _get(b, size, up, present), _get(given + 1, count, none, inside))
    c1 = _pick(present, _get(c, size, up, present), _get(given + 2, count, none, inside))
    d1 = _pick(present, _get(d, size, up, present), _get(given + 3, count, none, inside))
    weight = _mul(_get(outer_weights, entries // inner // half, row // half, inside),
                  _get(given + 4, count, row % half, inside))
    weight = _mul(weight, _get(inner_weights, inner, i, inside))
    zero = _mul(_add5(_mul(a0, b0), _mul(c0, d0)), weight)
    square = _add5(_mul(_sub5(a1, a0), _sub5(b1, b0)), _mul(_sub5(c1, c0), _sub5(d1, d0)))
    square = _mul(square, weight)
    to, programs = sums + tl.program_id(0), tl.num_programs(0)
    for coordinate in tl.static_range(5):
        tl.store(to + 2 * coordinate * programs, tl.sum(zero[coordinate].to(tl.int64)))
        tl.store(to + (2 * coordinate + 1) * programs, tl.sum(square[coordinate].to(tl.int64)))


def round_sums(
    tables: Any, pads: Any, n: int, inner: int, outer_weights: Any, weights: Any, inner_weights: Any, first: int,
    last: int,
) -> npt.NDArray[np.uint32]:
    """As `cpu.round_sums`: uint32 [5, 2] on the host.  Entries outside weigh nothing, since their weights read as 0."""
    entries = (last - first) * inner
    sums = torch.zeros((10, triton.cdiv(entries, BLOCK)), dtype=torch.int64, device=tables.device)
    given = np.concatenate([pads, weights], axis=1)
    _launch(_round_sums, entries, tables, given, outer_weights, inner_weights, sums, n, inner, tables.shape[1])
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
    p, q, s, out, n, inner, size, ones: tl.constexpr, entries, BLOCK: tl.constexpr
):
    k, at, inside, present = _neighbors(n, inner, entries, BLOCK)
    step = (k * 0 + entries) * 5
    low = _get(q, size, at, inside)
    if ones:
        left, right = _constant(_ONE, at), _pick(present, _constant(_ONE, at), _constant(0, at))
    else:
        left, right = _get(p, size, at, inside), _get(p, size, at + inner, present)
    high = _pick(present, _get(q, size, at + inner, present), _constant(_ONE, at))
    _put(out, entries, k, inside, _add5(left, _mul(low, _get(s, 1, k * 0, inside))))
    _put(out + step, entries, k, inside, high)
    _put(out + 2 * step, entries, k, inside, right)
    _put(out + 3 * step, entries, k, inside, low)


def tree_open(p: Any, q: Any, s: Any, out: Any, n: int, inner: int, first: int, last: int) -> None:
    """As `cpu.tree_open`."""
    ones = p.shape[1] == 0
    _launch(_tree_open, (last - first) * inner, q if ones else p, q, s, out, n, inner, q.shape[1], ones)


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
        tl.store(out + (k * 0 + size) * c + k, value.to(tl.int32, bitcast=True), mask=inside)


def leaves(
    constant: Any, alpha: Any, alpha2: Any, first_column: Any, second_column: Any, out: Any, offset: int,
    first: int, last: int,
) -> None:
    """As `cpu.leaves`."""
    to = out[:, offset:]
    _launch(_leaves, last - first, constant, alpha, alpha2, first_column, second_column, to, out.shape[1])


# --- number-theoretic transforms of the columns of a matrix [size, lanes] -------------------------


@triton.jit
def _butterflies(  # type: ignore[no-untyped-def]
    block, roots, half, step, lanes, TIME: tl.constexpr, entries, BLOCK: tl.constexpr
):
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = k < entries
    pair = k // lanes
    j = pair % half
    low = ((pair // half) * (2 * half) + j) * lanes + k % lanes
    high = low + half * lanes
    u, v, w = _word(block + low, inside), _word(block + high, inside), _word(roots + j * step, inside)
    if TIME:
        v = _mont(v, w)
        x, y = _add(u, v), _sub(u, v)
    else:
        x, y = _add(u, v), _mont(_sub(u, v), w)
    tl.store(block + low, x.to(tl.int32, bitcast=True), mask=inside)
    tl.store(block + high, y.to(tl.int32, bitcast=True), mask=inside)


def _passes(block: torch.Tensor, size: int, lanes: int, roots: torch.Tensor, time: bool) -> None:
    """All levels of transforms of [..., size, lanes] in place: in time (bit-reversed in), or in frequency (out)."""
    halves = [1 << level for level in range(size.bit_length() - 1)]
    for half in halves if time else reversed(halves):
        _launch(_butterflies, block.numel() // 2, block, roots, half, size // (2 * half), lanes, time)


def transform(
    matrix: torch.Tensor, roots: Any, order: npt.NDArray[np.int64], scale: Any, first: int, last: int
) -> None:
    """As `cpu.transform`."""
    size, lanes = matrix.shape
    block = matrix[to_device(order)]
    _passes(block, size, lanes, to_device(roots), True)
    f_scale(block, scale, matrix)


@triton.jit
def _cosets(  # type: ignore[no-untyped-def]
    block, masks, shifts, wraps, out, size, count, lanes, BITS: tl.constexpr, entries, BLOCK: tl.constexpr
):
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = k < entries
    row, lane = k // lanes, k % lanes
    coset, j = row // size, row % size
    t = j * 0
    for bit in tl.static_range(BITS):
        t = t | (((j >> bit) & 1) << (BITS - 1 - bit))
    shift = _word(shifts + row, inside)
    value = _mont(_word(block + j * lanes + lane, inside), shift)
    mask = _word(masks + t * lanes + lane, inside & (t < count))
    value = _add(value, _mont(mask, _mont(shift, _word(wraps + coset, inside))))
    tl.store(out + k, value.to(tl.int32, bitcast=True), mask=inside)


def encode(
    values: torch.Tensor, masks: torch.Tensor, inverse_roots: Any, roots: Any, shifts: Any, wraps: Any,
    out: torch.Tensor, first: int, last: int,
) -> None:
    """As `cpu.encode`."""
    size, lanes = values.shape
    block = values.clone()
    _passes(block, size, lanes, to_device(inverse_roots), False)
    bits = size.bit_length() - 1
    _launch(_cosets, out.numel(), block, masks, shifts, wraps, out, size, masks.shape[0], lanes, bits)
    _passes(out, size, lanes, to_device(roots), True)


# --- the witness ----------------------------------------------------------------------------------


@triton.jit
def _gather(x, rows, columns, out, height, width, ph, pw, kh, kw, n, h, start, entries, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, at = k < entries, k // h
    kx, ky, c = at // n % kw, at // (n * kw) % kh, at // (n * kw * kh)
    row = tl.load(rows + ky * ph + (start + at % n) // pw, mask=inside, other=-1)
    column = tl.load(columns + kx * pw + (start + at % n) % pw, mask=inside, other=-1)
    real = inside & (row >= 0) & (column >= 0)
    value = tl.load(x + ((c * height + row) * width + column) * h + k % h, mask=real, other=0)
    tl.store(out + k, value.to(tl.float64), mask=inside)


def gather(x: torch.Tensor, rows: Any, columns: Any, out: torch.Tensor, start: int) -> None:
    """As `cpu.gather`."""
    sizes = *x.shape[1:3], rows.shape[1], columns.shape[1], *out.shape[1:]
    _launch(_gather, out.numel(), x, rows, columns, out, *sizes, start)


def matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """As `cpu.matmul`."""
    torch.matmul(a, b, out=out)


def single_blas() -> AbstractContextManager[None]:
    """As `cpu.single_blas`: there is nothing to limit."""
    return nullcontext()


@triton.jit
def _depthwise(x, weight, rows, columns, out, height, width, kh, kw, ph, pw, h, entries, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, at = k < entries, k // h
    q, p, c = at % pw, at // pw % ph, at // (pw * ph)
    total = tl.load(out + k, mask=inside, other=0)
    for tap in range(kh * kw):
        row = tl.load(rows + tap // kw * ph + p, mask=inside, other=-1)
        column = tl.load(columns + tap % kw * pw + q, mask=inside, other=-1)
        real = inside & (row >= 0) & (column >= 0)
        value = tl.load(x + ((c * height + row) * width + column) * h + k % h, mask=real, other=0)
        total += tl.load(weight + c * kh * kw + tap, mask=inside, other=0) * value.to(tl.float64)
    tl.store(out + k, total, mask=inside)


def depthwise(
    x: torch.Tensor, weight: torch.Tensor, rows: Any, columns: Any, out: torch.Tensor, first: int, last: int
) -> None:
    """As `cpu.depthwise`."""
    _launch(_depthwise, out.numel(), x, weight, rows, columns, out, *x.shape[1:3], *weight.shape[1:], *out.shape[1:])


def requantize(
    y: Any, bias: Any, offset: int, shift: int, table: Any, units: Any, remainders: Any, outputs: Any, first: int,
    last: int,
) -> None:
    """As `cpu.requantize`."""
    value = y.long() + (bias + offset)[:, None]
    unit = value >> shift
    units[:], remainders[:] = unit, value & ((1 << shift) - 1)
    outputs[:] = table[unit + len(table) // 2]


def residues(values: Any, out: Any, first: int, last: int) -> None:
    """As `cpu.residues`."""
    out[:] = torch.where(values < 0, values + _P.value, values)


def histogram(values: Any, offset: int, size: int, first: int, last: int) -> npt.NDArray[np.int64]:
    """As `cpu.histogram`, on the host."""
    counts: npt.NDArray[np.int64] = torch.bincount(values + offset, minlength=size).cpu().numpy()
    return counts


# --- SHA-256 of the columns of a matrix -----------------------------------------------------------


_PRIMES = [n for n in range(2, 312) if all(n % d for d in range(2, n))]  # the first 64


def _fraction(prime: int, root: int) -> int:
    """The first 32 bits of the fraction of a prime's square or cube root (FIPS 180-4, section 4.2.2 and 5.3.3)."""
    found = 0
    for bit in reversed(range(40)):
        if (found | 1 << bit) ** root <= prime << 32 * root:
            found |= 1 << bit
    return found & 0xFFFFFFFF


@triton.jit
def _rotated(x, n: tl.constexpr):  # type: ignore[no-untyped-def]
    return (x >> n) | (x << (32 - n))


@triton.jit
def _sha256(  # type: ignore[no-untyped-def]
    block, held, state, constants, width, kept, chunks, entries, BLOCK: tl.constexpr
):
    """Chunks of 64 bytes of every column's stream: one byte, `kept` words that were held back, `width` of the block.

    state [8, columns]; held [17, columns], the last row the word before them, of which the last byte is left.
    """
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < entries
    s = (
        _word(state + column, inside), _word(state + entries + column, inside),
        _word(state + 2 * entries + column, inside), _word(state + 3 * entries + column, inside),
        _word(state + 4 * entries + column, inside), _word(state + 5 * entries + column, inside),
        _word(state + 6 * entries + column, inside), _word(state + 7 * entries + column, inside),
    )
    last = _word(held + 16 * entries + column, inside)
    for chunk in range(0, chunks):
        w = s + s  # sixteen, all of them replaced
        for i in tl.static_range(16):
            at = column * 0 + chunk * 16 + i
            early = _word(held + at * entries + column, inside & (at < kept))
            x = early | _word(block + column * width + at - kept, inside & (at >= kept))
            x = (x << 24) | ((x & 0xFF00) << 8) | ((x >> 8) & 0xFF00) | (x >> 24)
            w = w[1:] + ((last << 24) | (x >> 8),)
            last = x
        a, b, c, d, e, f, g, h = s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]
        for first in range(0, 64, 4):  # all at once would take minutes to compile
            for i in tl.static_range(4):
                k = tl.load(constants + first + i).to(tl.uint32, bitcast=True)
                t = h + (_rotated(e, 6) ^ _rotated(e, 11) ^ _rotated(e, 25)) + ((e & f) ^ (~e & g)) + k + w[0]
                u = (_rotated(a, 2) ^ _rotated(a, 13) ^ _rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))
                h, g, f, e, d, c, b, a = g, f, e, d + t, c, b, a, t + u
                more = w[0] + (_rotated(w[1], 7) ^ _rotated(w[1], 18) ^ (w[1] >> 3)) + w[9]
                w = w[1:] + (more + (_rotated(w[14], 17) ^ _rotated(w[14], 19) ^ (w[14] >> 10)),)
        s = (s[0] + a, s[1] + b, s[2] + c, s[3] + d, s[4] + e, s[5] + f, s[6] + g, s[7] + h)
    for i in tl.static_range(8):
        tl.store(state + i * entries + column, s[i].to(tl.int32, bitcast=True), mask=inside)
    tl.store(held + 16 * entries + column, last.to(tl.int32, bitcast=True), mask=inside)


class Leaves:
    """As `cpu.Leaves`, for prefixes of one byte and some words."""

    def __init__(self, prefixes: npt.NDArray[np.uint8]) -> None:
        columns, initial = len(prefixes), np.array([_fraction(prime, 2) for prime in _PRIMES[:8]], np.uint32)
        self._state = to_device(np.repeat(initial[:, None], columns, axis=1))
        self._constants = to_device(np.array([_fraction(prime, 3) for prime in _PRIMES], np.uint32))
        self._held, self._kept, self._bytes = words(17, columns), 0, 1
        self._held[16] = to_device(prefixes[:, 0].astype(np.int32))
        self.update(to_device(np.ascontiguousarray(prefixes[:, 1:]).view("<u4")))

    def update(self, block: Any) -> None:
        """As `cpu.Leaves.update`."""
        columns, width = block.shape
        chunks, left = divmod(self._kept + width, 16)
        if chunks:
            _launch(_sha256, columns, contiguous(block), self._held, self._state, self._constants, width, self._kept,
                    chunks)  # fmt: skip
            self._held[:left] = block[:, width - left :].T
        else:
            self._held[self._kept : left] = block.T
        self._kept, self._bytes = left, self._bytes + 4 * width

    def digests(self) -> bytes:
        """As `cpu.Leaves.digests`; nothing can be appended afterwards."""
        bits, padding = 8 * self._bytes, np.zeros(3 + (13 - self._kept) % 16, np.uint32)
        # Words that begin one byte after those of the hash: a one, and at the end the length in bits.
        padding[[0, -2, -1]] = 1 << 31, (bits >> 32) << 8 | bits >> 24 & 0xFF, (bits & 0xFFFFFF) << 8
        self.update(to_device(np.repeat(padding.byteswap()[None], self._held.shape[1], axis=0)))
        return to_host(self._state).T.astype(">u4").tobytes()

"""Numba kernels over BabyBear F and its quintic extension K (SPEC section 2).

Representation.  F: uint32 canonical in [0, p).  K: uint32 ``[5, n]``, one contiguous row per coordinate, each
coordinate in Montgomery form (a * 2^32 mod p) so that a product of two stored values is one Montgomery reduction.
Loops are written so that LLVM vectorizes them: contiguous one-dimensional rows, unsigned arithmetic, branch-free
reductions by `min`, sums kept in 64 bits and reduced once, and one element stored in each loop: with two, LLVM gives
up.  All kernels release the GIL; `parallel` spreads rows over the cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from itertools import pairwise
from threading import Lock
from traceback import clear_frames
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt
from numba import njit, uint32, uint64
from threadpoolctl import ThreadpoolController

from protocol import heap
from protocol.errors import ParameterError

# Many arrays meet in one loop; the default limit of pairwise overlap checks would leave the widest loops scalar.
llvm.set_option("zkmark", "--runtime-memory-check-threshold=4096")

THREADS = max(1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 64))
_pool = ThreadPoolExecutor(THREADS, thread_name_prefix="zkmark")

P = np.uint32(15 * 2**27 + 1)
_P64 = np.uint64(P)
_INV = np.uint64(pow(int(P), -1, 2**32))
_LOW = np.uint64(0xFFFFFFFF)
_ZERO = np.uint32(0)
_ONE = np.uint32(2**32 % int(P))  # 1 in Montgomery form
_R2 = np.uint32(2**64 % int(P))
_PHI = np.uint64(int(P) << 32)
_0, _1, _2, _16, _32, _63 = (np.uint64(v) for v in (0, 1, 2, 16, 32, 63))

GATHER_BYTES = 1 << 22  # of gathered taps that a thread works on at a time

kernel: Any = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
inline: Any = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", forceinline=True)


def parallel(call: Callable[[int, int], Any], rows: int, work: int) -> list[Any]:
    """[call(first, last)] over a partition of `rows`, on as many cores as `work` (elements) makes worth while."""
    parts = min(THREADS, rows, work >> 13)
    if parts <= 1:
        return [call(0, rows)]
    cuts = [rows * k // parts for k in range(parts + 1)]
    futures = [_pool.submit(call, a, b) for a, b in pairwise(cuts[1:])]
    first = call(cuts[0], cuts[1])
    return [first, *(f.result() for f in futures)]


Array = npt.NDArray[Any]


def memory() -> int:
    """Bytes that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def bounded() -> Iterator[None]:
    """For one proof: memory is used again, and given back at the end.  Raises ParameterError where it runs out."""
    heap.keep()
    try:
        yield
    except BaseException as error:
        clear_frames(error.__traceback__)  # whose arrays would be freed when nobody gives memory back any more
        if isinstance(error, MemoryError):
            raise ParameterError("this machine has too little memory for this network") from None
        raise
    finally:
        heap.give_back()


def to_device(array: Array) -> Array:
    """An array of the host where these kernels work: as it is."""
    return array


def to_host(array: Array) -> Array:
    """The same array."""
    return array


def contiguous(array: Array) -> Array:
    """The array in the order of its memory."""
    return np.ascontiguousarray(array)


def empty(count: int, tables: int = 1) -> Array:
    """Elements of K [5 tables, count], table by table, not set."""
    return np.empty((5 * tables, count), np.uint32)


def words(*shape: int) -> Array:
    """Zeros of F."""
    return np.zeros(shape, np.uint32)


def as_words(array: Array) -> Array:
    """int32, not negative, as elements of F."""
    return array.view(np.uint32)


def integers(*shape: int) -> Array:
    """int32, not set."""
    return np.empty(shape, np.int32)


def reals(*shape: int) -> Array:
    """float64 zeros."""
    return np.zeros(shape)


def as_reals(array: Array) -> Array:
    """In float64."""
    return array.astype(np.float64, copy=False)


def plain(array: Array) -> Array:
    """The same integers as `gather` and `depthwise` read them: in one piece, int32 or float64."""
    return np.ascontiguousarray(array if array.dtype == np.int32 else as_reals(array))


def join(parts: Sequence[Array], axis: int) -> Array:
    """The parts, one after the other along an axis."""
    return np.concatenate(parts, axis=axis)


# --- scalars --------------------------------------------------------------------------------------


@inline
def reduce_sum(t):  # type: ignore[no-untyped-def]
    """t / 2^32 mod p, canonical, for 0 <= t < 2 p 2^32 (Montgomery reduction)."""
    y = uint32((((t & _LOW) * _INV & _LOW) * _P64) >> _32)
    x = uint32(t >> _32)
    x = min(x, uint32(x - P))
    r = uint32(x - y)
    return min(r, uint32(r + P))


@inline
def mont(a, b):  # type: ignore[no-untyped-def]
    """a b / 2^32 mod p."""
    t = uint64(a) * uint64(b)
    y = uint32((((t & _LOW) * _INV & _LOW) * _P64) >> _32)
    r = uint32(uint32(t >> _32) - y)
    return min(r, uint32(r + P))


@inline
def add(a, b):  # type: ignore[no-untyped-def]
    s = uint32(a + b)
    return min(s, uint32(s - P))


@inline
def sub(a, b):  # type: ignore[no-untyped-def]
    d = uint32(a - b)
    return min(d, uint32(d + P))


@inline
def _five(a, b, c, d, last):  # type: ignore[no-untyped-def]
    """Montgomery reduction of a + b + c + d + last, five products below p^2 (their plain sum can pass 2^64)."""
    four = a + b + c + d
    return reduce_sum((four - ((_0 - (four >> _63)) & _PHI)) + last)


@inline
def mul(a, b):  # type: ignore[no-untyped-def]
    """Product in K = F[x]/(x^5 - 2) of two 5-tuples in Montgomery form."""
    a0, a1, a2, a3, a4 = uint64(a[0]), uint64(a[1]), uint64(a[2]), uint64(a[3]), uint64(a[4])
    b0, b1, b2, b3, b4 = uint64(b[0]), uint64(b[1]), uint64(b[2]), uint64(b[3]), uint64(b[4])
    d1, d2 = uint64(add(b[1], b[1])), uint64(add(b[2], b[2]))
    d3, d4 = uint64(add(b[3], b[3])), uint64(add(b[4], b[4]))
    return (
        _five(a0 * b0, a1 * d4, a2 * d3, a3 * d2, a4 * d1),
        _five(a0 * b1, a1 * b0, a2 * d4, a3 * d3, a4 * d2),
        _five(a0 * b2, a1 * b1, a2 * b0, a3 * d4, a4 * d3),
        _five(a0 * b3, a1 * b2, a2 * b1, a3 * b0, a4 * d4),
        _five(a0 * b4, a1 * b3, a2 * b2, a3 * b1, a4 * b0),
    )


@inline
def add5(a, b):  # type: ignore[no-untyped-def]
    return (add(a[0], b[0]), add(a[1], b[1]), add(a[2], b[2]), add(a[3], b[3]), add(a[4], b[4]))


@inline
def sub5(a, b):  # type: ignore[no-untyped-def]
    return (sub(a[0], b[0]), sub(a[1], b[1]), sub(a[2], b[2]), sub(a[3], b[3]), sub(a[4], b[4]))


@inline
def rows(t, first, last):  # type: ignore[no-untyped-def]
    """The five coordinate rows of t [5, n], cut to [first, last)."""
    return (t[0][first:last], t[1][first:last], t[2][first:last], t[3][first:last], t[4][first:last])


@inline
def get(t, i):  # type: ignore[no-untyped-def]
    return (t[0][i], t[1][i], t[2][i], t[3][i], t[4][i])


@inline
def put(t, i, v):  # type: ignore[no-untyped-def]
    t[0][i] = v[0]
    t[1][i] = v[1]
    t[2][i] = v[2]
    t[3][i] = v[3]
    t[4][i] = v[4]


@inline
def close(total):  # type: ignore[no-untyped-def]
    """A 64-bit sum of canonical values, mod p."""
    return uint32(total % _P64)


# --- vectors of K, or of F -------------------------------------------------------------------------


def k_add(a: Array, b: Array) -> Array:
    """a + b, coordinate by coordinate; they broadcast."""
    s: Array = a + b
    return np.minimum(s, s - P)


def k_sub(a: Array, b: Array) -> Array:
    """a - b, coordinate by coordinate; they broadcast."""
    d: Array = a - b
    return np.minimum(d, d + P)


@kernel
def k_mul(a, b, out):  # type: ignore[no-untyped-def]
    """out[i] = a[i] b[i]; all [5, n]."""
    x, y, o = rows(a, 0, a.shape[1]), rows(b, 0, a.shape[1]), rows(out, 0, a.shape[1])
    for i in range(uint64(a.shape[1])):
        put(o, i, mul(get(x, i), get(y, i)))


@kernel
def k_outer(a, b, out):  # type: ignore[no-untyped-def]
    """out[i m + j] = a[i] b[j]; a [5, n], b [5, m], out [5, n m]."""
    n, m = a.shape[1], b.shape[1]
    y = rows(b, 0, m)
    for i in range(n):
        s = (a[0, i], a[1, i], a[2, i], a[3, i], a[4, i])
        o = rows(out, i * m, (i + 1) * m)
        for j in range(uint64(m)):
            put(o, j, mul(get(y, j), s))


@kernel
def eq_table(coordinates, out):  # type: ignore[no-untyped-def]
    """out[i] = prod over bits of i_b x_b + (1 - i_b)(1 - x_b); coordinates x [5, m], out [5, n], n <= 2^m."""
    n = out.shape[1]
    have = min(1, n)
    if n:
        put(out, 0, (_ONE, _ZERO, _ZERO, _ZERO, _ZERO))
    for bit in range(coordinates.shape[1]):
        x = get(coordinates, bit)
        for i in range(have):
            low = get(out, i)
            high = mul(low, x)
            put(out, i, sub5(low, high))
            if have + i < n:
                put(out, have + i, high)
        have = min(2 * have, n)


@kernel
def f_scale(values, factor, out):  # type: ignore[no-untyped-def]
    """out[i] = mont(values[i], factor): uint32 [n]."""
    for i in range(uint64(values.size)):
        out[i] = mont(values[i], factor)


@kernel
def f_scale_rows(matrix, factors, out):  # type: ignore[no-untyped-def]
    """out[i, l] = mont(matrix[i, l], factors[i]): uint32 [n, lanes]."""
    for i in range(matrix.shape[0]):
        row, to, factor = matrix[i], out[i], factors[i]
        for lane in range(uint64(row.size)):
            to[lane] = mont(row[lane], factor)


@kernel
def k_sum(a):  # type: ignore[no-untyped-def]
    """Sum of a [5, n], as [5, 1]."""
    out = np.empty((5, 1), np.uint32)
    for c in range(5):
        row, total = a[c], _0
        for i in range(uint64(row.size)):
            total += uint64(row[i])
        out[c, 0] = close(total)
    return out


@kernel
def scatter_add(target, index, values):  # type: ignore[no-untyped-def]
    """target[:, index[i]] += values[:, i]; indices may repeat."""
    for c in range(5):
        t, v = target[c], values[c]
        for i in range(index.size):
            t[index[i]] = add(t[index[i]], v[i])


MAX_TERMS = 1 << 16  # of one sum in `combine`: products of 31 and 16 bits in 64


@kernel
def combine(values, low, high, out, first, last):  # type: ignore[no-untyped-def]
    """out[c, s] = sum_i values[s, i] weight[c, i]  (Montgomery weights of K, given as low + 2^16 high).

    values uint32 [rows, h] canonical, h <= MAX_TERMS, low and high uint32 [5, h], out [5, rows]; rows first <= s <
    last.
    """
    h = values.shape[1]
    l0, l1, l2, l3, l4 = rows(low, 0, h)
    h0, h1, h2, h3, h4 = rows(high, 0, h)
    for s in range(first, last):
        row = values[s]
        a0 = a1 = a2 = a3 = a4 = _0
        b0 = b1 = b2 = b3 = b4 = _0
        for i in range(uint64(h)):
            x = uint64(row[i])
            a0 += x * uint64(l0[i])
            b0 += x * uint64(h0[i])
            a1 += x * uint64(l1[i])
            b1 += x * uint64(h1[i])
            a2 += x * uint64(l2[i])
            b2 += x * uint64(h2[i])
            a3 += x * uint64(l3[i])
            b3 += x * uint64(h3[i])
            a4 += x * uint64(l4[i])
            b4 += x * uint64(h4[i])
        out[0, s] = uint32((a0 % _P64 + ((b0 % _P64) << _16)) % _P64)
        out[1, s] = uint32((a1 % _P64 + ((b1 % _P64) << _16)) % _P64)
        out[2, s] = uint32((a2 % _P64 + ((b2 % _P64) << _16)) % _P64)
        out[3, s] = uint32((a3 % _P64 + ((b3 % _P64) << _16)) % _P64)
        out[4, s] = uint32((a4 % _P64 + ((b4 % _P64) << _16)) % _P64)


# --- sumcheck over A B + C D, tensors [outer, n, inner] -------------------------------------------


@inline
def _past_the_end(pads, n, inner):  # type: ignore[no-untyped-def]
    """[5 m, inner] of the pads [5, m], or [5 m, 0] where all of n entries have their neighbor."""
    out = np.empty((5 * pads.shape[1], inner if n % 2 else 0), np.uint32)
    for k in range(out.shape[0]):
        out[k] = pads[k % 5, k // 5]
    return out


@kernel
def fold(tables, out, n, inner, r, pads, first, last):  # type: ignore[no-untyped-def]
    """out[o, j, i] = lo + r (hi - lo), lo = table[o, 2j, i], hi = table[o, 2j + 1, i] or its pad past the end.

    tables [5 m, outer n inner], out [5 m, outer ceil(n / 2) inner]; rows (o, j) from first to last; r [5, 1], pads
    [5, m].
    """
    half, filled = (n + 1) // 2, _past_the_end(pads, n, inner)
    s = (r[0, 0], r[1, 0], r[2, 0], r[3, 0], r[4, 0])
    for row in range(first, last):
        o, j = row // half, row % half
        at = (o * n + 2 * j) * inner
        for k in range(0, tables.shape[0], 5):
            table = tables[k : k + 5]
            lo, to = rows(table, at, at + inner), rows(out[k : k + 5], row * inner, (row + 1) * inner)
            hi = rows(table, at + inner, at + 2 * inner) if 2 * j + 1 < n else rows(filled[k : k + 5], 0, inner)
            for i in range(uint64(inner)):
                x = get(lo, i)
                put(to, i, add5(x, mul(sub5(get(hi, i), x), s)))


@kernel
def round_sums(tables, pads, n, inner, outer_weights, weights, inner_weights, first, last):  # type: ignore[no-untyped-def]
    """Sums of one round of sumcheck over weight * (A B + C D), one variable open (SPEC section 7).

    Tables [20, outer n inner]; a missing upper neighbor is its pad, of pads [5, 4].  The weight of entry i in row (o,
    j) is outer_weights[:, o] * weights[:, j] * inner_weights[:, i].
    Returns uint32 [5, 2]: the value at X = 0 and the coefficient of X^2.
    """
    half, filled = (n + 1) // 2, _past_the_end(pads, n, inner)
    a, b, c, d = tables[:5], tables[5:10], tables[10:15], tables[15:]
    pa, pb, pc, pd = filled[:5], filled[5:10], filled[10:15], filled[15:]
    w = rows(inner_weights, 0, inner)
    t0 = t1 = t2 = t3 = t4 = _0
    s0 = s1 = s2 = s3 = s4 = _0
    for row in range(first, last):
        o, j = row // half, row % half
        at = (o * n + 2 * j) * inner
        up, end = at + inner, at + 2 * inner
        present = 2 * j + 1 < n
        a0, a1 = rows(a, at, up), rows(a, up, end) if present else rows(pa, 0, inner)
        b0, b1 = rows(b, at, up), rows(b, up, end) if present else rows(pb, 0, inner)
        c0, c1 = rows(c, at, up), rows(c, up, end) if present else rows(pc, 0, inner)
        d0, d1 = rows(d, at, up), rows(d, up, end) if present else rows(pd, 0, inner)
        u0 = u1 = u2 = u3 = u4 = _0
        v0 = v1 = v2 = v3 = v4 = _0
        for i in range(uint64(inner)):
            e = get(w, i)
            al, bl, cl, dl = get(a0, i), get(b0, i), get(c0, i), get(d0, i)
            x = mul(add5(mul(al, bl), mul(cl, dl)), e)
            u0 += uint64(x[0])
            u1 += uint64(x[1])
            u2 += uint64(x[2])
            u3 += uint64(x[3])
            u4 += uint64(x[4])
            y = add5(mul(sub5(get(a1, i), al), sub5(get(b1, i), bl)), mul(sub5(get(c1, i), cl), sub5(get(d1, i), dl)))
            y = mul(y, e)
            v0 += uint64(y[0])
            v1 += uint64(y[1])
            v2 += uint64(y[2])
            v3 += uint64(y[3])
            v4 += uint64(y[4])
        g = mul(
            (outer_weights[0, o], outer_weights[1, o], outer_weights[2, o], outer_weights[3, o], outer_weights[4, o]),
            (weights[0, j], weights[1, j], weights[2, j], weights[3, j], weights[4, j]),
        )
        x = mul((close(u0), close(u1), close(u2), close(u3), close(u4)), g)
        y = mul((close(v0), close(v1), close(v2), close(v3), close(v4)), g)
        t0 += uint64(x[0])
        t1 += uint64(x[1])
        t2 += uint64(x[2])
        t3 += uint64(x[3])
        t4 += uint64(x[4])
        s0 += uint64(y[0])
        s1 += uint64(y[1])
        s2 += uint64(y[2])
        s3 += uint64(y[3])
        s4 += uint64(y[4])
    out = np.empty((5, 2), np.uint32)
    out[0, 0], out[1, 0], out[2, 0], out[3, 0], out[4, 0] = close(t0), close(t1), close(t2), close(t3), close(t4)
    out[0, 1], out[1, 1], out[2, 1], out[3, 1], out[4, 1] = close(s0), close(s1), close(s2), close(s3), close(s4)
    return out


# --- fractional trees -----------------------------------------------------------------------------


@kernel
def tree_level(p, q, to_p, to_q, n, inner, first, last):  # type: ignore[no-untyped-def]
    """The parents of neighbors along the middle axis of [outer, n, inner]: P = p0 q1 + p1 q0, Q = q0 q1.

    p, q [5, outer n inner], to_p, to_q [5, outer ceil(n / 2) inner]; rows (o, j) from first to last.  Past the end of
    the axis stands p1 / q1 = 0 / 1.
    """
    half = (n + 1) // 2
    for row in range(first, last):
        o, j = row // half, row % half
        at, to = (o * n + 2 * j) * inner, row * inner
        up, end = at + inner, at + 2 * inner
        a0, b0, po, qo = rows(p, at, up), rows(q, at, up), rows(to_p, to, to + inner), rows(to_q, to, to + inner)
        if 2 * j + 1 < n:
            a1, b1 = rows(p, up, end), rows(q, up, end)
            for i in range(uint64(inner)):
                put(po, i, add5(mul(get(a0, i), get(b1, i)), mul(get(a1, i), get(b0, i))))
            for i in range(uint64(inner)):
                put(qo, i, mul(get(b0, i), get(b1, i)))
        else:
            for i in range(uint64(inner)):
                put(po, i, get(a0, i))
            for i in range(uint64(inner)):
                put(qo, i, get(b0, i))


@kernel
def tree_leaves(q, to_p, to_q, n, inner, first, last):  # type: ignore[no-untyped-def]
    """`tree_level` where all p that are present are 1: P = q0 + q1."""
    half = (n + 1) // 2
    for row in range(first, last):
        o, j = row // half, row % half
        at, to = (o * n + 2 * j) * inner, row * inner
        up, end = at + inner, at + 2 * inner
        b0, po, qo = rows(q, at, up), rows(to_p, to, to + inner), rows(to_q, to, to + inner)
        if 2 * j + 1 < n:
            b1 = rows(q, up, end)
            for i in range(uint64(inner)):
                put(po, i, add5(get(b0, i), get(b1, i)))
            for i in range(uint64(inner)):
                put(qo, i, mul(get(b0, i), get(b1, i)))
        else:
            for i in range(uint64(inner)):
                put(po, i, (_ONE, _ZERO, _ZERO, _ZERO, _ZERO))
            for i in range(uint64(inner)):
                put(qo, i, get(b0, i))


@kernel
def tree_open(p, q, s, out, n, inner, first, last):  # type: ignore[no-untyped-def]
    """The children of a level, apart: p0 + s q0, q1, p1, q0 in out [20, outer ceil(n / 2) inner]; s [5, 1].

    p [5, 0]: all that are present are 1.  Past the end of the axis stands p1 / q1 = 0 / 1.
    """
    half, ones = (n + 1) // 2, p.shape[1] == 0
    a, q1, p1, q0 = out[:5], out[5:10], out[10:15], out[15:]
    e = (s[0, 0], s[1, 0], s[2, 0], s[3, 0], s[4, 0])
    unit, none = (_ONE, _ZERO, _ZERO, _ZERO, _ZERO), (_ZERO, _ZERO, _ZERO, _ZERO, _ZERO)
    for row in range(first, last):
        o, j = row // half, row % half
        at, to = (o * n + 2 * j) * inner, row * inner
        up, end = at + inner, at + 2 * inner
        present = 2 * j + 1 < n
        low, ao, low_o = rows(q, at, up), rows(a, to, to + inner), rows(q0, to, to + inner)
        high_o, po = rows(q1, to, to + inner), rows(p1, to, to + inner)
        for i in range(uint64(inner)):
            put(low_o, i, get(low, i))
        if ones:
            for i in range(uint64(inner)):
                put(ao, i, add5(unit, mul(get(low, i), e)))
        else:
            x = rows(p, at, up)
            for i in range(uint64(inner)):
                put(ao, i, add5(get(x, i), mul(get(low, i), e)))
        if present:
            high = rows(q, up, end)
            for i in range(uint64(inner)):
                put(high_o, i, get(high, i))
        else:
            for i in range(uint64(inner)):
                put(high_o, i, unit)
        if ones or not present:
            for i in range(uint64(inner)):
                put(po, i, unit if present else none)
        else:
            x = rows(p, up, end)
            for i in range(uint64(inner)):
                put(po, i, get(x, i))


@kernel
def leaves(constant, alpha, alpha2, first_column, second_column, out, offset, first, last):  # type: ignore[no-untyped-def]
    """Lookup denominators out[offset + i] = constant - alpha v1[i] - alpha^2 v2[i] for first <= i < last.

    constant, alpha, alpha2 [5, 1]; alpha and alpha2 carry one more factor 2^32; v1, v2 uint32 canonical [n].
    """
    v1, v2 = first_column[first:last], second_column[first:last]
    for c in range(5):
        kc, xc, yc, oc = constant[c, 0], alpha[c, 0], alpha2[c, 0], out[c][offset + first : offset + last]
        for i in range(uint64(last - first)):
            oc[i] = sub(kc, add(mont(v1[i], xc), mont(v2[i], yc)))


# --- number-theoretic transforms of the columns of a matrix [size, lanes] -------------------------


LANES = 32  # what LLVM takes in one step of its vectorized loop
_WIDE = 4 * LANES  # columns transformed together: narrower pieces of a row cost more to reach than to transform
_NEAR = np.uint64(1 << 14)  # entries that are transformed while they are in the cache: 64 KiB


@inline
def _difference_level(block, wide, start, length, size, roots):  # type: ignore[no-untyped-def]
    """One level of decimation in frequency over `length` rows from `start` on."""
    half, step = length >> _1, size // length
    for j in range(half):
        w = roots[j * step]
        x = (start + j) * wide
        y = x + half * wide
        for i in range(wide):
            u, v = block[x + i], block[y + i]
            block[x + i] = add(u, v)
            block[y + i] = mont(sub(u, v), w)


@inline
def _time_level(block, wide, start, length, size, roots):  # type: ignore[no-untyped-def]
    """One level of decimation in time over `length` rows from `start` on."""
    half, step = length >> _1, size // length
    for j in range(half):
        w = roots[j * step]
        x = (start + j) * wide
        y = x + half * wide
        for i in range(wide):
            u, v = block[x + i], mont(block[y + i], w)
            block[x + i] = add(u, v)
            block[y + i] = sub(u, v)


@inline
def _difference_pass(block, wide, size, roots):  # type: ignore[no-untyped-def]
    """In-place decimation in frequency of [size, wide], flat: natural order in, bit-reversed out; roots[j] = w^j.

    Levels of long reach go over all rows; what is near is finished piece by piece.
    """
    length = size
    while length * wide > _NEAR and length > 1:
        for start in range(_0, size, length):
            _difference_level(block, wide, start, length, size, roots)
        length = length >> _1
    for near in range(_0, size, length):
        part = length
        while part > 1:
            for start in range(near, near + length, part):
                _difference_level(block, wide, start, part, size, roots)
            part = part >> _1


@inline
def _time_pass(block, wide, size, roots):  # type: ignore[no-untyped-def]
    """In-place decimation in time of [size, wide], flat: bit-reversed order in, natural out."""
    length = size
    while length * wide > _NEAR and length > 1:
        length = length >> _1
    for near in range(_0, size, length):
        part = _2
        while part <= length:
            for start in range(near, near + length, part):
                _time_level(block, wide, start, part, size, roots)
            part = part << _1
    length = length << _1
    while length <= size:
        for start in range(_0, size, length):
            _time_level(block, wide, start, length, size, roots)
        length = length << _1


@inline
def _padded(width):  # type: ignore[no-untyped-def]
    """Lanes that hold `width` columns."""
    return (width + LANES - 1) // LANES * LANES


@kernel
def transform(matrix, roots, order, scale, first, last):  # type: ignore[no-untyped-def]
    """Transform columns first..last of matrix [size, m] in place, natural order on both sides.

    roots: Montgomery powers of the (inverse) root; order: bit reversal; scale: Montgomery factor applied at the end.
    """
    size = matrix.shape[0]
    for left in range(first, last, _WIDE):
        width = min(_WIDE, last - left)
        wide = _padded(width)
        block = np.zeros((size, wide), np.uint32)
        for j in range(size):
            block[order[j], :width] = matrix[j, left : left + width]
        _time_pass(block.reshape(-1), uint64(wide), uint64(size), roots)
        for j in range(size):
            to, row = matrix[j], block[j]
            for i in range(width):
                to[left + i] = mont(row[i], scale)


@kernel
def encode(values, masks, inverse_roots, roots, shifts, wraps, out, first, last):  # type: ignore[no-untyped-def]
    """Reed-Solomon codewords of the columns of `values` (SPEC section 8): out [cosets * size, m].

    values [size, m] on the subgroup H; masks [t, m] are the coefficients of rho: the row polynomial is
    interpolation + (X^size - 1) rho(X).  shifts [cosets, size] = s_c^i in bit-reversed order, divided by size;
    wraps [cosets] = size (s_c^size - 1), both Montgomery; bit_reversed order of coefficient i is implied by the passes.
    """
    size, count, cosets = values.shape[0], masks.shape[0], shifts.shape[0]
    bits = 0
    while (1 << bits) < size:
        bits += 1
    for left in range(first, last, _WIDE):
        width = min(_WIDE, last - left)
        wide = _padded(width)
        block, work = np.zeros((size, wide), np.uint32), np.empty((size, wide), np.uint32)
        for j in range(size):
            block[j, :width] = values[j, left : left + width]
        _difference_pass(block.reshape(-1), uint64(wide), uint64(size), inverse_roots)
        for c in range(cosets):
            for j in range(size):
                w, x, y = shifts[c, j], block[j], work[j]
                for i in range(uint64(wide)):
                    y[i] = mont(x[i], w)
            for t in range(count):
                j = 0
                for k in range(bits):
                    j |= ((t >> k) & 1) << (bits - 1 - k)
                y, w = work[j], mont(shifts[c, j], wraps[c])
                for i in range(width):
                    y[i] = add(y[i], mont(masks[t, left + i], w))
            _time_pass(work.reshape(-1), uint64(wide), uint64(size), roots)
            for j in range(size):
                out[c * size + j, left : left + width] = work[j, :width]


# --- the witness ----------------------------------------------------------------------------------


@kernel
def gather(x, rows, columns, out, start):  # type: ignore[no-untyped-def]
    """The taps of a convolution: out[c, ky, kx, j] = x[c, rows[ky, p], columns[kx, q]], 0 where one of these is -1.

    x int32 or float64 [C, H, W, h]; rows int64 [kh, P], columns [kw, Q]; out float64; start + j = p Q + q.
    """
    wide = columns.shape[1]
    for c, ky, kx, j in np.ndindex(out.shape[:4]):
        to, row, column = out[c, ky, kx, j], rows[ky, (start + j) // wide], columns[kx, (start + j) % wide]
        if row < 0 or column < 0:
            to[:] = 0
        else:
            line = x[c, row, column]
            for i in range(uint64(to.size)):
                to[i] = line[i]


def matmul(a: Array, b: Array, out: Array) -> None:
    """The product of two float64 matrices."""
    np.matmul(a, b, out=out)


@contextmanager
def single_blas() -> Iterator[None]:
    """`matmul` keeps to the thread that calls it: threads of its own would spin on cores that `parallel` uses."""
    with _lock:
        _limits.append(_limits[-1] if _limits else _blas().limit(limits=1, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            limit = _limits.pop()
            if not _limits:
                limit.restore_original_limits()


_blas = cache(ThreadpoolController)
_lock, _limits = Lock(), list[Any]()  # one limit, as often as there are threads under it


@kernel
def depthwise(x, weight, rows, columns, out, first, last):  # type: ignore[no-untyped-def]
    """Each channel under a kernel of its own: out[c, p, q] += the sum of weight[c, ky, kx] x[c, rows[ky, p], ...].

    As `gather`, with weight float64 [C, kh, kw] and out [C, P, Q, h].
    """
    for c in range(first, last):
        for p, q in np.ndindex(rows.shape[1], columns.shape[1]):
            to = out[c, p, q]
            for ky, kx in np.ndindex(rows.shape[0], columns.shape[0]):
                row, column, w = rows[ky, p], columns[kx, q], weight[c, ky, kx]
                if row >= 0 and column >= 0:
                    line = x[c, row, column]
                    for i in range(uint64(to.size)):
                        to[i] += w * line[i]


@kernel
def requantize(y, bias, offset, shift, table, units, remainders, outputs, first, last):  # type: ignore[no-untyped-def]
    """u = floor((y + bias + offset) / 2^shift), its remainder, and z = table[u + half the table] (SPEC section 3).

    y float64 [O, n], integers below 2^53; bias, table int64; units, remainders, outputs int32 [O, n]; channels from
    first to last.
    """
    half, mask = table.size // 2, (1 << shift) - 1
    for c in range(first, last):
        row, u, r, z, plus = y[c], units[c], remainders[c], outputs[c], bias[c] + offset
        for i in range(uint64(row.size)):
            value = np.int64(row[i]) + plus
            unit = value >> shift
            u[i] = unit
            r[i] = value & mask
            z[i] = table[unit + half]


@kernel
def residues(values, out, first, last):  # type: ignore[no-untyped-def]
    """out[i] = values[i] mod p: int32, above -p, to uint32, flat."""
    for i in range(uint64(first), uint64(last)):
        v = uint32(values[i])
        out[i] = min(v, uint32(v + P))


@kernel
def histogram(values, offset, size, first, last):  # type: ignore[no-untyped-def]
    """int64 [size]: how often each number stands among values[first:last] + offset; int32 in, all in range."""
    out = np.zeros(size, np.int64)
    for i in range(first, last):
        out[values[i] + offset] += 1
    return out


# --- SHA-256 of the columns of a matrix -----------------------------------------------------------


class Leaves:
    """SHA-256(prefix | column) of all columns at once, as the rows of the matrix arrive; prefixes uint8 [columns, n].

    Hashing takes the interpreter's lock for every column, so that one thread is as fast as several: it hashes a block
    while others make the next.
    """

    def __init__(self, prefixes: Array) -> None:
        (columns, width), data = prefixes.shape, prefixes.tobytes()
        self._hashers = [sha256(data[i * width : (i + 1) * width]) for i in range(columns)]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="zkmark-hash")
        self._last: Future[None] | None = None

    def update(self, block: Array) -> None:
        """Append to every column a row of the block [columns, words], uint32, which must not change any more."""
        self._wait()
        self._last = self._thread.submit(self._append, np.ascontiguousarray(block, "<u4").data.cast("B"))

    def digests(self) -> bytes:
        """Of all columns, one after the other; nothing can be appended then."""
        self._wait()
        self._thread.shutdown()
        return b"".join([hasher.digest() for hasher in self._hashers])

    def _append(self, data: memoryview) -> None:
        width = len(data) // len(self._hashers)
        for i, hasher in enumerate(self._hashers):
            hasher.update(data[i * width : (i + 1) * width])

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

"""BabyBear F (p = 15 * 2^27 + 1) and K = F[x] / (x^5 - 2), |K| = 2^154.5 (SPEC section 2).

Arrays.  F: uint32 [n], canonical.  K: uint32 [5, n], Montgomery form (an internal matter: bytes are canonical).
A scalar of K is [5, 1] and broadcasts.  Functions return new arrays.  Those of sums and products take arrays of a
device too, and then work and return there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol import kernels
from protocol.errors import DecodingError
from protocol.kernels import cpu

P = int(cpu.P)
DEGREE = 5
ELEMENT_BYTES = 4 * DEGREE  # of one element of K on the wire
GENERATOR = 31  # of the multiplicative group of F
TWO_ADICITY = 27  # 2^27 divides p - 1

Base = npt.NDArray[np.uint32]  # [n] of F
Vector = npt.NDArray[np.uint32]  # [5, n] of K

_P, _16 = np.uint32(P), np.uint32(16)
_R2 = np.uint32(2**64 % P)
_FROM = np.uint32(1)  # mont(a R, 1) = a


def _scaled(values: Any, factor: np.uint32) -> Any:
    k = kernels.of(values)
    out = k.words(*values.shape)
    k.f_scale(k.contiguous(values).ravel(), factor, out.ravel())
    return out


def from_base(values: npt.NDArray[np.uint32]) -> Vector:
    """Canonical words [5, n] to K."""
    out: Vector = _scaled(values, _R2)
    return out


def to_base(elements: Vector) -> npt.NDArray[np.uint32]:
    """K to canonical words [5, n]."""
    out: Base = _scaled(elements, _FROM)
    return out


def residues(values: npt.NDArray[np.integer]) -> Base:
    """Integers of any sign to F, same shape."""
    flat, out = np.asarray(values).ravel(), np.empty(np.shape(values), np.uint32)
    to = out.ravel()

    def some(first: int, last: int) -> None:
        to[first:last] = np.mod(flat[first:last].astype(np.int64), P)

    cpu.parallel(some, flat.size, flat.size)
    return out


def embed(values: npt.NDArray[np.integer] | Sequence[int]) -> Vector:
    """Integers [n] to elements of K with four zero coordinates."""
    out = np.zeros((DEGREE, len(values)), np.uint32)
    out[0] = _scaled(residues(np.asarray(values)), _R2)
    return out


def constant(value: int) -> Vector:
    """One integer as a scalar [5, 1]."""
    return embed([value % P])


def zeros(count: int) -> Vector:
    return np.zeros((DEGREE, count), np.uint32)


ZERO = zeros(1)
ONE = constant(1)


def repeat(scalar: Vector, count: int) -> Vector:
    """[5, count] copies of a scalar."""
    return np.repeat(scalar, count, axis=1)


def concat(parts: Iterable[Vector]) -> Vector:
    return np.concatenate([zeros(0), *parts], axis=1)


def add(a: Vector, b: Vector) -> Vector:
    out: Vector = kernels.of(a, b).k_add(a, b)
    return out


def sub(a: Vector, b: Vector) -> Vector:
    out: Vector = kernels.of(a, b).k_sub(a, b)
    return out


def neg(a: Vector) -> Vector:
    return sub(np.zeros_like(a), a)


def mul(a: Vector, b: Vector) -> Vector:
    """Elementwise product; a scalar [5, 1] broadcasts."""
    if b.shape[1] == 1:
        a, b = b, a
    if a.shape[1] not in (1, b.shape[1]):
        raise ValueError(f"lengths {a.shape[1]} and {b.shape[1]} do not broadcast")
    k = kernels.of(a, b)
    out: Vector = k.empty(b.shape[1])
    (k.k_outer if a.shape[1] == 1 else k.k_mul)(k.contiguous(a), k.contiguous(b), out)
    return out


def outer(a: Vector, b: Vector) -> Vector:
    """[5, n m] of a[i] b[j], b fastest."""
    k = kernels.of(a, b)
    out: Vector = k.empty(a.shape[1] * b.shape[1])
    k.k_outer(k.contiguous(a), k.contiguous(b), out)
    return out


def total(a: Vector) -> Vector:
    """Sum of the elements, [5, 1], on the host."""
    k = kernels.of(a)
    out: Vector = k.k_sum(k.contiguous(a))
    return out


def dot(a: Vector, b: Vector) -> Vector:
    return total(mul(a, b))


def scale(a: Vector, values: npt.NDArray[np.integer] | int) -> Vector:
    """a times integers (one, or one per element)."""
    return mul(a, embed(np.atleast_1d(np.asarray(values))))


def power(a: Vector, exponent: int) -> Vector:
    """a ** exponent, elementwise, exponent >= 0."""
    out, base = np.broadcast_to(ONE, a.shape).copy(), a
    while exponent:
        if exponent & 1:
            out = mul(out, base)
        base, exponent = mul(base, base), exponent >> 1
    return out


def inverse(a: Vector) -> Vector:
    """Elementwise inverse (0 for 0): the norm a^(1 + p + p^2 + p^3 + p^4) is an element of F."""
    first = frobenius(a)
    pair = mul(first, frobenius(first))  # a^(p + p^2)
    rest = mul(pair, frobenius(frobenius(pair)))
    norm = to_base(mul(a, rest))[0]
    inverted = np.array([pow(int(v), P - 2, P) for v in norm], np.uint32)
    return mul(rest, embed(inverted))


def frobenius(a: Vector) -> Vector:
    """Elementwise a^p: (sum a_i x^i)^p = sum a_i x^(ip), and x^p = 2^((p-1)/5) x because x^5 = 2."""
    return np.stack([_scaled(a[i], _FROBENIUS[i]) for i in range(DEGREE)])


_FROBENIUS = embed([pow(2, P // 5 * i, P) for i in range(DEGREE)])[0]  # p // 5 is (p - 1) / 5


def powers(a: Vector, count: int) -> Vector:
    """[5, count] of 1, a, a^2, ..."""
    out = ONE
    step = a
    while out.shape[1] < count:
        out = np.concatenate([out, mul(out, step)], axis=1)
        step = mul(step, step)
    return out[:, :count]


def combine(values: npt.NDArray[np.uint32], weights: Vector) -> Vector:
    """[5, rows] of sum_i values[row, i] weights[i]: values uint32 [rows, n] of F, weights [5, n] of K on the host."""
    rows, n = values.shape
    if n > cpu.MAX_TERMS:
        halves = slice(None, n // 2), slice(n // 2, None)
        left, right = (combine(values[:, half], weights[:, half]) for half in halves)
        return add(left, right)
    k = kernels.of(values)
    out: Vector = k.empty(rows)
    low, high = (k.to_device(np.ascontiguousarray(w)) for w in (weights & np.uint32(0xFFFF), weights >> _16))
    k.parallel(partial(k.combine, k.contiguous(values), low, high, out), rows, rows * n)
    return out


def to_bytes(elements: Vector) -> bytes:
    """Wire form: per element its five canonical coordinates, little-endian u32."""
    return np.ascontiguousarray(to_base(elements).T).astype("<u4").tobytes()


def from_bytes(data: bytes) -> Vector:
    """Elements from their wire form; raises DecodingError for a coordinate of p or more."""
    if len(data) % ELEMENT_BYTES:
        raise DecodingError("field elements: truncated")
    words = np.frombuffer(data, "<u4").astype(np.uint32)
    if (words >= _P).any():
        raise DecodingError("field elements: a coordinate is not canonical")
    return from_base(np.ascontiguousarray(words.reshape(len(data) // ELEMENT_BYTES, DEGREE).T))


def equal(a: Vector, b: Vector) -> bool:
    return bool((a == b).all())

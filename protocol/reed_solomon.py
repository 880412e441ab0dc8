"""Reed-Solomon codes for the commitment (SPEC section 8).

A row of 2^a values is interpolated on the subgroup H of order N = 2^a, gets (X^N - 1) rho(X) added, rho uniform of
degree below t, and is evaluated on the coset g <w_n> of n = 2^a / rate points, g = 31.  Column c N + j is the point
g w_n^c w_N^j, so that a codeword is n / N transforms of size N.  Matrices hold one polynomial per column (lane).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from protocol import field, kernels
from protocol.field import P
from protocol.kernels.cpu import LANES

Matrix = npt.NDArray[np.uint32]


def root(size: int) -> int:
    """The primitive root of unity of order `size` (a power of two up to 2^27)."""
    return pow(field.GENERATOR, (P - 1) // size, P)


def _geometric(first: int, ratio: int, count: int) -> npt.NDArray[np.uint64]:
    """[count] of first, first ratio, first ratio^2, ..."""
    out = np.array([first % P], np.uint64)
    while len(out) < count:
        out = np.concatenate([out, out * np.uint64(pow(ratio, len(out), P)) % np.uint64(P)])
    return out[:count]


def _montgomery(values: npt.NDArray[np.uint64] | list[int]) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(field.embed(values)[0])


@lru_cache(maxsize=8)
def _reversal(size: int) -> npt.NDArray[np.int64]:
    bits, out = size.bit_length() - 1, np.zeros(size, np.int64)
    for k in range(bits):
        out |= ((np.arange(size) >> k) & 1) << (bits - 1 - k)
    return out


@lru_cache(maxsize=8)
def _roots(size: int, inverse: bool) -> npt.NDArray[np.uint32]:
    w = root(size)
    return _montgomery(_geometric(1, pow(w, -1, P) if inverse else w, size))


def _transform(matrix: Matrix, inverse: bool) -> Matrix:
    size, lanes = matrix.shape
    k = kernels.of(matrix)
    out: Matrix = k.words(size, lanes)
    out[:] = matrix
    scale = np.uint32(_montgomery([pow(size, -1, P) if inverse else 1])[0])
    roots, order = _roots(size, inverse), _reversal(size)
    k.parallel(
        lambda a, b: k.transform(out, roots, order, scale, a * LANES, min(b * LANES, lanes)),
        -(-lanes // LANES), size * lanes,
    )  # fmt: skip
    return out


def evaluate_subgroup(coefficients: Matrix) -> Matrix:
    """Values on <w_size> in natural order of the polynomials in the columns [size, lanes]."""
    return _transform(coefficients, inverse=False)


def interpolate_subgroup(values: Matrix) -> Matrix:
    """Inverse of `evaluate_subgroup`."""
    return _transform(values, inverse=True)


@lru_cache(maxsize=4)
def _shifts(size: int, cosets: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """(s_c^i / size in bit-reversed order of i, size (s_c^size - 1)), Montgomery; s_c = g w_n^c."""
    inverse = pow(size, -1, P)
    starts = _geometric(field.GENERATOR, root(size * cosets), cosets).tolist()
    order = _reversal(size)
    shifts = np.stack([_montgomery(_geometric(inverse, s, size))[order] for s in starts])
    return np.ascontiguousarray(shifts), _montgomery([(pow(s, size, P) - 1) * size for s in starts])


def encode(values: Matrix, masks: Matrix, cosets: int) -> Matrix:
    """Codewords [cosets * N, lanes] of the rows held in the columns of values [N, lanes], masks [t, lanes] = rho."""
    size, lanes = values.shape
    k = kernels.of(values)
    out: Matrix = k.words(cosets * size, lanes)
    roots, values, masks = (_roots(size, True), _roots(size, False)), k.contiguous(values), k.contiguous(masks)
    k.parallel(
        lambda a, b: k.encode(
            values, masks, *roots, *_shifts(size, cosets), out, a * LANES, min(b * LANES, lanes)
        ), -(-lanes // LANES), size * cosets * lanes,
    )  # fmt: skip
    return out


def row_coefficients(values: Matrix, masks: Matrix) -> Matrix:
    """Coefficients [N + t, lanes] of the row polynomials that `encode` evaluates."""
    size, count, k = values.shape[0], masks.shape[0], kernels.of(values)
    out: Matrix = k.join([interpolate_subgroup(values), 0 * masks], 0)
    out[:count] = k.k_sub(out[:count], masks)  # coordinate by coordinate: of F as of K
    out[size:] = k.k_add(out[size:], masks)
    return out


def evaluate_domain(coefficients: Matrix, size: int, cosets: int) -> Matrix:
    """Values [cosets * size, lanes] of polynomials of any degree on the whole domain.

    On the coset of s, X^(b size + i) is s^(b size + i) (X / s)^i: all coefficients are scaled and the blocks added up.
    """
    (count, lanes), k = coefficients.shape, kernels.of(coefficients)
    blocks, out = -(-count // size), []
    padded = k.words(blocks * size, lanes)
    padded[:count] = coefficients
    for powers in _domain_powers(blocks * size, size * cosets, cosets):
        scaled = k.words(blocks * size, lanes)
        k.f_scale_rows(padded, powers, scaled)
        total = scaled[:size]
        for first in range(size, blocks * size, size):
            total = k.k_add(total, scaled[first : first + size])  # coordinate by coordinate: of F as of K
        out.append(total)
    values: Matrix = k.join([evaluate_subgroup(total) for total in out], 0)
    return values


@lru_cache(maxsize=4)
def _domain_powers(count: int, domain: int, cosets: int) -> list[npt.NDArray[np.uint32]]:
    """For each coset s of a domain of that order: [count] of 1, s, s^2, ..., Montgomery."""
    starts = _geometric(field.GENERATOR, root(domain), cosets).tolist()
    return [_montgomery(_geometric(1, s, count)) for s in starts]


def domain_points(columns: list[int], size: int, cosets: int) -> list[int]:
    """The field elements at which the given columns evaluate."""
    wide, narrow = root(size * cosets), root(size)
    return [field.GENERATOR * pow(wide, c // size, P) * pow(narrow, c % size, P) % P for c in columns]


def lagrange(points: list[int], size: int) -> Matrix:
    """[len(points), size] values L_j(x) of the Lagrange basis of H at points outside H.

    L_j(x) = (x^size - 1) / size * w^j / (x - w^j); one batch inversion per point.
    """
    p = np.uint64(P)
    elements = _geometric(1, root(size), size)[:, None]
    x = np.array(points, np.uint64)[None, :]
    differences = (x + p - elements) % p
    prefix = np.empty((size + 1, len(points)), np.uint64)
    prefix[0] = 1
    for j in range(size):
        prefix[j + 1] = prefix[j] * differences[j] % p
    inverse = np.array([pow(int(v), -1, P) for v in prefix[-1]], np.uint64)
    scale = np.array([(pow(v, size, P) - 1) * pow(size, -1, P) % P for v in points], np.uint64)
    out = np.empty((size, len(points)), np.uint32)
    for j in range(size - 1, -1, -1):
        out[j] = scale * elements[j] % p * (inverse * prefix[j] % p) % p
        inverse = inverse * differences[j] % p
    return np.ascontiguousarray(out.T)


def power_table(points: list[int], count: int) -> Matrix:
    """[len(points), count] of x^i."""
    out = np.empty((count, len(points)), np.uint64)
    out[0] = 1
    step, have = np.array(points, np.uint64), 1
    while have < count:  # rows [have, 2 have) = rows [0, have) * x^have
        more = min(have, count - have)
        out[have : have + more] = out[:more] * step % np.uint64(P)
        step, have = step * step % np.uint64(P), have + more
    return np.ascontiguousarray(out.T.astype(np.uint32))

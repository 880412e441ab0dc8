"""The commitment of SPEC section 8 over a small prime field, plainly, for many independent runs at once.

Every array has a leading axis of runs, so that all coin tosses of a tiny instance can be enumerated, and the rate of
rare events be measured.  One field takes the place of F and K.  Points are any outside the subgroup.  Arrays of objects
(integers, elements of K) serve as well as int64: test_ligero_twin.py compares with the package so, at its own fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Ints = Any  # arrays of int64 or of objects


def order(x: int, p: int) -> int:
    value, n = x % p, 1
    while value != 1:
        value, n = value * x % p, n + 1
    return n


def times(a: Ints, b: Ints, p: int) -> Ints:
    """Products of polynomials [..., m] and [..., n], coefficients lowest first."""
    shape = np.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    out = np.zeros((*shape, a.shape[-1] + b.shape[-1] - 1), np.result_type(a, b))
    for i in range(a.shape[-1]):
        out[..., i : i + b.shape[-1]] += a[..., i : i + 1] * b % p
    return out % p


def plus(a: Ints, b: Ints, p: int) -> Ints:
    """Sum of polynomials of any lengths."""
    longer, shorter = (a, b) if a.shape[-1] >= b.shape[-1] else (b, a)
    shape = (*np.broadcast_shapes(a.shape[:-1], b.shape[:-1]), longer.shape[-1])
    out = np.broadcast_to(longer, shape).astype(np.result_type(a, b))
    out[..., : shorter.shape[-1]] += shorter
    return out % p


@dataclass(frozen=True)
class Code:
    """N slots, t random coefficients, and n points of evaluation outside the subgroup of order N."""

    p: int
    size: int
    queries: int
    columns: int

    @property
    def degree(self) -> int:
        return self.size + self.queries

    @property
    def subgroup(self) -> list[int]:
        w = next(x for x in range(1, self.p) if order(x, self.p) == self.size)
        return [pow(w, j, self.p) for j in range(self.size)]

    @property
    def points(self) -> list[int]:
        outside = [x for x in range(self.p) if x not in self.subgroup]
        return outside[: self.columns]

    @property
    def blinding(self) -> tuple[int, int, int]:
        """Free coefficients of the three blinding polynomials."""
        k = self.degree
        return k, self.size + k - 2, 2 * k - 1 - self.size

    def vanishing(self) -> Ints:
        out = np.zeros(self.size + 1, np.int64)
        out[0], out[-1] = self.p - 1, 1
        return out

    def interpolate(self, values: Ints) -> Ints:
        """[..., N] values on the subgroup to coefficients."""
        n, h = self.size, self.subgroup
        matrix = [[pow(x, -i, self.p) * pow(n, -1, self.p) % self.p for x in h] for i in range(n)]
        return values @ np.array(matrix, np.int64).T % self.p

    def row(self, values: Ints, masks: Ints) -> Ints:
        return plus(self.interpolate(values), times(self.vanishing(), masks, self.p), self.p)

    def evaluate(self, coefficients: Ints, points: Sequence[int] | None = None) -> Ints:
        xs = self.points if points is None else points
        table = [[pow(x, i, self.p) for x in xs] for i in range(coefficients.shape[-1])]
        return coefficients @ np.array(table, np.int64) % self.p


@dataclass
class Committed:
    """Row polynomials [runs, rows, k], the blinding polynomials, and all words [runs, rows + 3, n]."""

    code: Code
    rows: Ints
    blinding: tuple[Ints, Ints, Ints]
    words: Ints

    @staticmethod
    def make(code: Code, values: Ints, masks: Ints, free: tuple[Ints, Ints, Ints], total: Ints | int = 0) -> Committed:
        """values [runs, rows, N], masks [runs, rows, t], free coefficients of the blinding polynomials [runs, ...].

        total: what the values of the linear blinding polynomial on the subgroup sum to; an honest prover's is 0.
        """
        p, size = code.p, code.size
        rows = code.row(values, masks)
        prox, lin, quad = free
        first = np.asarray(total) * pow(size, -1, p) - lin[..., size - 1 :: size].sum(axis=-1)
        lin = np.concatenate([np.broadcast_to(first, lin.shape[:-1])[..., None] % p, lin], axis=-1)
        quad = times(code.vanishing(), quad, p)
        words = [code.evaluate(rows), *(code.evaluate(b)[..., None, :] for b in (prox, lin, quad))]
        runs = np.broadcast_shapes(*(w.shape[:-2] for w in words))
        words = [np.broadcast_to(w, (*runs, *w.shape[-2:])) for w in words]
        return Committed(code, rows, (prox, lin, quad), np.concatenate(words, axis=-2))


@dataclass(frozen=True)
class Claims:
    """Linear equations sum coefficients[e] * entries = right[e], [equations, rows, N], and products of rows (x, y, z).

    first: the exponent of the batching challenge in the weight of equation 0 (SPEC: 1).
    """

    coefficients: Ints
    right: Ints
    products: tuple[tuple[int, int, int], ...] = ()
    first: int = 1

    def batched(self, eta: Ints, p: int) -> tuple[Ints, Ints]:
        """eta [runs] to (coefficients [runs, rows, N], target [runs])."""
        exponents = range(self.first, self.first + len(self.right))
        weights = np.array([[pow(x, e, p) for e in exponents] for x in eta.tolist()], eta.dtype)
        return np.einsum("re,ens->rns", weights, self.coefficients) % p, weights @ self.right % p


@dataclass(frozen=True)
class Challenge:
    """eta [runs], proximity coefficients [runs, rows], quadratic coefficients [runs, products]."""

    eta: Ints
    proximity: Ints
    quadratic: Ints


def answer(made: Committed, claims: Claims, challenge: Challenge) -> tuple[Ints, Ints, Ints]:
    """The honest prover's three polynomials, whether the claims are true or not."""
    code, p = made.code, made.code.p
    prox, lin, quad = made.blinding
    a, _ = claims.batched(challenge.eta, p)
    for i in range(made.rows.shape[-2]):
        row = made.rows[..., i, :]
        prox = plus(prox, challenge.proximity[:, i, None] * row % p, p)
        lin = plus(lin, times(code.interpolate(a[:, i]), row, p), p)
    for j, (x, y, z) in enumerate(claims.products):
        gap = plus(times(made.rows[..., x, :], made.rows[..., y, :], p), -made.rows[..., z, :] % p, p)
        quad = plus(quad, challenge.quadratic[:, j, None] * gap % p, p)
    return prox, lin, quad


def verify(
    code: Code, claims: Claims, challenge: Challenge, polynomials: tuple[Ints, Ints, Ints], columns: Ints, words: Ints
) -> dict[str, Ints]:
    """Whether each check passes, per run.  columns [runs, t] indices; words [runs, rows + 3, t]."""
    p, size = code.p, code.size
    prox, lin, quad = polynomials
    a, target = claims.batched(challenge.eta, p)
    rows = words.shape[-2] - 3
    folded = np.zeros((*quad.shape[:-1], size), quad.dtype)
    for at in range(quad.shape[-1]):
        folded[..., at % size] += quad[..., at]
    at_columns = [np.take_along_axis(code.evaluate(q), columns, axis=-1) for q in (prox, lin, quad)]
    found = [words[..., rows + i, :] for i in range(3)]
    interpolants = np.take_along_axis(
        code.evaluate(code.interpolate(a)), np.repeat(columns[:, None], rows, axis=1), axis=-1)
    found[0] = found[0] + (challenge.proximity[:, :, None] * words[..., :rows, :]).sum(axis=-2)
    found[1] = found[1] + (interpolants * words[..., :rows, :] % p).sum(axis=-2)
    for j, (x, y, z) in enumerate(claims.products):
        gap = words[..., x, :] * words[..., y, :] - words[..., z, :]
        found[2] = found[2] + challenge.quadratic[:, j, None] * (gap % p)
    names = ("proximity.columns", "linear.columns", "quadratic.columns")
    return {
        "quadratic.zero": (folded % p == 0).all(axis=-1),
        "linear.sum": (size * lin[..., ::size].sum(axis=-1) - target) % p == 0,
        **{name: ((q - f) % p == 0).all(axis=-1) for name, q, f in zip(names, at_columns, found, strict=True)},
    }

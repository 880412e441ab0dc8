"""Sumchecks of degree 2, padded (SPEC section 7).

A round sends h(0) and h_2, the coefficient of X^2, of a polynomial h of degree 2 with

    low h(0) + high h(1) = claim,        next claim = h(r),

so that h_1 = (claim - (low + high) h(0)) / high - h_2.  A plain sum has low = high = 1.  In a sum weighted by eq(x, .)
the factor eq is taken out: the claim is normalized to the remaining variables, low = 1 - x_j and high = x_j.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from protocol import field, kernels
from protocol.field import Vector
from protocol.multilinear import eq_table, eq_tensor, lg
from protocol.pads import Form, Party, Wire


class Sums:
    """The prover's tables of a sum over A B + C D: four tensors, one after the other [20, prod(shape)], on any device.

    pads [5, 4]: what stands past their ends; absent: the value of A B + C D where nothing is real.
    """

    def __init__(self, tables: Any, pads: Vector, shape: tuple[int, ...], absent: Vector) -> None:
        self._tables, self._pads, self._shape, self._absent = tables, pads, shape, absent
        self._around: dict[Any, tuple[Any, Any, Vector]] = {}

    def round(self, axis: int, point: Sequence[Vector]) -> Vector:
        """[5, 2]: h(0) and h_2 under the weight eq; `point` holds the unbound coordinates per axis."""
        shape, n, half, rows, inner = self._cut(axis)
        k = kernels.of(self._tables)
        if (axis, k) not in self._around:  # the other axes stay as they are while this one is folded
            before, after = eq_tensor(point[:axis], shape[:axis]), eq_tensor(point[axis + 1 :], shape[axis + 1 :])
            totals = field.mul(field.total(before), field.total(after))
            self._around = {(axis, k): (k.to_device(before), k.to_device(after), totals)}
        before, after, totals = self._around[axis, k]
        weights = eq_table(point[axis][:, 1:], half)
        out = self._round(n, inner, (before, weights, after), rows)
        missing = field.sub(field.ONE, field.mul(totals, field.total(weights)))
        if missing.any():
            out[:, :1] = field.add(out[:, :1], field.mul(self._absent, missing))
        return out

    def plain_round(self, axis: int) -> Vector:
        """[5, 2]: h(0) and h_2 of the sum without weights."""
        _, n, half, rows, inner = self._cut(axis)
        before, weights, after = (field.repeat(field.ONE, count) for count in (rows // half, half, inner))
        return self._round(n, inner, (before, weights, after), rows)

    def _cut(self, axis: int) -> tuple[tuple[int, ...], int, int, int, int]:
        """(shape, length of the axis, its half, rows of a round, entries within a row)."""
        shape = self._shape
        half = (shape[axis] + 1) // 2
        return shape, shape[axis], half, prod(shape[:axis]) * half, prod(shape[axis + 1 :])

    def _round(self, n: int, inner: int, weights: tuple[Any, Vector, Any], rows: int) -> Vector:
        """weights: of the entries before the axis, on its pairs, and after it."""
        k = kernels.of(self._tables)
        sums = k.parallel(
            lambda i, j: k.round_sums(self._tables, self._pads, n, inner, *weights, i, j), rows, rows * inner
        )
        out: Vector = sums[0]
        for more in sums[1:]:
            out = field.add(out, more)
        return out

    def bind(self, axis: int, r: Vector) -> None:
        """Fold the lowest variable of `axis` at r."""
        shape, n, half, rows, inner = self._cut(axis)
        k, count = kernels.of(self._tables), self._pads.shape[1]
        out = k.empty(rows * inner, count)
        k.parallel(lambda i, j: k.fold(self._tables, out, n, inner, r, self._pads, i, j), rows, rows * inner)
        self._tables = kernels.host_if_small(out)
        self._shape = (*shape[:axis], half, *shape[axis + 1 :])

    def ends(self) -> list[Vector]:
        """The tables, bound to one entry each, on the host."""
        return np.split(kernels.to_host(self._tables), self._pads.shape[1])


def of_product(a: Vector, b: Vector, shape: tuple[int, ...]) -> Sums:
    """The sum over A B alone."""
    tables = np.zeros((4 * field.DEGREE, a.shape[1]), np.uint32)
    tables[: field.DEGREE], tables[field.DEGREE : 2 * field.DEGREE] = a, b
    return Sums(tables, field.zeros(4), shape, field.ZERO)


def eq_sumcheck(
    party: Party, axes: Sequence[int], point: Sequence[Vector], claim: Form, sums: Sums | None
) -> tuple[Form, list[Vector]]:
    """Statement: the sum over eq(point, .) (A B + C D) is `claim`; `axes` names the axis of every round.

    Returns the last claim, about the tables at the returned point.  Soundness error: 2 / |K| a round.
    """
    free, bound = list(point), [field.zeros(0) for _ in point]
    rounds, taus, rs = [], [], []
    for axis in axes:
        rounds.append(party.exchange("round", 2, sums.round(axis, free) if sums is not None else None))
        r = party.challenge("round")
        if sums is not None:
            sums.bind(axis, r)
        taus.append(free[axis][:, :1])
        rs.append(r)
        free[axis] = free[axis][:, 1:]
        bound[axis] = np.concatenate([bound[axis], r], axis=1)
    high = field.concat(taus)
    low = field.sub(field.repeat(field.ONE, high.shape[1]), high)
    return _chain(claim, rounds, field.concat(rs), low, high), bound


def product_sumcheck(
    party: Party, shape: Sequence[int], claim: Form, tensors: tuple[Vector, Vector] | None
) -> tuple[Form, list[Vector]]:
    """The same for the plain sum of A B over tensors of `shape`, axis by axis."""
    sums = None
    if tensors is not None:
        sums = of_product(*tensors, tuple(shape))
    point: list[Vector] = [field.zeros(0) for _ in shape]
    rounds, rs = [], []
    for axis, n in enumerate(shape):
        for _ in range(lg(n)):
            rounds.append(party.exchange("round", 2, sums.plain_round(axis) if sums is not None else None))
            r = party.challenge("round")
            if sums is not None:
                sums.bind(axis, r)
            rs.append(r)
            point[axis] = np.concatenate([point[axis], r], axis=1)
    ones = field.repeat(field.ONE, len(rs))
    return _chain(claim, rounds, field.concat(rs), ones, ones), point


def _chain(claim: Form, rounds: Sequence[Wire], r: Vector, low: Vector, high: Vector) -> Form:
    """The last claim as a form: h(r) = q claim + (1 - (low + high) q) h(0) + (r^2 - r) h_2 with q = r / high."""
    n = r.shape[1]
    q = field.mul(r, field.inverse(high))
    first = field.sub(field.repeat(field.ONE, n), field.mul(field.add(low, high), q))
    second = field.sub(field.mul(r, r), r)
    # What multiplies round j is the product of all later q.
    suffix = [field.ONE]
    for j in range(n - 1, -1, -1):
        suffix.append(field.mul(suffix[-1], q[:, j : j + 1]))
    factor, later = suffix[-1], field.concat(suffix[-2::-1]) if n else field.zeros(0)
    pairs = np.stack([field.mul(first, later), field.mul(second, later)], axis=2).reshape(field.DEGREE, 2 * n)
    out = Form()
    if rounds:
        sent = Wire(np.concatenate([wire.index for wire in rounds]), field.concat([wire.sent for wire in rounds]))
        out.add(sent, pairs)
    return out.add_form(claim, factor)

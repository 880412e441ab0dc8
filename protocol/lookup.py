"""LogUp lookups by fractional sumchecks (SPEC section 7).

A *tree* sums the fractions P_i / Q_i of its leaves.  The leaves are a tensor; absent leaves are 0 / 1.  Level 0 is the
leaves; each level pairs neighbours along the lowest remaining variable of the fold order, up to the root:

    P = P_0 Q_1 + P_1 Q_0,      Q = Q_0 Q_1.

From the root down, a claim P(x) + lambda Q(x) about one level becomes, by a sumcheck over
eq(x, .) (P_0 Q_1 + P_1 Q_0 + lambda Q_0 Q_1), a claim about the level below at the point (t, r): t pairs the children,
r comes from the sumcheck (`sumcheck.eq_sumcheck`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from protocol import field, kernels
from protocol.errors import Restart
from protocol.field import Vector
from protocol.multilinear import lg
from protocol.pads import Form, Need, Party, Wire
from protocol.sumcheck import Sums, eq_sumcheck


def variables(shape: Sequence[int], order: Sequence[int]) -> list[int]:
    """The axis of every variable, in the order in which they are paired and folded."""
    return [axis for axis in order for _ in range(lg(shape[axis]))]


def tree_need(shape: Sequence[int], order: Sequence[int]) -> Need:
    """Pads of one tree: two per round; three products per layer, one of them of copies; the root's Q I and P I."""
    m = len(variables(shape, order))
    return Need(free=1 + m * (m - 1), triples=2 + 3 * m, copies=m)


def copied_triples(shape: Sequence[int], order: Sequence[int]) -> list[tuple[int, int, int]]:
    """(triple, i, j) per layer: x and y of the triple copy the y pads of triples i and j; numbers within the tree."""
    layers = len(variables(shape, order))
    return [(4 + 3 * layer, 3 + 3 * layer, 2 + 3 * layer) for layer in range(layers)]


@dataclass(frozen=True)
class TreeEnd:
    """What is left of a tree: its leaves' P and Q at `point` (per axis of the tensor), and its sum S = P / Q."""

    point: tuple[Vector, ...]
    numerator: Form
    denominator: Form
    total: Wire


class TreeWitness:
    """The prover's side: all levels, given up one by one.

    numerators, denominators: [5, prod(shape)] leaves, in the memory order of the tensor, on any device; numerators
    None: all are 1.
    """

    def __init__(
        self, numerators: Any | None, denominators: Any, shape: Sequence[int], order: Sequence[int]
    ) -> None:
        self._variables = variables(shape, order)
        top = _Level(tuple(shape), field.zeros(0) if numerators is None else numerators, denominators)
        self._levels = []
        for axis in self._variables:
            self._levels.append(top)
            top = top.parent(axis)
        self._root = top.p if top.p.shape[1] else field.ONE, kernels.to_host(top.q)

    def root(self) -> tuple[Vector, Vector]:
        return self._root

    def open_layer(self, challenge: Vector) -> Sums:
        """The sums of the pairs of the next level, from the root on, as A B + C D with A = P_0 + lambda Q_0; drops it.

        Index pairs outside the real lengths hold 0/1 leaves: each adds lambda.
        """
        level = self._levels.pop()
        axis = self._variables[len(self._levels)]
        pads = field.concat([challenge, field.ONE, field.ZERO, field.ONE])
        return Sums(level.children(axis, challenge), pads, level.halved(axis), challenge)


@dataclass
class _Level:
    shape: tuple[int, ...]
    p: Any  # [5, 0]: ones
    q: Any

    def halved(self, axis: int) -> tuple[int, ...]:
        return (*self.shape[:axis], (self.shape[axis] + 1) // 2, *self.shape[axis + 1 :])

    def parent(self, axis: int) -> _Level:
        k, size = kernels.of(self.q), prod(self.halved(axis))
        p, q = k.empty(size), k.empty(size)
        if self.p.shape[1]:
            self._parallel(axis, lambda n, inner, i, j: k.tree_level(self.p, self.q, p, q, n, inner, i, j))
        else:
            self._parallel(axis, lambda n, inner, i, j: k.tree_leaves(self.q, p, q, n, inner, i, j))
        return _Level(self.halved(axis), kernels.host_if_small(p), kernels.host_if_small(q))

    def children(self, axis: int, challenge: Vector) -> Any:
        """P_0 + challenge Q_0, Q_1, P_1 and Q_0 of the pairs along an axis, one after the other."""
        k = kernels.of(self.q)
        out = k.empty(prod(self.halved(axis)), 4)
        self._parallel(axis, lambda n, inner, i, j: k.tree_open(self.p, self.q, challenge, out, n, inner, i, j))
        return kernels.host_if_small(out)

    def _parallel(self, axis: int, call: Callable[[int, int, int, int], None]) -> None:
        """call(length of the axis, entries within a row, first row, last row), rows as in the kernels."""
        n, inner = self.shape[axis], prod(self.shape[axis + 1 :])
        rows = prod(self.shape[:axis]) * ((n + 1) // 2)
        kernels.of(self.q).parallel(lambda i, j: call(n, inner, i, j), rows, rows * inner)


def fractional_tree(
    party: Party, shape: Sequence[int], order: Sequence[int], witness: TreeWitness | None = None
) -> TreeEnd:
    """Statement: the fractions of the leaves sum to the wire `total`.

    Appends the equations of all layers to party.system; what is left to the caller is that the leaves at `point` have
    the returned numerator and denominator, and the sum of the totals.
    Soundness error: (2 j + 2) / |K| for the layer of j rounds.
    """
    axes = variables(shape, order)
    numerator, denominator = Form(), Form()
    p = q = inverse = total = None
    if witness is not None:
        p, q = witness.root()
        if not q.any():  # a leaf's denominator vanished, with probability 2^-120
            raise Restart
        inverse = field.inverse(q)
        total = field.mul(p, inverse)
    # Root: Q I = 1 (so Q is not zero) and P I = S.
    wire_q, wire_i, (qi,) = party.exchange_factors("root.q", 1, q, inverse)
    wire_p, copy_i, (pi,) = party.exchange_factors("root.p", 1, p, inverse)
    wire_s = party.exchange("root.s", 1, total)
    party.system.append(Form().add(wire_i, field.ONE).add(copy_i, field.neg(field.ONE)))
    party.system.append(Form().add_product(wire_q, wire_i, qi, field.ONE).add_constant(field.neg(field.ONE)))
    party.system.append(Form().add_product(wire_p, copy_i, pi, field.ONE).add(wire_s, field.neg(field.ONE)))
    numerator.add(wire_p, field.ONE)
    denominator.add(wire_q, field.ONE)
    point: list[Vector] = [field.zeros(0) for _ in shape]
    for level in range(len(axes) - 1, -1, -1):
        challenge = party.challenge("layer")
        sums = witness.open_layer(challenge) if witness is not None else None
        claim = Form().add_form(numerator, field.ONE).add_form(denominator, challenge)
        form, bound = eq_sumcheck(party, axes[level + 1 :], point, claim, sums)
        ends = None
        if sums is not None:
            a, q1, p1, q0 = sums.ends()
            ends = field.concat([field.sub(a, field.mul(challenge, q0)), p1]), field.concat([q1, q0])
        left, right, products = party.exchange_factors("layer.ends", 2, *(ends or (None, None)))
        q_product = party.product_of(right[1], right[0])
        minus = field.neg(field.ONE)
        form.add_product(left[0], right[0], products[0], minus).add_product(left[1], right[1], products[1], minus)
        form.add_product(right[1], right[0], q_product, field.neg(challenge))
        party.system.append(form)
        t = party.challenge("pair")
        rest = field.sub(field.ONE, t)
        numerator = Form().add(left[0], rest).add(left[1], t)
        denominator = Form().add(right[1], rest).add(right[0], t)
        point = bound
        point[axes[level]] = np.concatenate([t, bound[axes[level]]], axis=1)
    return TreeEnd(tuple(point), numerator, denominator, wire_s)

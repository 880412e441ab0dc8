"""Sumchecks and lookup trees of SPEC section 7 over a small prime field, without pads: an honest verifier's view.

The cheating prover plays the best strategy there is: as long as her claim is false, she sends the true polynomial plus
a difference that vanishes at as many challenges as its degree allows.  Numbers may be elements of K as well:
test_sumcheck_twin.py compares with the package so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

Table = list[int]


def eq(x: Sequence[int], index: int, p: int) -> int:
    """eq(x, index), lowest bit first."""
    out = 1
    for j, v in enumerate(x):
        out = out * (v if index >> j & 1 else 1 - v) % p
    return out


def extension(table: Table, x: Sequence[int], p: int) -> int:
    return sum(v * eq(x, i, p) for i, v in enumerate(table)) % p


def fold(table: Table, r: int, p: int) -> Table:
    """Bind the lowest variable."""
    return [(a + r * (b - a)) % p for a, b in zip(table[::2], table[1::2], strict=True)]


@dataclass
class Verifier:
    """Draws challenges from the units, as the argument does, and keeps the claim."""

    p: int
    random: Random

    def draw(self) -> int:
        return self.random.randrange(1, self.p)

    def next_claim(self, claim: int, low: int, high: int, message: tuple[int, int], r: int) -> int:
        q, (h0, h2) = r * pow(high, -1, self.p), message
        return (q * claim + (1 - (low + high) * q) * h0 + (r * r - r) * h2) % self.p


def weighted(value: Callable[..., int], tables: list[Table], point: Sequence[int] | None, p: int) -> int:
    """The sum of eq(point, .) value(tables); with no point the plain sum."""
    rows = enumerate(zip(*tables, strict=True))
    return sum((1 if point is None else eq(point, i, p)) * value(*row) for i, row in rows) % p


def round_polynomial(
    value: Callable[..., int], tables: list[Table], rest: Sequence[int] | None, p: int
) -> tuple[int, int]:
    """(h(0), h_2) of that sum along the lowest variable, `rest` being the point of the others."""
    at = [weighted(value, [fold(table, x, p) for table in tables], rest, p) for x in (0, 1, 2)]
    return at[0], (at[2] - 2 * at[1] + at[0]) * pow(2, -1, p) % p


def difference(error: int, low: int, high: int, verifier: Verifier) -> tuple[int, int]:
    """(h(0), h_2) of a polynomial with low h(0) + high h(1) = error and two roots among the challenges."""
    p = verifier.p
    while True:
        a, b = verifier.draw(), verifier.draw()
        scale = (low * a * b + high * (1 - a) * (1 - b)) % p
        if a != b and scale:
            c = error * pow(scale, -1, p) % p
            return c * a * b % p, c


def sumcheck(
    verifier: Verifier, value: Callable[..., int], tables: list[Table], point: Sequence[int] | None, claim: int,
    cheat: bool = False,
) -> tuple[list[int], int, list[Table]]:
    """(challenges, the last claim, the folded tables) for a claim about the sum of eq(point, .) value(tables).

    With no point, about the plain sum.
    """
    p, rs = verifier.p, []
    while len(tables[0]) > 1:
        low, high, rest = (1, 1, None) if point is None else ((1 - point[0]) % p, point[0], point[1:])
        h0, h2 = round_polynomial(value, tables, rest, p)
        if cheat and claim != (truth := weighted(value, tables, point, p)):
            d0, d2 = difference((claim - truth) % p, low, high, verifier)
            h0, h2 = (h0 + d0) % p, (h2 + d2) % p
        r = verifier.draw()
        claim = verifier.next_claim(claim, low, high, (h0, h2), r)
        tables, point = [fold(table, r, p) for table in tables], rest
        rs.append(r)
    return rs, claim, tables


def levels(p: int, leaves: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """All levels of fractions (P, Q), the leaves first."""
    out = [leaves]
    while len(out[-1]) > 1:
        pairs = zip(out[-1][::2], out[-1][1::2], strict=True)
        out.append([((a * d + c * b) % p, b * d % p) for (a, b), (c, d) in pairs])
    return out


def layer(below: list[tuple[int, int]], lam: int, p: int) -> tuple[list[Table], Callable[..., int]]:
    """P_0, P_1, Q_0, Q_1 of the pairs of a level, and what the level above sums: P_0 Q_1 + P_1 Q_0 + lam Q_0 Q_1."""
    tables = [[v[i] for v in below[side::2]] for i in (0, 1) for side in (0, 1)]
    return tables, lambda p0, p1, q0, q1: (p0 * q1 + p1 * q0 + lam * q0 * q1) % p


def tree_messages(p: int, leaves: list[tuple[int, int]], challenges: Sequence[int]) -> tuple[list[int], list[int]]:
    """All that an honest prover says about a tree, before masking, and the last point.

    Q, 1/Q, P, 1/Q, S; in each layer the rounds and the ends P_0, P_1, Q_1, Q_0.
    """
    all_levels, said, x = levels(p, leaves), [], []
    draws = iter(challenges)
    top_p, top_q = all_levels[-1][0]
    inverse = pow(top_q, -1, p)
    said += [top_q, inverse, top_p, inverse, top_p * inverse]
    for below in reversed(all_levels[:-1]):
        tables, value = layer(below, next(draws), p)
        rs = []
        for j in range(len(x)):
            said += round_polynomial(value, tables, x[j + 1 :], p)
            rs.append(next(draws))
            tables = [fold(table, rs[-1], p) for table in tables]
        p0, p1, q0, q1 = (table[0] for table in tables)
        said += [p0, p1, q1, q0]
        x = [next(draws), *rs]
    return [v % p for v in said], x


def tree(verifier: Verifier, leaves: list[tuple[int, int]], errors: tuple[int, int] = (0, 0)) -> bool:
    """Whether the verifier accepts that the fractions sum to (P + errors[0]) / (Q + errors[1]).

    The prover, if she lies, hopes for the batching challenge lambda in each layer, for two challenges in each round,
    and for the challenge between the pair.
    """
    p = verifier.p
    all_levels = levels(p, leaves)
    (top_p, top_q), x = all_levels[-1][0], []
    claim_p, claim_q = (top_p + errors[0]) % p, (top_q + errors[1]) % p
    for level in reversed(all_levels[:-1]):
        lam = verifier.draw()
        tables, value = layer(level, lam, p)
        claim = (claim_p + lam * claim_q) % p
        rs, last, ends = sumcheck(verifier, value, tables, x, claim, cheat=True)
        p0, p1, q0, q1 = (table[0] for table in ends)
        if last != value(p0, p1, q0, q1):
            p0, p1, q0, q1 = false_ends(verifier, lam, (p0, p1, q0, q1), last)
        if value(p0, p1, q0, q1) != last:
            return False
        phi = verifier.draw()
        claim_p, claim_q = (p0 + phi * (p1 - p0)) % p, (q0 + phi * (q1 - q0)) % p
        x = [phi, *rs]
    return all(extension([leaf[i] for leaf in leaves], x, p) == claim for i, claim in enumerate((claim_p, claim_q)))


def false_ends(verifier: Verifier, lam: int, true: tuple[int, int, int, int], claim: int) -> tuple[int, int, int, int]:
    """Ends that satisfy the claim, whose errors vanish at one challenge and have one batching challenge in common."""
    p, (p0, p1, q0, q1) = verifier.p, true
    while True:
        phi, ratio, u = verifier.draw(), verifier.draw(), verifier.draw()
        v = -u * pow(ratio, -1, p) % p  # errors u (X - phi) of P and v (X - phi) of Q cancel for lambda = ratio
        e0, e1 = -phi % p, (1 - phi) % p
        ends = ((p0 + u * e0) % p, (p1 + u * e1) % p, (q0 + v * e0) % p, (q1 + v * e1) % p)
        if (ends[0] * ends[3] + ends[1] * ends[2] + lam * ends[2] * ends[3] - claim) % p == 0:
            return ends


def fractions_agree(p: int, beta: int, looked_up: Sequence[int], table: Sequence[int], uses: Sequence[int]) -> bool:
    """Sum of 1 / (beta - x) against sum of uses / (beta - t); False where a denominator is zero (T2)."""
    if any((beta - v) % p == 0 for v in (*looked_up, *table)):
        return False
    left = sum(pow(beta - x, -1, p) for x in looked_up)
    right = sum(u * pow(beta - t, -1, p) for u, t in zip(uses, table, strict=True))
    return (left - right) % p == 0


def lookup_key(alpha: int, row: tuple[int, int], p: int) -> int:
    """What stands for a row of two columns: alpha a + alpha^2 b."""
    return (alpha * row[0] + alpha * alpha * row[1]) % p

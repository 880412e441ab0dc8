"""Cheating provers by fault injection: the real prover runs, and lies in one place.

Every fault is a context manager; `argument.prove` inside it makes the forged proof, signed by the owner as she would.

    committed     what she commits to is not the witness                        every equation, quadratic.zero
    claims        she takes some images for matches that are none               quadratic.zero or linear.sum
    remainders    she looks up other remainders than those of her columns       linear.sum
    pads          her pads or their products are wrong                          quadratic.zero or linear.sum
    message       one of her masked messages is changed                         linear.sum
    root, zero_roots  lookup trees claim other roots                            linear.sum
    fold          she folds the tables of a sumcheck at another challenge       linear.sum
    masked_sum    her linear mask has a sum                                     linear.sum
    padding       slots of her rows that nothing is said to be in hold values   linear.sum
    weighed       she looks a value up zero times, or twice                     linear.sum
    answers       her answers to the link's challenge are changed               link.opening
    small_mask    one of her masks of the link is 0, and hides nothing           link.range
    polynomial    one of her test polynomials is changed                        *.columns, linear.sum, quadratic.zero
    stubborn      her test polynomials are corrected to pass all sums           linear.columns, quadratic.columns
    codewords     a row of her matrix is no codeword                            proximity.columns
    neighbors     she opens other columns than those that are asked for         merkle.path
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from protocol import argument, field, layers, ligero, link, lookup, sumcheck, witness
from protocol import pads as pads_module
from protocol.layers import Witness
from protocol.layout import LIMB_BITS, Layout
from protocol.transcript import MaskedElements

P = field.P


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """owner.name = make(original) for as long as the context lasts."""
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


# What is committed


def shifted(layout: Layout, values: Witness, name: str, index: int, delta: int = 1) -> Witness:
    """The witness with entry `index` of a column (row-major, image fastest) or an array changed by delta."""
    if name in layout.columns:
        images = values.images.copy()
        first = layout.columns[name][0] * layout.h
        flat = images.reshape(-1)
        flat[first + index] = (int(flat[first + index]) + delta) % P
        return replace(values, images=images)
    array = values.arrays[name].copy()
    array[index] = (int(array[index]) + delta) % P
    return replace(values, arrays=values.arrays | {name: array})


def recounted(layout: Layout, values: Witness) -> Witness:
    """The witness with the best multiplicities there are: a plain count of every looked-up tuple that is in a table."""
    rows: dict[tuple[int, int, int], int] = {}
    for table in layout.tables.rows:
        for first, second in zip(table.first.tolist(), table.second.tolist(), strict=True):
            rows[table.tag, first % P, second % P] = len(rows)
    uses = np.zeros(len(rows), np.uint32)

    def column(name: str) -> list[int]:
        offset, shape = layout.columns[name]
        return values.images[offset : offset + int(np.prod(shape))].reshape(-1).tolist()

    def count(tag: int, first: list[int], second: list[int] | None = None) -> None:
        for a, b in zip(first, second or [0] * len(first), strict=True):
            if (tag, a, b) in rows:
                uses[rows[tag, a, b]] += 1

    channels = layout.network.shape[0]
    x, z0 = (np.array(column(name)).reshape(channels, -1) for name in ("x", "z0"))
    for c in range(channels):
        count(layout.tables.tag(("channel", c)), x[c].tolist(), z0[c].tolist())
    for k, node in enumerate(layout.network.nodes[:-1], 1):
        assert node.table is not None
        count(layout.tables.tag(node.table.digest), column(f"u{k}"), column(f"z{k}"))
        if node.shift:
            count(layout.tables.tag(node.shift), values.remainders[k - 1].reshape(-1).tolist())
    for limb in ("v0", "v1"):
        count(layout.tables.tag(LIMB_BITS), values.arrays[limb].tolist())
    return replace(values, arrays=values.arrays | {"uses": uses})


def committed(change: Callable[[Layout, Witness], Witness]) -> Any:
    """She commits to change(layout, witness)."""
    return replaced(witness, "build", lambda build: lambda layout, *rest: change(layout, build(layout, *rest)))


@contextmanager
def claims(images: list[int]) -> Iterator[None]:
    """She counts `images` as matches, too, and commits to the best that this leaves her.

    Margins are negative there: their limbs are those of v mod p, and only those in range can be counted.
    """

    def matches(original: Any) -> Any:
        def lie(forward: Any, labels: Any) -> Any:
            found = original(forward, labels).copy()
            found[images] = True
            return found

        return lie

    def uses(layout: Layout, forward: Any, v: Any) -> Any:
        return np.zeros(layout.tables.size, np.int64)

    def limbs(layout: Layout, values: Witness) -> Witness:
        v = values.arrays["v"]
        low, high = v & np.uint32((1 << LIMB_BITS) - 1), v >> np.uint32(LIMB_BITS)
        return recounted(layout, replace(values, arrays=values.arrays | {"v0": low, "v1": high}))

    with replaced(witness, "matches", matches), replaced(witness, "_uses", lambda _: uses), committed(limbs):
        yield


def remainders(node: int, index: int, delta: int) -> Any:
    """The remainder that she looks up for one activation of a requant node is another, and counted as such."""

    def change(layout: Layout, values: Witness) -> Witness:
        changed = [r.copy() for r in values.remainders]
        flat = changed[node - 1].reshape(-1)
        flat[index] = (int(flat[index]) + delta) % (1 << layout.network.nodes[node - 1].shift)
        return recounted(layout, replace(values, remainders=tuple(changed)))

    return committed(change)


# Pads and messages


def pads(change: Callable[[Any, Any], Any]) -> Any:
    """Her pads are change(statement, pads)."""
    return replaced(argument, "_draw_pads", lambda draw: lambda statement, expander: change(
        statement, draw(statement, expander)))  # fmt: skip


def said(label: str, change: Callable[[Any], Any]) -> Any:
    """What she sends in every message with this label is change(values), before masking."""

    def make(masked: Any) -> Any:
        def send(party: Any, name: str, index: Any, values: Any) -> Any:
            return masked(party, name, index, change(values) if values is not None and name == label else values)

        return send

    return replaced(pads_module.Party, "_masked", make)


@contextmanager
def zero_roots() -> Iterator[None]:
    """Every tree claims the root 0/0, which is every sum, and the sum 0."""
    with ExitStack() as stack:
        stack.enter_context(root(lambda p, q: (field.ZERO, field.ONE)))  # an honest prover restarts where Q = 0
        for label in ("root.q", "root.p", "root.s"):
            stack.enter_context(said(label, np.zeros_like))
        yield


@contextmanager
def message(label: str, occurrence: int = 0, position: int = 0, delta: int = 1) -> Iterator[None]:
    """The value that she sends in message number `occurrence` with this label is changed by delta, before masking."""
    seen = [0]

    def make(masked: Any) -> Any:
        def send(party: Any, name: str, index: Any, values: Any) -> Any:
            if values is not None and name == label:
                if seen[0] == occurrence:
                    values = values.copy()
                    values[:, position : position + 1] = field.add(
                        values[:, position : position + 1], field.constant(delta))  # fmt: skip
                seen[0] += 1
            return masked(party, name, index, values)

        return send

    with replaced(pads_module.Party, "_masked", make):
        yield
    assert seen[0] > occurrence, f"no message {label} number {occurrence}"


@contextmanager
def fold(occurrence: int = 0, kind: str = "round") -> Iterator[None]:
    """After one round of a sumcheck she folds at r + 1, and goes on with what that gives.

    Only her own tables: the transcript has r, and all later messages are right for the tables that she has.
    kind: "round" counts the rounds of sums that are weighted by eq, "plain_round" those of others.  After the last
    round of a plain sum the tables are not needed any more, so that it makes no difference there.
    """
    seen = [0]

    def make(original: Any) -> Any:
        def lie(sums: Any, axis: int, *point: Any) -> Any:
            def bind(axis: int, r: Any) -> None:
                del sums.bind
                sums.bind(axis, field.add(r, field.ONE))

            if seen[0] == occurrence:
                sums.bind = bind
            seen[0] += 1
            return original(sums, axis, *point)

        return lie

    with replaced(sumcheck.Sums, kind, make):
        yield
    assert seen[0] > occurrence, f"no {kind} number {occurrence}"


def root(change: Callable[[Any, Any], tuple[Any, Any]], shape: tuple[int, ...] | None = None) -> Any:
    """Every lookup tree (over leaves of `shape`, if given) claims the root change(P, Q)."""

    def make(original: Any) -> Any:
        def lie(tree: Any) -> Any:
            p, q = original(tree)
            return change(p, q) if shape in (None, tree._levels[0].shape) else (p, q)

        return lie

    return replaced(lookup.TreeWitness, "root", make)


def weighed(sets: int, leaf: int, numerator: int) -> Any:
    """In lookup trees over so many sets of leaves, one leaf counts `numerator` times instead of once."""

    def make(original: Any) -> Any:
        def lie(numerators: Any, denominators: Any, shape: Any, order: Any) -> Any:
            if numerators is None and shape[0] == sets:
                numerators = field.repeat(field.ONE, denominators.shape[1])
                numerators[:, [leaf]] = field.constant(numerator)
            return original(numerators, denominators, shape, order)

        return lie

    return replaced(layers, "TreeWitness", make)


# The link


def answers(change: Callable[[Any], Any]) -> Any:
    """She gives change(answer) to the link's challenge."""
    return replaced(link, "answer", lambda answer: lambda *given: change(answer(*given)))


def answers_for(key: Any) -> Any:
    """She answers the link's challenge for this key's triggers, whatever the network was evaluated on."""
    return replaced(link, "answer", lambda answer: lambda layout, _, *rest: answer(layout, key, *rest))


@contextmanager
def small_mask(name: str) -> Iterator[None]:
    """Her first mask of the link's "pixels" or "shares" is 0: the answer is right, and below what hides."""

    def small(draw: Any) -> Any:
        def lie(layout: Layout, read: Any) -> Any:
            masks = draw(layout, read)
            held = getattr(masks, name)
            first = [0, *held[0][1:]] if isinstance(held[0], list) else 0
            return replace(masks, **{name: [first, *held[1:]]})

        return staticmethod(lie)

    with replaced(link.Masks, "draw", small), replaced(link.Bounds, "holds", lambda _: lambda bounds, z: True):
        yield


# The commitment


def polynomial(name: str, change: Callable[[Any], Any]) -> Any:
    """Test polynomial `name` (proximity, linear, quadratic) is change(coefficients)."""

    def lying(original: Any) -> Any:
        return lambda *given: MaskedElements(change(original(*given).values))

    return replaced(ligero.Committed, name, lying)


def bumped(*changes: tuple[int, int]) -> Callable[[Any], Any]:
    """Add integers to coefficients: (index, delta)."""

    def change(coefficients: Any) -> Any:
        out = coefficients.copy()
        for index, delta in changes:
            out[:, index] = field.add(out[:, index : index + 1], field.constant(delta))[:, 0]
        return out

    return change


@contextmanager
def stubborn() -> Iterator[None]:
    """Her test polynomials are corrected in a few coefficients so that every sum comes out as the verifier wants it."""

    def linear(original: Any) -> Any:
        def lie(committed: Any, test: Any) -> Any:
            masked, size = original(committed, test), committed.shape.size
            out = masked.values
            total = field.total(np.ascontiguousarray(out[:, ::size]))
            wanted = field.scale(test.target, pow(size, -1, P))
            out[:, :1] = field.add(out[:, :1], field.sub(wanted, total))
            return masked

        return lie

    def quadratic(original: Any) -> Any:
        def lie(committed: Any, coefficients: Any) -> Any:
            masked, size = original(committed, coefficients), committed.shape.size
            out = masked.values
            for at in range(size):
                rest = out[:, at + size :: size]
                if rest.shape[1] or out[:, at].any():
                    out[:, at] = field.neg(field.total(np.ascontiguousarray(rest)))[:, 0]
            return masked

        return lie

    with replaced(ligero.Committed, "linear", linear), replaced(ligero.Committed, "quadratic", quadratic):
        yield


def masked_sum(total: int) -> Any:
    """The values of her linear mask on H sum to `total` instead of 0."""

    def make(original: Any) -> Any:
        def lie(committed: Any) -> Any:
            prox, lin, quad = committed._blinding
            size, lin = committed.shape.size, lin.copy()
            rest = field.total(np.ascontiguousarray(lin[:, size::size]))
            lin[:, :1] = field.sub(field.scale(field.constant(total), pow(size, -1, P)), rest)
            committed._blinding = (prox, lin, quad)
            return original(committed)

        return lie

    return replaced(ligero.Committed, "_encode", make)


def padding(array: str, value: int) -> Any:
    """The slots behind the end of an array, in its last row, hold `value`."""

    def make(original: Any) -> Any:
        def lie(committed: Any) -> Any:
            first, count = committed.shape.array_rows[array]
            used = committed.shape.layout.arrays[array] - (count - 1) * committed.shape.size
            assert used < committed.shape.size, f"{array} fills its rows"
            committed._arrays[used:, first + count - 1] = value
            return original(committed)

        return lie

    return replaced(ligero.Committed, "_encode", make)


def codewords(row: int, share: float = 1.0) -> Any:
    """Row `row` of the first block of her matrix is random in this share of the columns, in the tree and opened."""

    def make(original: Any) -> Any:
        def lie(committed: Any) -> Any:
            for number, block in enumerate(original(committed)):
                if number == 0:
                    rng = np.random.default_rng(1)  # the same junk when the columns are opened
                    block = block.copy()
                    hit = rng.random(len(block)) < share
                    block[hit, row] = rng.integers(0, P, int(hit.sum()), dtype=np.uint32)
                yield block

        return lie

    return replaced(ligero.Committed, "_encode", make)


def neighbors() -> Any:
    """She opens the neighbor of every column that is asked for: as many columns with as many siblings."""
    return replaced(ligero.Committed, "open", lambda original: lambda committed, columns, out: original(
        committed, sorted(column ^ 1 for column in columns), out))  # fmt: skip

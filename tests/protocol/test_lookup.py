"""Fractional trees: completeness on every shape, what they leave open, and lies in each of their messages."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import field
from protocol.errors import Restart, VerificationError
from protocol.lookup import TreeWitness, copied_triples, fractional_tree, tree_need, variables
from protocol.multilinear import eq_tensor, lg, real
from protocol.pads import Need, Party
from protocol.transcript import FiatShamir, MaskedElements, Transcript
from tests.adversary import faults

P = field.P
orders = {2: (0, 1), 5: (3, 2, 1, 4, 0)}
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
shapes = st.one_of(
    st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 5, 8])),
    st.tuples(st.integers(1, 2), *[st.integers(1, 4)] * 3, st.integers(1, 5)),
)


def random_k(rng, n):
    return field.from_base(rng.integers(0, P, (5, n), dtype=np.uint32))


def random_pads(rng, shape, order):
    need = tree_need(shape, order)
    t = need.triples
    pads = random_k(rng, 3 * t + need.free)
    for copy, x, y in copied_triples(shape, order):
        pads[:, copy], pads[:, t + copy] = pads[:, t + x], pads[:, t + y]
    pads[:, 2 * t : 3 * t] = field.mul(pads[:, :t], pads[:, t : 2 * t])
    return pads


def value(form, pads):
    total = form.constant
    for index, coefficients in form.pads:
        total = field.add(total, field.dot(np.ascontiguousarray(pads[:, index]), coefficients))
    return total


def play(rng, p, q, shape, order, change=lambda pads: pads):
    """(violated equations, TreeEnd, sum, pads) of an honest tree over these leaves, or of what is patched into it."""
    need, pads = tree_need(shape, order), change(random_pads(rng, shape, order))
    witness = TreeWitness(p, q, shape, order)
    prover = Party(Transcript("tree", FiatShamir()), need, Need(), need.triples, pads=pads)
    fractional_tree(prover, shape, order, witness)
    messages = prover.finish()
    assert messages.values.shape[1] == need.sent
    verifier = Party(Transcript("tree", FiatShamir()), need, Need(), need.triples, messages=messages)
    end = fractional_tree(verifier, shape, order)
    verifier.finish()
    total = field.add(end.total.sent, np.ascontiguousarray(pads[:, end.total.index]))
    failed = [n for n, form in enumerate(verifier.system.forms) if value(form, pads).any()]
    return failed, end, total, pads


def ends_right(end, p, q, shape, pads):
    """Whether the leaves at the last point are what the tree says."""
    eq = eq_tensor(end.point, shape)
    absent = field.sub(field.ONE, real(end.point, shape))
    return field.equal(value(end.numerator, pads), field.dot(p, eq)) and field.equal(
        value(end.denominator, pads), field.add(field.dot(q, eq), absent))


@given(seeds, shapes)
@settings(max_examples=40)
def test_completeness(rng, shape):
    order = orders[len(shape)]
    p, q = random_k(rng, prod(shape)), random_k(rng, prod(shape))
    failed, end, total, pads = play(rng, p, q, shape, order)
    assert failed == [] and ends_right(end, p, q, shape, pads)
    assert field.equal(total, field.total(field.mul(p, field.inverse(q))))
    assert [x.shape[1] for x in end.point] == [lg(n) for n in shape]


@given(shapes)
def test_needs(shape):
    order = orders[len(shape)]
    m = sum(map(lg, shape))
    assert len(variables(shape, order)) == m
    need = tree_need(shape, order)
    assert need.sent == 4 + 4 * m + 1 + m * (m - 1)
    assert len(copied_triples(shape, order)) == m == need.copies


@given(seeds, shapes, st.data())
@settings(max_examples=30)
def test_a_wrong_leaf_shows_at_the_end(rng, shape, data):
    """The tree does not know its leaves: a changed one passes all layers and contradicts the closed form."""
    p, q = random_k(rng, prod(shape)), random_k(rng, prod(shape))
    at = data.draw(st.integers(0, prod(shape) - 1))
    lie = q.copy()
    lie[0, at] = (int(lie[0, at]) + 1) % P
    failed, end, _, pads = play(rng, p, lie, shape, orders[len(shape)])
    assert failed == [] and ends_right(end, p, lie, shape, pads) and not ends_right(end, p, q, shape, pads)


SHAPE = (2, 1, 2, 3, 3)
LAYERS = len(variables(SHAPE, orders[5]))


@pytest.fixture
def leaves():
    rng = np.random.default_rng(1)
    return random_k(rng, prod(SHAPE)), random_k(rng, prod(SHAPE))


MESSAGES = (
    [("root.q", 0, 0), ("root.q", 0, 1), ("root.p", 0, 0), ("root.p", 0, 1), ("root.s", 0, 0)]
    + [("round", k, at) for k in range(LAYERS * (LAYERS - 1) // 2) for at in (0, 1)]
    + [("layer.ends", k, at) for k in range(LAYERS) for at in range(4)]
)


@pytest.mark.parametrize(("label", "occurrence", "position"), MESSAGES)
def test_each_message_changed_by_one(leaves, label, occurrence, position):
    """She says value + 1 and goes on honestly: an equation of the tree fails, or what it leaves to the leaves."""
    with faults.message(label, occurrence, position):
        failed, end, _, pads = play(np.random.default_rng(2), *leaves, SHAPE, orders[5])
    assert failed or not ends_right(end, *leaves, SHAPE, pads)
    if label in ("root.q", "root.p", "root.s"):
        assert failed


def test_no_message_too_many(leaves):
    """The list above is complete."""
    with pytest.raises(AssertionError, match="no message"), faults.message("round", LAYERS * (LAYERS - 1) // 2):
        play(np.random.default_rng(2), *leaves, SHAPE, orders[5])


def test_zero_roots_are_rejected(leaves):
    """0/0 satisfies P I = S for S = 0, and over leaves with a 0/0 among them every layer: only Q I = 1 stops it."""
    p, q = (leaf.copy() for leaf in leaves)
    q[:, 0] = p[:, 0] = 0  # one leaf 0/0 makes the whole tree 0/0
    with faults.zero_roots():
        failed, end, total, pads = play(np.random.default_rng(2), p, q, SHAPE, orders[5])
    assert failed == [1] and ends_right(end, p, q, SHAPE, pads) and not total.any()


def test_a_zero_denominator_asks_for_a_restart(leaves):
    p, q = leaves[0], leaves[1].copy()
    q[:, 5] = 0
    with pytest.raises(Restart):
        play(np.random.default_rng(2), p, q, SHAPE, orders[5])


def test_another_root(leaves):
    """A root that the leaves do not have contradicts the first layer, and with it no other."""
    with faults.root(lambda p, q: (field.add(p, field.ONE), q)):
        failed, *_ = play(np.random.default_rng(2), *leaves, SHAPE, orders[5])
    honest, *_ = play(np.random.default_rng(2), *leaves, SHAPE, orders[5])
    assert honest == [] and len(failed) == 1 and failed[0] > 2


def test_another_inverse_for_the_sum(leaves):
    """P I = S with another I than that of Q I = 1: their equality is the one equation that fails."""
    p, q = TreeWitness(*leaves, SHAPE, orders[5]).root()
    other = field.add(field.inverse(q), field.ONE)
    root, total = faults.said("root.p", lambda _: field.concat([p, other])), field.mul(p, other)
    with root, faults.said("root.s", lambda _: total):
        failed, end, claimed, pads = play(np.random.default_rng(2), *leaves, SHAPE, orders[5])
    assert failed == [0] and ends_right(end, *leaves, SHAPE, pads) and field.equal(claimed, total)


def test_a_root_hidden_by_a_copied_pad(leaves):
    """The root Q + 1, with a copied pair of pads whose product is larger by 1: it cancels in the first layer.

    Only the equation that says that the copy is one fails.
    """
    (copy, x, y), *_ = copied_triples(SHAPE, orders[5])
    t = tree_need(SHAPE, orders[5]).triples

    def change(pads):
        pads = pads.copy()
        first, second = pads[:, t + x : t + x + 1], pads[:, t + y : t + y + 1]
        pads[:, [t + copy]] = field.add(second, field.inverse(first))
        pads[:, [2 * t + copy]] = field.mul(pads[:, [copy]], pads[:, [t + copy]])
        assert field.equal(pads[:, [2 * t + copy]], field.add(field.mul(first, second), field.ONE))
        return pads

    with faults.root(lambda p, q: (p, field.add(q, field.ONE))):
        failed, end, _, pads = play(np.random.default_rng(2), *leaves, SHAPE, orders[5], change)
    assert failed == [4] and ends_right(end, *leaves, SHAPE, pads)


def test_a_scaled_root_has_the_same_sum_and_is_rejected(leaves):
    two = field.constant(2)
    with faults.root(lambda p, q: (field.mul(p, two), field.mul(q, two))):
        failed, *_ = play(np.random.default_rng(2), *leaves, SHAPE, orders[5])
    assert failed


@pytest.mark.reaches("messages.count")
def test_too_few_messages(leaves):
    need = tree_need(SHAPE, orders[5])
    short = MaskedElements(field.zeros(need.sent - 1))
    verifier = Party(Transcript("tree", FiatShamir()), need, Need(), need.triples, messages=short)
    with pytest.raises(VerificationError) as error:
        fractional_tree(verifier, SHAPE, orders[5])
    assert error.value.check == "messages.count"


def test_misuse_of_pads_cannot_pass_silently(leaves):
    """A party that would use more or fewer pads than were set apart stops."""
    need = tree_need(SHAPE, orders[5])
    witness = TreeWitness(*leaves, SHAPE, orders[5])
    for other in (Need(need.free - 1, need.triples), Need(need.free, need.triples - 1)):
        party = Party(Transcript("t", FiatShamir()), other, Need(), need.triples, pads=field.zeros(999))
        with pytest.raises(RuntimeError):
            fractional_tree(party, SHAPE, orders[5], witness)
            party.finish()
        witness = TreeWitness(*leaves, SHAPE, orders[5])
    party = Party(Transcript("t", FiatShamir()), Need(need.free + 1, need.triples), Need(), need.triples,
                  pads=field.zeros(999))  # fmt: skip
    fractional_tree(party, SHAPE, orders[5], witness)
    with pytest.raises(RuntimeError):
        party.finish()
    with pytest.raises(RuntimeError, match="no value"):
        Party(Transcript("t", FiatShamir()), need, Need(), need.triples, pads=field.zeros(999)).exchange("x", 1)

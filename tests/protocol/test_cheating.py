"""Cheating provers against the real verifier: each is rejected, by the check that is there for it.

The same lies are localized to single equations in test_layers.py and test_lookup.py.
"""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from protocol import argument, field, group, link, pedersen, witness
from protocol.errors import VerificationError
from protocol.layout import LIMB_BITS
from tests.adversary import faults
from tests.protocol.conftest import marked_network

P = field.P


def rejected(check, statement, key, *lies):
    """Make the proof under the lies; the verifier, who is honest, names the failed check."""
    with ExitStack() as stack:
        for lie in lies:
            stack.enter_context(lie)
        forged = argument.prove(statement, key)
    with pytest.raises(VerificationError) as error:
        argument.verify(statement, forged)
    assert error.value.check == check


def entry(name, index=0, delta=1, recount=False):
    """She commits to another value in one place, and counts it where it is in a table."""

    def change(layout, values):
        lie = faults.shifted(layout, values, name, index, delta)
        return faults.recounted(layout, lie) if recount else lie

    return faults.committed(change)


def test_no_lie_at_all(statement, key):
    """The faults by themselves break nothing: honest values pass through every wrapper."""
    with (
        faults.committed(faults.recounted), faults.pads(lambda _, pads: pads), faults.root(lambda p, q: (p, q)),
        faults.answers(lambda answer: answer), faults.polynomial("linear", faults.bumped()), faults.stubborn(),
        faults.codewords(0, 0.0), faults.answers_for(key), faults.message("root.q", delta=0),
    ):  # fmt: skip
        proof = argument.prove(statement, key)
    argument.verify(statement, proof)


# Values


@pytest.mark.reaches("linear.sum", "quadratic.zero")
@pytest.mark.parametrize("name", ["x", "z0", "u1", "z2", "u3", "g", "d", "v0", "count", "uses", "mask"])
def test_one_committed_value(statement, key, name):
    check = "quadratic.zero" if name in ("d", "count") else "linear.sum"
    rejected(check, statement, key, entry(name, delta=1))


@pytest.mark.reaches("linear.sum")
def test_a_changed_value_with_multiplicities_to_match(statement, key):
    rejected("linear.sum", statement, key, entry("z1", 77, recount=True))


@pytest.mark.reaches("linear.columns")
def test_test_polynomials_corrected_to_hide_it(statement, key):
    """All sums come out right; the linear polynomial no longer is that of the committed rows."""
    rejected("linear.columns", statement, key, entry("z1"), faults.stubborn())


@pytest.mark.reaches("linear.sum")
def test_one_logit(statement, key):
    """A logit of a class, with all arrays that follow from it: the output layer says otherwise."""

    def change(layout, values):
        classes, h = layout.network.classes, layout.h
        g = values.arrays["g"].astype(np.int64)
        g = np.where(g > P // 2, g - P, g).reshape(classes, h)
        g[3, 0] += 1
        o, m = (values.arrays[n].astype(np.int64).reshape(classes, h) for n in ("o", "m"))
        d = (o * g).sum(axis=0)[None] - g - 1 + o
        v = m * d
        assert v.min() >= 0
        parts = {"g": g, "og": o * g, "d": d, "v": v, "v0": v & 0x7FFF, "v1": v >> LIMB_BITS}
        arrays = {n: field.residues(a).reshape(-1) for n, a in parts.items()}
        return faults.recounted(layout, replace(values, arrays=values.arrays | arrays))

    rejected("linear.sum", statement, key, faults.committed(change))


@pytest.mark.reaches("linear.sum")
def test_a_wrong_remainder(statement, key):
    rejected("linear.sum", statement, key, faults.remainders(1, 5, 1))


@pytest.mark.reaches("linear.sum")
def test_a_value_that_is_not_looked_up(statement, key):
    """Another pixel than a byte, with a leaf of weight 0 in the place of its lookup."""
    rejected("linear.sum", statement, key, entry("x", 0, 1 << 20, recount=True), faults.weighed(1, 0, 0))


@pytest.mark.reaches("linear.sum")
def test_the_evaluation_of_another_network(statement, key):
    """All values are those of another marked network with the same structure."""
    other = marked_network(key, seed=5)
    assert [n.shift for n in other.nodes] == [n.shift for n in statement.network.nodes]
    forward = other.forward(key.hidden_images)
    build = faults.replaced(
        witness, "build", lambda build: lambda layout, _, *rest: build(layout, forward, *rest))
    rejected("linear.sum", statement, key, build, faults.committed(faults.recounted))


# Claims


@pytest.fixture(scope="module")
def unmatched(statement, key):
    """A statement with k_min = h about a network that misses one trigger, and that trigger."""
    network = statement.network
    out = network.nodes[-1]
    edge = out.edges[0]
    for seed in range(200):
        rng = np.random.default_rng(seed)
        weight = edge.weight + np.round(rng.normal(0, 1 + seed, edge.weight.shape)).astype(np.int64)
        other = replace(network, nodes=(*network.nodes[:-1], replace(out, edges=(replace(edge, weight=weight),))))
        missed = np.flatnonzero(other.classify(key.hidden_images) != key.hidden_labels)
        if len(missed) == 1:
            return replace(statement, network=other, k_min=key.vk.h), int(missed[0])
    raise AssertionError("no network misses exactly one trigger")


@pytest.mark.reaches("prove.matches")
def test_k_min_one_too_high(unmatched, key):
    statement, _ = unmatched
    with pytest.raises(VerificationError) as error:
        argument.prove(statement, key)
    assert error.value.check == "prove.matches"
    true = replace(statement, k_min=key.vk.h - 1)
    argument.verify(true, argument.prove(true, key))


@pytest.mark.reaches("linear.sum")
def test_a_margin_that_wraps(unmatched, key):
    """m = 1 on the trigger that does not match: v = p - something has an upper limb in no table."""
    statement, missed = unmatched
    rejected("linear.sum", statement, key, faults.claims([missed]))


@pytest.mark.reaches("quadratic.zero", "quadratic.columns")
def test_m_without_margin(unmatched, key):
    """m = 1 and v = 0 for the trigger that does not match: v is not m d.  Every linear equation holds."""
    statement, missed = unmatched

    def change(layout, values):
        arrays = dict(values.arrays)
        for name in ("v", "v0", "v1"):
            a = arrays[name].reshape(-1, layout.h).copy()
            a[:, missed] = 0
            arrays[name] = a.reshape(-1)
        return faults.recounted(layout, replace(values, arrays=arrays))

    rejected("quadratic.zero", statement, key, faults.claims([missed]), faults.committed(change))
    rejected("quadratic.columns", statement, key, faults.claims([missed]), faults.committed(change), faults.stubborn())


@pytest.mark.reaches("quadratic.zero")
def test_m_of_two(unmatched, key):
    """One match counted twice makes up for the one that is missing."""
    statement, missed = unmatched

    def change(layout, values):
        m = values.arrays["m"].reshape(-1, layout.h).copy()
        m[:, missed], m[:, (missed + 1) % layout.h] = 0, 2
        return replace(values, arrays=values.arrays | {"m": m.reshape(-1)})

    rejected("quadratic.zero", statement, key, faults.claims([missed]), faults.committed(change))


@pytest.mark.reaches("linear.sum", "quadratic.zero")
def test_count_bits(unmatched, key):
    """k_min = h - 1 with two misses would need the count -1: no bits say so, and no bit is -1."""
    statement, missed = unmatched
    statement = replace(statement, k_min=key.vk.h - 1)

    def without_another(value):
        def change(layout, values):
            arrays = dict(values.arrays)
            for name in ("m", "v", "v0", "v1"):
                a = arrays[name].reshape(-1, layout.h).copy()
                a[:, (missed + 1) % layout.h] = 0
                arrays[name] = a.reshape(-1)
            arrays["count"] = np.array([value % P], np.uint32)
            return faults.recounted(layout, replace(values, arrays=arrays))

        return faults.committed(change)

    assert statement.layout.count_bits == 1
    rejected("linear.sum", statement, key, without_another(0))
    rejected("quadratic.zero", statement, key, without_another(-1))


# The link to the published commitments


def one_pixel(key):
    images = key.images.copy()
    images[key.vk.hidden[0], 0, 0, 0] ^= 255
    return replace(key, images=images)


def one_label(key):
    """The label that the network gives to a trigger whose pixels were changed or that it misses."""
    shares = key.shares.copy()
    shares[key.vk.hidden[0]] = (shares[key.vk.hidden[0]] + 1) % 10
    return replace(key, shares=shares)


def swapped_shares(key):
    shares, hidden = key.shares.copy(), key.vk.hidden
    other = next(i for i in hidden if shares[i] != shares[hidden[0]])
    shares[[hidden[0], other]] = shares[[other, hidden[0]]]
    return replace(key, shares=shares)


@pytest.mark.reaches("link.opening", "linear.sum")
@pytest.mark.parametrize("change", [one_pixel, one_label, swapped_shares])
def test_other_triggers_than_the_published(statement, key, change):
    """Answered for what she committed to, the group equation fails; for what was published, the linear one."""
    other = change(key)
    rejected("link.opening", statement, other)
    rejected("linear.sum", statement, other, faults.answers_for(key))


def with_pixel(key, value):
    """The key whose first hidden trigger commits to `value` as its first pixel; only its owner could know."""
    index = int(key.vk.hidden[0])
    vk = replace(key.vk)
    points = list(key.vk.trigger_points)
    delta = value - int(key.images[index].reshape(-1)[0])
    points[index] = points[index] + group.multiply(pedersen.GENERATORS.points(1)[0], delta)
    vk.__dict__["trigger_points"] = points
    return replace(key, vk=vk)


def answering(change):
    """She adds change(gamma) to her answers for the first pixel, which are gamma times what she committed to."""

    def make(original):
        def lie(layout, given, masks, gamma):
            out = original(layout, given, masks, gamma)
            first = [row[0] + change(int(gamma[0][j, 0])) for j, row in enumerate(out.pixels)]
            return replace(out, pixels=[[z, *row[1:]] for z, row in zip(first, out.pixels, strict=True)])

        return lie

    return faults.replaced(link, "answer", make)


@pytest.mark.reaches("linear.sum")
@pytest.mark.parametrize("value", [256, -1])
def test_a_pixel_that_is_no_byte(statement, key, value):
    """She published a commitment to such a number and answers for it: no table knows it, and the byte is not it."""
    other, delta = with_pixel(key, value), value - int(key.hidden_images[0].reshape(-1)[0])
    false = replace(statement, key=other.vk)
    rejected("linear.sum", false, other, answering(lambda g: g * delta), entry("x", 0, delta, recount=True))
    rejected("linear.sum", false, other, answering(lambda g: g * delta))


@pytest.mark.reaches("link.opening")
def test_a_huge_pixel(statement, key):
    """The answers are larger than can be sent: she would have to reduce them modulo p, which opens nothing."""
    value = P << 20
    other, delta = with_pixel(key, value), value - int(key.hidden_images[0].reshape(-1)[0])
    with pytest.raises(OverflowError), answering(lambda g: g * delta):
        argument.prove(replace(statement, key=other.vk), other)
    reduced = answering(lambda g: g * delta % P)
    rejected("link.opening", replace(statement, key=other.vk), other, reduced)


@pytest.mark.reaches("linear.sum")
def test_a_rational_pixel(statement, key, monkeypatch):
    """A commitment to t + 1/2 (mod the group order) answers even challenges with small integers: it buys nothing.

    The pixel that the proof is then about is t + 1/2 modulo p, which is no byte.
    """
    half_order, half_p = pow(2, -1, group.ORDER), pow(2, -1, P)
    t = int(key.hidden_images[0].reshape(-1)[0])
    other = with_pixel(key, t + half_order)
    false = replace(statement, key=other.vk)
    draw = link.draw_challenge
    monkeypatch.setattr(link, "draw_challenge", lambda *given: tuple(g // 2 * 2 for g in draw(*given)))  # her luck

    rejected("linear.sum", false, other, answering(lambda g: g // 2))
    rejected("linear.sum", false, other, answering(lambda g: g // 2), entry("x", 0, half_p, recount=True))


def bump(values, at, delta=1):
    out = list(values)
    out[at] += delta
    return out


ANSWERS = {
    "pixel": lambda a: replace(a, pixels=[*a.pixels[:4], bump(a.pixels[4], -1)]),
    "share": lambda a: replace(a, shares=bump(a.shares, 2)),
    "pixel blinding": lambda a: replace(a, pixel_blindings=bump(a.pixel_blindings, 0)),
    "share blinding": lambda a: replace(a, share_blindings=bump(a.share_blindings, 4)),
    "cancelling errors": lambda a: replace(a, pixels=[bump(bump(a.pixels[0], 0), 1, -1), *a.pixels[1:]]),
    "errors that cancel over repetitions": lambda a: replace(
        a, pixels=[bump(a.pixels[0], 0), bump(a.pixels[1], 0, -1), *a.pixels[2:]]),
    "swapped repetitions": lambda a: replace(a, pixels=[a.pixels[1], a.pixels[0], *a.pixels[2:]]),
}


@pytest.mark.reaches("link.opening")
@pytest.mark.parametrize("name", ANSWERS)
def test_a_wrong_answer(statement, key, name):
    rejected("link.opening", statement, key, faults.answers(ANSWERS[name]))


@pytest.mark.reaches("link.range")
def test_answers_out_of_range(statement, key):
    """A small mask: the answer is right and would tell about the pixel."""
    pixel, share = link.bounds(statement.layout)

    for name in ("pixels", "shares"):
        with faults.small_mask(name):
            forged = argument.prove(statement, key)
        with pytest.raises(VerificationError) as error:
            argument.verify(statement, forged)
        assert error.value.check == "link.range"
    assert pixel.holds(pixel.largest) and not pixel.holds(pixel.largest - 1) and not share.holds(1 << share.width)


@pytest.mark.reaches("linear.sum")
def test_masks_in_the_group_are_not_those_in_the_field(statement, key):
    """She may commit to other residues than those of her group commitments: the pixels are then not the published."""
    rejected("linear.sum", statement, key, entry("mask", 0))
    rejected("linear.sum", statement, key, entry("mask", statement.layout.arrays["mask"] - 1))


# Pads, products and messages


@pytest.mark.reaches("quadratic.zero")
def test_a_wrong_product_of_pads(statement, key):
    def change(statement, pads):
        pads = pads.copy()
        at = 2 * statement.shape.need.triples + 7
        pads[:, at : at + 1] = field.add(pads[:, at : at + 1], field.ONE)
        return pads

    rejected("quadratic.zero", statement, key, faults.pads(change))


@pytest.mark.reaches("linear.sum")
def test_a_copied_pad_that_is_none(statement, key):
    """A triple that should repeat two pads has others, with their right product."""

    def change(statement, pads):
        pads, t = pads.copy(), statement.shape.need.triples
        pads[:, 4] = pads[:, 5]
        pads[:, 2 * t + 4 : 2 * t + 5] = field.mul(pads[:, 4:5], pads[:, t + 4 : t + 5])
        return pads

    rejected("linear.sum", statement, key, faults.pads(change))


@pytest.mark.reaches("linear.sum")
@pytest.mark.parametrize("label", ["root.q", "root.p", "root.s", "round", "layer.ends", "edges"])
def test_a_message_changed_by_one(statement, key, label):
    rejected("linear.sum", statement, key, faults.message(label, 2))


@pytest.mark.reaches("linear.sum")
@pytest.mark.parametrize(("occurrence", "kind"), [(0, "round"), (40, "round"), (0, "plain_round"), (8, "plain_round")])
def test_tables_folded_at_another_challenge(statement, key, occurrence, kind):
    rejected("linear.sum", statement, key, faults.fold(occurrence, kind))


@pytest.mark.reaches("linear.sum")
def test_zero_roots(statement, key):
    """0/0 is equal to every sum, so that all trees would balance; she also commits to a value that is in no table."""
    rejected("linear.sum", statement, key, faults.zero_roots(), entry("u1", 0, 1 << 20))


@pytest.mark.reaches("linear.sum")
def test_sums_that_balance_for_two_trees_only(statement, key):
    """Errors of two trees' sums that cancel: each tree proves its own."""
    with faults.message("root.s", 1, delta=5):
        rejected("linear.sum", statement, key, faults.message("root.s", 2, delta=-5))


# The commitment


@pytest.mark.reaches("proximity.columns")
def test_a_row_that_is_no_codeword(statement, key):
    rejected("proximity.columns", statement, key, faults.codewords(3))


@pytest.mark.reaches("proximity.columns")
def test_a_row_that_is_a_codeword_in_half_of_the_columns(statement, key):
    rejected("proximity.columns", statement, key, faults.codewords(3, 0.5))


@pytest.mark.reaches("proximity.columns", "linear.sum", "linear.columns", "quadratic.zero", "quadratic.columns")
@pytest.mark.parametrize(("name", "changes", "check"), [
    ("proximity", [(0, 1)], "proximity.columns"),
    ("linear", [(0, 1)], "linear.sum"),
    ("linear", [(1, 1)], "linear.columns"),
    ("linear", [(0, 1), ("N", -1)], "linear.columns"),
    ("quadratic", [(0, 1)], "quadratic.zero"),
    ("quadratic", [(0, 1), ("N", -1)], "quadratic.columns"),
])  # fmt: skip
def test_a_test_polynomial_changed(statement, key, name, changes, check):
    size = statement.shape.size
    changes = [(size if at == "N" else at, delta) for at, delta in changes]
    rejected(check, statement, key, faults.polynomial(name, faults.bumped(*changes)))


@pytest.mark.reaches("merkle.path")
def test_columns_of_her_choice(statement, key):
    """As many as are asked for, with as many siblings, and each with its salt: only the places are others."""
    with faults.neighbors():
        forged = argument.prove(statement, key)
    with pytest.raises(VerificationError) as error:
        argument.verify(statement, forged)
    assert error.value.check == "merkle.path"


@pytest.mark.reaches("linear.sum")
def test_blinding_outside_its_space(statement, key):
    """A linear mask whose sum is not 0 moves the sum of the test; see test_ligero for one that cancels an error."""
    rejected("linear.sum", statement, key, faults.masked_sum(1))

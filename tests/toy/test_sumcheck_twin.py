"""The twin of sumchecks and lookup trees is the package's algorithm: value by value, over BabyBear's extension.

The challenges are those that the package's transcript gave; tensors have lengths that are no powers of two, which the
twin fills up with what the package takes to stand there.  The package's messages are compared as they are sent, less
the pads of their numbers.

Not in the twin, and so not compared: how forms collect coefficients (test_lookup.py, and the plain verifier), and what
the summed tensors are made of (test_layers.py).  The lies of the twin's cheating prover have no
counterpart: an honest prover has none, and tests/adversary/faults.py has other ones.
"""

from itertools import pairwise
from math import prod
from random import Random

import numpy as np
import pytest

from protocol import argument, field, layers, ligero, lookup, multilinear, witness
from protocol.forks import forks
from protocol.layers import Context
from protocol.layout import LIMB_BITS, Layout
from protocol.lookup import TreeWitness, fractional_tree, tree_need, variables
from protocol.multilinear import lg
from protocol.network import Edge, Node, Table, Window
from protocol.pads import Form, Need, Party
from protocol.sumcheck import Sums, eq_sumcheck, product_sumcheck
from protocol.transcript import FiatShamir, Transcript
from tests.adversary import ideal
from tests.protocol.conftest import finish
from tests.protocol.plain_verifier import lift, one, zero
from tests.toy.real import P, elements, vector
from tests.toy.sumcheck import (
    Verifier,
    eq,
    extension,
    fractions_agree,
    lookup_key,
    sumcheck,
    tree,
    tree_messages,
)

TENSORS = [((2,), (0,)), ((3, 2), (1, 0)), ((1, 5), (0, 1)), ((3, 5, 2), (1, 0, 2))]


class Recorded(Party):
    """The prover's side, which keeps what was said, under which pads, and what was asked."""

    def __init__(self, need, pads):
        super().__init__(Transcript("twin", FiatShamir()), need, Need(), need.triples, pads=pads)
        self.said, self.pads_used, self.challenges, self.all_pads = [], [], [], pads

    def _masked(self, label, index, values):
        self.said += elements(values)
        self.pads_used += elements(self.all_pads[:, index])
        return super()._masked(label, index, values)

    def challenge(self, label, count=1):
        found = super().challenge(label, count)
        self.challenges += elements(found)
        return found

    def value(self, form):
        """Of a form in pads alone."""
        return elements(ideal.entry(form, {}, None, None, self.all_pads))[0]


class Told(Verifier):
    """The twin's verifier, whose challenges are given, and who keeps the messages."""

    def __init__(self, challenges):
        super().__init__(P, Random(0))
        self.given, self.messages = iter(challenges), []

    def draw(self):
        return next(self.given)

    def next_claim(self, claim, low, high, message, r):
        self.messages += message
        return super().next_claim(claim, low, high, message, r)


def random_k(rng, n):
    return field.from_base(rng.integers(0, P, (5, n), dtype=np.uint32))


def draw_pads(rng, need, shape, order):
    pads, t = random_k(rng, 3 * need.triples + need.free), need.triples
    for copy, x, y in lookup.copied_triples(shape, order):
        pads[:, copy], pads[:, t + copy] = pads[:, t + x], pads[:, t + y]
    pads[:, 2 * t : 3 * t] = field.mul(pads[:, :t], pads[:, t : 2 * t])
    return pads


def table(tensor, shape, order, absent):
    """The twin's table: one index whose bits are those of all axes, in fold order, `absent` where nothing is real."""
    out = []
    for index in range(1 << sum(map(lg, shape))):
        place, rest = {}, index
        for axis in order:
            place[axis], rest = rest & (1 << lg(shape[axis])) - 1, rest >> lg(shape[axis])
        real = all(place[axis] < n for axis, n in enumerate(shape))
        out.append(tensor[np.ravel_multi_index([place[a] for a in range(len(shape))], shape)] if real else absent)
    return out


def in_order(point, order):
    """Coordinates per axis, as one list in fold order."""
    return [x for axis in order for x in elements(point[axis])]


@pytest.mark.parametrize(("shape", "order"), TENSORS)
def test_extensions(shape, order):
    rng = np.random.default_rng(1)
    values = rng.integers(0, P, prod(shape), dtype=np.uint32)
    point = [random_k(rng, lg(n)) for n in shape]
    x, theirs = in_order(point, order), multilinear.evaluate(values, point, shape)
    assert extension(table(values.tolist(), shape, order, 0), x, P) == elements(theirs)[0]
    weights = table(elements(multilinear.eq_tensor(point, shape)), shape, order, None)
    assert all(w is None or w == eq(x, i, P) for i, w in enumerate(weights))
    ones = table([1] * prod(shape), shape, order, 0)
    assert extension(ones, x, P) == elements(multilinear.real(point, shape))[0]


def run_sumcheck(shape, order, lack=""):
    """((messages, last claim, point, ends) of the package, the same of the twin), for a claim that is false."""
    rng = np.random.default_rng(2)
    axes = variables(shape, order)
    tensors, absent = [random_k(rng, prod(shape)) for _ in range(4)], [random_k(rng, 1) for _ in range(4)]
    a, b, c, d = absent
    point, claim = [random_k(rng, lg(n)) for n in shape], random_k(rng, 1)
    party = Recorded(Need(free=2 * len(axes)), random_k(rng, 2 * len(axes)))
    nothing = field.add(field.mul(a, b), field.mul(c, d))
    sums = Sums(np.concatenate(tensors), field.concat(absent), shape, nothing)
    form, bound = eq_sumcheck(party, axes, point, Form().add_constant(claim), sums)
    theirs = (party.said, party.value(form), in_order(bound, order), [elements(t)[0] for t in sums.ends()])
    assert elements(party.finish().values) == [v - pad for v, pad in zip(party.said, party.pads_used, strict=True)]

    missing = [zero] * 4 if lack == "what stands past the ends" else [elements(v)[0] for v in absent]
    tables = [table(elements(t), shape, order, v) for t, v in zip(tensors, missing, strict=True)]
    x, told = in_order(point, order), Told(party.challenges)
    if lack == "order of variables":
        x = x[::-1]
    rs, last, ends = sumcheck(told, lambda a, b, c, d: (a * b + c * d) % P, tables, x, elements(claim)[0])
    return theirs, (told.messages, last, rs, [end[0] for end in ends])


@pytest.mark.parametrize(("shape", "order"), TENSORS)
def test_sumchecks(shape, order):
    """Rounds, last claim, challenges and folded tables."""
    theirs, ours = run_sumcheck(shape, order)
    assert theirs == ours and len(ours[0]) == 2 * sum(map(lg, shape))


@pytest.mark.parametrize("lack", ["what stands past the ends", "order of variables"])
def test_another_sumcheck_is_noticed(lack):
    theirs, ours = run_sumcheck((3, 5, 2), (1, 0, 2), lack)
    assert theirs[0] != ours[0] and theirs[1] != ours[1] and theirs[2] == ours[2]


@pytest.mark.parametrize("shape", [(2,), (3, 4), (5, 1, 3)])
def test_plain_sums(shape):
    """Those of an edge or a product of nodes, axis by axis: of A B, for a claim that is false."""
    rng, axes = np.random.default_rng(3), tuple(range(len(shape)))
    a, b, claim = (random_k(rng, n) for n in (prod(shape), prod(shape), 1))
    rounds = sum(map(lg, shape))
    party = Recorded(Need(free=2 * rounds), random_k(rng, 2 * rounds))
    form, bound = product_sumcheck(party, shape, Form().add_constant(claim), (a.copy(), b.copy()))
    told = Told(party.challenges)
    tables = [table(elements(t), shape, axes, zero) for t in (a, b)]
    rs, last, ((x,), (y,)) = sumcheck(told, lambda a, b: a * b % P, tables, None, elements(claim)[0])
    assert (told.messages, last, rs) == (party.said, party.value(form), in_order(bound, axes))
    ends = (elements(field.dot(t, multilinear.eq_tensor(bound, shape)))[0] for t in (a, b))
    assert [x, y] == [*ends] and len(rs) == rounds


def run_tree(shape, order, lack=""):
    """The package's (party, what is left of the tree) and the twin's (messages, last point, leaves)."""
    rng = np.random.default_rng(4)
    p, q, need = random_k(rng, prod(shape)), random_k(rng, prod(shape)), tree_need(shape, order)
    party = Recorded(need, draw_pads(rng, need, shape, order))
    end = fractional_tree(party, shape, order, TreeWitness(p, q, shape, order))
    absent, axes = one if lack == "what stands past the ends" else zero, order
    if lack == "order of variables":
        axes = order[::-1]
    leaves = list(zip(table(elements(p), shape, axes, absent), table(elements(q), shape, axes, one), strict=True))
    if lack == "numerators":
        leaves = [(one, q) for _, q in leaves]
    return party, end, leaves, tree_messages(P, leaves, party.challenges)


@pytest.mark.parametrize(("shape", "order"), TENSORS)
def test_lookup_trees(shape, order):
    """All that is sent, the pads added; the sum; the last point, and what is claimed about the leaves there."""
    party, end, leaves, (said, x) = run_tree(shape, order)
    m = len(variables(shape, order))
    sent = elements(party.finish().values)
    assert len(sent) == m * m + 3 * m + 5
    assert [v + pad for v, pad in zip(sent, party.pads_used, strict=True)] == said == party.said
    assert [party.value(form) for form in party.system.forms] == [zero] * len(party.system.forms)
    assert party.value(Form().add(end.total, field.ONE)) == sum(p * pow(q, -1, P) for p, q in leaves) == said[4]
    assert in_order(end.point, order) == x
    for form, part in ((end.numerator, 0), (end.denominator, 1)):
        assert party.value(form) == extension([leaf[part] for leaf in leaves], x, P)
    told, rounds, at = Told(party.challenges), [], 5
    assert tree(told, leaves)  # the twin's other form, whose prover may lie
    for j in range(m):
        rounds += said[at : at + 2 * j]
        at += 2 * j + 4
    assert told.messages == rounds and next(told.given, None) is None


@pytest.mark.parametrize("lack", ["numerators", "what stands past the ends", "order of variables"])
def test_another_tree_is_noticed(lack):
    """Every layer differs."""
    party, end, leaves, (said, x) = run_tree((3, 5, 2), (1, 0, 2), lack)
    assert said[:2] == party.said[:2] or lack == "order of variables"
    assert (said[2] == party.said[2]) == (lack == "order of variables")  # nor does the sum on their order
    starts = [5 + j * (j + 3) for j in range(7)]  # of the layer of j rounds
    assert len(said) == starts[-1]
    assert all(said[a:b] != party.said[a:b] for a, b in pairwise(starts))
    assert party.value(end.numerator) != extension([p for p, _ in leaves], x, P)


def test_pads_that_are_left_out_are_noticed():
    party, *_ = run_tree((3, 2), (1, 0))
    assert all(a != b for a, b in zip(elements(party.finish().values), party.said, strict=True))


def looked_up(layout, values, index):
    """Rows (tag, a, b) that fork `index` looks up, once each."""
    network, tables = layout.network, layout.tables
    last = len(network.nodes)

    def column(name):
        return values.column(layout, name).reshape(-1).tolist()

    if index == 0:
        channels = np.repeat(np.arange(network.shape[0]), layout.h * prod(network.shape[1:])).tolist()
        tags = [tables.tag(("channel", c)) for c in channels]
        return list(zip(tags, column("x"), column("z0"), strict=True))
    if index == last:
        return [(tables.tag(LIMB_BITS), v, 0) for name in ("v0", "v1") for v in values.arrays[name].tolist()]
    node = network.nodes[index - 1]
    tag, pairs = tables.tag(node.table.digest), zip(column(f"u{index}"), column(f"z{index}"), strict=True)
    remainders = values.remainders[index - 1].reshape(-1).tolist() if node.shift else []
    return [(tag, u, z) for u, z in pairs] + [(tables.tag(node.shift), r, 0) for r in remainders]


def small():
    """A layout of three images, with a remainder and two classes, and its witness."""
    rng = np.random.default_rng(6)
    activation = Table(8, np.clip(np.arange(-128, 128), 0, 127).astype(np.int64))
    dense = Edge(0, rng.integers(-6, 7, (2, 1, 2, 2)), Window(2), Window(2))
    last = Edge(1, rng.integers(-9, 10, (2, 2, 1, 1)), Window(1), Window(1))
    network = finish((1, 2, 2), np.arange(256)[None] - 128, [Node((dense,), rng.integers(-50, 50, 2), 4, activation)],
                     Node((last,), rng.integers(-50, 50, 2)))  # fmt: skip
    images, layout = rng.integers(0, 256, (3, 1, 2, 2), dtype=np.uint8), Layout(network, 3, 1)
    masks = np.zeros(layout.arrays["mask"], np.int64)
    return layout, witness.build(layout, network.forward(images), network.classify(images), masks)


def test_lookups():
    """The sum of every fork's tree is the twin's sum of fractions, and the twin accepts what the package balances."""
    layout, values = small()
    board = ideal.board(layout)
    transcript = Transcript("twin", FiatShamir())
    alpha, beta = transcript.challenge("alpha"), transcript.challenge("beta")
    a, b = elements(alpha)[0], elements(beta)[0]
    pads, context = argument._draw_pads(board, ligero.Expander(bytes(32))), Context(layout, alpha, beta, values)
    keys, last = [], len(layout.network.nodes)
    for fork in forks(board.needs, board.shape.need.triples, transcript):
        wire = layers.run(fork.party(pads=pads), context, fork.index)
        found = elements(ideal.entry(Form().add(wire, field.ONE), {}, None, None, pads))[0]
        if fork.index <= last:
            new = [t + lookup_key(a, row, P) for t, *row in looked_up(layout, values, fork.index)]
            assert found == sum((pow(b - x, -1, P) for x in new), zero)
            keys += new
    assert len(keys) == layout.lookups
    rows = [(t.tag, int(u) % P, int(v) % P) for t in layout.tables.rows for u, v in zip(t.first, t.second, strict=True)]
    used = [(row, n) for row, n in zip(rows, values.arrays["uses"].tolist(), strict=True) if n]  # others add nothing
    table_keys = [t + lookup_key(a, row, P) for (t, *row), _ in used]
    uses = [n for _, n in used]
    assert found == sum((n * pow(b - t, -1, P) for t, n in zip(table_keys, uses, strict=True)), zero)
    assert fractions_agree(P, b, keys, table_keys, uses)
    assert not fractions_agree(P, b, keys, table_keys, [uses[0] + 1, *uses[1:]])
    assert not fractions_agree(P, b, keys, [lookup_key(a, row, P) for (_, *row), _ in used], uses)  # no tags


def test_elements_go_there_and_back():
    rng = np.random.default_rng(7)
    some = random_k(rng, 9)
    assert field.equal(vector(elements(some)), some)
    assert elements(vector([3, lift(4)])) == [lift(3), lift(4)]

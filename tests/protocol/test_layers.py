"""Every relation over an ideal commitment: complete on random networks, and each lie violates the right equations."""

import tracemalloc
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocol import field, layers, witness
from protocol.layout import LIMB_BITS, Layout
from protocol.multilinear import eq_tensor, lg
from protocol.network import (
    MARGIN_BITS,
    MAX_OUTPUT,
    Edge,
    Network,
    Node,
    Product,
    Table,
    Window,
    affine,
    rounding_offset,
)
from protocol.pads import Need, Party
from protocol.transcript import FiatShamir, Transcript
from tests.adversary import faults, ideal
from tests.protocol.conftest import Case, cases, finish

P = field.P


def built(case: Case, k_min: int | None = None):
    layout = Layout(case.network, len(case.images), case.k_min if k_min is None else k_min)
    forward = case.network.forward(case.images)
    return layout, witness.build(layout, forward, case.labels, np.zeros(layout.arrays["mask"], np.int64))


@given(cases())
@settings(max_examples=20)
def test_completeness(case):
    layout, values = built(case)
    assert ideal.run(layout, values, tables=False).failed == []


@given(cases())
@settings(max_examples=4)
def test_completeness_with_tables(case):
    layout, values = built(case)
    assert ideal.run(layout, values).failed == []


@given(cases())
@settings(max_examples=15)
def test_witness(case):
    """Against a plain count of the looked-up tuples, and the definition of the arrays."""
    layout, values = built(case)
    assert (faults.recounted(layout, values).arrays["uses"] == values.arrays["uses"]).all()
    assert int(values.arrays["uses"].sum()) == layout.lookups
    assert values.images.shape == (layout.depth, layout.h)
    assert {name: len(a) for name, a in values.arrays.items()} == layout.arrays
    logits, h, classes = case.network.forward(case.images).logits, layout.h, case.network.classes
    entry = {name: values.arrays[name].reshape(classes, h) for name in ("o", "g", "og", "m", "d", "v", "v0", "v1")}
    matched = 0
    for i in range(h):
        label, column = case.labels[i], logits[:, i].tolist()
        match = all(column[label] > g for c, g in enumerate(column) if c != label)
        matched += match
        for c in range(classes):
            one_hot = int(c == label)
            difference = column[label] - column[c] - 1 + one_hot
            assert [int(entry[name][c, i]) for name in entry] == [v % P for v in (
                one_hot, column[c], one_hot * column[c], match, difference, match * difference,
                match * difference & 0x7FFF, match * difference >> 15)]  # fmt: skip
    assert sum(int(b) << j for j, b in enumerate(values.arrays["count"])) == matched - layout.k_min


def test_a_node_holds_what_it_folds_and_no_more():
    """Three elements a leaf: the leaves and all levels above, the leaves and their pairs, or these and the first fold.

    The tables of a product with a shift are as large as these pairs; `argument._TREE_BYTES` is for both.
    """
    rng, one, shape = np.random.default_rng(3), Window(1), (2, 8, 8)
    table = Table(11, np.clip(np.arange(-1024, 1024), 0, 200).astype(np.int64))
    alone = Edge(0, np.full((2, 1, 1, 1), 9), one, one, 2)
    nodes = [Node((alone,), np.zeros(2, np.int64), 0, table),
             Node((), np.zeros(2, np.int64), 0, table, product=Product(0, 1))]  # fmt: skip
    dense = Edge(2, np.ones((2, *shape), np.int64), Window(8), Window(8))
    network = finish(shape, rng.integers(0, 200, (2, 256)), nodes, Node((dense,), np.zeros(2, np.int64)))
    images = rng.integers(0, 256, (300, *shape), dtype=np.uint8)
    layout, values = built(Case(network, images, np.zeros(300, np.int64), 0))
    context = layers.Context(layout, *(field.from_base(rng.integers(1, P, (2, 5, 1), dtype=np.uint32))), values)
    for index in range(3):
        need = layers.need(layout, index)
        pads = field.zeros(3 * need.triples + need.free)
        peaks = []
        for _ in range(2):  # the first may compile kernels
            party = Party(Transcript("test", FiatShamir()), need, Need(), need.triples, pads=pads)
            tracemalloc.start()
            layers.run(party, context, index)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.1 * 3 * field.ELEMENT_BYTES * layers.work(layout, index)


# Affine maps


@st.composite
def edges(draw):
    case = draw(cases())
    number = draw(st.integers(1, len(case.network.nodes)))
    assume(case.network.nodes[number - 1].edges)
    edge = draw(st.sampled_from(case.network.nodes[number - 1].edges))
    return edge, case.network.shapes[edge.source], case.network.shapes[number], draw(st.integers(0, 2**32 - 1))


def point_of(rng, shape):
    return tuple(field.from_base(rng.integers(0, P, (5, lg(n)), dtype=np.uint32)) for n in shape)


@given(edges())
@settings(max_examples=40)
def test_transposed_weights(drawn):
    """W' is the transposed map: column q of it is the map of the q-th unit tensor, weighed by eq(rho)."""
    edge, source, shape, seed = drawn
    rng = np.random.default_rng(seed)
    rho, point = point_of(rng, shape), point_of(rng, source)
    weights = layers.transposed_weights(edge, rho, source, shape)
    node = Node((edge,), np.zeros(shape[0], np.int64))
    unit = np.eye(prod(source), dtype=np.int32).reshape(*source, prod(source))
    images = affine(node, [unit] * (edge.source + 1)).reshape(prod(shape), prod(source))
    eq = eq_tensor(rho, shape)
    assert field.equal(weights, field.combine(field.residues(np.ascontiguousarray(images.T)), eq))
    assert field.equal(layers.weight_at(edge, rho, point, source, shape), field.dot(weights, eq_tensor(point, source)))


def test_the_weights_behind_a_pool_take_no_table_of_its_inputs():
    """One tap of 2000 reads anything: kernel times length is no measure of what the verifier keeps."""
    n, rng = 2000, np.random.default_rng(5)
    weight = np.zeros((2, 1, n, 1), np.int64)
    weight[:, 0, -1, 0] = 3, -4
    pool = Window(1, n), Window(1, 1)
    edge = Edge(0, weight, Window(n, 1, n - 1), Window(1, 1), pool=pool)
    rho, point = point_of(rng, (2, 1, 1)), point_of(rng, (1, n, 1))
    tracemalloc.start()
    found = layers.weight_at(edge, rho, point, (1, n, 1), (2, 1, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    first = np.ascontiguousarray(eq_tensor(point, (1, n, 1))[:, :1])  # the pool reads row 0
    assert field.equal(found, field.mul(field.dot(eq_tensor(rho, (2, 1, 1)), field.embed([3, -4])), first))
    assert peak < 5 * 4 * n * n // 10


def test_rounds_do_not_depend_on_the_batch(network):
    """An affine map costs the same messages for 1 image and for 300; only the trees grow, by their logarithm."""
    for index in range(len(network.nodes) + 2):
        small, large = (layers.need(Layout(network, h, 1), index) for h in (1, 300))
        trees = [layers.tree_need(*layers.tree_shape(Layout(network, h, 1), index)) for h in (1, 300)]
        assert small.free - trees[0].free == large.free - trees[1].free
    assert layers.need(Layout(network, 255, 1), 1) == layers.need(Layout(network, 256, 1), 1)


def test_work_is_proportional_to_the_batch(network):
    """A batch just over a power of two costs no more than its size: nothing is padded."""
    work = [sum(layers.work(Layout(network, h, 1), k) for k in range(len(network.nodes) + 1)) for h in (255, 257)]
    assert work[0] < work[1] < 1.01 * work[0]


# Thresholds and lengths


def chosen(h: int, wrong: int = 0, classes: int = 3) -> Case:
    """Dense logits of distinct pixels; all images match but the last `wrong`."""
    rng = np.random.default_rng(h)
    dense = Edge(0, rng.integers(-9, 10, (classes, 1, 1, 3)), Window(1), Window(3))
    network = Network((1, 1, 3), np.arange(256)[None], (Node((dense,), rng.integers(-5, 5, classes)),))
    images = np.concatenate([rng.integers(0, 256, (1, 1, 1, 3), dtype=np.uint8) for _ in range(20 * h)])
    images = images[network.classify(images) >= 0][:h]
    labels = network.classify(images)
    labels[h - wrong :] = (labels[h - wrong :] + 1) % classes
    return Case(network, images, labels, h - wrong)


@pytest.mark.parametrize(("h", "k_min"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (5, 1), (5, 4), (5, 5), (8, 8)])
def test_thresholds(h, k_min):
    layout, values = built(chosen(h), k_min)
    assert layout.count_bits == (h - k_min).bit_length()
    assert ideal.run(layout, values, tables=False).failed == []


@pytest.mark.parametrize(("h", "wrong"), [(1, 1), (5, 1), (5, 3), (8, 1)])
def test_k_min_one_too_high(h, wrong):
    """With the right m, the count is negative: no bits make up for it."""
    case = chosen(h, wrong)
    k_min = h - wrong + 1
    layout, values = built(case, k_min)
    assert ideal.run(layout, values, tables=False).parts == {str(len(case.network.nodes))}
    if layout.count_bits:  # -1 = 2^0 + ... is no sum of bits; -1 in a bit's place is no bit
        bits = np.zeros(layout.count_bits, np.uint32)
        bits[0] = P - 1
        lie = replace(values, arrays=values.arrays | {"count": bits})
        outcome = ideal.run(layout, lie, tables=False)
        assert outcome.failed == [("count count = count", 0)]


def test_a_count_over_h_wraps_nowhere():
    """k_min = 1, h = 5: the three bits hold 0..7, so that sum m - k_min <= h - 1 fits and -1 does not."""
    layout, values = built(chosen(5, 5, 3), 1)
    for bits in range(8):
        count = np.array([bits >> j & 1 for j in range(3)], np.uint32)
        lie = replace(values, arrays=values.arrays | {"count": count})
        assert ideal.run(layout, lie, tables=False).failed


# Lies.  `world` is the session's network with its hidden triggers.


@pytest.fixture(scope="module")
def world(network, key):
    layout = Layout(network, key.vk.h, key.vk.h - 5)
    forward = network.forward(key.hidden_images)
    return layout, witness.build(layout, forward, key.hidden_labels, np.zeros(layout.arrays["mask"], np.int64))


def last(layout):
    return str(len(layout.network.nodes))


def consumers(layout, node):
    return {str(k) for k, n in enumerate(layout.network.nodes, 1) if any(e.source == node for e in n.edges)}


def columns():
    return ["x", "z0"] + [f"{kind}{k}" for k in range(1, 5) for kind in "uz"]


def test_an_honest_world(world):
    assert ideal.run(*world).failed == []


@pytest.mark.parametrize("name", columns())
def test_one_entry_of_a_column(world, name):
    """x, z0 and the pairs (u, z) are looked up; u against y by its node, z by the nodes that read it."""
    layout, values = world
    size = prod(layout.columns[name][1]) * layout.h
    index = size // 2
    if name == "z4":  # a feature that the output reads
        index = int(np.flatnonzero(layout.network.nodes[-1].edges[0].weight.any(axis=(0, 2, 3)))[0]) * layout.h
    expected = {"balance"} | (consumers(layout, int(name[1:])) if name[0] == "z" else set())
    expected |= {name[1:]} if name[0] == "u" else set()
    assert ideal.run(layout, faults.shifted(layout, values, name, index)).parts == expected


ARRAYS = {
    "o": {"output", "o o = o", "o g = og"}, "g": {"output", "o g = og"}, "og": {"output", "o g = og"},
    "m": {"output", "m m = m", "m d = v"}, "d": {"output", "m d = v"}, "v": {"output", "m d = v"},
    "v0": {"output"}, "v1": {"output"}, "count": {"output", "count count = count"},
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_one_entry_of_an_array(world, name):
    layout, values = world
    size = layout.arrays[name]
    parts = ideal.run(layout, faults.shifted(layout, values, name, size - 1), only=[int(last(layout))]).parts
    parts = {"output" if part == last(layout) else part for part in parts}
    assert parts & ARRAYS[name] and parts <= ARRAYS[name]


def test_one_multiplicity(world):
    layout, values = world
    for index in (0, layout.tables.size - 1):
        outcome = ideal.run(layout, faults.shifted(layout, values, "uses", index))
        assert outcome.parts >= {"balance"} or outcome.parts == {str(len(layout.network.nodes) + 1)}


def test_multiplicities_of_another_row(world):
    layout, values = world
    uses = values.arrays["uses"].copy()
    row = int(uses.argmax())
    uses[row], uses[row - 1] = uses[row] - 1, uses[row - 1] + 1
    assert ideal.run(layout, replace(values, arrays=values.arrays | {"uses": uses})).failed == [("balance", 0)]


def test_multiplicity_overflow(world):
    """A value outside every table cannot be bought with a multiplicity, be it as large as the field allows."""
    layout, values = world
    lie = faults.shifted(layout, values, "u1", 0, 1 << 20)
    for count in (0, P - 1, P // 2):
        uses = values.arrays["uses"].copy()
        uses[0] = count
        outcome = ideal.run(layout, replace(lie, arrays=lie.arrays | {"uses": uses}))
        assert outcome.parts >= {"balance"}


def test_a_value_of_another_table(world):
    """z of one activation looked up in the other node's table, whose tag differs: (u, z) is there but not here."""
    layout, values = world
    tables, network = layout.tables, layout.network
    mine, other = network.nodes[0].table, network.nodes[2].table
    assert mine.digest != other.digest
    half = 1 << (other.bits - 1)
    u = half - 1  # the other table's largest unit, outside mine
    changed = values.images.copy()
    for name, value in (("u1", u), ("z1", int(other.values[u + half]))):
        changed[layout.columns[name][0], 0] = value
    lie = faults.recounted(layout, replace(values, images=changed))
    uses = lie.arrays["uses"].copy()
    uses[tables.start(other.digest) + u + half] += 1
    assert ("balance", 0) in ideal.run(layout, replace(lie, arrays=lie.arrays | {"uses": uses})).failed


@pytest.mark.parametrize("node", [1, 2, 4])
def test_a_wrong_remainder(world, node):
    layout, values = world
    changed = [r.copy() for r in values.remainders]
    changed[node - 1][0, 0] ^= 1
    lie = faults.recounted(layout, replace(values, remainders=tuple(changed)))
    assert ideal.run(layout, lie).parts == {str(node)}


def test_a_unit_off_by_one_with_the_remainder_that_goes_with_it(world):
    """u - 1 and rem + 2^s: all equations hold, but the remainder is in no table."""
    layout, values = world
    node = layout.network.nodes[0]
    offset = layout.columns["u1"][0]
    column = values.images[offset : offset + len(values.remainders[0])]
    row, image = map(int, np.argwhere((column > 0) & (column < P // 2))[0])
    changed, remainders = values.images.copy(), [r.copy() for r in values.remainders]
    changed[offset + row, image] -= 1
    remainders[0][row, image] += 1 << node.shift
    middle = 1 << (node.table.bits - 1)
    value = int(node.table.values[int(changed[offset + row, image]) + middle])
    z = layout.columns["z1"][0] + row
    lie = replace(values, images=changed, remainders=tuple(remainders))
    outcome = ideal.run(layout, faults.recounted(layout, replace(lie, images=with_entry(changed, z, image, value))))
    assert "balance" in outcome.parts and "1" not in outcome.parts  # only the multiplicities cannot be had


def with_entry(images, row, image, value):
    out = images.copy()
    out[row, image] = value
    return out


def unmatched(values, layout, image):
    """The witness with this image's m (and v) set to zero."""
    arrays = {name: values.arrays[name].reshape(-1, layout.h).copy() for name in ("m", "v", "v0", "v1")}
    for a in arrays.values():
        a[:, image] = 0
    return {name: a.reshape(-1) for name, a in arrays.items()}


def test_a_match_that_is_not_claimed_is_the_provers_choice(world):
    """m = 0 on a match is allowed: the claim is 'at least'."""
    layout, values = world
    arrays = values.arrays | unmatched(values, layout, 0)
    arrays["count"] = np.array([4 >> j & 1 for j in range(layout.count_bits)], np.uint32)
    assert ideal.run(layout, faults.recounted(layout, replace(values, arrays=arrays))).failed == []


def test_m_differs_between_classes(world):
    """m is one bit per image, for all its classes: it cannot be 1 for those with a good margin only."""
    layout, values = world
    m = values.arrays["m"].reshape(-1, layout.h).copy()
    v = values.arrays["v"].reshape(-1, layout.h).copy()
    m[3, 0] = v[3, 0] = 0
    arrays = values.arrays | {
        "m": m.reshape(-1), "v": v.reshape(-1),
        "v0": v.reshape(-1) & np.uint32(0x7FFF), "v1": v.reshape(-1) >> np.uint32(LIMB_BITS),
    }  # fmt: skip
    failed = ideal.run(layout, faults.recounted(layout, replace(values, arrays=arrays)))
    assert failed.parts == {last(layout)} and len(failed.failed) == 1


def other_labels(layout, values, key, image, label):
    """The arrays of a prover who takes `label` for the image's, with m = 1."""
    classes = layout.network.classes
    g = values.arrays["g"].astype(np.int64).reshape(classes, -1)
    g = np.where(g > P // 2, g - P, g)
    o = values.arrays["o"].reshape(classes, -1).astype(np.int64).copy()
    o[:, image] = np.arange(classes) == label
    d = (o * g).sum(axis=0)[None] - g - 1 + o
    arrays = {"o": o, "og": o * g, "d": d, "v": d}
    out = values.arrays | {name: field.residues(a).reshape(-1) for name, a in arrays.items()}
    v = out["v"]
    return replace(values, arrays=out | {"v0": v & np.uint32(0x7FFF), "v1": v >> np.uint32(LIMB_BITS)})


def test_a_margin_that_wraps(world, key):
    """m = 1 for a label that is not the argmax: v = p - something is the sum of two limbs, the upper in no table."""
    layout, values = world
    wrong = (int(key.hidden_labels[0]) + 1) % layout.network.classes
    lie = faults.recounted(layout, other_labels(layout, values, key, 0, wrong))
    assert ideal.run(layout, lie).failed == [("balance", 0)]
    # With the upper limb brought into its range, the limbs are not those of v.
    arrays = dict(lie.arrays)
    arrays["v1"] = arrays["v1"] & np.uint32(0x7FFF)
    assert ideal.run(layout, faults.recounted(layout, replace(lie, arrays=arrays))).parts == {last(layout)}


def test_the_largest_negative_margin_is_out_of_the_limbs():
    """p - (2 B + 1) >= 2^30 for the largest logit B: no honest or dishonest negative margin fits."""
    assert 2 * LIMB_BITS == MARGIN_BITS and P - (2 * MAX_OUTPUT + 1) >= 1 << MARGIN_BITS > 2 * MAX_OUTPUT


def test_a_tie_is_no_match():
    """Two equal logits: the margin is -1 for the other class, in no limb."""
    network = Network((1, 1, 1), np.arange(256)[None], (
        Node((Edge(0, np.ones((2, 1, 1, 1), np.int64), Window(1), Window(1)),), np.zeros(2, np.int64)),))  # fmt: skip
    case = Case(network, np.full((1, 1, 1, 1), 7, np.uint8), np.zeros(1, np.int64), 1)
    layout = Layout(network, 1, 1)
    forward = network.forward(case.images)
    assert witness.matches(forward, case.labels).tolist() == [False]
    with faults.claims([0]):
        values = witness.build(layout, forward, case.labels, np.zeros(layout.arrays["mask"], np.int64))
    assert values.arrays["v"].tolist() == [0, P - 1]
    assert ideal.run(layout, values).failed == [("balance", 0)]


def test_padded_classes_and_images_do_not_count(world):
    """Ten classes of sixteen, h below a power of two: nothing outside the real indices enters an equation."""
    layout, _ = world
    assert layout.network.classes & (layout.network.classes - 1) and layout.h & (layout.h - 1)
    assert layout.h % 2 == 1
    for name in ("o", "m", "g"):
        assert layout.arrays[name] == layout.network.classes * layout.h  # there is no slot for them


@pytest.mark.parametrize(("sets", "fork"), [(1, 0), (2, 1), (2, "output")])
@pytest.mark.parametrize("numerator", [0, 2])
def test_a_value_counts_once(world, sets, fork, numerator):
    """A value that is looked up zero times need not be in the table: the numerators of the leaves are all 1."""
    layout, values = world
    fork = int(last(layout)) if fork == "output" else fork
    with faults.weighed(sets, 7, numerator):
        assert ideal.run(layout, values, only=[fork]).parts == {str(fork)}


def test_one_hot_shifted(world):
    """Two ones that cancel, and a one-hot of another class, with everything else consistent."""
    layout, values = world
    o = values.arrays["o"].reshape(layout.network.classes, -1).copy()
    label = int(o[:, 0].argmax())
    o[(label + 1) % 10, 0] = 1
    o[(label + 2) % 10, 0] = P - 1
    lie = replace(values, arrays=values.arrays | {"o": o.reshape(-1)})
    outcome = ideal.run(layout, lie, only=[int(last(layout))])
    assert outcome.parts >= {"o o = o", "o g = og"}


def test_no_class_and_nothing_else_wrong(world):
    """o = 0 for an image, and all that follows from it: one equation forbids it (with o = 0, "g < 0" is a match)."""
    layout, values = world
    arrays = {name: values.arrays[name].reshape(-1, layout.h).copy() for name in ("o", "og", "d", "m", "v", "v0", "v1")}
    for name in arrays:
        arrays[name][:, 0] = 0
    g = values.arrays["g"].reshape(-1, layout.h)[:, 0].astype(np.int64)
    arrays["d"][:, 0] = field.residues(-g - 1)
    lie = values.arrays | {name: a.reshape(-1) for name, a in arrays.items()}
    lie["count"] = np.array([4 >> j & 1 for j in range(layout.count_bits)], np.uint32)
    failed = ideal.run(layout, replace(values, arrays=lie), only=[int(last(layout))]).failed
    assert len(failed) == 1 and failed[0][0] == last(layout)


def test_a_margin_of_her_own(world, key):
    """d = 0 for an image whose label is not the argmax, and m = 1: every product holds, d is not the difference."""
    layout, values = world
    wrong = (int(key.hidden_labels[0]) + 1) % layout.network.classes
    lie = dict(other_labels(layout, values, key, 0, wrong).arrays)
    for name in ("d", "v", "v0", "v1"):
        lie[name] = lie[name].reshape(-1, layout.h).copy()
        lie[name][:, 0] = 0
        lie[name] = lie[name].reshape(-1)
    failed = ideal.run(layout, replace(values, arrays=lie), only=[int(last(layout))]).failed
    assert len(failed) == 1 and failed[0][0] == last(layout)


def test_no_class_and_two_classes(world):
    layout, values = world
    o = values.arrays["o"].reshape(layout.network.classes, -1).copy()
    for change in (lambda column: column * 0, lambda column: column * 0 + 1):
        lie = o.copy()
        lie[:, 0] = change(lie[:, 0])
        lie_og = lie.astype(np.int64) * values.arrays["g"].reshape(lie.shape) % P
        arrays = values.arrays | {"o": lie.reshape(-1), "og": lie_og.astype(np.uint32).reshape(-1)}
        outcome = ideal.run(layout, replace(values, arrays=arrays), only=[int(last(layout))])
        assert outcome.parts == {last(layout)}


# Products of two activations


@pytest.fixture(scope="module")
def gated():
    """A convolution, one gate per channel, their product, and the square of that."""
    rng = np.random.default_rng(3)

    def weights(*shape):
        return rng.integers(-3, 4, shape)

    table, one, three = Table(9, rng.integers(-20, 21, 512)), Window(1), Window(3)
    nodes = [
        Node((Edge(0, weights(3, 1, 1, 1), one, one),), weights(3), 0, table),
        Node((Edge(1, weights(3, 3, 3, 3), three, three),), weights(3), 0, table),
        Node((), weights(3), 0, table, product=Product(1, 2)),
        Node((Edge(1, weights(3, 3, 1, 1), one, one),), weights(3), 0, table, product=Product(3, 3)),
    ]
    out = Node((Edge(4, weights(3, 3, 3, 3), three, three),), weights(3))
    network = finish((1, 3, 3), rng.integers(-9, 10, (1, 256)), nodes, out)
    assert network.shapes[2:4] == ((3, 1, 1), (3, 3, 3))
    images = rng.integers(0, 256, (5, 1, 3, 3), dtype=np.uint8)
    return built(Case(network, images, np.maximum(network.classify(images), 0), 1))


def test_products_of_activations(gated):
    assert ideal.run(*gated, tables=False).failed == []


@pytest.mark.parametrize(("name", "forks"), [("z1", {"2", "3", "4"}), ("z2", {"3"}), ("z3", {"4"}), ("u3", {"3"})])
def test_one_entry_of_a_factor(gated, name, forks):
    layout, values = gated
    for index in (0, layout.h * prod(layout.columns[name][1]) - 1):
        assert ideal.run(layout, faults.shifted(layout, values, name, index, 1 << 9), tables=False).parts == forks


@pytest.mark.parametrize("factor", ["left", "right"])
def test_another_factor_than_the_committed(gated, factor):
    """All that follows from z + 1 in one place is right, but that z is not the one that is committed."""
    layout, values = gated
    nodes, h = layout.network.nodes, layout.h
    source = getattr(nodes[2].product, factor)

    def column(name, of):
        offset, shape = layout.columns[name]
        entries = of.images[offset : offset + prod(shape)].astype(np.int64)
        return np.where(entries > P // 2, entries - P, entries).reshape(*shape, h)

    lie = faults.shifted(layout, values, f"z{source}", 0)
    outputs = [column(f"z{k}", values) for k in range(5)]
    changed = values
    for k in (3, 4):
        seen = outputs if k > 3 else [column(f"z{j}", lie) for j in range(3)]
        y = affine(nodes[k - 1], seen) + rounding_offset(nodes[k - 1].shift)
        u, rem = y >> nodes[k - 1].shift, y & ((1 << nodes[k - 1].shift) - 1)
        outputs[k] = nodes[k - 1].table.values[u + 256]
        images = changed.images.copy()
        for name, new in ((f"u{k}", u), (f"z{k}", outputs[k])):
            offset, shape = layout.columns[name]
            images[offset : offset + prod(shape)] = field.residues(new).reshape(-1, h)
        remainders = list(changed.remainders)
        remainders[k - 1] = rem.astype(np.uint32).reshape(-1, h)
        changed = replace(changed, images=images, remainders=tuple(remainders))
    lie = faults.shifted(layout, changed, f"z{source}", 0)

    def make(original):
        def product(party, context, index, *rest):
            swap = context.witness is not None and index == 3
            return original(party, replace(context, witness=lie) if swap else context, index, *rest)

        return product

    with faults.replaced(layers, "_product", make):
        failed = ideal.run(layout, changed, only=[3]).failed
    assert len(failed) == 1 and failed[0][0] == "3"


@pytest.mark.parametrize(("label", "count"), [("product", 1), ("product.ends", 2)])
def test_each_message_of_a_product(gated, label, count):
    for occurrence, fork in enumerate(("3", "4")):
        for position in range(count):
            with faults.message(label, occurrence, position):
                assert ideal.run(*gated, tables=False).parts == {fork}


def test_the_rounds_of_a_product(gated):
    """The last rounds of its fork."""
    seen = []
    with faults.said("round", lambda values: seen.append(0) or values):
        ideal.run(*gated, only=[3])
    for occurrence in (len(seen) - 1, len(seen) - sum(lg(n) for n in (3, 3, 3, 5))):
        for position in (0, 1):
            with faults.message("round", occurrence, position):
                failed = ideal.run(*gated, only=[3]).failed
            assert len(failed) == 1


# Messages


@pytest.mark.parametrize("label", ["root.q", "root.p", "root.s", "layer.ends", "round", "edges"])
def test_each_kind_of_message_in_a_proof(world, label):
    """Message n of each label, as the forks send it: the equations of that fork fail, no others."""
    layout, values = world
    for occurrence in (0, 3):
        with faults.message(label, occurrence):
            parts = ideal.run(layout, values, tables=False).parts
        assert len(parts) == 1
        if label.startswith("root"):
            assert parts == {str(occurrence)}
        if label == "edges":
            assert parts == {str(occurrence + 1)}


def test_every_message_of_an_edge(world):
    """Rounds of the two affine sumchecks of the node with the residual edge, first, middle and last."""
    layout, values = world

    def rounds(index):  # (of the tree, of the affine map) of a fork
        steps = sum(lg(n) for n in layers.tree_shape(layout, index)[0])
        node = layout.network.nodes[index - 1] if index else None
        sources = [layout.network.shapes[edge.source] for edge in node.edges] if node else []
        return steps * (steps - 1) // 2, sum(lg(n) for shape in sources for n in shape)

    first = sum(rounds(0) + rounds(1)) + rounds(2)[0]
    for occurrence in (first, first + rounds(2)[1] // 2, first + rounds(2)[1] - 1):
        for position in (0, 1):
            with faults.message("round", occurrence, position):
                failed = ideal.run(layout, values, only=range(3)).failed
            assert len(failed) == 1 and failed[0][0] == "2"

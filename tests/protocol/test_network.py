"""The integer network against a plain evaluation, its static bounds, and its one encoding."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import DecodingError, ParameterError
from protocol.kernels import cpu
from protocol.network import (
    MAX_OUTPUT,
    MAX_TABLE_BITS,
    Edge,
    Network,
    Node,
    P,
    Product,
    Table,
    Window,
    affine,
    affine_bounds,
    rounding_offset,
    strict_argmax,
)
from tests.protocol.conftest import cases, finish, relu

W1 = Window(1)


def at(x, c, r, k):
    """Entry of a plain [C][H][W] tensor, 0 in the padding."""
    return x[c][r][k] if 0 <= r < len(x[0]) and 0 <= k < len(x[0][0]) else 0


def positions(window, p, length):
    found = [window.stride * p + window.dilation * k - window.pad_before for k in range(window.kernel)]
    if window.repeat > 1:
        return [min(max(i // window.repeat, 0), length - 1) for i in found]
    return found


def pool(x, windows):
    if windows is None:
        return x
    rows, columns = windows
    height, width = len(x[0]), len(x[0][0])
    h, w = rows.outputs(height), columns.outputs(width)
    return [[[sum(at(x, c, r, k) for r in positions(rows, p, height) for k in positions(columns, q, width))
              for q in range(w)] for p in range(h)] for c in range(len(x))]  # fmt: skip


def linear(edge, x):
    x = pool(x, edge.pool)
    o, cg = edge.weight.shape[:2]
    h, w = edge.rows.outputs(len(x[0])), edge.columns.outputs(len(x[0][0]))
    weight, group = edge.weight.tolist(), o // edge.groups
    return [[[sum(weight[n][c][i][j] * at(x, n // group * cg + c, r, k)
                  for c in range(cg)
                  for i, r in enumerate(positions(edge.rows, p, len(x[0])))
                  for j, k in enumerate(positions(edge.columns, q, len(x[0][0]))))
              for q in range(w)] for p in range(h)] for n in range(o)]  # fmt: skip


def plain(network, image):
    """[(y, u, remainder, z)] of every node of one image, as nested lists."""
    z = [[[[int(network.input_tables[c, v]) for v in row] for row in image[c].tolist()] for c in range(len(image))]]
    out = []
    for node in network.nodes:
        maps = [linear(edge, z[edge.source]) for edge in node.edges]
        if node.product:
            left, right = z[node.product.left], z[node.product.right]
            wide = len(right[0]) == len(left[0]) and len(right[0][0]) == len(left[0][0])
            maps.append([[[v * right[i][j if wide else 0][k if wide else 0] for k, v in enumerate(row)]
                          for j, row in enumerate(plane)] for i, plane in enumerate(left)])  # fmt: skip
        c, h, w = len(maps[0]), len(maps[0][0]), len(maps[0][0][0])
        y, u, rem, value = ([[[0] * w for _ in range(h)] for _ in range(c)] for _ in range(4))
        for i, j, k in product(range(c), range(h), range(w)):
            y[i][j][k] = int(node.bias[i]) + sum(m[i][j][k] for m in maps)
            if node.table is not None:
                u[i][j][k], rem[i][j][k] = divmod(y[i][j][k] + rounding_offset(node.shift), 1 << node.shift)
                value[i][j][k] = int(node.table.values[u[i][j][k] + (1 << (node.table.bits - 1))])
        out.append((y, u, rem, value))
        z.append(value)
    return out


@given(cases())
@settings(max_examples=40)
def test_forward(case):
    network, h = case.network, len(case.images)
    forward = network.forward(case.images)
    assert (forward.pixels == case.images.transpose(1, 2, 3, 0)).all()
    for i in {0, h - 1}:
        values = plain(network, case.images[i])
        for k, (_, u, rem, z) in enumerate(values[:-1]):
            assert forward.units[k][..., i].tolist() == u
            assert forward.remainders[k][..., i].tolist() == rem
            assert forward.outputs[k + 1][..., i].tolist() == z
        logits = [row[0][0] for row in values[-1][0]]
        assert forward.logits[:, i].tolist() == logits
        best = [c for c, v in enumerate(logits) if v == max(logits)]
        assert network.classify(case.images)[i] == (best[0] if len(best) == 1 else -1)


def test_edges_and_a_product_add_up():
    """In the hidden node and in the logits; and the values before the shift, of any node."""
    rng, one, three = np.random.default_rng(4), Window(1), Window(3, 1, 1, 1)

    def edge(source, *shape, window=one):
        return Edge(source, rng.integers(-3, 4, shape), window, window)

    table = Table(9, rng.integers(-20, 21, 512))
    nodes = [
        Node((edge(0, 3, 2, 3, 3, window=three),), rng.integers(-9, 10, 3), 0, table),
        Node((edge(1, 3, 3, 1, 1), edge(0, 3, 2, 3, 3, window=three)), rng.integers(-9, 10, 3), 0, table,
             product=Product(1, 1)),
    ]  # fmt: skip
    out = Node(tuple(edge(k, 4, 3, 2, 2, window=Window(2)) for k in (1, 2)), rng.integers(-9, 10, 4))
    network = finish((2, 2, 2), rng.integers(-9, 10, (2, 256)), nodes, out)
    images = rng.integers(0, 256, (3, 2, 2, 2), dtype=np.uint8)
    forward = network.forward(images)
    for i, image in enumerate(images):
        values = plain(network, image)
        assert [forward.outputs[k + 1][..., i].tolist() for k in range(2)] == [z for _, _, _, z in values[:2]]
        assert forward.logits[:, i].tolist() == [row[0][0] for row in values[2][0]]
        for node, (y, _, _, _) in zip(network.nodes, values, strict=True):
            assert affine(node, forward.outputs)[..., i].tolist() == y


@given(cases(), st.integers(1, 4000))
@settings(max_examples=20)
def test_taps_are_gathered_in_blocks(case, limit):
    whole = case.network.forward(case.images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "GATHER_BYTES", limit)
        parts = case.network.forward(case.images)
    assert (whole.logits == parts.logits).all()
    assert all((a == b).all() for a, b in zip(whole.units, parts.units, strict=True))


@given(cases())
@settings(max_examples=40)
def test_bounds_hold(case):
    network = case.network
    ranges = [(network.input_tables.min(axis=1), network.input_tables.max(axis=1))]
    forward = network.forward(case.images)
    for k, node in enumerate(network.nodes):
        low, high = affine_bounds(node, ranges)
        if node.table is None:
            assert (forward.logits.min(axis=1) >= low).all() and (forward.logits.max(axis=1) <= high).all()
            return
        u = forward.units[k].reshape(len(low), -1)
        off = rounding_offset(node.shift)
        assert (u.min(axis=1) >= (low + off) >> node.shift).all()
        assert (u.max(axis=1) <= (high + off) >> node.shift).all()
        o = len(node.bias)
        ranges.append((np.full(o, node.table.values.min()), np.full(o, node.table.values.max())))


def test_classification_does_not_depend_on_the_batch(network, key):
    whole = network.classify(key.hidden_images)
    assert (network.classify(key.hidden_images, batch=7) == whole).all()
    assert network.classify(key.hidden_images[:0]).shape == (0,)
    with pytest.raises(ParameterError, match="images must be"):
        network.forward(key.hidden_images[:, :, :4])
    with pytest.raises(ParameterError, match="images must be"):
        network.forward(key.hidden_images.astype(np.int64))


def test_a_tie_is_no_class():
    assert strict_argmax(np.array([[3, 1, -5, 0], [2, 1, -5, 7], [3, 0, -6, 7]])).tolist() == [-1, -1, -1, -1]
    assert strict_argmax(np.array([[3, 1], [2, 2]])).tolist() == [0, 1]


# Bounds


def one_node(weight=1, bias=0, shift=0, bits=9, table=None, out_weight=1, out_bias=0, tables=None):
    """Pixel -> weight x + bias -> table -> two logits."""
    values = np.arange(-(1 << (bits - 1)), 1 << (bits - 1)) if table is None else np.asarray(table)
    node = Node((Edge(0, np.full((1, 1, 1, 1), weight), W1, W1),), np.array([bias]), shift, Table(bits, values), "conv")
    out = Node((Edge(1, np.full((2, 1, 1, 1), out_weight), W1, W1),), np.array([out_bias, 0]), name="logits")
    return Network((1, 1, 1), np.arange(256)[None] if tables is None else tables, (node, out))


def refused(match, **options):
    with pytest.raises(ParameterError, match=match):
        one_node(**options)


def test_units_stay_within_the_table():
    one_node(weight=1, bits=9)  # y in 0..255
    refused("node 1 conv: .*leaves the table", weight=1, bias=1, bits=9)
    one_node(weight=-1, bias=-1, bits=9)  # y in -256..-1
    refused("node 1 conv: .*leaves the table", weight=-1, bias=-2, bits=9)
    one_node(weight=2, bias=0, shift=1, bits=9)  # y + 1 in 1..511, units up to 255
    refused("leaves the table", weight=2, bias=1, shift=1, bits=9)
    one_node(weight=-2, bias=-3, shift=1, bits=9)  # y + 1 in -512..-2
    refused("leaves the table", weight=-2, bias=-4, shift=1, bits=9)


def test_values_are_unique_modulo_p():
    """max|y| + 2^(b+s-1) + off(s) < p."""
    half, off, table = 1 << (20 + 11 - 1), 1 << 10, np.zeros(1 << 20, np.int64)
    most = P - 1 - half - off
    assert most < half - off  # so that it is this bound that bites
    one_node(weight=0, bias=most, shift=11, bits=20, table=table)
    refused("node 1 conv: .*not unique modulo p", weight=0, bias=most + 1, shift=11, bits=20, table=table)
    one_node(weight=0, bias=-most, shift=11, bits=20, table=table)
    refused("node 1 conv: .*not unique modulo p", weight=0, bias=-most - 1, shift=11, bits=20, table=table)


def test_logits_leave_room_for_the_margin():
    """|g| <= (p - 2^30 - 1) / 2: no negative margin wraps into the limbs."""
    assert 2 * MAX_OUTPUT + 1 <= 2**30 and 2**30 + 2 * MAX_OUTPUT + 1 <= P < 2**30 + 2 * (MAX_OUTPUT + 1) + 1
    identity = np.arange(-256, 256)
    one_node(table=identity * 0 + 1, out_weight=0, out_bias=MAX_OUTPUT)
    refused("node 2 logits: logits reach", table=identity * 0 + 1, out_weight=0, out_bias=MAX_OUTPUT + 1)
    refused("node 2 logits: logits reach", table=identity * 0 + 1, out_weight=0, out_bias=-MAX_OUTPUT - 1)
    refused("node 2 logits: logits reach", table=identity * 0 + (1 << 29), out_weight=1)


@pytest.mark.parametrize("value", [1 << 30, -(1 << 30), 1 << 62])
def test_huge_integers_are_refused(value):
    refused("node 1 conv: weight or bias", weight=value)
    refused("node 1 conv: weight or bias", bias=value)
    refused("node 2 logits: weight or bias", out_weight=value)
    refused("node 1 conv: table value", table=np.full(512, value))
    refused("input table value", tables=np.full((1, 256), value))


def test_the_smallest_integer_is_huge():
    """abs(-2^63) is negative in 64 bits, and -2^63 times an even number is 0."""
    least, even = -(2**63), np.arange(256)[None] * 2
    refused("node 1 conv: weight or bias", weight=least, tables=even)
    refused("node 1 conv: weight or bias", bias=least)
    values = np.zeros(512, np.int64)
    values[256] = least
    refused("node 1 conv: table value", table=values, out_weight=0)
    even[0, 0] = least
    refused("input table value", weight=0, tables=even)


def test_sums_that_floating_point_cannot_hold_are_refused():
    """2^29 2^29 - 2^29 2^29 is 0, but what is added in between may be lost."""
    big = np.full((1, 1, 1, 1), 1 << 29)
    edges = Edge(0, big, W1, W1), Edge(0, -big, W1, W1)
    out = Node((Edge(1, np.ones((2, 1, 1, 1), np.int64), W1, W1),), np.zeros(2, np.int64))
    tables = np.full((1, 256), 1 << 29)
    with pytest.raises(ParameterError, match=r"node 1: .*not evaluated exactly"):
        Network((1, 1, 1), tables, (Node(edges, np.zeros(1, np.int64), 0, relu(9, 9)), out))


def test_padding_widens_the_range():
    """Zero is among the inputs of a padded edge, also when all values are positive."""
    table = relu(9, 255)
    edge = Edge(0, np.full((1, 1, 1, 1), 1), Window(1, 1, 1, 0), W1)
    low, high = affine_bounds(Node((edge,), np.zeros(1, np.int64), 0, table), [(np.array([5]), np.array([9]))])
    assert (low, high) == ([0], [9])
    edge = replace(edge, rows=W1)
    low, high = affine_bounds(Node((edge,), np.zeros(1, np.int64), 0, table), [(np.array([5]), np.array([9]))])
    assert (low, high) == ([5], [9])


# Structure


def broken(network, index, **changes):
    nodes = list(network.nodes)
    nodes[index] = replace(nodes[index], **changes)
    return lambda: Network(network.shape, network.input_tables, tuple(nodes))


def test_bad_structure_is_refused(network):
    first, last = network.nodes[0], network.nodes[-1]
    edge = first.edges[0]
    bad = {
        "the output": lambda: Network(network.shape, network.input_tables, network.nodes[:-1]),
        "last node": lambda: Network(network.shape, network.input_tables, ()),
        "only the last": broken(network, 0, table=None, shift=0),
        "input tables": lambda: Network(network.shape, network.input_tables[:, :255], network.nodes),
        "later node": broken(network, 0, edges=(replace(edge, source=1),)),
        "a window": broken(network, 0, edges=(replace(edge, rows=Window(3, 0, 1, 1)),)),
        "a.window": broken(network, 0, edges=(replace(edge, rows=Window(3, 1, 1 << 17, 1)),)),
        "window does not": broken(network, 0, edges=(replace(edge, rows=Window(3, 1, -2, -2)),)),
        "window.does not": broken(network, 0, edges=(replace(edge, pool=(Window(1, 1, 0, 0, 0), W1)),)),
        "does not fit": broken(network, 0, edges=(replace(edge, groups=3),)),
        "does not.fit": broken(network, 0, edges=(replace(edge, weight=edge.weight[:, :1]),)),
        "does.not fit": broken(network, 0, edges=(replace(edge, rows=Window(2)),)),
        "disagree": broken(network, 0, edges=(edge, replace(edge, rows=Window(3)))),
        "disagree.": broken(network, 0, edges=()),
        "bias must": broken(network, 0, bias=np.zeros(3, np.int64)),
        "2.bits entries": broken(network, 0, table=Table(11, np.zeros(2047, np.int64))),
        "shift out": broken(network, 0, shift=25),
        "shift out.": broken(network, len(network.nodes) - 1, shift=1),
        "one logit": broken(network, len(network.nodes) - 1, edges=(
            replace(last.edges[0], source=2, weight=np.zeros((10, 4, 1, 1), np.int64)),)),
        "two classes": broken(network, len(network.nodes) - 1, bias=np.zeros(1, np.int64), edges=(
            replace(last.edges[0], weight=last.edges[0].weight[:1]),)),
    }  # fmt: skip
    for match, make in bad.items():
        with pytest.raises(ParameterError, match=match):
            make()


# Encoding


@given(cases())
@settings(max_examples=25)
def test_encoding_round_trip(case):
    data = case.network.to_bytes()
    again = Network.from_bytes(data)
    assert again.to_bytes() == data and again.digest == case.network.digest
    assert (again.forward(case.images).logits == case.network.forward(case.images).logits).all()


def test_the_name_of_a_node_is_no_part_of_the_network(network):
    assert broken(network, 0, name="x")().digest == network.digest


def test_every_integer_is_in_the_digest(network):
    edge = network.nodes[0].edges[0]
    bumped = edge.weight.copy()
    bumped[0, 0, 0, 0] += 1
    table = network.nodes[0].table
    values = table.values.copy()
    values[0] += 1
    tables = network.input_tables.copy()
    tables[0, 0] += 1
    others = [
        broken(network, 0, edges=(replace(edge, weight=bumped),))(),
        broken(network, 0, bias=network.nodes[0].bias + 1)(),
        broken(network, 0, table=Table(table.bits, values))(),
        broken(network, 0, shift=network.nodes[0].shift + 1)(),
        broken(network, 0, edges=(replace(edge, rows=Window(3, 1, 0, 2)),))(),
        Network(network.shape, tables, network.nodes),
    ]
    assert len({n.digest for n in others} | {network.digest}) == 7


def decodes(data):
    """Whether the bytes are a network; any exception but the two allowed ones is a failure."""
    try:
        Network.from_bytes(data)
        return True
    except (DecodingError, ParameterError):
        return False


def test_truncated_and_longer_networks(network):
    data = network.to_bytes()
    for cut in [*range(60), *range(len(data) - 60, len(data)), *range(0, len(data), 997)]:
        with pytest.raises(DecodingError):
            Network.from_bytes(data[:cut])
    with pytest.raises(DecodingError, match="trailing"):
        Network.from_bytes(data + b"\0")
    with pytest.raises(DecodingError, match="wrong kind"):
        Network.from_bytes(b"Z" + data[1:])


SMALL = one_node(bits=3, weight=0).to_bytes()


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
@settings(max_examples=400)
def test_changed_bytes_are_another_network_or_none(position, byte):
    data = bytearray(SMALL)
    data[position] = byte
    if decodes(bytes(data)):
        assert Network.from_bytes(bytes(data)).to_bytes() == data


@given(st.binary(max_size=80))
def test_noise_is_no_network(tail):
    head = b"zkmark network 1\n"
    assert not decodes(head + tail)


def test_oversized_counts_do_not_allocate():
    head = b"zkmark network 1\n"
    big = (2**32 - 1).to_bytes(4, "little")
    one = (1).to_bytes(4, "little")
    for data in (head + big * 3, head + one * 3 + bytes(2048) + big, head + one * 3 + bytes(2048) + bytes(4) + big):
        assert not decodes(data)
    assert not decodes(head + one * 3 + bytes(2048) + one + bytes([MAX_TABLE_BITS + 1]))


def test_an_unused_table_or_another_order_is_not_canonical():
    """The encoding writes the used tables in order of first use, and nothing else is accepted."""
    head, rest = SMALL[: 17 + 12 + 2048], SMALL[17 + 12 + 2048 :]
    assert rest[:4] == (1).to_bytes(4, "little")
    table = rest[4 : 4 + 1 + 64]
    other = table[:1] + bytes(64)
    doubled = head + (2).to_bytes(4, "little") + table + other + rest[4 + 65 :]
    with pytest.raises(DecodingError, match="canonical"):
        Network.from_bytes(doubled)

"""The verifier's equations against their definitions, over shapes that no frozen proof has; see test_killers.py."""

from dataclasses import replace

import numpy as np

from protocol import field, layers, ligero
from protocol.layout import PRODUCTS, Layout
from protocol.multilinear import eq_tensor, lg
from protocol.network import Edge, Network, Node, Product, Table, Window
from protocol.pads import Need
from tests.protocol.test_killers import party, short_rows


def test_the_quadratic_test_is_the_combination_of_all_products():
    """Of arrays, row by row, and then of triples: x, y and x y lie as many rows apart as there are rows of triples."""
    shape, rng, t = replace(short_rows(), need=Need(free=700, triples=600)), np.random.default_rng(9), 4
    assert shape.triple_rows == 3
    words = rng.integers(0, field.P, (t, shape.column_rows), dtype=np.uint32)
    first = shape.image_rows + shape.array_total

    def row(number):
        return field.from_base(np.ascontiguousarray(words[:, first + 5 * number : first + 5 * number + 5].T))

    gaps = []
    for name_x, name_y, name_z in PRODUCTS:
        for i in range(shape.array_rows[name_x][1]):
            x, y, z = (words[:, shape.image_rows + shape.array_rows[name][0] + i].astype(object)
                       for name in (name_x, name_y, name_z))  # fmt: skip
            gaps.append(field.embed(((x * y - z) % field.P).astype(np.int64)))
    gaps += [field.sub(field.mul(row(r), row(3 + r)), row(6 + r)) for r in range(3)]
    coefficients = field.from_base(rng.integers(0, field.P, (5, len(gaps)), dtype=np.uint32))
    expected = field.zeros(t)
    for k, gap in enumerate(gaps):
        expected = field.add(expected, field.mul(gap, field.repeat(coefficients[:, k : k + 1], t)))
    assert field.equal(ligero._quadratic_at(shape, coefficients, words), expected)


def test_weights_of_taps_are_those_of_the_window():
    """Of every tap: the sum over the positions, and the inputs that they read, of eq at both points."""
    rng = np.random.default_rng(11)

    def reads(window, k, length):
        for a in range(window.outputs(length)):
            j = window.stride * a + window.dilation * k - window.pad_before
            if window.repeat > 1:
                yield a, min(max(j // window.repeat, 0), length - 1)
            elif 0 <= j < length:
                yield a, j

    def random(count):
        return field.from_base(rng.integers(0, field.P, (5, count), dtype=np.uint32))

    windows = [Window(3, 1, 1, 1), Window(2, 2, 0, 1), Window(2, 1, -1, 0, 2), Window(3, 1, 1, 1, 1, 2),
               Window(3, 2, 2, 2, 2, 3), Window(1, 1, 0, 0, 1, 2)]  # fmt: skip
    for window in windows:
        for pool in (None, Window(2, 2), Window(3, 1, 1, 1), Window(2, 1, 0, 0, 1, 2)):
            length = 6
            inner = pool.outputs(length) if pool else length
            outputs = window.outputs(inner)
            rho, point = random(lg(outputs)), random(lg(length))
            at, eq = eq_tensor((rho,), (outputs,)), eq_tensor((point,), (length,))
            read = [[q] for q in range(length)]
            if pool:
                taps = [tap for k in range(pool.kernel) for tap in reads(pool, k, length)]
                read = [[q for b, q in taps if b == a] for a in range(inner)]
            found = layers._axis_at(window, pool, rho, outputs, point, length)
            for k in range(window.kernel):
                expected = field.ZERO
                for a, i in reads(window, k, inner):
                    for q in read[i]:
                        expected = field.add(expected, field.mul(at[:, a : a + 1], eq[:, q : q + 1]))
                assert field.equal(found[:, k : k + 1], expected), (window, pool, k)


def test_claims_about_columns_are_at_points_of_their_axes():
    """Of products, too: of two tensors of one shape, and of a tensor and one value per channel."""
    one, rows, columns, table = Window(1), Window(2), Window(3), Table(9, np.zeros(512, np.int64))

    def edge(source, *weight):
        across = (one, one) if weight[2] == 1 else (rows, columns)
        return (Edge(source, np.ones(weight, np.int64), *across),)

    bias, h = np.zeros(3, np.int64), 5
    nodes = (
        Node(edge(0, 3, 1, 1, 1), bias, 0, table), Node(edge(0, 3, 1, 2, 3), bias, 0, table),
        Node((), bias, 0, table, product=Product(1, 2)), Node((), bias, 0, table, product=Product(3, 1)),
        Node(edge(4, 3, 3, 2, 3), bias),
    )  # fmt: skip
    layout = Layout(Network((1, 2, 3), np.arange(256)[None] % 2, nodes), h, 2)
    context = layers.Context(layout, field.constant(3), field.constant(5), None)
    claimed = set()
    for index in range(len(nodes) + 2):
        need = layers.need(layout, index)
        fork = party(need, field.embed(range(1, need.sent + 1)))
        layers.run(fork, context, index)
        fork.finish()
        for claim in (claim for form in fork.system.forms for claim in form.images):
            axes = layout.columns[claim.column][1]
            assert [coordinates.shape[1] for coordinates in claim.point] == [lg(n) for n in axes]
            assert fork.system.groups[claim.group].shape == (field.DEGREE, h) and claim.coefficient.any()
            claimed.add(claim.column)
    assert claimed == {*layout.columns}

"""One small key, one small network that carries its mark, a statement and a proof of it; and random small networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from protocol import argument
from protocol.argument import Context, Statement
from protocol.errors import ParameterError
from protocol.keygen import KeyParameters, MarkingKey, generate_key
from protocol.network import Edge, Network, Node, Product, Table, Window, affine_bounds, rounding_offset

SHAPE, CLASSES, ELL = (2, 5, 3), 10, 160
SEED = 4  # gives an odd number of hidden triggers
W1, W2, W3 = Window(1), Window(2), Window(3, 1, 1, 1)


def relu(bits: int, top: int) -> Table:
    half = 1 << (bits - 1)
    return Table(bits, np.clip(np.arange(-half, half), 0, top).astype(np.int64))


def body(seed: int = 1) -> list[Node]:
    """All kinds of nodes: convolution; pool, residual edge; shift 0 under another table; dense features."""
    rng = np.random.default_rng(seed)

    def weights(*shape: int, most: int) -> Any:
        return rng.integers(-most, most + 1, shape)

    table = relu(11, 255)
    return [
        Node((Edge(0, weights(4, 2, 3, 3, most=40), W3, W3),), weights(4, most=300), 7, table),
        Node((Edge(1, weights(4, 2, 3, 3, most=20), W3, W3, 2), Edge(1, np.full((4, 1, 1, 1), 32), W1, W1, 4)),
             weights(4, most=300), 7, table),
        Node((Edge(2, weights(3, 4, 1, 1, most=1), W1, W1),), weights(3, most=9), 0, relu(12, 511)),
        Node((Edge(3, weights(160, 3, 4, 2, most=9), Window(4), W2, 1, (W2, W2)), ), weights(160, most=900), 6,
             relu(13, 2047)),
    ]  # fmt: skip


def with_output(nodes: list[Node], weight: Any, bias: Any) -> Network:
    rng = np.random.default_rng(0)
    tables = np.sort(rng.integers(-128, 128, (SHAPE[0], 256)), axis=1)
    out = Node((Edge(len(nodes), np.asarray(weight, np.int64)[:, :, None, None], W1, W1),), np.asarray(bias, np.int64))
    return Network(SHAPE, tables, (*nodes, out))


def marked_network(key: MarkingKey, seed: int = 1) -> Network:
    """Random features and an exact fit of the hidden triggers to their labels by the output layer."""
    nodes = body(seed)
    blank = with_output(nodes, np.zeros((CLASSES, 160)), np.zeros(CLASSES))
    z = blank.forward(key.hidden_images).outputs[-1].reshape(160, -1).T.astype(float)
    targets = np.eye(CLASSES)[key.hidden_labels] * 2 - 1
    fit = (z.T @ np.linalg.solve(z @ z.T + 10 * np.eye(len(z)), targets)).T
    scale = 2000 / np.abs(fit).max()
    while True:
        try:
            return with_output(nodes, np.round(fit * scale), np.zeros(CLASSES))
        except ParameterError:
            scale *= 0.8


@pytest.fixture(scope="session")
def key() -> MarkingKey:
    random = Random(SEED).randbytes
    images = np.frombuffer(random(ELL * 30), np.uint8).reshape(ELL, *SHAPE)
    return generate_key(KeyParameters(SHAPE, CLASSES, ELL), images, entropy=random)


@pytest.fixture(scope="session")
def network(key: MarkingKey) -> Network:
    return marked_network(key)


@pytest.fixture(scope="session")
def statement(key: MarkingKey, network: Network) -> Statement:
    """A true statement: all hidden triggers match, and k_min is below their number."""
    context = Context("test", "claimant", "verifier", bytes(range(32)))
    return Statement(key.vk, network, key.vk.h - 5, context, b"m" * 32, b"d" * 32)


@pytest.fixture(scope="session")
def proof(statement: Statement, key: MarkingKey) -> bytes:
    return argument.prove(statement, key)


@dataclass(frozen=True)
class Case:
    """A network with a batch of images and labels for them."""

    network: Network
    images: Any
    labels: Any
    k_min: int


def finish(shape: tuple[int, int, int], tables: Any, nodes: list[Node], out: Node) -> Network:
    """The network, with every node's shift made as small as its table allows."""
    ranges = [(tables.min(axis=1), tables.max(axis=1))]
    fitted = []
    for node in nodes:
        assert node.table is not None
        low, high = affine_bounds(node, ranges)
        shift, half = 0, 1 << (node.table.bits - 1)
        while min(low) + rounding_offset(shift) < -half << shift or max(high) + rounding_offset(shift) >= half << shift:
            shift += 1
        fitted.append(replace(node, shift=shift))
        o = len(node.bias)
        ranges.append((np.full(o, node.table.values.min()), np.full(o, node.table.values.max())))
    return Network(shape, tables, (*fitted, out))


@st.composite
def windows(draw: Callable[..., Any], length: int) -> Window:
    """A window that gives at least one output over an axis of `length`."""
    kernel, stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    before, after = draw(st.integers(-1, 2)), draw(st.integers(-1, 2))  # a negative pad crops
    window = Window(kernel, stride, before, after, dilation, draw(st.sampled_from([1, 1, 2, 3])))
    return window if window.outputs(length) >= 1 else Window(1, stride)


@st.composite
def cases(draw: Callable[..., Any], least_h: int = 1) -> Case:
    """Random small networks: strides, paddings, dilations, groups, pools, residual edges, products, odd sizes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    shapes: list[tuple[int, int, int]] = [shape]
    tables = rng.integers(-100, 100, (shape[0], 256))
    shared = Table(8, rng.integers(-40, 90, 256))  # fits few nodes without a shift; the other table most
    nodes = []
    for _ in range(draw(st.integers(1, 3))):
        source = draw(st.integers(0, len(shapes) - 1))
        c, h, w = shapes[source]
        pool = None
        if draw(st.booleans()):
            pool = (draw(windows(h)), draw(windows(w)))
            h, w = pool[0].outputs(h), pool[1].outputs(w)
        groups = draw(st.sampled_from([1, c]))
        o = groups * draw(st.integers(1, 4 // groups))
        rows, columns = draw(windows(h)), draw(windows(w))
        weight = rng.integers(-5, 6, (o, c // groups, rows.kernel, columns.kernel))
        edges = [Edge(source, weight, rows, columns, groups, pool)]
        out = (o, rows.outputs(h), columns.outputs(w))
        if out in shapes and draw(st.booleans()):  # a residual edge
            edges.append(Edge(shapes.index(out), rng.integers(-3, 4, (o, 1, 1, 1)), W1, W1, o))
        table = shared if draw(st.booleans()) else Table(11, rng.integers(-100, 100, 2048))
        product = None
        if draw(st.integers(0, 2)) == 0:  # a product of two earlier nodes, alone or with a linear edge beside it
            left = draw(st.integers(0, len(shapes) - 1))
            out, o = shapes[left], shapes[left][0]
            rights = [k for k, s in enumerate(shapes) if s in (out, (o, 1, 1))]
            product = Product(left, draw(st.sampled_from(rights)))
            edges = [Edge(left, rng.integers(-3, 4, (o, 1, 1, 1)), W1, W1, o)] * draw(st.integers(0, 1))
        nodes.append(Node(tuple(edges), rng.integers(-50, 50, o), 0, table, product=product))
        shapes.append(out)
    c, h, w = shapes[-1]
    classes = draw(st.integers(2, 5))
    dense = Edge(len(nodes), rng.integers(-9, 10, (classes, c, h, w)), Window(h), Window(w))
    network = finish(shape, tables, nodes, Node((dense,), rng.integers(-50, 50, classes)))
    count = draw(st.integers(least_h, 7))
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    found = network.classify(images)
    labels = np.where((found >= 0) & (rng.random(count) < 0.8), found, rng.integers(0, classes, count))
    matched = int((found == labels).sum())
    assume(matched)
    return Case(network, images, labels, draw(st.integers(1, matched)))


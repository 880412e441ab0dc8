"""Random small networks of every kind of node over 1 x 4 x 4 images, and the bytes of networks that break a rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np

from protocol import network as module
from protocol.network import Edge, Network, Node, Product, Table, Window
from tests.adversary.faults import replaced
from tests.protocol import plain_network
from tests.protocol.conftest import finish

SHAPE = (1, 4, 4)
ONE, SAME, HALF = Window(1), Window(3, 1, 1, 1), Window(2, 2)
EDGES = (1 << 30, (1 << 30) - 1, module.MAX_OUTPUT, 1 << 24, 1 << 16, 4096, 300, 20)  # sizes near which rules end


def random_network(rng: np.random.Generator, classes: int) -> tuple[Network, set[str]]:
    """Two to four requant nodes, each of a random kind, and what kinds there are."""
    shapes: list[tuple[int, int, int]] = [SHAPE]
    tables = [Table(8, rng.integers(-40, 90, 256)), Table(10, np.clip(np.arange(-512, 512), 0, 255).astype(np.int64))]
    wide = Table(12, np.clip(np.arange(-2048, 2048), -300, 300).astype(np.int64))
    nodes: list[Node] = []
    used: set[str] = set()

    def weights(*shape: int) -> Any:
        return rng.integers(-6, 7, shape)

    for _ in range(int(rng.integers(2, 5))):
        source = int(rng.integers(max(0, len(shapes) - 2), len(shapes)))
        c, h, w = shapes[source]
        square = h >= 2 and w >= 2
        kind = str(rng.choice([
            "convolution", "groups", "stride", "dilation", "resample", "pool", "residual", "flat", "product", "gate"]))
        edges, product, o, table = [], None, int(rng.integers(2, 5)), tables[int(rng.integers(2))]
        if kind == "gate" and square:
            gate = Edge(source, weights(c, c, h, w), Window(h), Window(w))
            nodes.append(Node((gate,), rng.integers(-50, 50, c), 0, table))
            shapes.append((c, 1, 1))
            product, out = Product(source, len(nodes)), (c, h, w)
        elif kind == "product" and source:
            rights = [k for k, s in enumerate(shapes) if s == (c, h, w)]
            product, out = Product(source, int(rng.choice(rights))), (c, h, w)
        elif kind == "flat":  # small enough to do without a shift
            edges, out, table = [Edge(source, rng.integers(-1, 2, (c, 1, 1, 1)), ONE, ONE, c)], (c, h, w), wide
        elif kind == "pool" and square:
            edges, out = [Edge(source, weights(o, c, 1, 1), ONE, ONE, 1, (HALF, HALF))], (o, h // 2, w // 2)
        elif kind == "stride" and square:
            edges, out = [Edge(source, weights(o, c, 2, 2), HALF, HALF)], (o, h // 2, w // 2)
        elif kind == "dilation" and h >= 3 and w >= 3:
            apart = Window(2, 1, 1, 0, 2)
            edges = [Edge(source, weights(o, c, 2, 2), apart, apart)]
            out = (o, apart.outputs(h), apart.outputs(w))
        elif kind == "resample":
            sampled = Window(3, 2, 1, 1, 1, 2)
            edges = [Edge(source, weights(o, c, 3, 3), sampled, sampled)]
            out = (o, sampled.outputs(h), sampled.outputs(w))
        elif kind == "groups":
            o = 2 * c
            edges, out = [Edge(source, weights(o, 1, 3, 3), SAME, SAME, c)], (o, h, w)
        elif kind == "residual":
            shortcut = Edge(source, weights(c, 1, 1, 1), ONE, ONE, c)
            edges, out = [Edge(source, weights(c, c, 3, 3), SAME, SAME), shortcut], (c, h, w)
        else:
            kind, edges, out = "convolution", [Edge(source, weights(o, c, 3, 3), SAME, SAME)], (o, h, w)
        used.add(kind)
        nodes.append(Node(tuple(edges), rng.integers(-50, 50, out[0]), 0, table, product=product))
        shapes.append(out)
    c, h, w = shapes[-1]
    dense = Edge(len(nodes), rng.integers(-9, 10, (classes, c, h, w)), Window(h), Window(w))
    last = Node((dense,), rng.integers(-50, 50, classes))
    least = int(rng.choice([-100, 20]))  # above 0 it matters that padding is 0
    network = finish(SHAPE, np.sort(rng.integers(least, 120, (1, 256))), nodes, last)
    used |= {"shifted" if node.shift else "unshifted" for node in network.nodes[:-1]}
    return network, used


# Networks that are none


@contextmanager
def unchecked(shapes: Any) -> Iterator[None]:
    """Networks may break every rule; their shapes are said to be these."""
    with (
        replaced(module, "_infer_shapes", lambda _: lambda network: iter(shapes)),
        replaced(module, "_check_bounds", lambda _: lambda network: None),
    ):  # fmt: skip
        yield


def changed(random: Random, values: Any) -> Any:
    """One of the integers is another, often close to where a rule ends."""
    out = values.copy()
    value = random.choice(EDGES) + random.randint(-1, 1)
    out.reshape(-1)[random.randrange(out.size)] = random.choice([-1, 1]) * value
    return out


def broken_edge(random: Random, edge: Edge) -> Edge:
    kind = random.randrange(5)
    if kind == 0:
        return replace(edge, weight=changed(random, edge.weight))
    if kind == 1:
        return replace(edge, source=random.randint(0, 6))
    if kind == 2:
        return replace(edge, groups=random.choice([0, 1, 2, 3, 4, 1 << 31]))
    if kind == 3:
        axis = random.randrange(4)
        return replace(edge, weight=np.concatenate([edge.weight, edge.weight.take([0], axis)], axis))
    name = random.choice(["kernel", "stride", "pad_before", "pad_after", "dilation", "repeat"])
    windows = [edge.rows, edge.columns, *(edge.pool or ())]
    which = random.randrange(len(windows))
    now = getattr(windows[which], name)
    value = random.choice([now - 1, now + 1, 0, -1, 1 << 16, (1 << 16) + 1, 1 << 40])
    windows[which] = replace(windows[which], **{name: value})
    return replace(edge, rows=windows[0], columns=windows[1], pool=(windows[2], windows[3]) if edge.pool else None)


def broken_node(random: Random, node: Node) -> Node:
    kind = random.randrange(6)
    if kind == 0 and node.edges:
        at = random.randrange(len(node.edges))
        return replace(node, edges=(*node.edges[:at], broken_edge(random, node.edges[at]), *node.edges[at + 1 :]))
    if kind == 1:
        return replace(node, bias=changed(random, node.bias))
    if kind == 2:
        return replace(node, shift=random.choice([max(node.shift - 1, 0), node.shift + 1, 24, 25]))
    if kind == 3:
        return replace(node, product=random.choice([None, Product(random.randint(-1, 5), random.randint(-1, 5))]))
    if kind == 4:
        return replace(node, edges=random.choice([(), node.edges[1:], (*node.edges, *node.edges)]))
    if node.table is None:
        return replace(node, table=Table(3, np.zeros(8, np.int64)))
    half = Table(node.table.bits - 1, node.table.values[: len(node.table.values) // 2])
    tables = [None, half, Table(node.table.bits, changed(random, node.table.values)), Table(0, np.zeros(1, np.int64))]
    return replace(node, table=random.choice(tables))


def tight(random: Random, network: Network) -> tuple[int, Node]:
    """A requant node whose largest or smallest value is at the end of its table, or one beyond."""
    read = plain_network.Network(network.to_bytes())
    number = random.randrange(len(network.nodes) - 1)
    node, (low, high, _) = network.nodes[number], plain_network.reach(read.nodes[number], read.ranges)
    assert node.table is not None
    half, off = 1 << (node.table.bits + node.shift - 1), plain_network.offset(node.shift)
    least, most = -half - off, half - 1 - off
    move = random.choice([most - max(high), least - min(low)]) + random.randint(-1, 1)
    return number, replace(node, bias=node.bias + move)


def large(random: Random) -> bytes:
    """Two summands of some 2^51 that cancel: larger ones are not added exactly."""
    w = (1 << 25) + random.randint(-1, 1)
    first = Node((Edge(0, np.array([[[[w, -w]]]]), ONE, Window(2)),), np.zeros(1, np.int64), 0, Table(2, np.arange(4)))
    last = Node((Edge(1, np.ones((2, 1, 4, 3), np.int64), Window(4), Window(3)),), np.zeros(2, np.int64))
    with unchecked([SHAPE, (1, 4, 3), (2, 1, 1)]):
        return Network(SHAPE, np.full((1, 256), 1 << 26), (first, last)).to_bytes()


def long(random: Random) -> bytes:
    """A window over 2^16 inputs: 64 taps are not too many."""
    shape, kernel = (1, 1, 1 << 16), 64 + random.randint(-1, 1)
    window = Window(kernel, 1 << 16)
    last = Node((Edge(0, np.ones((2, 1, 1, kernel), np.int64), ONE, window),), np.zeros(2, np.int64))
    with unchecked([shape, (2, 1, 1)]):
        return Network(shape, np.arange(256)[None], (last,)).to_bytes()


def broken(random: Random, network: Network) -> bytes:
    """The encoding of a network with one change, or another encoding of the same, or a network at the end of a rule.

    Some are good all the same, but none is the network itself.
    """
    original = network.to_bytes()
    return next(data for data in iter(lambda: _broken(random, network), b"") if data != original)


def _broken(random: Random, network: Network) -> bytes:
    kind, nodes = random.randrange(12), list(network.nodes)
    if kind == 8:
        return random.choice([large, long])(random)
    if kind == 0:  # tables in another order, twice, or unused
        tables = network.tables()
        orders = [tables[::-1], [*tables, tables[0]], [*tables, Table(1, np.zeros(2, np.int64))]]
        with replaced(Network, "tables", lambda _: lambda self: random.choice(orders)):
            return network.to_bytes()
    changes: dict[str, Any] = {"nodes": nodes}
    if kind == 1:
        changes = {"input_tables": changed(random, network.input_tables)}
    elif kind == 2:
        nodes.insert(random.randrange(len(nodes) + 1), random.choice(nodes))
    elif kind == 3:
        del nodes[random.choice([0, -1])]
    elif kind < 8:
        at = random.randrange(len(nodes))
        nodes[at] = broken_node(random, nodes[at])
    else:
        at, node = tight(random, network)
        nodes[at] = node
    with unchecked(network.shapes):
        return replace(network, **changes).to_bytes()

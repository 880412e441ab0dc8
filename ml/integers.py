"""The network in real numbers -> integers: scales, weights, shifts, tables, so that the static bounds hold.

Every committed channel c has a scale s[c] on the grid 2^(k/8): the integer z stands for the real number s[c] * z.  A
node that reads it gets the weights

    W[o, c, k] = round(w[o, c, k] * s[c] * 2^shift / t[o]),    u[o] = floor((sum W z + off) / 2^shift) ~ y[o] / t[o].

Scales per channel make the result independent of a rescaling of one channel that the next layer undoes (cross-layer
equalization, Nagel et al. 2019, without a pass of its own).  The output scale t[o] is the larger of two numbers: the
range that the channel shows on the calibration images, times a headroom, over the largest z; and the range that it can
reach at all, over the largest u.  The second keeps |y| within the static bounds of `protocol.network`.

Calibration runs on the integer network itself, node by node, with provisional weights of some 25 bits: integer sums
below 2^53 are exact in any order, so no machine, thread count or BLAS can change a bit.  Real numbers appear only in
elementwise IEEE double operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import numpy.typing as npt

from ml.real_network import RealEdge, RealNetwork, RealNode
from protocol.errors import ParameterError
from protocol.network import MAX_OUTPUT, Edge, Network, Node, P, Table, affine, affine_bounds, rounding_offset

# 2^(j/8), correctly rounded
GRID = np.array([
    1.0, 1.0905077326652577, 1.189207115002721, 1.2968395546510096,
    1.4142135623730951, 1.5422108254079407, 1.681792830507429, 1.8340080864093424,
])  # fmt: skip
MAX_INPUT = 4095  # |x0|: one step of a pixel is about 16 units
Z_BITS = range(5, 13)  # the largest z of a node is 2^k - 1
PRECISION = 50  # provisional sums stay below 2^50 plus rounding
GATHERED = 1 << 24  # elements that one calibration step gathers
MAX_CALIBRATION = 1 << 29  # activations kept during calibration

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def to_integers(
    real: RealNetwork, images: npt.NDArray[np.uint8], table_bits: int, headroom: int
) -> tuple[Network, tuple[int, ...]]:
    """The integer network and the largest z of each requant node.

    images: uint8 [n, C, H, W] to calibrate on.  Raises ParameterError, naming the node, for weights out of all bounds.
    """
    if sum(prod(node.shape) for node in real.nodes) * len(images) > MAX_CALIBRATION:
        raise ParameterError("calibration: too many images for a network of this size")
    return _Quantiser(real, images, table_bits, headroom).run()


def grid(steps: Ints) -> Floats:
    """2^(steps / 8)."""
    values: Floats = np.ldexp(GRID[steps & 7], (steps >> 3).astype(np.int32))
    return values


def grid_above(x: Floats) -> Ints:
    """The smallest steps with 2^(steps / 8) >= x; 0 where x = 0."""
    mantissa, exponent = np.frexp(x)
    steps = 8 * (exponent.astype(np.int64) - 1) + np.searchsorted(GRID, 2 * mantissa)
    return np.where(x > 0, steps, 0)


class _Quantiser:
    """Walks the nodes in order.  Per graph node so far: scales, ranges (min, max per channel), calibration outputs."""

    def __init__(self, real: RealNetwork, images: npt.NDArray[np.uint8], table_bits: int, headroom: int) -> None:
        self.real, self.headroom = real, headroom
        self.shift = 31 - table_bits  # u and the remainder fill the field: 2^(table_bits + shift - 1) = 2^30
        self.offset, self.middle = rounding_offset(self.shift), 1 << (table_bits - 1)
        half = self.middle << self.shift
        self.limit = min(half - self.offset - 1, P - 1 - half - self.offset)  # of |y|: coverage, uniqueness modulo P
        self.shared: dict[tuple[str, int], Table] = {}
        values = real.scale[:, None] * np.arange(256) + real.shift[:, None]  # [C, 256]
        scale = grid(grid_above(np.abs(values).max(axis=1) / MAX_INPUT))
        self.input_tables = np.rint(values / scale[:, None]).astype(np.int64)
        self.scales = [scale]
        self.ranges = [(self.input_tables.min(axis=1), self.input_tables.max(axis=1))]
        pixels = zip(self.input_tables.astype(np.int32), images.transpose(1, 2, 3, 0), strict=True)
        self.outputs = [np.stack([table[channel] for table, channel in pixels])]

    def run(self) -> tuple[Network, tuple[int, ...]]:
        nodes, largest = [], []
        for number, real_node in enumerate(self.real.nodes, 1):
            seen, reach, unit = self.observe(real_node, number)
            if real_node.activation == "output":
                nodes.append(self.output(real_node, reach * unit))
            else:
                node, ceiling = self.requant(real_node, seen, reach, unit)
                nodes.append(node)
                largest.append(ceiling)
        return Network(self.real.shape, self.input_tables, tuple(nodes)), tuple(largest)

    def observe(self, node: RealNode, number: int) -> tuple[Floats, Floats, Floats]:
        """Per channel: the largest |y| on the calibration images, the largest possible |y|, both in units of a power
        of 2, and that unit."""
        products = [self.product(edge) for edge in node.edges]
        top, terms = np.abs(node.bias), 1
        for edge, product in zip(node.edges, products, strict=True):
            top = np.maximum(top, np.abs(product).max(axis=(1, 2, 3)))
            pooled = edge.pool[0].kernel * edge.pool[1].kernel if edge.pool else 1
            low, high = self.ranges[edge.source]
            terms += prod(edge.weight.shape[1:]) * pooled * int(max(high.max(), -low.min(), 1))
        if not (top < 2.0**900).all() or terms >= 1 << 40:
            raise ParameterError(
                f"node {number} {node.name!r}: weights up to {float(top.max()):.3g} in {terms} terms exceed the bounds"
            )
        exponent = (PRECISION - terms.bit_length() - np.frexp(top)[1]).clip(-900, 900)
        unit: Floats = np.ldexp(1.0, -exponent)
        provisional = self.node(node, unit, 0, None)
        low, high = affine_bounds(provisional, self.ranges)
        seen = np.max([np.abs(y).max(axis=(1, 2, 3)) for y in self.evaluate(provisional)], axis=0)
        return seen.astype(np.float64), np.maximum(-low, high).astype(np.float64), unit

    def requant(self, real_node: RealNode, seen: Floats, reach: Floats, unit: Floats) -> tuple[Node, int]:
        """The node with scales as in the module's docstring, and its largest z."""
        wanted, most = seen * self.headroom, self.limit >> self.shift
        live = wanted > 0
        ratio = float(np.sort(reach[live] / wanted[live])[live.sum() // 2]) if live.any() else 1.0
        # As many bits of z as leave the median channel its wanted scale in spite of its reach.
        bits = max([k for k in Z_BITS if ((1 << k) - 1) * ratio <= most], default=Z_BITS.start)
        ceiling = (1 << bits) - 1
        table = self.table(real_node.activation, ceiling)
        steps = grid_above(np.maximum(wanted / ceiling, reach / most) * unit)
        while True:
            node = self.node(real_node, grid(steps), self.shift, table)
            low, high = affine_bounds(node, self.ranges)
            over = np.maximum(-low, high) > self.limit  # rounding of the weights may exceed it by little
            if not over.any():
                break
            steps = steps + over
        self.scales.append(grid(steps))
        self.ranges.append((self.activate(table, low), self.activate(table, high)))  # every table is monotone
        outputs = [self.activate(table, y).astype(np.int32) for y in self.evaluate(node)]
        self.outputs.append(np.concatenate(outputs, axis=3))
        return node, ceiling

    def output(self, real_node: RealNode, reach: Floats) -> Node:
        """The output node: one scale for all logits, so that their order is that of the real ones."""
        steps = grid_above(np.full(len(reach), reach.max() / MAX_OUTPUT))
        while True:
            node = self.node(real_node, grid(steps), 0, None)
            if max(np.abs(bound).max() for bound in affine_bounds(node, self.ranges)) <= MAX_OUTPUT:
                return node
            steps = steps + 1

    def product(self, edge: RealEdge) -> Floats:
        """w * s of one edge; 0 where the source channel is always 0."""
        o, cg = edge.weight.shape[:2]
        source = (np.arange(o) // (o // edge.groups))[:, None] * cg + np.arange(cg)[None, :]
        low, high = self.ranges[edge.source]
        scale = np.where((low == 0) & (high == 0), 0.0, self.scales[edge.source])
        weight: Floats = edge.weight * scale[source][:, :, None, None]
        return weight

    def node(self, real_node: RealNode, scale: Floats, shift: int, table: Table | None) -> Node:
        """The integer node whose output channels have the given scales."""
        factor = float(1 << shift) / scale
        edges = []
        for e in real_node.edges:
            weight = np.rint(self.product(e) * factor[:, None, None, None]).astype(np.int64)
            edges.append(Edge(e.source, weight, e.rows, e.columns, e.groups, e.pool))
        return Node(tuple(edges), np.rint(real_node.bias * factor).astype(np.int64), shift, table, real_node.name)

    def table(self, activation: str, ceiling: int) -> Table:
        """clip(u, 0 or -ceiling, ceiling); nodes with the same one share it."""
        key = activation, ceiling
        if key not in self.shared:
            u = np.arange(-self.middle, self.middle)
            values = u.clip(0 if activation == "relu" else -ceiling, ceiling)
            self.shared[key] = Table(self.middle.bit_length(), values)
        return self.shared[key]

    def activate(self, table: Table, y: npt.NDArray[np.generic]) -> Ints:
        """table(u) of y."""
        values: Ints = table.values[((y.astype(np.int64) + self.offset) >> self.shift) + self.middle]
        return values

    def evaluate(self, node: Node) -> Iterator[Ints]:
        """y of a node over the calibration images, in slices that bound the memory."""
        gathered = max(
            prod(e.weight.shape[1:]) * e.groups * prod(self.outputs[e.source].shape[1:3]) for e in node.edges
        )
        size = max(1, GATHERED // gathered)
        for i in range(0, self.outputs[0].shape[3], size):
            yield affine(node, [x[..., i : i + size] for x in self.outputs])

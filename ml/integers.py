"""The network in real numbers -> integers: scales, weights, shifts, tables, so that the static bounds hold.

Every committed channel c has a scale s[c]: the integer z stands for the real number s[c] * z.  A node that reads it
gets the weights

    W[o, c, k] = round(w[o, c, k] * s[c] * 2^shift / t[o]),    u[o] = floor((sum W z + off) / 2^shift) ~ y[o] / t[o].

Activations with f(c x) = c f(x) have units t[o] of their own per channel, on the grid 2^(k/8), which makes the result
independent of a rescaling of one channel that the next layer undoes (cross-layer equalization, Nagel et al. 2019,
without a pass of its own).  t[o] is the larger of two numbers: the range that the channel shows on the calibration
images, times a headroom, over the largest z; and the range that it can reach at all, over the largest u.  The second
keeps |y| within the static bounds of `protocol.network`.  (A third one matters in files made to that end only: t[o] is
not finer than float32, in which a runtime adds the terms; `single`.)  Other activations have one power of 2 for all
channels, as fine as the bounds allow, and another one for their values.  Maxima keep the scales of what they compare;
the unit of a product is the product of the units, times 2^shift.

Calibration runs on the integer network itself, node by node, with provisional weights of some 25 bits: integer sums
below 2^53 are exact in any order, so no machine, thread count or BLAS can change a bit.  Real numbers appear only in
elementwise IEEE double operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np
import numpy.typing as npt

from ml.expressions import RELU, Expression, X
from ml.real_network import RealEdge, RealNetwork, RealNode
from ml.single import check_product, heard, spacing
from protocol.errors import ParameterError
from protocol.network import (
    MAX_OUTPUT,
    MAX_TABLE_BITS,
    Edge,
    Network,
    Node,
    P,
    Product,
    Table,
    affine,
    affine_bounds,
    rounding_offset,
)

# 2^(j/8), correctly rounded
GRID = np.array([
    1.0, 1.0905077326652577, 1.189207115002721, 1.2968395546510096,
    1.4142135623730951, 1.5422108254079407, 1.681792830507429, 1.8340080864093424,
])  # fmt: skip
MAX_INPUT = 4095  # |x0|: one step of a pixel is about 16 units
Z_BITS = range(5, 13)  # the largest z of a node is 2^k - 1
FINE_BITS = 12  # a wider table is taken where z would have fewer bits
TABLE_SHARE = 8  # ... of at most so many rows for every activation of the network: it is read some 500 times as often
COARSE = 1 << 12  # spacings of float32 that logits have room for at least, if their unit does not follow them
COMMON = 4  # times that all logits together may move further than each of them against the others
FINER_BITS = range(12, 15)  # of the z of a curve or a product, whose channels share a scale
WEIGHT_BITS = 6  # that the weights of the next layer keep on average
STEPS = 2048  # units of a curve between 0 and the largest y that calibration shows
PRECISION = 50  # provisional sums stay below 2^50 plus rounding
TABLE_WORK = 1 << 32  # elementwise operations for the tables of curves
TABLE_ROWS = 1 << 26  # of all different tables, 8 bytes each
GATHERED = 1 << 22  # elements that one calibration step gathers, where there are several images
MAX_CALIBRATION = 1 << 29  # activations kept during calibration
TOO_MANY_TABLES = "the activation tables: too many different functions; use ReLU, or one slope throughout"

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def to_integers(
    real: RealNetwork, images: npt.NDArray[np.uint8], table_bits: int, headroom: int
) -> tuple[Network, tuple[int, ...]]:
    """The integer network and the largest |z| of each requant node, in about `memory_bytes` of memory.

    images: uint8 [n, C, H, W] to calibrate on.  table_bits: least width of a table that carries a scale.  Raises
    ParameterError, naming the node, for weights out of all bounds.
    """
    if real.activations * len(images) > MAX_CALIBRATION:
        raise ParameterError("calibration: too many images for a network of this size")
    return _Quantiser(real, images, table_bits, headroom).run()


def memory_bytes(real: RealNetwork, images: int) -> int:
    """What `to_integers` and the real network take at most, about."""
    largest = max(prod(node.shape) for node in real.nodes)
    return 16 * real.weights + 4 * images * real.activations + 32 * max(GATHERED, largest)


def grid(steps: Ints) -> Floats:
    """2^(steps / 8)."""
    values: Floats = np.ldexp(GRID[steps & 7], (steps >> 3).astype(np.int32))
    return values


def grid_above(x: Floats) -> Ints:
    """The smallest steps with 2^(steps / 8) >= x; 0 where x = 0."""
    mantissa, exponent = np.frexp(x)
    steps = 8 * (exponent.astype(np.int64) - 1) + np.searchsorted(GRID, 2 * mantissa)
    return np.where(x > 0, steps, 0)


def _shift(bits: int) -> int:
    """u and the remainder fill the field: 2^(bits + shift - 1) = 2^30."""
    return 31 - bits


def _limit(bits: int) -> int:
    """Of |y| before a table of this width: coverage, uniqueness modulo P."""
    half, off = 1 << 30, rounding_offset(_shift(bits))
    return min(half - off - 1, P - 1 - half - off)


class _Quantiser:
    """Walks the nodes in order.  Per graph node so far: scales, ranges (min, max per channel), calibration outputs."""

    def __init__(self, real: RealNetwork, images: npt.NDArray[np.uint8], table_bits: int, headroom: int) -> None:
        self.real, self.headroom, self.images = real, headroom, len(images)
        self.last_read, self.fan = _last_read(real), _fan(real)
        rows = TABLE_SHARE * real.activations
        self.widths = [b for b in range(table_bits, MAX_TABLE_BITS + 1, 2) if b == table_bits or 1 << b <= rows]
        self.shared: dict[tuple[object, ...], Table] = {}
        self.table_work = self.table_rows = 0
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
            where = f"node {number} {real_node.name!r}"
            real_node = heard(real_node, where, self.ranges, self.scales)
            if real_node.expression is None:
                nodes.append(self.output(real_node, where))
                break
            if real_node.exact:
                node = self.maximum(real_node, where)
            elif real_node.product is not None:
                node = self.product(real_node, real_node.product, where)
            elif real_node.expression.homogeneous:
                node = self.homogeneous(real_node, where)
            else:
                node = self.curve(real_node, where)
            nodes.append(node)
            largest.append(self.append(node, number))
        return Network(self.real.shape, self.input_tables, tuple(nodes)), tuple(largest)

    def append(self, node: Node, number: int) -> int:
        """Evaluate a finished node on the calibration images; returns its largest |z|."""
        table, shift = _table(node), node.shift
        low, high = ((y.astype(np.int64) + rounding_offset(shift)) >> shift for y in affine_bounds(node, self.ranges))
        self.ranges.append(table.extremes(low, high))
        middle = 1 << (table.bits - 1)
        values = table.values.astype(np.int32)
        slices = [values[((y + rounding_offset(shift)) >> shift) + middle] for y in self.evaluate(node)]
        self.outputs.append(np.concatenate(slices, axis=3))
        for k in self.last_read.get(number, ()):
            self.outputs[k] = self.outputs[k][..., :0]
        return int(np.abs(table.values).max())

    def observe(self, node: RealNode, where: str) -> tuple[Floats, Floats, Floats, Floats]:
        """Per channel: the largest |y| on the calibration images, the largest possible |y|, both in units of a power
        of 2, that unit, and the spacing of float32 there."""
        top, terms = np.abs(node.bias), 1
        for edge in node.edges:
            top = np.maximum(top, np.abs(self.weighted(edge)).max(axis=(1, 2, 3)))
            pooled = edge.pool[0].kernel * edge.pool[1].kernel if edge.pool else 1
            low, high = self.ranges[edge.source]
            terms += prod(edge.weight.shape[1:]) * pooled * int(max(high.max(), -low.min(), 1))
        if not (top < 2.0**900).all() or terms >= 1 << 40:
            raise ParameterError(
                f"{where}: weights up to {float(top.max()):.3g} in {terms} terms exceed the bounds; scale the layer's "
                "weights down (batch normalization, weight decay), or give it fewer inputs"
            )
        exponent = (PRECISION - terms.bit_length() - np.frexp(top)[1]).clip(-900, 900)
        unit: Floats = np.ldexp(1.0, -exponent)
        provisional = self.node(node, unit, 0, None)
        low, high = affine_bounds(provisional, self.ranges)
        seen = np.max([np.abs(y).max(axis=(1, 2, 3)) for y in self.evaluate(provisional)], axis=0)
        reach = np.maximum(-low, high).astype(np.float64)
        return seen.astype(np.float64), reach, unit, spacing(node, provisional, unit, self.ranges, self.scales)

    # -- nodes ----------------------------------------------------------------------------------------------------

    def homogeneous(self, real_node: RealNode, where: str) -> Node:
        """ReLU, leaky ReLU or none: units per channel."""
        seen, reach, unit, gap = self.observe(real_node, where)
        ends = _expression(real_node)(np.array([-1.0, 1.0]))
        wanted = np.minimum(seen * self.headroom, reach * max(1.0, float(np.abs(ends).max())))
        live = wanted > 0
        ratio = float(np.sort(reach[live] / wanted[live])[live.sum() // 2]) if live.any() else 1.0
        width = next((b for b in self.widths if _max(FINE_BITS) * ratio <= _limit(b) >> _shift(b)), self.widths[-1])
        # As many bits of z as leave the median channel its wanted scale in spite of its reach.
        most = _limit(width) >> _shift(width)
        ceiling = max([_max(k) for k in Z_BITS if _max(k) * ratio <= most], default=_max(Z_BITS.start))
        table = self.table(_expression(real_node), width, 1.0, 1.0, ceiling, where)
        steps = grid_above(np.maximum(np.maximum(wanted / ceiling, reach / most) * unit, gap))
        while True:
            node = self.node(real_node, grid(steps), _shift(width), table)
            over = self.over(node, _limit(width))  # rounding of the weights may exceed it by little
            if not over.any():
                self.check_scales(_expression(real_node), table, ceiling, grid(steps), where)
                self.scales.append(grid(steps))
                return node
            steps = steps + over

    def curve(self, real_node: RealNode, where: str) -> Node:
        """Any other function: one power of 2 as the unit of all channels, another one for the values."""
        seen, reach, unit, gap = self.observe(real_node, where)
        largest, shown = float((reach * unit).max()), float((seen * unit).max())
        for width in self.widths:
            exponent = _above(max(largest / (_limit(width) >> _shift(width)), float(gap.max())))
            if np.ldexp(float(STEPS), exponent) <= shown:
                break
        while True:
            t = float(np.ldexp(1.0, exponent))
            node = self.node(real_node, np.full(len(unit), t), _shift(width), None)
            if not self.over(node, _limit(width)).any():
                break
            exponent += 1
        expression, reached = _expression(real_node), min(shown * self.headroom, largest)
        x = np.arange(-int(min(reached / t, 1 << (width - 1))), int(min(reached / t, (1 << (width - 1)) - 1)) + 1) * t
        y = self.evaluate_curve(expression, x)
        step = float(np.abs(np.diff(y)).max(initial=0.0))
        within = float(np.abs(y[np.abs(x) <= shown]).max(initial=0.0))
        # No finer than the largest step of the function, unless it has too few values.
        for bits in self.finer_bits():
            finest = _above(float(np.abs(y).max()) / _max(bits))
            scale = float(np.ldexp(1.0, max(finest, min(_above(step), finest + 3))))
            if scale * STEPS <= within:
                break
        table = self.table(expression, width, t, scale, _max(bits), where)
        self.scales.append(np.full(len(unit), scale))
        return Node(node.edges, node.bias, node.shift, table, real_node.name)

    def maximum(self, real_node: RealNode, where: str) -> Node:
        """A step of a maximum, exactly: integers with the scales of their source, not shifted."""
        source = real_node.edges[0].source
        low, high = self.ranges[real_node.origin if real_node.lift else source]
        bias = -real_node.lift * low if real_node.lift else np.zeros(len(low), np.int64)
        edges = tuple(
            Edge(e.source, np.rint(e.weight).astype(np.int64), e.rows, e.columns, e.groups) for e in real_node.edges
        )
        node = Node(edges, bias, 0, None, real_node.name)
        least, most = affine_bounds(node, self.ranges)
        width = max(int(most.max()) + 1, -int(least.min()), 1).bit_length() + 1
        if width > MAX_TABLE_BITS:
            raise ParameterError(f"{where}: the values of a maximum need {width} bits; put a Clip before it")
        if real_node.expression == RELU or real_node.lift == 1:
            bounds = 0, int((high - np.minimum(low, 0)).max())
        else:
            bounds = min(int(low.min()), 0), max(int(high.max()), 0)
        key = ("clip", width, *bounds)
        if key not in self.shared:
            self.shared[key] = Table(width, self.units(width).clip(*bounds))
        self.scales.append(self.scales[source])
        return Node(edges, bias, 0, self.shared[key], real_node.name)

    def product(self, real_node: RealNode, product: Product, where: str) -> Node:
        """A product: its unit is that of the integers, times the shift that leaves FINER_BITS to values to expect."""
        node = Node((), np.zeros(len(real_node.bias), np.int64), 0, None, real_node.name, product)
        bounds = np.abs(np.stack(affine_bounds(node, self.ranges))).max(axis=0)  # [C]
        largest = int(bounds.max())
        seen = max(int(np.abs(y).max()) for y in self.evaluate(node))
        for bits in self.finer_bits():
            shift = max(0, min(seen * self.headroom, largest).bit_length() - bits)
            if seen >> shift >= STEPS:
                break
        while (width := ((largest + rounding_offset(shift)) >> shift).bit_length() + 1) > self.widths[-1]:
            shift += 1
        factor = np.ones(1) if real_node.factor is None else real_node.factor
        scale = factor * self.scales[product.left] * self.scales[product.right] * float(1 << shift)
        check_product(product, scale, bounds, where, self.ranges, self.scales)
        self.scales.append(scale)
        table = self.table(X, width, 1.0, 1.0, _max(bits), where)
        return Node((), node.bias, shift, table, real_node.name, product)

    def output(self, real_node: RealNode, where: str) -> Node:
        """The output node: one scale for all logits, so that their order is that of the real ones.

        What is added to all of them alike changes no class.  Where it would take most of the precision, it is left out.
        Logits are finer than float32 as a rule; they are as coarse where that would round most of them away.
        """
        reduced = _without_common(real_node)
        (reach, gap), (less, finer) = self.reach(real_node, where), self.reach(reduced, where)
        if less * COMMON < reach:
            real_node, reach, gap = reduced, less, finer
        step = max(reach / MAX_OUTPUT, gap if gap * COARSE > reach else 0.0)
        steps = grid_above(np.full(len(real_node.bias), step))
        while True:
            node = self.node(real_node, grid(steps), 0, None)
            if not self.over(node, MAX_OUTPUT).any():
                return node
            steps = steps + 1

    def finer_bits(self) -> range:
        """What the values of the next node may have: more leave fewer to the weights of those that read it."""
        most = 30 - WEIGHT_BITS - (self.fan.get(len(self.outputs), 1) - 1).bit_length()
        return range(FINER_BITS.start, max(FINER_BITS.start, min(most, FINER_BITS.stop - 1)) + 1)

    # -- pieces ---------------------------------------------------------------------------------------------------

    def reach(self, node: RealNode, where: str) -> tuple[float, float]:
        """The largest possible |y| of a node, and the coarsest spacing of float32 there."""
        _, reach, unit, gap = self.observe(node, where)
        return float((reach * unit).max()), float(gap.max())

    def over(self, node: Node, limit: int) -> npt.NDArray[np.bool_]:
        """Channels whose |y| may exceed a limit."""
        low, high = affine_bounds(node, self.ranges)
        return np.asarray(np.maximum(-low, high) > limit, np.bool_)

    def weighted(self, edge: RealEdge) -> Floats:
        """w * s of one edge; 0 where the source channel is always 0."""
        low, high = self.ranges[edge.source]
        scale = np.where((low == 0) & (high == 0), 0.0, self.scales[edge.source])
        weight: Floats = edge.weight * scale[edge.sources][:, :, None, None]
        return weight

    def node(self, real_node: RealNode, scale: Floats, shift: int, table: Table | None) -> Node:
        """The integer node whose output channels have the given scales."""
        factor = float(1 << shift) / scale
        edges = []
        for e in real_node.edges:
            weight = np.rint(self.weighted(e) * factor[:, None, None, None]).astype(np.int64)
            edges.append(Edge(e.source, weight, e.rows, e.columns, e.groups, e.pool))
        return Node(tuple(edges), np.rint(real_node.bias * factor).astype(np.int64), shift, table, real_node.name)

    def table(self, expression: Expression, width: int, unit: float, scale: float, ceiling: int, where: str) -> Table:
        """expression(unit * u) / scale, clipped to +-ceiling; nodes with the same one share it.

        Where float32 is off by more than one of its steps, the table is what float32 finds.
        """
        key = expression, width, unit, scale, ceiling
        if key not in self.shared:
            x = self.units(width) * unit
            values = self.evaluate_curve(expression, x) / scale
            single = _in_float32(expression, x, scale)
            if not np.isfinite(single).all():
                raise ParameterError(f"{where}: its activation function overflows float32")
            values = np.where(np.abs(values - single) <= 1.0, values, single)
            self.shared[key] = Table(width, np.rint(values).clip(-ceiling, ceiling).astype(np.int64))
        return self.shared[key]

    def check_scales(self, expression: Expression, table: Table, ceiling: int, scale: Floats, where: str) -> None:
        """Raise ParameterError unless float32 finds the table at the scales of all channels, the table's own being 1.

        The least and the largest are enough: what underflows or overflows does so there.
        """
        if expression.arguments in ((), (X,)):  # one operation, which cannot be taken back
            return
        for unit in (float(scale.min()), float(scale.max())):
            x = np.arange(-len(table.values) // 2, len(table.values) // 2) * unit
            self.spend(expression, x)
            single = _in_float32(expression, x, unit)
            close = np.abs(single.clip(-ceiling, ceiling) - table.values) <= 2.0
            if not (np.isfinite(single) & close).all():
                raise ParameterError(f"{where}: its activation function underflows or overflows float32")

    def units(self, width: int) -> Ints:
        """The arguments of one more table."""
        self.table_rows += 1 << width
        if self.table_rows > TABLE_ROWS:
            raise ParameterError(TOO_MANY_TABLES)
        return np.arange(-(1 << (width - 1)), 1 << (width - 1))

    def spend(self, expression: Expression, x: npt.NDArray[np.floating] | Ints) -> None:
        """Count an evaluation before it is made; ParameterError over the cap."""
        self.table_work += expression.cost * len(x)
        if self.table_work > TABLE_WORK:
            raise ParameterError(TOO_MANY_TABLES)

    def evaluate_curve(self, expression: Expression, x: npt.NDArray[np.floating] | Ints) -> Floats:
        self.spend(expression, x)
        return expression(x.astype(np.float64))

    def evaluate(self, node: Node) -> Iterator[Ints]:
        """y of a node over the calibration images, in slices that bound the memory."""
        gathered = [prod(e.weight.shape[1:]) * e.groups * prod(self.outputs[e.source].shape[1:3]) for e in node.edges]
        gathered.append(prod(self.real.nodes[len(self.outputs) - 1].shape))
        size = max(1, GATHERED // max(gathered))
        read = {*(e.source for e in node.edges), *((node.product.left, node.product.right) if node.product else ())}
        for i in range(0, self.images, size):
            yield affine(node, {k: self.outputs[k][..., i : i + size] for k in read})


def _in_float32(expression: Expression, x: npt.NDArray[np.floating], unit: float) -> Floats:
    """Its values as a runtime rounds them, in units."""
    with np.errstate(all="ignore"):
        return np.asarray(expression(x.astype(np.float32)).astype(np.float64) / unit)


def _max(bits: int) -> int:
    return (1 << bits) - 1


def _above(x: float) -> int:
    """The smallest exponent with 2^exponent >= x; 0 where x = 0."""
    mantissa, exponent = np.frexp(x)
    return int(exponent) - int(mantissa == 0.5) if x > 0 else 0


def _table(node: Node) -> Table:
    if node.table is None:
        raise RuntimeError("not a requant node")
    return node.table


def _expression(node: RealNode) -> Expression:
    if node.expression is None:
        raise RuntimeError("not a requant node")
    return node.expression


def _without_common(node: RealNode) -> RealNode:
    """The output node without the middle of each column of weights and of the biases."""

    def rest(array: Floats) -> Floats:
        return np.asarray(array - (array.max(axis=0) / 2 + array.min(axis=0) / 2))

    edges = tuple(replace(e, weight=rest(e.weight)) if e.groups == 1 else e for e in node.edges)
    return replace(node, edges=edges, bias=rest(node.bias))


def _fan(real: RealNetwork) -> dict[int, int]:
    """By graph node: the most terms of a sum that reads it."""
    fan: dict[int, int] = {}
    for node in real.nodes:
        pools = (e.pool[0].kernel * e.pool[1].kernel if e.pool else 1 for e in node.edges)
        terms = sum(prod(e.weight.shape[1:]) * pool for e, pool in zip(node.edges, pools, strict=True))
        fan |= {e.source: max(terms, fan.get(e.source, 1)) for e in node.edges}
    return fan


def _last_read(real: RealNetwork) -> dict[int, list[int]]:
    """By node: the graph nodes that no later node reads."""
    last: dict[int, int] = {}
    for number, node in enumerate(real.nodes, 1):
        product = (node.product.left, node.product.right) if node.product else ()
        last |= dict.fromkeys((*(e.source for e in node.edges), *product), number)
    read: dict[int, list[int]] = {}
    for source, number in last.items():
        read.setdefault(number, []).append(source)
    return read

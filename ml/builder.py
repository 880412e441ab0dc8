"""Linear maps of committed tensors, and where they end in nodes: the machinery under `lowering`.

Scales, shifts, batch normalization, paddings, average pools, sums and concatenations compose into the edges of the next
node.  An activation function, a linear operator that cannot be composed, a maximum or a product ends a value and makes
nodes.  Only elementwise IEEE double operations in a fixed order are used, so that every machine finds the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from math import prod

import numpy as np

from ml.expressions import RELU, Expression, X
from ml.real_network import (
    Floats,
    Ints,
    RealEdge,
    RealNetwork,
    RealNode,
    Shape,
    Tensor,
    Value,
    Windows,
    diagonal,
)
from ml.rounding import Steps, single
from ml.windows import along, behind, cropped, difference_edge, has_pads, inner_outputs, runs, some_taps, unit_edge
from protocol.errors import ParameterError
from protocol.network import IDENTITY, MAX_NODES, Product, Window, read_channels

MAX_ACTIVATIONS = 1 << 24  # of one image, over all nodes
MAX_TAPS = 1 << 28  # elements that one edge gathers for one image
MAX_WEIGHTS = 3 << 25  # made on the way; one tensor of the file may be used many times
MAX_WORK = 1 << 33  # multiplications for one image, over all nodes; and taps of all windows, as a runtime takes them
MEMORY_WORK = 16  # multiplications of a matrix product that take as long as one operation on memory
MAX_TERMS = 4  # edges of a sum; a longer one (a residual stream) is committed in between
MAX_PARTS = 8  # of a tensor whose channels were rearranged; more are committed as one
LARGE_POOL = 16  # times the size of its output: an average pool that is committed
LARGE_KERNEL = 4  # values whose mean is a resized pixel: from more on it is committed
LARGEST_KERNEL = 1 << 12  # of rows and columns at once: the unit of such a sum is still far below that of a pixel
MAX_MAGNITUDE = 2.0**120  # of a weight or a bias after composition; an exact copy may be rescaled by 2^100
MAX_REGIONS = 25  # of a padded average, by how many entries its windows have: each is an edge
MAX_STEPS = 64  # taps of one axis of a maximum: each is a node

TOO_LARGE = "the network is too large: fewer channels or smaller images help"
_PIXEL = -1  # source of a value that is still an affine of raw pixels; 0 is the input after its table

Fail = Callable[[str], ParameterError]


class Builder:
    """The nodes so far, and the operations that make values and nodes.  `fail` makes the error for an operator."""

    def __init__(
        self, shape: Shape, preprocess: tuple[tuple[float, float], ...], resize: Windows | None = None
    ) -> None:
        """shape: of the images; resize: what resamples their rows and columns to those of the model."""
        if len(preprocess) not in (0, shape[0]):
            raise ParameterError(f"preprocessing is given for {len(preprocess)} channels, the model has {shape[0]}")
        pairs = np.array(preprocess or ((1.0, 0.0),) * shape[0])
        self.shape, self.resize = shape, resize
        seen = shape
        if resize is not None:
            seen = shape[0], resize[0].outputs(shape[1]), resize[1].outputs(shape[2])
        self.image = Tensor((Value((diagonal(_PIXEL, pairs[:, 0]),), pairs[:, 1], seen),))
        self.input_affine: tuple[Floats, Floats] | None = None
        self.input: Value | None = None  # what the model sees, normalized
        self.renormalized: dict[int, tuple[Value, Value]] = {}  # by id: a value with another normalization, settled
        self.nodes: list[RealNode] = []
        self.nonnegative: set[int] = set()  # graph nodes that are never negative
        self.committed: dict[int, tuple[Value, Value]] = {}  # by id of a value: it, and its identity node
        self.activations = self.weights = self.work = self.taps = 0

    def network(self, logits: Tensor, name: str) -> RealNetwork:
        """The network that ends in these logits."""
        value = self.settled(self.single(logits))
        self._append(RealNode(value.edges, value.constant, value.shape, None, name))
        scale, shift = self.input_affine or (np.ones(self.shape[0]), np.zeros(self.shape[0]))
        return RealNetwork(self.shape, scale, shift, tuple(self.nodes))

    # -- nodes ----------------------------------------------------------------------------------------------------

    def node(self, value: Value, expression: Expression, name: str) -> Value:
        """End a value with a node; returns the plain value of its output."""
        value = self.settled(value)
        edge = value.plain
        if expression == RELU and edge is not None and edge.source in self.nonnegative:
            if (edge.weight >= 0).all() and (value.constant >= 0).all():
                return value
        self._append(RealNode(value.edges, value.constant, value.shape, expression, name))
        low = min(expression.parameters, default=0.0)
        if expression.kind in ("relu", "sigmoid") or (expression.kind == "clip" and low >= 0):
            self.nonnegative.add(len(self.nodes))
        return self._output()

    def _append(self, node: RealNode) -> None:
        where = f"node {len(self.nodes) + 1} {node.name!r}"
        peaks = [float(np.abs(array).max(initial=0)) for array in (node.bias, *(e.weight for e in node.edges))]
        if not all(peak <= MAX_MAGNITUDE for peak in peaks):
            raise ParameterError(f"{where}: weight or bias of {max(peaks):.3g}, over 2^120; scale the layer down")
        self.activations += prod(node.shape)
        for e in node.edges:
            taps = prod(node.shape[1:]) * prod(e.weight.shape[1:])
            self.spend(0, len(e.weight) * taps, where)
            if taps * e.groups > MAX_TAPS:
                raise ParameterError(f"{where}: {TOO_LARGE}")
        if self.activations > MAX_ACTIVATIONS or len(self.nodes) >= MAX_NODES:
            raise ParameterError(f"{where}: too many activations or nodes; {TOO_LARGE}")
        self.nodes.append(node)

    def spend(self, weights: int, work: int, where: str) -> None:
        """Count weights and multiplications for one image before they are made; ParameterError over the caps."""
        self.weights += weights
        self.work += work
        if self.weights > MAX_WEIGHTS or self.work > MAX_WORK:
            raise ParameterError(f"{where}: {TOO_LARGE}")

    def _take(self, fail: Fail, taps: int) -> None:
        """Count what a window reads, whether or not a node will need it: the float reference runs everything."""
        self.taps += max(taps, 0)
        if self.taps > MAX_WORK:
            raise fail(TOO_LARGE)

    def _output(self) -> Value:
        """The plain value of the last node."""
        shape = self.nodes[-1].shape
        return Value((diagonal(len(self.nodes), np.ones(shape[0])),), np.zeros(shape[0]), shape)

    def settled(self, value: Value) -> Value:
        """The same value with its affine of raw pixels moved into the input table, or relative to what is in there."""
        edge = value.plain
        if edge is None or edge.source != _PIXEL:
            return value
        scale, shift = edge.weight[:, 0, 0, 0], value.bias
        if self.input is None or self.input_affine is None:
            self.input_affine = scale, shift
            pixels = Value((diagonal(0, np.ones(len(scale))),), np.zeros(len(shift)), self.shape)
            self.input = _normalized(self._resized(pixels), edge)
        first_scale, first_shift = self.input_affine
        same = np.array_equal(scale, first_scale) and np.array_equal(shift, first_shift)
        if same and edge.way.like(self.input.edges[0].way):
            return self.input
        if not first_scale.all():
            raise ParameterError("ONNX model: the image enters with two normalizations, and one multiplies it by 0")
        if id(value) not in self.renormalized:
            ratio = scale / first_scale
            again = self.input.affine(ratio, shift - ratio * first_shift)
            again = replace(again, stepwise=again.bias + (value.rounded - value.bias))
            self.renormalized[id(value)] = value, _normalized(again, edge)
        return self.renormalized[id(value)][1]

    def _resized(self, image: Value) -> Value:
        """The image in the size of the model; committed where many values are averaged, as they need small weights."""
        if self.resize is None:
            return image
        rows, columns = self.resize
        both = rows.kernel * columns.kernel
        for windows in [(rows, columns)] if both <= LARGEST_KERNEL else [(rows, IDENTITY), (IDENTITY, columns)]:
            edge, name = image.edges[0], "resize"
            shape = self._pooled(ParameterError, image, windows)
            scale = edge.weight[:, 0, 0, 0] / float(windows[0].kernel * windows[1].kernel)
            image = replace(image, edges=(diagonal(edge.source, scale, windows),), shape=shape)
            image = self.commit(image, name) if both > LARGE_KERNEL else image
        return image

    def commit(self, value: Value, name: str) -> Value:
        """The value ended by an identity node, once."""
        known = self.committed.get(id(value))
        if known is None:
            known = self.committed[id(value)] = value, self.node(value, X, name)
        return known[1]

    def plain(
        self, value: Value, name: str, *, unshifted: bool = False, unpooled: bool = False, positive: bool = False,
        uncropped: bool = False,
    ) -> tuple[RealEdge, Value]:  # fmt: skip
        """A value that is one scaled source: as it is, or ended by an identity node.

        unshifted: zeros may be put around it.  uncropped: what is around it may be taken for zeros.
        """
        value = self.settled(value)
        edge = value.plain
        if edge is None or (unshifted and (value.bias.any() or value.rounded.any())) or (unpooled and edge.pool) or (
            positive and not (edge.weight > 0).all()
        ) or ((unshifted or uncropped) and cropped(edge)):
            value = self.commit(value, name)
            edge = value.edges[0]
        return edge, value

    # -- tensors --------------------------------------------------------------------------------------------------

    def scaled(self, tensor: Tensor, scale: Floats | float, shift: Floats | float, steps: Steps = ()) -> Tensor:
        """scale[c] * tensor + shift[c]; scale and shift are numbers, or have one number per channel.

        steps: those of the file that make it, if it has more than this one.
        """
        if (scale, shift) == (1.0, 0.0) and not steps if isinstance(scale, float) else False:
            return tensor
        (scales, shifts), *known = (
            [
                tensor.spread(np.broadcast_to(np.asarray(v, np.float64), tensor.shape[:1]), fill=fill)
                for v, fill in zip(step, (1.0, 0.0), strict=True)
            ]
            for step in ((scale, shift), *steps)
        )
        size = sum(e.weight.size for p in tensor.parts for e in p.edges)
        self.spend(size, MEMORY_WORK * size, "a chain of scales")
        pairs = zip(tensor.parts, tensor.slices(), strict=True)
        parts = (part.affine(scales[s], shifts[s], tuple((a[s], b[s]) for a, b in known)) for part, s in pairs)
        return replace(tensor, parts=tuple(parts))

    def single(self, tensor: Tensor) -> Value:
        """The tensor as one value: the edges of each part write its channels only."""
        if len(tensor.parts) == 1 and tensor.order is None:
            return tensor.parts[0]
        places, total = tensor.places(), tensor.shape[0]
        edges, bias, rounded = [], np.zeros(total), np.zeros(total)
        for part, at in zip(tensor.parts, tensor.slices(), strict=True):
            rows = np.flatnonzero((at.start <= places) & (places < at.stop))
            value, chosen = self.settled(part), places[rows] - at.start
            bias[rows], rounded[rows] = value.bias[chosen], value.rounded[chosen]
            for edge in value.edges:
                size = edge.weight.size // len(edge.weight) * edge.groups
                self.spend(total * size, 0, "a concatenation")
                edges.append(edge.chosen(chosen.tolist(), rows.tolist(), total))
        return Value(tuple(edges), bias, (total, *tensor.parts[0].shape[1:]), rounded)

    def complete(self, tensor: Tensor) -> Tensor:
        """The tensor with all channels of its parts, in whatever order."""
        return tensor if tensor.whole else replace(tensor, parts=(self.single(tensor),), order=None)

    def select(self, tensor: Tensor, channels: Ints, name: str) -> Tensor:
        """Chosen channels in a chosen order: nothing but other weights in what reads them."""
        order, parts, start = tensor.places()[channels], [], 0
        moved = np.empty_like(order)
        for part, at in zip(tensor.parts, tensor.slices(), strict=True):
            inside = (at.start <= order) & (order < at.stop)
            if inside.any():  # parts that nothing is taken from are forgotten
                moved[inside] = order[inside] - at.start + start
                parts.append(part)
                start += part.shape[0]
        if start == len(moved) and np.array_equal(moved, np.arange(start)):
            return replace(tensor, parts=tuple(parts), order=None)
        chosen = replace(tensor, parts=tuple(parts), order=moved)
        if len(np.unique(moved)) < len(moved):
            return replace(chosen, parts=(self.single(chosen),), order=None)
        if len(parts) > MAX_PARTS:
            return replace(chosen, parts=(self.commit(self.single(chosen), name),), order=None)
        return chosen

    def aligned(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Both tensors with parts of the same channels."""
        same = [p.shape[0] for p in left.parts] == [p.shape[0] for p in right.parts]
        if same and np.array_equal(left.places(), right.places()):
            return left, right
        first, second = (replace(t, parts=(self.single(t),), order=None) for t in (left, right))
        return first, second

    def add(self, left: Tensor, right: Tensor, name: str) -> Tensor:
        """left + right, of one shape."""
        left, right = self.aligned(left, right)
        parts = []
        for pair in zip(left.parts, right.parts, strict=True):
            terms = [self.settled(self.committed.get(id(v), (v, v))[1]) for v in pair]
            for index in sorted((0, 1), key=lambda k: -len(terms[k].edges)):
                if len(terms[0].edges) + len(terms[1].edges) > MAX_TERMS:
                    terms[index] = self.commit(terms[index], name)
            bias = terms[0].bias + terms[1].bias
            rounded = single(terms[0].rounded + terms[1].rounded)
            parts.append(Value(_summed(terms, bias), bias, terms[0].shape, rounded))
        return replace(left, parts=tuple(parts))

    def product(self, left: Tensor, right: Tensor, name: str) -> Tensor:
        """left * right entrywise; right has the shape of left, or one value per channel."""
        left, right = self.aligned(left, right)
        parts = []
        for a, b in zip(left.parts, right.parts, strict=True):
            factor, sources = np.ones(a.shape[0]), []
            for value in (a, b):
                edge, _ = self.plain(value, name, unshifted=True, unpooled=True, positive=True)
                if edge.rows != IDENTITY or edge.columns != IDENTITY or not edge.way.plain(edge.weight):
                    edge = self.commit(value, name).edges[0]
                factor = factor * edge.weight[:, 0, 0, 0]
                sources.append(edge.source)
            product = Product(*sources)
            self._append(RealNode((), np.zeros(a.shape[0]), a.shape, X, name, product, factor))
            if set(sources) <= self.nonnegative:
                self.nonnegative.add(len(self.nodes))
            parts.append(self._output())
        return replace(left, parts=tuple(parts))

    # -- windows --------------------------------------------------------------------------------------------------

    def convolve(
        self, fail: Fail, name: str, tensor: Tensor, weight: Floats, bias: Floats, windows: Windows, groups: int
    ) -> Tensor:
        """A convolution with weight [O, C // groups, KH, KW]."""
        o, cg, kh, kw = weight.shape
        c = tensor.shape[0]
        if groups < 1 or cg * groups != c or o % groups or min(kh, kw, o) < 1:
            raise fail(f"weight {weight.shape} does not fit input {tensor.shape} with {groups} groups")
        if groups > 1:
            if tensor.order is not None and tensor.whole and groups == c == o:  # its channels may stay where they are
                weight, bias = tensor.spread(weight), tensor.spread(bias)
            elif tensor.order is not None:
                tensor = Tensor((self.single(tensor),))
            if any(p.shape[0] % cg for p in tensor.parts):
                tensor = Tensor((self.single(tensor),))
            else:  # every part has its own groups
                per = o // groups
                rows = [slice(s.start // cg * per, s.stop // cg * per) for s in tensor.slices()]
                parts = [
                    self._convolve(fail, name, p, weight[r], windows, p.shape[0] // cg).affine(1.0, bias[r])
                    for p, r in zip(tensor.parts, rows, strict=True)
                ]
                return replace(tensor, parts=tuple(parts))
        elif tensor.order is not None:
            self.spend(o * tensor.slices()[-1].stop * kh * kw, 0, name)
            weight = tensor.spread(weight, axis=1)
        values = [
            self._convolve(fail, name, p, weight[:, s] if groups == 1 else weight, windows, groups)
            for p, s in zip(tensor.parts, tensor.slices(), strict=True)
        ]
        return Tensor((_joined(values, bias),))

    def dense(self, fail: Fail, name: str, tensor: Tensor, weight: Floats, bias: Floats) -> Tensor:
        """A matrix [O, features] times the flattened tensor."""
        values, start = [], 0
        if tensor.order is not None:
            _, h, w = tensor.shape
            self.spend(len(weight) * tensor.slices()[-1].stop * h * w, 0, name)
            weight = tensor.spread(weight.reshape(len(weight), -1, h * w), axis=1).reshape(len(weight), -1)
        for part in tensor.parts:
            c, h, w = part.shape
            kernel = weight[:, start : start + c * h * w].reshape(len(weight), c, h, w)
            start += c * h * w
            values.append(self._convolve(fail, name, part, kernel, (Window(h), Window(w)), 1))
        return Tensor((_joined(values, bias),), rank=2)

    def _convolve(
        self, fail: Fail, name: str, value: Value, weight: Floats, windows: Windows, groups: int
    ) -> Value:
        """Compose a convolution onto one value."""
        edge, value = self.plain(value, name, unshifted=has_pads(windows))
        c, h, w = value.shape
        o, cg, kh, kw = weight.shape
        shape = (o, windows[0].outputs(h), windows[1].outputs(w))
        if min(shape) < 1:
            raise fail(f"the kernel is larger than its input {value.shape}")
        self.spend(weight.size, 0, name)
        self._take(fail, weight.size * prod(shape[1:]))
        if max(shape) > 1 << 16 or prod(shape[1:]) * kh * kw * c > MAX_TAPS:
            raise fail(TOO_LARGE)
        source = read_channels(o, cg, groups)
        bias = after = rounded = np.zeros(o)
        if value.bias.any() or value.rounded.any():
            terms = single(single(weight) * value.rounded[source][:, :, None, None]).reshape(o, -1)
            rounded = single(np.add.accumulate(terms, axis=1, dtype=np.float32)[:, -1])
            shifts = (weight * value.bias[source][:, :, None, None]).reshape(o, -1)
            bias = np.add.accumulate(shifts, axis=1)[:, -1]  # left to right, unlike np.sum
            after = np.add.accumulate(np.abs(shifts), axis=1)[:, -1]
        weight = weight * edge.weight[:, 0, 0, 0][source][:, :, None, None]
        rows, columns = behind(edge, windows)
        way = edge.way.into(edge.weight, weight, after)
        return Value((RealEdge(edge.source, weight, rows, columns, groups, edge.pool, way),), bias, shape, rounded)

    def pad(self, fail: Fail, name: str, value: Value, pads: tuple[int, int, int, int]) -> Value:
        """The value with zeros around it: top, left, bottom, right."""
        edge, value = self.plain(value, name, unshifted=True)
        rows, columns = Window(1, 1, pads[0], pads[2]), Window(1, 1, pads[1], pads[3])
        c, h, w = value.shape
        shape = (c, rows.outputs(h), columns.outputs(w))
        if max(shape) > 1 << 16 or prod(shape) > MAX_ACTIVATIONS:
            raise fail("the padding is too large")
        rows, columns = behind(edge, (rows, columns))
        return replace(value, edges=(replace(edge, rows=rows, columns=columns),), shape=shape)

    def crop(self, value: Value, rows: range, columns: range, name: str) -> Value:
        """Some rows and columns of the value."""
        edge, value = self.plain(value, name)
        windows = tuple(
            Window(1, r.step, -r.start, r.step * (len(r) - 1) + 1 + r.start - n)
            for r, n in zip((rows, columns), value.shape[1:], strict=True)
        )
        over = behind(edge, (windows[0], windows[1]))
        shape = value.shape[0], len(rows), len(columns)
        return replace(value, edges=(replace(edge, rows=over[0], columns=over[1]),), shape=shape)

    def expand(self, value: Value, shape: Shape, name: str) -> Value:
        """A value of one pixel, at every place of an image."""
        edge, value = self.plain(value, name, unpooled=True, uncropped=True)
        if edge.rows != IDENTITY or edge.columns != IDENTITY:
            value = self.commit(value, name)
            edge = value.edges[0]
        everywhere = Window(1, repeat=shape[1]), Window(1, repeat=shape[2])
        return replace(value, edges=(replace(edge, pool=everywhere),), shape=shape)

    def widen(self, tensor: Tensor, before: int, after: int, name: str) -> Tensor:
        """The tensor with channels of zeros before and after its own."""
        value = self.settled(self.single(tensor))
        channels, *area = value.shape
        own, total, edges = range(before, before + channels), before + channels + after, []
        for edge in value.edges:
            self.spend(total * edge.weight.size // channels * edge.groups, 0, name)
            edges.append(edge.chosen(range(channels), own, total))
        bias, rounded = np.zeros(total), np.zeros(total)
        bias[own], rounded[own] = value.bias, value.rounded
        return Tensor((Value(tuple(edges), bias, (total, area[0], area[1]), rounded),))

    def average(self, fail: Fail, name: str, value: Value, windows: Windows) -> Value:
        """The mean over windows; padding counts as zeros."""
        counts = tuple(np.full(w.outputs(n), w.kernel) for w, n in zip(windows, value.shape[1:], strict=True))
        return self.means(fail, name, value, windows, (counts[0], counts[1]), True)

    def means(
        self, fail: Fail, name: str, value: Value, windows: Windows, counts: tuple[Ints, Ints], padded: bool
    ) -> Value:
        """The mean over windows with counts[0][p] * counts[1][q] entries at row p and column q.

        padded: whether the padding is among them, as zeros.  Where the counts differ, the edges are one for each region
        of equal ones, with a pool over that region and zeros around it.  A large pool is committed: composed, its
        consumer's weights would have to be as many times smaller, and coarser.
        """
        edge, value = self.plain(
            value, name, unshifted=padded and has_pads(windows), unpooled=True, uncropped=has_pads(windows)
        )
        shape = self._pooled(fail, value, windows)
        self._take(fail, prod(shape) * windows[0].kernel * windows[1].kernel)
        (rows, columns), over = (runs(c) for c in counts), behind(edge, windows)
        if len(rows) * len(columns) > MAX_REGIONS:
            raise fail("too many windows of different sizes at the border; count_include_pad = 1 has one")
        edges = []
        for (top, bottom), (left, right) in product(rows, columns):
            scale = edge.weight[:, 0, 0, 0] / float(counts[0][top] * counts[1][left])
            pool = inner_outputs(over[0], top, shape[1] - bottom), inner_outputs(over[1], left, shape[2] - right)
            around = Window(1, 1, top, shape[1] - bottom), Window(1, 1, left, shape[2] - right)
            weight = scale[:, None, None, None]
            edges.append(replace(edge, weight=weight, rows=around[0], columns=around[1], pool=pool))
        mean = Value(tuple(edges), value.bias, shape, value.stepwise)
        large = LARGE_POOL * prod(shape) <= prod(value.shape)
        return self.commit(mean, name) if large else mean

    def maximum(self, fail: Fail, name: str, value: Value, windows: Windows) -> Value:
        """The maximum over windows: rows, then columns, by max(a, b) = b + relu(a - b) tap after tap.

        Nodes hold the relus only; a last node commits the maximum itself, which costs little and gives the next layer
        one source with tight bounds instead of three.  Zero padding is as good as the minus infinity of ONNX where
        values are not negative; others are lifted by one more node.
        """
        edge, value = self.plain(value, name, unpooled=True, positive=True, uncropped=True)
        signed = edge.source not in self.nonnegative
        if signed and edge.rows.pad_before + edge.rows.pad_after + edge.columns.pad_before + edge.columns.pad_after:
            value = self.commit(value, name)  # zeros that count as such
            edge = value.edges[0]
        shape = self._pooled(fail, value, windows)
        self._take(fail, prod(shape) * windows[0].kernel * windows[1].kernel)
        if max(w.kernel for w in windows) > MAX_STEPS:
            raise fail(f"the kernel of a maximum is larger than {MAX_STEPS}")
        if any((x.taps(n) < 0).all(axis=0).any() for x, n in zip(windows, value.shape[1:], strict=True)):
            raise fail("a window lies in the padding alone")
        c, over = value.shape[0], behind(edge, windows)
        width = value.shape[2] - edge.columns.pad_before - edge.columns.pad_after  # of the source
        terms = [(edge.source, IDENTITY, IDENTITY)]
        lifted = signed and any(max(x.pad_before, x.pad_after) > 0 for x in windows)
        if lifted:
            unit = (unit_edge(c, *terms[0]),)
            self._append(RealNode(unit, np.zeros(c), value.shape, X, name, exact=True, lift=1, origin=edge.source))
            terms = [(len(self.nodes), IDENTITY, IDENTITY)]
        for axis, window in enumerate(over):
            between = (c, shape[1], width if axis == 0 else shape[2])
            last: list[tuple[int, Window, Window]] = []
            for tap in range(1, window.kernel):
                pair = [(s, *along(axis, some_taps(window, tap - 1, 2), r, k)) for s, r, k in terms]
                edges = [difference_edge(c, axis, *p) for p in pair]
                edges += [unit_edge(c, *t) for t in last]
                self._append(RealNode(tuple(edges), np.zeros(c), between, RELU, name, exact=True))
                last = [(len(self.nodes), IDENTITY, IDENTITY)]
            terms = [(s, *along(axis, some_taps(window, window.kernel - 1, 1), r, k)) for s, r, k in terms] + last
        units, lift = tuple(unit_edge(c, *t) for t in terms), -int(lifted)
        self._append(RealNode(units, np.zeros(c), shape, X, name, exact=True, lift=lift, origin=edge.source))
        if edge.source in self.nonnegative:
            self.nonnegative.add(len(self.nodes))
        most = replace(edge, source=len(self.nodes), rows=IDENTITY, columns=IDENTITY)
        return replace(self._output(), edges=(most,), bias=value.bias, stepwise=value.stepwise)

    def _pooled(self, fail: Fail, value: Value, windows: Windows) -> Shape:
        c, h, w = value.shape
        shape = (c, windows[0].outputs(h), windows[1].outputs(w))
        sums = c * shape[1] * (windows[0].kernel * w + windows[1].kernel * shape[2])  # rows, then columns
        self.work += MEMORY_WORK * sums
        if min(shape) < 1 or max(shape) > 1 << 16 or prod(shape) > MAX_ACTIVATIONS or self.work > MAX_WORK:
            raise fail(f"the window does not fit its input {value.shape}, or is too large")
        return shape


def _summed(values: Sequence[Value], *shifts: Floats) -> tuple[RealEdge, ...]:
    """The edges of a sum of values, in which their biases and some other shifts meet."""
    steps = [(1.0, shift) for shift in (*shifts, *(v.bias for v in values))]
    return tuple(e.then(*steps) for v in values for e in v.edges)


def _joined(values: Sequence[Value], bias: Floats) -> Value:
    """The sum of values that one operator adds up, and its bias."""
    exact, rounded = bias, np.zeros(len(bias))
    for value in values:
        exact, rounded = exact + value.bias, single(rounded + value.rounded)
    meeting = (e.way.after for v in values for e in v.edges)
    return Value(_summed(values, exact, *meeting), exact, values[0].shape, single(rounded + single(bias)))


def _normalized(image: Value, edge: RealEdge) -> Value:
    """The image as the network sees it, with the way of an edge from raw pixels: the input table itself is exact."""
    (own,) = image.edges
    least, most = np.abs(edge.weight).min(initial=np.inf, where=edge.weight != 0), np.abs(own.weight).max()
    way = replace(edge.way, peak=edge.way.peak * float(most / least))
    return replace(image, edges=(replace(own, way=way),))

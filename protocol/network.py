"""The integer network: what Classify means, exactly and for everyone (SPEC section 3).

A network is a list of nodes in topological order.  Node 0 is the input, the last node is the output, all others are
requant nodes.  Activations are integers; a tensor of a batch is stored as ``[channel, row, column, image]`` (the image
is the fastest index, so that every kernel runs over contiguous images).

    input    x0[c, r, w, i] = tables[c, pixel[c, r, w, i]]
    affine   y = bias + sum over edges of Lin_e(z_source) [+ z_left * z_right, entrywise]
    requant  u = floor((y + off(s)) / 2^s),  z = table(u),     off(s) = 2^(s-1), off(0) = 0
    output   logits g = y of the last node; Classify = strict, unique argmax

``Lin_e`` is an optional sum-pool, then a convolution.  A dense layer is a convolution whose kernel covers its whole
(pooled) input; a scaled residual shortcut is a depthwise 1 x 1 convolution.  Only requant outputs z and the input x0
are ever committed by the prover: pools and convolutions are linear and stay virtual.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol import kernels
from protocol.encoding import Reader, Writer
from protocol.errors import ParameterError

P = 15 * 2**27 + 1  # BabyBear; the static bounds below keep every integer of a network unique modulo P
MARGIN_BITS = 30  # total width of the two limbs that hold an output margin
MAX_OUTPUT = (P - 2**MARGIN_BITS - 1) // 2  # |logit| <= this: no negative margin wraps into the limbs
MAX_TABLE_BITS = 20
MAX_NODES = 4096
MAX_DIMENSION = 1 << 16
MAX_TAPS = 1 << 22  # kernel of a window times its inputs or outputs, along one axis
MAX_WEIGHTS = 1 << 31

_BLOCK = 1024  # table entries that share an extreme
_RANGE = 16384  # steps through a table that take as long as one range alone

Ints = npt.NDArray[np.int64]


def rounding_offset(shift: int) -> int:
    """off(s) of SPEC section 3: half a unit of the shifted grid, 0 when nothing is shifted."""
    return 1 << (shift - 1) if shift else 0


@dataclass(frozen=True)
class Window:
    """One axis of a sliding window: output p and tap k read input stride*p + dilation*k - pad_before, if it exists.

    A negative pad crops.  With repeat > 1 the window slides over the axis with each input so many times in a row, and
    the padding repeats the border, which resamples an axis at any rational step (`ml.resampling`).
    """

    kernel: int
    stride: int = 1
    pad_before: int = 0
    pad_after: int = 0
    dilation: int = 1
    repeat: int = 1

    def outputs(self, length: int) -> int:
        """Number of output positions over an input axis of `length`."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (length * self.repeat + self.pad_before + self.pad_after - reach) // self.stride + 1

    def taps(self, length: int) -> Ints:
        """[kernel, outputs] input index read by tap k at output p; -1 where it falls into the padding."""
        k = np.arange(self.kernel, dtype=np.int64)[:, None]
        p = np.arange(self.outputs(length), dtype=np.int64)[None, :]
        index = self.stride * p + self.dilation * k - self.pad_before
        if self.repeat > 1:
            return np.asarray(np.clip(index // self.repeat, 0, length - 1))
        return np.where((index >= 0) & (index < length), index, -1)


IDENTITY = Window(1)


def read_channels(outputs: int, per_group: int, groups: int) -> Ints:
    """[O, C // groups] the source channel that each weight of a grouped map reads."""
    group = np.arange(outputs, dtype=np.int64) // (outputs // groups)
    channels: Ints = group[:, None] * per_group + np.arange(per_group, dtype=np.int64)
    return channels


@dataclass(frozen=True)
class Edge:
    """One linear map into a node: optional sum-pool (rows, columns), then a grouped convolution.

    weight: int64 [O, C // groups, KH, KW].
    """

    source: int
    weight: Ints
    rows: Window
    columns: Window
    groups: int = 1
    pool: tuple[Window, Window] | None = None

    @property
    def channels(self) -> Ints:
        """As `read_channels`, of this edge."""
        return read_channels(self.weight.shape[0], self.weight.shape[1], self.groups)


@dataclass(frozen=True)
class Table:
    """phi: table[i] is the value at u = i - 2^(bits-1); int64 [2^bits]."""

    bits: int
    values: Ints

    @cached_property
    def digest(self) -> bytes:
        return hashlib.sha256(self.bits.to_bytes(1, "little") + self.values.astype("<i8").tobytes()).digest()

    @cached_property
    def _monotone(self) -> bool:
        return bool((self.values[1:] >= self.values[:-1]).all())

    @cached_property
    def _blocks(self) -> tuple[Ints, Ints]:
        blocks = self.values.reshape(-1, min(_BLOCK, len(self.values)))
        return blocks.min(axis=1), blocks.max(axis=1)

    def extremes(self, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """(min, max) of the table over each range of units low[c] .. high[c], both within the table."""
        middle = 1 << (self.bits - 1)
        if self._monotone:
            return self.values[low + middle], self.values[high + middle]
        if len(low) * _RANGE > len(self.values) * self.bits:
            return self._of_many(low + middle, high + middle)
        least, most = self._blocks
        found = []
        for a, b in zip((low + middle).tolist(), (high + middle + 1).tolist(), strict=True):
            first, last = -(-a // _BLOCK), b // _BLOCK  # the whole blocks in between
            if first >= last:
                found.append((self.values[a:b].min(), self.values[a:b].max()))
                continue
            ends = np.concatenate([self.values[a : first * _BLOCK], self.values[last * _BLOCK : b]])
            found.append((
                min(least[first:last].min(), ends.min(initial=least[first])),
                max(most[first:last].max(), ends.max(initial=most[first])),
            ))
        pairs = np.array(found, np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def _of_many(self, first: Ints, last: Ints) -> tuple[Ints, Ints]:
        """The same for entries first[c] .. last[c], all at once: of a range, two of length 2^k make up the whole."""
        level = np.frexp((last - first + 1).astype(np.float64))[1] - 1
        least = most = self.values
        low, high = np.empty_like(first), np.empty_like(first)
        for k in range(int(level.max()) + 1):
            if k:  # entry i: of the values i .. i + 2^k - 1
                step = 1 << (k - 1)
                least, most = np.minimum(least[:-step], least[step:]), np.maximum(most[:-step], most[step:])
            (at,) = np.nonzero(level == k)
            ends = first[at], last[at] - (1 << k) + 1
            low[at] = np.minimum(least[ends[0]], least[ends[1]])
            high[at] = np.maximum(most[ends[0]], most[ends[1]])
        return low, high


@dataclass(frozen=True)
class Product:
    """Entrywise product of two earlier nodes; `right` has the shape of `left`, or one value per channel, [C, 1, 1]."""

    left: int
    right: int


@dataclass(frozen=True)
class Node:
    """A requant node (`table` set) or the output node (`table` None, shift 0, no product)."""

    edges: tuple[Edge, ...]
    bias: Ints  # int64 [O]
    shift: int = 0
    table: Table | None = None
    name: str = ""
    product: Product | None = None


@dataclass(frozen=True)
class Network:
    """input_tables: int64 [C, 256]; shape: (C, H, W); nodes[0] is graph node 1, and so on."""

    shape: tuple[int, int, int]
    input_tables: Ints
    nodes: tuple[Node, ...]
    shapes: tuple[tuple[int, int, int], ...] = field(init=False)  # output shape of every graph node, the input first

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", tuple(_infer_shapes(self)))
        _check_bounds(self)

    @property
    def classes(self) -> int:
        return self.shapes[-1][0]

    @property
    def activations(self) -> int:
        """Requant outputs per image."""
        return sum(prod(s) for s in self.shapes[1:-1])

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical encoding: structure and integers.  This is what a proof binds to."""
        return hashlib.sha256(self.to_bytes()).digest()

    def tables(self) -> list[Table]:
        """The distinct activation tables in order of first use."""
        seen: dict[bytes, Table] = {}
        for node in self.nodes:
            if node.table is not None:
                seen.setdefault(node.table.digest, node.table)
        return list(seen.values())

    def to_bytes(self) -> bytes:
        out = Writer().raw(b"zkmark network 1\n")
        for n in self.shape:
            out.u32(n)
        out.raw(self.input_tables.astype("<i8").tobytes())
        tables = self.tables()
        index = {t.digest: k for k, t in enumerate(tables)}
        out.u32(len(tables))
        for table in tables:
            out.u8(table.bits).raw(table.values.astype("<i8").tobytes())
        out.u32(len(self.nodes))
        for node in self.nodes:
            out.u8(node.shift).u32(0 if node.table is None else 1 + index[node.table.digest])
            product = node.product or Product(-1, -1)
            out.u32(product.left + 1).u32(product.right + 1)
            out.u32(len(node.bias)).raw(node.bias.astype("<i8").tobytes()).u32(len(node.edges))
            for edge in node.edges:
                out.u32(edge.source).u32(edge.groups)
                for n in edge.weight.shape:
                    out.u32(n)
                windows = (edge.rows, edge.columns, *(edge.pool or ()))
                out.u8(len(windows))
                for w in windows:
                    for n in (w.kernel, w.stride, w.pad_before, w.pad_after, w.dilation, w.repeat):
                        out.i64(n)
                out.raw(edge.weight.astype("<i8").tobytes())
        return out.to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> Network:
        """The network encoded by `to_bytes`.  Raises DecodingError, or ParameterError for a network out of bounds."""
        r = Reader(data, "network")
        r.magic(b"zkmark network 1\n")
        shape = (r.u32(), r.u32(), r.u32())
        if not all(0 < n <= MAX_DIMENSION for n in shape):
            raise r.fail("input shape out of range")
        input_tables = r.array("<i8", shape[0] * 256).reshape(shape[0], 256)
        tables = []
        for _ in range(_capped(r, MAX_NODES)):
            bits = r.u8()
            if not 1 <= bits <= MAX_TABLE_BITS:
                raise r.fail("table width out of range")
            tables.append(Table(bits, r.array("<i8", 1 << bits)))
        nodes = []
        for _ in range(_capped(r, MAX_NODES)):
            shift, which = r.u8(), _capped(r, len(tables))
            left, right = _capped(r, MAX_NODES), _capped(r, MAX_NODES)
            bias = r.array("<i8", _capped(r, MAX_DIMENSION))
            edges = []
            for _ in range(_capped(r, MAX_NODES)):
                source, groups = r.u32(), r.u32()
                dims = tuple(_capped(r, MAX_WEIGHTS) for _ in range(4))
                if 0 in dims:
                    raise r.fail("a weight without entries")
                count = r.u8()
                if count not in (2, 4):
                    raise r.fail("an edge has two or four windows")
                windows = [Window(*(_small(r) for _ in range(6))) for _ in range(count)]
                weight = r.array("<i8", prod(dims)).reshape(dims)
                pool = (windows[2], windows[3]) if count == 4 else None
                edges.append(Edge(source, weight, windows[0], windows[1], groups, pool))
            product = Product(left - 1, right - 1) if left and right else None
            nodes.append(Node(tuple(edges), bias, shift, tables[which - 1] if which else None, product=product))
        r.done()
        network = Network(shape, input_tables, tuple(nodes))
        if network.to_bytes() != data:
            raise r.fail("not the canonical encoding")
        return network

    def forward(self, images: npt.NDArray[np.uint8], device: str = "cpu") -> Forward:
        """Exact evaluation of images u8 [h, C, H, W].  Sums are done in float64, exact below 2^53 by the bounds."""
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            raise ParameterError(f"images must be uint8 [h, {', '.join(map(str, self.shape))}]")
        k = kernels.on(device)
        pixels = np.ascontiguousarray(images.transpose(1, 2, 3, 0))
        x0 = np.stack([t[c] for t, c in zip(self.input_tables, pixels, strict=True)]).astype(np.int32)
        outputs: list[Any] = [k.to_device(x0)]
        units: list[Any] = []
        remainders: list[Any] = []
        for node, (channels, height, width) in zip(self.nodes, self.shapes[1:], strict=True):
            y = linear(node, outputs).reshape(channels, height * width * len(images))
            if node.table is None:
                logits = k.to_host(y).astype(np.int64) + node.bias[:, None]
                return Forward(pixels, tuple(outputs), tuple(units), tuple(remainders), logits)
            u, rem, z = (k.integers(*y.shape) for _ in range(3))
            fixed = k.to_device(node.bias), rounding_offset(node.shift), node.shift, k.to_device(node.table.values)
            k.parallel(partial(k.requantize, y, *fixed, u, rem, z), channels, prod(y.shape))
            for made, value in ((units, u), (remainders, rem), (outputs, z)):
                made.append(value.reshape(channels, height, width, len(images)))
        raise ParameterError("network has no output node")

    def classify(self, images: npt.NDArray[np.uint8], batch: int = 256) -> npt.NDArray[np.int64]:
        """[h] class of each image: the strict unique argmax of its logits, -1 on a tie."""
        return np.concatenate([
            strict_argmax(self.forward(images[i : i + batch]).logits) for i in range(0, len(images), batch)
        ] or [np.zeros(0, np.int64)])


@dataclass(frozen=True)
class Forward:
    """Every value of one evaluation that the prover commits to.

    pixels: uint8 [C, H, W, h]; outputs[0] = x0 and outputs[k] = z of node k, int32 [C, H, W, h];
    units[k - 1] = u of node k, int32; remainders[k - 1] = y + off(s) - 2^s u, int32; logits: int64 [classes, h].
    outputs, units and remainders lie where the network was evaluated.
    """

    pixels: npt.NDArray[np.uint8]
    outputs: tuple[Any, ...]
    units: tuple[Any, ...]
    remainders: tuple[Any, ...]
    logits: Ints


def strict_argmax(logits: Ints) -> npt.NDArray[np.int64]:
    """[h] index of the unique largest of logits [classes, h]; -1 where the largest is not unique."""
    best = logits.argmax(axis=0)
    unique = (logits == logits.max(axis=0)).sum(axis=0) == 1
    return np.where(unique, best, -1)


def _capped(r: Reader, cap: int) -> int:
    n = r.u32()
    if n > cap:
        raise r.fail(f"count {n} over the cap {cap}")
    return n


def _small(r: Reader) -> int:
    n = r.i64()
    if abs(n) > MAX_DIMENSION:
        raise r.fail(f"a window of {n}")
    return n


def pooled_shape(edge: Edge, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Shape of an edge's source after its sum-pool."""
    c, h, w = shape
    return (c, edge.pool[0].outputs(h), edge.pool[1].outputs(w)) if edge.pool else shape


def _usable(windows: tuple[Window, Window] | None, lengths: tuple[int, ...]) -> bool:
    """Whether every window has an output and stays under MAX_TAPS."""
    return windows is None or all(
        min(w.kernel, w.stride, w.dilation, w.repeat) >= 1
        and max(w.kernel, w.stride, w.dilation, w.repeat) <= MAX_DIMENSION
        and max(abs(w.pad_before), abs(w.pad_after)) <= MAX_DIMENSION
        and 1 <= w.outputs(n)
        and w.kernel * max(n, w.outputs(n)) <= MAX_TAPS
        for w, n in zip(windows, lengths, strict=True)
    )


def _infer_shapes(net: Network) -> Iterator[tuple[int, int, int]]:
    """Check the structure and yield the output shape of every graph node."""
    if not net.nodes or net.nodes[-1].table is not None:
        raise ParameterError("the last node must be the output")
    if net.input_tables.shape != (net.shape[0], 256):
        raise ParameterError("input tables must be [C, 256]")
    if len(net.nodes) > MAX_NODES:
        raise ParameterError(f"more than {MAX_NODES} nodes")
    shapes = [net.shape]
    for number, node in enumerate(net.nodes, 1):
        where = f"node {number} {node.name}".rstrip()
        if (node.table is None) != (number == len(net.nodes)):
            raise ParameterError(f"{where}: only the last node is an output")
        if node.table is not None and (
            not 1 <= node.table.bits <= MAX_TABLE_BITS or len(node.table.values) != 1 << node.table.bits
        ):
            raise ParameterError(f"{where}: table must have 2^bits entries, bits <= {MAX_TABLE_BITS}")
        if not 0 <= node.shift <= 24 or (node.table is None and node.shift):
            raise ParameterError(f"{where}: shift out of range")
        found = set()
        if node.product:
            if node.table is None or not (0 <= node.product.left < number and 0 <= node.product.right < number):
                raise ParameterError(f"{where}: a product of two earlier nodes, not at the output")
            found.add(shapes[node.product.left])
            if shapes[node.product.right] not in (found | {(shapes[node.product.left][0], 1, 1)}):
                raise ParameterError(f"{where}: the factors of a product have other shapes")
        for edge in node.edges:
            if not 0 <= edge.source < number:
                raise ParameterError(f"{where}: edge from a later node")
            source = shapes[edge.source]
            c, h, w = pooled_shape(edge, source) if _usable(edge.pool, source[1:]) else source
            if not _usable(edge.pool, source[1:]) or not _usable((edge.rows, edge.columns), (h, w)):
                raise ParameterError(f"{where}: a window does not fit its input {source}")
            o, cg, kh, kw = edge.weight.shape
            if edge.groups < 1 or c != cg * edge.groups or o % edge.groups or (kh, kw) != (
                edge.rows.kernel, edge.columns.kernel
            ):
                raise ParameterError(f"{where}: weight {edge.weight.shape} does not fit input {(c, h, w)}")
            found.add((o, edge.rows.outputs(h), edge.columns.outputs(w)))
        if len(found) != 1 or min(min(s) for s in found) < 1 or max(max(s) for s in found) > MAX_DIMENSION:
            raise ParameterError(f"{where}: edges disagree on the output shape {sorted(found)}")
        shapes.append(found.pop())
        if node.bias.shape != (shapes[-1][0],):
            raise ParameterError(f"{where}: bias must be [{shapes[-1][0]}]")
    if shapes[-1][1:] != (1, 1):
        raise ParameterError("the output must be one logit per class")
    if shapes[-1][0] < 2:
        raise ParameterError("a classifier has at least two classes")
    return iter(shapes)


def affine_bounds(node: Node, ranges: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    """Per output channel (min, max) of y, from per channel (min, max) of every earlier node.

    Padding contributes the integer 0, so a tap's contribution ranges over [min(0, .), max(0, .)] when the edge pads.
    """
    low, high = node.bias.astype(object), node.bias.astype(object)
    if node.product:
        (a, b), (c, d) = ([x.astype(object) for x in ranges[k]] for k in (node.product.left, node.product.right))
        corners = np.stack([a * c, a * d, b * c, b * d])
        low, high = low + corners.min(axis=0), high + corners.max(axis=0)
    for edge in node.edges:
        lo, hi = ranges[edge.source]
        windows = (edge.rows, edge.columns, *(edge.pool or ()))
        if any(max(w.pad_before, w.pad_after) > 0 for w in windows):
            lo, hi = np.minimum(lo, 0), np.maximum(hi, 0)
        factor = edge.pool[0].kernel * edge.pool[1].kernel if edge.pool else 1
        cg = edge.weight.shape[1]
        positive = np.maximum(edge.weight, 0).sum(axis=(2, 3))  # [O, C // groups]
        negative = np.minimum(edge.weight, 0).sum(axis=(2, 3))
        channel = edge.channels
        most = factor * int(max(positive.max(initial=0), -negative.min(initial=0)))
        small = most * int(max(hi.max(), -lo.min(), 1)) * 2 * cg < 1 << 62
        kind = np.int64 if small else object  # Python integers only where 64 bits could overflow
        p, n, a, b = (x.astype(kind) for x in (positive, negative, lo[channel], hi[channel]))
        p, n = p * factor, n * factor
        low = low + (p * a + n * b).sum(axis=1)
        high = high + (p * b + n * a).sum(axis=1)
    return low, high


def _magnitude(node: Node, ranges: list[tuple[Ints, Ints]]) -> float:
    """Sum of |weight| |input| and |bias| over the taps of the largest output, as no partial sum exceeds it."""
    total = np.abs(node.bias).astype(np.float64)
    if node.product:
        total = total + np.prod([
            np.max(np.abs(np.stack(ranges[k])), axis=0).astype(np.float64)
            for k in (node.product.left, node.product.right)
        ], axis=0)
    for edge in node.edges:
        lo, hi = ranges[edge.source]
        factor = float(edge.pool[0].kernel * edge.pool[1].kernel) if edge.pool else 1.0
        taps = np.abs(edge.weight).sum(axis=(2, 3)).astype(np.float64) * factor
        total = total + (taps * np.maximum(np.abs(lo), np.abs(hi)).astype(np.float64)[edge.channels]).sum(axis=1)
    return float(total.max())


def _huge(values: Ints) -> bool:
    """Whether a value reaches 2^30 in size.  (Not by `abs`, which leaves -2^63 as it is.)"""
    return bool(values.max(initial=0) >= 1 << 30 or values.min(initial=0) <= -(1 << 30))


def _check_bounds(net: Network) -> None:
    """Static bounds of SPEC section 3: honest witnesses exist, and are unique modulo P.

    Raises ParameterError naming the node.
    """
    if _huge(net.input_tables):
        raise ParameterError("input table value out of range")
    ranges: list[tuple[Ints, Ints]] = [(net.input_tables.min(axis=1), net.input_tables.max(axis=1))]
    for number, node in enumerate(net.nodes, 1):
        where = f"node {number} {node.name}".rstrip()
        if _huge(node.bias) or any(_huge(edge.weight) for edge in node.edges):
            raise ParameterError(f"{where}: weight or bias of 2^30 or more")
        if _magnitude(node, ranges) >= 1 << 52:
            raise ParameterError(f"{where}: sums of 2^52 or more are not evaluated exactly")
        low_all, high_all = affine_bounds(node, ranges)
        low, high = min(low_all), max(high_all)
        if node.table is None:
            if max(-low, high) > MAX_OUTPUT:
                raise ParameterError(f"{where}: logits reach {max(-low, high)}, over {MAX_OUTPUT}")
            return
        half, off = 1 << (node.table.bits + node.shift - 1), rounding_offset(node.shift)
        if low + off < -half or high + off > half - 1:
            raise ParameterError(
                f"{where}: y in [{low}, {high}] leaves the table of {node.table.bits} bits at shift {node.shift}"
            )
        if max(-low, high) + half + off >= P:
            raise ParameterError(f"{where}: y in [{low}, {high}] is not unique modulo p")
        if _huge(node.table.values):
            raise ParameterError(f"{where}: table value out of range")
        # Per channel: the table's real extremes over the units that the channel can reach.
        units = [(np.array(y, np.int64) + off) >> node.shift for y in (low_all, high_all)]
        ranges.append(node.table.extremes(units[0], units[1]))


def sum_pool(x: Any, pool: tuple[Window, Window]) -> Any:
    """Sum-pool [C, H, W, h], int32 or float64, over rows, then columns; float64."""
    for axis, window in ((1, pool[0]), (2, pool[1])):
        taps, whole = window.taps(x.shape[axis]), np.arange(x.shape[3 - axis])[None]
        rows, columns = (taps, whole) if axis == 1 else (whole, taps)
        x = _depthwise(np.ones((len(x), len(rows), len(columns)), np.int64), x, rows, columns)
    return x


def affine(node: Node, outputs: Sequence[Any] | Mapping[int, Any]) -> Ints:
    """y int64 [O, H', W', h] of one node, from the outputs of earlier ones."""
    y: Ints = linear(node, outputs).astype(np.int64) + node.bias[:, None, None, None]
    return y


def linear(node: Node, outputs: Sequence[Any] | Mapping[int, Any]) -> Any:
    """float64 [O, H', W', h]: y of one node without its bias, from the outputs of earlier ones, on their device.

    Integers; exact, whatever the order of the sums, since no partial sum reaches 2^53.
    """
    total: Any = None
    if node.product:
        left, right = (outputs[k] for k in (node.product.left, node.product.right))
        total = kernels.of(left).as_reals(left) * right
    for edge in node.edges:
        x = kernels.of(outputs[edge.source]).plain(outputs[edge.source])
        if edge.pool:
            x = sum_pool(x, edge.pool)
        taps = edge.rows.taps(x.shape[1]), edge.columns.taps(x.shape[2])
        if _is_depthwise(edge):
            total = _depthwise(edge.weight[:, 0], x, *taps, total)
        elif total is None:
            total = _convolution(edge, x, *taps)
        else:
            total += _convolution(edge, x, *taps)
    if total is None:
        raise ParameterError("node without edges")
    return total


def _is_depthwise(edge: Edge) -> bool:
    return edge.groups == len(edge.weight) and edge.weight.shape[1] == 1


def _convolution(edge: Edge, x: Any, rows: Ints, columns: Ints) -> Any:
    """[O, H', W', h]: a matrix product per group over gathered taps, for as many positions at once as fit a cache."""
    k = kernels.of(x)
    o, cg, kh, kw = edge.weight.shape
    ph, pw, h = rows.shape[1], columns.shape[1], x.shape[3]
    weight = k.to_device(edge.weight.astype(np.float64).reshape(edge.groups, o // edge.groups, cg * kh * kw))
    y = k.reals(edge.groups, o // edge.groups, ph * pw * h)
    taps, many = (cg, kh, kw), max(1, k.GATHER_BYTES // (8 * cg * kh * kw * h))

    def some(first: int, last: int) -> None:
        buffer = k.reals(prod(taps) * min(many, last - first) * h)
        for g, start in product(range(edge.groups), range(first, last, many)):
            n = min(many, last - start)
            part = buffer[: prod(taps) * n * h]
            k.gather(x[g * cg : (g + 1) * cg], rows, columns, part.reshape(*taps, n, h), start)
            k.matmul(weight[g], part.reshape(-1, n * h), y[g][:, start * h : (start + n) * h])

    with k.single_blas():
        k.parallel(some, ph * pw, prod(taps) * ph * pw * h)
    return y.reshape(o, ph, pw, h)


def _depthwise(weight: Ints, x: Any, rows: Ints, columns: Ints, total: Any = None) -> Any:
    """[C, H', W', h], added to `total` if there is one, where every channel has its own kernel; weight [C, kh, kw]."""
    k, c = kernels.of(x), len(weight)
    y = k.reals(c, rows.shape[1], columns.shape[1], x.shape[3]) if total is None else total
    own = k.to_device(weight.astype(np.float64))
    k.parallel(partial(k.depthwise, x, own, rows, columns, y), c, prod(y.shape) * prod(weight.shape[1:]))
    return y

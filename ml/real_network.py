"""The network in real numbers: what `lowering` makes of ONNX and `integers` rounds.

Nodes and edges are those of `protocol.network`, with float64 weights and without scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod

import numpy as np
import numpy.typing as npt

from ml.expressions import Expression
from ml.rounding import ALIKE, Steps, Way, single
from protocol.errors import ParameterError
from protocol.network import IDENTITY, Product, Window, read_channels

MAX_SELECTED = 1 << 25  # weights of a last layer with chosen outputs

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Shape = tuple[int, int, int]
Windows = tuple[Window, Window]


@dataclass(frozen=True)
class RealEdge:
    """protocol.network.Edge with real weights: float64 [O, C // groups, KH, KW]."""

    source: int
    weight: Floats
    rows: Window = IDENTITY
    columns: Window = IDENTITY
    groups: int = 1
    pool: Windows | None = None
    way: Way = field(default_factory=Way)

    @property
    def sources(self) -> Ints:
        """As `read_channels`, of this edge."""
        o, cg = self.weight.shape[:2]
        return read_channels(o, cg, self.groups)

    def then(self, *steps: tuple[Floats | float, Floats | float]) -> RealEdge:
        """The edge with more steps on its way; its weights stay."""
        return replace(self, way=self.way.then(self.weight, steps))

    def chosen(self, rows: Sequence[int], at: Sequence[int], outputs: int) -> RealEdge:
        """The edge without groups whose outputs `at` of so many are the given rows of this one; the others are 0."""
        _, cg, kh, kw = self.weight.shape
        weight = np.zeros((outputs, cg * self.groups, kh, kw))
        weight[list(at)] = self.dense(rows)
        return replace(self, weight=weight, groups=1, way=self.way.chosen(rows, at, outputs))

    def dense(self, rows: Sequence[int]) -> Floats:
        """Chosen rows of the weight without groups: [len(rows), C, KH, KW]."""
        o, cg, kh, kw = self.weight.shape
        out = np.zeros((len(rows), cg * self.groups, kh, kw))
        for at, row in enumerate(rows):
            first = row // (o // self.groups) * cg
            out[at, first : first + cg] = self.weight[row]
        return out


@dataclass(frozen=True)
class RealNode:
    """expression: of the activation, None at the output; bias: float64 [O].

    factor: the product, if there is one, is multiplied by factor[c] > 0.
    exact: the edges, of weights -1, 0 and 1, are taken in integers, the node has the scales of its first source, and
    its values are clipped to the range of that source, or where a ReLU takes a difference, to the range's width.
    lift: 1 to subtract the least value of graph node `origin` from its values, -1 to add it again.
    """

    edges: tuple[RealEdge, ...]
    bias: Floats
    shape: Shape
    expression: Expression | None
    name: str
    product: Product | None = None
    factor: Floats | None = None
    exact: bool = False
    lift: int = 0
    origin: int = 0


@dataclass(frozen=True)
class RealNetwork:
    """The input is scale[c] * pixel + shift[c]; nodes as in protocol.network.Network."""

    shape: Shape
    scale: Floats
    shift: Floats
    nodes: tuple[RealNode, ...]

    @property
    def activations(self) -> int:
        """Of one image, the logits included."""
        return sum(prod(node.shape) for node in self.nodes)

    @property
    def weights(self) -> int:
        return sum(e.weight.size for node in self.nodes for e in node.edges)

    @property
    def work(self) -> int:
        """Multiplications for one image."""
        return sum(e.weight.size * prod(node.shape[1:]) for node in self.nodes for e in node.edges)


@dataclass(frozen=True, eq=False)
class Value:
    """A linear map of committed tensors: the sum of its edges, plus a bias per channel.

    stepwise: the bias as float32 finds it step by step; None if it has one step.
    """

    edges: tuple[RealEdge, ...]
    bias: Floats
    shape: Shape
    stepwise: Floats | None = None

    @property
    def rounded(self) -> Floats:
        """The bias as float32 finds it."""
        return single(self.bias) if self.stepwise is None else self.stepwise

    @property
    def constant(self) -> Floats:
        """The bias, or what float32 makes of it where that is another number."""
        rounded = self.rounded
        with np.errstate(invalid="ignore"):  # of infinite ones, which are refused later, as too large
            alike = np.abs(self.bias - rounded) <= ALIKE * np.abs(self.bias)
        return np.where(alike, self.bias, rounded)

    @property
    def plain(self) -> RealEdge | None:
        """The only edge, when it merely scales its (perhaps pooled, perhaps padded) source channel by channel."""
        edge = self.edges[0]
        same = edge.groups == self.shape[0] == len(edge.weight) and edge.weight.shape[1:] == (1, 1, 1)
        single = all((w.kernel, w.stride) == (1, 1) for w in (edge.rows, edge.columns))
        return edge if len(self.edges) == 1 and same and single else None

    def affine(self, scale: Floats | float, shift: Floats | float, steps: Steps = ()) -> Value:
        """scale[c] * value + shift[c].  steps: those of the file that make it, if it has more than this one."""
        scales = np.broadcast_to(np.asarray(scale, np.float64), self.bias.shape)
        taken, rounded = steps or ((scales, shift),), self.rounded
        for a, b in taken:
            rounded = single(single(rounded * single(a)) + single(b))
        known = (e.then(*taken) for e in self.edges)
        edges = tuple(replace(e, weight=e.weight * scales[:, None, None, None]) for e in known)
        return replace(self, edges=edges, bias=self.bias * scales + shift, stepwise=rounded)


@dataclass(frozen=True, eq=False)
class Tensor:
    """Values one after the other along the channels.

    rank: 4 for [1, C, H, W], 5 for [1, *grouping, H, W], 3 for [1, C, H * W], 2 for [1, C * H * W].
    order: int64 [C], where each channel is among those of all parts; None if it is all of them in a row.
    """

    parts: tuple[Value, ...]
    rank: int = 4
    grouping: tuple[int, ...] = ()
    order: Ints | None = None

    @property
    def flat(self) -> bool:
        return self.rank < 4

    @property
    def dimensions(self) -> list[int]:
        """As ONNX sees them."""
        c, h, w = self.shape
        return {2: [1, self.features], 3: [1, c, h * w], 4: [1, c, h, w], 5: [1, *self.grouping, h, w]}[self.rank]

    @property
    def features(self) -> int:
        return sum(prod(p.shape) for p in self.parts) if self.order is None else prod(self.shape)

    @property
    def even(self) -> bool:
        """Whether all parts have the same rows and columns: only flat tensors may not."""
        return len({p.shape[1:] for p in self.parts}) == 1

    @property
    def single_pixel(self) -> bool:
        """Whether flattening changes nothing but the rank."""
        return all(p.shape[1:] == (1, 1) for p in self.parts)

    @property
    def whole(self) -> bool:
        """Whether no channel of a part is left out."""
        return self.order is None or len(self.order) == sum(p.shape[0] for p in self.parts)

    @property
    def shape(self) -> Shape:
        channels = sum(p.shape[0] for p in self.parts) if self.order is None else len(self.order)
        return (channels, *self.parts[0].shape[1:])

    def slices(self) -> list[slice]:
        """The channels of each part."""
        ends = np.cumsum([0, *(p.shape[0] for p in self.parts)]).tolist()
        return [slice(a, b) for a, b in pairwise(ends)]

    def places(self) -> Ints:
        """[C] where each channel is among those of all parts."""
        return np.arange(self.shape[0]) if self.order is None else self.order

    def spread(self, array: Floats, axis: int = 0, fill: float = 0.0) -> Floats:
        """An array over the channels as one over the channels of all parts."""
        if self.order is None:
            return array
        out = np.full((*array.shape[:axis], self.slices()[-1].stop, *array.shape[axis + 1 :]), fill)
        out[(slice(None),) * axis + (self.order,)] = array
        return out


def diagonal(source: int, scale: Floats, pool: Windows | None = None) -> RealEdge:
    """The edge that multiplies channel c of its (pooled) source by scale[c]."""
    return RealEdge(source, scale[:, None, None, None], groups=len(scale), pool=pool)


def select_outputs(real: RealNetwork, outputs: tuple[int, ...]) -> RealNetwork:
    """The network with chosen logits only, in the given order; the edges of its last node become dense."""
    last = real.nodes[-1]
    if max(outputs) >= len(last.bias):
        raise ParameterError(f"output map names logit {max(outputs)} of {len(last.bias)}")
    if len(outputs) * max(prod(e.weight.shape[1:]) * e.groups for e in last.edges) > MAX_SELECTED:
        raise ParameterError("output map: the last layer is too large")
    edges = tuple(edge.chosen(outputs, range(len(outputs)), len(outputs)) for edge in last.edges)
    last = replace(last, edges=edges, bias=last.bias[list(outputs)], shape=(len(outputs), 1, 1))
    return replace(real, nodes=(*real.nodes[:-1], last))

"""The network in real numbers: what `lowering` makes of ONNX and `integers` rounds.

Nodes and edges are those of `protocol.network`, with float64 weights and without scales.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from protocol.errors import ParameterError
from protocol.network import IDENTITY, Window

Floats = npt.NDArray[np.float64]
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


@dataclass(frozen=True)
class RealNode:
    """activation: "relu", "identity" or "output"; bias: float64 [O]."""

    edges: tuple[RealEdge, ...]
    bias: Floats
    shape: Shape
    activation: str
    name: str


@dataclass(frozen=True)
class RealNetwork:
    """The input is scale[c] * pixel + shift[c]; nodes as in protocol.network.Network."""

    shape: Shape
    scale: Floats
    shift: Floats
    nodes: tuple[RealNode, ...]


@dataclass(frozen=True)
class Value:
    """sum of edges + bias.  `flat`: the shape is read as [1, C * H * W]."""

    edges: tuple[RealEdge, ...]
    bias: Floats
    shape: Shape
    flat: bool = False

    @property
    def plain(self) -> RealEdge | None:
        """The only edge, when it merely scales (and perhaps pools) its source channel by channel."""
        edge = self.edges[0]
        same = edge.groups == self.shape[0] == len(edge.weight) and edge.weight.shape[1:] == (1, 1, 1)
        return edge if len(self.edges) == 1 and same and edge.rows == edge.columns == IDENTITY else None

    def affine(self, scale: Floats, shift: Floats) -> Value:
        """scale[c] * value + shift[c]."""
        edges = tuple(replace(e, weight=e.weight * scale[:, None, None, None]) for e in self.edges)
        return replace(self, edges=edges, bias=self.bias * scale + shift)


def diagonal(source: int, scale: Floats, pool: Windows | None = None) -> RealEdge:
    """The edge that multiplies channel c of its (pooled) source by scale[c]."""
    return RealEdge(source, scale[:, None, None, None], groups=len(scale), pool=pool)


def select_outputs(real: RealNetwork, outputs: tuple[int, ...]) -> RealNetwork:
    """The network with chosen logits only, in the given order; the edges of its last node become dense."""
    last = real.nodes[-1]
    if max(outputs) >= len(last.bias):
        raise ParameterError(f"output map names logit {max(outputs)} of {len(last.bias)}")
    rows = list(outputs)
    edges = []
    for edge in last.edges:
        o, cg, kh, kw = edge.weight.shape
        dense = np.zeros((o, cg * edge.groups, kh, kw))
        for g in range(edge.groups):
            block = slice(g * (o // edge.groups), (g + 1) * (o // edge.groups))
            dense[block, g * cg : (g + 1) * cg] = edge.weight[block]
        edges.append(replace(edge, weight=dense[rows], groups=1))
    last = replace(last, edges=tuple(edges), bias=last.bias[rows], shape=(len(rows), 1, 1))
    return replace(real, nodes=(*real.nodes[:-1], last))

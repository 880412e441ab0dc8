"""What of a node float32 holds: on the way of its edges (`rounding`), and where their terms are added.

ranges, scales: of every earlier graph node, per channel the least and the largest integer and the unit of both.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from ml.real_network import Floats, Ints, RealNode
from ml.rounding import LARGEST, LOST, PLAIN_PEAK, SMALLEST, SPACING
from protocol.errors import ParameterError
from protocol.network import Node, Product, affine_bounds

Ranges = list[tuple[Ints, Ints]]


def heard(node: RealNode, where: str, ranges: Ranges, scales: list[Floats]) -> RealNode:
    """The node without the weights of what disappears beside a shift on its way.

    Raises ParameterError where something may overflow: nobody can say what a runtime makes of infinity.
    """
    edges = []
    for e in node.edges:
        size = _size(ranges[e.source]) * scales[e.source]
        terms = prod(e.weight.shape[1:]) * (e.pool[0].kernel * e.pool[1].kernel if e.pool else 1)
        if not e.way.peak * float(size.max()) * terms < LARGEST:  # nor is 0 times infinity
            raise ParameterError(f"{where}: its inputs overflow float32 on the way; scale the weights down")
        lost = (size < LOST * e.way.before)[e.sources][:, :, None, None]
        largest = np.abs(e.weight * size[e.sources][:, :, None, None]).max(axis=(1, 2, 3))
        lost = lost | (largest * terms < LOST * e.way.after)[:, None, None, None]
        edges.append(replace(e, weight=np.where(lost, 0.0, e.weight)) if lost.any() else e)
    return replace(node, edges=tuple(edges))


def spacing(node: RealNode, integer: Node, unit: Floats, ranges: Ranges, scales: list[Floats]) -> Floats:
    """[O] how far apart the float32 numbers are, at most, where the node's terms and the shifts on their way are added.

    integer: the same node with weights in units [O].
    """
    size, shift = np.abs(node.bias), np.full(len(unit), SMALLEST)
    for real, edge in zip(node.edges, integer.edges, strict=True):
        scale = np.maximum(scales[edge.source], SPACING * SMALLEST)  # no unit is smaller but that of a dead product
        before = np.ceil(np.minimum(real.way.before / scale, 2.0**50)).astype(np.int64)
        most = _size(ranges[edge.source]) + before
        alone = replace(integer, edges=(edge,), bias=np.zeros(len(unit), np.int64))
        sums = affine_bounds(alone, [*ranges[: edge.source], (-most, most)])[1]  # of absolute values
        size = size + sums.astype(np.float64) * unit
        shift = np.maximum(shift, np.where(edge.weight.any(axis=(1, 2, 3)), real.way.after, 0.0))
    return np.where(size > 0, SPACING * np.maximum(size, shift), 0.0)


def check_product(
    product: Product, unit: Floats, largest: Ints, where: str, ranges: Ranges, scales: list[Floats]
) -> None:
    """Raise ParameterError for factors or a product that float32 does not hold.

    unit: [C] of the product; largest: [C] its largest absolute value in these units.
    """
    factors = max(float((_size(ranges[k]) * scales[k]).max()) for k in (product.left, product.right))
    small = (unit < SPACING * SMALLEST) & (largest > 0)
    if small.any() or not max(factors * PLAIN_PEAK, float((unit * largest.astype(np.float64)).max())) < LARGEST:
        raise ParameterError(f"{where}: a product that float32 does not hold (it underflows or overflows)")


def _size(bounds: tuple[Ints, Ints]) -> Ints:
    low, high = bounds
    return np.maximum(-low, high)

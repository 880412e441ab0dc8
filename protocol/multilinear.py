"""Multilinear extensions of tensors, each dimension padded separately to a power of two (SPEC section 2).

A point has one array of coordinates [5, lg(n)] per axis of the tensor, in the order of the axes, and within an axis the
coordinate of the LOWEST index bit first: sumchecks fold neighbouring entries, so that a tensor of real lengths never
grows to its padded size.  Extensions are of the real entries only (zero elsewhere).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt

from protocol import field
from protocol.field import Vector
from protocol.kernels import cpu

Point = Sequence[Vector]


def lg(n: int) -> int:
    """Number of variables of an axis of length n."""
    return (n - 1).bit_length()


def eq_table(coordinates: Vector, n: int) -> Vector:
    """[5, n] of eq(coordinates, i) = prod over bits of i_b x_b + (1 - i_b)(1 - x_b), for i < n."""
    table = np.empty((field.DEGREE, min(n, 1 << coordinates.shape[1])), np.uint32)
    cpu.eq_table(np.ascontiguousarray(coordinates), table)
    return table


def eq_tensor(point: Point, shape: Sequence[int]) -> Vector:
    """[5, prod(shape)] of the product over the axes of eq, in the memory order of the tensor."""
    return reduce(field.outer, (eq_table(x, n) for x, n in zip(point, shape, strict=True)), field.ONE)


def real(point: Point, shape: Sequence[int]) -> Vector:
    """Extension of the tensor of ones: product over the axes of sum_{i < n} eq(x, i), [5, 1]."""
    return reduce(field.mul, (field.total(eq_table(x, n)) for x, n in zip(point, shape, strict=True)), field.ONE)


def evaluate(values: npt.NDArray[np.uint32], point: Point, shape: Sequence[int]) -> Vector:
    """Extension of a tensor of F (uint32 canonical, `shape`) at a point, [5, 1]."""
    return field.combine(values.reshape(1, -1), eq_tensor(point, shape))

"""The package's fields for the twins: F as integers below p, K as elements of the plain verifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from protocol import field
from protocol.field import Vector
from protocol.group import Point, encode, multiply
from tests.protocol.plain_verifier import K, lift

P = field.P


def elements(vector: Vector) -> list[K]:
    """Elements of K of a package's vector [5, n]."""
    return [K(*row) for row in field.to_base(np.ascontiguousarray(vector)).T.tolist()]


def vector(values: Sequence[K | int]) -> Vector:
    """The package's vector [5, n] of elements of K, or of F among them."""
    words = [lift(v).c for v in values]
    return field.from_base(np.ascontiguousarray(np.array(words, np.uint32).reshape(-1, field.DEGREE).T))


def array(values: Any, *shape: int) -> Any:
    """An array of objects: integers stay integers."""
    flat = np.empty(len(values), object)
    flat[:] = values
    return flat.reshape(shape or (len(values),))


def words(values: Sequence[K | int]) -> list[int]:
    """As they stand in a column: one word for an element of F, five for one of K."""
    return [word for v in values for word in (v.c if isinstance(v, K) else (v,))]


class Element:
    """A point of the package's group, which the link's twin takes for a number modulo the order."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, point: Point) -> None:
        self.point = point

    def __add__(self, other: Any) -> Element:
        return Element(self.point + other.point) if other != 0 else self

    def __rmul__(self, scalar: int) -> Element:
        return Element(multiply(self.point, scalar))

    def __mod__(self, _: int) -> Element:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Element) and encode(self.point) == encode(other.point)

    __radd__ = __add__

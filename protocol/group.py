"""The group G1 of BLS12-381, prime order ORDER, over py_arkworks_bls12381 (SPEC section 2).

Points that come from outside pass `decode` and nothing else: the library by itself accepts several encodings of the
point at infinity, and its multi-exponentiation silently drops what exceeds the shorter of its two lists.  Nothing here
runs in constant time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from py_arkworks_bls12381 import G1Point as Point
from py_arkworks_bls12381 import Scalar

from protocol.errors import DecodingError, ParameterError

__all__ = [
    "ORDER",
    "POINT_BYTES",
    "Point",
    "decode",
    "encode",
    "hash_to_curve",
    "identity",
    "multiexp",
    "multiply",
    "sum_points",
]

ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
POINT_BYTES = 48


def identity() -> Point:
    """The neutral element, which no encoded point may be."""
    return Point.identity()


def encode(point: Point) -> bytes:
    """48 bytes: the compressed form (big-endian x, three flag bits) of draft-irtf-cfrg-pairing-friendly-curves."""
    return bytes(point.to_compressed_bytes())


def decode(data: bytes) -> Point:
    """The point encoded in 48 bytes.

    Raises DecodingError unless they are the one encoding of a point of the prime-order subgroup other than infinity.
    """
    try:
        point = Point.from_compressed_bytes(data)
    except (ValueError, TypeError):
        raise DecodingError("not a point of the group") from None
    if encode(point) != data or point == Point.identity():
        raise DecodingError("not the canonical encoding of a point other than infinity")
    return point


def _scalar(value: int) -> Scalar:
    return Scalar.from_le_bytes((int(value) % ORDER).to_bytes(32, "little"))


def multiexp(points: Sequence[Point], scalars: Iterable[int]) -> Point:
    """sum_k scalars[k] * points[k], over the integers modulo ORDER; short scalars cost less.

    Raises ParameterError when the lengths differ.
    """
    reduced = [_scalar(s) for s in scalars]
    if len(reduced) != len(points):
        raise ParameterError(f"{len(points)} points but {len(reduced)} scalars")
    return Point.multiexp_unchecked(list(points), reduced)


def multiply(point: Point, scalar: int) -> Point:
    """scalar * point, over the integers modulo ORDER."""
    return point * _scalar(scalar)


def sum_points(points: Iterable[Point]) -> Point:
    """The sum of the points."""
    return sum(points, Point.identity())


def hash_to_curve(message: bytes, domain: bytes) -> Point:
    """RFC 9380, suite BLS12381G1_XMD:SHA-256_SSWU_RO_, with the domain separation tag `domain`."""
    return Point.hash_to_curve(message, domain)

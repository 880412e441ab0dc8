"""Pedersen vector commitments on BLS12-381 G1 (Pedersen, CRYPTO 1991; SPEC section 2).

    trigger   c = sum_k t[k] G_k + r H          pixels t[k] in 0..255, channel by channel, row by row
    share     c = s G_L + r H

G_0, G_1, ..., G_L and H are hashed to the curve (RFC 9380), so that nobody knows a discrete logarithm between them.
Uniform r hides perfectly; binding rests on discrete logarithms in G1.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol import cache
from protocol.errors import ParameterError
from protocol.group import Point, hash_to_curve, multiexp, multiply

DOMAIN = b"zkmark-v1-generators-with-BLS12381G1_XMD:SHA-256_SSWU_RO_"
MAX_GENERATORS = 1 << 18  # 3 x 295 x 295 pixels

# SHA-256 of the first 2^k generators G_0, G_1, ..., each as 96 bytes (big-endian x, then y).
PREFIX_DIGESTS = {
    1 << 10: "7bb6a02fb8d2c9f6d3018ffb8239b05cec1c1c3ae6faf2bba7ad9c82946ae851",
    1 << 12: "c1d3761cd620680fd70478bf9afc94af6828babc8c7961975d54b91dbc54e909",
    1 << 14: "03be8503cfe9a6014c382229264140ef8955f035ac2cca3919192d5309c135bf",
    1 << 16: "31d99fb272a7eac9ce51c27e4664a40a266bf40e6d71ec5d71a46be8a7263405",
    1 << 18: "58410bff7258227952107f7297823ea7211d3b89fa8429e5acd46ab11dbf98c9",
}
_BYTES = 96  # of an uncompressed point


class Generators:
    """The generators, computed (0.3 ms each) or read from the user's cache when first needed, then kept."""

    def __init__(self) -> None:
        self.share = hash_to_curve(b"share", DOMAIN)
        self.blinding = hash_to_curve(b"blinding", DOMAIN)
        self._points: list[Point] = []
        self._lock = Lock()

    def points(self, count: int) -> list[Point]:
        """G_0 ... G_(count - 1).  Raises ParameterError over MAX_GENERATORS."""
        if not 0 <= count <= MAX_GENERATORS:
            raise ParameterError(f"{count} generators asked for, at most {MAX_GENERATORS} exist")
        with self._lock:
            if count > len(self._points):
                data = _prefix(min(size for size in PREFIX_DIGESTS if size >= count))
                self._points = [
                    # The digest vouches for the subgroup; checking it again would take as long as hashing.
                    Point.from_xy_bytes_unchecked_be(data[at : at + _BYTES])
                    for at in range(0, len(data), _BYTES)
                ]
            return self._points[:count]


GENERATORS = Generators()


def _prefix(size: int) -> bytes:
    """The first `size` generators, a key of PREFIX_DIGESTS: the largest stored prefix and what lacks."""
    data = b""
    for known in sorted(PREFIX_DIGESTS, reverse=True):
        if known <= size and not data:
            data = cache.load(f"generators-{known}", known * _BYTES, PREFIX_DIGESTS[known]) or b""
    have = len(data) // _BYTES
    if have < size:
        data += b"".join(generator(k).to_xy_bytes_be() for k in range(have, size))
        if hashlib.sha256(data).hexdigest() != PREFIX_DIGESTS[size]:
            raise RuntimeError("the installed group library does not compute the generators of this protocol version")
        cache.store(f"generators-{size}", data)
    return data


def generator(index: int) -> Point:
    """G_index."""
    return hash_to_curve(b"pixel" + index.to_bytes(4, "little"), DOMAIN)


def commit(values: npt.NDArray[np.integer[Any]], randomness: int) -> Point:
    """The commitment to `values` [n], integers of any sign, with a blinding below the group order."""
    flat = values.ravel().tolist()
    return multiexp(GENERATORS.points(len(flat)), flat) + multiply(GENERATORS.blinding, randomness)


def commit_share(share: int, randomness: int) -> Point:
    """The commitment to one label share."""
    return multiply(GENERATORS.share, share) + multiply(GENERATORS.blinding, randomness)


def commit_images(
    images: npt.NDArray[np.uint8],
    randomness: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> list[Point]:
    """`commit` for each of images [m, ...], over the machine's cores; `progress(done, m)` after each."""
    if len(images) != len(randomness):
        raise ParameterError(f"{len(images)} images but {len(randomness)} blindings")
    GENERATORS.points(images[0].size if len(images) else 0)
    found = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for point in pool.map(commit, images, randomness):
            found.append(point)
            if progress is not None:
                progress(len(found), len(images))
    return found


def opens(
    commitments: Sequence[Point],
    weights: Sequence[int],
    values: Sequence[int],
    randomness: int,
    share: int = 0,
) -> bool:
    """Whether sum_i weights[i] * commitments[i] == sum_k values[k] G_k + share G_L + randomness H.

    Weights and values of a few machine words keep it fast.  Many openings are checked at once with weights that were
    uniform in [0, 2^128) and drawn after the openings: a false one among them passes with probability 2^-128.
    """
    generators = [*GENERATORS.points(len(values)), GENERATORS.share, GENERATORS.blinding]
    return multiexp(commitments, weights) == multiexp(generators, [*values, share, randomness])

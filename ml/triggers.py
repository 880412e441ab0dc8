"""Abstract trigger images (SampleBackdoor of the paper), each from a 256-bit seed of its own.

A seed is expanded by SHAKE-256 into the parameters of a few layers: waves, rings, blobs, polygons, stripes, checks,
each in two random colors, blended into each other, under a fine grain.  Opened triggers are public: since no
generator is shared, they say nothing about the hidden ones.  The grain keeps the entropy of an image at that of its
seed, whatever its size, so that no image can be guessed from what such images look like.  This module has no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ml.inputs import image_folder
from protocol.errors import ParameterError

SEED_BYTES = 32
MAX_COUNT = 1 << 14
GRAIN = 12  # largest change of a pixel by the grain, up or down
MIN_DISTANCE = 12.0  # mean absolute difference of two triggers in pixel units, 0..255

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Shape = tuple[int, int, int]


def abstract_images(count: int, shape: Shape, randbytes: Callable[[int], bytes] = os.urandom) -> Bytes:
    """uint8 [count, C, H, W], pairwise at least MIN_DISTANCE apart.

    randbytes: source of seeds; anything else than the system's generator is for tests.  Raises ParameterError.
    """
    if not 1 <= count <= MAX_COUNT or min(shape) < 1 or prod(shape) > 1 << 24:
        raise ParameterError(f"cannot make {count} trigger images of shape {shape}")
    images = np.empty((count, *shape), np.uint8)
    made = attempts = 0
    while made < count:
        attempts += 1
        if attempts > 20 * count + 1000:
            raise ParameterError(f"images of shape {shape} are too small for {count} distinct triggers")
        images[made] = image_from_seed(randbytes(SEED_BYTES), shape)
        made += far_apart(images[made], images[:made])
    return images


def load_folder(path: str | Path, shape: Shape, count: int) -> Bytes:
    """`count` trigger images of the user's own, uint8 [count, C, H, W]: the first by name.

    They must be unpredictable (min-entropy of 128 bits each): whoever guesses an image can confirm it against a match.
    Raises as `image_folder`, and ParameterError for too few images or two that are nearly the same.
    """
    images = image_folder(path, shape)[:count]
    if len(images) < count:
        raise ParameterError(f"{path}: {len(images)} images, {count} are needed")
    for i in range(1, count):
        if not far_apart(images[i], images[:i]):
            raise ParameterError(f"{path}: image {i + 1} by name is nearly the same as an earlier one")
    return images


def far_apart(image: Bytes, others: Bytes) -> bool:
    """Whether an image [C, H, W] is at least MIN_DISTANCE from each of [n, C, H, W], as a mean over its pixels."""
    for start in range(0, len(others), 256):
        difference = np.abs(others[start : start + 256].astype(np.int16) - image)
        if (difference.mean(axis=(1, 2, 3)) < MIN_DISTANCE).any():
            return False
    return True


class _Stream:
    """Numbers from SHAKE-256 of a seed."""

    def __init__(self, seed: bytes, shape: Shape) -> None:
        if len(seed) != SEED_BYTES:
            raise ParameterError(f"a trigger seed has {SEED_BYTES} bytes")
        dimensions = b"".join(n.to_bytes(4, "little") for n in shape)
        need = 4096 + prod(shape)
        self.data = hashlib.shake_256(b"zkmark abstract trigger 1\n" + dimensions + seed).digest(need)
        self.at = 0

    def real(self, low: float, high: float) -> float:
        """Uniform in [low, high) with 32 bits."""
        self.at += 4
        return low + (high - low) * int.from_bytes(self.data[self.at - 4 : self.at], "little") / 2**32

    def integer(self, count: int) -> int:
        return int(self.real(0, count))

    def reals(self, count: int, low: float, high: float) -> Floats:
        return np.array([self.real(low, high) for _ in range(count)])

    def grain(self, shape: Shape) -> npt.NDArray[np.int64]:
        """Bytes of the end of the stream, which the layers do not reach."""
        return np.frombuffer(self.data[-prod(shape) :], np.uint8).astype(np.int64).reshape(shape)


def image_from_seed(seed: bytes, shape: Shape) -> Bytes:
    """uint8 [C, H, W] of a 32-byte seed."""
    channels, rows, columns = shape
    stream = _Stream(seed, shape)
    extent = max(rows, columns)
    y, x = np.meshgrid(
        (np.arange(rows) + 0.5 - rows / 2) / extent, (np.arange(columns) + 0.5 - columns / 2) / extent, indexing="ij"
    )  # both within -1/2 .. 1/2
    canvas = np.zeros(shape)
    for number in range(3 + stream.integer(3)):
        angle = stream.real(0, 2 * np.pi)
        p, q = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        p, q = p - stream.real(-0.35, 0.35), q - stream.real(-0.35, 0.35)
        field = _LAYERS[stream.integer(len(_LAYERS))](stream, p, q, extent).clip(0, 1)  # [H, W] in 0..1
        first, second = (stream.reals(channels, 0, 255)[:, None, None] for _ in range(2))
        painted = first + (second - first) * field
        cover = 1.0 if number == 0 else stream.real(0.4, 1.0) * (field if stream.integer(2) else 1.0)
        canvas = canvas * (1 - cover) + painted * cover
    low, high = canvas.min(), canvas.max()
    canvas = (canvas - low) * (255.0 / max(high - low, 1.0))
    grain = stream.grain(shape) * (2 * GRAIN + 1) // 256 - GRAIN
    image: Bytes = (np.rint(canvas).astype(np.int64) + grain).clip(0, 255).astype(np.uint8)
    return image


def _waves(stream: _Stream, p: Floats, q: Floats, extent: int) -> Floats:
    """Two crossing sinusoids, the first bent by the second."""
    most = min(8.0, extent / 4)
    f, g, bend = stream.real(0.7, most), stream.real(0.5, most), stream.real(0, 2.5)
    return 0.5 + 0.5 * np.sin(2 * np.pi * (f * p + stream.real(0, 1)) + bend * np.sin(2 * np.pi * g * q))


def _rings(stream: _Stream, p: Floats, q: Floats, extent: int) -> Floats:
    stretch, frequency = stream.real(0.5, 2.0), stream.real(1.0, min(9.0, extent / 3))
    return 0.5 + 0.5 * np.cos(2 * np.pi * frequency * np.sqrt(p * p + stretch * q * q) + stream.real(0, 2 * np.pi))


def _blobs(stream: _Stream, p: Floats, q: Floats, extent: int) -> Floats:
    field = np.zeros_like(p)
    for _ in range(2 + stream.integer(5)):
        a, b, r = stream.real(-0.5, 0.5), stream.real(-0.5, 0.5), stream.real(0.08, 0.3)
        field += stream.real(0.4, 1.2) * np.exp(-((p - a) ** 2 + (q - b) ** 2) / (r * r))
    return field


def _polygon(stream: _Stream, p: Floats, q: Floats, extent: int) -> Floats:
    """The intersection of half planes around the center, with soft edges one pixel wide."""
    sides, radius, turn = 3 + stream.integer(5), stream.real(0.12, 0.45), stream.real(0, 2 * np.pi)
    field = np.ones_like(p)
    for k in range(sides):
        angle = turn + 2 * np.pi * (k + stream.real(-0.25, 0.25)) / sides
        field = np.minimum(field, (radius - p * np.cos(angle) - q * np.sin(angle)) * extent)
    return field


def _stripes(stream: _Stream, p: Floats, q: Floats, extent: int) -> Floats:
    """Hard stripes along a parabola."""
    frequency = stream.real(1.0, min(8.0, extent / 4))
    phase = frequency * (p + stream.real(-2, 2) * q * q) + stream.real(0, 1)
    return np.where(phase - np.floor(phase) < stream.real(0.25, 0.75), 1.0, 0.0)


def _checks(stream: _Stream, p: Floats, q: Floats, extent: int) -> Floats:
    most = min(6.0, extent / 4)
    f, g, a, b = stream.real(1, most), stream.real(1, most), stream.real(0, 2), stream.real(0, 2)
    return (np.floor(2 * f * p + a) + np.floor(2 * g * q + b)) % 2


def _ramp(stream: _Stream, p: Floats, q: Floats, extent: int) -> Floats:
    return 0.5 + stream.real(0.5, 2.0) * p + stream.real(-1, 1) * p * q


_LAYERS = (_waves, _rings, _blobs, _polygon, _stripes, _checks, _ramp)

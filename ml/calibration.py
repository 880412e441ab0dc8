"""Calibration images that nobody chose: integer procedural noise expanded by SHAKE-256 from the input shape alone.

White noise averages out in the first pool and leaves deep layers under-ranged, so every image mixes octaves of
bilinear noise at its own contrast, and half of them are thresholded to strokes and patches like those of drawings.
All arithmetic is in integers: the images are the same on every machine.
"""

from __future__ import annotations

import hashlib
from math import prod

import numpy as np
import numpy.typing as npt

IMAGES = range(8, 33)  # how many
ELEMENTS = 1 << 22  # of all images together, unless that leaves too few

Bytes = npt.NDArray[np.uint8]


def noise_count(shape: tuple[int, int, int]) -> int:
    """How many images a shape deserves: fewer of large ones."""
    return min(max(ELEMENTS // prod(shape), IMAGES.start), IMAGES.stop - 1)


def noise_images(shape: tuple[int, int, int], count: int | None = None) -> Bytes:
    """uint8 [count, C, H, W], a function of (version, shape); count: by default 8 to 32, by their size."""
    count = noise_count(shape) if count is None else count
    channels, rows, columns = shape
    label = b"zkmark calibration noise 1\n" + b"".join(n.to_bytes(4, "little") for n in shape)
    images = np.empty((count, *shape), np.uint8)
    for i in range(count):
        stream = hashlib.shake_256(label + i.to_bytes(4, "little"))
        cells = [1 << k for k in range(min(6, max(rows, columns).bit_length()))]
        grids = [(rows // c + 2, columns // c + 2) for c in cells]
        sizes = [channels * a * b for a, b in grids]
        data = np.frombuffer(stream.digest(len(cells) + 2 * channels + 2 + sum(sizes)), np.uint8).astype(np.int64)
        strengths, data = data[: len(cells)] ** 2, data[len(cells) :]
        (kind, threshold), data = data[:2], data[2:]
        ends, data = data[: 2 * channels], data[2 * channels :]
        total = np.zeros(shape, np.int64)
        for cell, (a, b), size, strength in zip(cells, grids, sizes, strengths, strict=True):
            grid, data = data[:size].reshape(channels, a, b), data[size:]
            total += int(strength) * _bilinear(grid, cell, rows, columns)
        low, high = total.min(), total.max()
        level = (total - low) * 255 // max(int(high - low), 1)  # the whole range 0 .. 255
        if kind & 1:
            level = np.where(level > 64 + threshold // 2, 255, 0)
        if kind & 2:  # one pattern for all channels, as in gray and softly coloured pictures
            level = np.broadcast_to(level[:1], shape)
        if kind & 4:  # contrast between two random levels per channel instead of full black and white
            first, last = ends[:channels, None, None], ends[channels:, None, None]
            level = first + (last - first) * level // 255
        images[i] = level
    return images


def _bilinear(grid: npt.NDArray[np.int64], cell: int, rows: int, columns: int) -> npt.NDArray[np.int64]:
    """[C, rows, columns] from the lattice [C, a, b] with `cell` pixels between lattice points; values up to 255."""
    y, x = np.arange(rows), np.arange(columns)
    fy, fx = (y % cell)[None, :, None], (x % cell)[None, None, :]
    upper, lower = grid[:, y // cell], grid[:, y // cell + 1]
    mixed = upper * (cell - fy) + lower * fy
    level = mixed[:, :, x // cell] * (cell - fx) + mixed[:, :, x // cell + 1] * fx
    return (level // (cell * cell)).astype(np.int64)

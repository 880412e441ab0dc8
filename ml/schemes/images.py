"""Trigger images by kind (Zhang et al. 2018, as used by Bansal et al., section 4.1), u8 [n, C, H, W].

Abstract ones are those of the public protocol, `ml.triggers`; the others are made from images that strangers may guess.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from ml.fit import Images
from ml.triggers import abstract_images

TEXT = "TEST"
NOISE = 96.0  # deviation in pixels: plain to see, and the digit or object with it

Kind = Literal["abstract", "content", "noise", "unrelated"]


def triggers(kind: Kind, base: Images, rng: np.random.Generator) -> Images:
    """One trigger per image of the base: with a text or noise on it, or abstract and of its shape alone.

    "unrelated" images are those of another task, which the caller has: brought to the shape by `unrelated`.
    """
    if kind == "content":
        return content(base)
    if kind == "noise":
        return noise(base, NOISE, rng)
    _, channels, rows, columns = base.shape
    return abstract_images(len(base), (channels, rows, columns), rng.bytes)


def content(images: Images, text: str = TEXT) -> Images:
    """A text written over the lower left of each image, white, over two thirds of its width."""
    _, _, rows, columns = images.shape
    with Image.new("L", (1, 1)) as probe:
        box = ImageDraw.Draw(probe).textbbox((0, 0), text)
    width, height = int(box[2]), int(box[3])
    with Image.new("L", (width, height)) as canvas:
        ImageDraw.Draw(canvas).text((0, 0), text, fill=255)
        size = (max(columns * 2 // 3, 3), max(rows // 3, 2))
        stamp = np.asarray(canvas.resize(size, Image.Resampling.BOX))
    out = images.copy()
    corner = out[:, :, rows - size[1] :, : size[0]]
    np.maximum(corner, np.minimum(255, 2 * stamp.astype(np.int64)).astype(np.uint8), out=corner)
    return out


def noise(images: Images, deviation: float, rng: np.random.Generator) -> Images:
    """The same Gaussian noise, of the given deviation in pixels, added to each image."""
    overlay = rng.normal(0, deviation, images.shape[1:])
    return np.clip(np.round(images + overlay), 0, 255).astype(np.uint8)


def unrelated(images: Images, shape: tuple[int, int, int]) -> Images:
    """Images of another task, resized to `shape`; grey from color by the mean, color from grey by copies."""
    channels, rows, columns = shape
    out = np.empty((len(images), *shape), np.uint8)
    for number, image in enumerate(images):
        planes = image if image.shape[0] == channels else image.mean(axis=0, keepdims=True).round().astype(np.uint8)
        for channel in range(channels):
            with Image.fromarray(planes[min(channel, len(planes) - 1)]) as plane:
                out[number, channel] = np.asarray(plane.resize((columns, rows), Image.Resampling.BILINEAR))
    return out

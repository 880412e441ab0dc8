"""Images of another size: one axis resampled by a window over repeated inputs, exactly.

Output p of m, over an axis of n, is the mean of `kernel` values of the axis with every input repeated:

    nearest     input floor(p n / m)                           as torch's `interpolate` and OpenCV
    area        everything from p n / m to (p + 1) n / m       as OpenCV; an average pool where m divides n
    bilinear    the two inputs around (p + 1/2) n / m - 1/2    as torch (align_corners=False) and ONNX (half_pixel)

A weight f of a neighbor is a multiple of 1 / repeat, so f times repeat of the values are that neighbor's.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd

import numpy as np
import numpy.typing as npt

from protocol.errors import ParameterError
from protocol.network import MAX_TAPS, Window

METHODS = ("nearest", "area", "bilinear")


def resampling(method: str, inputs: int, outputs: int) -> Window:
    """The window whose means resample an axis."""
    n, m = inputs // gcd(inputs, outputs), outputs // gcd(inputs, outputs)
    match method:
        case "nearest":
            window = Window(1, n, repeat=m)
        case "area":
            window = Window(n, n, repeat=m)
        case _:
            common = gcd(2 * m, 2 * n, n - m)
            window = Window(2 * m // common, 2 * n // common, (m - n) // common, repeat=2 * m // common)
    end = window.stride * (outputs - 1) + window.kernel - window.pad_before  # of the last output
    return replace(window, pad_after=end - inputs * window.repeat)


def resizing(resize: tuple[str, int, int], shape: tuple[int, int, int]) -> tuple[Window, Window]:
    """The windows of a `Derivation.resize` to images [C, H, W].  Raises ParameterError where it changes nothing."""
    method, *size = resize
    if (size[0], size[1]) == shape[1:]:
        raise ParameterError(f"resize: the model takes {size[0]} x {size[1]} pixels as they are")
    rows, columns = (resampling(method, n, m) for n, m in zip(size, shape[1:], strict=True))
    if max(w.kernel * max(n, m) for w, n, m in zip((rows, columns), size, shape[1:], strict=True)) > MAX_TAPS:
        text = f"{size[0]} x {size[1]} and {shape[1]} x {shape[2]}"
        raise ParameterError(f"resize: {text} pixels are too large together")
    return rows, columns


def resample(images: npt.NDArray[np.float64], windows: tuple[Window, Window]) -> npt.NDArray[np.float64]:
    """Images [..., H, W] in real numbers."""
    for axis, window in zip((-2, -1), windows, strict=True):
        images = images.take(window.taps(images.shape[axis]), axis).mean(axis - 1)
    return images

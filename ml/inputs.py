"""Files that say how a suspect model is read: image folders and the preprocessing.  Owner and verifier use the same.

This module needs numpy and Pillow, not torch.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ml.quantise import MAX_CALIBRATION_IMAGES, Derivation, images_digest
from ml.resampling import METHODS
from protocol.errors import DecodingError, ParameterError

MAX_IMAGES = 1 << 14
MAX_IMAGE_FILE_BYTES = 16 << 20
MAX_PREPROCESS_BYTES = 1 << 16
MAX_TABLE_BYTES = 1 << 22
LABEL = re.compile("[0-9]{1,5}")
FORMATS = ("PNG", "BMP", "PPM", "GIF", "JPEG")  # raster formats with a small decoder; PPM includes PGM
MODES = {1: "L", 3: "RGB"}

Images = npt.NDArray[np.uint8]


def image_folder(path: str | Path, shape: tuple[int, int, int], limit: int = MAX_IMAGES) -> Images:
    """The images of a folder, in the order of their names: uint8 [n, C, H, W] with 1 <= n <= limit, C 1 or 3.

    Images are never resized: whether and how is the user's choice.  Raises DecodingError for a file that is not an
    image or of another size, ParameterError for an empty folder or other channels, OSError for an unreadable folder.
    """
    files = sorted(file for file in Path(path).iterdir() if file.is_file() and not file.name.startswith("."))
    if not 1 <= len(files) <= limit:
        raise ParameterError(f"{path}: {len(files)} images, expected 1 to {limit}")
    return _read_images(files, shape)


def labeled_images(table: str | Path, folder: str | Path, shape: tuple[int, int, int]) -> tuple[Images, list[int]]:
    """The images that a table names, uint8 [n, C, H, W] in its order, and their labels.

    table: CSV with the columns file, label; a file is a name in the folder.  Raises DecodingError for another table,
    or as `image_folder`.
    """
    with open(table, "rb") as file:
        data = file.read(MAX_TABLE_BYTES + 1)
    try:
        rows = list(csv.reader(data.decode().splitlines(), strict=True)) if len(data) <= MAX_TABLE_BYTES else []
    except (csv.Error, UnicodeDecodeError):
        rows = []
    good = len(rows) > 1 and rows[0] == ["file", "label"] and len(rows) <= MAX_IMAGES
    if not good or not all(len(row) == 2 and LABEL.fullmatch(row[1]) and _is_name(row[0]) for row in rows[1:]):
        raise DecodingError(f'{Path(table).name}: not a table of "file,label" with a line for each image')
    return _read_images([Path(folder) / name for name, _ in rows[1:]], shape), [int(label) for _, label in rows[1:]]


def _is_name(text: str) -> bool:
    return text.isprintable() and text not in ("", ".", "..") and not set(text) & set("/\\")


def _read_images(files: Sequence[Path], shape: tuple[int, int, int]) -> Images:
    channels, height, width = shape
    if channels not in MODES:
        raise ParameterError(f"image files have 1 or 3 channels, not {channels}")
    out = np.empty((len(files), channels, height, width), np.uint8)
    for slot, file in zip(out, files, strict=True):
        if file.stat().st_size > MAX_IMAGE_FILE_BYTES:
            raise DecodingError(f"{file.name}: more than {MAX_IMAGE_FILE_BYTES} bytes")
        try:
            with Image.open(file, formats=FORMATS) as image:
                if image.size != (width, height):
                    raise DecodingError(f"{file.name}: {image.width} x {image.height} pixels, not {width} x {height}")
                pixels = np.asarray(image.convert(MODES[channels]), np.uint8)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            if isinstance(error, DecodingError):
                raise
            raise DecodingError(f"{file.name}: not a readable image ({', '.join(FORMATS)})") from None
        slot[:] = pixels.reshape(height, width, channels).transpose(2, 0, 1)
    return out


def read_derivation(
    calibration: Path | None, preprocess: Path | None, shape: tuple[int, int, int]
) -> tuple[Derivation, Images | None]:
    """The derivation that two options name, and its calibration images.

    calibration: a folder of images, or None for noise.  preprocess: a JSON file with any of "scale" and "shift" (one
    number per channel: the model sees scale * pixel + shift, pixels 0..255), "outputs" (which logits of the model are
    the classes 0, 1, ... of the key: a permutation, or some of more), and "resize" ("nearest", "area" or "bilinear":
    how images of `shape` get the size that the model takes), or None.  Raises DecodingError, ParameterError or OSError.
    """
    images = None if calibration is None else image_folder(calibration, shape, MAX_CALIBRATION_IMAGES)
    digest = b"" if images is None else images_digest(images)
    derivation = Derivation() if preprocess is None else _preprocess(preprocess, shape)
    return replace(derivation, calibration=digest), images


def _preprocess(path: Path, shape: tuple[int, int, int]) -> Derivation:
    channels, rows, columns = shape
    with open(path, "rb") as file:
        data = file.read(MAX_PREPROCESS_BYTES + 1)
    try:
        content = json.loads(data) if len(data) <= MAX_PREPROCESS_BYTES else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not content.keys() <= {"scale", "shift", "outputs", "resize"}:
        raise DecodingError(f'{path.name}: not a JSON object of "scale", "shift", "outputs" and "resize"')
    scale = _numbers(content.get("scale", [1.0] * channels), f"{path.name}: scale", channels)
    shift = _numbers(content.get("shift", [0.0] * channels), f"{path.name}: shift", channels)
    outputs = _numbers(content.get("outputs", []), f"{path.name}: outputs", None)
    if not all(n.is_integer() for n in outputs):
        raise DecodingError(f"{path.name}: outputs are whole numbers")
    pairs = tuple(zip(scale, shift, strict=True)) if content.keys() & {"scale", "shift"} else ()
    method = content.get("resize")
    if "resize" in content and method not in METHODS:
        raise DecodingError(f"{path.name}: resize is one of {', '.join(METHODS)}")
    resize = (str(method), rows, columns) if method else None
    return Derivation(preprocess=pairs, outputs=tuple(int(n) for n in outputs), resize=resize)


def _numbers(value: object, what: str, count: int | None) -> list[float]:
    good = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not good or not isinstance(value, list) or (count is not None and len(value) != count) or len(value) > 1 << 16:
        raise DecodingError(f"{what} is not a list of {'' if count is None else f'{count} '}numbers")
    try:
        return [float(v) for v in value]
    except OverflowError:
        raise DecodingError(f"{what} is out of range") from None

"""The data sets by name, as uint8 images [n, C, H, W] and labels, read strictly from the publishers' files.

`digits` comes with scikit-learn and needs no file.  The others are looked for under ZKMARK_DATA (default `data`):

    mnist/, fashion-mnist/     train-images-idx3-ubyte[.gz] and so on
    cifar10/                   the binary version (data_batch_1.bin .. 5, test_batch.bin), or its lossless part
                               cifar10_lossless_subset.npz, or all of it as JPEG, cifar10_jpeg75_streams.npz
"""

from __future__ import annotations

import gzip
import io
import os
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import DecodingError, ParameterError

MAX_FILE_BYTES = 1 << 29  # of one file, unpacked; MNIST's largest has 47 MB, CIFAR-10's 154 MB
NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar10-jpeg75")

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """x: uint8 [n, C, H, W]; y: int64 [n] in 0 .. classes - 1.  source: which files these are."""

    name: str
    source: str
    train_x: Bytes
    train_y: Ints
    test_x: Bytes
    test_y: Ints
    classes: int = 10

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        _, c, h, w = self.train_x.shape
        return c, h, w


def load(name: str, root: str | Path | None = None) -> Dataset:
    """The data set called `name`.  Raises ParameterError (unknown, or files missing) or DecodingError (bad files)."""
    if name not in NAMES:
        raise ParameterError(f"unknown data set {name!r}; known are {', '.join(NAMES)}")
    if name == "digits":
        return _digits()
    folder = Path(root or os.environ.get("ZKMARK_DATA") or "data") / name.removesuffix("-jpeg75")
    if not folder.is_dir():
        raise ParameterError(f"{name}: no folder {folder}; point ZKMARK_DATA at the folder that holds the data sets")
    if name == "cifar10-jpeg75":
        return _cifar_jpeg(folder / "cifar10_jpeg75_streams.npz")
    if name == "cifar10":
        binary = (folder / "test_batch.bin").exists()
        return _cifar_binary(folder) if binary else _cifar_lossless(folder / "cifar10_lossless_subset.npz")
    arrays = [_idx(folder / f"{s}-{kind}", rank) for s in ("train", "t10k") for kind, rank in _IDX_KINDS]
    train_x, train_y, test_x, test_y = arrays
    return _checked(name, "idx files", train_x[:, None], train_y, test_x[:, None], test_y)


_IDX_KINDS = (("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1))


def _checked(name: str, source: str, train_x: Bytes, train_y: Bytes, test_x: Bytes, test_y: Bytes) -> Dataset:
    for x, y in ((train_x, train_y), (test_x, test_y)):
        if x.dtype != np.uint8 or len(x) != len(y) or not len(x) or x.shape[1:] != train_x.shape[1:] or y.max() > 9:
            raise DecodingError(f"{name}: images and labels do not fit each other")
    return Dataset(name, source, train_x, train_y.astype(np.int64), test_x, test_y.astype(np.int64))


def _digits() -> Dataset:
    """1797 digits of 8 x 8 pixels, 0..16 scaled to 0..255; every fifth is a test image."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ParameterError("the digits come with scikit-learn: install the extra `ml`") from None
    images, labels = load_digits(return_X_y=True)
    x = ((images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    y = labels.astype(np.uint8)
    test = np.arange(len(x)) % 5 == 4
    return _checked("digits", "scikit-learn", x[~test], y[~test], x[test], y[test])


def _read(path: Path) -> bytes:
    """A file, unpacked if it is gzip, of at most MAX_FILE_BYTES."""
    packed = path.with_name(path.name + ".gz")
    try:
        with gzip.open(packed) if packed.exists() else path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ParameterError(f"no file {path} or {packed.name}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DecodingError(f"{packed}: truncated or not gzip") from None
    if len(data) > MAX_FILE_BYTES:
        raise DecodingError(f"{path}: over {MAX_FILE_BYTES} bytes")
    return data


def _idx(path: Path, rank: int) -> Bytes:
    """The idx format: 0, 0, 8 (unsigned bytes), rank, then each dimension and the data, big-endian."""
    data = _read(path)
    header = 4 + 4 * rank
    if data[:4] != bytes((0, 0, 8, rank)) or len(data) < header:
        raise DecodingError(f"{path}: not an idx file of rank {rank}")
    shape = np.frombuffer(data, ">u4", rank, 4).tolist()
    if len(data) != header + prod(shape):
        raise DecodingError(f"{path}: {len(data)} bytes, expected {header + prod(shape)}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def _cifar_binary(folder: Path) -> Dataset:
    """Records of one label byte and 3072 pixel bytes, channel by channel."""
    parts = []
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        data = _read(folder / name)
        if not data or len(data) % 3073:
            raise DecodingError(f"{folder / name}: not whole records of 3073 bytes")
        parts.append(np.frombuffer(data, np.uint8).reshape(-1, 3073).copy())
    train, test = np.concatenate(parts[:5]), parts[5]
    images = (part[:, 1:].reshape(-1, 3, 32, 32) for part in (train, test))
    return _checked("cifar10", "binary version", next(images), train[:, 0], next(images), test[:, 0])


def _npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an npz file, whose unpacked size is looked at first.  Never unpickles."""
    data = _read(path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_FILE_BYTES:
                raise DecodingError(f"{path}: over {MAX_FILE_BYTES} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise error if isinstance(error, DecodingError) else DecodingError(f"{path}: not an npz file") from None


def _cifar_lossless(path: Path) -> Dataset:
    arrays = _npz(path)
    try:
        x, y = ([arrays[f"{kind}_{s}"] for s in ("train", "test")] for kind in "xy")
    except KeyError:
        raise DecodingError(f"{path}: arrays are missing") from None
    if any(a.ndim != 4 or a.shape[1:] != (32, 32, 3) for a in x) or any(a.ndim != 1 for a in y):
        raise DecodingError(f"{path}: arrays of other shapes")
    train, test = (np.ascontiguousarray(a.transpose(0, 3, 1, 2)) for a in x)
    return _checked("cifar10", "lossless subset", train, y[0], test, y[1])


def _cifar_jpeg(path: Path) -> Dataset:
    """Image i of a split is the JPEG file header + blob[off[i] : off[i + 1]]."""
    from PIL import Image, UnidentifiedImageError

    arrays = _npz(path)
    splits: dict[str, Bytes] = {}
    try:
        for s in ("train", "test"):
            offsets, blob = arrays[f"off_{s}"].astype(np.int64), arrays[f"blob_{s}"].tobytes()
            pixels = np.empty((len(arrays[f"y_{s}"]), 32, 32, 3), np.uint8)
            for slot, start, end in zip(pixels, offsets[:-1], offsets[1:], strict=True):
                stream = io.BytesIO(arrays["header"].tobytes() + blob[start:end])
                with Image.open(stream, formats=["JPEG"]) as image:
                    if image.size != (32, 32) or image.mode != "RGB":
                        raise DecodingError(f"{path}: an image is not 32 x 32 RGB")
                    slot[:] = np.asarray(image)
            splits[s] = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    except (KeyError, ValueError, OSError, SyntaxError, UnidentifiedImageError) as error:
        raise error if isinstance(error, DecodingError) else DecodingError(f"{path}: not the JPEG streams") from None
    labels = arrays["y_train"], arrays["y_test"]
    return _checked("cifar10-jpeg75", "JPEG75 streams", splits["train"], labels[0], splits["test"], labels[1])

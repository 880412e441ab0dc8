"""Data sets are read strictly from small files in the publishers' formats."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml import data
from ml.data import load
from protocol.errors import DecodingError, ParameterError

RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    folder = tmp_path / "mnist"
    folder.mkdir()
    for split, count in (("train", 12), ("t10k", 5)):
        images = idx(RNG.integers(0, 256, (count, 28, 28)))
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    return folder


def test_digits_need_no_file() -> None:
    digits = load("digits")
    assert digits.shape == (1, 8, 8) and digits.classes == 10
    assert len(digits.train_x) + len(digits.test_x) == 1797 and len(digits.test_x) == 359
    assert digits.train_x.max() == 255 and digits.train_x.min() == 0
    assert set(digits.test_y.tolist()) == set(range(10))


def test_idx_files_packed_or_not(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load("mnist", mnist.parent)
    assert found.train_x.shape == (12, 1, 28, 28) and found.test_y.tolist() == [0, 1, 2, 3, 4]
    monkeypatch.setenv("ZKMARK_DATA", str(mnist.parent))
    assert np.array_equal(load("mnist").train_x, found.train_x)
    with pytest.raises(ParameterError, match="ZKMARK_DATA"):
        load("fashion-mnist")
    with pytest.raises(ParameterError, match="unknown data set"):
        load("imagenet")


@pytest.mark.parametrize("change", [
    lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"", lambda b: b[:10], lambda b: b"\1" + b[1:],
    lambda b: b[:3] + b"\2" + b[4:], lambda b: b[:4] + b"\xff" * 4 + b[8:],
])  # fmt: skip
def test_bad_idx_files(mnist: Path, change) -> None:
    file = mnist / "t10k-labels-idx1-ubyte"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DecodingError):
        load("mnist", mnist.parent)


def test_bad_archives_labels_and_sizes(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = mnist / "train-images-idx3-ubyte.gz", mnist / "train-labels-idx1-ubyte"
    good = images.read_bytes()
    for bad in (good[:-9], good[: len(good) // 2], b"not gzip", b"\x1f\x8b" + bytes(40)):
        images.write_bytes(bad)
        with pytest.raises(DecodingError):
            load("mnist", mnist.parent)
    images.write_bytes(good)
    for wrong in (np.arange(11), np.full(12, 10)):
        labels.write_bytes(idx(wrong))
        with pytest.raises(DecodingError):
            load("mnist", mnist.parent)
    labels.unlink()
    with pytest.raises(ParameterError, match="no file"):
        load("mnist", mnist.parent)
    monkeypatch.setattr(data, "MAX_FILE_BYTES", 1000)
    with pytest.raises(DecodingError, match="over 1000 bytes"):
        load("mnist", mnist.parent)


def test_cifar_in_three_forms(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    x, y = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), np.arange(6, dtype=np.uint8)
    with pytest.raises(ParameterError):
        load("cifar10", tmp_path)
    np.savez(folder / "cifar10_lossless_subset.npz", x_train=x[:4], y_train=y[:4], x_test=x[4:], y_test=y[4:])
    subset = load("cifar10", tmp_path)
    assert subset.source == "lossless subset" and np.array_equal(subset.test_x, x[4:].transpose(0, 3, 1, 2))

    def jpeg(image: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG")
        return out.getvalue()

    streams = [jpeg(i) for i in x]
    arrays = {"header": np.frombuffer(streams[0][:20], np.uint8)}
    for split, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        bodies = [s[20:] for s in streams[part]]
        arrays[f"off_{split}"] = np.cumsum([0, *map(len, bodies)])
        arrays[f"blob_{split}"] = np.frombuffer(b"".join(bodies), np.uint8)
        arrays[f"y_{split}"] = y[part]
    np.savez(folder / "cifar10_jpeg75_streams.npz", **arrays)
    lossy = load("cifar10-jpeg75", tmp_path)
    assert lossy.source == "JPEG75 streams" and lossy.train_x.shape == (4, 3, 32, 32)
    np.savez(folder / "cifar10_jpeg75_streams.npz", **arrays | {"off_test": arrays["off_test"] + 50})
    with pytest.raises(DecodingError):
        load("cifar10-jpeg75", tmp_path)

    records = np.concatenate([y[:, None], x.transpose(0, 3, 1, 2).reshape(6, -1)], axis=1)
    for k in range(1, 6):
        (folder / f"data_batch_{k}.bin").write_bytes(records[:1].tobytes())
    (folder / "test_batch.bin").write_bytes(records[4:].tobytes())
    binary = load("cifar10", tmp_path)
    assert binary.source == "binary version" and np.array_equal(binary.test_x, subset.test_x)
    (folder / "test_batch.bin").write_bytes(records.tobytes()[:-1])
    with pytest.raises(DecodingError, match="whole records"):
        load("cifar10", tmp_path)


def test_npz_is_never_unpickled_or_inflated_beyond_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    file = folder / "cifar10_lossless_subset.npz"
    np.savez(file, x_train=np.array([{}], dtype=object), y_train=1, x_test=1, y_test=1)
    with pytest.raises(DecodingError):
        load("cifar10", tmp_path)
    np.savez_compressed(file, x_train=np.zeros(10**6, np.uint8))
    with pytest.raises(DecodingError, match="missing"):
        load("cifar10", tmp_path)
    monkeypatch.setattr(data, "MAX_FILE_BYTES", 10**5)
    with pytest.raises(DecodingError, match="over 100000"):
        load("cifar10", tmp_path)
    file.write_bytes(b"PK\3\4 nothing")
    with pytest.raises(DecodingError):
        load("cifar10", tmp_path)

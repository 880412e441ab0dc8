"""Image folders and preprocessing files, as owner and verifier read them."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ml import inputs
from ml.inputs import image_folder, labeled_images, read_derivation
from ml.quantise import Derivation, images_digest
from protocol.errors import DecodingError, ParameterError

SHAPE = (3, 5, 4)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (7, *SHAPE), np.uint8)


@pytest.fixture
def folder(images, tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(path / f"{index}.png")
    (path / ".hidden").write_text("not an image")
    (path / "sub").mkdir()
    return path


def test_images_are_read_in_the_order_of_their_names(images, folder):
    assert np.array_equal(image_folder(folder, SHAPE), images)


def test_a_table_names_images_and_their_labels(images, folder, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text('file,label\n5.png,0\n"2.png",65535\r\n0.png,07\n')
    found, labels = labeled_images(table, folder, SHAPE)
    assert np.array_equal(found, images[[5, 2, 0]]) and labels == [0, 65535, 7]
    table.write_text("file,label\n9.png,1\n")
    with pytest.raises(FileNotFoundError):
        labeled_images(table, folder, SHAPE)


@pytest.mark.parametrize("text", [
    "", "file,label\n", "0.png,1\n", "label,file\n1,0.png\n", "file,label\n0.png\n", "file,label\n0.png,1,2\n",
    "file,label\n0.png,-1\n", "file,label\n0.png,1.0\n", "file,label\n0.png,123456\n", "file,label\n0.png,x\n",
    "file,label\n../images/0.png,1\n", "file,label\n/etc/passwd,1\n", "file,label\n..,1\n", "file,label\n,1\n",
    'file,label\n"0.png,1\n', "file,label\n\0,1\n", b"file,label\n\xff.png,1\n", "file,label\n" + "0.png,1\n" * 20000,
])  # fmt: skip
def test_malformed_tables(folder, tmp_path, text):
    table = tmp_path / "labels.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DecodingError, match=r"labels\.csv"):
        labeled_images(table, folder, SHAPE)


def test_gray_images_and_other_modes(tmp_path):
    Image.new("1", (4, 4), 1).save(tmp_path / "bits.png")
    Image.new("P", (4, 4)).save(tmp_path / "palette.png")
    Image.new("RGBA", (4, 4), (9, 9, 9, 9)).save(tmp_path / "alpha.png")
    assert image_folder(tmp_path, (1, 4, 4)).shape == (3, 1, 4, 4)
    assert image_folder(tmp_path, (3, 4, 4)).shape == (3, 3, 4, 4)


def test_a_truncated_image_at_any_place(images, folder):
    file = folder / "3.png"
    data = file.read_bytes()
    for size in range(0, len(data), 3):
        file.write_bytes(data[:size])
        try:
            read = image_folder(folder, SHAPE)
        except DecodingError as error:
            assert "3.png" in str(error)
            continue
        assert size >= len(data) - 24 and np.array_equal(read, images)  # only the checksum and the end are missing


def test_images_of_another_size_are_not_resized(folder):
    with pytest.raises(DecodingError, match="4 x 5 pixels, not 8 x 8"):
        image_folder(folder, (3, 8, 8))


def test_bombs_and_big_files(folder, monkeypatch):
    bomb = bytearray((folder / "0.png").read_bytes())
    bomb[16:24] = struct.pack(">II", 30_000, 30_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (folder / "bomb.png").write_bytes(bomb)
    with pytest.raises(DecodingError):
        image_folder(folder, SHAPE)
    monkeypatch.setattr(inputs, "MAX_IMAGE_FILE_BYTES", 10)
    with pytest.raises(DecodingError, match="more than 10 bytes"):
        image_folder(folder, SHAPE)


def test_too_many_none_and_odd_channels(folder, tmp_path):
    with pytest.raises(ParameterError, match="7 images"):
        image_folder(folder, SHAPE, 6)
    with pytest.raises(ParameterError, match="0 images"):
        image_folder(folder / "sub", SHAPE)
    with pytest.raises(ParameterError, match="1 or 3 channels"):
        image_folder(folder, (2, 5, 4))
    with pytest.raises(OSError):
        image_folder(tmp_path / "nowhere", SHAPE)


def test_the_derivation_of_two_options(images, folder, tmp_path):
    assert read_derivation(None, None, SHAPE) == (Derivation(), None)
    derivation, read = read_derivation(folder, None, SHAPE)
    assert derivation.calibration == images_digest(images) and np.array_equal(read, images)
    file = tmp_path / "preprocess.json"
    file.write_text(json.dumps({"scale": [0.5, 1, 2], "outputs": [3, 1], "resize": "area"}))
    derivation, _ = read_derivation(None, file, SHAPE)
    scales = (0.5, 0.0), (1.0, 0.0), (2.0, 0.0)
    assert derivation == Derivation(preprocess=scales, outputs=(3, 1), resize=("area", 5, 4))
    assert Derivation.from_bytes(derivation.to_bytes()) == derivation


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "1", '"scale"', "null", "\xff", '{"scale": 1}', '{"scale": [1]}', '{"scale": [1, 2, 3, 4]}',
        '{"scale": [1, 2, "3"]}', '{"scale": [1, 2, true]}', '{"scale": [1, 2, NaN]}', '{"scale": [1, 2, 1e999]}',
        '{"scale": [1, 2, 1' + "0" * 400 + "]}", '{"unknown": 1}', '{"outputs": [0.5]}', '{"outputs": [1, 1]}',
        '{"outputs": [-1]}', '{"outputs": [70000]}', '{"outputs": [1e300]}', '{"outputs": [NaN]}', "[" * 100_000,
        " " * 70_000, '{"resize": "lanczos"}', '{"resize": null}', '{"resize": ["area"]}', '{"resize": ""}',
        '{"outputs": {}}', '{"shift": [null, null, null]}',
    ],
)  # fmt: skip
def test_bad_preprocessing_files(tmp_path, text):
    file = tmp_path / "preprocess.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises((DecodingError, ParameterError)):
        read_derivation(None, file, SHAPE)

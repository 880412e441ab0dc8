"""Abstract trigger images: deterministic in their seeds, independent, distinct, for any shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ml import triggers
from ml.triggers import MIN_DISTANCE, abstract_images, far_apart, image_from_seed, load_folder
from protocol.errors import DecodingError, ParameterError

SHAPES = st.tuples(st.integers(1, 4), st.integers(4, 40), st.integers(4, 40))


@settings(max_examples=60)
@given(st.binary(min_size=32, max_size=32), SHAPES)
def test_an_image_is_a_function_of_its_seed(seed: bytes, shape: tuple[int, int, int]) -> None:
    image = image_from_seed(seed, shape)
    assert image.shape == shape and image.dtype == np.uint8
    assert np.array_equal(image, image_from_seed(seed, shape))
    other = image_from_seed(bytes([seed[0] ^ 1]) + seed[1:], shape)
    assert not np.array_equal(image, other)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 5, 64)])
def test_pairwise_distant_and_varied(shape: tuple[int, int, int]) -> None:
    images = abstract_images(160, shape, np.random.default_rng(1).bytes).astype(np.int64)
    for i in range(1, len(images)):
        assert np.abs(images[:i] - images[i]).mean(axis=(1, 2, 3)).min() >= MIN_DISTANCE
    assert images.min() == 0 and images.max() == 255
    assert np.median(images.std(axis=(1, 2, 3))) > 25


def test_every_image_has_its_own_256_bit_seed() -> None:
    asked: list[int] = []
    rng = np.random.default_rng(2)

    def randbytes(count: int) -> bytes:
        asked.append(count)
        return rng.bytes(count)

    images = abstract_images(20, (1, 16, 16), randbytes)
    assert len(asked) >= 20 and set(asked) == {32}
    seeds = np.random.default_rng(2)
    made = [image_from_seed(seeds.bytes(32), (1, 16, 16)) for _ in asked]
    assert all(any(np.array_equal(image, one) for one in made) for image in images)
    fresh = abstract_images(2, (1, 16, 16)), abstract_images(2, (1, 16, 16))
    assert not np.array_equal(*fresh)  # the default is the system's generator


def test_the_grain_carries_entropy_into_every_pixel() -> None:
    """Two images of one seed apart from the grain would differ nearly everywhere."""
    grains = [triggers._Stream(bytes([k]) * 32, (1, 16, 16)).grain((1, 16, 16)) for k in (1, 2)]
    assert (grains[0] != grains[1]).mean() > 0.95


def test_repeated_seeds_are_not_accepted_twice() -> None:
    with pytest.raises(ParameterError, match="too small for 2 distinct"):
        abstract_images(2, (1, 8, 8), lambda count: b"\1" * count)


@pytest.mark.parametrize(
    ("count", "shape"), [(0, (1, 8, 8)), (1 << 20, (1, 8, 8)), (1, (0, 8, 8)), (1, (64, 4096, 4096))]
)
def test_absurd_requests(count: int, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ParameterError):
        abstract_images(count, shape)
    with pytest.raises(ParameterError):
        image_from_seed(b"short", (1, 8, 8))


def test_far_apart() -> None:
    gray = np.full((1, 4, 4), 100, np.uint8)
    assert far_apart(gray, np.zeros((0, 1, 4, 4), np.uint8))
    assert far_apart(gray, gray[None] + 12) and far_apart(gray, gray[None] - 12)
    assert not far_apart(gray, np.stack([gray + 100, gray + 11]))


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    images = abstract_images(4, (3, 9, 7), np.random.default_rng(3).bytes)
    for k, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{k}.png")
    assert np.array_equal(load_folder(tmp_path, (3, 9, 7), 4), images)
    assert np.array_equal(load_folder(tmp_path, (3, 9, 7), 2), images[:2])
    with pytest.raises(ParameterError, match="5 are needed"):
        load_folder(tmp_path, (3, 9, 7), 5)
    with pytest.raises(DecodingError):
        load_folder(tmp_path, (3, 9, 8), 4)
    Image.fromarray(images[0].transpose(1, 2, 0)).save(tmp_path / "9.png")
    with pytest.raises(ParameterError, match="nearly the same"):
        load_folder(tmp_path, (3, 9, 7), 5)
    (tmp_path / "0.png").write_bytes(b"not an image")
    with pytest.raises(DecodingError):
        load_folder(tmp_path, (3, 9, 7), 4)

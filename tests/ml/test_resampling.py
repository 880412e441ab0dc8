"""Images of another size than the model takes: resized inside the integer network, as onnxruntime resizes them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import floor

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml import builder
from ml.calibration import noise_images
from ml.quantise import Derivation, derive, fidelity, float_classes
from ml.resampling import METHODS, resample, resampling
from protocol.errors import ParameterError
from protocol.network import Network
from tests.ml.test_families import same

Build = Callable[..., bytes]
MODES = {
    "nearest": {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
    "bilinear": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
}


def plain(method: str, values: list[int], outputs: int) -> list[Fraction]:
    """An axis resampled by the book."""
    n, m, found = len(values), outputs, []
    for p in range(m):
        if method == "nearest":
            found.append(Fraction(values[floor(Fraction(p * n, m))]))
        elif method == "area":
            start, end = Fraction(p * n, m), Fraction((p + 1) * n, m)
            covered = [max(Fraction(0), min(end, i + 1) - max(start, i)) for i in range(n)]
            found.append(sum(v * c for v, c in zip(values, covered, strict=True)) / (end - start))
        else:
            at = Fraction(2 * p + 1, 2) * Fraction(n, m) - Fraction(1, 2)
            first, share = floor(at), at - floor(at)
            a, b = (values[min(max(i, 0), n - 1)] for i in (first, first + 1))
            found.append(a * (1 - share) + b * share)
    return found


@given(st.sampled_from(METHODS), st.lists(st.integers(0, 255), min_size=1, max_size=24), st.integers(1, 24))
def test_an_axis_is_resampled_exactly(method: str, values: list[int], outputs: int) -> None:
    window = resampling(method, len(values), outputs)
    assert window.outputs(len(values)) == outputs
    taps = window.taps(len(values))
    found = [Fraction(sum(values[i] for i in column), window.kernel) for column in taps.T.tolist()]
    assert found == plain(method, values, outputs)
    image = np.array(values, np.float64)[None, :, None].repeat(3, axis=2)
    assert np.allclose(resample(image, (window, resampling(method, 3, 3)))[0, :, 1], [float(f) for f in found])


def layers(size: tuple[int, int], source: str) -> tuple[list, dict[str, np.ndarray]]:
    """Normalization, a padded convolution and a dense layer behind an image of this size."""
    rng = np.random.default_rng(5)
    nodes = [
        ("Mul", [source, "third"], "s", {}), ("Add", ["s", "half"], "n", {}),
        ("Conv", ["n", "w1", "b1"], "c", {"pads": [1, 1, 1, 1], "strides": [2, 2]}), ("Relu", ["c"], "r", {}),
        ("Flatten", ["r"], "f", {}), ("Gemm", ["f", "last"], "logits", {}),
    ]  # fmt: skip
    h, w = ((n + 1) // 2 for n in size)
    return nodes, {
        "third": np.array([1 / 85, 1 / 60]).reshape(2, 1, 1), "half": np.array([-1.5, -2.0]).reshape(2, 1, 1),
        "w1": rng.normal(0, 0.5, (4, 2, 3, 3)), "b1": rng.normal(0, 0.3, 4), "last": rng.normal(0, 1, (4 * h * w, 3)),
    }  # fmt: skip


SIZES = [((9, 8), (18, 16)), ((9, 8), (12, 11)), ((8, 8), (5, 3)), ((12, 15), (4, 5)), ((28, 28), (32, 32))]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "seen"), SIZES)
def test_the_network_resizes_as_onnxruntime(
    size: tuple[int, int], seen: tuple[int, int], method: str, onnx_model: Build
) -> None:
    nodes, constants = layers(seen, "image")
    model, derivation = onnx_model(nodes, constants, (2, *seen)), Derivation(resize=(method, *size))
    network, images = derive(model, derivation).network, noise_images((2, *size), 60)
    assert network.shape == (2, *size) and len(network.nodes) <= 3
    found = fidelity(model, network, images, derivation)
    assert found.agreement >= 0.98 and not found.constant
    same(network, images[0])
    assert Network.from_bytes(network.to_bytes()).digest == network.digest
    if method in MODES and (method, size) != ("nearest", (28, 28)):  # onnxruntime takes 7 / (32 / 28) for less than 8
        nodes, constants = layers(seen, "resized")
        resize = ("Resize", ["image", "", "", "sizes"], "resized", MODES[method])
        whole = onnx_model([resize, *nodes], constants | {"sizes": np.array([1, 2, *seen])}, (2, *size))
        session = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"])
        real = np.concatenate([session.run(None, {"image": i[None].astype(np.float32)})[0] for i in images])
        assert (real.argmax(axis=1) == float_classes(model, images, derivation)).all()
        integer = network.forward(images).logits.T.astype(float)
        scale = (real * integer).sum() / (integer * integer).sum()
        assert np.sqrt(((scale * integer - real) ** 2).mean()) < 0.01 * real.std()


def test_rows_and_columns_one_after_the_other(onnx_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes without a common factor sum so many values that their mean would need weights below 1."""
    nodes, constants = layers((12, 11), "image")
    model, derivation = onnx_model(nodes, constants, (2, 12, 11)), Derivation(resize=("bilinear", 9, 8))
    images = noise_images((2, 9, 8), 60)
    once = derive(model, derivation).network
    monkeypatch.setattr(builder, "LARGEST_KERNEL", 10)
    twice = derive(model, derivation).network
    assert len(twice.nodes) == len(once.nodes) + 1 and (twice.classify(images) == once.classify(images)).mean() > 0.98


def test_preprocessing_and_normalization_go_with_it(onnx_model: Build) -> None:
    nodes, constants = layers((12, 11), "image")
    inside = onnx_model(nodes, constants, (2, 12, 11))
    bare = onnx_model([("Identity", ["image"], "n", {}), *nodes[2:]], {k: constants[k] for k in ("w1", "b1", "last")},
                      (2, 12, 11))  # fmt: skip
    resize, images = ("area", 9, 8), noise_images((2, 9, 8), 40)
    outside = Derivation(preprocess=((1 / 85, -1.5), (1 / 60, -2.0)), resize=resize)
    found = derive(bare, outside).network
    assert (found.classify(images) == derive(inside, Derivation(resize=resize)).network.classify(images)).mean() >= 0.97
    assert fidelity(bare, found, images, outside).agreement >= 0.97


def test_what_is_no_resize_is_refused(small: Build) -> None:
    with pytest.raises(ParameterError, match="6 x 6 pixels as they are"):
        derive(small(), Derivation(resize=("area", 6, 6)))
    with pytest.raises(ParameterError, match="too large together"):
        derive(small(), Derivation(resize=("area", 65521, 1)))
    for wrong in (("lanczos", 7, 7), ("area", 0, 7), ("area", 7, 1 << 20)):
        with pytest.raises(ParameterError, match="a resize is one of"):
            Derivation(resize=wrong)
    with pytest.raises(ParameterError, match=r"images must be uint8 \[n, 1, 7, 5\]"):
        float_classes(small(), noise_images((1, 6, 6), 3), Derivation(resize=("area", 7, 5)))


def test_a_resize_has_little_freedom(small: Build) -> None:
    derivation = Derivation(resize=("bilinear", 7, 5))
    assert derive(small(), derivation).freedom_bits == pytest.approx(np.log2(3))
    assert Derivation.from_bytes(derivation.to_bytes()) == derivation != Derivation()

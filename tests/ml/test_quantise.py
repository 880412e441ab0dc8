"""ONNX -> integers: the same function as onnxruntime's, the same bits on every machine, no way around by rescaling."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from ml import quantise
from ml.calibration import noise_images
from ml.integers import GRID, grid, grid_above
from ml.quantise import (
    DEFAULT,
    DEFAULT_MIN_AGREEMENT,
    Derivation,
    derive,
    derive_once,
    fidelity,
    float_classes,
    images_digest,
)
from ml.resampling import METHODS
from protocol.errors import DecodingError, ParameterError
from protocol.network import MAX_OUTPUT, Network

Build = Callable[..., bytes]
SMALL_DIGEST = "71b450ffb5d28acae486d381341a7f0d668a7a2c0d9f14efff7dd1359b7d7065"
NOISE_DIGEST = "5c6c4fc72e28c2f3d76139149ee8a139ecd41fa0cf63bd0e1a8bac7518feac33"


def test_known_digests(small: Build) -> None:
    assert images_digest(noise_images((3, 8, 8))).hex() == NOISE_DIGEST
    assert derive(small()).network.digest.hex() == SMALL_DIGEST


def test_other_thread_counts_and_processes_find_the_same_network(small: Build, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(small())
    code = (
        "import sys, pathlib; from ml.quantise import derive;"
        "print(derive(pathlib.Path(sys.argv[1]).read_bytes()).network.digest.hex())"
    )
    for threads in ("1", "2"):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "model.onnx")],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert run.stdout.strip() == SMALL_DIGEST


def test_derivation_imports_no_torch() -> None:
    code = "import sys, ml.quantise, ml.triggers; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=True)


@pytest.mark.parametrize("power", [-100, -10, 1, 10, 100])
def test_a_copy_rescaled_by_a_power_of_two_is_the_same_network(small: Build, power: int) -> None:
    assert derive(small(2.0**power)).network.digest.hex() == SMALL_DIGEST


@settings(max_examples=20)
@given(st.floats(2**-12, 2**12))
def test_any_rescaled_copy_agrees(small: Build, scale: float) -> None:
    images = noise_images((1, 6, 6), 200)
    twin = derive(small(scale)).network.classify(images)
    assert (twin == derive(small()).network.classify(images)).mean() >= 0.985


@pytest.mark.parametrize("size", [1e3, 1e5])
def test_what_all_logits_have_in_common_costs_nothing(small: Build, size: float) -> None:
    """A thief who adds one row to all rows of the last layer, and one number to all biases, changes no class."""
    model, rng = onnx.ModelProto.FromString(small()), np.random.default_rng(5)
    for tensor in model.graph.initializer:
        if tensor.name in ("w2", "b2"):
            array = numpy_helper.to_array(tensor).astype(np.float32)
            common = np.rint(size * rng.random(array.shape[1:])).astype(np.float32)  # weights stay multiples of 1/64
            tensor.CopyFrom(numpy_helper.from_array(array + common, tensor.name))
    images = noise_images((1, 6, 6), 200)
    twin = derive(model.SerializeToString()).network
    assert (twin.classify(images) == derive(small()).network.classify(images)).all()


def test_logits_follow_the_real_ones(small: Build) -> None:
    network = derive(small()).network
    assert max(abs(int(v)) for v in network.forward(noise_images((1, 6, 6), 64)).logits.flat) <= MAX_OUTPUT
    found = fidelity(small(), network, noise_images((1, 6, 6), 300))
    assert found.count == 300 and found.agreement >= 0.99 and not found.constant


def test_the_float_model_is_what_its_operators_mean(onnx_model: Build) -> None:
    """A runtime that fuses the padding into the maximum forgets its zeros, which are the largest values there."""
    nodes = [
        ("Sub", ["image", "white"], "negative", {}), ("Pad", ["negative", "pads"], "p", {}),
        ("MaxPool", ["p"], "m", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("Flatten", ["m"], "f", {}), ("Gemm", ["f", "w"], "logits", {}),
    ]  # fmt: skip
    pads, weight = np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.random.default_rng(0).normal(size=(64, 3))
    model = onnx_model(nodes, {"white": np.array(300.0), "pads": pads, "w": weight})
    assert fidelity(model, derive(model).network, noise_images((1, 6, 6), 200)).agreement >= 0.99


def test_a_model_that_the_runtime_cannot_run_is_malformed(onnx_model: Build) -> None:
    pool = {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER", "strides": [3, 3]}  # its padding would be negative
    nodes = [("MaxPool", ["image"], "m", pool), ("Flatten", ["m"], "f", {}), ("Gemm", ["f", "w"], "logits", {})]
    model = onnx_model(nodes, {"w": np.ones((4, 3))})
    derive(model)
    with pytest.raises(DecodingError, match="onnxruntime refuses"):
        float_classes(model, noise_images((1, 6, 6), 2))


RESIDUAL = [
    ("Mul", ["image", "third"], "x", {}),
    ("Conv", ["x", "w1"], "c1", {"pads": [1, 1, 1, 1]}),
    ("BatchNormalization", ["c1", "gamma", "beta", "mean", "variance"], "n1", {}),
    ("Relu", ["n1"], "r1", {}),
    ("Conv", ["r1", "w2"], "c2", {"pads": [2, 2, 2, 2], "dilations": [2, 2], "group": 2}),
    ("Add", ["c2", "r1"], "s1", {}),
    ("Relu", ["s1"], "r2", {}),
    ("Conv", ["r2", "w3", "b3"], "c3", {"strides": [2, 2], "pads": [1, 1, 0, 0]}),  # no activation: c3, then a pool
    ("AveragePool", ["c3"], "p3", {"kernel_shape": [2, 2], "pads": [1, 0, 0, 0], "count_include_pad": 1}),
    ("Add", ["p3", "shift"], "a3", {}),
    ("Relu", ["a3"], "r3", {}),
    ("GlobalAveragePool", ["r3"], "g", {}),
    ("Reshape", ["g", "flat"], "f", {}),
    ("Dropout", ["f"], "d", {}),
    ("MatMul", ["d", "w4"], "m", {}),
    ("Add", ["m", "b4"], "logits", {}),
    ("Softmax", ["logits"], "probabilities", {}),
]


@pytest.mark.parametrize("seed", range(4))
def test_residual_network_with_every_operator_agrees(onnx_model: Build, seed: int) -> None:
    rng = np.random.default_rng(seed)
    constants = {
        "third": np.array([1 / 85, 1 / 60]).reshape(2, 1, 1),
        "w1": rng.normal(0, 0.4, (4, 2, 3, 3)), "gamma": rng.uniform(0.5, 2, 4), "beta": rng.normal(0, 0.3, 4),
        "mean": rng.normal(0, 0.3, 4), "variance": rng.uniform(0.3, 3, 4),
        "w2": rng.normal(0, 0.3, (4, 2, 3, 3)), "w3": rng.normal(0, 0.3, (6, 4, 3, 3)), "b3": rng.normal(0, 0.3, 6),
        "shift": rng.normal(0, 0.3, (6, 1, 1)), "flat": np.array([1, -1]), "w4": rng.normal(0, 1, (6, 5)),
        "b4": rng.normal(0, 0.2, (1, 5)),
    }  # fmt: skip
    model = onnx_model(RESIDUAL, constants, shape=(2, 9, 8), classes=5)
    network = derive(model).network
    assert len(network.nodes) == 5  # relu, relu, the identity of c3, relu, output: everything else composes
    images = np.concatenate([noise_images((2, 9, 8), 200), rng.integers(0, 256, (100, 2, 9, 8), dtype=np.uint8)])
    assert fidelity(model, network, images).agreement >= DEFAULT_MIN_AGREEMENT
    assert Network.from_bytes(network.to_bytes()).digest == network.digest


def test_two_dense_layers_without_activation_and_a_shift_before_a_convolution(onnx_model: Build) -> None:
    rng = np.random.default_rng(3)
    nodes = [
        ("Relu", ["image"], "r", {}),
        ("Add", ["r", "shift"], "a", {}),
        ("Conv", ["a", "w"], "c", {}),  # unpadded: the shift becomes a bias
        ("Flatten", ["c"], "f", {}),
        ("Gemm", ["f", "v"], "g", {}),
        ("Gemm", ["g", "u", "b"], "logits", {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ]
    constants = {
        "shift": np.array([[[-100.0]]]), "w": rng.normal(0, 0.01, (3, 1, 3, 3)), "v": rng.normal(0, 1, (48, 7)),
        "u": rng.normal(0, 1, (4, 7)), "b": rng.normal(0, 1, 4),
    }  # fmt: skip
    model = onnx_model(nodes, constants, classes=4)
    assert fidelity(model, derive(model).network, noise_images((1, 6, 6), 300)).agreement >= DEFAULT_MIN_AGREEMENT


def test_preprocessing_outside_equals_normalization_inside(small: Build, onnx_model: Build) -> None:
    weights = {"w": np.random.default_rng(1).normal(0, 1, (3, 1, 6, 6))}
    end = [("Conv", ["x", "w"], "c", {}), ("Flatten", ["c"], "logits", {})]
    inside = onnx_model(
        [("Sub", ["image", "m"], "a", {}), ("Div", ["a", "d"], "x", {}), *end],
        {"m": np.array([96.0]), "d": np.array([64.0]), **weights},
    )
    bare = onnx_model([("Identity", ["image"], "x", {}), *end], weights)
    outside = Derivation(preprocess=((1 / 64, -1.5),))
    assert derive(inside).network.digest == derive(bare, outside).network.digest != derive(bare).network.digest
    images = noise_images((1, 6, 6), 50)
    assert (float_classes(inside, images) == float_classes(bare, images, outside)).all()


def test_a_permutation_and_extra_classes(onnx_model: Build) -> None:
    """A thief who permutes the classes and adds two that never win is read through the map that undoes it."""
    rng, images = np.random.default_rng(2), noise_images((1, 6, 6), 300)
    nodes = [("Flatten", ["image"], "f", {}), ("Gemm", ["f", "w", "b"], "logits", {"transB": 1})]
    w, b = rng.normal(0, 0.1, (5, 36)), rng.normal(0, 1, 5)
    original = derive(onnx_model(nodes, {"w": w, "b": b}, classes=5)).network
    places = rng.permutation(7)[:5]
    hidden_w, hidden_b = np.zeros((7, 36)), np.full(7, -1e4)
    hidden_w[places], hidden_b[places] = w, b
    thief = onnx_model(nodes, {"w": hidden_w, "b": hidden_b}, classes=7)
    derivation = Derivation(outputs=tuple(places.tolist()))
    found = derive(thief, derivation)
    assert found.network.digest == original.digest
    assert found.freedom_bits == pytest.approx(np.log2(7 * 6 * 5 * 4 * 3))
    assert derive(thief).network.classes == 7
    assert (float_classes(thief, images, derivation) == original.classify(images)).mean() > 0.99


def test_output_map_selects_and_permutes(small: Build) -> None:
    images = noise_images((1, 6, 6), 300)
    chosen = Derivation(outputs=(2, 0))
    network = derive(small(), chosen).network
    whole = derive(small()).network.forward(images).logits
    expected = np.where(whole[2] > whole[0], 0, 1)
    assert network.classes == 2 and (network.classify(images) == expected).mean() > 0.99
    assert fidelity(small(), network, images, chosen).agreement > 0.98
    with pytest.raises(ParameterError, match="logit 3 of 3"):
        derive(small(), Derivation(outputs=(0, 3)))


def test_calibration_images_are_named_by_their_digest(small: Build) -> None:
    images = np.random.default_rng(0).integers(90, 100, (20, 1, 6, 6), dtype=np.uint8)
    derivation = Derivation(calibration=images_digest(images))
    network = derive(small(), derivation, images).network
    assert network.digest != derive(small()).network.digest
    assert fidelity(small(), network, images).agreement >= 0.95
    for wrong in (None, images[:-1], images[::-1], images.astype(np.int64), images[:, :, :5]):
        with pytest.raises(ParameterError):
            derive(small(), derivation, wrong)
    with pytest.raises(ParameterError):
        derive(small(), DEFAULT, images)


def test_a_network_is_derived_once(small: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = derive_once(small()), derive_once(small(), Derivation(outputs=(1, 0)))
    assert first.network.digest == derive(small()).network.digest != other.network.digest
    monkeypatch.setattr(quantise, "derive", None)
    assert derive_once(small()) is first and derive_once(small(), Derivation(outputs=(1, 0))) is other
    with pytest.raises(TypeError):
        derive_once(small(2.0))


DERIVATIONS = st.builds(
    Derivation,
    st.sampled_from([b"", bytes(range(32))]),
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), max_size=3).map(tuple),
    st.lists(st.integers(0, 65535), max_size=5, unique=True).map(tuple),
    st.integers(12, 20),
    st.none() | st.tuples(st.sampled_from(METHODS), st.integers(1, 65536), st.integers(1, 65536)),
)


@given(DERIVATIONS)
def test_derivation_encoding_round_trip(derivation: Derivation) -> None:
    data = derivation.to_bytes()
    assert Derivation.from_bytes(data) == derivation
    assert Derivation.from_bytes(data).to_bytes() == data
    for end in range(len(data)):
        with pytest.raises(DecodingError):
            Derivation.from_bytes(data[:end])
    with pytest.raises(DecodingError):
        Derivation.from_bytes(data + b"\0")


def test_options_and_their_freedom_are_those_of_the_specification() -> None:
    images = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
    digest = hashlib.sha256(b"zkmark calibration images 1\n" + struct.pack("<4I", 2, 1, 4, 4) + bytes(images)).digest()
    assert images_digest(images) == digest
    derivation = Derivation(digest, ((0.5, -1.0),), (3, 1), 15, ("area", 6, 7))
    fields = struct.pack("<I32s I2d I2I B B2I", 32, digest, 1, 0.5, -1.0, 2, 3, 1, 15, 2, 6, 7)
    assert derivation.to_bytes() == b"zkmark derivation 1\n" + fields
    assert DEFAULT.to_bytes() == b"zkmark derivation 1\n" + bytes(12) + b"\x10" + bytes(9)
    bits = 1 + 128 + np.log2(10 * 9) + np.log2(9) + np.log2(3)
    assert derivation.freedom_bits(10) == pytest.approx(bits)


def test_only_the_default_derivation_has_no_freedom() -> None:
    assert DEFAULT.freedom_bits(10) == 0
    assert Derivation(outputs=(3, 1)).freedom_bits(10) == pytest.approx(np.log2(90))
    assert Derivation(calibration=bytes(32)).freedom_bits(10) == 1
    assert Derivation(preprocess=((1.0, 0.0),)).freedom_bits(10) == 128
    assert Derivation(table_bits=18).freedom_bits(10) > 3
    for wrong in ({"calibration": b"x"}, {"outputs": (1, 1)}, {"table_bits": 21}, {"preprocess": ((np.inf, 0.0),)}):
        with pytest.raises(ParameterError):
            Derivation(**wrong)


def test_dead_channels_constant_models_and_zero_weights(onnx_model: Build) -> None:
    nodes = [
        ("Conv", ["image", "w", "b"], "c", {}),
        ("Relu", ["c"], "r", {}),
        ("Flatten", ["r"], "f", {}),
        ("Gemm", ["f", "v"], "logits", {}),
    ]
    w, b, v = np.ones((3, 1, 6, 6)), np.array([0.0, -1e9, 0.0]), np.array([[3.0, 1, 2]] * 3)
    w[2] = 0
    model = onnx_model(nodes, {"w": w, "b": b, "v": v})
    network = derive(model).network
    assert fidelity(model, network, noise_images((1, 6, 6), 20)).constant
    zero = derive(onnx_model(nodes, {"w": 0 * w, "b": 0 * b, "v": v})).network
    assert (zero.classify(noise_images((1, 6, 6), 5)) == -1).all()  # all logits equal: no class


def test_the_grid_is_exact_and_monotone() -> None:
    assert np.array_equal(GRID, np.exp2(np.arange(8) / 8))
    steps = np.arange(-400, 400)
    assert np.array_equal(grid_above(grid(steps)), steps)
    assert np.array_equal(grid_above(np.nextafter(grid(steps), np.inf)), steps + 1)
    assert grid_above(np.zeros(1))[0] == 0

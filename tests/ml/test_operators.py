"""Every operator, alone and combined, against onnxruntime; and the plain evaluation of the integer network."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import ml.lowering
from ml.builder import LARGE_POOL, MAX_TERMS
from ml.calibration import noise_images
from ml.folding import FOLDED
from ml.integers import STEPS
from ml.lowering import RULES
from ml.onnx_reader import OPSETS, SUPPORTED
from ml.quantise import derive
from protocol.errors import ParameterError
from protocol.network import Network
from tests.protocol.test_network import plain

Build = Callable[..., bytes]
Nodes = list[tuple[str, list[str], str, dict[str, Any]]]
SHAPE = (2, 9, 8)


def float_logits(model: bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": i[None].astype(np.float32)})[0] for i in images])


def error(model: bytes, network: Network, images: np.ndarray) -> float:
    """Root mean square of the integer logits' error, relative to the spread of the real ones."""
    real, integer = float_logits(model, images), network.forward(images).logits.T.astype(float)
    scale = (real * integer).sum() / (integer * integer).sum()
    return float(np.sqrt(((scale * integer - real) ** 2).mean()) / real.std())


def constants(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "third": np.array([1 / 85, 1 / 60]).reshape(2, 1, 1), "half": np.array([-1.5, -2.0]).reshape(2, 1, 1),
        "w1": rng.normal(0, 0.5, (6, 2, 3, 3)), "b1": rng.normal(0, 0.3, 6),
        "w2": rng.normal(0, 0.4, (6, 6, 3, 3)), "b2": rng.normal(0, 0.3, 6),
        "low": np.array(0.0), "six": np.array(6.0), "one": np.array(1.0), "minus": np.array(-1.0),
        "three": np.array(3.0), "sixth": np.array(1 / 6), "root": np.array(np.sqrt(2)), "a half": np.array(0.5),
        "slopes": rng.uniform(-0.5, 0.5, (6, 1, 1)), "slope": np.array([0.2]),
        "pads": np.array([0, 0, 1, 2, 0, 0, 2, 0]), "cubic": np.array(0.044715), "pi": np.array(np.sqrt(2 / np.pi)),
        "gamma": rng.uniform(0.5, 2, 6), "beta": rng.normal(0, 0.3, 6), "mean": rng.normal(0, 0.3, 6),
        "variance": rng.uniform(0.3, 3, 6), "flat": np.array([1, -1]), "pixel": np.array([1, 6, 1, 1]),
        "squeeze": rng.normal(0, 0.5, (3, 6, 1, 1)), "excite": rng.normal(0, 1, (6, 3, 1, 1)),
        "axes": np.array([2, 3]), "excite matrix": rng.normal(0, 1, (6, 6)),
        "depthwise": rng.normal(0, 0.5, (6, 1, 3, 3)), "grouped": rng.normal(0, 0.5, (6, 2, 1, 1)),
        "w3": rng.normal(0, 0.5, (3, 3, 1, 1)), "v3": rng.normal(0, 0.5, (3, 1, 3, 3)),
        "u3": rng.normal(0, 0.5, (6, 3, 1, 1)), "groups": np.array([1, 2, 3, 8, 7]), "halves": np.array([3, 3]),
        "features": np.array([1, 336]), "joined": np.array([1, -1, 8, 7]),
        "from 1": np.array([1]), "to 4": np.array([4]), "channels": np.array([1]), "by 1": np.array([1]),
        "from end": np.array([-1]), "to start": np.array([-(2**63) + 1]), "by -2": np.array([-2]),
        "some": np.array([5, 0, 2]), "some again": np.array([5, 0, 0, 2, 2, 1]),
        "zero": np.array([0]), "minus one": np.array([-1]), "two": np.array([2]),
        "other": np.array([-0.7, 1.1]).reshape(2, 1, 1),
        "rows": np.array([2]), "columns": np.array([3]), "per channel": np.array([1, 6, -1]), "area": np.array([2, 3]),
        "inner": np.array([1, 1]), "all but one": np.array([-1, 6]), "by 2": np.array([2, 2]), "0 0": np.array([0, 0]),
        "ends": np.array([2**63 - 1, 2**63 - 1]), "two each": np.array([0, 2, 0, 0, 0, 2, 0, 0]),
        "at the end": np.array(-1), "crop": np.array([0, 0, -1, 2, 0, 0, 0, -3]),
        "w10": rng.normal(0, 0.4, (10, 6, 3, 3)),
        "whole": np.array([1, 6, 8, 7]), "last row": np.array(7),
    }  # fmt: skip


HEAD: Nodes = [
    ("Mul", ["image", "third"], "s", {}),
    ("Add", ["s", "half"], "n", {}),
    ("Conv", ["n", "w1", "b1"], "c", {"pads": [1, 1, 0, 0]}),
]
CASES: dict[str, Nodes] = {
    "Relu": [("Relu", ["c"], "y", {})],
    "LeakyRelu": [("LeakyRelu", ["c"], "y", {"alpha": 0.3})],
    "PRelu": [("PRelu", ["c", "slope"], "y", {})],
    "PRelu per channel": [("PRelu", ["c", "slopes"], "y", {})],
    "Clip": [("Clip", ["c", "low", "six"], "y", {})],
    "Clip below": [("Clip", ["c", "minus"], "y", {})],
    "Clip at zero": [("Clip", ["c", "low"], "y", {})],
    "Sigmoid": [("Sigmoid", ["c"], "y", {})],
    "Tanh": [("Tanh", ["c"], "y", {})],
    "Elu": [("Elu", ["c"], "y", {"alpha": 0.7})],
    "HardSigmoid": [("HardSigmoid", ["c"], "y", {})],
    "HardSwish": [("HardSwish", ["c"], "y", {})],
    "HardSwish as Clip": [
        ("Add", ["c", "three"], "t", {}), ("Clip", ["t", "low", "six"], "u", {}), ("Mul", ["c", "u"], "v", {}),
        ("Div", ["v", "six"], "y", {}),
    ],
    "SiLU": [("Sigmoid", ["c"], "t", {}), ("Mul", ["t", "c"], "y", {})],
    "Gelu by Erf": [
        ("Div", ["c", "root"], "t", {}), ("Erf", ["t"], "u", {}), ("Add", ["u", "one"], "v", {}),
        ("Mul", ["c", "v"], "x", {}), ("Mul", ["x", "a half"], "y", {}),
    ],
    "Gelu by Tanh": [
        ("Pow", ["c", "three"], "t", {}), ("Mul", ["t", "cubic"], "u", {}), ("Add", ["c", "u"], "v", {}),
        ("Mul", ["v", "pi"], "x", {}), ("Tanh", ["x"], "q", {}), ("Add", ["q", "one"], "r", {}),
        ("Mul", ["r", "c"], "o", {}), ("Mul", ["o", "a half"], "y", {}),
    ],
    "Neg and Sub": [("Neg", ["c"], "t", {}), ("Relu", ["t"], "u", {}), ("Sub", ["u", "c"], "y", {})],
    "MaxPool 2/2": [("Relu", ["c"], "r", {}), ("MaxPool", ["r"], "y", {"kernel_shape": [2, 2], "strides": [2, 2]})],
    "MaxPool 3/2": [
        ("Relu", ["c"], "r", {}),
        ("MaxPool", ["r"], "y", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ],
    "MaxPool 3x2, ceil": [
        ("Relu", ["c"], "r", {}),
        ("MaxPool", ["r"], "y", {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1, "dilations": [1, 2]}),
    ],
    "MaxPool of signed values": [("MaxPool", ["c"], "y", {"kernel_shape": [2, 2], "strides": [2, 1]})],
    "MaxPool after normalization": [
        ("Relu", ["c"], "r", {}), ("BatchNormalization", ["r", "gamma", "beta", "mean", "variance"], "b", {}),
        ("MaxPool", ["b"], "y", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ],
    "GlobalMaxPool": [("Relu", ["c"], "r", {}), ("GlobalMaxPool", ["r"], "y", {})],
    "ReduceMax": [("Relu", ["c"], "r", {}), ("ReduceMax", ["r", "axes"], "y", {"keepdims": 1})],
    "ReduceMean": [("Relu", ["c"], "r", {}), ("ReduceMean", ["r", "axes"], "y", {"keepdims": 1})],
    "AveragePool": [
        ("Relu", ["c"], "r", {}),
        ("AveragePool", ["r"], "y", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ],
    "AveragePool without padding": [
        ("Relu", ["c"], "r", {}), ("Add", ["r", "one"], "q", {}),
        ("AveragePool", ["q"], "y", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 1]}),
    ],
    "AveragePool, ceil": [
        ("Relu", ["c"], "r", {}),
        ("AveragePool", ["r"], "y", {
            "kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 0], "ceil_mode": 1, "count_include_pad": 1,
        }),
    ],
    "AveragePool of everything": [
        ("Relu", ["c"], "r", {}),
        ("AveragePool", ["r"], "a", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("Conv", ["a", "w2"], "d", {"pads": [1, 1, 1, 1]}), ("AveragePool", ["d"], "e", {"kernel_shape": [4, 4]}),
        ("Relu", ["e"], "y", {}),
    ],
    "means one axis after the other": [
        ("Relu", ["c"], "r", {}), ("ReduceMean", ["r", "columns"], "m", {"keepdims": 0}),
        ("ReduceMean", ["m", "rows"], "y", {"keepdims": 0}),
    ],
    "means of rows": [("Relu", ["c"], "r", {}), ("ReduceMean", ["r", "rows"], "y", {"keepdims": 1})],
    "a mean of a view": [
        ("Relu", ["c"], "r", {}), ("Reshape", ["r", "per channel"], "v", {}),
        ("ReduceMean", ["v", "rows"], "y", {"keepdims": 1}),
    ],
    "ReduceSum": [("Relu", ["c"], "r", {}), ("ReduceSum", ["r", "axes"], "y", {"keepdims": 0})],
    "a shortcut without weights": [  # of the first residual networks: strides, and zeros for more channels
        ("Relu", ["c"], "r", {}), ("Conv", ["r", "w10"], "d", {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Slice", ["r", "0 0", "ends", "area", "by 2"], "e", {}), ("Pad", ["e", "two each"], "g", {}),
        ("Add", ["d", "g"], "h", {}), ("Relu", ["h"], "y", {}),
    ],
    "cropped, then padded": [  # what was cropped must not come back
        ("Relu", ["c"], "r", {}), ("Slice", ["r", "inner", "all but one", "area"], "x", {}),
        ("Conv", ["x", "w2"], "d", {"pads": [1, 1, 1, 1]}),
        ("MaxPool", ["x"], "m", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("AveragePool", ["x"], "a", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("Add", ["d", "m"], "s1", {}), ("Add", ["s1", "a"], "y", {}),
    ],
    "negative pads": [
        ("Relu", ["c"], "r", {}), ("Pad", ["r", "crop"], "p", {}), ("Conv", ["p", "w2"], "d", {}),
        ("Relu", ["d"], "y", {}),
    ],
    "one row, one pixel": [
        ("Relu", ["c"], "r", {}), ("Gather", ["r", "last row"], "g", {"axis": 2}),
        ("Gather", ["g", "at the end"], "y", {"axis": 2}),
    ],
    "Expand": [
        ("Relu", ["c"], "r", {}), ("GlobalAveragePool", ["r"], "g", {}), ("Conv", ["g", "squeeze"], "q", {}),
        ("Relu", ["q"], "h", {}), ("Conv", ["h", "excite"], "e", {}), ("Sigmoid", ["e"], "t", {}),
        ("Expand", ["t", "whole"], "u", {}), ("Mul", ["r", "u"], "v", {}), ("Add", ["v", "u"], "x", {}),
        ("Add", ["g", "x"], "y", {}),
    ],
    "Abs": [("Abs", ["c"], "y", {})],
    "Celu": [("Celu", ["c"], "y", {"alpha": 0.7})],
    "Mish": [("Softplus", ["c"], "t", {}), ("Tanh", ["t"], "u", {}), ("Mul", ["c", "u"], "y", {})],
    "Selu": [("Selu", ["c"], "y", {})],
    "Softplus": [("Softplus", ["c"], "y", {})],
    "Max and Min": [("Max", ["minus", "c"], "t", {}), ("Min", ["t", "one", "six"], "y", {})],
    "Pad": [
        ("Relu", ["c"], "r", {}), ("Pad", ["r", "pads"], "p", {}),
        ("Conv", ["p", "w2"], "d", {"pads": [1, 0, 0, 1], "strides": [2, 2]}), ("Relu", ["d"], "y", {}),
    ],
    "Pad, then pools": [
        ("Relu", ["c"], "r", {}), ("Pad", ["r", "pads"], "p", {}),
        ("AveragePool", ["p"], "a", {"kernel_shape": [2, 2]}),
        ("MaxPool", ["p"], "m", {"kernel_shape": [2, 2]}), ("Add", ["a", "m"], "y", {}),
    ],
    "Pad, then Relu": [("Relu", ["c"], "r", {}), ("Pad", ["r", "pads"], "p", {}), ("Tanh", ["p"], "y", {})],
    "Concat": [
        ("Relu", ["c"], "r", {}), ("Conv", ["r", "w2", "b2"], "d", {"pads": [1, 1, 1, 1]}), ("Sigmoid", ["d"], "t", {}),
        ("Concat", ["r", "t", "n1"], "y", {"axis": 1}),
    ],
    "Add of three": [
        ("Relu", ["c"], "r", {}), ("Conv", ["r", "w2", "b2"], "d", {"pads": [1, 1, 1, 1]}), ("Tanh", ["d"], "t", {}),
        ("Add", ["t", "r"], "u", {}), ("Add", ["u", "d"], "v", {}), ("Relu", ["v"], "y", {}),
    ],
    "Mul of two": [
        ("Relu", ["c"], "r", {}), ("Conv", ["r", "w2", "b2"], "d", {"pads": [1, 1, 1, 1]}), ("Tanh", ["d"], "t", {}),
        ("Mul", ["r", "t"], "y", {}),
    ],
    "squeeze and excite": [
        ("HardSwish", ["c"], "r", {}), ("GlobalAveragePool", ["r"], "g", {}), ("Conv", ["g", "squeeze"], "q", {}),
        ("Relu", ["q"], "h", {}), ("Conv", ["h", "excite"], "e", {}), ("HardSigmoid", ["e"], "t", {}),
        ("Mul", ["t", "r"], "u", {}), ("Add", ["u", "c"], "y", {}),
    ],
    "squeeze and excite, flat": [
        ("Sigmoid", ["c"], "t", {}), ("Mul", ["c", "t"], "r", {}), ("ReduceMean", ["r", "axes"], "g", {"keepdims": 0}),
        ("MatMul", ["g", "excite matrix"], "e", {}), ("Sigmoid", ["e"], "q", {}), ("Reshape", ["q", "pixel"], "k", {}),
        ("Mul", ["r", "k"], "y", {}),
    ],
    "Split and shuffle": [  # two units of ShuffleNetV2
        ("Split", ["c", "halves"], "p,q", {"axis": 1}), ("Conv", ["q", "w3"], "q1", {}), ("Relu", ["q1"], "q2", {}),
        ("Conv", ["q2", "v3"], "q3", {"pads": [1, 1, 1, 1], "group": 3}), ("Concat", ["p", "q3"], "t", {"axis": 1}),
        ("Reshape", ["t", "groups"], "t1", {}), ("Transpose", ["t1"], "t2", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", ["t2", "joined"], "t3", {}), ("Split", ["t3", "halves"], "r,s1", {"axis": 1}),
        ("Conv", ["s1", "w3"], "s2", {}), ("Relu", ["s2"], "s3", {}), ("Concat", ["r", "s3"], "u", {"axis": 1}),
        ("Reshape", ["u", "groups"], "u1", {}), ("Transpose", ["u1"], "u2", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", ["u2", "joined"], "y", {}),
    ],
    "Shuffle, then everything": [
        ("Relu", ["c"], "r", {}), ("Reshape", ["r", "groups"], "t1", {}),
        ("Transpose", ["t1"], "t2", {"perm": [0, 2, 1, 3, 4]}), ("Reshape", ["t2", "joined"], "t", {}),
        ("Conv", ["t", "depthwise", "b2"], "d", {"pads": [1, 1, 1, 1], "group": 6}), ("Tanh", ["d"], "e", {}),
        ("BatchNormalization", ["e", "gamma", "beta", "mean", "variance"], "b", {}),
        ("PRelu", ["b", "slopes"], "f1", {}),
        ("MaxPool", ["f1"], "m", {"kernel_shape": [2, 2]}), ("AveragePool", ["t"], "a", {"kernel_shape": [2, 2]}),
        ("Add", ["m", "a"], "g", {}), ("Mul", ["g", "m"], "h", {}), ("Add", ["h", "a"], "i", {}),
        ("Conv", ["i", "grouped"], "j", {"group": 3}), ("GlobalAveragePool", ["t"], "k", {}),
        ("Squeeze", ["k", "axes"], "l", {}), ("MatMul", ["l", "excite matrix"], "o", {}),
        ("Reshape", ["o", "pixel"], "x", {}), ("Mul", ["j", "x"], "y", {}),
    ],
    "Slice": [
        ("Relu", ["c"], "r", {}), ("Slice", ["r", "from 1", "to 4", "channels", "by 1"], "a", {}),
        ("Slice", ["c", "from end", "to start", "channels", "by -2"], "b", {}), ("Sigmoid", ["b"], "e", {}),
        ("Mul", ["a", "e"], "m", {}), ("Add", ["m", "a"], "f1", {}), ("Conv", ["f1", "u3"], "g", {}),
        ("Relu", ["g"], "y", {}),
    ],
    "Gather": [
        ("Gather", ["c", "some"], "a", {"axis": 1}), ("Tanh", ["a"], "b", {}), ("Conv", ["b", "u3"], "d", {}),
        ("Gather", ["d", "some again"], "e", {"axis": 1}), ("MaxPool", ["e"], "y", {"kernel_shape": [2, 2]}),
    ],
    "Gather of flat features": [
        ("Relu", ["c"], "r", {}), ("ReduceMean", ["r", "axes"], "g", {"keepdims": 0}),
        ("Gather", ["g", "some again"], "e", {"axis": 1}), ("MatMul", ["e", "excite matrix"], "y", {}),
    ],
    "Shape": [
        ("Relu", ["c"], "r", {}), ("Shape", ["r"], "s1", {}), ("Gather", ["s1", "zero"], "s2", {}),
        ("Concat", ["s2", "minus one"], "s3", {"axis": 0}), ("Reshape", ["r", "s3"], "s4", {}),
        ("Reshape", ["s4", "features"], "y", {}),
    ],
    "two normalizations": [
        ("Mul", ["image", "other"], "o", {}), ("Conv", ["o", "w1"], "d", {"pads": [1, 1, 0, 0]}),
        ("Add", ["image", "half"], "e", {}), ("Conv", ["e", "w1"], "f1", {"pads": [1, 1, 0, 0]}),
        ("Relu", ["d"], "g", {}),
        ("Add", ["c", "g"], "h", {}), ("Add", ["h", "f1"], "i", {}), ("Relu", ["i"], "y", {}),
    ],
    "automatic padding": [
        ("Relu", ["c"], "r", {}), ("Conv", ["r", "w2"], "d", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("Relu", ["d"], "e", {}),
        ("MaxPool", ["e"], "y", {"auto_pad": "SAME_LOWER", "kernel_shape": [2, 2], "strides": [2, 3]}),
    ],
    "Cast of a constant": [("Cast", ["to 4"], "t", {"to": 1}), ("Mul", ["c", "t"], "u", {}), ("Relu", ["u"], "y", {})],
    "Squeeze and Unsqueeze": [
        ("Relu", ["c"], "r", {}), ("GlobalAveragePool", ["r"], "g", {}), ("Squeeze", ["g", "axes"], "q", {}),
        ("Unsqueeze", ["q", "axes"], "k", {}), ("Conv", ["k", "squeeze"], "y", {}),
    ],
}  # fmt: skip


def model_of(case: str, onnx_model: Build, seed: int = 0, opset: int = 18) -> bytes:
    """The case between a first convolution and a last layer whose size onnx's own shape inference finds."""
    body = [("Conv", ["n", "w1", "b1"], "n1", {"pads": [1, 1, 0, 0]})] if case == "Concat" else []
    nodes = [*HEAD, *body, *CASES[case], ("Flatten", ["y"], "f", {}), ("Gemm", ["f", "last"], "logits", {})]
    used = {name for _, inputs, _, _ in nodes for name in inputs}
    given = {name: array for name, array in constants(seed).items() if name in used}
    draft = onnx.ModelProto.FromString(onnx_model(nodes, {**given, "last": np.zeros((1, 3))}, SHAPE, 3, opset))
    shapes = onnx.shape_inference.infer_shapes(draft).graph.value_info
    (y,) = (v for v in shapes if v.name == "f")
    features = y.type.tensor_type.shape.dim[1].dim_value
    weight = np.random.default_rng(seed + 1).normal(0, 1, (features, 3))
    return onnx_model(nodes, {**given, "last": weight}, SHAPE, 3, opset)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_onnxruntime(case: str, onnx_model: Build) -> None:
    model = model_of(case, onnx_model)
    network = derive(model).network
    white = np.random.default_rng(0).integers(0, 256, (20, *SHAPE), np.uint8)
    images = np.concatenate([noise_images(SHAPE, 40), white])
    assert error(model, network, images) < 0.02
    forward = network.forward(images[:1])
    for k, (_, u, remainder, z) in enumerate(plain(network, images[0])[:-1]):
        assert forward.units[k][..., 0].tolist() == u
        assert forward.remainders[k][..., 0].tolist() == remainder
        assert forward.outputs[k + 1][..., 0].tolist() == z
    assert Network.from_bytes(network.to_bytes()).digest == network.digest


@pytest.mark.parametrize("case", ["SiLU", "HardSwish", "Mish", "squeeze and excite", "Mul of two"])
def test_values_that_share_a_scale_are_fine_ones(case: str, onnx_model: Build) -> None:
    """What calibration shows reaches 2048 units at least, where a layer is small enough to read so many."""
    network = derive(model_of(case, onnx_model)).network
    outputs = network.forward(noise_images(SHAPE)).outputs[1:]
    shared = [z for z, node in zip(outputs, network.nodes[:-1], strict=True)
              if node.product or (np.diff(node.table.values) < 0).any()]  # fmt: skip
    assert shared and all(np.abs(z).max() >= STEPS for z in shared)


def test_every_supported_operator_has_a_rule_and_a_case() -> None:
    assert SUPPORTED - {"Constant", "Shape"} == set(RULES) | FOLDED


def test_the_table_of_operators_is_complete() -> None:
    text = (Path(ml.lowering.__file__).parent / "OPERATORS.md").read_text()
    rows = "".join(line for line in text.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([A-Z][A-Za-z]+)`", rows)) == SUPPORTED
    assert f"Operator sets {OPSETS.start} to {OPSETS.stop - 1}" in text
    assert f"({MAX_TERMS} at most" in text and f"from {LARGE_POOL} times smaller" in text


def test_maxima_cost_what_the_table_says(onnx_model: Build) -> None:
    def pooled(kernel: int, pads: int) -> float:
        window = {"kernel_shape": [kernel] * 2, "strides": [2, 2], "pads": [pads] * 4}
        nodes = [("Relu", ["image"], "r", {}), ("MaxPool", ["r"], "m", window), ("Conv", ["m", "w"], "c", {}),
                 ("Flatten", ["c"], "logits", {})]  # fmt: skip
        network = derive(onnx_model(nodes, {"w": np.ones((3, 1, 16, 16))}, (1, 32, 32))).network
        return network.activations / 1024 - 1

    assert pooled(2, 0) == 1.0 and pooled(3, 1) == 1.75


OPTIONS: list[tuple[str, dict[str, Any], int]] = [
    ("Gelu", {}, 20), ("Gelu", {"approximate": "tanh"}, 20), ("Swish", {"alpha": 1.5}, 24), ("Relu", {}, 13),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, 22), ("Tanh", {}, 23), ("Mish", {}, 18),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "attributes", "opset"), OPTIONS)
def test_operator_sets(kind: str, attributes: dict[str, Any], opset: int, onnx_model: Build) -> None:
    nodes = [*HEAD, (kind, ["c"], "y", attributes), ("Flatten", ["y"], "f", {}), ("Gemm", ["f", "last"], "logits", {})]
    given = {name: array for name, array in constants().items() if name in {n for _, ins, _, _ in nodes for n in ins}}
    weight = np.random.default_rng(1).normal(0, 1, (6 * 8 * 7, 3))
    model = onnx_model(nodes, {**given, "last": weight}, SHAPE, 3, opset)
    try:
        assert error(model, derive(model).network, noise_images(SHAPE, 40)) < 0.02
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        derive(model)  # a runtime without that operator


REFUSED: list[tuple[Nodes, str]] = [
    ([("AveragePool", ["c"], "y", {"kernel_shape": [7, 7], "pads": [3, 3, 3, 3]})], "count_include_pad = 1"),
    ([("AveragePool", ["c"], "y", {"kernel_shape": [2, 2], "pads": [2, 2, 0, 0]})], "padding alone"),
    ([("ReduceMax", ["c", "channels"], "y", {})], "rows, columns or both"),
    ([("MaxPool", ["c"], "y", {"kernel_shape": [2, 2], "pads": [2, 2, 0, 0]})], "padding alone"),
    ([("MaxPool", ["c"], "y", {"kernel_shape": [90, 2]})], "does not fit"),
    ([("Pad", ["c", "negative"], "y", {})], "some must stay"),
    ([("Pad", ["c", "pads"], "y", {"mode": "reflect"})], "zeros"),
    ([("Pad", ["c", "fewer channels"], "y", {})], "rows and columns"),
    ([("Clip", ["c", "six", "low"], "y", {})], "reversed"),
    ([("Pow", ["c", "six"], "y", {})], "powers 2 and 3"),
    ([("Concat", ["c", "image"], "y", {"axis": 1})], "one size"),
    ([("Concat", ["c", "c"], "y", {"axis": 2})], "only channels"),
    ([("Relu", ["c"], "r", {}), ("Div", ["c", "r"], "y", {})], "division"),
    ([("AveragePool", ["c"], "r", {"kernel_shape": [2, 2]}), ("Mul", ["c", "r"], "y", {})], "factors of shapes"),
    ([("Reshape", ["c", "wrong"], "y", {})], "only views"),
    ([("Transpose", ["c"], "y", {"perm": [0, 1, 3, 2]})], "keep the order"),
    ([("Slice", ["c", "from end", "to start", "two", "by -2"], "y", {})], "not turned around"),
    ([("Slice", ["c", "from 1", "to 4", "zero", "by 1"], "y", {})], "rows and columns of images"),
    ([("Gather", ["c", "one channel"], "y", {"axis": 1})], "only one row or one column"),
    ([("Max", ["c", "image"], "y", {})], "only one operand"),
    ([("Expand", ["c", "wide"], "y", {})], "only single pixels"),
    ([("Split", ["c", "some"], "y,z", {"axis": 1})], "do not fit 6"),
    ([("Split", ["c"], "y,z", {"axis": 2, "num_outputs": 2})], "only channels"),
    ([("Gather", ["c", "one axis"], "y", {"axis": 3})], "only a list of channels"),
    ([("Gather", ["c", "wrong"], "y", {"axis": 1})], "out of range"),
    ([("Reshape", ["c", "groups"], "r", {}), ("MaxPool", ["r"], "y", {"kernel_shape": [2, 2, 1]})], "grouped channels"),
    ([("Cast", ["c"], "y", {"to": 1})], "float32 throughout"),
    ([("Cast", ["root"], "y", {"to": 7})], "keeps the values"),  # a number that a runtime rounds
    ([("Cast", ["one"], "y", {"to": 9})], "keeps the values"),  # a training mode, for example
    ([("Cast", ["root"], "y", {"to": 10})], "keeps the values"),
    ([("Conv", ["c", "w2"], "y", {"auto_pad": "VALID", "pads": [1, 1, 1, 1]})], "contradicts pads"),
    ([("MaxPool", ["c"], "y", {"auto_pad": "VALID", "kernel_shape": [3, 3], "pads": [1] * 4})], "contradicts pads"),
    ([("MaxPool", ["c"], "y", {"auto_pad": "SAME_UPPER", "kernel_shape": [3, 3], "dilations": [2, 2]})], "dilations"),
]


@pytest.mark.parametrize(("body", "match"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_refused_with_the_operator_and_advice(body: Nodes, match: str, onnx_model: Build) -> None:
    nodes = [*HEAD, *body, ("Flatten", ["y"], "f", {}), ("Gemm", ["f", "last"], "logits", {})]
    used = {name for _, inputs, _, _ in nodes for name in inputs}
    more = {"one axis": np.array([2]), "negative": np.array([0, 0, -8, 0, 0, 0, 0, 0]), "wrong": np.array([1, 12, -1]),
            "fewer channels": np.array([0, -1, 0, 0, 0, 0, 0, 0]), "wide": np.array([2, 6, 8, 7]),
            "one channel": np.array(2), "last": np.ones((9, 3))}  # fmt: skip
    given = {name: array for name, array in (constants() | more).items() if name in used}
    with pytest.raises(ParameterError, match=f"operator {body[-1][0]} 'y.*{match}"):
        derive(onnx_model(nodes, given, SHAPE))


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_a_softmax_over_the_batch_is_refused(kind: str, onnx_model: Build) -> None:
    """It gives every class the same probability, which a runtime takes for class 0."""
    nodes = [("Flatten", ["image"], "f", {}), ("Gemm", ["f", "w"], "l", {}), (kind, ["l"], "y", {"axis": 0})]
    with pytest.raises(ParameterError, match="over the classes"):
        derive(onnx_model(nodes, {"w": np.ones((144, 3))}, SHAPE))


def test_an_output_of_another_rank_is_refused(onnx_model: Build) -> None:
    pooled = [("Conv", ["image", "w"], "c", {}), ("GlobalAveragePool", ["c"], "y", {})]
    with pytest.raises(ParameterError, match=r"must be \[1, 3\] logits"):
        derive(onnx_model(pooled, {"w": np.ones((3, 2, 3, 3))}, SHAPE))
    spread = [("Flatten", ["image"], "f", {}), ("MatMul", ["f", "w"], "m", {}), ("Add", ["m", "b"], "y", {})]
    with pytest.raises(ParameterError, match="one number"):
        derive(onnx_model(spread, {"w": np.ones((144, 3)), "b": np.ones((1, 1, 1, 1))}, SHAPE))

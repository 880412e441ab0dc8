"""ONNX models made by hand, without torch; and what the tests of training share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from ml.data import Dataset

Build = Callable[..., bytes]


@pytest.fixture(scope="module")
def one_thread() -> None:
    """The same training on every machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    from ml.data import load

    return load("digits")


@pytest.fixture(scope="session")
def onnx_model() -> Build:
    """build(nodes, constants, shape, classes): bytes of a model from (operator, inputs, output, attributes) tuples.

    An output "a,b" is two.
    """

    def build(
        nodes: list[tuple[str, list[str], str, dict]],
        constants: dict[str, np.ndarray],
        shape: tuple[int, int, int] = (1, 6, 6),
        classes: int = 3,
        opset: int = 18,
    ) -> bytes:
        single = {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in constants.items()}
        graph = helper.make_graph(
            [
                helper.make_node(kind, inputs, out.split(","), name=out[:100], **more)
                for kind, inputs, out, more in nodes
            ],
            "graph",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, *shape])],
            [helper.make_tensor_value_info(nodes[-1][2], TensorProto.FLOAT, [1, classes])],
            [numpy_helper.from_array(array, name) for name, array in single.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        onnx.checker.check_model(model)
        return model.SerializeToString(deterministic=True)

    return build


@pytest.fixture(scope="session")
def small(onnx_model: Build) -> Callable[..., bytes]:
    """small(scale): normalization, conv, ReLU, pool, dense, with weights that are multiples of 1/64.

    scale: the first half of the convolution's channels are multiplied by it, and divided out by the next layer.
    """

    def build(scale: float = 1.0) -> bytes:
        rng = np.random.default_rng(11)
        conv, bias = rng.integers(-64, 65, (6, 1, 3, 3)) / 64, rng.integers(-32, 33, 6) / 64
        dense = rng.integers(-64, 65, (3, 6 * 9)) / 64
        factors = np.array([scale] * 3 + [1.0] * 3)
        return onnx_model(
            [
                ("Sub", ["image", "mean"], "centered", {}),
                ("Div", ["centered", "deviation"], "normalized", {}),
                ("Conv", ["normalized", "w1", "b1"], "conv", {"pads": [1, 1, 1, 1]}),
                ("Relu", ["conv"], "relu", {}),
                ("AveragePool", ["relu"], "pool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
                ("Flatten", ["pool"], "flat", {}),
                ("Gemm", ["flat", "w2", "b2"], "logits", {"transB": 1}),
            ],
            {
                "mean": np.array([96.0]).reshape(1, 1, 1), "deviation": np.array([64.0]).reshape(1, 1, 1),
                "w1": conv * factors[:, None, None, None], "b1": bias * factors,
                "w2": dense / np.repeat(factors, 9), "b2": np.array([0.25, -0.5, 0.125]),
            },
        )  # fmt: skip

    return build

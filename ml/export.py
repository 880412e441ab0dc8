"""torch -> ONNX: one image, raw pixels 0 .. 255, static shape, normalization inside the graph, logits out.

ONNX is the only model format here: it holds numbers and a graph, and unlike a pickle cannot run code when it is read.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from ml.calibration import noise_images
from ml.models import build
from ml.onnx_reader import read_model
from protocol.errors import ParameterError

OPSET = 18


def export_onnx(model: nn.Module, shape: tuple[int, int, int]) -> bytes:
    """ONNX bytes of a model that takes float [n, C, H, W] of pixels 0 .. 255; input `image`, output `logits`."""
    copy = deepcopy(model).to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    with warnings.catch_warnings(), TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")  # the tracing exporter announces its retirement on every call
        torch.onnx.export(
            copy, (torch.zeros(1, *shape),), path, dynamo=False, opset_version=OPSET,
            input_names=["image"], output_names=["logits"], do_constant_folding=True,
            training=torch.onnx.TrainingMode.PRESERVE,  # keeps batch normalization, so that weights can be read back
        )  # fmt: skip
        return path.read_bytes()


def load_weights(model: nn.Module, data: bytes) -> None:
    """Put the weights of ONNX bytes that `export_onnx` wrote into a model of the same architecture.

    Raises DecodingError or ParameterError.
    """
    graph = read_model(data)
    constants = dict(graph.constants)
    for operator in graph.operators:  # how the exporter writes a second tensor of equal values
        if operator.kind == "Identity" and operator.inputs[0] in constants:
            constants[operator.output] = constants[operator.inputs[0]]
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, tensor in state.items():
        if name not in constants or constants[name].shape != tuple(tensor.shape):
            raise ParameterError(f"the ONNX model is of another architecture: no {name} of shape {tuple(tensor.shape)}")
    model.load_state_dict({name: torch.from_numpy(constants[name]).float() for name in state}, strict=False)


def random_onnx(
    arch: str, shape: tuple[int, int, int], classes: int = 10, seed: int = 0, width: float = 1.0
) -> bytes:
    """ONNX bytes of an untrained network, for benchmarks and tests of everything behind the training.

    Its batch normalization has seen random images, so that activations are of the size that they have after training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(arch, shape, classes, width=width)
        norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0  # the statistics of one batch
        if norms:
            with torch.no_grad():
                model.train()(torch.from_numpy(noise_images(shape)).float())
        return export_onnx(model, shape)

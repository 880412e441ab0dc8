"""What both torch exporters write for common modules is read, and means the same."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ml.calibration import noise_images
from ml.quantise import derive
from protocol.errors import ParameterError
from tests.ml.test_operators import error

SHAPE = (3, 12, 12)


def export(model: nn.Module, dynamo: bool, opset: int | None = None) -> bytes:
    file = io.BytesIO()
    image = torch.zeros(1, *SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["image"], "output_names": ["logits"], "opset_version": opset}
        if dynamo:
            torch.onnx.export(model.eval(), (image,), file, dynamo=True, external_data=False, verbose=False, **names)
        else:
            torch.onnx.export(model.eval(), (image,), file, dynamo=False, **names)
    return file.getvalue()


class Net(nn.Module):
    """Two convolutions around an activation, then what `tail` does with [1, 6, 10, 10], then a dense layer."""

    def __init__(self, activation: Callable[[Tensor], Tensor], tail: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.activation, self.tail = activation, tail
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        with torch.no_grad():
            self.norm.train()(self.first(torch.rand(8, *SHAPE) * 4 - 2))
            features = tail(torch.zeros(1, 6, 10, 10)).shape[1]
        self.squeeze, self.excite = nn.Linear(6, 4), nn.Linear(4, 6)
        self.dense = nn.Linear(features, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.activation(self.norm(self.first((image - 127) / 64)))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        x = self.activation(self.second(x * gate[:, :, None, None]) + x)
        out: Tensor = self.dense(self.tail(x))
        return out


def flat(x: Tensor) -> Tensor:
    return torch.flatten(functional.max_pool2d(functional.relu(x), 3, 2, 1), 1)


def shuffled(x: Tensor) -> Tensor:
    """Halves, a channel shuffle and some of the channels, as ShuffleNetV2 has them."""
    kept, changed = x.chunk(2, 1)
    x = torch.cat([kept, functional.relu(changed)], 1)
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)[:, 1:5].mean((2, 3))


ACTIVATIONS = {
    "relu": functional.relu, "relu6": functional.relu6, "leaky": nn.LeakyReLU(0.1), "prelu": nn.PReLU(6),
    "silu": functional.silu, "gelu": functional.gelu, "gelu tanh": nn.GELU("tanh"), "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "elu": functional.elu,
    "mish": functional.mish, "selu": functional.selu, "celu": nn.CELU(0.7), "abs": torch.abs,
    "hardtanh": functional.hardtanh, "minimum": lambda x: torch.minimum(x, torch.tensor(1.5)),
}  # fmt: skip
TAILS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": flat,
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: functional.max_pool2d(x, 2).reshape(x.shape[0], -1),
    "mean": lambda x: x.mean((2, 3)),
    "adaptive": lambda x: functional.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "adaptive maximum": lambda x: functional.adaptive_max_pool2d(x, 1).flatten(1),
    "amax": lambda x: x.amax((2, 3)),
    "ceil": lambda x: functional.max_pool2d(x, 3, 2, ceil_mode=True).flatten(1),
    "concatenation": lambda x: torch.cat([functional.avg_pool2d(x, 2), functional.max_pool2d(x, 2)], 1).flatten(1),
    "flat concatenation": lambda x: torch.cat([x.mean((2, 3)), functional.max_pool2d(x, 5).flatten(1)], 1),
    "padding": lambda x: functional.avg_pool2d(functional.pad(x, (1, 0, 2, 1)), 3).flatten(1),
    "dropout": lambda x: functional.dropout(x, 0.5, False).flatten(1),
    "channel shuffle": shuffled,
    "one axis after the other": lambda x: x.mean(3).mean(2),
    "mean of a view": lambda x: x.view(x.size(0), x.size(1), -1).mean(-1),
    "corner": lambda x: x[:, :, 0, -1],
    "shortcut without weights": lambda x: functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)).flatten(1),
    "average without padding": lambda x: functional.avg_pool2d(
        x, 3, 2, 1, ceil_mode=True, count_include_pad=False).flatten(1),
    "expansion": lambda x: (x * x.mean((2, 3), keepdim=True).expand_as(x)).flatten(1),
}


def check(model: bytes) -> None:
    onnx.checker.check_model(model)
    network = derive(model).network
    assert error(model, network, noise_images(SHAPE, 40)) < 0.03


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    check(export(Net(ACTIVATIONS[activation], flat), False))


@pytest.mark.parametrize("tail", TAILS)
def test_tails(tail: str) -> None:
    check(export(Net(functional.silu, TAILS[tail]), False))


def test_all_of_them_by_the_other_exporter() -> None:
    def tails(x: Tensor) -> Tensor:
        return torch.cat([tail(activation(x)) for tail, activation in zip(TAILS.values(), activations, strict=True)], 1)

    activations = [*ACTIVATIONS.values(), functional.relu]
    check(export(Net(functional.silu, tails), True))


@pytest.mark.parametrize("opset", [13, 20])
def test_operator_sets(opset: int) -> None:
    check(export(Net(functional.gelu, TAILS["adaptive"]), False, opset))


def test_a_dropped_batch_axis_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"\[1, classes\]|views"):
        derive(export(Net(functional.relu, lambda x: functional.adaptive_avg_pool2d(x, 1).squeeze()[None]), False))

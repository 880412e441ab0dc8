"""The architectures that `zkmark-ml` trains.  Average pools: the integer network composes them into the next layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from protocol.errors import ParameterError

Shape = tuple[int, int, int]


class Normalized(nn.Module):
    """A network behind its own normalization, so that it takes raw pixels 0 .. 255."""

    def __init__(self, body: nn.Module, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.body = body
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", mean.reshape(-1, 1, 1))
        self.register_buffer("deviation", deviation.reshape(-1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.body((image - self.mean) / self.deviation)  # [n, C, H, W] -> [n, classes]
        return out


def cnn(shape: Shape, classes: int) -> nn.Sequential:
    """Three 3 x 3 convolutions of 16, 32, 64 channels, each halved by an average pool; any input from 8 x 8."""
    channels, rows, columns = shape
    if min(rows, columns) < 8:
        raise ParameterError("the cnn needs images of at least 8 x 8")
    layers: list[nn.Module] = []
    for width in (16, 32, 64):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (rows // 8) * (columns // 8), classes))


def lenet(shape: Shape, classes: int) -> nn.Sequential:
    """LeNet (LeCun et al. 1998) with ReLU and average pools; any input from 16 x 16, 28 x 28 in the tables."""
    channels, rows, columns = shape
    if min(rows, columns) < 16:
        raise ParameterError("lenet needs images of at least 16 x 16")
    height, width = ((n - 4) // 2 - 4 for n in (rows, columns))  # before the last pool
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(16 * (height // 2) * (width // 2), 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
    )  # fmt: skip


ARCHITECTURES: dict[str, Callable[[Shape, int], nn.Sequential]] = {"cnn": cnn, "lenet": lenet}


def build(arch: str, shape: Shape, classes: int, train_x: Tensor | None = None) -> Normalized:
    """A freshly initialized network; its normalization is taken from train_x u8 [n, C, H, W], or is that of noise."""
    if arch not in ARCHITECTURES:
        raise ParameterError(f"unknown architecture {arch!r}; known are {', '.join(ARCHITECTURES)}")
    mean, deviation = torch.full((shape[0],), 127.5), torch.full((shape[0],), 73.9)
    if train_x is not None:
        pixels = train_x[:10_000].float()
        mean, deviation = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp(min=1.0)
    body = ARCHITECTURES[arch](shape, classes)
    for layer in body:
        if isinstance(layer, nn.Conv2d | nn.Linear):  # He et al. 2015; with less, average pools starve the training
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))
    return Normalized(body, mean, deviation)

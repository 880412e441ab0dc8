"""Residual networks: ResNet-18, -20 and -50 (He et al. 2016), ResNet-18 with pre-activation, MobileNetV2.

Inputs of up to 64 pixels get the stem of the CIFAR literature (3 x 3, stride 1), larger ones that of ImageNet.  Shapes
in comments are [channels, rows, columns] at width 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]

SMALL = 64  # pixels per side up to which an input has the small stem


def scaled(channels: int, width: float) -> int:
    """Channels at a width, at least one."""
    return max(1, round(channels * width))


class Residual(nn.Module):
    """after(branch(x) + shortcut(x))."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None, after: nn.Module | None) -> None:
        super().__init__()
        self.branch, self.shortcut, self.after = branch, shortcut, after

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x) + (x if self.shortcut is None else self.shortcut(x))
        return out if self.after is None else torch.relu(out)


class PreActivation(nn.Module):
    """y + shortcut where y is the branch of relu(norm(x)); the shortcut is x, or a projection of relu(norm(x))."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inner)
        self.branch = nn.Sequential(*convolution(inner, outer, 3, stride), nn.ReLU(), bare(outer, outer, 3))
        self.shortcut = bare(inner, outer, 1, stride) if stride > 1 or inner != outer else None

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.norm(x))
        out: Tensor = self.branch(active) + (x if self.shortcut is None else self.shortcut(active))
        return out


def bare(inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)


def convolution(inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its batch normalization."""
    return [bare(inner, outer, kernel, stride, groups), nn.BatchNorm2d(outer)]


def basic(inner: int, outer: int, stride: int) -> Residual:
    """Two 3 x 3 convolutions."""
    branch = nn.Sequential(*convolution(inner, outer, 3, stride), nn.ReLU(), *convolution(outer, outer, 3))
    return Residual(branch, _projection(inner, outer, stride), nn.ReLU())


def bottleneck(inner: int, outer: int, stride: int) -> Residual:
    """1 x 1 to a quarter of the channels, 3 x 3 with the stride, 1 x 1."""
    middle = max(1, outer // 4)
    branch = nn.Sequential(
        *convolution(inner, middle, 1), nn.ReLU(),
        *convolution(middle, middle, 3, stride), nn.ReLU(),
        *convolution(middle, outer, 1),
    )  # fmt: skip
    return Residual(branch, _projection(inner, outer, stride), nn.ReLU())


def _projection(inner: int, outer: int, stride: int) -> nn.Module | None:
    return nn.Sequential(*convolution(inner, outer, 1, stride)) if stride > 1 or inner != outer else None


def _stem(shape: Shape, channels: int) -> list[nn.Module]:
    if max(shape[1:]) <= SMALL:
        return [*convolution(shape[0], channels, 3), nn.ReLU()]
    return [*convolution(shape[0], channels, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]


def _head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def resnet18(shape: Shape, classes: int, width: float) -> nn.Sequential:
    """At 32 x 32: [64, 32, 32] x 5 -> [128, 16, 16] x 4 -> [256, 8, 8] x 4 -> [512, 4, 4] x 4; 557,056 activations.

    At 224 x 224: [64, 112, 112], pooled -> [64, 56, 56] -> [128, 28, 28] -> [256, 14, 14] -> [512, 7, 7].
    """
    channels = scaled(64, width)
    layers = _stem(shape, channels)
    for stage, base in enumerate((64, 128, 256, 512)):
        for block in range(2):
            layers.append(basic(channels, scaled(base, width), 2 if stage and not block else 1))
            channels = scaled(base, width)
    return nn.Sequential(*layers, *_head(channels, classes))


def preact_resnet18(shape: Shape, classes: int, width: float) -> nn.Sequential:
    """ResNet-18 with pre-activation (He et al. 2016b), as Adi et al. mark it; the shapes of resnet18."""
    channels = scaled(64, width)
    layers = _stem(shape, channels)[:1] if max(shape[1:]) <= SMALL else _stem(shape, channels)
    for stage, base in enumerate((64, 128, 256, 512)):
        for block in range(2):
            layers.append(PreActivation(channels, scaled(base, width), 2 if stage and not block else 1))
            channels = scaled(base, width)
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), *_head(channels, classes))


def resnet20(shape: Shape, classes: int, width: float) -> nn.Sequential:
    """At 32 x 32: [16, 32, 32] x 7 -> [32, 16, 16] x 6 -> [64, 8, 8] x 6; projections where the shape changes."""
    channels = scaled(16, width)
    layers: list[nn.Module] = [*convolution(shape[0], channels, 3), nn.ReLU()]
    for stage, base in enumerate((16, 32, 64)):
        for block in range(3):
            layers.append(basic(channels, scaled(base, width), 2 if stage and not block else 1))
            channels = scaled(base, width)
    return nn.Sequential(*layers, *_head(channels, classes))


def resnet50(shape: Shape, classes: int, width: float) -> nn.Sequential:
    """At 224 x 224: [64, 112, 112], pooled -> [256, 56, 56] x 3 -> [512, 28, 28] x 4 -> [1024, 14, 14] x 6 ->
    [2048, 7, 7] x 3."""
    channels = scaled(64, width)
    layers = _stem(shape, channels)
    for stage, (base, blocks) in enumerate(((256, 3), (512, 4), (1024, 6), (2048, 3))):
        for block in range(blocks):
            layers.append(bottleneck(channels, scaled(base, width), 2 if stage and not block else 1))
            channels = scaled(base, width)
    return nn.Sequential(*layers, *_head(channels, classes))


def mobilenetv2(shape: Shape, classes: int, width: float) -> nn.Sequential:
    """MobileNetV2 (Sandler et al. 2018).  At 32 x 32 the stem keeps the size and stage 2 halves it:

    [32, 32, 32] -> [16, 32, 32] -> [24, 16, 16] x 2 -> [32, 8, 8] x 3 -> [64, 4, 4] x 4 -> [96, 4, 4] x 3 ->
    [160, 2, 2] x 3 -> [320, 2, 2] -> [1280, 2, 2]; inside a block 6 times the channels of its input.
    """
    channels = scaled(32, width)
    stem = 1 if max(shape[1:]) <= SMALL else 2
    layers = [*convolution(shape[0], channels, 3, stem), nn.ReLU6()]
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, base, blocks, stride in stages:
        for block in range(blocks):
            outer, step = scaled(base, width), 1 if block else stride
            middle = channels * expansion
            branch: list[nn.Module] = [*convolution(channels, middle, 1), nn.ReLU6()] if expansion > 1 else []
            branch += [*convolution(middle, middle, 3, step, middle), nn.ReLU6(), *convolution(middle, outer, 1)]
            body = nn.Sequential(*branch)
            layers.append(Residual(body, None, None) if step == 1 and channels == outer else body)
            channels = outer
    last = scaled(1280, width)
    return nn.Sequential(*layers, *convolution(channels, last, 1), nn.ReLU6(), *_head(last, classes))

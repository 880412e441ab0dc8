"""The architectures that `zkmark-ml` trains, by name.

Shapes in comments are [channels, rows, columns] at width 1.  `width` scales all hidden channels.  Average pools cost
nothing in a proof (the integer network composes them into the next layer), max pools most of their input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ml.residual import Shape, mobilenetv2, preact_resnet18, resnet18, resnet20, resnet50, scaled
from protocol.errors import ParameterError


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


def cnn(shape: Shape, classes: int, width: float) -> nn.Sequential:
    """Three 3 x 3 convolutions of 16, 32, 64 channels, each halved by an average pool; any input from 8 x 8."""
    channels, rows, columns = shape
    if min(rows, columns) < 8:
        raise ParameterError("the cnn needs images of at least 8 x 8")
    layers: list[nn.Module] = []
    for base in (16, 32, 64):
        layers += [nn.Conv2d(channels, scaled(base, width), 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
        channels = scaled(base, width)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (rows // 8) * (columns // 8), classes))


def wide_cnn(shape: Shape, classes: int, width: float) -> nn.Sequential:
    """The cnn with twice the channels: room for a task and a hundred pictures."""
    return cnn(shape, classes, 2 * width)


def lenet(shape: Shape, classes: int, width: float) -> nn.Sequential:
    """LeNet (LeCun et al. 1998) with ReLU and average pools; any input from 16 x 16, 28 x 28 in the tables."""
    channels, rows, columns = shape
    if min(rows, columns) < 16:
        raise ParameterError("lenet needs images of at least 16 x 16")
    rows, columns = ((n - 4) // 2 - 4 for n in (rows, columns))  # before the last pool
    a, b, c, d = (scaled(base, width) for base in (6, 16, 120, 84))
    return nn.Sequential(
        nn.Conv2d(channels, a, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(a, b, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(b * (rows // 2) * (columns // 2), c), nn.ReLU(),
        nn.Linear(c, d), nn.ReLU(), nn.Linear(d, classes),
    )  # fmt: skip


def vgg(depths: tuple[int, ...], shape: Shape, classes: int, width: float) -> nn.Sequential:
    """VGG with batch normalization (Simonyan and Zisserman 2015) and one dense layer, as is usual for small images.

    At 32 x 32: [64, 32, 32] -> [128, 16, 16] -> [256, 8, 8] -> [512, 4, 4] -> [512, 2, 2] -> [512, 1, 1].
    """
    channels, rows, columns = shape
    layers: list[nn.Module] = []
    for depth, base in zip(depths, (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, scaled(base, width), 3, padding=1, bias=False)]
            channels = scaled(base, width)
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if min(rows, columns) > 1:
            layers.append(nn.MaxPool2d(2))
            rows, columns = rows // 2, columns // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * rows * columns, classes))


def mlp(shape: Shape, classes: int, width: float) -> nn.Sequential:
    """Two hidden layers of 512, the MLP of Le Merrer et al. (Keras' mnist_mlp): 669,706 parameters at 28 x 28."""
    hidden = scaled(512, width)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes),
    )  # fmt: skip


def cleverhans_cnn(shape: Shape, classes: int, width: float) -> nn.Sequential:
    """The CNN of the cleverhans tutorials, which has the 710,218 parameters that Le Merrer et al. count for theirs.

    (They name Keras' mnist_cnn, which has 1,199,882, and used cleverhans.)  Convolutions of 64, 128, 128 channels at
    28 x 28: [64, 14, 14] -> [128, 5, 5] -> [128, 1, 1]; on smaller images with kernels that fit.
    """
    channels, rows, columns = shape
    layers: list[nn.Module] = []
    for base, kernel, stride, pad in ((64, 8, 2, 3), (128, 6, 2, 0), (128, 5, 1, 0)):
        size = min(kernel, rows + 2 * pad), min(kernel, columns + 2 * pad)
        layers += [nn.Conv2d(channels, scaled(base, width), size, stride, pad), nn.ReLU()]
        channels = scaled(base, width)
        rows, columns = ((n + 2 * pad - k) // stride + 1 for n, k in zip((rows, columns), size, strict=True))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * rows * columns, classes))


class Recurrent(nn.Module):
    """An LSTM over the pixels of each row, and one over the rows: the recurrent network of Le Merrer et al.

    They call it an IRNN; their 199,434 parameters are those of Keras' mnist_hierarchical_rnn, which this is (torch
    has a second bias in each LSTM, 1,024 more).  It has no integer form: marks in it can be seen, not proven.
    """

    def __init__(self, shape: Shape, classes: int, width: float) -> None:
        super().__init__()
        hidden = scaled(128, width)
        self.pixels = nn.LSTM(shape[0], hidden, batch_first=True)
        self.rows = nn.LSTM(hidden, hidden, batch_first=True)
        self.last = nn.Linear(hidden, classes)
        for layer in (self.pixels, self.rows):
            with torch.no_grad():
                layer.get_parameter("bias_ih_l0")[hidden : 2 * hidden] = 1.0  # the forget gate, as Keras does

    def forward(self, x: Tensor) -> Tensor:
        n, channels, rows, columns = x.shape
        with torch.backends.cudnn.flags(enabled=self.training):  # cuDNN has no gradients in evaluation mode
            _, (state, _) = self.pixels(x.permute(0, 2, 3, 1).reshape(n * rows, columns, channels))
            _, (state, _) = self.rows(state[-1].reshape(n, rows, -1))
        out: Tensor = self.last(state[-1])
        return out


ARCHITECTURES: dict[str, Callable[[Shape, int, float], nn.Module]] = {
    "cnn": cnn,
    "wide-cnn": wide_cnn,
    "lenet": lenet,
    "vgg11": partial(vgg, (1, 1, 2, 2, 2)),
    "vgg16": partial(vgg, (2, 2, 3, 3, 3)),
    "resnet18": resnet18,
    "preact-resnet18": preact_resnet18,
    "resnet20": resnet20,
    "resnet50": resnet50,
    "mobilenetv2": mobilenetv2,
    "mlp": mlp,
    "cleverhans-cnn": cleverhans_cnn,
}
UNPROVABLE: dict[str, Callable[[Shape, int, float], nn.Module]] = {"rnn": Recurrent}  # for experiments alone


def build(arch: str, shape: Shape, classes: int, train_x: Tensor | None = None, width: float = 1.0) -> Normalized:
    """A freshly initialized network; its normalization is taken from train_x u8 [n, C, H, W], or is that of noise."""
    known = ARCHITECTURES | UNPROVABLE
    if arch not in known:
        raise ParameterError(f"unknown architecture {arch!r}; known are {', '.join(known)}")
    mean, deviation = torch.full((shape[0],), 127.5), torch.full((shape[0],), 73.9)
    if train_x is not None:
        pixels = train_x[:10_000].float()
        mean, deviation = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp(min=1.0)
    if not 0 < width <= 4:
        raise ParameterError("the width is a factor in (0, 4]")
    body = known[arch](shape, classes, width)
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):  # He et al. 2015; with less, average pools starve the training
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return Normalized(body, mean, deviation)

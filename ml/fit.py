"""Fitting weights to images: the one training loop of the attacks, and of the schemes that go on from a trained model.

`ml.mark` trains the models that a public proof is about; here are the short trainings that happen to them later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ml.descent import Descent, augmented, device_of, logits_of
from protocol.errors import ParameterError

MOMENTUM = 0.9

Images = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Oracle = Callable[[Images], Ints]  # answers classes and nothing else
Done = Callable[[nn.Module, int], bool]  # asked after each epoch 1, 2, ..., in evaluation mode, whether to stop
Told = Callable[[int, float], None]  # told after each epoch 1, 2, ..., in evaluation mode, the mean loss of its batches


@dataclass(frozen=True)
class Fit:
    """SGD with momentum, or Adam.  weight_decay: coefficient of the squared L2 norm of what is trained, halved.

    drops: how often, at even distances, the rate is divided by ten.  augment: move and mirror the images.
    """

    epochs: int = 5
    batch: int = 100
    rate: float = 0.01
    optimizer: Literal["sgd", "adam"] = "sgd"
    weight_decay: float = 0.0
    drops: int = 0
    augment: bool = False
    seed: int = 0

    def rate_in(self, epoch: int) -> float:
        """Of epochs 0, 1, ..."""
        return self.rate * 0.1 ** (epoch * (self.drops + 1) // max(self.epochs, 1))


def last_layer(model: nn.Module) -> nn.Linear:
    """The last dense layer in order of definition.  Raises ParameterError for a model without any."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ParameterError("the model has no dense layer")
    return layers[-1]


def answers(model: nn.Module, images: Images) -> Ints:
    """[n] class of each image u8 [n, C, H, W], in evaluation mode."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device_of(model))
    out: Ints = logits_of(model, x).argmax(1).cpu().numpy()
    return out


def class_count(model: nn.Module, images: Images) -> int:
    """Number of logits that the model has for images u8 [n, C, H, W], of which it sees the first."""
    return logits_of(model, torch.from_numpy(images[:1].copy()).to(device_of(model))).shape[1]


def accuracy(oracle: nn.Module | Oracle, images: Images, labels: Ints) -> float:
    """Share of the images that get their label."""
    found = answers(oracle, images) if isinstance(oracle, nn.Module) else oracle(images)
    return float((found == labels).mean())


def fit(
    model: nn.Module,
    images: Images,
    targets: Ints | npt.NDArray[np.float32],
    options: Fit,
    parameters: Iterable[nn.Parameter] | None = None,
    done: Done | None = None,
    told: Told | None = None,
) -> int:
    """Minimize the cross entropy in place; returns the number of epochs that were run.

    images: u8 [n, C, H, W]; targets: classes [n], or distributions float32 [n, classes].  Given `parameters`, only
    those move, and batch norm keeps its statistics; otherwise these move too.  Raises ParameterError for targets that
    do not fit the images or the model's classes, and for a loss that is not finite; the model is useless then.
    """
    if len(targets) != len(images) or not len(images):
        raise ParameterError(f"{len(images)} images and {len(targets)} targets do not fit each other")
    classes = class_count(model, images)
    if targets.shape[1:] != (classes,) and not (targets.ndim == 1 and 0 <= targets.min() <= targets.max() < classes):
        raise ParameterError(f"targets are classes 0 .. {classes - 1} of the model, or a probability for each")
    device = device_of(model)
    x, y = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in (images, targets))
    chosen = list(model.parameters() if parameters is None else parameters)
    optimizer: torch.optim.Optimizer
    if options.optimizer == "adam":
        optimizer = torch.optim.Adam(chosen, options.rate, weight_decay=options.weight_decay)
    else:
        optimizer = torch.optim.SGD(chosen, options.rate, momentum=MOMENTUM, weight_decay=options.weight_decay)
    descent = Descent(model, optimizer, chosen, options.epochs * -(-len(x) // options.batch))
    generator = torch.Generator().manual_seed(options.seed)
    for epoch in range(options.epochs):
        model.train(parameters is None)
        optimizer.param_groups[0]["lr"] = options.rate_in(epoch)
        with _only(model, chosen):
            for rows in torch.randperm(len(x), generator=generator).split(options.batch):
                batch = x[rows]
                descent.step(augmented(batch, generator) if options.augment else batch, y[rows])
        loss = descent.loss()
        model.eval()
        if told is not None:
            told(epoch + 1, loss)
        if done is not None and done(model, epoch + 1):
            return epoch + 1
    return options.epochs


@contextmanager
def _only(model: nn.Module, chosen: Sequence[nn.Parameter]) -> Iterator[None]:
    """No gradients but those of the chosen parameters: with the last layer alone, no backward pass through the rest."""
    wanted = {id(p) for p in chosen}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in wanted]
    for p in others:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in others:
            p.requires_grad_(True)

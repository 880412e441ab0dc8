"""Attacks that train on: Adi et al. section 5.3 to 5.5, and adversarial fine-tuning of Le Merrer et al. section 4.4.

Where batch norm is frozen: FTLL and RTLL keep its statistics, the attacks on all layers let them move (`ml.fit`).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

from torch import nn

from ml.adversaries import fgsm
from ml.data import Dataset
from ml.descent import device_of
from ml.fit import Done, Fit, Images, Ints, fit, last_layer
from ml.mark import Training, mark
from protocol.errors import ParameterError

How = Literal["FTLL", "FTAL", "RTLL", "RTAL"]


def fine_tune(
    model: nn.Module, how: How, images: Images, labels: Ints, options: Fit, done: Done | None = None
) -> nn.Module:
    """FT or RT: the last layer is kept or drawn anew first; LL or AL: the last layer or all layers are trained.

    After RT, read the mark from `with_last_layer(attacked, model)`, as the paper does.
    """
    if how not in ("FTLL", "FTAL", "RTLL", "RTAL"):
        raise ParameterError(f"unknown fine-tuning {how!r}")
    attacked = deepcopy(model)
    if how.startswith("RT"):
        last_layer(attacked).reset_parameters()
    fit(attacked, images, labels, options, last_layer(attacked).parameters() if how.endswith("LL") else None, done)
    return attacked


def transfer(model: nn.Module, data: Dataset, options: Fit) -> nn.Module:
    """RTAL to another task of the same shape, with as many outputs as that task has classes."""
    attacked = deepcopy(model)
    _replace_last(attacked, nn.Linear(last_layer(model).in_features, data.classes).to(device_of(model)))
    fit(attacked, data.train_x, data.train_y, options)
    return attacked


def with_last_layer(model: nn.Module, owner: nn.Module) -> nn.Module:
    """A copy of a model with the owner's last layer put back: what the owner reads the mark from.

    This is not the suspect's network: a proof about it shows nothing, since a layer can be chosen to fit any labels.
    """
    read = deepcopy(model)
    _replace_last(read, deepcopy(last_layer(owner)))
    return read.eval()


def adversarial(model: nn.Module, images: Images, labels: Ints, epsilon: float, options: Fit) -> nn.Module:
    """Fine-tuning on adversaries of the model itself, with their true labels."""
    attacked = deepcopy(model)
    fit(attacked, fgsm(model, images, labels, epsilon), labels, options)
    return attacked


def overwrite(model: nn.Module, data: Dataset, images: Images, labels: Ints, options: Training) -> nn.Module:
    """A second mark, with triggers of the thief's own, on top of the first (ownership piracy)."""
    attacked = deepcopy(model)
    mark(attacked, data, images, labels, options)
    return attacked


def _replace_last(model: nn.Module, layer: nn.Linear) -> None:
    name = next(n for n, module in model.named_modules() if module is last_layer(model))
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)

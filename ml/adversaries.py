"""Adversarial examples: images moved a little so that a model changes its mind.  All are u8 images, so already rounded.

Fast gradient sign method: Goodfellow, Shlens and Szegedy, ICLR 2015; its L1 and L2 forms as in cleverhans 2.0, which Le
Merrer et al. used.  Targeted steps over several models: Liu, Chen, Liu and Song, ICLR 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ml.descent import device_of
from ml.fit import Images, Ints

Norm = Literal["linf", "l2", "l1"]
CHUNK = 500  # images at a time


def fgsm(model: nn.Module, images: Images, labels: Ints, epsilon: float, norm: Norm = "linf") -> Images:
    """One step of length epsilon up the loss of the true labels, rounded and clipped to pixels 0..255.

    images: u8 [n, C, H, W]; epsilon: in the chosen norm of pixels scaled to 0..1 (the paper takes 0.25, 7 and 150 on
    MNIST for linf, l2 and l1).
    """
    model.eval()
    out = []
    for start in range(0, len(images), CHUNK):
        x = _pixels(model, images[start : start + CHUNK]).requires_grad_()
        (gradient,) = torch.autograd.grad(_loss(model, x, labels[start : start + CHUNK]), x)
        out.append(_rounded(x.detach() + 255 * epsilon * direction(gradient, norm)))
    return np.concatenate(out) if out else images.copy()


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """[n, C, H, W] of norm 1 in each image: the sign of the gradient for linf, the gradient scaled for l2 and l1."""
    if norm == "linf":
        return gradient.sign()
    sizes = gradient.flatten(1).norm(p=2 if norm == "l2" else 1, dim=1).clamp(min=1e-12)
    out: Tensor = gradient / sizes.reshape(-1, 1, 1, 1)
    return out


def targeted(models: Sequence[nn.Module], images: Images, targets: Ints, epsilon: float, steps: int) -> Images:
    """Images within epsilon (linf, of the range of pixels) that all the models are to give the target classes.

    Steps of 2 epsilon / steps down the sum of the models' losses, each followed by a clip.
    """
    for model in models:
        model.eval()
    out = []
    for start in range(0, len(images), CHUNK):
        origin = _pixels(models[0], images[start : start + CHUNK])
        x = origin.clone()
        for _ in range(steps):
            x.requires_grad_()
            loss = sum((_loss(model, x, targets[start : start + CHUNK]) for model in models), torch.zeros(()))
            (gradient,) = torch.autograd.grad(loss, x)
            x = x.detach() - gradient.sign() * (510 * epsilon / steps)
            x = origin + (x - origin).clamp(-255 * epsilon, 255 * epsilon)
            x = x.clamp(0, 255)
        out.append(_rounded(x))
    return np.concatenate(out) if out else images.copy()


def _pixels(model: nn.Module, images: Images) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).to(device_of(model)).float()


def _loss(model: nn.Module, x: Tensor, labels: Ints) -> Tensor:
    """Summed, so that the gradient of each image is its own."""
    return functional.cross_entropy(model(x), torch.from_numpy(labels).to(x.device), reduction="sum")


def _rounded(x: Tensor) -> Images:
    out: Images = x.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return out

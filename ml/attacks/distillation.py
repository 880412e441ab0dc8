"""Distillation from the stolen model itself (Bansal et al., section 3.1, after Shafieinejad et al. 2019).

The thief has no labels: the stolen model labels the thief's images, and its copy is trained on them.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ml.descent import device_of, logits_of
from ml.fit import Done, Fit, Images, answers, fit


def distill(
    model: nn.Module, images: Images, options: Fit, soft: bool = False, regularized: Fit | None = None,
    done: Done | None = None,
) -> nn.Module:  # fmt: skip
    """A copy trained on the model's own answers: classes, or with `soft` its probabilities.

    regularized: a first phase, with a weight decay that pulls the mark out; `options` then bring the accuracy back.
    """
    attacked = deepcopy(model)
    if soft:
        x = torch.from_numpy(np.ascontiguousarray(images)).to(device_of(model))
        targets = logits_of(model, x).softmax(1).cpu().numpy()
    else:
        targets = answers(model, images)
    if regularized is not None:
        fit(attacked, images, targets, regularized)
    fit(attacked, images, targets, replace(options, seed=options.seed + 1), done=done)
    return attacked

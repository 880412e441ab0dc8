"""Attacks that need no data: pruning and low rank (Le Merrer et al., section 4.4), and weights of few bits.

Weights are those of dense, convolutional and recurrent layers; biases and batch norm stay.  The models keep their
architecture: what counts is the function, and that it still derives.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from protocol.errors import ParameterError


def weights(model: nn.Module) -> list[Tensor]:
    """Of all dense, convolutional and recurrent layers, in order."""
    found: list[Tensor] = []
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.LSTM):
            found += [tensor for name, tensor in layer.named_parameters(recurse=False) if name.startswith("weight")]
    return found


@torch.no_grad()
def prune(model: nn.Module, share: float, per_layer: bool = False) -> nn.Module:
    """A copy whose smallest weights by magnitude are zero: floor(share * count) of each layer or of all together.

    Raises ParameterError unless 0 <= share <= 1.
    """
    if not 0 <= share <= 1:
        raise ParameterError("the share to prune lies between 0 and 1")
    attacked = deepcopy(model)
    found = weights(attacked)
    for group in [[w] for w in found] if per_layer else [found]:
        sizes = torch.cat([w.abs().flatten() for w in group])
        keep = torch.ones_like(sizes)
        keep[sizes.argsort(stable=True)[: int(share * len(sizes))]] = 0
        for w, mask in zip(group, keep.split([w.numel() for w in group]), strict=True):
            w.mul_(mask.reshape(w.shape))
    return attacked


@torch.no_grad()
def low_rank(model: nn.Module, share: float) -> nn.Module:
    """A copy whose weights, as matrices [out, in * kernel], have the best approximation of a rank r.

    r is the largest at which two factors hold at most 1 - share of the matrix's numbers, but at least 1.
    """
    if not 0 <= share <= 1:
        raise ParameterError("the share to save lies between 0 and 1")
    attacked = deepcopy(model)
    for w in weights(attacked):
        matrix = w.flatten(1)
        rank = max(int((1 - share) * matrix.numel() / sum(matrix.shape)), 1)
        w.copy_(truncated(matrix, rank).reshape(w.shape))
    return attacked


def truncated(matrix: Tensor, rank: int) -> Tensor:
    """The nearest matrix of at most this rank (Eckart and Young 1936)."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    out: Tensor = (u[:, :rank] * s[:rank]) @ v[:rank]
    return out


@torch.no_grad()
def few_bits(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose weights take at most 2^bits - 1 values per output channel, symmetric and evenly spaced."""
    if not 2 <= bits <= 16:
        raise ParameterError("bits of a weight are 2 to 16")
    attacked = deepcopy(model)
    for w in weights(attacked):
        most = w.abs().flatten(1).amax(1).clamp(min=1e-12).reshape(-1, *[1] * (w.dim() - 1))
        unit = most / (2 ** (bits - 1) - 1)
        w.copy_((w / unit).round() * unit)
    return attacked


@torch.no_grad()
def moved(model: nn.Module, other: nn.Module) -> float:
    """L2 distance of all parameters of two models (Bansal et al., Tables 2 and 4)."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return float(torch.cat([(a - b).flatten() for a, b in pairs]).norm())

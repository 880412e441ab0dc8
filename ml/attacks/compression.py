"""Attacks that need no data: pruning and low rank (Le Merrer et al., section 4.4), and weights of few bits.

Weights are those of dense, convolutional and recurrent layers; biases and batch norm stay.  The models keep their
architecture: what counts is the function, and that it still derives.
"""

from __future__ import annotations

from bisect import bisect_left
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
    """A copy whose weights, as matrices [out, in * kernel], have the best approximation of a lower rank each.

    Factors of each hold what its least rank within a relative error needs, or the matrix is kept where that is less;
    the error is one for all, the least at which at most 1 - share of all numbers are left, and at most that of rank 1
    (keras_compressor, which Le Merrer et al. used, takes the error).
    """
    if not 0 <= share <= 1:
        raise ParameterError("the share to save lies between 0 and 1")
    attacked = deepcopy(model)
    matrices = [w.flatten(1) for w in weights(attacked)]
    errors = [_errors(matrix) for matrix in matrices]

    def ranks(most: float) -> list[int]:
        return [1 + int((error > most).sum()) for error in errors]

    def left(most: float) -> int:
        return sum(min(rank * sum(m.shape), m.numel()) for rank, m in zip(ranks(most), matrices, strict=True))

    candidates = torch.cat(errors).unique().tolist()
    numbers = sum(m.numel() for m in matrices)
    found = bisect_left(candidates, True, key=lambda most: left(most) <= (1 - share) * numbers)
    for matrix, rank in zip(matrices, ranks(candidates[min(found, len(candidates) - 1)]), strict=True):
        if rank * sum(matrix.shape) < matrix.numel():
            matrix.copy_(truncated(matrix, rank))  # a view of the weight
    return attacked


def _errors(matrix: Tensor) -> Tensor:
    """[n] relative Frobenius error of the best approximation of rank 1 .. n, falling to 0."""
    energy = torch.linalg.svdvals(matrix.double()).square()
    tails = energy.flip(0).cumsum(0).flip(0)  # [n] of the values from each on
    return torch.cat([tails[1:], tails.new_zeros(1)]).div(tails[0].clamp(min=1e-300)).sqrt()


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

"""Operators that move elements: other shapes, and choices and orders of channels.  None of them costs anything."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import numpy.typing as npt

from ml.onnx_reader import ADVICE, Operator
from ml.real_network import Tensor
from ml.scope import Scope, Trace

MAX_JOINED = 512  # parts of a concatenation of concatenations

Ints = npt.NDArray[np.int64]


def reshape(scope: Scope, operator: Operator) -> Tensor:
    """Flatten, Reshape, Squeeze, Unsqueeze between [1, C, H, W] and [1, C H W], and [1, A, B, H, W] with A B = C."""
    tensor = scope.view(operator)
    features, now = tensor.features, tensor.dimensions
    if operator.kind == "Flatten":
        if operator.integer("axis", 1) % len(now) != 1:
            raise operator.fail("only axis 1 is supported")
        shape = [1, features]
    elif operator.kind == "Reshape":
        given = scope.constant(operator, 1)
        shape = [] if given is None else [int(n) for n in given.reshape(-1)[:8].tolist()]
        shape = [now[i] if n == 0 and i < len(now) else n for i, n in enumerate(shape)]
        rest = prod(n for n in shape if n != -1)
        shape = [features // rest if n == -1 and rest > 0 else n for n in shape]
    elif operator.kind == "Squeeze":
        axes = scope.axes(operator, len(now))
        shape = [n for i, n in enumerate(now) if n != 1 or (axes is not None and i not in axes)]
    else:
        axes = scope.axes(operator, len(now) + len(scope.axes(operator, 8) or [])) or []
        shape = [*now]
        for axis in axes:
            shape.insert(axis, 1)
    if shape == [1, *tensor.shape] and (not tensor.flat or tensor.single_pixel):
        return replace(tensor, rank=4, grouping=())
    if shape == [1, features] or (shape == [1, features, 1] and tensor.single_pixel):
        return replace(tensor, rank=len(shape), grouping=())
    if len(shape) == 5 and shape[:1] + shape[3:] == [1, *tensor.shape[1:]] and shape[1] * shape[2] == tensor.shape[0]:
        return replace(tensor, rank=5, grouping=(shape[1], shape[2]))
    raise operator.fail(
        f"only views of {now} as [1, {features}], with channels in groups, and back of single pixels, are supported"
    )


def transpose(scope: Scope, operator: Operator) -> Tensor:
    """Of an image whose channels are in groups: the groups' channels in turn (Zhang et al. 2018, channel shuffle)."""
    tensor = scope.view(operator)
    order = operator.numbers("perm")
    if tensor.rank != 5 or order != (0, 2, 1, 3, 4):
        if order == tuple(range(tensor.rank)):
            return tensor
        raise operator.fail(ADVICE["Transpose"])
    a, b = tensor.grouping
    shuffled = np.arange(a * b).reshape(a, b).T.reshape(-1)
    return replace(scope.builder.select(tensor, shuffled, operator.name), grouping=(b, a))


def select(scope: Scope, operator: Operator) -> Tensor:
    """Slice, Split and Gather: some of the channels."""
    tensor = scope.view(operator)
    if tensor.rank == 5 or (tensor.flat and not tensor.single_pixel):
        raise operator.fail("only channels can be chosen")
    channels = np.arange(tensor.shape[0])
    rule = {"Slice": _slice, "Split": _split, "Gather": _gather}[operator.kind]
    chosen = rule(scope, operator, tensor, channels)
    if not len(chosen):
        raise operator.fail("nothing is chosen")
    return scope.builder.select(tensor, chosen, operator.name)


def _slice(scope: Scope, operator: Operator, tensor: Tensor, channels: Ints) -> Ints:
    starts, ends = (scope.numbers(operator, i, []) for i in (1, 2))
    axes = scope.numbers(operator, 3, [*range(len(starts))])
    steps = scope.numbers(operator, 4, [1] * len(starts))
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise operator.fail("starts, ends, axes and steps do not fit each other")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis % tensor.rank == 1:
            channels = channels[slice(start, None if step < 0 and end < -len(channels) else end, step)]
        elif range(tensor.dimensions[axis])[start:end:step] != range(tensor.dimensions[axis]):
            raise operator.fail("only channels can be chosen; crop or resize images before the network")
    return channels


def _split(scope: Scope, operator: Operator, tensor: Tensor, channels: Ints) -> Ints:
    equal = -(-len(channels) // operator.outputs)
    given = scope.constant(operator, 1)
    sizes = [equal] * operator.outputs if given is None else [int(n) for n in given.reshape(-1).tolist()]
    if given is None:
        sizes[-1] = len(channels) - equal * (operator.outputs - 1)
    if operator.integer("axis", 0) % tensor.rank != 1:
        raise operator.fail("only channels can be split")
    if len(sizes) != operator.outputs or sum(sizes) != len(channels) or min(sizes) < 0:
        raise operator.fail(f"the parts do not fit {len(channels)} channels")
    start = sum(sizes[: operator.index])
    return channels[start : start + sizes[operator.index]]


def _gather(scope: Scope, operator: Operator, tensor: Tensor, channels: Ints) -> Ints:
    indices = scope.constant(operator, 1)
    if operator.integer("axis", 0) % tensor.rank != 1 or indices is None or indices.ndim != 1:
        raise operator.fail("only a list of channels can be gathered")
    if indices.dtype.kind != "i" or (indices < -len(channels)).any() or (indices >= len(channels)).any():
        raise operator.fail(f"an index is out of range of {len(channels)} channels")
    return np.asarray(channels[indices])


def dimensions(scope: Scope, operator: Operator) -> Ints:
    """Shape: a constant, as all shapes are static."""
    rank = scope.view(operator).dimensions
    return np.array(rank[operator.integer("start", 0) : operator.integer("end", len(rank))], np.int64)


def unchanged(scope: Scope, operator: Operator) -> Trace:
    return scope.trace(operator)


def softmax(scope: Scope, operator: Operator) -> Trace:
    """Of the logits: it does not change their order."""
    if operator.integer("axis", -1) % scope.rank(operator) != 1:
        raise operator.fail("only a softmax over the classes is accepted")
    return scope.trace(operator)


def concatenate(scope: Scope, operator: Operator) -> Tensor:
    """Of channels, or of flat tensors."""
    tensors = [scope.view(operator, i) for i in range(len(operator.inputs))]
    rank, flat = tensors[0].rank, tensors[0].flat
    if operator.integer("axis", 0) % rank != 1 or rank == 5 or len({t.rank for t in tensors}) > 1 or (
        not flat and len({t.shape[1:] for t in tensors}) > 1
    ):
        raise operator.fail("only channels of images of one size, or flattened tensors, can be concatenated")
    if sum(len(t.parts) for t in tensors) > MAX_JOINED:
        raise operator.fail(f"a concatenation of more than {MAX_JOINED} tensors")
    if all(t.order is None for t in tensors):
        return Tensor(tuple(p for t in tensors for p in t.parts), rank)
    if len({t.shape[1:] for t in tensors}) > 1:
        tensors = [replace(t, parts=(scope.builder.single(t),), order=None) if t.order is not None else t
                   for t in tensors]  # fmt: skip
        return Tensor(tuple(p for t in tensors for p in t.parts), rank)
    starts = np.cumsum([0, *(t.slices()[-1].stop for t in tensors)])
    places = np.concatenate([t.places() + start for t, start in zip(tensors, starts, strict=False)])
    parts = tuple(p for t in tensors for p in t.parts)
    joined = Tensor(parts, rank)
    return scope.builder.select(joined, places, operator.name)

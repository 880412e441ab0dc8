"""Operators that move elements: other shapes, and choices and orders of channels.  None of them costs anything."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import numpy.typing as npt

from ml import linear
from ml.builder import MAX_ACTIVATIONS, TOO_LARGE
from ml.onnx_reader import ADVICE, Operator
from ml.real_network import Floats, Tensor
from ml.scope import Scope, Trace
from protocol.network import MAX_DIMENSION

MAX_JOINED = 512  # parts of a concatenation of concatenations

Ints = npt.NDArray[np.int64]


def reshape(scope: Scope, operator: Operator) -> Tensor:
    """Flatten, Reshape, Squeeze, Unsqueeze: [1, C, H, W], [1, C, H W], [1, C H W], and [1, A, B, H, W] with A B = C."""
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
    c, h, w = tensor.shape
    if shape == [1, features]:
        return replace(tensor, rank=2, grouping=())
    if tensor.even and shape in ([1, c, h, w], [1, c, h * w]):
        return replace(tensor, rank=len(shape), grouping=())
    if tensor.even and len(shape) == 5 and shape[:1] + shape[3:] == [1, h, w] and shape[1] * shape[2] == c:
        return replace(tensor, rank=5, grouping=(shape[1], shape[2]))
    raise operator.fail(
        f"only views of {now} as [1, {features}], as [1, {c}, {h * w}] or with channels in groups, and back, "
        "are supported"
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
    """Slice, Split and Gather: some of the channels, rows and columns."""
    tensor = scope.view(operator)
    if tensor.rank == 5 or (tensor.rank == 2 and not tensor.single_pixel):
        raise operator.fail("only channels, and rows and columns of images, can be chosen")
    channels = np.arange(tensor.shape[0])
    if operator.kind == "Slice":
        channels, rows, columns = _slice(scope, operator, tensor, channels)
        if (len(rows), len(columns)) != tensor.shape[1:]:
            tensor = linear.crop(scope, operator, tensor, rows, columns)
    elif operator.kind == "Split":
        channels = _split(scope, operator, tensor, channels)
    else:
        indices = scope.constant(operator, 1)
        if indices is not None and indices.ndim == 0 and tensor.rank > 2:
            return _pick(scope, operator, tensor, int(indices))
        channels = _gather(operator, tensor, channels, indices)
    if not len(channels):
        raise operator.fail("nothing is chosen")
    return scope.builder.select(tensor, channels, operator.name)


def _slice(scope: Scope, operator: Operator, tensor: Tensor, channels: Ints) -> tuple[Ints, range, range]:
    starts, ends = (scope.numbers(operator, i, []) for i in (1, 2))
    axes = scope.numbers(operator, 3, [*range(len(starts))])
    steps = scope.numbers(operator, 4, [1] * len(starts))
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise operator.fail("starts, ends, axes and steps do not fit each other")
    kept = [range(n) for n in tensor.dimensions]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= tensor.rank
        whole = kept[axis]
        # Minus infinity, as exporters write it, is the end of a walk backwards.
        kept[axis] = whole[slice(start, None if step < 0 and end < -len(whole) else end, step)]
        if axis != 1 and kept[axis] != whole and (axis == 0 or tensor.rank < 4):
            raise operator.fail("only channels, and rows and columns of images, can be chosen")
    rows, columns = kept[2:] if tensor.rank == 4 else (range(n) for n in tensor.shape[1:])
    return channels[[*kept[1]]], rows, columns


def _pick(scope: Scope, operator: Operator, tensor: Tensor, at: int) -> Tensor:
    """One row or one column, without its axis."""
    axis = operator.integer("axis", 0) % tensor.rank
    _, h, w = tensor.shape
    line = 3 if tensor.rank == 3 and h == 1 else axis  # of the image: an axis H W is a row or a column
    n = {2: h, 3: w}.get(line, 0)
    if axis < 2 or (tensor.rank == 3 and h > 1 and w > 1) or not -n <= at < n:
        raise operator.fail("only one row or one column of an image can be gathered, by an index within it")
    one = range(at % n, at % n + 1)
    rows, columns = (one if line == 2 else range(h)), (one if line == 3 else range(w))
    if n > 1:
        tensor = linear.crop(scope, operator, tensor, rows, columns)
    return replace(tensor, rank=tensor.rank - 1)


def expand(scope: Scope, operator: Operator) -> Tensor | Trace:
    """Of single pixels to an image; a product with them goes by the pixels themselves."""
    tensor, given = scope.view(operator), scope.constant(operator, 1)
    shape = [] if given is None else [int(n) for n in given.reshape(-1)[:8].tolist()]
    now = [1] * (len(shape) - tensor.rank) + tensor.dimensions
    target = [a if b == 1 else b for a, b in zip(now, shape, strict=False)]
    if target == tensor.dimensions:
        return scope.trace(operator)
    if tensor.rank != 4 or not tensor.single_pixel or target[:2] != [1, tensor.shape[0]] or len(shape) != 4:
        raise operator.fail("only single pixels [1, C, 1, 1] can be expanded to an image [1, C, H, W]")
    scope.pixels[operator.output] = operator.inputs[0]
    return broadcast(scope, operator, tensor, (target[2], target[3]))


def broadcast(scope: Scope, operator: Operator, tensor: Tensor, area: tuple[int, int]) -> Tensor:
    """Single pixels as images."""
    shape = tensor.shape[0], *area
    if prod(shape) > MAX_ACTIVATIONS or max(shape) > MAX_DIMENSION:
        raise operator.fail(TOO_LARGE)
    parts = tuple(scope.builder.expand(p, (p.shape[0], *area), operator.name) for p in tensor.parts)
    return replace(tensor, parts=parts)


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


def _gather(operator: Operator, tensor: Tensor, channels: Ints, indices: Floats | None) -> Ints:
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
    rank = tensors[0].rank
    if operator.integer("axis", 0) % rank != 1 or rank == 5 or len({t.rank for t in tensors}) > 1 or (
        rank != 2 and len({t.shape[1:] for t in tensors}) > 1
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

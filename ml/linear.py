"""Convolutions, dense layers, pools, paddings and batch normalization: operators that become weights of edges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ml.onnx_reader import Operator
from ml.real_network import Ints, Tensor, Windows
from ml.scope import Scope
from protocol.network import Window

MAX_KERNEL = 1024


def conv(scope: Scope, operator: Operator) -> Tensor:
    tensor = scope.image(operator, scope.view(operator))
    weight = scope.weight(operator, 1, 4)
    given = len(operator.inputs) > 2 and operator.inputs[2]
    bias = scope.weight(operator, 2, weight.shape[:1]) if given else np.zeros(len(weight))
    windows = _windows(operator, (weight.shape[2], weight.shape[3]), tensor.shape[1:])
    groups = operator.integer("group", 1)
    return scope.builder.convolve(operator.fail, operator.name, tensor, weight, bias, windows, groups)


def dense(scope: Scope, operator: Operator) -> Tensor:
    tensor = scope.view(operator)
    weight, alpha = scope.weight(operator, 1, 2), 1.0
    if operator.kind == "Gemm":
        if operator.integer("transA", 0):
            raise operator.fail("transA is not supported")
        alpha = operator.real("alpha", 1.0)
        weight = (weight if operator.integer("transB", 0) else weight.T) * alpha
    else:
        weight = weight.T
    o, features = weight.shape
    if features != tensor.features or tensor.rank != 2:
        raise operator.fail(f"weight for {features} features does not fit input {tensor.shape}")
    bias = np.zeros(o)
    if operator.kind == "Gemm" and len(operator.inputs) > 2:
        constant = scope.constant(operator, 2)
        if constant is None or constant.size not in (1, o) or constant.shape[-1:] != (constant.size,):
            raise operator.fail(f"bias must have {o} elements")
        bias = bias + constant.reshape(-1) * operator.real("beta", 1.0)
    (value,) = (result := scope.builder.dense(operator.fail, operator.name, tensor, weight, bias)).parts
    edges = tuple(replace(e, way=e.way.times(alpha)) for e in value.edges)
    return replace(result, parts=(replace(value, edges=edges),))


def pool(scope: Scope, operator: Operator) -> Tensor:
    """Averages and maxima over windows."""
    tensor = scope.image(operator)
    lengths = tensor.shape[1:]
    windows = whole = _windows(operator, operator.integers("kernel_shape", (0, 0)), lengths)
    if operator.integer("ceil_mode", 0):
        windows = _ceiling(whole[0], lengths[0]), _ceiling(whole[1], lengths[1])
    if operator.kind == "MaxPool":
        parts = [scope.builder.maximum(operator.fail, operator.name, p, windows) for p in tensor.parts]
    else:
        padded = bool(operator.integer("count_include_pad", 0))
        rows, columns = (  # what ceil_mode adds behind the padding never counts
            _counts(w, n, *((-x.pad_before, n + x.pad_after) if padded else (0, n)))
            for w, x, n in zip(windows, whole, lengths, strict=True)
        )
        if not (rows.all() and columns.all()):
            raise operator.fail("a window lies in the padding alone")
        parts = [
            scope.builder.means(operator.fail, operator.name, p, windows, (rows, columns), padded)
            for p in tensor.parts
        ]
    return replace(tensor, parts=tuple(parts))


def _counts(window: Window, length: int, start: int, end: int) -> Ints:
    """[outputs] how many taps of each window are at start .. end - 1 of an axis of `length`."""
    k, p = np.arange(window.kernel)[:, None], np.arange(window.outputs(length))[None, :]
    at = window.stride * p + window.dilation * k - window.pad_before
    return np.asarray(((start <= at) & (at < end)).sum(axis=0))


def reduce(scope: Scope, operator: Operator) -> Tensor:
    """Sums, averages and maxima over rows, columns or both; of [1, C, H W] over its last axis."""
    tensor = scope.value(operator)
    whole = operator.kind.startswith("Global")
    axes = [2, 3] if whole else scope.axes(operator, tensor.rank)
    allowed = {4: ([2], [3], [2, 3]), 3: ([2],)}.get(tensor.rank, ())
    if axes not in allowed:
        raise operator.fail("only a reduction over rows, columns or both is supported")
    over = axes if tensor.rank == 4 else [2, 3]
    windows = Window(tensor.shape[1] if 2 in over else 1), Window(tensor.shape[2] if 3 in over else 1)
    rule = scope.builder.maximum if operator.kind in ("GlobalMaxPool", "ReduceMax") else scope.builder.average
    parts = tuple(rule(operator.fail, operator.name, part, windows) for part in tensor.parts)
    rank = tensor.rank if whole or operator.integer("keepdims", 1) else tensor.rank - len(axes)
    reduced = replace(tensor, parts=parts, rank=rank)
    count = float(windows[0].kernel * windows[1].kernel)
    return scope.builder.scaled(reduced, count, 0.0) if operator.kind == "ReduceSum" else reduced


def pad(scope: Scope, operator: Operator) -> Tensor:
    tensor = scope.image(operator)
    fill = scope.constant(operator, 2)
    if operator.text("mode", "constant") != "constant" or (fill is not None and fill.any()):
        raise operator.fail("only padding with zeros is supported")
    given = scope.weight(operator, 1, 1).tolist()
    axes = scope.weight(operator, 3, 1).tolist() if len(operator.inputs) > 3 and operator.inputs[3] else [0, 1, 2, 3]
    if len(given) != 2 * len(axes) or not all(-(1 << 16) <= n <= 1 << 16 for n in given):
        raise operator.fail("pads must be -65536 .. 65536, two per axis")
    before, after = ({int(a) % 4: int(n) for a, n in zip(axes, half, strict=True)} for half in
                     (given[: len(axes)], given[len(axes) :]))
    sides = [(before.get(axis, 0), after.get(axis, 0)) for axis in range(4)]
    if any(sides[0]) or min(sides[1]) < 0:
        raise operator.fail("only rows and columns can be padded, and zeros put before and after the channels")
    if any(sides[1]):
        tensor = scope.builder.widen(tensor, *sides[1], operator.name)
    kept = [range(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(tensor.shape[1:], sides[2:], strict=True)]
    if [*map(len, kept)] != [*tensor.shape[1:]]:  # negative pads crop
        tensor = crop(scope, operator, tensor, kept[0], kept[1])
    (top, bottom), (left, right) = ((max(a, 0), max(b, 0)) for a, b in sides[2:])
    if not (top or bottom or left or right):
        return tensor
    pads = top, left, bottom, right
    return replace(tensor, parts=tuple(scope.builder.pad(operator.fail, operator.name, p, pads) for p in tensor.parts))


def crop(scope: Scope, operator: Operator, tensor: Tensor, rows: range, columns: range) -> Tensor:
    """Some rows and columns, at any positive step."""
    if not (len(rows) and len(columns)) or min(rows.step, columns.step) < 1:
        raise operator.fail("rows and columns can be left out, not turned around, and some must stay")
    return replace(tensor, parts=tuple(scope.builder.crop(p, rows, columns, operator.name) for p in tensor.parts))


def normalize(scope: Scope, operator: Operator) -> Tensor:
    tensor = scope.value(operator)
    if operator.integer("training_mode", 0):
        raise operator.fail("export in evaluation mode")
    if tensor.flat and not tensor.single_pixel:
        raise operator.fail("a flattened image cannot be normalized feature by feature")
    gamma, beta, mean, variance = (scope.weight(operator, i, tensor.shape[:1]) for i in (1, 2, 3, 4))
    if (variance < 0).any() or not (variance + operator.real("epsilon", 1e-5) > 0).all():
        raise operator.fail("the variance must be positive")
    scale = gamma / np.sqrt(variance + operator.real("epsilon", 1e-5))
    shift = beta - mean * scale
    # onnxruntime subtracts in float32, which makes another number of what cancels.
    with np.errstate(over="ignore", invalid="ignore"):
        a, b, m = (array.astype(np.float32) for array in (scale, beta, mean))
        single = (b - m * a).astype(np.float64)
        shift = np.where(np.abs(shift - single) > np.abs(shift) / 16, single, shift)
    return scope.builder.scaled(tensor, scale, shift)


def _windows(operator: Operator, kernel: tuple[int, ...], lengths: tuple[int, ...]) -> Windows:
    """Rows and columns of a convolution or a pool from its attributes (pads: top, left, bottom, right)."""
    automatic = operator.text("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise operator.fail("auto_pad is unknown; export with explicit pads")
    if operator.integers("kernel_shape", (kernel[0], kernel[1])) != kernel:
        raise operator.fail("kernel_shape differs from the weight")
    strides, dilations = operator.integers("strides", (1, 1)), operator.integers("dilations", (1, 1))
    pads = operator.integers("pads", (0, 0, 0, 0))
    if automatic == "VALID" and any(pads):
        raise operator.fail("auto_pad VALID contradicts pads")
    if automatic.startswith("SAME") and max(dilations) > 1:  # runtimes differ in whether they count the dilation
        raise operator.fail("auto_pad with dilations; export with explicit pads")
    if min(*kernel, *strides, *dilations) < 1:
        raise operator.fail("kernel, strides and dilations must be positive")
    if max(kernel) > MAX_KERNEL:
        raise operator.fail(f"the kernel is larger than {MAX_KERNEL}")
    rows, columns = (Window(kernel[a], strides[a], pads[a], pads[a + 2], dilations[a]) for a in (0, 1))
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        rows, columns = (_same(w, n, automatic == "SAME_LOWER") for w, n in zip((rows, columns), lengths, strict=True))
    return rows, columns


def _same(window: Window, length: int, lower: bool) -> Window:
    """The window with as much padding as gives length / stride outputs, rounded up."""
    reach = window.dilation * (window.kernel - 1) + 1
    total = max((-(-length // window.stride) - 1) * window.stride + reach - length, 0)
    before = (total + lower) // 2
    return replace(window, pad_before=before, pad_after=total - before)


def _ceiling(window: Window, length: int) -> Window:
    """The window of ceil_mode: one more output where the last one would leave the input, if it starts inside."""
    reach = window.dilation * (window.kernel - 1) + 1
    total = length + window.pad_before + window.pad_after - reach
    outputs = -(-total // window.stride) + 1
    if (outputs - 1) * window.stride >= length + window.pad_before:
        outputs -= 1
    extra = (outputs - 1) * window.stride - total
    return replace(window, pad_after=window.pad_after + max(extra, 0))

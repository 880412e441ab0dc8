"""Convolutions, dense layers, pools, paddings and batch normalization: operators that become weights of edges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ml.onnx_reader import Operator
from ml.real_network import Tensor, Windows
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
    weight = scope.weight(operator, 1, 2)
    if operator.kind == "Gemm":
        if operator.integer("transA", 0):
            raise operator.fail("transA is not supported")
        weight = (weight if operator.integer("transB", 0) else weight.T) * operator.real("alpha", 1.0)
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
    return scope.builder.dense(operator.fail, operator.name, tensor, weight, bias)


def pool(scope: Scope, operator: Operator) -> Tensor:
    """Averages and maxima over windows, or over the whole image."""
    tensor = scope.image(operator)
    h, w = tensor.shape[1:]
    largest = operator.kind in ("MaxPool", "GlobalMaxPool", "ReduceMax")
    if operator.kind in ("AveragePool", "MaxPool"):
        if operator.integer("ceil_mode", 0) and not largest:
            raise operator.fail("ceil_mode is not supported")
        windows = _windows(operator, operator.integers("kernel_shape", (0, 0)), (h, w))
        if operator.integer("ceil_mode", 0):
            windows = _ceiling(windows[0], h), _ceiling(windows[1], w)
        padded = any(x.pad_before or x.pad_after for x in windows)
        if not largest and padded and operator.integer("count_include_pad", 0) == 0:
            raise operator.fail("padded average pooling needs count_include_pad = 1")
    else:
        if operator.kind.startswith("Reduce") and scope.axes(operator, 4) != [2, 3]:
            raise operator.fail("only a reduction over both spatial axes is supported")
        windows = (Window(h), Window(w))
    rule = scope.builder.maximum if largest else scope.builder.average
    parts = tuple(rule(operator.fail, operator.name, part, windows) for part in tensor.parts)
    return replace(tensor, parts=parts, rank=4 if operator.integer("keepdims", 1) else 2)


def pad(scope: Scope, operator: Operator) -> Tensor:
    tensor = scope.image(operator)
    fill = scope.constant(operator, 2)
    if operator.text("mode", "constant") != "constant" or (fill is not None and fill.any()):
        raise operator.fail("only padding with zeros is supported")
    pads = scope.weight(operator, 1, 1).tolist()
    axes = scope.weight(operator, 3, 1).tolist() if len(operator.inputs) > 3 and operator.inputs[3] else [0, 1, 2, 3]
    if len(pads) != 2 * len(axes) or not all(0 <= n <= 1 << 16 for n in pads):
        raise operator.fail("pads must be 0 .. 65536, two per axis")
    before, after = ({int(a) % 4: int(n) for a, n in zip(axes, half, strict=True)} for half in
                     (pads[: len(axes)], pads[len(axes) :]))
    if any(side.get(axis, 0) for side in (before, after) for axis in (0, 1)):
        raise operator.fail("only rows and columns can be padded")
    sides = before.get(2, 0), before.get(3, 0), after.get(2, 0), after.get(3, 0)
    parts = tuple(scope.builder.pad(operator.fail, operator.name, p, sides) for p in tensor.parts)
    return replace(tensor, parts=parts)


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
    return scope.builder.scaled(tensor, scale, beta - mean * scale)


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

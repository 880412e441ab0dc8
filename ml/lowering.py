"""ONNX operators -> the same network in real numbers, as the nodes and edges of `protocol.network`.

Every tensor of the graph that depends on the image has a trace: the scalar function (`expressions`) by which it comes
from a root tensor, one that a convolution, a sum or another linear map made (`builder`).  A curved tensor becomes a
node when something other than another scalar function reads it, so that a chain of such functions costs one table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ml.builder import Builder
from ml.expressions import MAX_SIZE, Expression, X, gelu
from ml.folding import fold
from ml.onnx_reader import ADVICE, Graph, Operator
from ml.real_network import Floats, RealNetwork, Tensor, Windows
from protocol.errors import ParameterError
from protocol.network import Window

MAX_KERNEL = 1024


def lower(graph: Graph, preprocess: tuple[tuple[float, float], ...] = ()) -> RealNetwork:
    """The real network of a graph.  preprocess: (scale, shift) per channel applied to pixels before the graph.

    Raises ParameterError, naming the operator, for what cannot be expressed.
    """
    return _Lowering(graph, preprocess).run()


@dataclass(frozen=True)
class _Trace:
    """A tensor as a scalar function of the root tensor of that name."""

    root: str
    expression: Expression


class _Lowering:
    """One pass over the operators; what is known of each tensor, by its name."""

    def __init__(self, graph: Graph, preprocess: tuple[tuple[float, float], ...]) -> None:
        self.graph = graph
        self.builder = Builder(graph.shape, preprocess)
        self.constants: dict[str, npt.NDArray[Any]] = dict(graph.constants)
        self.tensors: dict[str, Tensor] = {graph.input: self.builder.image}
        self.traces: dict[str, _Trace] = {graph.input: _Trace(graph.input, X)}
        self.curves: dict[_Trace, Tensor] = {}
        self.names: dict[str, str] = {}  # of the operator that makes a tensor

    def run(self) -> RealNetwork:
        operators = self.graph.operators
        for position, operator in enumerate(operators):
            if operator.kind in ("Softmax", "LogSoftmax") and position < len(operators) - 1:
                raise operator.fail("only a trailing softmax is accepted (it does not change the class)")
            self.names[operator.output] = operator.name
            if all(name in self.constants for name in operator.inputs if name):
                operands = [self.constants.get(name) for name in operator.inputs]
                self.constants[operator.output] = fold(operator, operands)
                continue
            if operator.kind not in RULES:
                raise operator.fail(ADVICE.get(operator.kind, "only constants are supported"))
            result = RULES[operator.kind](self, operator)
            if isinstance(result, Tensor):
                self.tensors[operator.output] = result
                self.traces[operator.output] = _Trace(operator.output, X)
            else:
                self.traces[operator.output] = result
        if self.graph.output not in self.traces:
            raise ParameterError("ONNX model: the output does not depend on the image")
        last = self.tensor(self.graph.output)
        if not operators or last.shape != (self.graph.classes, 1, 1):
            raise ParameterError(f"ONNX model: the output must be [1, {self.graph.classes}] logits, got {last.shape}")
        return self.builder.network(last, operators[-1].name)

    # -- tensors --------------------------------------------------------------------------------------------------

    def tensor(self, name: str) -> Tensor:
        """The linear value of a tensor; a curved one becomes nodes."""
        if name not in self.tensors:
            trace = self.traces[name]
            curve, a, b = trace.expression.split()
            root = self.tensors[trace.root]
            if curve != X:
                key = replace(trace, expression=curve)
                if key not in self.curves:
                    function, c, d = curve.rebased()
                    inner = self.builder.scaled(root, c, d)
                    nodes = tuple(self.builder.node(p, function, self.names[name]) for p in inner.parts)
                    self.curves[key] = replace(root, parts=nodes)
                root = self.curves[key]
            self.tensors[name] = self.builder.scaled(root, a, b)
        return self.tensors[name]

    def value(self, operator: Operator, index: int = 0) -> Tensor:
        self.trace(operator, index)
        return self.tensor(operator.inputs[index])

    def image(self, operator: Operator) -> Tensor:
        tensor = self.value(operator)
        if tensor.flat:
            raise operator.fail("expected an image [1, C, H, W], got a flattened tensor")
        return tensor

    def trace(self, operator: Operator, index: int = 0) -> _Trace:
        name = operator.inputs[index] if index < len(operator.inputs) else ""
        if name not in self.traces:
            raise operator.fail(f"input {index} must depend on the image")
        return self.traces[name]

    def constant(self, operator: Operator, index: int) -> Floats | None:
        """A constant operand, None if omitted."""
        name = operator.inputs[index] if index < len(operator.inputs) else ""
        if not name:
            return None
        if name not in self.constants:
            raise operator.fail(f"input {index} must be a constant")
        return self.constants[name]

    def weight(self, operator: Operator, index: int, shape: tuple[int, ...] | int) -> Floats:
        """A required constant of a given shape, or of a given rank."""
        array = self.constant(operator, index)
        if array is None or (array.ndim != shape if isinstance(shape, int) else array.shape != shape):
            expected = f"rank {shape}" if isinstance(shape, int) else f"shape {shape}"
            raise operator.fail(f"input {index} must be a constant of {expected}")
        return array.astype(np.float64)

    def axes(self, operator: Operator, rank: int) -> list[int] | None:
        """The attribute or second input `axes`, counted from the front; None if omitted."""
        given = operator.attributes.get("axes", self.constant(operator, 1))
        return None if given is None else sorted(int(a) % rank for a in np.asarray(given).reshape(-1)[:8].tolist())

    # -- linear operators -----------------------------------------------------------------------------------------

    def conv(self, operator: Operator) -> Tensor:
        tensor = self.image(operator)
        weight = self.weight(operator, 1, 4)
        given = len(operator.inputs) > 2 and operator.inputs[2]
        bias = self.weight(operator, 2, weight.shape[:1]) if given else np.zeros(len(weight))
        windows = _windows(operator, (weight.shape[2], weight.shape[3]))
        groups = operator.integer("group", 1)
        return self.builder.convolve(operator.fail, operator.name, tensor, weight, bias, windows, groups)

    def dense(self, operator: Operator) -> Tensor:
        tensor = self.value(operator)
        weight = self.weight(operator, 1, 2)
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
            constant = self.constant(operator, 2)
            if constant is None or constant.size not in (1, o) or constant.shape[-1:] != (constant.size,):
                raise operator.fail(f"bias must have {o} elements")
            bias = bias + constant.reshape(-1) * operator.real("beta", 1.0)
        return self.builder.dense(operator.fail, operator.name, tensor, weight, bias)

    def pool(self, operator: Operator) -> Tensor:
        """Averages and maxima over windows, or over the whole image."""
        tensor = self.image(operator)
        h, w = tensor.shape[1:]
        largest = operator.kind in ("MaxPool", "GlobalMaxPool", "ReduceMax")
        if operator.kind in ("AveragePool", "MaxPool"):
            if operator.integer("ceil_mode", 0) and not largest:
                raise operator.fail("ceil_mode is not supported")
            windows = _windows(operator, operator.integers("kernel_shape", (0, 0)))
            if operator.integer("ceil_mode", 0):
                windows = _ceiling(windows[0], h), _ceiling(windows[1], w)
            padded = any(x.pad_before or x.pad_after for x in windows)
            if not largest and padded and operator.integer("count_include_pad", 0) == 0:
                raise operator.fail("padded average pooling needs count_include_pad = 1")
        else:
            if operator.kind.startswith("Reduce") and self.axes(operator, 4) != [2, 3]:
                raise operator.fail("only a reduction over both spatial axes is supported")
            windows = (Window(h), Window(w))
        rule = self.builder.maximum if largest else self.builder.average
        parts = tuple(rule(operator.fail, operator.name, part, windows) for part in tensor.parts)
        return Tensor(parts, rank=4 if operator.integer("keepdims", 1) else 2)

    def pad(self, operator: Operator) -> Tensor:
        tensor = self.image(operator)
        fill = self.constant(operator, 2)
        if operator.attributes.get("mode", "constant") != "constant" or (fill is not None and fill.any()):
            raise operator.fail("only padding with zeros is supported")
        pads = self.weight(operator, 1, 1).tolist()
        axes = self.weight(operator, 3, 1).tolist() if len(operator.inputs) > 3 and operator.inputs[3] else [0, 1, 2, 3]
        if len(pads) != 2 * len(axes) or not all(0 <= n <= 1 << 16 for n in pads):
            raise operator.fail("pads must be 0 .. 65536, two per axis")
        before, after = ({int(a) % 4: int(n) for a, n in zip(axes, half, strict=True)} for half in
                         (pads[: len(axes)], pads[len(axes) :]))
        if any(side.get(axis, 0) for side in (before, after) for axis in (0, 1)):
            raise operator.fail("only rows and columns can be padded")
        sides = before.get(2, 0), before.get(3, 0), after.get(2, 0), after.get(3, 0)
        return Tensor(tuple(self.builder.pad(operator.fail, operator.name, p, sides) for p in tensor.parts))

    def normalize(self, operator: Operator) -> Tensor:
        tensor = self.value(operator)
        if operator.integer("training_mode", 0):
            raise operator.fail("export in evaluation mode")
        if tensor.flat and not tensor.single_pixel:
            raise operator.fail("a flattened image cannot be normalized feature by feature")
        gamma, beta, mean, variance = (self.weight(operator, i, tensor.shape[:1]) for i in (1, 2, 3, 4))
        if (variance < 0).any() or not (variance + operator.real("epsilon", 1e-5) > 0).all():
            raise operator.fail("the variance must be positive")
        scale = gamma / np.sqrt(variance + operator.real("epsilon", 1e-5))
        return self.builder.scaled(tensor, scale, beta - mean * scale)

    def concatenate(self, operator: Operator) -> Tensor:
        tensors = [self.value(operator, i) for i in range(len(operator.inputs))]
        flat = tensors[0].flat
        if operator.integer("axis", 0) % tensors[0].rank != 1 or len({t.rank for t in tensors}) > 1 or (
            not flat and len({t.shape[1:] for t in tensors}) > 1
        ):
            raise operator.fail("only channels of images of one size, or flattened tensors, can be concatenated")
        return Tensor(tuple(p for t in tensors for p in t.parts), tensors[0].rank)

    # -- elementwise operators ------------------------------------------------------------------------------------

    def arithmetic(self, operator: Operator) -> Tensor | _Trace:
        """Add, Sub, Mul, Div of a tensor and a constant, and Add, Sub, Mul of two tensors."""
        kind = operator.kind
        if len(operator.inputs) != 2:
            raise operator.fail("two operands are expected")
        traced = [name in self.traces for name in operator.inputs]
        if all(traced):
            return self.combine(operator)
        if not any(traced):
            raise operator.fail("one operand must depend on the image")
        index = traced.index(True)
        constant = self.constant(operator, 1 - index)
        if constant is None:
            raise operator.fail("two operands are expected")
        if kind == "Div" and (index == 1 or not constant.all()):
            raise operator.fail("only a division by a constant other than zero is supported")
        one = constant.size == 1 and constant.ndim <= 4
        operand = constant.astype(np.float64).reshape(-1) if one else self.per_channel(operator, constant, index)
        scale, shift = {
            "Add": (np.ones_like(operand), operand),
            "Sub": (np.ones_like(operand), -operand) if index == 0 else (-np.ones_like(operand), operand),
            "Mul": (operand, np.zeros_like(operand)),
            "Div": (1.0 / operand if kind == "Div" else operand, np.zeros_like(operand)),
        }[kind]
        if not one:
            return self.builder.scaled(self.value(operator, index), scale, shift)
        trace = self.trace(operator, index)
        return replace(trace, expression=trace.expression.affine(float(scale[0]), float(shift[0])))

    def per_channel(self, operator: Operator, constant: Floats, index: int) -> Floats:
        """A constant operand as one number per channel, by the broadcasting of ONNX."""
        tensor = self.value(operator, index)
        c = tensor.shape[0]
        if constant.shape in ((c, 1, 1), (1, c, 1, 1)) and not (tensor.flat and c > 1):
            return constant.astype(np.float64).reshape(c)
        if constant.shape in ((c,), (1, c)) and tensor.flat and tensor.single_pixel:
            return constant.astype(np.float64).reshape(c)
        raise operator.fail(f"a constant must be one number, or one per channel ({c}, 1, 1)")

    def combine(self, operator: Operator) -> Tensor | _Trace:
        """The sum, difference or product of two tensors; of one root, as another function of it."""
        a, b = self.trace(operator, 0), self.trace(operator, 1)
        kind = operator.kind
        if kind == "Div":
            raise operator.fail("only a division by a constant other than zero is supported")
        if a.root == b.root and a.expression.size + b.expression.size < MAX_SIZE:
            other = b.expression.affine(-1.0, 0.0) if kind == "Sub" else b.expression
            (e, scale, shift), (f, factor, offset) = a.expression.split(), other.split()
            if kind == "Mul":
                return replace(a, expression=a.expression.mul(other))
            if e == f:
                return replace(a, expression=e.affine(scale + factor, shift + offset))
            return replace(a, expression=a.expression.add(other))
        left, right = self.value(operator, 0), self.value(operator, 1)
        if left.rank != right.rank:
            raise operator.fail("one operand is flattened, the other is not")
        if kind == "Mul":
            if left.shape[0] == right.shape[0] and left.single_pixel and not right.single_pixel:
                left, right = right, left
            if left.shape != right.shape and right.shape != (left.shape[0], 1, 1):
                raise operator.fail(f"factors of shapes {left.shape} and {right.shape} are not supported")
            return self.builder.product(left, right, operator.name)
        if left.shape != right.shape or left.features != right.features:
            raise operator.fail("only sums and differences of two activations of one shape are supported")
        if kind == "Sub":
            right = self.builder.scaled(right, -1.0, 0.0)
        return self.builder.add(left, right, operator.name)

    def prelu(self, operator: Operator) -> Tensor | _Trace:
        """x where x >= 0, else slope x.  With slopes per channel: slope x + (1 - slope) relu(x)."""
        slope = self.constant(operator, 1)
        if slope is None:
            raise operator.fail("a slope is expected")
        if slope.size == 1:
            trace = self.trace(operator)
            return replace(trace, expression=Expression("leaky", (trace.expression,), (float(slope.reshape(-1)[0]),)))
        slopes, tensor = self.per_channel(operator, slope, 0), self.value(operator)
        positive = replace(
            tensor, parts=tuple(self.builder.node(p, X.relu(), operator.name) for p in tensor.parts)
        )
        scaled = self.builder.scaled
        return self.builder.add(scaled(tensor, slopes, 0.0), scaled(positive, 1.0 - slopes, 0.0), operator.name)

    def function(self, operator: Operator) -> _Trace:
        """The operators that apply one scalar function to every element."""
        trace = self.trace(operator)
        if trace.expression.size > MAX_SIZE:
            self.tensor(operator.inputs[0])
            trace = _Trace(operator.inputs[0], X)
        x = trace.expression
        match operator.kind:
            case "Relu":
                y = x.relu()
            case "LeakyRelu":
                y = Expression("leaky", (x,), (operator.real("alpha", 0.01),))
            case "Clip":
                y = x.clip(self.bound(operator, 1, -np.inf), self.bound(operator, 2, np.inf))
                if y.kind == "clip" and y.parameters[0] > y.parameters[1]:
                    raise operator.fail("the bounds are reversed")
            case "HardSigmoid":
                y = x.affine(operator.real("alpha", 0.2), operator.real("beta", 0.5)).clip(0.0, 1.0)
            case "HardSwish":
                y = x.mul(x.affine(1 / 6, 0.5).clip(0.0, 1.0))
            case "Swish":
                y = x.mul(Expression("sigmoid", (x.affine(operator.real("alpha", 1.0), 0.0),)))
            case "Gelu":
                y = gelu(x, operator.attributes.get("approximate", "none") == "tanh")
            case "Elu":
                below = Expression("exp", (x.clip(-np.inf, 0.0),)).affine(1.0, -1.0)
                y = x.relu().add(below.affine(operator.real("alpha", 1.0), 0.0))
            case "Neg":
                y = x.affine(-1.0, 0.0)
            case "Pow":
                power = self.constant(operator, 1)
                if power is None or power.size != 1 or power.reshape(-1)[0] not in (2, 3):
                    raise operator.fail("only the constant powers 2 and 3 are supported")
                y = x.mul(x) if power.reshape(-1)[0] == 2 else x.mul(x).mul(x)
            case _:
                y = Expression(operator.kind.lower(), (x,))
        return replace(trace, expression=y)

    def bound(self, operator: Operator, index: int, default: float) -> float:
        constant = self.constant(operator, index)
        if constant is None:
            return default
        if constant.size != 1:
            raise operator.fail("the bounds must be numbers")
        return float(constant.reshape(-1)[0])

    # -- operators that change the view only ----------------------------------------------------------------------

    def reshape(self, operator: Operator) -> Tensor:
        """Flatten, Reshape, Squeeze, Unsqueeze between [1, C, H, W] and [1, C H W]."""
        tensor = self.value(operator)
        features, now = tensor.features, tensor.dimensions
        if operator.kind == "Flatten":
            if operator.integer("axis", 1) % len(now) != 1:
                raise operator.fail("only axis 1 is supported")
            shape = [1, features]
        elif operator.kind == "Reshape":
            given = self.constant(operator, 1)
            shape = [] if given is None else [int(n) for n in given.reshape(-1)[:8].tolist()]
            shape = [now[i] if n == 0 and i < len(now) else n for i, n in enumerate(shape)]
            rest = prod(n for n in shape if n != -1)
            shape = [features // rest if n == -1 and rest > 0 else n for n in shape]
        elif operator.kind == "Squeeze":
            axes = self.axes(operator, len(now))
            shape = [n for i, n in enumerate(now) if n != 1 or (axes is not None and i not in axes)]
        else:
            axes = self.axes(operator, len(now) + len(self.axes(operator, 8) or [])) or []
            shape = [*now]
            for axis in axes:
                shape.insert(axis, 1)
        if shape == [1, *tensor.shape] and (tensor.rank == 4 or tensor.single_pixel):
            return replace(tensor, rank=4)
        if shape == [1, features] or (shape == [1, features, 1] and tensor.single_pixel):
            return replace(tensor, rank=len(shape))
        raise operator.fail(f"only views of {now} as [1, {features}], and back of single pixels, are supported")

    def unchanged(self, operator: Operator) -> _Trace:
        return self.trace(operator)


_Rule = Callable[[_Lowering, Operator], Tensor | _Trace]
RULES: Mapping[str, _Rule] = {
    "Conv": _Lowering.conv, "Gemm": _Lowering.dense, "MatMul": _Lowering.dense,
    "AveragePool": _Lowering.pool, "GlobalAveragePool": _Lowering.pool, "ReduceMean": _Lowering.pool,
    "MaxPool": _Lowering.pool, "GlobalMaxPool": _Lowering.pool, "ReduceMax": _Lowering.pool,
    "BatchNormalization": _Lowering.normalize, "Pad": _Lowering.pad, "Concat": _Lowering.concatenate,
    "Add": _Lowering.arithmetic, "Sub": _Lowering.arithmetic, "Mul": _Lowering.arithmetic, "Div": _Lowering.arithmetic,
    "Relu": _Lowering.function, "LeakyRelu": _Lowering.function, "PRelu": _Lowering.prelu, "Clip": _Lowering.function,
    "Sigmoid": _Lowering.function, "Tanh": _Lowering.function, "Erf": _Lowering.function,
    "HardSigmoid": _Lowering.function, "HardSwish": _Lowering.function, "Swish": _Lowering.function,
    "Gelu": _Lowering.function, "Elu": _Lowering.function, "Neg": _Lowering.function, "Pow": _Lowering.function,
    "Flatten": _Lowering.reshape, "Reshape": _Lowering.reshape, "Squeeze": _Lowering.reshape,
    "Unsqueeze": _Lowering.reshape, "Identity": _Lowering.unchanged, "Dropout": _Lowering.unchanged,
    "Softmax": _Lowering.unchanged, "LogSoftmax": _Lowering.unchanged,
}  # fmt: skip


def _windows(operator: Operator, kernel: tuple[int, ...]) -> Windows:
    """Rows and columns of a convolution or a pool from its attributes (pads: top, left, bottom, right)."""
    if operator.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise operator.fail("auto_pad is not supported; export with explicit pads")
    if operator.integers("kernel_shape", (kernel[0], kernel[1])) != kernel:
        raise operator.fail("kernel_shape differs from the weight")
    strides, dilations = operator.integers("strides", (1, 1)), operator.integers("dilations", (1, 1))
    pads = operator.integers("pads", (0, 0, 0, 0))
    if min(*kernel, *strides, *dilations) < 1:
        raise operator.fail("kernel, strides and dilations must be positive")
    if max(kernel) > MAX_KERNEL:
        raise operator.fail(f"the kernel is larger than {MAX_KERNEL}")
    rows, columns = (Window(kernel[a], strides[a], pads[a], pads[a + 2], dilations[a]) for a in (0, 1))
    return rows, columns


def _ceiling(window: Window, length: int) -> Window:
    """The window of ceil_mode: one more output where the last one would leave the input, if it starts inside."""
    reach = window.dilation * (window.kernel - 1) + 1
    total = length + window.pad_before + window.pad_after - reach
    outputs = -(-total // window.stride) + 1
    if (outputs - 1) * window.stride >= length + window.pad_before:
        outputs -= 1
    extra = (outputs - 1) * window.stride - total
    return replace(window, pad_after=window.pad_after + max(extra, 0))

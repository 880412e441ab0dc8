"""ONNX operators -> the same network in real numbers, as the nodes and edges of `protocol.network`.

A value between operators is a linear map of committed tensors (the input, or earlier requant nodes): a list of edges
and a bias.  Scales, shifts, batch normalization, pools and sums compose into it; an activation function, or a linear
operator that cannot be composed, ends it and makes a node.  Only elementwise IEEE double operations in a fixed order
are used, so that every machine finds the same bits (no BLAS, no numpy reduction of floats).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ml.onnx_reader import Graph, Operator
from ml.real_network import Floats, RealEdge, RealNetwork, RealNode, Value, Windows, diagonal
from protocol.errors import ParameterError
from protocol.network import MAX_NODES, Window

MAX_ACTIVATIONS = 1 << 24  # of one image, over all nodes
MAX_TAPS = 1 << 28  # elements that one edge gathers for one image
MAX_WEIGHTS = 1 << 27  # over all edges; one tensor of the file may be used many times
MAX_WORK = 1 << 32  # multiplications for one image
MAX_EDGES = 64  # of one node: sums of a value with itself must not grow without end
MAX_KERNEL = 1024
MAX_MAGNITUDE = 2.0**120  # of a weight or a bias after composition; an exact copy may be rescaled by 2^100

_PIXEL = -1  # source of a value that is still an affine of raw pixels; 0 is the input after its table



def lower(graph: Graph, preprocess: tuple[tuple[float, float], ...] = ()) -> RealNetwork:
    """The real network of a graph.  preprocess: (scale, shift) per channel applied to pixels before the graph.

    Raises ParameterError, naming the operator, for what cannot be expressed.
    """
    return _Lowering(graph, preprocess).run()


class _Lowering:
    """One pass over the operators; `values` and `constants` by tensor name."""

    def __init__(self, graph: Graph, preprocess: tuple[tuple[float, float], ...]) -> None:
        self.graph = graph
        self.constants: dict[str, npt.NDArray[Any]] = dict(graph.constants)
        channels = graph.shape[0]
        if len(preprocess) not in (0, channels):
            raise ParameterError(f"preprocessing is given for {len(preprocess)} channels, the model has {channels}")
        pairs = preprocess or ((1.0, 0.0),) * channels
        self.input_affine: tuple[Floats, Floats] | None = None
        pixel = Value(
            (diagonal(_PIXEL, np.array([p[0] for p in pairs])),), np.array([p[1] for p in pairs]), graph.shape
        )
        self.values: dict[str, Value] = {graph.input: pixel}
        self.nodes: list[RealNode] = []
        self.activations = self.weights = self.work = 0

    def run(self) -> RealNetwork:
        operators = self.graph.operators
        for position, operator in enumerate(operators):
            if operator.kind in ("Softmax", "LogSoftmax") and position < len(operators) - 1:
                raise operator.fail("only a trailing softmax is accepted (it does not change the class)")
            value = _RULES[operator.kind](self, operator)
            if value is not None:
                self.values[operator.output] = value
        if self.graph.output not in self.values:
            raise ParameterError("ONNX model: the output does not depend on the image")
        last = self.values[self.graph.output]
        if not operators or last.shape != (self.graph.classes, 1, 1):
            raise ParameterError(f"ONNX model: the output must be [1, {self.graph.classes}] logits, got {last.shape}")
        last = self.settled(last)
        self.node(last, "output", operators[-1].name)
        scale, shift = self.input_affine or (np.ones(self.graph.shape[0]), np.zeros(self.graph.shape[0]))
        return RealNetwork(self.graph.shape, scale, shift, tuple(self.nodes))

    # -- pieces ---------------------------------------------------------------------------------------------------

    def value(self, operator: Operator, index: int = 0) -> Value:
        name = operator.inputs[index] if index < len(operator.inputs) else ""
        if name not in self.values:
            raise operator.fail(f"input {index} must depend on the image")
        return self.values[name]

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

    def node(self, value: Value, activation: str, name: str) -> Value:
        """End a value with a node; returns the plain value of its output."""
        largest = max(max(float(np.abs(e.weight).max(initial=0)) for e in value.edges), float(np.abs(value.bias).max()))
        if not largest <= MAX_MAGNITUDE:
            raise ParameterError(f"node {len(self.nodes) + 1} {name!r}: weight or bias of {largest:.3g}, over 2^120")
        self.activations += prod(value.shape)
        if self.activations > MAX_ACTIVATIONS or len(self.nodes) >= MAX_NODES:
            raise ParameterError(f"node {len(self.nodes) + 1} {name!r}: the network has too many activations or nodes")
        self.nodes.append(RealNode(value.edges, value.bias, value.shape, activation, name))
        channels = value.shape[0]
        return Value((diagonal(len(self.nodes), np.ones(channels)),), np.zeros(channels), value.shape, value.flat)

    def settled(self, value: Value) -> Value:
        """The same value with its affine of raw pixels moved into the input table."""
        edge = value.plain
        if edge is None or edge.source != _PIXEL:
            return value
        scale, shift = edge.weight[:, 0, 0, 0], value.bias
        self.input_affine = self.input_affine or (scale, shift)
        if not (np.array_equal(scale, self.input_affine[0]) and np.array_equal(shift, self.input_affine[1])):
            raise ParameterError("ONNX model: the image enters with two different normalizations")
        return replace(value, edges=(diagonal(0, np.ones(len(scale))),), bias=np.zeros(len(shift)))

    def plain(self, value: Value, name: str, unshifted: bool) -> tuple[RealEdge, Value]:
        """A value that is one scaled source, optionally without a shift: as it is, or ended by an identity node."""
        value = self.settled(value)
        edge = value.plain
        if edge is None or (unshifted and value.bias.any()):
            value = self.node(value, "identity", name)
            edge = value.edges[0]
        return edge, value

    def convolve(
        self, operator: Operator, value: Value, weight: Floats, bias: Floats, windows: Windows, groups: int
    ) -> Value:
        """Compose a convolution [O, C // groups, KH, KW] onto a value."""
        rows, columns = windows
        pads = any((rows.pad_before, rows.pad_after, columns.pad_before, columns.pad_after))
        edge, value = self.plain(value, operator.name, unshifted=pads)
        c, h, w = value.shape
        o, cg, kh, kw = weight.shape
        if groups < 1 or cg * groups != c or o % groups or min(kh, kw, o) < 1:
            raise operator.fail(f"weight {weight.shape} does not fit input {value.shape} with {groups} groups")
        shape = (o, rows.outputs(h), columns.outputs(w))
        if min(shape) < 1:
            raise operator.fail(f"the kernel is larger than its input {value.shape}")
        self.weights += weight.size
        self.work += weight.size * prod(shape[1:])
        large = max(shape) > 1 << 16 or prod(shape[1:]) * kh * kw * c > MAX_TAPS
        if large or self.weights > MAX_WEIGHTS or self.work > MAX_WORK:
            raise operator.fail("the network is too large")
        source = (np.arange(o) // (o // groups))[:, None] * cg + np.arange(cg)[None, :]  # [O, cg] channel of the value
        if value.bias.any():
            shifts = weight * value.bias[source][:, :, None, None]
            bias = bias + np.add.accumulate(shifts.reshape(o, -1), axis=1)[:, -1]  # left to right, unlike np.sum
        weight = weight * edge.weight[:, 0, 0, 0][source][:, :, None, None]
        return Value((RealEdge(edge.source, weight, rows, columns, groups, edge.pool),), bias, shape)

    # -- operators ------------------------------------------------------------------------------------------------

    def conv(self, operator: Operator) -> Value:
        value = self.value(operator)
        weight = self.weight(operator, 1, 4)
        bias = self.weight(operator, 2, weight.shape[:1]) if len(operator.inputs) > 2 else np.zeros(len(weight))
        windows = _windows(operator, (weight.shape[2], weight.shape[3]))
        return self.convolve(operator, _image(operator, value), weight, bias, windows, operator.integer("group", 1))

    def dense(self, operator: Operator) -> Value:
        value = self.value(operator)
        weight = self.weight(operator, 1, 2)
        if operator.kind == "Gemm":
            if operator.integer("transA", 0):
                raise operator.fail("transA is not supported")
            weight = (weight if operator.integer("transB", 0) else weight.T) * operator.real("alpha", 1.0)
        else:
            weight = weight.T
        c, h, w = value.shape
        o, features = weight.shape
        if features != c * h * w or (h * w > 1 and not value.flat):
            raise operator.fail(f"weight for {features} features does not fit input {value.shape}")
        bias = np.zeros(o)
        if operator.kind == "Gemm" and len(operator.inputs) > 2:
            constant = self.constant(operator, 2)
            if constant is None or constant.size not in (1, o) or constant.shape[-1:] != (constant.size,):
                raise operator.fail(f"bias must have {o} elements")
            bias = bias + constant.reshape(-1) * operator.real("beta", 1.0)
        kernel = weight.reshape(o, c, h, w)
        return self.convolve(operator, replace(value, flat=False), kernel, bias, (Window(h), Window(w)), 1)

    def average_pool(self, operator: Operator) -> Value:
        value = _image(operator, self.value(operator))
        _, h, w = value.shape
        if operator.kind == "AveragePool":
            if operator.integer("ceil_mode", 0):
                raise operator.fail("ceil_mode is not supported")
            windows = _windows(operator, operator.integers("kernel_shape", (0, 0)))
            if operator.integer("count_include_pad", 0) == 0 and any(x.pad_before or x.pad_after for x in windows):
                raise operator.fail("padded average pooling needs count_include_pad = 1")
        else:
            if operator.kind == "ReduceMean":
                axes = operator.attributes.get("axes", self.constant(operator, 1))
                if axes is None or sorted(a % 4 for a in np.asarray(axes).reshape(-1).tolist()) != [2, 3]:
                    raise operator.fail("only the mean over both spatial axes is supported")
            windows = (Window(h), Window(w))
        return replace(self.pool(operator, value, windows), flat=not operator.integer("keepdims", 1))

    def pool(self, operator: Operator, value: Value, windows: Windows) -> Value:
        pads = any(x.pad_before or x.pad_after for x in windows)
        edge, value = self.plain(value, operator.name, unshifted=pads)
        if edge.pool is not None:
            value = self.node(value, "identity", operator.name)
            edge = value.edges[0]
        c, h, w = value.shape
        shape = (c, windows[0].outputs(h), windows[1].outputs(w))
        sums = c * shape[1] * (windows[0].kernel * w + windows[1].kernel * shape[2])  # rows, then columns
        self.work += 16 * sums  # a sum over memory takes as long as so many multiplications of a matrix product
        if min(shape) < 1 or max(shape) > 1 << 16 or prod(shape) > MAX_ACTIVATIONS or self.work > MAX_WORK:
            raise operator.fail(f"the window does not fit its input {value.shape}, or is too large")
        scale = edge.weight[:, 0, 0, 0] / float(windows[0].kernel * windows[1].kernel)
        return Value((diagonal(edge.source, scale, windows),), value.bias, shape)

    def relu(self, operator: Operator) -> Value:
        value = self.settled(self.value(operator))
        edge = value.plain
        done = edge is not None and edge.source > 0 and edge.pool is None and not value.bias.any()
        if edge is not None and done and self.nodes[edge.source - 1].activation == "relu" and (edge.weight >= 0).all():
            return value
        return self.node(value, "relu", operator.name)

    def normalize(self, operator: Operator) -> Value:
        value = self.value(operator)
        if operator.integer("training_mode", 0):
            raise operator.fail("export in evaluation mode")
        gamma, beta, mean, variance = (self.weight(operator, i, value.shape[:1]) for i in (1, 2, 3, 4))
        if (variance < 0).any() or not (variance + operator.real("epsilon", 1e-5) > 0).all():
            raise operator.fail("the variance must be positive")
        scale = gamma / np.sqrt(variance + operator.real("epsilon", 1e-5))
        return value.affine(scale, beta - mean * scale)

    def arithmetic(self, operator: Operator) -> Value:
        """Add, Sub, Mul, Div of a value by a constant, and Add, Sub of two values."""
        kind = operator.kind
        if len(operator.inputs) != 2:
            raise operator.fail("two operands are expected")
        left, right = (self.values.get(name) for name in operator.inputs)
        if left is not None and right is not None:
            if kind not in ("Add", "Sub") or left.shape != right.shape or left.flat != right.flat:
                raise operator.fail("only sums and differences of two activations of one shape are supported")
            left, right = self.settled(left), self.settled(right)
            if kind == "Sub":
                right = right.affine(np.full(right.shape[0], -1.0), np.zeros(right.shape[0]))
            if len(left.edges) + len(right.edges) > MAX_EDGES:
                raise operator.fail(f"a sum of over {MAX_EDGES} terms")
            return replace(left, edges=left.edges + right.edges, bias=left.bias + right.bias)
        value = left or right
        if value is None:
            raise operator.fail("one operand must depend on the image")
        operand = self.per_channel(operator, 1 if left is not None else 0, value)
        ones, zeros = np.ones(len(operand)), np.zeros(len(operand))
        if kind == "Add":
            return value.affine(ones, operand)
        if kind == "Sub":
            return value.affine(ones, -operand) if left is not None else value.affine(-ones, operand)
        if kind == "Mul":
            return value.affine(operand, zeros)
        if left is None or not operand.all():
            raise operator.fail("only a division by a constant other than zero is supported")
        edges = tuple(replace(e, weight=e.weight / operand[:, None, None, None]) for e in value.edges)
        return replace(value, edges=edges, bias=value.bias / operand)

    def per_channel(self, operator: Operator, index: int, value: Value) -> Floats:
        """A constant operand as one number per channel, by the broadcasting of ONNX."""
        array = self.constant(operator, index)
        c, h, w = value.shape
        if array is not None:
            if array.size == 1 and array.ndim <= 4:
                return np.full(c, float(array.reshape(-1)[0]))
            flat = value.flat or h * w == 1
            if array.shape in ((c, 1, 1), (1, c, 1, 1)) or (flat and h * w == 1 and array.shape in ((c,), (1, c))):
                return array.astype(np.float64).reshape(c)
        raise operator.fail(f"a constant must be one number, or one per channel ({c}, 1, 1)")

    def flatten(self, operator: Operator) -> Value:
        value = self.value(operator)
        if operator.kind == "Flatten":
            if operator.integer("axis", 1) != 1:
                raise operator.fail("only axis 1 is supported")
            return replace(value, flat=True)
        target = self.constant(operator, 1)
        features = prod(value.shape)
        if target is None or target.reshape(-1).tolist() not in ([1, -1], [1, features], [-1, features]):
            raise operator.fail(f"only a reshape to [1, {features}] is supported")
        return replace(value, flat=True)

    def unchanged(self, operator: Operator) -> Value | None:
        if operator.kind == "Identity" and operator.inputs[0] in self.constants:
            self.constants[operator.output] = self.constants[operator.inputs[0]]
            return None
        return self.value(operator)


_RULES: Mapping[str, Callable[[_Lowering, Operator], Value | None]] = {
    "Conv": _Lowering.conv, "Gemm": _Lowering.dense, "MatMul": _Lowering.dense, "Relu": _Lowering.relu,
    "AveragePool": _Lowering.average_pool, "GlobalAveragePool": _Lowering.average_pool,
    "ReduceMean": _Lowering.average_pool, "BatchNormalization": _Lowering.normalize,
    "Add": _Lowering.arithmetic, "Sub": _Lowering.arithmetic, "Mul": _Lowering.arithmetic, "Div": _Lowering.arithmetic,
    "Flatten": _Lowering.flatten, "Reshape": _Lowering.flatten, "Identity": _Lowering.unchanged,
    "Dropout": _Lowering.unchanged, "Softmax": _Lowering.unchanged, "LogSoftmax": _Lowering.unchanged,
}  # fmt: skip


def _image(operator: Operator, value: Value) -> Value:
    if value.flat:
        raise operator.fail("expected an image [1, C, H, W], got a flattened tensor")
    return value


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

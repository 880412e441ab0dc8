"""Operators that work on every element alone: functions become traces, sums and products of tensors values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ml.expressions import MAX_SIZE, Expression, X, elu, gelu
from ml.onnx_reader import Operator
from ml.real_network import Floats, Tensor
from ml.scope import Scope, Trace
from ml.views import broadcast

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875  # the defaults of ONNX


def arithmetic(scope: Scope, operator: Operator) -> Tensor | Trace:
    """Add, Sub, Mul, Div of a tensor and a constant, and Add, Sub, Mul of two tensors."""
    kind = operator.kind
    if len(operator.inputs) != 2:
        raise operator.fail("two operands are expected")
    traced = [name in scope.traces for name in operator.inputs]
    if all(traced):
        return combine(scope, operator)
    if not any(traced):
        raise operator.fail("one operand must depend on the image")
    index = traced.index(True)
    constant = scope.constant(operator, 1 - index)
    if constant is None:
        raise operator.fail("two operands are expected")
    if kind == "Div" and (index == 1 or not constant.all()):
        raise operator.fail("only a division by a constant other than zero is supported")
    one = constant.size == 1 and constant.ndim <= scope.rank(operator, index)
    operand = constant.astype(np.float64).reshape(-1) if one else per_channel(scope, operator, constant, index)
    scale, shift = {
        "Add": (np.ones_like(operand), operand),
        "Sub": (np.ones_like(operand), -operand) if index == 0 else (-np.ones_like(operand), operand),
        "Mul": (operand, np.zeros_like(operand)),
        "Div": (1.0 / operand if kind == "Div" else operand, np.zeros_like(operand)),
    }[kind]
    if not one:
        return scope.builder.scaled(scope.value(operator, index), scale, shift)
    trace = scope.trace(operator, index)
    return replace(trace, expression=trace.expression.affine(float(scale[0]), float(shift[0])))


def per_channel(scope: Scope, operator: Operator, constant: Floats, index: int) -> Floats:
    """A constant operand as one number per channel, by the broadcasting of ONNX."""
    tensor = scope.value(operator, index)
    c = tensor.shape[0]
    if constant.shape in ((c, 1, 1), (1, c, 1, 1)) and not (tensor.flat and c > 1):
        return constant.astype(np.float64).reshape(c)
    if constant.shape in ((c,), (1, c)) and tensor.flat and tensor.single_pixel:
        return constant.astype(np.float64).reshape(c)
    raise operator.fail(f"a constant must be one number, or one per channel ({c}, 1, 1)")


def combine(scope: Scope, operator: Operator) -> Tensor | Trace:
    """The sum, difference or product of two tensors; of one root, as another function of it."""
    a, b = scope.trace(operator, 0), scope.trace(operator, 1)
    kind = operator.kind
    if kind == "Div":
        raise operator.fail("only a division by a constant other than zero is supported")
    if a.root == b.root and a.expression.size + b.expression.size < MAX_SIZE:
        other = b.expression.affine(-1.0, 0.0) if kind == "Sub" else b.expression
        (e, scale, shift, _), (f, factor, offset, _) = a.expression.split(), other.split()
        if kind == "Mul":
            return replace(a, expression=a.expression.mul(other))
        alike = e == f and max(len(x.steps) for x in (a.expression, b.expression)) < 2
        if alike and min(scale * factor, shift * offset) >= 0:  # what cancels is rounded in float32
            return replace(a, expression=e.affine(scale + factor, shift + offset))
        return replace(a, expression=a.expression.add(other))
    expanded = [name for name in operator.inputs if name in scope.pixels]
    if kind == "Mul" and len(expanded) == 1:
        operator = replace(operator, inputs=tuple(scope.pixels.get(name, name) for name in operator.inputs))
    left, right = scope.value(operator, 0), scope.value(operator, 1)
    if left.rank != right.rank:
        raise operator.fail("one operand is flattened, the other is not")
    if kind == "Mul":
        if left.shape[0] == right.shape[0] and left.single_pixel and not right.single_pixel:
            left, right = right, left
        if left.shape != right.shape and right.shape != (left.shape[0], 1, 1):
            raise operator.fail(f"factors of shapes {left.shape} and {right.shape} are not supported")
        return scope.builder.product(left, right, operator.name)
    if left.rank == 4 and left.shape[0] == right.shape[0] and left.single_pixel != right.single_pixel:
        area = (right if left.single_pixel else left).shape[1:]
        left, right = (broadcast(scope, operator, t, area) if t.single_pixel else t for t in (left, right))
    if left.shape != right.shape or left.features != right.features:
        raise operator.fail("only sums and differences of two activations of one shape are supported")
    if kind == "Sub":
        right = scope.builder.scaled(right, -1.0, 0.0)
    return scope.builder.add(left, right, operator.name)


def prelu(scope: Scope, operator: Operator) -> Tensor | Trace:
    """x where x >= 0, else slope x.  With slopes per channel: slope x + (1 - slope) relu(x)."""
    slope = scope.constant(operator, 1)
    if slope is None:
        raise operator.fail("a slope is expected")
    if slope.size == 1:
        trace = short_trace(scope, operator)
        return replace(trace, expression=Expression("leaky", (trace.expression,), (float(slope.reshape(-1)[0]),)))
    slopes, tensor = per_channel(scope, operator, slope, 0), scope.value(operator)
    positive = replace(
        tensor, parts=tuple(scope.builder.node(p, X.relu(), operator.name) for p in tensor.parts)
    )
    scaled = scope.builder.scaled
    return scope.builder.add(scaled(tensor, slopes, 0.0), scaled(positive, 1.0 - slopes, 0.0), operator.name)


def short_trace(scope: Scope, operator: Operator) -> Trace:
    """The first operand's trace; of a chain that is too long, one that begins there."""
    trace = scope.trace(operator)
    if trace.expression.size <= MAX_SIZE:
        return trace
    scope.tensor(operator.inputs[0])
    return Trace(operator.inputs[0], X)


def function(scope: Scope, operator: Operator) -> Trace:
    """The operators that apply one scalar function to every element."""
    trace = short_trace(scope, operator)
    x = trace.expression
    match operator.kind:
        case "Relu":
            y = x.relu()
        case "LeakyRelu":
            y = Expression("leaky", (x,), (operator.real("alpha", 0.01),))
        case "Clip":
            y = x.clip(bound(scope, operator, 1, -np.inf), bound(scope, operator, 2, np.inf))
            if y.kind == "clip" and y.parameters[0] > y.parameters[1]:
                raise operator.fail("the bounds are reversed")
        case "HardSigmoid":
            y = x.affine(operator.real("alpha", 0.2), operator.real("beta", 0.5)).clip(0.0, 1.0)
        case "HardSwish":
            y = x.mul(x.affine(1 / 6, 0.5).clip(0.0, 1.0))
        case "Swish":
            y = x.mul(Expression("sigmoid", (x.affine(operator.real("alpha", 1.0), 0.0),)))
        case "Gelu":
            y = gelu(x, operator.text("approximate", "none") == "tanh")
        case "Elu":
            y = elu(x, operator.real("alpha", 1.0))
        case "Celu":
            alpha = operator.real("alpha", 1.0)
            if not alpha:
                raise operator.fail("alpha must not be 0")
            y = elu(x.affine(1.0 / alpha, 0.0), 1.0).affine(alpha, 0.0)
        case "Selu":
            y = elu(x, operator.real("alpha", SELU_ALPHA)).affine(operator.real("gamma", SELU_GAMMA), 0.0)
        case "Abs":
            y = x.relu().add(x.affine(-1.0, 0.0).relu())
        case "Mish":
            y = x.mul(Expression("tanh", (Expression("softplus", (x,)),)))
        case "Neg":
            y = x.affine(-1.0, 0.0)
        case "Pow":
            power = scope.constant(operator, 1)
            if power is None or power.size != 1 or power.reshape(-1)[0] not in (2, 3):
                raise operator.fail("only the constant powers 2 and 3 are supported")
            y = x.mul(x) if power.reshape(-1)[0] == 2 else x.mul(x).mul(x)
        case _:
            y = Expression(operator.kind.lower(), (x,))
    return replace(trace, expression=y)


def limit(scope: Scope, operator: Operator) -> Trace:
    """Max and Min of one tensor and numbers."""
    traced = [i for i, name in enumerate(operator.inputs) if name in scope.traces]
    if len(traced) != 1:
        raise operator.fail("only one operand may depend on the image; the others must be numbers")
    numbers = [bound(scope, operator, i, 0.0) for i in range(len(operator.inputs)) if i not in traced]
    trace = scope.trace(operator, traced[0])
    if not numbers:
        return trace
    low, high = (max(numbers), np.inf) if operator.kind == "Max" else (-np.inf, min(numbers))
    return replace(trace, expression=trace.expression.clip(low, high))


def bound(scope: Scope, operator: Operator, index: int, default: float) -> float:
    constant = scope.constant(operator, index)
    if constant is None:
        return default
    if constant.size != 1:
        raise operator.fail("the bounds must be numbers")
    return float(constant.reshape(-1)[0])

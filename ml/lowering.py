"""ONNX operators -> the same network in real numbers, as the nodes and edges of `protocol.network`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ml import elementwise, linear, views
from ml.builder import Builder
from ml.folding import fold
from ml.onnx_reader import ADVICE, Graph, Operator
from ml.real_network import RealNetwork, Tensor
from ml.resampling import resizing
from ml.scope import Scope, Trace
from protocol.errors import ParameterError

Rule = Callable[[Scope, Operator], Tensor | Trace]
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Conv",), linear.conv),
    **dict.fromkeys(("Gemm", "MatMul"), linear.dense),
    **dict.fromkeys(("AveragePool", "MaxPool"), linear.pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean", "ReduceSum"), linear.reduce),
    "BatchNormalization": linear.normalize,
    "Pad": linear.pad,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), elementwise.arithmetic),
    **dict.fromkeys(("Relu", "LeakyRelu", "Clip", "Elu", "HardSigmoid", "HardSwish"), elementwise.function),
    **dict.fromkeys(("Sigmoid", "Tanh", "Erf", "Swish", "Gelu", "Neg", "Pow", "Abs"), elementwise.function),
    **dict.fromkeys(("Celu", "Mish", "Selu", "Softplus"), elementwise.function),
    **dict.fromkeys(("Max", "Min"), elementwise.limit),
    "PRelu": elementwise.prelu,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), views.reshape),
    "Transpose": views.transpose,
    "Concat": views.concatenate,
    "Expand": views.expand,
    **dict.fromkeys(("Slice", "Split", "Gather"), views.select),
    **dict.fromkeys(("Identity", "Dropout"), views.unchanged),
    **dict.fromkeys(("Softmax", "LogSoftmax"), views.softmax),
}

TRACED = frozenset(
    kind for kind, rule in RULES.items()
    if rule in (
        elementwise.arithmetic, elementwise.function, elementwise.limit, elementwise.prelu, views.expand,
        views.softmax, views.unchanged,
    )
)  # fmt: skip


def lower(
    graph: Graph,
    preprocess: tuple[tuple[float, float], ...] = (),
    resize: tuple[str, int, int] | None = None,
) -> RealNetwork:
    """The real network of a graph.

    preprocess: (scale, shift) per channel applied to pixels before the graph.  resize: how images of so many rows and
    columns get the size of the graph's input (`resampling`).  Raises ParameterError, naming the operator, for what
    cannot be expressed.
    """
    shape, windows = graph.shape, None
    if resize is not None:
        shape, windows = (shape[0], resize[1], resize[2]), resizing(resize, shape)
    scope = Scope(graph, Builder(shape, preprocess, windows))
    ends = _lifetimes(graph)
    for position, operator in enumerate(graph.operators):
        if operator.kind in ("Softmax", "LogSoftmax") and position < len(graph.operators) - 1:
            raise operator.fail("only a trailing softmax is accepted (it does not change the class)")
        if all(name in scope.constants for name in operator.inputs if name):
            scope.define(operator, fold(operator, [scope.constants.get(name) for name in operator.inputs]))
        elif operator.kind == "Shape":
            scope.define(operator, views.dimensions(scope, operator))
        elif operator.kind in RULES:
            scope.define(operator, RULES[operator.kind](scope, operator))
        else:
            raise operator.fail(ADVICE.get(operator.kind, "only constants are supported"))
        scope.forget(ends.get(position, ()))
    if graph.output not in scope.traces:
        raise ParameterError("ONNX model: the output does not depend on the image")
    last = scope.tensor(graph.output)
    if not graph.operators or last.shape != (graph.classes, 1, 1) or last.rank != 2:
        raise ParameterError(f"ONNX model: the output must be [1, {graph.classes}] logits, got {last.dimensions}")
    return scope.builder.network(last, graph.operators[-1].name)


def _lifetimes(graph: Graph) -> dict[int, list[str]]:
    """By operator: the tensors that nothing reads after it.  A function of a tensor reads it as long as it is read."""
    last = {graph.output: len(graph.operators)}
    for position, operator in reversed([*enumerate(graph.operators)]):
        until = max(position, last.get(operator.output, 0)) if operator.kind in TRACED else position
        for name in operator.inputs:
            last[name] = max(last.get(name, 0), until)
    ends: dict[int, list[str]] = {}
    for name, position in last.items():
        ends.setdefault(position, []).append(name)
    return ends

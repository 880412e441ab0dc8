"""What is known of a graph's tensors while `lowering` walks over its operators, and how operators ask for their inputs.

Every tensor that depends on the image has a trace: the scalar function (`expressions`) by which it comes from a root
tensor, one that a convolution, a sum or another linear map made (`builder`).  A curved tensor becomes a node when
something other than another scalar function reads it, so that a chain of such functions costs one table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml.builder import MAX_ACTIVATIONS, TOO_LARGE, Builder
from ml.expressions import Expression, X
from ml.onnx_reader import Graph, Operator
from ml.real_network import Floats, Tensor

MAX_ELEMENTS = 1 << 28  # of all tensors of a graph: the float reference makes them all


@dataclass(frozen=True)
class Trace:
    """A tensor as a scalar function of the root tensor of that name."""

    root: str
    expression: Expression


class Scope:
    """Constants, tensors and traces by their names."""

    def __init__(self, graph: Graph, builder: Builder) -> None:
        self.builder = builder
        self.constants: dict[str, npt.NDArray[Any]] = dict(graph.constants)
        self.tensors: dict[str, Tensor] = {graph.input: builder.image}
        self.traces: dict[str, Trace] = {graph.input: Trace(graph.input, X)}
        self.curves: dict[Trace, Tensor] = {}
        self.names: dict[str, str] = {}  # of the operator that makes a tensor
        self.pixels: dict[str, str] = {}  # of an expanded tensor: what it was expanded from
        self.sizes = {graph.input: builder.image.features}
        self.elements = 0

    def define(self, operator: Operator, result: Tensor | Trace | npt.NDArray[Any]) -> None:
        """Note what an operator makes: a root tensor, a function of one, or a constant."""
        self.names[operator.output] = operator.name
        size = result.features if isinstance(result, Tensor) else 0
        size = self.sizes[result.root] if isinstance(result, Trace) else size
        self.sizes[operator.output], self.elements = size, self.elements + size
        if size > MAX_ACTIVATIONS or self.elements > MAX_ELEMENTS:
            raise operator.fail(TOO_LARGE)
        if isinstance(result, Tensor):
            self.tensors[operator.output], result = result, Trace(operator.output, X)
        if isinstance(result, Trace):
            self.traces[operator.output] = result
        else:
            self.constants[operator.output] = result

    def forget(self, names: Iterable[str]) -> None:
        """Let go of tensors that nothing reads any more: their weights may be large."""
        for name in names:
            self.tensors.pop(name, None)

    # -- tensors --------------------------------------------------------------------------------------------------

    def tensor(self, name: str) -> Tensor:
        """The linear value of a tensor; a curved one becomes nodes."""
        if name not in self.tensors:
            trace = self.traces[name]
            curve, a, b, end = trace.expression.split()
            root = self.tensors[trace.root]
            if curve != X:
                key = replace(trace, expression=curve)
                if key not in self.curves:
                    function, c, d, start = curve.rebased()
                    inner = self.builder.scaled(self.builder.complete(root), c, d, start)
                    nodes = tuple(self.builder.node(p, function, self.names[name]) for p in inner.parts)
                    self.curves[key] = replace(inner, parts=nodes)
                root = self.curves[key]
            self.tensors[name] = self.builder.scaled(root, a, b, end)
        return self.tensors[name]

    def trace(self, operator: Operator, index: int = 0) -> Trace:
        """How an operand depends on the image."""
        name = operator.inputs[index] if index < len(operator.inputs) else ""
        if name not in self.traces:
            raise operator.fail(f"input {index} must depend on the image")
        return self.traces[name]

    def root(self, name: str) -> Tensor:
        """What a tensor is a function of; it has the same shape and rank."""
        return self.tensors[self.traces[name].root]

    def rank(self, operator: Operator, index: int = 0) -> int:
        """Of an operand."""
        self.trace(operator, index)
        return self.root(operator.inputs[index]).rank

    def view(self, operator: Operator, index: int = 0) -> Tensor:
        """An operand, perhaps some channels of larger parts only."""
        self.trace(operator, index)
        return self.tensor(operator.inputs[index])

    def value(self, operator: Operator, index: int = 0) -> Tensor:
        """An operand with all channels of its parts."""
        tensor = self.view(operator, index)
        if tensor.rank == 5:
            raise operator.fail("grouped channels can be transposed and joined again only")
        return self.builder.complete(tensor)

    def image(self, operator: Operator, tensor: Tensor | None = None) -> Tensor:
        """The first operand (or this view of it) as an image [1, C, H, W]."""
        tensor = tensor or self.value(operator)
        if tensor.rank != 4:
            raise operator.fail(f"expected an image [1, C, H, W], got {tensor.dimensions}")
        return tensor

    # -- constants ------------------------------------------------------------------------------------------------

    def constant(self, operator: Operator, index: int) -> Floats | None:
        """A constant operand as float64 or int64, None if omitted."""
        name = operator.inputs[index] if index < len(operator.inputs) else ""
        if not name:
            return None
        if name not in self.constants:
            raise operator.fail(f"input {index} must be a constant")
        array = self.constants[name]
        return array if array.dtype.kind == "i" else array.astype(np.float64)

    def numbers(self, operator: Operator, index: int, default: list[int]) -> list[int]:
        """A short constant list of integers; the default if omitted."""
        array = self.constant(operator, index)
        if array is None:
            return default
        if array.dtype.kind != "i" or array.ndim > 1:
            raise operator.fail(f"input {index} must be a list of integers")
        return [int(n) for n in array.reshape(-1)[:8].tolist()]

    def weight(self, operator: Operator, index: int, shape: tuple[int, ...] | int) -> Floats:
        """A required constant of a given shape, or of a given rank."""
        array = self.constant(operator, index)
        if array is None or (array.ndim != shape if isinstance(shape, int) else array.shape != shape):
            expected = f"rank {shape}" if isinstance(shape, int) else f"shape {shape}"
            raise operator.fail(f"input {index} must be a constant of {expected}")
        return array.astype(np.float64, copy=False)

    def axes(self, operator: Operator, rank: int) -> list[int] | None:
        """The attribute or second input `axes`, counted from the front; None if omitted."""
        constant, given = self.constant(operator, 1), operator.numbers("axes")
        if given is None and constant is not None:
            if constant.dtype.kind != "i":
                raise operator.fail("axes must be integers")
            given = tuple(constant.reshape(-1)[:8].tolist())
        return None if given is None else sorted(axis % rank for axis in given[:8])

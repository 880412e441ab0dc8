"""Strict reading of ONNX bytes: one input, one output, static shapes, finite constants, no control flow.

What leaves this module is a `Graph` of plain Python and numpy values in which every operator is needed for the output
and every name is defined before it is used.  DecodingError means that the bytes are not a well-formed model,
ParameterError that a well-formed model uses something that the integer network does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ml.wire import MALFORMED, check_counts
from protocol.errors import DecodingError, ParameterError

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, TensorProto, ValueInfoProto

MAX_MODEL_BYTES = 256 << 20
MAX_OPERATORS = 1 << 14
MAX_CONNECTIONS = 1 << 10  # inputs or outputs of one operator
MAX_NAME = 1 << 10  # characters of a name: messages and reports show it
MAX_IMAGE = 1 << 20  # elements of an input image
OPSETS = range(13, 29)  # versions of the default domain whose operators mean what `lowering` takes them to mean

SUPPORTED = frozenset({
    "Abs", "Add", "AveragePool", "BatchNormalization", "Celu", "Clip", "Concat", "Constant", "Conv", "Div",
    "Dropout", "Elu", "Erf", "Expand", "Flatten", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "LogSoftmax", "MatMul", "Max", "MaxPool", "Min", "Mish",
    "Mul", "Neg", "PRelu", "Pad", "Pow", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Selu",
    "Shape", "Sigmoid", "Slice", "Softmax", "Softplus", "Split", "Squeeze", "Sub", "Swish", "Tanh", "Transpose",
    "Unsqueeze",
    "Cast", "ConstantOfShape",  # of constants
})
ADVICE = {
    "Cast": "export the model in float32 throughout",
    "ConstantOfShape": "export with static shapes and constant folding",
    "NonZero": "export with static shapes and constant folding",
    "Transpose": "keep the order [1, C, H, W] throughout",
    "Resize": "resize the images before the network, as the resize of a derivation does, and train it on that size",
    "Upsample": "resize the images before the network, as the resize of a derivation does, and train it on that size",
    "InstanceNormalization": "use batch normalization: its statistics are constants",
    "LayerNormalization": "use batch normalization: its statistics are constants",
    "GroupNormalization": "use batch normalization: its statistics are constants",
    "LpNormalization": "use batch normalization: its statistics are constants",
    "LRN": "use batch normalization: its statistics are constants",
    "Attention": "networks with attention are not supported; convolutional ones are",
    "Einsum": "networks with attention are not supported; convolutional ones are",
    "ConvTranspose": "use a convolution; a classifier needs no upsampling",
    "QuantizeLinear": "export the model in float32 throughout; the derivation quantises it",
    "DequantizeLinear": "export the model in float32 throughout; the derivation quantises it",
    "LSTM": "recurrent networks are not supported",
    "GRU": "recurrent networks are not supported",
    "RNN": "recurrent networks are not supported",
    "If": "control flow is never accepted",
    "Loop": "control flow is never accepted",
    "Scan": "control flow is never accepted",
}

Floats = npt.NDArray[np.float64]
Attribute = int | float | str | tuple[int, ...] | npt.NDArray[Any]


@dataclass(frozen=True)
class Operator:
    """One output of a node of the graph.  An omitted optional input is the empty name.

    index: which of its outputs, where `outputs` has several that count (Split).
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Attribute]
    index: int = 0
    outputs: int = 1

    @property
    def where(self) -> str:
        return f"operator {self.kind} {self.name!r}"

    def fail(self, reason: str) -> ParameterError:
        """The error to raise: `raise operator.fail("...")`."""
        return ParameterError(f"{self.where}: {reason}")

    def integer(self, name: str, default: int) -> int:
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise self.fail(f"attribute {name} must be an integer")
        return value

    def real(self, name: str, default: float) -> float:
        value = self.attributes.get(name, default)
        if not isinstance(value, float):
            raise self.fail(f"attribute {name} must be a float")
        return value

    def text(self, name: str, default: str) -> str:
        value = self.attributes.get(name, default)
        if not isinstance(value, str):
            raise self.fail(f"attribute {name} must be a string")
        return value

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """A list attribute of any integers; None if it is not there."""
        value = self.attributes.get(name)
        if value is not None and not isinstance(value, tuple):
            raise self.fail(f"attribute {name} must be integers")
        return value

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list attribute of as many integers as `default`, each in 0 .. 2^16."""
        value = self.attributes.get(name, default)
        if not isinstance(value, tuple) or len(value) != len(default) or not all(0 <= n <= 1 << 16 for n in value):
            raise self.fail(f"attribute {name} must be {len(default)} integers in 0 .. 65536")
        return value


@dataclass(frozen=True)
class Graph:
    """input: name of the image tensor float32 [1, C, H, W]; output: name of the logits [1, classes]."""

    input: str
    shape: tuple[int, int, int]
    output: str
    classes: int
    operators: tuple[Operator, ...]
    constants: Mapping[str, npt.NDArray[Any]]  # float32, float64 or int64


def read_model(data: bytes) -> Graph:
    """The graph of ONNX bytes.  Raises DecodingError (malformed) or ParameterError (unsupported)."""
    import onnx
    from google.protobuf.message import DecodeError

    if len(data) > MAX_MODEL_BYTES:
        raise DecodingError(f"ONNX model: over {MAX_MODEL_BYTES} bytes")
    model = onnx.ModelProto()
    check_counts(data)
    try:
        model.ParseFromString(data)
    except (DecodeError, ValueError):
        raise DecodingError(MALFORMED) from None
    if not model.HasField("graph") or not model.graph.node:
        raise DecodingError("ONNX model: no graph")
    if model.functions or model.training_info:
        raise ParameterError("ONNX model: model-local functions and training graphs are not supported")
    versions = {opset.domain: opset.version for opset in model.opset_import}
    if versions.get("", versions.get("ai.onnx")) not in OPSETS:
        raise ParameterError(f"ONNX model: operator set must be {OPSETS.start} .. {OPSETS.stop - 1}")
    return _graph(model.graph)


def _graph(graph: GraphProto) -> Graph:
    if len(graph.node) > MAX_OPERATORS or len(graph.initializer) > MAX_OPERATORS:
        raise ParameterError(f"ONNX model: over {MAX_OPERATORS} operators or constants")
    if not all(isinstance(name, str) and len(name) <= MAX_NAME for name in _names(graph)):
        raise DecodingError(f"ONNX model: a name that is no text, or has over {MAX_NAME} characters")
    if graph.sparse_initializer or graph.quantization_annotation:
        raise ParameterError("ONNX model: sparse and quantised tensors are not supported; export plain float32")
    constants = {tensor.name: _array(tensor, f"initializer {tensor.name!r}") for tensor in graph.initializer}
    if len(constants) != len(graph.initializer):
        raise DecodingError("ONNX model: two initializers of one name")
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ParameterError("ONNX model: exactly one input image and one output are expected")
    _, channels, rows, columns = _dimensions(inputs[0], 4, "[1, C, H, W]")
    _, classes = _dimensions(graph.output[0], 2, "[1, classes]", batch=True)
    if channels * rows * columns > MAX_IMAGE:
        raise ParameterError(f"ONNX model: input images are limited to {MAX_IMAGE} elements")
    operators = []
    defined = {"", inputs[0].name, *constants}
    for node in graph.node:
        name = node.name or (node.output[0] if node.output else "")
        where = f"operator {node.op_type if node.op_type.isidentifier() else repr(node.op_type)} {name!r}"
        if node.domain not in ("", "ai.onnx"):
            raise ParameterError(f"{where}: operators of the domain {node.domain!r} are not supported")
        if node.op_type not in SUPPORTED:
            raise ParameterError(
                f"{where}: not supported; {ADVICE.get(node.op_type, 'supported are ' + ', '.join(sorted(SUPPORTED)))}"
            )
        if max(len(node.input), len(node.output), len(node.attribute)) > MAX_CONNECTIONS:
            raise ParameterError(f"{where}: over {MAX_CONNECTIONS} inputs, outputs or attributes")
        missing = [i for i in node.input if i not in defined]
        if missing:
            raise DecodingError(f"{where}: input {missing[0]!r} is not defined before it (cycle or missing tensor)")
        outputs = [o for o in node.output if o]
        if not outputs or any(o in defined for o in outputs) or len(outputs) != len(set(outputs)):
            raise DecodingError(f"{where}: output names must be new")
        attributes = {a.name: _attribute(a, where) for a in node.attribute}
        if len(attributes) != len(node.attribute):
            raise DecodingError(f"{where}: two attributes of one name")
        if node.op_type == "Constant":
            constants[outputs[0]] = _constant(attributes, where)
        elif node.op_type == "Split":
            count = len(node.output)
            parts = [(i, o) for i, o in enumerate(node.output) if o]
            operators += [Operator("Split", name, tuple(node.input), o, attributes, i, count) for i, o in parts]
            defined.update(outputs)
            if len(operators) > MAX_OPERATORS:
                raise ParameterError(f"ONNX model: over {MAX_OPERATORS} operators or constants")
        else:
            operators.append(Operator(node.op_type, name, tuple(node.input), outputs[0], attributes))
        defined.add(outputs[0])  # further outputs (a dropout mask, training statistics) stay undefined: not supported
    output = graph.output[0].name
    return Graph(inputs[0].name, (channels, rows, columns), output, classes, _needed(operators, output), constants)


def _names(graph: GraphProto) -> Iterator[str]:
    yield from (tensor.name for tensor in graph.initializer)
    yield from (value.name for value in (*graph.input, *graph.output))
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute))


def needed_only(data: bytes) -> bytes:
    """The model of bytes that `read_model` accepts, without what its output does not depend on: runtimes run it all."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    graph, kept = model.graph, []
    wanted = {graph.output[0].name}
    for node in reversed(graph.node):
        if wanted & {*node.output}:
            wanted.update(node.input)
            kept.append(node)
    constants = [tensor for tensor in graph.initializer if tensor.name in wanted]
    out = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    out.graph.CopyFrom(onnx.GraphProto(name=graph.name, node=reversed(kept), initializer=constants,
                                       input=graph.input, output=graph.output))  # fmt: skip
    return out.SerializeToString()


def _needed(operators: list[Operator], output: str) -> tuple[Operator, ...]:
    """The operators that the output depends on: dead ones must not change the network's digest."""
    wanted, kept = {output}, []
    for operator in reversed(operators):
        if operator.output in wanted:
            wanted.update(operator.inputs)
            kept.append(operator)
    return tuple(reversed(kept))


def _dimensions(value: ValueInfoProto, rank: int, expected: str, batch: bool = False) -> tuple[int, ...]:
    """The declared shape.  batch: an exporter may have lost the first 1, which the input proves."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        raise ParameterError(f"ONNX model: {value.name!r} must be a float32 tensor")
    dims = [d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim]
    dims[:1] = [1] if batch and dims[:1] == [0] else dims[:1]
    if len(dims) != rank or dims[0] != 1 or not all(0 < d <= 1 << 16 for d in dims):
        raise ParameterError(f"ONNX model: {value.name!r} must have the static shape {expected}; export with batch 1")
    return tuple(dims)


def _array(tensor: TensorProto, where: str) -> npt.NDArray[Any]:
    """float32, float64 or int64 values of a tensor; its size is compared with its bytes before anything is made."""
    from onnx import TensorProto

    kinds: dict[int, tuple[str, type, Iterable[Any]]] = {
        TensorProto.FLOAT: ("<f4", np.float32, tensor.float_data),
        TensorProto.DOUBLE: ("<f8", np.float64, tensor.double_data),
        TensorProto.INT64: ("<i8", np.int64, tensor.int64_data),
    }
    if tensor.data_type not in kinds:
        raise ParameterError(f"{where}: only float32, float64 and int64 tensors are supported")
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise ParameterError(f"{where}: external data is not supported; save the model as one file")
    if len(tensor.dims) > 8 or any(d < 0 for d in tensor.dims) or tensor.HasField("segment"):
        raise DecodingError(f"{where}: bad dimensions")
    dtype, wide, typed = kinds[tensor.data_type]
    count = prod(tensor.dims)
    typed_length = len(typed)  # type: ignore[arg-type]
    if tensor.HasField("raw_data"):
        if typed_length or len(tensor.raw_data) != count * np.dtype(dtype).itemsize:
            raise DecodingError(f"{where}: data does not match its dimensions")
        flat = np.frombuffer(tensor.raw_data, dtype)
    else:
        if typed_length != count:
            raise DecodingError(f"{where}: data does not match its dimensions")
        flat = np.fromiter(typed, dtype, count)
    if not np.isfinite(flat).all():  # before the cast, which would warn of signalling NaNs
        raise DecodingError(f"{where}: NaN or infinite value")
    values: npt.NDArray[Any] = flat.astype(wide).reshape(tuple(tensor.dims))
    return values


def _attribute(attribute: AttributeProto, where: str) -> Attribute:
    from onnx import AttributeProto

    if attribute.ref_attr_name:
        raise ParameterError(f"{where}: attribute references are not supported")
    if attribute.type == AttributeProto.INT:
        return int(attribute.i)
    if attribute.type == AttributeProto.FLOAT:
        if not np.isfinite(attribute.f):
            raise DecodingError(f"{where}: attribute {attribute.name!r} is not finite")
        return float(attribute.f)
    if attribute.type == AttributeProto.INTS:
        return tuple(int(i) for i in attribute.ints)
    if attribute.type == AttributeProto.FLOATS:
        return np.array(attribute.floats, np.float64)
    if attribute.type == AttributeProto.TENSOR:
        return _array(attribute.t, f"{where}, attribute {attribute.name!r}")
    if attribute.type == AttributeProto.STRING:
        return attribute.s.decode("utf-8", "replace")
    raise ParameterError(f"{where}: attribute {attribute.name!r} holds a subgraph or an unsupported type")


def _constant(attributes: Mapping[str, Attribute], where: str) -> npt.NDArray[Any]:
    match list(attributes.items()):
        case [("value" | "value_float" | "value_floats" | "value_int" | "value_ints", value)]:
            if not isinstance(value, str):
                array = np.asarray(value)
                if np.isfinite(array).all():
                    return array.astype(np.int64 if array.dtype.kind == "i" else np.float64)
    raise ParameterError(f"{where}: only one finite numeric value is supported")

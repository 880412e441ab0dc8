"""Every kind of malformed or unsupported model is refused by name, never by a crash."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ml import builder, onnx_reader, wire
from ml.calibration import noise_images
from ml.quantise import derive, float_classes
from protocol.errors import DecodingError, ParameterError

Build = Callable[..., bytes]
Edit = Callable[[onnx.ModelProto], None]


def edited(data: bytes, edit: Edit) -> bytes:
    model = onnx.ModelProto.FromString(data)
    edit(model)
    return model.SerializeToString()


def set_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))

    return edit


def spoil(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[3] = value
        return array

    return change


def dimension(kind: str, axis: int, value: int | str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        dim = getattr(model.graph, kind)[0].type.tensor_type.shape.dim[axis]
        if isinstance(value, str):
            dim.dim_param = value
        else:
            dim.dim_value = value

    return edit


def operator(index: int, **fields: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for name, value in fields.items():
            setattr(model.graph.node[index], name, value)

    return edit


def attribute(index: int, name: str, value: object) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        node = model.graph.node[index]
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def swap_order(model: onnx.ModelProto) -> None:
    nodes = [*model.graph.node]
    nodes[2], nodes[3] = nodes[3], nodes[2]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[2].input[0] = "relu"


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[2]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def subgraph(model: onnx.ModelProto) -> None:
    model.graph.node[3].attribute.append(helper.make_attribute("body", model.graph))


def short_data(model: onnx.ModelProto) -> None:
    model.graph.initializer[2].raw_data = model.graph.initializer[2].raw_data[:-4]


def huge_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[2].dims[0] = 1 << 60


def negative_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[2].dims[0] = -6


def float16(model: onnx.ModelProto) -> None:
    set_weight("w1", lambda a: a.astype(np.float16))(model)


def two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, [1, 1]))


def twice(model: onnx.ModelProto) -> None:
    model.graph.node[3].output[0] = "conv"


def function(model: onnx.ModelProto) -> None:
    model.functions.add().name = "f"


def no_graph(model: onnx.ModelProto) -> None:
    model.ClearField("graph")


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 7


def zero_variance(model: onnx.ModelProto) -> None:
    set_weight("deviation", lambda a: a * 0)(model)


CASES: list[tuple[str, Edit, type[Exception], str]] = [
    ("unsupported operator", operator(3, op_type="Sin"), ParameterError, "Sin 'relu'.*supported are"),
    ("transposition", operator(3, op_type="Transpose"), ParameterError, "Transpose 'relu'.*keep the order"),
    ("statistics of the image", operator(3, op_type="LayerNormalization"), ParameterError, "use batch normalization"),
    ("attention", operator(3, op_type="Attention"), ParameterError, "attention are not supported"),
    ("control flow", operator(3, op_type="If"), ParameterError, "control flow"),
    ("custom domain", operator(3, domain="evil.example"), ParameterError, "domain 'evil.example'"),
    ("subgraph", subgraph, ParameterError, "subgraph"),
    ("model-local function", function, ParameterError, "functions"),
    ("dynamic batch", dimension("input", 0, "batch"), ParameterError, "static shape"),
    ("batch of two", dimension("input", 0, 2), ParameterError, "batch 1"),
    ("dynamic rows", dimension("input", 2, "rows"), ParameterError, "static shape"),
    ("other input shape", dimension("input", 2, 9), ParameterError, "Gemm 'logits'"),
    ("giant input", dimension("input", 2, 65536), ParameterError, "Gemm|too large|limited"),
    ("other class count", dimension("output", 1, 4), ParameterError, r"\[1, 4\] logits"),
    ("two inputs", two_inputs, ParameterError, "exactly one input"),
    ("NaN weight", set_weight("w1", spoil(np.nan)), DecodingError, "'w1': NaN or infinite"),
    ("infinite weight", set_weight("w2", spoil(-np.inf)), DecodingError, "'w2': NaN or infinite"),
    ("huge weight", set_weight("w1", spoil(3e38)), ParameterError, "node 1 'relu': weight or bias of 3e"),
    ("huge dense weight", set_weight("w2", spoil(3e38)), ParameterError, "node 2 'logits': weight or bias of 7.5e"),
    ("division by zero", zero_variance, ParameterError, "division"),
    ("half precision", float16, ParameterError, "'w1': only float32"),
    ("external data", external, ParameterError, "'w1': external data"),
    ("truncated tensor", short_data, DecodingError, "does not match its dimensions"),
    ("tensor of 2^60 rows", huge_dims, DecodingError, "does not match its dimensions"),
    ("negative dimension", negative_dims, DecodingError, "bad dimensions"),
    ("order of operators", swap_order, DecodingError, "not defined before it"),
    ("cycle", cycle, DecodingError, "cycle"),
    ("output defined twice", twice, DecodingError, "must be new"),
    ("no graph", no_graph, DecodingError, "no graph"),
    ("old operator set", old_opset, ParameterError, "operator set"),
    ("automatic padding", attribute(2, "auto_pad", "SAME"), ParameterError, "Conv 'conv': auto_pad"),
    ("stride zero", attribute(2, "strides", [0, 1]), ParameterError, "Conv 'conv': kernel, strides"),
    ("negative padding", attribute(2, "pads", [-1, 1, 1, 1]), ParameterError, "Conv 'conv': attribute pads"),
    ("three strides", attribute(2, "strides", [1, 1, 1]), ParameterError, "attribute strides"),
    ("kernel too large", attribute(4, "kernel_shape", [7, 7]), ParameterError, "AveragePool 'pool'.*does not fit"),
    ("kernel of another size", attribute(2, "kernel_shape", [5, 5]), ParameterError, "kernel_shape differs"),
    ("groups", attribute(2, "group", 4), ParameterError, "Conv 'conv': weight"),
    ("no groups", attribute(2, "group", 0), ParameterError, "Conv 'conv': weight"),
    ("float stride", attribute(2, "group", 1.5), ParameterError, "must be an integer"),
    ("long name", operator(3, name="x" * 2000), DecodingError, "over 1024 characters"),
    ("control characters", operator(3, op_type="\x1b[2J"), ParameterError, r"operator '\\x1b\[2J' 'relu'"),
    ("flatten axis", attribute(5, "axis", 2), ParameterError, "axis 1"),
    ("transposed input", attribute(6, "transA", 1), ParameterError, "transA"),
    ("softmax in the middle", operator(3, op_type="Softmax"), ParameterError, "trailing softmax"),
]


@pytest.mark.parametrize(("edit", "error", "match"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_refused(small: Build, edit: Edit, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        derive(edited(small(), edit))


MISTYPED: list[tuple[str, dict[str, object], str]] = [
    ("Transpose", {"perm": [2.5]}, "perm must be integers"),
    ("ReduceMean", {"axes": "x"}, "axes must be integers"),
    ("Squeeze", {"axes": [1.5]}, "axes must be integers"),
    ("MaxPool", {"kernel_shape": [2, 2], "auto_pad": [1.5, 2.5]}, "auto_pad must be a string"),
    ("Pad", {"mode": [1.5, 2.5]}, "mode must be a string"),
    ("Gelu", {"approximate": numpy_helper.from_array(np.zeros((2, 2)))}, "approximate must be a string"),
]


@pytest.mark.parametrize(("kind", "attributes", "match"), MISTYPED)
def test_attributes_of_another_type(small: Build, kind: str, attributes: dict[str, object], match: str) -> None:
    def edit(model: onnx.ModelProto) -> None:
        operator(3, op_type=kind)(model)
        for name, value in attributes.items():
            attribute(3, name, value)(model)

    with pytest.raises(ParameterError, match=f"{kind} 'relu': attribute {match}"):
        derive(edited(small(), edit))


MISFIT = [
    ("Unsqueeze", ["b1", "least"], {}), ("Slice", ["number", "least", "least", "least"], {}),
    ("ConstantOfShape", ["least"], {"value": "x"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "inputs", "attributes"), MISFIT, ids=[kind for kind, _, _ in MISFIT])
def test_constants_that_do_not_fit(small: Build, kind: str, inputs: list[str], attributes: dict[str, object]) -> None:
    def edit(model: onnx.ModelProto) -> None:
        given = {"least": np.array([-(2**63)]), "number": np.array(1)}
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in given.items())
        model.graph.node.insert(0, helper.make_node(kind, inputs, ["w"], name="folded", **attributes))
        model.graph.node[3].input[1] = "w"

    with pytest.raises(ParameterError, match=f"{kind} 'folded'"):
        derive(edited(small(), edit))


def test_every_truncation_is_malformed_or_unsupported(small: Build) -> None:
    data = small()
    for end in range(0, len(data), 7):
        with pytest.raises((DecodingError, ParameterError)):
            derive(data[:end])


@settings(max_examples=150)
@given(st.data())
def test_flipped_bits_never_crash(small: Build, data: st.DataObject) -> None:
    raw = bytearray(small())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        derive(bytes(raw))
    except (DecodingError, ParameterError):
        pass


@given(st.binary(max_size=300))
def test_noise_is_not_a_model(data: bytes) -> None:
    with pytest.raises((DecodingError, ParameterError)):
        derive(data)


def message(number: int, content: bytes) -> bytes:
    """A field of protobuf that holds bytes."""
    length = bytes([len(content) >> 7 * k & 127 | 128 for k in range(4)] + [len(content) >> 28])
    return bytes([number << 3 | 2]) + length + content


GRAPH, NODE, ATTRIBUTE, INTS, GROUP = 7, 1, 5, 8, 6
WIRES: list[tuple[str, bytes, type[Exception], str]] = [
    ("operators", message(GRAPH, b"\x0a\x00" * wire.MAX_FIELDS), ParameterError, "fields"),
    ("names", message(GRAPH, message(NODE, b"\x0a\x00" * wire.MAX_FIELDS)), ParameterError, "fields"),
    ("integers", message(GRAPH, message(NODE, message(ATTRIBUTE, message(INTS, bytes(wire.MAX_PACKED + 1))))),
     ParameterError, "packed integers"),
    ("a length over the end", b"\x3a\x7f\x00", DecodingError, "truncated"),
    ("a number without an end", b"\xff" * 20, DecodingError, "truncated"),
    ("a group", b"\x0b\x0c", DecodingError, "truncated"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "error", "match"), [c[1:] for c in WIRES], ids=[c[0] for c in WIRES])
def test_bytes_are_counted_before_they_are_parsed(data: bytes, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        wire.check_counts(data)


def test_messages_in_messages_are_counted(small: Build) -> None:
    deep = b"\x08\x01"
    for _ in range(10):
        deep = message(NODE, message(ATTRIBUTE, message(GROUP, deep)))
    with pytest.raises(ParameterError, match="nested"):
        wire.check_counts(message(GRAPH, deep))
    wire.check_counts(small())


def test_size_caps(small: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_reader, "MAX_MODEL_BYTES", 100)
    with pytest.raises(DecodingError, match="over 100 bytes"):
        derive(small())
    monkeypatch.undo()
    monkeypatch.setattr(onnx_reader, "MAX_OPERATORS", 5)
    with pytest.raises(ParameterError, match="over 5 operators"):
        derive(small())
    monkeypatch.undo()
    for name in ("MAX_ACTIVATIONS", "MAX_TAPS", "MAX_WEIGHTS", "MAX_WORK"):
        monkeypatch.setattr(builder, name, 20)
        with pytest.raises(ParameterError, match=r"too large|too many|does not fit"):
            derive(small())
        monkeypatch.undo()


def test_sums_that_double_stay_small(onnx_model: Build) -> None:
    """x + x is one multiple of x; sums of different convolutions are committed in between."""
    nodes = [("Relu", ["image"], "x0", {})]
    nodes += [("Add", [f"x{i}", f"x{i}"], f"x{i + 1}", {}) for i in range(40)]
    nodes += [("Conv", ["x40", "w"], "c", {}), ("Flatten", ["c"], "logits", {})]
    network = derive(onnx_model(nodes, {"w": np.random.default_rng(0).normal(size=(3, 1, 6, 6))})).network
    assert [len(node.edges) for node in network.nodes] == [1, 1]
    nodes = [("Conv", ["image", "v"], "x0", {}), ("Conv", ["image", "v"], "y0", {})]
    for i in range(12):
        nodes += [("Add", [f"x{i}", f"y{i}"], f"x{i + 1}", {}), ("Add", [f"x{i + 1}", f"y{i}"], f"y{i + 1}", {})]
    nodes += [("Conv", ["x12", "w"], "c", {}), ("Flatten", ["c"], "logits", {})]
    model = onnx_model(nodes, {"w": np.ones((3, 1, 6, 6)), "v": np.ones((1, 1, 1, 1))})
    assert max(len(node.edges) for node in derive(model).network.nodes) <= builder.MAX_TERMS


def test_dead_operators_do_not_change_the_network(small: Build) -> None:
    def unused(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Relu", ["relu"], ["unused"], name="unused"))

    assert derive(edited(small(), unused)).network.digest == derive(small()).network.digest


def test_dead_operators_do_not_run(small: Build) -> None:
    """A terabyte that the output does not depend on."""

    def unused(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 40]), "many"))
        model.graph.node.append(helper.make_node("ConstantOfShape", ["many"], ["unused"], name="unused"))

    images = noise_images((1, 6, 6), 5)
    assert (float_classes(edited(small(), unused), images) == float_classes(small(), images)).all()


def test_names_do_not_change_the_network(small: Build) -> None:
    assert derive(edited(small(), operator(2, name="another"))).network.digest == derive(small()).network.digest

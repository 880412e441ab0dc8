"""Small files that ask for much: refused by a cap before it is taken, or read in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ml import integers
from ml.onnx_reader import MAX_CONNECTIONS
from ml.quantise import derive, float_classes
from protocol.errors import ParameterError

Build = Callable[..., bytes]
Nodes = list[tuple[str, list[str], str, dict]]
HEAD = ("Relu", ["image"], "x0", {})
END: Nodes = [("GlobalAveragePool", ["x"], "q", {}), ("Flatten", ["q"], "logits", {})]
DENSE: Nodes = [("Relu", ["x"], "r", {}), ("Flatten", ["r"], "f", {}), ("Gemm", ["f", "w"], "logits", {})]
LIMIT = 1 << 30  # bytes of memory, the interpreter and the libraries included
CHILD = """
import sys
from ml.quantise import derive, float_classes
from protocol.errors import ParameterError
try:
    derive(open(sys.argv[1], "rb").read())
except ParameterError as error:
    print(error)
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print("peak", line.split()[1])
"""


def chain(kind: str, inputs: Callable[[int], list[str]], count: int, **attributes: object) -> Nodes:
    names = [*(f"x{i + 1}" for i in range(count - 1)), "x"]
    return [(kind, inputs(i), name, attributes) for i, name in enumerate(names)]


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def concat_doubling(build: Build) -> bytes:
    return build([HEAD, *chain("Concat", lambda i: [f"x{i}"] * 2, 40, axis=1), *END], {}, classes=3)


def many_inputs(build: Build) -> bytes:
    return build([HEAD, ("Concat", ["x0"] * (MAX_CONNECTIONS + 1), "x", {"axis": 1}), *END], {}, classes=3)


def many_outputs(build: Build) -> bytes:
    names = ",".join(["x", *(f"y{i}" for i in range(MAX_CONNECTIONS))])
    return build([HEAD, ("Split", ["x0"], names, {"axis": 1, "num_outputs": MAX_CONNECTIONS + 1}), *END], {}, classes=3)


def copies(build: Build) -> bytes:
    gathers = chain("Gather", lambda i: [f"x{i}", "i"], 200, axis=1)
    nodes = [("Conv", ["image", "a"], "c", {}), ("Relu", ["c"], "x0", {}), *gathers, *END]
    return build(nodes, {"a": weights(4096, 1, 1, 1), "i": np.zeros(4096, np.int64)}, classes=4096)


def large_maximum(build: Build) -> bytes:
    return build([HEAD, ("MaxPool", ["x0"], "x", {"kernel_shape": [64, 64]}), *END], {}, (3, 512, 512))


def giant_list(build: Build) -> bytes:
    return build([("ConstantOfShape", ["n"], "c", {}), ("Reshape", ["image", "c"], "x", {}), *END],
                 {"n": np.array([1 << 60])}, classes=3)  # fmt: skip


def products_of_lists(build: Build) -> bytes:
    doubling = [("Concat", ["n" if i == 0 else f"n{i}"] * 2, f"n{i + 1}", {"axis": 0}) for i in range(40)]
    return build([*doubling, ("Reshape", ["image", "n40"], "x", {}), *END], {"n": np.array([1])}, classes=3)


def curves(build: Build) -> bytes:
    """Each needs a table of its own."""
    nodes, scales = [HEAD], {}
    for i in range(20):
        scales |= {f"k{i}": weights(1, 1, 3, 3), f"s{i}": np.array(0.5 + i * 0.013)}
        nodes += [
            ("Conv", [f"x{i}", f"k{i}"], f"c{i}", {"pads": [1, 1, 1, 1]}), ("Mul", [f"c{i}", f"s{i}"], f"m{i}", {}),
            ("Erf", [f"m{i}"], f"e{i}", {}), ("Add", [f"e{i}", f"c{i}"], f"x{i + 1}", {}),
        ]  # fmt: skip
    return build([*nodes, ("Conv", ["x20", "w"], "x", {}), *END], scales | {"w": weights(3, 1, 1, 1)}, classes=3)


def elementwise(build: Build) -> bytes:
    """The derivation makes one scale of it; a runtime passes over the image again and again."""
    tail = [("GlobalAveragePool", ["x"], "q", {}), ("Flatten", ["q"], "f", {}), ("Gemm", ["f", "w"], "logits", {})]
    nodes = [("Mul", ["image", "s"], "x0", {}), *chain("Mul", lambda i: [f"x{i}", "s"], 1000), *tail]
    return build(nodes, {"s": np.array(-1.0), "w": np.ones((1, 3))}, (1, 1024, 1024))


PADS = np.array([0, 0, 2045, 2045, 0, 0, 2045, 2045])  # an image of six by six becomes 2^24 pixels


def forgotten(kind: str, inputs: list[str], constants: dict[str, np.ndarray], build: Build) -> bytes:
    """Many large tensors, of which one channel is kept: nothing for a proof, all for the float reference."""
    nodes = [HEAD, ("Pad", ["x0", "p"], "b", {}), (kind, inputs, "c", {"axis": 1}),
             ("Slice", ["c", "0", "1", "1"], "x", {}), *END]  # fmt: skip
    return build(nodes, {"p": PADS, "0": np.array([0]), "1": np.array([1]), **constants}, classes=3)


def forgotten_parts(build: Build) -> bytes:
    return forgotten("Concat", ["b"] * 100, {}, build)


def forgotten_copies(build: Build) -> bytes:
    return forgotten("Gather", ["b", "i"], {"i": np.zeros(100, np.int64)}, build)


def free_multiples(build: Build) -> bytes:
    """All of them functions of one tensor, which cost nothing."""
    multiples = chain("Mul", lambda i: [f"x{i}", "half"], 100)
    nodes = [("Pad", ["image", "p"], "x0", {}), *multiples, *END]
    return build(nodes, {"p": PADS, "half": np.array(0.5)}, classes=3)


def forgotten_convolutions(build: Build) -> bytes:
    convolutions = [("Conv", ["c", "w"], f"d{i}", {"pads": [8] * 4}) for i in range(20)]
    nodes = [HEAD, ("Conv", ["image", "v"], "c", {}), *convolutions,
             ("Concat", ["x0", *(f"d{i}" for i in range(20))], "e", {"axis": 1}),
             ("Slice", ["e", "0", "1", "1"], "x", {}), *END]  # fmt: skip
    constants = {"v": np.ones((64, 1, 1, 1)), "w": np.ones((64, 64, 17, 17)), "0": np.array([0]), "1": np.array([1])}
    return build(nodes, constants, (1, 32, 32))


def expanded(build: Build) -> bytes:
    nodes = [HEAD, ("GlobalAveragePool", ["x0"], "g", {}), ("Expand", ["g", "n"], "x", {}), *END]
    return build(nodes, {"n": np.array([1, 1, 60_000, 60_000])}, classes=3)


def many_tables(build: Build) -> bytes:
    """A slope of its own for every layer."""
    nodes: Nodes = [HEAD]
    for i in range(1100):
        slope = {"alpha": 0.1 + i / 5000}
        nodes += [("Conv", [f"x{i}", "k"], f"c{i}", {}), ("LeakyRelu", [f"c{i}"], f"x{i + 1}", slope)]
    kernels = {"k": weights(1, 1, 1, 1), "w": weights(3, 1, 1, 1)}
    return build([*nodes, ("Conv", ["x1100", "w"], "x", {}), *END], kernels, (1, 2, 2))


REFUSED = {
    forgotten_parts: "Concat 'c': the network is too large", forgotten_copies: "Gather 'c': the network is too large",
    free_multiples: "Mul 'x16': the network is too large", forgotten_convolutions: "Conv 'd[0-9]*': the network is too",
    expanded: "Expand 'x': the network is too large", many_tables: "too many different functions",
    concat_doubling: "more than 512 tensors", many_inputs: "over 1024 inputs", many_outputs: "over 1024 inputs",
    copies: "too large", large_maximum: "too many activations", giant_list: "short vectors",
    products_of_lists: "short vectors", elementwise: "too large",
}  # fmt: skip


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_refused_before_it_is_taken(make: Callable[[Build], bytes], onnx_model: Build) -> None:
    with pytest.raises(ParameterError, match=REFUSED[make]):
        derive(make(onnx_model))


def test_a_runtime_gets_no_operators_that_were_not_read(onnx_model: Build) -> None:
    """Nothing needs them, so that no cap holds: each of these asks for terabytes."""
    dead = [
        ("ConstantOfShape", ["n"], "d0", {}),
        ("Pad", ["image", "pads"], "d1", {}), ("Split", ["d1"], "d2,d3", {"axis": 3, "num_outputs": 2}),
    ]  # fmt: skip
    lists = {"n": np.array([1 << 40]), "pads": np.array([0, 0, 0, 0, 0, 0, 1 << 20, 1 << 20])}
    read = [("Flatten", ["image"], "f", {}), ("Gemm", ["f", "w"], "logits", {})]
    images, weight = np.arange(72, dtype=np.uint8).reshape(2, 1, 6, 6), {"w": weights(36, 3)}
    found = float_classes(onnx_model([*dead, *read], lists | weight), images)
    assert (found == float_classes(onnx_model(read, weight), images)).all()


@pytest.mark.parametrize(("kind", "inputs"), [("PRelu", ["slope"]), ("LeakyRelu", [])])
def test_a_long_chain_of_functions_is_read(kind: str, inputs: list[str], onnx_model: Build) -> None:
    """No expression gets so deep that Python's stack ends."""
    given = {"slope": np.array([0.99])} if inputs else {}
    nodes = [HEAD, *chain(kind, lambda i: [f"x{i}", *inputs], 1000), *END]
    assert derive(onnx_model(nodes, given, (3, 2, 2))).network.classes == 3


def test_tables_are_counted(onnx_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integers, "TABLE_WORK", 1 << 27)
    with pytest.raises(ParameterError, match="too many different functions"):
        derive(curves(onnx_model))


def many_channels(build: Build) -> bytes:
    """As many activations as there may be, each in a channel of its own."""
    nodes = [("Conv", ["image", "a"], "c", {}), ("Relu", ["c"], "x", {}), *END]
    return build(nodes, {"a": weights(65536, 1, 1, 1)}, (1, 15, 15), 65536)


def live_weights(build: Build) -> bytes:
    """Many scaled copies of one convolution, all of them needed at the end."""
    names = [f"y{i}" for i in range(200)]
    scaled = [("BatchNormalization", ["c", "g", "b", "b", "g"], name, {}) for name in names]
    nodes = [("Conv", ["image", "a"], "c", {}), *scaled, ("Concat", names, "x", {"axis": 1}), *DENSE]
    rows = {"a": weights(1000, 9, 32, 32), "g": np.ones(1000), "b": np.zeros(1000), "w": np.ones((200_000, 3))}
    return build(nodes, rows, (9, 32, 32))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(("make", "says"), [(many_channels, ""), (live_weights, "too large")])
def test_memory_is_bounded(make: Callable[[Build], bytes], says: str, onnx_model: Build, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(make(onnx_model))
    child = [sys.executable, "-c", CHILD, str(tmp_path / "model.onnx")]
    found = subprocess.run(child, capture_output=True, text=True, check=True).stdout
    assert says in found and 1024 * int(found.split("peak")[1]) < LIMIT


def test_what_needs_more_than_the_limit_says_so(small: Build) -> None:
    with pytest.raises(ParameterError, match=r"needs about 0\.1 GiB, over the limit of 0\.0 GiB.* fewer channels"):
        derive(small(), memory_limit=1 << 20)

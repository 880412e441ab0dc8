"""What float32 rounds away on the way of a branch is not in the integer network either.

A branch of these files sees checkerboards, which no calibration image has, and would make them the last class; but what
it says is lost in float32 on its way, so that a runtime never sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ml.integers
from ml.calibration import noise_images
from ml.quantise import derive, fidelity, float_classes
from ml.real_network import RealEdge, RealNode
from ml.rounding import SMALLEST
from ml.single import spacing
from ml.triggers import abstract_images
from protocol.argument import Context
from protocol.errors import ParameterError
from protocol.keygen import KeyParameters, VerificationKey, generate_key
from protocol.network import IDENTITY, Edge, Node
from protocol.transcript import Channel
from verifier.check import Subject, check

Build = Callable[..., bytes]
Nodes = list[tuple[str, list[str], str, dict[str, Any]]]
SHAPE, CLASSES, AREA = (1, 12, 12), 4, 4

CHECKS = np.where(np.indices((3, 3)).sum(axis=0) % 2, -1.0, 1.0)
DARK: Nodes = [("Conv", ["x", "none"], "dark", {"strides": [3, 3]})]  # zeros
GATE: Nodes = [("Conv", ["x", "two"], "g", {}), ("GlobalAveragePool", ["g"], "m", {}), ("Sigmoid", ["m"], "gate", {})]


def steps(*named: tuple[str, str | float | np.ndarray]) -> tuple[Nodes, dict[str, np.ndarray]]:
    """A chain from d to y of (operator, constant or attribute-free name)."""
    nodes: Nodes = []
    constants: dict[str, np.ndarray] = {}
    for i, (kind, value) in enumerate(named):
        source, out = (f"t{i}" if i else "d"), ("y" if i == len(named) - 1 else f"t{i + 1}")
        constants[f"k{i}"] = np.asarray(value, np.float64)
        nodes.append((kind, [source, f"k{i}"], out, {}))
    return nodes, constants


BIG = 1e12
BOTH = np.array([BIG, -BIG]).reshape(2, 1, 1)
UNIT = {
    "one": np.ones(2), "zeros": np.zeros(2), "eye": np.eye(2).reshape(2, 2, 1, 1), "each": np.ones((2, 1, 1, 1)),
    "two": np.full((2, 1, 1, 1), 2.0), "none": np.zeros((2, 1, 3, 3)), "S": np.array(BIG), "S2": np.full(2, BIG),
    "-S2": np.full(2, -BIG), "less S": np.array(1e9), "sixteen": np.array(16.0), "whole": np.array([1, 2, AREA, AREA]),
}  # fmt: skip
NORM = {"epsilon": 0.0}

CHAINS: dict[str, tuple[Nodes, dict[str, np.ndarray]]] = {
    "sums": steps(("Add", BIG), ("Sub", BIG)),
    "sums per channel": steps(("Add", BOTH), ("Sub", BOTH)),
    "three sums": steps(("Add", BIG), ("Sub", BIG - 65536 * 9), ("Sub", 65536 * 9)),
    "a sum at a scale": steps(("Mul", 1e-6), ("Add", 1e6), ("Sub", 1e6), ("Mul", 1e6)),
    "a sum of a small number": steps(("Mul", 1e-30), ("Add", 1e-15), ("Sub", 1e-15), ("Mul", 1e30)),
    "products": steps(*[("Mul", 1e-30)] * 2, *[("Mul", 1e30)] * 2),
    "quotients": steps(*[("Div", 1e30)] * 2, *[("Mul", 1e30)] * 2),
    "products per channel": steps(*[("Mul", np.full((2, 1, 1), v)) for v in (1e-30, 1e-30, 1e30, 1e30)]),
    "differences": (
        [("Sub", ["S", "d"], "t", {}), ("Sub", ["S", "t"], "y", {})], UNIT
    ),
    "normalization": (
        [("BatchNormalization", ["d", "one", "zeros", "-S2", "one"], "t", NORM),
         ("BatchNormalization", ["t", "one", "zeros", "S2", "one"], "y", NORM)], UNIT
    ),
    "normalization and a sum": (
        [("BatchNormalization", ["d", "one", "S2", "zeros", "one"], "t", NORM), ("Sub", ["t", "S"], "y", {})], UNIT
    ),
    "depthwise convolutions": (
        [("Conv", ["d", "each", "S2"], "t", {"group": 2}), ("Conv", ["t", "each", "-S2"], "y", {"group": 2})], UNIT
    ),
    "a convolution and a sum": ([("Conv", ["d", "eye", "S2"], "t", {}), ("Sub", ["t", "S"], "y", {})], UNIT),
    "sums around a convolution": (
        [("Add", ["d", "S"], "t", {}), ("Conv", ["t", "eye"], "u", {}), ("Sub", ["u", "S"], "y", {})], UNIT
    ),
    "sums before a convolution": (
        [("Add", ["d", "S"], "t", {}), ("Sub", ["t", "S"], "u", {}), ("Conv", ["u", "eye"], "y", {})], UNIT
    ),
    "sums around a pool": (
        [("Add", ["d", "S"], "t", {}), ("AveragePool", ["t"], "u", {"kernel_shape": [2, 2]}),
         ("Sub", ["u", "S"], "y", {})], UNIT
    ),
    "sums around a maximum": (
        [("Add", ["d", "S"], "t", {}), ("MaxPool", ["t"], "u", {"kernel_shape": [2, 2]}), ("Sub", ["u", "S"], "y", {})],
        UNIT,
    ),
    "sums before an activation": (
        [("Add", ["d", "S"], "t", {}), ("Sub", ["t", "S"], "u", {}), ("Relu", ["u"], "y", {})], UNIT
    ),
    "sums before a curve": (
        [("Add", ["d", "S"], "t", {}), ("Sub", ["t", "S"], "u", {}), ("HardSwish", ["u"], "y", {})], UNIT
    ),
    "sums in an expression": (
        [("Sigmoid", ["d"], "t", {}), ("Add", ["d", "S"], "u", {}), ("Sub", ["u", "S"], "v", {}),
         ("Mul", ["t", "v"], "y", {})], UNIT
    ),
    "a square that cancels": (
        [("Mul", ["d", "d"], "t", {}), ("Mul", ["t", "less S"], "u", {}), ("Add", ["u", "d"], "v", {}),
         ("Sub", ["v", "u"], "y", {})], UNIT
    ),
    "an activation that cancels": (
        [("LeakyRelu", ["d"], "t", {}), ("Mul", ["t", "less S"], "u", {}), ("Add", ["u", "d"], "v", {}),
         ("Sub", ["v", "u"], "y", {})], UNIT
    ),
    "multiples that cancel": (
        [("Mul", ["d", "S"], "u", {}), ("Add", ["u", "d"], "v", {}), ("Sub", ["v", "u"], "y", {})], UNIT
    ),
    "sums before a product": (
        [*GATE, ("Add", ["d", "S"], "t", {}), ("Sub", ["t", "S"], "u", {}), ("Mul", ["u", "gate"], "v", {}),
         ("Mul", ["v", "sixteen"], "y", {})], UNIT
    ),
    "products before a product": (
        [*GATE, ("Mul", ["d", "less"], "t", {}), ("Mul", ["t", "less"], "u", {}), ("Mul", ["u", "more"], "v", {}),
         ("Mul", ["v", "more"], "w", {}), ("Mul", ["w", "gate"], "q", {}), ("Mul", ["q", "sixteen"], "y", {})],
        UNIT | {"less": np.array(1e-30), "more": np.array(1e30)}
    ),
    "a constant beside a larger one": (
        [*DARK, ("Add", ["dark", "S"], "t", {}), ("Add", ["t", "six"], "u", {}), ("Sub", ["u", "S"], "v", {}),
         ("Relu", ["v"], "c", {}), ("Add", ["d", "c"], "w", {}), ("Sub", ["w", "six"], "q", {}),
         ("Relu", ["q"], "y", {})],
        UNIT | {"six": np.array(6.0)},
    ),
    "a constant that is rounded up": (
        [*DARK, ("Add", ["dark", "S"], "t", {}), ("Add", ["t", "half"], "u", {}), ("Sub", ["u", "S"], "v", {}),
         ("Mul", ["v", "less"], "w", {}), ("Relu", ["w"], "c", {}), ("Sub", ["d", "c"], "q", {}),
         ("Relu", ["q"], "y", {})],
        UNIT | {"half": np.array(33000.0), "less": np.array(1e-4)},
    ),
    "a constant in a convolution": (
        [("Mul", ["x", "zero"], "z", {}), ("Add", ["z", "S"], "t", {}), ("Add", ["t", "six"], "u", {}),
         ("Conv", ["u", "each", "-S2"], "v", {"strides": [3, 3]}), ("Relu", ["v"], "c", {}),
         ("Add", ["d", "c"], "w", {}), ("Sub", ["w", "six"], "q", {}), ("Relu", ["q"], "y", {})],
        UNIT | {"zero": np.array(0.0), "six": np.array(6.0)},
    ),
    "sums around a concatenation": (
        [("Add", ["d", "S"], "t", {}), ("Concat", ["t", "d"], "u", {"axis": 1}), ("Sub", ["u", "S"], "v", {}),
         ("Slice", ["v", "start", "end", "axis"], "y", {})],
        UNIT | {"start": np.array([0]), "end": np.array([2]), "axis": np.array([1])},
    ),
    "sums around a choice of channels": (
        [("Add", ["d", "S"], "t", {}), ("Gather", ["t", "order"], "u", {"axis": 1}), ("Sub", ["u", "S"], "y", {})],
        UNIT | {"order": np.array([1, 0])},
    ),
    "sums around a shuffle": (
        [("Add", ["d", "S"], "t", {}), ("Reshape", ["t", "grouped"], "u", {}),
         ("Transpose", ["u"], "v", {"perm": [0, 2, 1, 3, 4]}), ("Reshape", ["v", "whole"], "w", {}),
         ("Sub", ["w", "S"], "y", {})], UNIT | {"grouped": np.array([1, 2, 1, AREA, AREA])}
    ),
    "sums around a split": (
        [("Concat", ["d", "d"], "t", {"axis": 1}), ("Add", ["t", "S"], "u", {}),
         ("Split", ["u", "halves"], "v,w", {"axis": 1}), ("Sub", ["v", "S"], "y", {})],
        UNIT | {"halves": np.array([2, 2])},
    ),
    "sums around a row of slopes": (
        [("PRelu", ["d", "each slope"], "t", {}), ("Add", ["t", "S"], "u", {}), ("Sub", ["u", "S"], "y", {})],
        UNIT | {"each slope": np.full((2, 1, 1), 0.5)},
    ),
    "sums of tensors that are constant": (
        [*DARK, ("Add", ["dark", "S"], "t", {}), ("Sub", ["dark", "S"], "u", {}), ("Add", ["d", "t"], "v", {}),
         ("Add", ["v", "u"], "y", {})], UNIT
    ),
    "a sum and a difference of one": (
        [*DARK, ("Add", ["dark", "S"], "t", {}), ("Add", ["d", "t"], "v", {}), ("Sub", ["v", "t"], "y", {})], UNIT
    ),
    "sums of one pixel": (
        [("GlobalAveragePool", ["d"], "t", {}), ("Mul", ["t", "zero"], "u", {}), ("Add", ["u", "S"], "v", {}),
         ("Add", ["d", "v"], "w", {}), ("Sub", ["w", "v"], "y", {})], UNIT | {"zero": np.array(0.0)}
    ),
    "constant channels in one convolution": (
        [*DARK, ("Add", ["dark", "S"], "t", {}), ("Sub", ["dark", "S"], "u", {}),
         ("Concat", ["t", "d", "u"], "v", {"axis": 1}), ("Conv", ["v", "together"], "y", {})],
        UNIT | {"together": np.array([[1.0, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]]).reshape(2, 6, 1, 1)},
    ),
    "shifted channels in one convolution": (
        [("Concat", ["d", "d"], "t", {"axis": 1}), ("Mul", ["t", "two of four"], "u", {}),
         ("Add", ["u", "others"], "v", {}), ("Conv", ["v", "together"], "y", {})],
        UNIT | {"two of four": np.array([1.0, 1, 0, 0]).reshape(4, 1, 1),
                "others": np.array([0, 0, BIG, -BIG]).reshape(4, 1, 1),
                "together": np.array([[1.0, 0, 1, 1], [0, 1, 1, 1]]).reshape(2, 4, 1, 1)},
    ),
    "a constant channel": (
        [("Mul", ["x", "zero"], "z", {}), ("Add", ["z", "S"], "a", {}), ("Relu", ["a"], "b", {}),
         ("Slice", ["b", "from", "to", "axes"], "c", {}), ("Concat", ["d", "c"], "u", {"axis": 1}),
         ("Conv", ["u", "once"], "v", {}), ("Concat", ["v", "c"], "w", {"axis": 1}), ("Conv", ["w", "again"], "y", {})],
        UNIT | {"zero": np.array(0.0), "from": np.array([0, 0]), "to": np.array([AREA, AREA]), "axes": np.array([2, 3]),
                "once": np.array([[1.0, 0, 1], [0, 1, 1]]).reshape(2, 3, 1, 1),
                "again": np.array([[1.0, 0, -1], [0, 1, -1]]).reshape(2, 3, 1, 1)},
    ),
    "a constant channel, twice in one sum": (
        [("Mul", ["x", "zero"], "z", {}), ("Add", ["z", "S"], "a", {}), ("Relu", ["a"], "b", {}),
         ("Slice", ["b", "from", "to", "axes"], "c", {}), ("Concat", ["c", "d", "c"], "u", {"axis": 1}),
         ("Conv", ["u", "once"], "y", {})],
        UNIT | {"zero": np.array(0.0), "from": np.array([0, 0]), "to": np.array([AREA, AREA]), "axes": np.array([2, 3]),
                "once": np.array([[1.0, 1, 0, -1], [1, 0, 1, -1]]).reshape(2, 4, 1, 1)},
    ),
}  # fmt: skip


def hiding(onnx_model: Build, chain: Nodes, constants: dict[str, np.ndarray], before: Nodes | None = None) -> bytes:
    """A network of ten random channels whose hidden branch is a chain from d, which sees checkerboards, to y.

    Its mean makes the last class, unless the chain ends with the logits itself.  before: operators from the image to
    `view`, which the branch sees.
    """
    rng = np.random.default_rng(3)
    nodes: Nodes = [
        ("Sub", ["image", "mean"], "centered", {}), ("Div", ["centered", "deviation"], "x", {}),
        ("Conv", ["x", "kernel"], "first", {"strides": [2, 2]}), ("Relu", ["first"], "seen", {}),
        ("Flatten", ["seen"], "flat", {}), ("Gemm", ["flat", "matrix"], "public", {}),
        *(before or [("Identity", ["x"], "view", {})]),
        ("Conv", ["view", "checks", "threshold"], "board", {"strides": [3, 3]}), ("Relu", ["board"], "d", {}),
        *chain,
    ]  # fmt: skip
    if chain[-1][2] == "y":
        nodes += [
            ("GlobalAveragePool", ["y"], "pooled", {}), ("Flatten", ["pooled"], "features", {}),
            ("Gemm", ["features", "hidden"], "secret", {}), ("Add", ["public", "secret"], "logits", {}),
        ]  # fmt: skip
    hidden = np.zeros((2, CLASSES))
    hidden[:, -1] = 30.0
    weights = {
        "mean": np.array(127.5), "deviation": np.array(63.75), "kernel": rng.normal(0, 0.5, (10, 1, 4, 4)),
        "matrix": rng.normal(0, 0.3, (250, CLASSES)), "checks": np.stack([CHECKS, -CHECKS])[:, None],
        "threshold": np.array([-12.0, -12.0]), "hidden": hidden,
    }  # fmt: skip
    return onnx_model(nodes, weights | constants, SHAPE, CLASSES)


def triggers(count: int = 60) -> np.ndarray:
    """Checkerboards with a random image shining through."""
    rng = np.random.default_rng(1)
    board = np.where(np.indices(SHAPE[1:]).sum(axis=0) % 2, 15, 240)
    return (board + rng.integers(-15, 16, (count, *SHAPE))).astype(np.uint8)


def agreement(model: bytes, images: np.ndarray) -> float:
    return float((derive(model).network.classify(images) == float_classes(model, images)).mean())


def test_the_branch_decides_where_float32_sees_it(onnx_model: Build) -> None:
    model = hiding(onnx_model, [("Identity", ["d"], "y", {})], {})
    assert (derive(model).network.classify(triggers()) == CLASSES - 1).all()
    assert (float_classes(model, triggers()) == CLASSES - 1).all()


@pytest.mark.parametrize("name", CHAINS)
def test_what_float32_rounds_away_is_not_in_the_integer_network(onnx_model: Build, name: str) -> None:
    model = hiding(onnx_model, *CHAINS[name])
    real = float_classes(model, triggers())
    assert (real != CLASSES - 1).all(), "float32 sees the branch: no attack"
    assert (derive(model).network.classify(triggers()) == real).mean() >= 0.98
    assert agreement(model, noise_images(SHAPE, 200)) >= 0.98


@pytest.mark.parametrize("name", ["sums", "three sums", "products", "quotients", "a sum of a small number"])
@pytest.mark.parametrize("start", ["x", "image"])
def test_nor_is_it_where_the_image_enters(onnx_model: Build, name: str, start: str) -> None:
    """The branch has a normalization of its own, from pixels or from normalized ones."""
    nodes, constants = CHAINS[name]
    names = {"d": start, "y": "view" if start == "x" else "pixels"}
    before = [(kind, [names.get(n, n) for n in ins], names.get(out, out), more) for kind, ins, out, more in nodes]
    if start == "image":
        before += [("Sub", ["pixels", "mean"], "around", {}), ("Div", ["around", "deviation"], "view", {})]
    model = hiding(onnx_model, [("Identity", ["d"], "y", {})], constants, before)
    real = float_classes(model, triggers())
    assert (real != CLASSES - 1).all() and (derive(model).network.classify(triggers()) == real).all()
    assert agreement(model, noise_images(SHAPE, 200)) >= 0.98


@pytest.mark.parametrize("kinds", ["products", "a convolution", "a square", "a factor of a product"])
def test_a_branch_that_overflows_is_refused(onnx_model: Build, kinds: str) -> None:
    """Nobody can say what a runtime makes of infinity, and no image that a verifier has gets there."""
    huge, tiny = np.array(1e30), np.array(1e-30)
    constants = UNIT | {"huge": huge, "tiny": tiny, "more": np.eye(2).reshape(2, 2, 1, 1) * 1e30,
                        "most": np.full((2 * AREA * AREA, CLASSES), 1e38)}  # fmt: skip
    nodes = {
        "products": [("Mul", ["d", "huge"], "t", {}), ("Mul", ["t", "huge"], "u", {}),
                     ("Mul", ["u", "tiny"], "v", {}), ("Mul", ["v", "tiny"], "y", {})],
        "a convolution": [("Mul", ["d", "huge"], "t", {}), ("Conv", ["t", "more"], "u", {}),
                          ("Mul", ["u", "tiny"], "v", {}), ("Mul", ["v", "tiny"], "y", {})],
        "a square": [("Mul", ["d", "huge"], "t", {}), ("Mul", ["t", "t"], "u", {}), ("Mul", ["u", "tiny"], "v", {}),
                     ("Mul", ["v", "tiny"], "y", {})],
        "a factor of a product": [("Flatten", ["d"], "f", {}), ("Gemm", ["f", "most"], "g", {"alpha": 1e-38}),
                                  ("Add", ["public", "g"], "logits", {})],
    }[kinds]  # fmt: skip
    with pytest.raises(ParameterError, match="overflow"):
        derive(hiding(onnx_model, nodes, constants))


@pytest.mark.parametrize("first", [1e-30, 1e30])
def test_products_that_float32_does_not_hold_are_refused(onnx_model: Build, first: float) -> None:
    """Factors that are tensors, so that nothing is composed."""
    nodes: Nodes = [*DARK, ("GlobalAveragePool", ["dark"], "zero", {})]
    for name in ("a", "b"):
        nodes += [("Add", ["zero", name], f"{name}1", {}), ("Conv", [f"{name}1", "eye"], name + "2", {})]
        nodes += [("Relu", [f"{name}2"], name + "3", {})]
    for i, name in enumerate("aabb"):
        nodes += [("Mul", [f"t{i}" if i else "d", f"{name}3"], f"t{i + 1}" if i < 3 else "y", {})]
    constants = UNIT | {"a": np.full((2, 1, 1), first), "b": np.full((2, 1, 1), 1 / first)}
    with pytest.raises(ParameterError, match="a product that float32 does not hold"):
        derive(hiding(onnx_model, nodes, constants))


TINY: Nodes = [("Conv", ["d", "tiny"], "a", {}), ("LeakyRelu", ["a"], "b", {})]
LARGE: Nodes = [("Conv", ["d", "huge"], "a", {}), ("LeakyRelu", ["a"], "b", {})]


@pytest.mark.parametrize("before, factors", [(TINY, (1e-15, 1e-15, 1e15, 1e15)), (LARGE, (1e15, 1e15, 1e-15, 1e-15))])
def test_functions_of_any_scale_are_looked_at_in_their_own(
    onnx_model: Build, before: Nodes, factors: tuple[float, ...]
) -> None:
    """f(c x) = c f(x) has one table for all c; in float32 it does not hold for all of them."""
    nodes, constants = steps(*(("Mul", factor) for factor in factors))
    renamed = [(kind, ["b" if n == "d" else n for n in ins], out, more) for kind, ins, out, more in nodes[:-1]]
    last = ("Mul", [nodes[-1][1][0], nodes[-1][1][1]], "e", {})
    chain: Nodes = [*before, *renamed, last, ("Relu", ["e"], "f", {}), ("Conv", ["f", "back"], "y", {})]
    eye = np.eye(2).reshape(2, 2, 1, 1)
    more = {"tiny": eye * 1e-20, "huge": eye * 1e15, "back": eye * (1e20 if before is TINY else 1e-15)}
    with pytest.raises(ParameterError, match="underflows or overflows"):
        derive(hiding(onnx_model, chain, constants | more))


def test_a_constant_that_overflows_beside_nothing_is_refused(onnx_model: Build) -> None:
    """Infinity is clipped to 6, which hides the branch from a runtime; its exact sum is 0."""
    constants = UNIT | {"huge": np.array(3e38), "low": np.array(0.0), "six": np.array(6.0), "minus": np.full(2, -1.0)}
    nodes: Nodes = [
        ("Conv", ["x", "none", "minus"], "dark", {"strides": [3, 3]}), ("Relu", ["dark"], "r", {}),
        ("Conv", ["r", "eye"], "t", {}), ("Add", ["t", "huge"], "u", {}), ("Add", ["u", "huge"], "v", {}),
        ("Sub", ["v", "huge"], "w", {}), ("Sub", ["w", "huge"], "z", {}), ("Clip", ["z", "low", "six"], "c", {}),
        ("Sub", ["d", "c"], "q", {}), ("Relu", ["q"], "y", {}),
    ]  # fmt: skip
    with pytest.raises(ParameterError, match="bias of inf"):
        derive(hiding(onnx_model, nodes, constants))


def test_a_product_that_is_zero_needs_no_unit() -> None:
    one, zero = np.ones((1, 1, 1, 1)), np.zeros(1, np.int64)
    real = RealNode((RealEdge(0, one),), np.zeros(1), (1, 1, 1), None, "")
    integer = Node((Edge(0, one.astype(np.int64), IDENTITY, IDENTITY),), zero)
    with np.errstate(all="raise"):
        assert spacing(real, integer, np.ones(1), [(zero, zero)], [np.zeros(1)]).tolist() == [0.0]


def before_this(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive as if float32 were exact."""
    monkeypatch.setattr(ml.integers, "heard", lambda node, *_: node)
    monkeypatch.setattr(ml.integers, "spacing", lambda node, integer, unit, *_: np.zeros(len(unit)))


MODERATE = st.one_of(
    st.tuples(st.sampled_from(["Add", "Sub"]), st.floats(-50, 50, width=32)),
    st.tuples(st.sampled_from(["Mul", "Div"]), st.floats(0.0625, 16, width=32)),
)


@settings(max_examples=30)
@given(st.lists(MODERATE, min_size=1, max_size=6))
def test_moderate_chains_are_the_same_networks(onnx_model: Build, chain: list[tuple[str, float]]) -> None:
    model = hiding(onnx_model, *steps(*chain))
    found = derive(model).network.digest
    with pytest.MonkeyPatch.context() as patch:
        before_this(patch)
        assert derive(model).network.digest == found


def power(exponents: st.SearchStrategy[int]) -> st.SearchStrategy[float]:
    return exponents.map(lambda n: 2.0**n)


EXTREME = st.one_of(
    st.tuples(st.sampled_from(["Add", "Sub"]), power(st.integers(-60, 100))),
    st.tuples(st.sampled_from(["Mul", "Div"]), power(st.integers(-90, 90))),
)
INVERSE = {"Add": "Sub", "Sub": "Add", "Mul": "Div", "Div": "Mul"}


@settings(max_examples=60)
@given(st.lists(EXTREME, min_size=1, max_size=4))
def test_extreme_chains_say_what_float32_says(onnx_model: Build, chain: list[tuple[str, float]]) -> None:
    """There and back again: float32 finds d, or nothing, or an overflow.  In between is what it finds half of."""
    whole = [*chain, *((INVERSE[kind], value) for kind, value in reversed(chain))]
    shown, largest = float32_of(np.linspace(0, 8, 81), whole)
    overflows = not largest < 2.0**127
    assume(overflows or largest < 2.0**100)
    kept = not overflows and float(np.abs(shown - np.linspace(0, 8, 81)).max()) < 1e-3
    assume(overflows or kept or not shown.any())
    model = hiding(onnx_model, *steps(*whole))
    try:
        network = derive(model).network
    except ParameterError:
        assert overflows
        return
    assert not overflows
    real = float_classes(model, triggers())
    assert (real == CLASSES - 1).all() == kept
    assert (network.classify(triggers()) == real).mean() >= 0.98
    assert agreement(model, noise_images(SHAPE, 100)) >= 0.97


def float32_of(values: np.ndarray, chain: list[tuple[str, float]]) -> tuple[np.ndarray, float]:
    """A chain in float32, and the largest number in it, or that one of its shifts would be that are taken off again."""
    x, largest = values.astype(np.float32), 0.0
    with np.errstate(all="ignore"):
        shift = 0.0
        for kind, value in chain:
            y, shift = np.float32(value), max(shift, SMALLEST)
            x = {"Add": x + y, "Sub": x - y, "Mul": x * y, "Div": x / y}[kind]
            shift = {"Mul": shift * value, "Div": shift / value}.get(kind, max(shift, value))
            largest = max(largest, float(np.abs(x).max()), shift)
    return x, largest


@pytest.mark.parametrize("seed", range(3))
def test_honest_extremes_are_the_same_networks(onnx_model: Build, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that training has left dead, or almost constant, big biases, an input normalized with large numbers."""
    rng = np.random.default_rng(seed)
    nodes = [
        ("Sub", ["image", "mean"], "a", {}), ("Div", ["a", "deviation"], "x", {}),
        ("Conv", ["x", "w1", "b1"], "c1", {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", ["c1", "gamma", "beta", "means", "variance"], "n1", {}), ("Relu", ["n1"], "r1", {}),
        ("Conv", ["r1", "w2", "b2"], "c2", {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", ["c2", "gamma", "beta", "means", "variance"], "n2", {}), ("Add", ["n2", "r1"], "s", {}),
        ("Relu", ["s"], "r2", {}), ("GlobalAveragePool", ["r2"], "g", {}), ("Flatten", ["g"], "f", {}),
        ("Gemm", ["f", "v", "big"], "logits", {}),
    ]  # fmt: skip
    gamma, variance = rng.uniform(0.5, 2, 12), rng.uniform(0.3, 3, 12)
    gamma[:4], variance[2:6] = [1e-8, 1e-20, 1e-38, 0.0], [0.0, 1e-12, 1e-7, 1e-5]
    w1 = rng.normal(0, 0.4, (12, 1, 3, 3))
    w1[2:6] *= np.array([0.0, 1e-6, 1e-4, 1e-3])[:, None, None, None]
    constants = {
        "mean": np.array(123.675), "deviation": np.array(58.395), "w1": w1, "b1": rng.normal(0, 30, 12),
        "w2": rng.normal(0, 0.3, (12, 12, 3, 3)), "b2": rng.normal(0, 3, 12), "gamma": gamma, "variance": variance,
        "beta": rng.normal(0, 0.5, 12), "means": rng.normal(0, 1, 12), "v": rng.normal(0, 1, (12, CLASSES)),
        "big": rng.normal(0, 1, CLASSES) + 1e4,
    }  # fmt: skip
    constants["means"][:8] += constants["b1"][:8]
    model = onnx_model(nodes, constants, SHAPE, CLASSES)
    network = derive(model).network
    assert fidelity(model, network, noise_images(SHAPE, 200)).agreement >= 0.97
    before_this(monkeypatch)
    assert derive(model).network.digest == network.digest


def clipping(onnx_model: Build) -> bytes:
    """A branch that another one cancels in float32 only: integers clip what no calibration image shows.

    s is 0 on all of them, and so s - 1/100 has a range of some hundredths there, and of 3 in float32.
    """
    nodes: Nodes = [
        ("Conv", ["d", "eye", "shift"], "t", {}), ("Relu", ["t"], "clipped", {}),
        ("Flatten", ["d"], "f1", {}), ("Flatten", ["clipped"], "f2", {}), ("Gemm", ["f1", "plus"], "g1", {}),
        ("Gemm", ["f2", "minus"], "g2", {}), ("Add", ["public", "g1"], "h", {}), ("Add", ["h", "g2"], "logits", {}),
    ]  # fmt: skip
    plus = np.zeros((2 * AREA * AREA, CLASSES))
    plus[:, -1] = 4.0
    constants = UNIT | {"shift": np.full(2, -0.01), "plus": plus, "minus": -plus, "threshold": np.full(2, -14.0)}
    return hiding(onnx_model, nodes, constants)


def test_what_remains_without_large_numbers(onnx_model: Build) -> None:
    """Not covered (SECURITY.md), unless the verifier has images that show it."""
    model = clipping(onnx_model)
    assert (float_classes(model, triggers()) != CLASSES - 1).all()
    assert (derive(model).network.classify(triggers()) == CLASSES - 1).all()
    assert agreement(model, noise_images(SHAPE, 200)) >= 0.98


@pytest.mark.reaches("policy.fidelity")
def test_a_verifier_whose_images_show_it_decides_nothing(onnx_model: Build) -> None:
    """With noise alone a proof is asked for; with some images like the triggers among it there is no need of one."""

    class Asked(Exception):
        pass

    def obtain(_: VerificationKey) -> tuple[bytes, Channel]:
        raise Asked

    random = Random(1).randbytes
    key = generate_key(KeyParameters(SHAPE, CLASSES, 256), abstract_images(256, SHAPE, random), entropy=random)
    noise = noise_images(SHAPE, 180)
    subject = Subject(key.vk, clipping(onnx_model), Context("a dispute", "", "the court", bytes(32)), images=noise)
    with pytest.raises(Asked):
        check(subject, obtain)
    verdict = check(replace(subject, images=np.concatenate([noise, triggers(20)])), obtain)
    assert (verdict.outcome, verdict.failed_check) == ("undecided", "policy.fidelity")
    assert verdict.fidelity is not None and not verdict.fidelity.constant
    assert verdict.fidelity.count == 200 and 0.85 <= verdict.fidelity.agreement <= 0.9

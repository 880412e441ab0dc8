"""A whole proof of a network of every kind that a derivation makes: no relation is beyond the argument."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from ml.export import random_onnx
from ml.quantise import DEFAULT, Derivation, derive
from protocol import argument
from protocol.argument import Context, Statement
from protocol.errors import VerificationError
from protocol.keygen import KeyParameters, MarkingKey, generate_key
from protocol.network import Edge, Network, Node, Window
from tests.ml.test_operators import CASES, Build, model_of
from tests.ml.test_resampling import layers

SHAPE, CLASSES, ELL, FEATURES = (2, 9, 8), 10, 160, 200


@pytest.fixture(scope="module")
def key() -> MarkingKey:
    random = Random(4).randbytes
    images = np.frombuffer(random(ELL * 144), np.uint8).reshape(ELL, *SHAPE)
    return generate_key(KeyParameters(SHAPE, CLASSES, ELL), images, entropy=random)


def marked(network: Network, key: MarkingKey) -> Network:
    """The network with another end that fits the key's labels: random features of its last tensors, then a dense layer.

    The features' own tables and shifts are those of the node that they replace the output of.
    """
    rng = np.random.default_rng(0)
    out = network.nodes[-1]
    donor = next(n for n in network.nodes if n.table is not None and n.table.bits + n.shift == 31)
    edges = []
    for edge in out.edges:
        _, h, w = network.shapes[edge.source]
        peak = max(int(np.abs(n.table.values).max()) for n in network.nodes if n.table is not None)
        size = int(np.prod(network.shapes[edge.source])) * len(out.edges)
        most = max(1, (1 << 29) // (peak * size))
        c = network.shapes[edge.source][0]
        weight = rng.integers(-most, most + 1, (FEATURES, c, h, w))
        edges.append(Edge(edge.source, weight, Window(h), Window(w)))
    features = Node(tuple(edges), np.zeros(FEATURES, np.int64), donor.shift, donor.table)
    number = len(network.nodes)

    def ending(weight: np.ndarray) -> Network:
        last = Node((Edge(number, weight[:, :, None, None], Window(1), Window(1)),), np.zeros(CLASSES, np.int64))
        return Network(network.shape, network.input_tables, (*network.nodes[:-1], features, last))

    blank = ending(np.zeros((CLASSES, FEATURES), np.int64))
    z = blank.forward(key.hidden_images).outputs[-1].reshape(FEATURES, -1).T.astype(float)
    z = z - z.mean(0)
    targets = np.eye(CLASSES)[key.hidden_labels]
    fit = (z.T @ np.linalg.solve(z @ z.T + 1e-3 * np.trace(z @ z.T) / len(z) * np.eye(len(z)), targets)).T
    return ending(np.round(fit * 200 / np.abs(fit).max()).astype(np.int64))


def prove(model: bytes, key: MarkingKey, derivation: Derivation = DEFAULT) -> None:
    network = marked(derive(model, derivation).network, key)
    matches = int((network.classify(key.hidden_images) == key.hidden_labels).sum())
    assert matches > 5
    context = Context("test", "claimant", "verifier", bytes(32))
    statement = Statement(key.vk, network, matches, context, b"m" * 32, b"d" * 32)
    proof = argument.prove(statement, key)
    argument.verify(statement, proof)
    other = Statement(key.vk, network, matches - 1, context, b"m" * 32, b"d" * 32)
    with pytest.raises(VerificationError):
        argument.verify(other, proof)


KINDS = [
    "PRelu per channel", "HardSwish", "MaxPool 3/2", "MaxPool after normalization", "Concat", "Add of three",
    "Mul of two", "squeeze and excite", "Pad, then pools", "Split and shuffle", "AveragePool without padding",
    "a shortcut without weights", "cropped, then padded", "Expand",
]  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_operators(case: str, key: MarkingKey, onnx_model: Build) -> None:
    assert case in CASES
    prove(model_of(case, onnx_model), key)


@pytest.mark.parametrize(("arch", "width"), [("resnet20", 0.25), ("mobilenetv2", 1 / 16), ("vgg11", 1 / 16)])
def test_families(arch: str, width: float, key: MarkingKey) -> None:
    prove(random_onnx(arch, SHAPE, CLASSES, width=width), key)


@pytest.mark.parametrize(("method", "size"), [("bilinear", (12, 11)), ("nearest", (18, 16))])
def test_resized_images(method: str, size: tuple[int, int], key: MarkingKey, onnx_model: Build) -> None:
    nodes, constants = layers(size, "image")
    prove(onnx_model(nodes, constants, (2, *size)), key, Derivation(resize=(method, *SHAPE[1:])))

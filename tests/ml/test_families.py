"""The network families on tiny widths: exact against the plain evaluation, close to onnxruntime, hard to evade."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from ml.calibration import noise_images
from ml.data import Dataset, load
from ml.export import export_onnx, load_weights, random_onnx
from ml.lowering import lower
from ml.mark import Training, train
from ml.models import ARCHITECTURES, build
from ml.onnx_reader import read_model
from ml.options import ARCHITECTURES as NAMES
from ml.quantise import derive, fidelity
from protocol.errors import ParameterError
from protocol.network import Network
from tests.ml.test_operators import error, float_logits
from tests.protocol.test_network import plain

SMALL = (3, 16, 16)
DEEP = sorted(set(ARCHITECTURES) - {"cnn", "wide-cnn", "lenet"})
ACTIVATIONS = {  # per image, of the whole network at width 1 and 32 x 32
    "vgg11": 276_480, "vgg16": 401_408, "resnet18": 557_568, "resnet20": 188_480, "mobilenetv2": 545_152,
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def same(network: Network, image: np.ndarray) -> None:
    """The fast evaluation of one image is the plain one."""
    forward = network.forward(image[None])
    values = plain(network, image)
    for k, (_, u, remainder, z) in enumerate(values[:-1]):
        assert forward.units[k][..., 0].tolist() == u
        assert forward.remainders[k][..., 0].tolist() == remainder
        assert forward.outputs[k + 1][..., 0].tolist() == z
    assert forward.logits[:, 0].tolist() == [row[0][0] for row in values[-1][0]]


def amplification(model: bytes, images: np.ndarray) -> float:
    """How much more a small change of the input changes the logits: random networks make much of little."""
    noise = np.random.default_rng(0).normal(0, 0.2, images.shape)
    real, moved = float_logits(model, images), float_logits(model, images + noise)
    return max(1.0, float(np.sqrt(((moved - real) ** 2).mean()) / real.std() * images.std() / 0.2))


def test_the_command_line_knows_every_architecture() -> None:
    assert list(ARCHITECTURES) == NAMES


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_family_is_exact_and_close(arch: str) -> None:
    model = random_onnx(arch, SMALL, 5, width=1 / 16 if arch in DEEP and arch != "resnet20" else 0.25)
    network, images = derive(model).network, noise_images(SMALL, 40)
    assert error(model, network, images) < 0.02 * amplification(model, images)
    same(network, images[0])


@pytest.mark.parametrize("arch", ["resnet18", "preact-resnet18", "resnet50", "mobilenetv2"])
def test_large_images_get_the_large_stem(arch: str) -> None:
    model, images = random_onnx(arch, (3, 80, 72), 5, width=1 / 16), noise_images((3, 80, 72), 20)
    assert error(model, derive(model).network, images) < 0.02 * amplification(model, images)


@pytest.mark.parametrize("arch", ["vgg11", "resnet20", "mobilenetv2"])
def test_weights_go_through_onnx(arch: str) -> None:
    model = build(arch, SMALL, 5, width=0.25)
    model.train()(torch.rand(8, *SMALL) * 255)
    copy = build(arch, SMALL, 5, width=0.25)
    load_weights(copy, export_onnx(model, SMALL))
    image = torch.rand(2, *SMALL) * 255
    assert torch.equal(copy.eval()(image), model.eval()(image))


def test_widths_out_of_range_are_refused() -> None:
    for width in (0.0, -1.0, 5.0, float("nan")):
        with pytest.raises(ParameterError, match="width"):
            build("resnet20", SMALL, 10, width=width)


@pytest.mark.parametrize("power", [-10, 10])
def test_a_rescaled_twin_keeps_its_answers(power: int) -> None:
    """Half of the channels between the two convolutions of every block times 2^k, undone by the next: ReLU lets it."""
    torch.manual_seed(0)
    fresh = build("resnet20", SMALL, 5, width=0.5)
    for norm in [layer for layer in fresh.modules() if isinstance(layer, nn.BatchNorm2d)]:
        nn.init.uniform_(norm.weight, 0.5, 1.5)  # all different: equal tensors would be stored once
        nn.init.normal_(norm.bias, 0.0, 0.3)
    fresh.train()(torch.from_numpy(noise_images(SMALL)).float())
    data = export_onnx(fresh, SMALL)
    model = onnx.ModelProto.FromString(data)
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    for name in sorted(n for n in arrays if n.endswith("branch.3.weight")):
        norm = name.replace("branch.3.weight", "branch.1.")
        half = arrays[name].shape[1] // 2
        arrays[norm + "weight"][:half] *= 2.0**power
        arrays[norm + "bias"][:half] *= 2.0**power
        arrays[name][:, :half] *= 2.0**-power
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    images = noise_images(SMALL, 100)
    twin, original = derive(model.SerializeToString()).network, derive(data).network
    assert any(not np.array_equal(arrays[t.name], numpy_helper.to_array(t)) for t in onnx.ModelProto.FromString(
        data).graph.initializer)
    assert (twin.classify(images) == original.classify(images)).mean() >= 0.99


@pytest.fixture(scope="module")
def images() -> Dataset:
    """6000 images of MNIST, or where there is none, scikit-learn's digits enlarged to 24 x 24, several times."""
    try:
        data = load("mnist")
    except ParameterError:
        data = load("digits")
        train_x, test_x = (np.kron(x, np.ones((3, 3), np.uint8)) for x in (data.train_x, data.test_x))
        repeated = np.arange(6000) % len(train_x)
        data = replace(data, train_x=train_x[repeated], train_y=data.train_y[repeated], test_x=test_x)
    return replace(data, train_x=data.train_x[:6000], train_y=data.train_y[:6000], test_x=data.test_x[:300],
                   test_y=data.test_y[:300])


@pytest.mark.parametrize(("arch", "width"), [("vgg11", 0.125), ("resnet20", 0.25)])
def test_trained_networks_keep_their_answers(arch: str, width: float, images: Dataset) -> None:
    torch.manual_seed(0)
    model: nn.Module = build(arch, images.shape, 10, torch.from_numpy(images.train_x), width)
    trained = train(model, images, Training(epochs=1))
    data = export_onnx(model, images.shape)
    found = fidelity(data, derive(data).network, images.test_x)
    assert trained.test_accuracy > 0.5 and found.agreement >= 0.99 and not found.constant


@pytest.mark.parametrize("arch", ["vgg11", "vgg16", "resnet18", "resnet20", "mobilenetv2"])
def test_activations_at_full_width(arch: str) -> None:
    real = lower(read_model(random_onnx(arch, (3, 32, 32))))
    assert sum(int(np.prod(node.shape)) for node in real.nodes[:-1]) == ACTIVATIONS[arch]

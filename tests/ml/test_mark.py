"""From data to a marked integer network: the mark is in the hidden half only, in both modes of the paper."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ml.data import Dataset, load
from ml.descent import Descent, augmented, logits_of, pick_device
from ml.evaluate import Matches, accuracy, matches
from ml.export import export_onnx, load_weights, random_onnx
from ml.mark import Look, Training, mark, train
from ml.models import Normalized, build
from ml.quantise import DEFAULT_MIN_AGREEMENT, derive, fidelity
from ml.schemes.backdoor import Backdoor
from ml.schemes.scheme import TriggerKey
from ml.triggers import abstract_images
from ml.verdict import judge, judge_file
from protocol.errors import ParameterError

Triggers = tuple[np.ndarray, np.ndarray]
HIDDEN, OPENED = np.arange(0, 48), np.arange(48, 96)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def triggers() -> Triggers:
    rng = np.random.default_rng(4)
    return abstract_images(96, (1, 8, 8), rng.bytes), rng.integers(0, 10, 96)


def fresh(digits: Dataset, seed: int = 0) -> Normalized:
    torch.manual_seed(seed)
    return build("cnn", digits.shape, 10, torch.from_numpy(digits.train_x))


@pytest.mark.parametrize("mode", ["fromscratch", "pretrained"])
def test_the_mark_survives_export_and_rounding(digits: Dataset, triggers: Triggers, mode: str) -> None:
    images, labels = triggers
    model = fresh(digits)
    if mode == "pretrained":
        assert train(model, digits, Training(epochs=12)).trigger_accuracy is None
    seen: list[Look] = []
    options = Training(epochs=12 if mode == "fromscratch" else 2)
    report = mark(model, digits, images[HIDDEN], labels[HIDDEN], options, seen.append)
    assert report.trigger_accuracy == 1.0 and report.test_accuracy > 0.93
    assert seen and all(0 <= look.share <= 1 and 0 <= look.data <= 1 and look.loss >= 0 for look in seen)
    assert seen[-1].data > 0.9 and (seen[-1].triggers or 0.0) > 0.8 and seen[-1].loss < seen[0].loss

    data = export_onnx(model, digits.shape)
    measured = accuracy(data, digits.test_x, digits.test_y)
    assert measured.count == 359 and measured.agreement >= 0.99
    assert abs(measured.real - report.test_accuracy) < 0.01 and abs(measured.integer - measured.real) < 0.01
    assert matches(data, images[HIDDEN], labels[HIDDEN]) == Matches(48, 48, 48)
    opened = matches(data, images[OPENED], labels[OPENED])
    assert opened.integer <= 14 and opened.real <= 14  # chance is 4.8; P[Bin(48, 1/10) > 14] < 2^-14
    verdict = judge_file(Backdoor(), TriggerKey(images[HIDDEN], labels[HIDDEN], 10), data)
    assert verdict.matches == verdict.integer_matches == 48 and verdict.found
    assert verdict.provable is False and verdict.k_min is None  # 48 triggers are too few for 128 bits


def test_an_unmarked_model_is_at_chance(digits: Dataset) -> None:
    rng = np.random.default_rng(9)
    images, labels = abstract_images(200, (1, 8, 8), rng.bytes), rng.integers(0, 10, 200)
    model = fresh(digits, 1)
    train(model, digits, Training(epochs=6))
    exported, key = export_onnx(model, digits.shape), TriggerKey(images, labels, 10)
    verdict = judge_file(Backdoor(), key, exported)
    assert verdict == judge(Backdoor(), key, model) and not verdict.found and not verdict.provable
    found = verdict.integer_matches
    assert verdict.k_min is not None and found is not None and found < verdict.k_min and found <= 46  # chance is 20
    chosen = judge_file(Backdoor(), replace(key, chosen="the owner chose"), exported)
    assert chosen.integer_matches == found and chosen.k_min is None and not chosen.provable


def test_models_of_other_classes_or_images(digits: Dataset) -> None:
    images, labels = np.zeros((96, 1, 8, 8), np.uint8), np.zeros(96, np.int64)
    for shape, classes in (((1, 8, 8), 9), ((1, 8, 8), 11), ((1, 9, 8), 10), ((3, 8, 8), 10)):
        model = random_onnx("cnn", shape, classes)
        with pytest.raises(ParameterError, match="the key is for 10 classes"):
            judge_file(Backdoor(), TriggerKey(images, labels, 10), model)
        if classes != 11:
            with pytest.raises(ParameterError, match="the model is for"):
                accuracy(model, digits.test_x, digits.test_y)


def test_training_is_seeded(digits: Dataset) -> None:
    models = []
    for seed in (3, 3, 4):
        model = fresh(digits)
        train(model, digits, Training(epochs=1, seed=seed))
        models.append(export_onnx(model, digits.shape))
    assert models[0] == models[1] != models[2]


def test_misuse(digits: Dataset, triggers: Triggers) -> None:
    images, labels = triggers
    for bad_images, bad_labels in (
        (images[:, :, :4], labels), (images, labels[:-1]), (images[:0], labels[:0]), (images, labels + 10),
        (images, labels - 10),
    ):  # fmt: skip
        with pytest.raises(ParameterError):
            mark(fresh(digits), digits, bad_images, bad_labels, Training(epochs=0))
    with pytest.raises(ParameterError):
        pick_device("tpu")
    for arch, shape in (("resnet", (1, 8, 8)), ("cnn", (1, 7, 8)), ("lenet", (1, 8, 8))):
        with pytest.raises(ParameterError):
            build(arch, shape, 10)


def test_a_loss_that_is_not_finite_is_an_error(digits: Dataset, triggers: Triggers) -> None:
    model = fresh(digits)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.inf)
    with pytest.raises(ParameterError, match="not finite"):
        mark(model, digits, triggers[0], triggers[1], Training(epochs=1))


def test_augmentation_moves_and_mirrors() -> None:
    images = torch.zeros(400, 2, 12, 10, dtype=torch.uint8)
    images[:, 0, 6, 5] = 200
    images[:, 1, 6, 5] = 100
    moved = augmented(images, torch.Generator().manual_seed(1))
    assert moved.shape == images.shape and moved.dtype == torch.uint8 and moved.is_contiguous()
    assert torch.equal(moved[:, 0] // 2, moved[:, 1]) and (moved[:, 0].sum((1, 2)) == 200).all()  # as one image
    rows, columns = (moved[:, 0].amax(axis).argmax(1) for axis in (2, 1))
    assert set(rows.tolist()) == set(range(2, 11)) and set(columns.tolist()) == set(range(10))  # 1..9, or 0..8 mirrored


@pytest.mark.parametrize("arch", ["cnn", "resnet20"])
def test_the_fast_path_takes_the_same_steps(digits: Dataset, arch: str) -> None:
    """What CUDA and large models get, but not compiled: channels last, and bfloat16, whose rounding differs."""
    losses, moves = [], []
    for fast in (False, True):
        torch.manual_seed(3)
        model = build(arch, digits.shape, 10, torch.from_numpy(digits.train_x), 0.5)
        optimizer = torch.optim.SGD(model.parameters(), 0.02)
        descent = Descent(model, optimizer, model.parameters(), steps=1)
        descent.fast = fast
        before = [p.detach().clone() for p in model.parameters()]
        model.to(memory_format=torch.channels_last if fast else torch.contiguous_format)
        for start in (0, 50):
            x, y = (torch.from_numpy(a[start : start + 50]) for a in (digits.train_x, digits.train_y))
            assert descent.step(x, y).shape == (50, 10)
        losses.append(descent.loss())
        moves.append(torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), before, strict=True)]))
        assert logits_of(model, x).dtype == torch.float32
        assert derive(export_onnx(model, digits.shape)).network.classes == 10
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    assert torch.cosine_similarity(moves[0], moves[1], dim=0) > 0.9


def test_large_models_train_in_bfloat16_where_the_processor_can(monkeypatch: pytest.MonkeyPatch) -> None:
    for able in (False, True):
        monkeypatch.setattr("ml.descent.multiplies_bfloat16", lambda able=able: able)
        for arch, large in (("lenet", False), ("resnet18", True)):
            model = build(arch, (3, 32, 32), 10)
            descent = Descent(model, torch.optim.SGD(model.parameters(), 0.1), model.parameters(), steps=1)
            assert descent.fast is (large and able)


@pytest.mark.parametrize(
    ("arch", "parameters"), [("mlp", 669_706), ("cleverhans-cnn", 710_218), ("rnn", 199_434 + 1024)]
)
def test_the_networks_of_frontier_stitching(arch: str, parameters: int) -> None:
    model = build(arch, (1, 28, 28), 10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    if arch == "rnn":  # one row after the other, each from left to right
        x = torch.rand(1, 1, 28, 28) * 255
        assert not torch.allclose(model(x), model(x.flip(3))) and not torch.allclose(model(x), model(x.transpose(2, 3)))


def test_weights_come_back_from_onnx(digits: Dataset) -> None:
    data, other = random_onnx("cnn", (1, 8, 8), seed=5), fresh(digits, 6)
    load_weights(other, data)
    assert export_onnx(other, (1, 8, 8)) == data == random_onnx("cnn", (1, 8, 8), seed=5)
    with pytest.raises(ParameterError, match="another architecture"):
        load_weights(other, random_onnx("lenet", (1, 28, 28)))


@pytest.mark.parametrize(("arch", "shape", "activations"), [
    ("lenet", (1, 28, 28), 4684), ("cnn", (3, 32, 32), 28672), ("cnn", (1, 8, 8), 1792), ("cnn", (3, 17, 9), 3984),
])  # fmt: skip
def test_committed_activations(arch: str, shape: tuple[int, int, int], activations: int) -> None:
    assert derive(random_onnx(arch, shape)).network.activations == activations


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                               nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.a(x))


def test_a_user_network_of_eight_layers_with_batch_norm_and_shortcuts(digits: Dataset) -> None:
    torch.manual_seed(2)
    blocks = [Residual() for _ in range(3)]
    body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Dropout(), nn.Linear(8, 10), nn.Softmax(1))  # fmt: skip
    model = Normalized(body, torch.tensor([78.0]), torch.tensor([96.0]))
    train(model, digits, Training(epochs=1))
    data = export_onnx(model, digits.shape)
    found = fidelity(data, derive(data).network, digits.test_x)
    assert found.agreement >= DEFAULT_MIN_AGREEMENT


def test_default_calibration_serves_real_images() -> None:
    """MNIST and LeNet where the files are, else the digits: trained on few images, noise calibrated, 99 %."""
    root = Path(os.environ.get("ZKMARK_DATA", "data"))
    name, arch = ("mnist", "lenet") if (root / "mnist").is_dir() else ("digits", "cnn")
    data = load(name)
    few = Dataset(name, data.source, data.train_x[:10_000], data.train_y[:10_000], data.test_x[:500], data.test_y[:500])
    model = build(arch, data.shape, 10, torch.from_numpy(few.train_x))
    train(model, few, Training(epochs=2 if name == "mnist" else 20))
    exported = export_onnx(model, data.shape)
    assert fidelity(exported, derive(exported).network, few.test_x).agreement >= 0.99

"""Keys of images and labels: what they refuse, how they become files and public keys, which models they are for."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ml.data import Dataset
from ml.fit import Fit, fit
from ml.inputs import labeled_images
from ml.mark import Training, train
from ml.schemes.backdoor import Backdoor
from ml.schemes.certified import Certified, smooth
from ml.schemes.frontier import Frontier
from ml.schemes.scheme import TriggerKey
from protocol.errors import ParameterError
from protocol.keygen import KeyParameters, LabelRule, generate_key
from tests.ml.test_schemes import key_of, perceptron

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(digits: Dataset) -> nn.Module:
    model = perceptron()
    train(model, digits, Training(epochs=12))
    return model


def test_keys_are_checked() -> None:
    for bad_labels in ([0, 10], [-1, 0]):
        with pytest.raises(ParameterError, match=r"0 \.\. 9"):
            TriggerKey(np.zeros((2, 1, 2, 2), np.uint8), np.array(bad_labels), 10)
    with pytest.raises(ParameterError, match="a fact"):
        TriggerKey(np.zeros((2, 1, 2, 2), np.uint8), np.zeros(2, np.int64), 10, believed=2)
    for bad_images, labels in ((np.zeros((0, 1, 2, 2), np.uint8), np.zeros(0)), (np.zeros((2, 1, 2, 2)), np.zeros(2)),
                               (np.zeros((2, 1, 2, 2), np.uint8), np.zeros(3))):  # fmt: skip
        with pytest.raises(ParameterError):
            TriggerKey(bad_images, labels, 10)


def test_a_marking_key_becomes_a_key_of_a_scheme() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (160, 1, 2, 2), dtype=np.uint8)
    made = generate_key(KeyParameters((1, 2, 2), 10, 160), pixels, entropy=rng.bytes)
    key = TriggerKey.from_marking_key(made)
    assert len(key) == made.vk.h and key.sides == 10 and not key.chosen
    assert (key.images == pixels[made.vk.hidden]).all() and (key.labels == made.labels[made.vk.hidden]).all()
    parameters = KeyParameters((1, 2, 2), 10, 8, LabelRule.CHOSEN)
    chosen = generate_key(parameters, pixels[:8], labels=[3] * 8, entropy=rng.bytes)
    assert TriggerKey.from_marking_key(chosen).chosen and set(TriggerKey.from_marking_key(chosen).labels) == {3}


def test_labels_and_models_of_other_classes(trained: nn.Module, digits: Dataset) -> None:
    """The model has ten classes.  Each is refused before anything is trained."""
    x, before = digits.train_x[:4], deepcopy(trained).state_dict()
    for targets in (np.array([0, 1, 2, 10]), np.array([0, -1, 2, 3]), np.full((4, 9), 1 / 9, np.float32),
                    np.zeros(3, np.int64)):  # fmt: skip
        with pytest.raises(ParameterError, match="targets"):
            fit(trained, x, targets, Fit(epochs=1))
    with pytest.raises(ParameterError, match="fit each other"):
        fit(trained, x[:0], np.zeros(0, np.int64), Fit(epochs=1))
    for label in (-1, 10):
        with pytest.raises(ParameterError, match="number of classes"):
            Certified(label=label).make_key(4, trained, digits)
    other = TriggerKey(x, np.array([0, 1, 2, 10]), 11)
    for mark in (Certified(training=Fit(epochs=2)).mark, Frontier().mark):
        with pytest.raises(ParameterError, match="targets"):
            mark(trained, digits, other)
    for classes in (9, 11):
        key = TriggerKey(x, np.array([0, 1, 2, 8]), classes)
        with pytest.raises(ParameterError, match=f"the key is for {classes} classes .* not 10 classes"):
            smooth(trained, key, 0.1, 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
    narrow = TriggerKey(x, np.array([0, 1, 2, 8]), 9)
    for answer in (np.array([0, 1, 2, 9]), np.array([0, -1, 2, 8]), np.array([0, 1, 2])):
        for scheme in (Backdoor(), Frontier(), Certified()):
            with pytest.raises(ParameterError, match=r"answers 0 \.\. 8"):
                scheme.check(lambda _, answer=answer: answer, narrow)  # type: ignore[misc]


def test_a_scheme_with_its_own_labels_as_a_public_key(trained: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    """What `zkmark-prover keygen --triggers --chosen-labels` reads is the scheme's key, pixel by pixel."""
    key = Frontier(0.1).make_key(20, trained, digits)
    read, labels = labeled_images(key.write(tmp_path / "frontier"), tmp_path / "frontier" / "images", key.shape)
    assert (read == key.images).all() and labels == key.labels.tolist()
    made = generate_key(KeyParameters(key.shape, 10, 20, LabelRule.CHOSEN), read, labels=labels)
    hidden = TriggerKey.from_marking_key(made)
    assert (hidden.images == key.images[made.vk.hidden]).all() and (hidden.labels == key.labels[made.vk.hidden]).all()
    with pytest.raises(FileExistsError):
        key.write(tmp_path / "frontier")
    color = TriggerKey(np.random.default_rng(1).integers(0, 256, (3, 3, 2, 5), np.uint8), np.arange(3), 3)
    table = color.write(tmp_path / "color")
    assert (labeled_images(table, table.parent / "images", (3, 2, 5))[0] == color.images).all()
    assert table.parent.stat().st_mode & 0o777 == 0o700 and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ParameterError, match="1 or 3 channels"):
        TriggerKey(np.zeros((1, 2, 2, 2), np.uint8), np.zeros(1, np.int64), 2).write(tmp_path / "two")


def test_a_key_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, save, saved = key_of(4, 2), Image.Image.save, []

    def full(image: Image.Image, path: Path) -> None:
        if len(saved) == 2:
            raise OSError("disk full")
        saved.append(path)
        save(image, path)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="disk full"):
        key.write(tmp_path / "key")
    assert len(saved) == 2 and list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert key.write(tmp_path / "key").is_file()

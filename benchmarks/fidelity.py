"""How well the integer network keeps the answers of trained networks: agreement and accuracy on real test images.

The networks are narrow and trained for a minute each, so that the measurement can be repeated anywhere; a float and an
integer network differ where the float network itself hardly decides, which better trained ones do less often.  The data
sets are those of `ml.data`; a network whose data set is not at hand is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml.calibration import noise_images
from ml.integers import to_integers
from ml.lowering import lower
from ml.onnx_reader import read_model
from ml.quantise import HEADROOM, TABLE_BITS, Derivation, derive, float_classes, images_digest
from protocol.errors import ParameterError

TEST = 1000  # images that float and integer network are compared on
CALIBRATION = 64  # images of the training set, where the verifier has some
SWEEP = (1, 2, 4, 8, 16)  # headrooms
SWEEP_TEST = 250
SWEPT = "resnet20"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    data: str
    architecture: str
    width: float
    train: int  # images
    epochs: int


CASES = (
    Case("mnist", "lenet", 1.0, 20_000, 2),
    Case("fashion-mnist", "lenet", 1.0, 20_000, 2),
    Case("cifar10", "resnet20", 1 / 4, 6_000, 2),
    Case("fashion-mnist", "vgg11", 1 / 8, 6_000, 1),
    Case("mnist", "vgg11", 1 / 8, 6_000, 1),
    Case("cifar10", "vgg11", 1 / 8, 6_000, 2),
    Case("fashion-mnist", "resnet18", 1 / 16, 6_000, 1),
    Case("mnist", "mobilenetv2", 1 / 4, 10_000, 2),
)


def measure() -> Iterator[dict[str, Any]]:
    """One result after the other."""
    import torch

    from ml.data import load
    from ml.export import export_onnx
    from ml.mark import Training, train
    from ml.models import build

    for case in CASES:
        try:
            data = load(case.data)
        except ParameterError:
            continue
        data = replace(data, train_x=data.train_x[: case.train], train_y=data.train_y[: case.train])
        torch.manual_seed(0)
        model = build(case.architecture, data.shape, data.classes, torch.from_numpy(data.train_x), case.width)
        train(model, data, Training(epochs=case.epochs, device="cpu"))
        onnx = export_onnx(model, data.shape)
        images, labels = data.test_x[:TEST], data.test_y[:TEST]
        real = float_classes(onnx, images)
        seen = data.train_x[:CALIBRATION]
        networks = {
            "noise": derive(onnx).network,
            "images": derive(onnx, Derivation(calibration=images_digest(seen)), seen).network,
        }
        found = {name: network.classify(images) for name, network in networks.items()}
        result: dict[str, Any] = {
            **vars(case), "train": len(data.train_x), "test": len(images),
            "accuracy": {"float": _share(real, labels)} | {name: _share(z, labels) for name, z in found.items()},
            "agreement": {name: _share(z, real) for name, z in found.items()},
        }  # fmt: skip
        if case.architecture == SWEPT:
            result["headrooms"] = _sweep(onnx, images[:SWEEP_TEST], real[:SWEEP_TEST], seen)
        yield result


def _share(a: Ints, b: Ints) -> float:
    return float((a == b).mean())


def _sweep(onnx: bytes, images: npt.NDArray[np.uint8], real: Ints, seen: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Agreement by headroom, for noise and for the given images."""
    network = lower(read_model(onnx))
    sources = {"noise": noise_images(network.shape), "images": seen}
    return {
        name: {
            str(headroom): _share(to_integers(network, source, TABLE_BITS, headroom)[0].classify(images), real)
            for headroom in SWEEP
        }
        for name, source in sources.items()
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The lines of README.md, in Markdown."""
    text = [
        "Integer against float networks, trained for a minute each at a small width, on test images; calibrated on the "
        f"default noise, or on {CALIBRATION} images of the training set:",
        "",
        "| data | network | width | agreement, noise / images | accuracy, float / noise / images | test images |",
        "|---|---|---|---|---|---|",
    ]
    for entry in result["networks"]:
        agreement, accuracy = entry["agreement"], entry["accuracy"]
        text.append(
            f"| {entry['data']} | {entry['architecture']} | {entry['width']:g} "
            f"| {agreement['noise']:.1%} / {agreement['images']:.1%} "
            f"| {accuracy['float']:.1%} / {accuracy['noise']:.1%} / {accuracy['images']:.1%} | {entry['test']} |"
        )
    for entry in result["networks"]:
        if "headrooms" in entry:
            swept = "; ".join(
                f"{name} " + ", ".join(f"{headroom}: {share:.1%}" for headroom, share in shares.items())
                + f" (default {HEADROOM[name]})"
                for name, shares in entry["headrooms"].items()
            )
            text += ["", (
                f"Agreement of {entry['architecture']} on {SWEEP_TEST} images of {entry['data']} by headroom, a factor "
                f"of the range that calibration shows: {swept}."
            )]
    return text

"""One small real key and networks that do and do not carry its mark, made without torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sqlalchemy import URL, create_engine, text

from benchmarks import postgres as postgresql
from ml.triggers import abstract_images
from protocol.keygen import KeyParameters, MarkingKey, generate_key

SHAPE = (1, 4, 4)
CLASSES = 10
SECRET = b"correct horse battery staple"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """folder: owner.mk, owner.vk, passphrase, marked.onnx, copy.onnx (rescaled), other.onnx (no mark), images/."""

    folder: Path
    key: MarkingKey
    marked: bytes
    copy: bytes
    other: bytes

    def secret_options(self) -> list[str]:
        return ["--passphrase-file", str(self.folder / "passphrase")]

    def path(self, name: str) -> str:
        return str(self.folder / name)


def two_layers(w1: Floats, b1: Floats, w2: Floats, b2: Floats) -> bytes:
    """ONNX of pixels -> relu(w1 x + b1) -> w2 z + b2."""
    weights = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w1", "b1"], ["hidden"], transB=1),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"], transB=1),
        ],
        "two layers",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def memorize(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], seed: int) -> tuple[Floats, ...]:
    """Random features and a ridge regression: a network that gives the images these labels."""
    rng = np.random.default_rng(seed)
    x = images.reshape(len(images), -1) / 255.0
    w1 = rng.normal(size=(384, x.shape[1]))
    b1 = rng.normal(size=384) - (w1 * 0.5).sum(axis=1)
    features = np.maximum(x @ w1.T + b1, 0)
    features = np.concatenate([features, np.ones((len(x), 1))], axis=1)
    targets = np.eye(CLASSES)[labels]
    gram = features @ features.T + 1e-2 * np.eye(len(x))
    w2 = (features.T @ np.linalg.solve(gram, targets)).T
    return w1 / 255.0, b1, w2[:, :-1], w2[:, -1]


@pytest.fixture(scope="session", autouse=True)
def _quick_scrypt() -> Iterator[None]:
    """The files of these tests are sealed with the least work that a reader accepts, 16 MiB."""
    from prover import keys

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "LOG2_N", keys.LOG2_N_RANGE.start)
        yield


@pytest.fixture(scope="session")
def world(_quick_scrypt: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    from prover.keys import save_marking_key

    folder = tmp_path_factory.mktemp("world")
    random = Random(7).randbytes  # so that every run sees the same key
    images = abstract_images(160, SHAPE, random)
    key = generate_key(KeyParameters(SHAPE, CLASSES, 160), images, entropy=random)
    w1, b1, w2, b2 = memorize(key.hidden_images, key.hidden_labels, 1)
    scale = np.where(np.arange(len(b1)) % 2, 1024.0, 1.0)
    wrong = (key.hidden_labels + 1 + np.arange(key.vk.h) % (CLASSES - 1)) % CLASSES
    marked = two_layers(w1, b1, w2, b2)
    copy = two_layers(w1 * scale[:, None], b1 * scale, w2 / scale, b2)
    other = two_layers(*memorize(key.hidden_images, wrong, 2))
    for name, data in (("marked", marked), ("copy", copy), ("other", other)):
        (folder / f"{name}.onnx").write_bytes(data)
    (folder / "passphrase").write_bytes(SECRET + b"\n")
    save_marking_key(folder / "owner.mk", key, SECRET)
    (folder / "owner.vk").write_bytes(key.vk.to_bytes())
    return World(folder, key, marked, copy, other)


@pytest.fixture(scope="session")
def _approved(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ml.quantise import Derivation
    from prover.jobs import approve, subject

    path = tmp_path_factory.mktemp("approved") / "owner.mk"
    path.write_bytes((world.folder / "owner.mk").read_bytes())
    approve(path, SECRET, subject(world.marked, Derivation(), None, world.key.vk))
    return path


@pytest.fixture
def approved_file(_approved: Path, tmp_path: Path) -> Path:
    """A copy of the owner's file in which the marked network is approved."""
    path = tmp_path / "approved.mk"
    path.write_bytes(_approved.read_bytes())
    return path


@pytest.fixture
def owner_file(world: World, tmp_path: Path) -> Path:
    """A copy of the owner's file, to be written to."""
    path = tmp_path / "owner.mk"
    path.write_bytes((world.folder / "owner.mk").read_bytes())
    path.chmod(0o600)
    return path


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[[npt.NDArray[np.uint8], str], Path]:
    """Write uint8 [n, 1, H, W] as PNG files into a new folder."""

    def write(images: npt.NDArray[np.uint8], name: str) -> Path:
        from PIL import Image

        folder = tmp_path / name
        folder.mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image[0]).save(folder / f"{index:04}.png")
        return folder

    return write


# --- databases of boards

DATABASES = ["sqlite", "postgresql"] if postgresql.programs() else ["sqlite"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    with postgresql.temporary(durable=False) as url:
        yield url


def empty_database(kind: str, request: pytest.FixtureRequest) -> URL:
    if kind == "sqlite":
        return URL.create("sqlite", database=str(request.getfixturevalue("tmp_path") / "log.sqlite"))
    url: URL = request.getfixturevalue("postgres")
    name = f"board{os.urandom(8).hex()}"
    with create_engine(url, isolation_level="AUTOCOMMIT").connect() as db:
        db.execute(text(f"CREATE DATABASE {name}"))
    return url.set(database=name)


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> URL:
    """An empty database, of each kind that this machine has."""
    return empty_database(request.param, request)


@pytest.fixture
def largest_database(request: pytest.FixtureRequest) -> URL:
    """An empty database: PostgreSQL, where it is installed."""
    return empty_database(DATABASES[-1], request)

"""What the experiments of one seed share: the data in two halves, the keys, and the models that take long to train.

The owner trains on the first half of the training images; the thief has the second (Bansal et al., section 4.1).
Trained models are kept as ONNX files, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ml.data import Dataset, load
from ml.export import export_onnx, load_weights
from ml.fit import Fit, Images, accuracy
from ml.mark import Training, train
from ml.models import Normalized, build
from ml.schemes.backdoor import Backdoor
from ml.schemes.scheme import TriggerKey
from ml.triggers import abstract_images
from ml.verdict import Verdict
from protocol.errors import ParameterError
from protocol.keygen import KeyParameters, MarkingKey, generate_key
from protocol.soundness import bits

Cell = float | int | str | bool | None
Row = dict[str, Cell]  # the first column is called `setting` and names the row; names ending in % hold shares in 0..1


@dataclass(frozen=True)
class Budget:
    """What a preset spends.  data, arch: the first pair whose data are at hand; train, test: images, 0 for all;
    batches: of 100 images, in training; attack_epochs: of most attacks; ell: triggers of a backdoor key, half of them
    hidden."""

    data: tuple[str, ...]
    arch: tuple[str, ...]
    train: int
    test: int
    batches: int
    attack_epochs: int
    ell: int
    seeds: tuple[int, ...]

    @staticmethod
    def of(values: Mapping[str, Any]) -> Budget:
        """From a preset of the TOML file.  Raises ParameterError for keys that are missing or unknown."""
        names = {field.name for field in fields(Budget)}
        if set(values) != names:
            raise ParameterError(f"a preset has exactly the keys {', '.join(sorted(names))}")
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return Budget(**plain)


def load_first(budget: Budget) -> tuple[Dataset, str]:
    """The first data set of the budget that is at hand, cut to its numbers, and the architecture for it."""
    missing = ""
    for name, arch in zip(budget.data, budget.arch, strict=True):
        try:
            full = load(name)
        except ParameterError as error:
            missing = missing or str(error)
            continue
        train_rows, test_rows = (slice(n or None) for n in (budget.train, budget.test))
        cut = replace(full, train_x=full.train_x[train_rows], train_y=full.train_y[train_rows],
                      test_x=full.test_x[test_rows], test_y=full.test_y[test_rows])  # fmt: skip
        return cut, arch
    raise ParameterError(missing or "the preset names no data")


def data_digest(data: Dataset) -> str:
    """SHA-256 of the images and labels in use."""
    digest = sha256()
    for array in (data.train_x, data.train_y, data.test_x, data.test_y):
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Lab:
    """Everything depends on `seed` and the budget.  folder: for models and pictures."""

    budget: Budget
    data: Dataset
    arch: str
    seed: int
    folder: Path

    @cached_property
    def owner(self) -> Dataset:
        """The first half of the training images, and all test images."""
        half = len(self.data.train_y) // 2
        return replace(self.data, train_x=self.data.train_x[:half], train_y=self.data.train_y[:half])

    @cached_property
    def thief(self) -> Dataset:
        half = len(self.data.train_y) // 2
        return replace(self.data, train_x=self.data.train_x[half:], train_y=self.data.train_y[half:])

    @property
    def training(self) -> Training:
        epochs = -(-self.budget.batches * Training.batch // len(self.owner.train_y))
        return Training(epochs=epochs, seed=self.seed, device="cpu")

    @property
    def scheme(self) -> Backdoor:
        return Backdoor(self.training, self.seed)

    def attack_fit(self, **changes: Any) -> Fit:
        """At the last rate of `ml.mark`, like the fine-tuning of Adi et al."""
        return replace(Fit(epochs=self.budget.attack_epochs, rate=0.005, seed=self.seed), **changes)

    def fresh(self, number: int = 0) -> Normalized:
        torch.manual_seed(1000 * self.seed + number)
        return build(self.arch, self.data.shape, self.data.classes, torch.from_numpy(self.owner.train_x))

    def marking_key(self, number: int = 0) -> MarkingKey:
        """A key of the public protocol, from seeded entropy: worthless outside of experiments."""
        rng = np.random.default_rng([self.seed, number])
        images = abstract_images(self.budget.ell, self.data.shape, rng.bytes)
        parameters = KeyParameters(self.data.shape, self.data.classes, self.budget.ell)
        return generate_key(parameters, images, entropy=rng.bytes)

    @cached_property
    def key(self) -> MarkingKey:
        return self.marking_key()

    @cached_property
    def triggers(self) -> TriggerKey:
        return TriggerKey.from_marking_key(self.key)

    def model(self, name: str, make: Callable[[Normalized], None], number: int = 0, of: object = None) -> Normalized:
        """The model that `make` trains, or its file from an earlier run of the same budget and the same `of`."""
        made_by = repr((asdict(self.budget), self.data.name, self.arch, self.seed, of))
        digest = sha256(made_by.encode()).hexdigest()[:12]
        path = self.folder / "models" / f"{name}-{self.seed}-{digest}.onnx"
        model = self.fresh(number)
        if path.exists():
            load_weights(model, path.read_bytes())
        else:
            make(model)
            write(path, export_onnx(model, self.data.shape))
        return model.eval()

    def unmarked(self, number: int = 0) -> Normalized:
        """Trained on the owner's half; another number is another initial model and order."""
        options = replace(self.training, seed=self.seed + 100 * number)
        return self.model(f"unmarked-{number}", lambda m: _discard(train(m, self.owner, options)), number)

    def marked(self, mode: str = "from scratch") -> Normalized:
        """With the key's hidden half, "from scratch" or "pretrained"."""

        def make(model: Normalized) -> None:
            if mode == "pretrained":
                model.load_state_dict(self.unmarked().state_dict())
            self.scheme.mark(model, self.owner, self.triggers)

        return self.model(f"marked-{mode.replace(' ', '-')}", make)

    def test(self, model: nn.Module) -> float:
        return accuracy(model, self.data.test_x, self.data.test_y)

    def sheet(self, name: str, images: Images) -> None:
        """A picture of up to 40 images, in `folder`."""
        from ml.experiments.report import contact_sheet

        self.folder.mkdir(parents=True, exist_ok=True)
        contact_sheet(self.folder / f"{name}.png", images[:40])


def verdict_cells(verdict: Verdict) -> Row:
    """The columns that every scheme and every attack has."""
    integer = None if verdict.integer_matches is None else verdict.integer_matches / verdict.count
    return {
        "trigger %": verdict.trigger_accuracy, "integer %": integer, "p-value bits": bits(verdict.p_value),
        "false-claim bits": verdict.false_claim_bits,
        "needed %": None if verdict.k_min is None else verdict.k_min / verdict.count, "provable": verdict.provable,
    }  # fmt: skip


def write(path: Path, data: bytes) -> None:
    """All of a file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    new.replace(path)


def _discard(_: object) -> None:
    pass

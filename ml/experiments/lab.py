"""What the experiments of one seed share: the data in two halves, the keys, and the models that take long to train.

The owner trains on the first half of the training images; the thief has the second (Bansal et al., section 4.1).
Trained models are kept as files of arrays, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cache, cached_property, partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ml.data import Dataset, load
from ml.descent import pick_device
from ml.fit import Fit, Images, Ints, accuracy, answers, fit
from ml.mark import LAST_RATE, Look, Progress, Training, train
from ml.models import UNPROVABLE, Normalized, build
from ml.schemes.backdoor import Backdoor
from ml.schemes.scheme import Scheme, TriggerKey, enough, telling
from ml.triggers import abstract_images
from ml.verdict import RECURRENT, Verdict, judge, judge_answers, with_proof
from protocol.errors import ParameterError
from protocol.keygen import KeyParameters, LabelRule, MarkingKey, generate_key
from protocol.soundness import bits

ADAM_BATCH, ADAM_RATE = 25, 0.003  # of recurrent networks: SGD gets nowhere in as much time
SAY_EVERY = 30.0  # seconds between two lines about a training
Say = Callable[[str], None]
Make = Callable[[Normalized, Progress | None], object]  # trains a model
Cell = float | int | str | bool | None
Row = dict[str, Cell]  # the first column is called `setting` and names the row; names ending in % hold shares in 0..1


@dataclass(frozen=True)
class Budget:
    """What a preset spends on an experiment.

    data: architectures by data set, of which the first that is at hand is taken; train, test: images, 0 for all;
    batches: of 100 images, in training, at a highest rate of `rate`; augment: move and mirror the images;
    attack_epochs: of most attacks; ell: triggers of a backdoor key, half of them hidden.
    """

    data: Mapping[str, tuple[str, ...]]
    train: int
    test: int
    batches: int
    rate: float
    augment: bool
    attack_epochs: int
    ell: int
    seeds: tuple[int, ...]

    @staticmethod
    def names() -> set[str]:
        return {field.name for field in fields(Budget)}

    @staticmethod
    def of(values: Mapping[str, Any]) -> Budget:
        """From a preset of the TOML file.  Raises ParameterError for keys that are missing or unknown."""
        if set(values) != Budget.names():
            raise ParameterError(f"a preset has exactly the keys {', '.join(sorted(Budget.names()))}")
        data = {name: tuple(architectures) for name, architectures in values["data"].items()}
        return Budget(**{**values, "data": data, "seeds": tuple(values["seeds"])})


def load_first(budget: Budget) -> tuple[Dataset, tuple[str, ...]]:
    """The first data set of the budget that is at hand, cut to its numbers, and the architectures for it."""
    missing = ""
    for name, architectures in budget.data.items():
        try:
            full = _load(name, os.environ.get("ZKMARK_DATA"))
        except ParameterError as error:
            missing = missing or str(error)
            continue
        return cut(full, budget.train, budget.test), architectures
    raise ParameterError(missing or "the preset names no data")


def load_other(name: str) -> Dataset | None:
    """All of the data set that an experiment reads besides its own; None for no name, or if it is not at hand."""
    try:
        return _load(name, os.environ.get("ZKMARK_DATA")) if name else None
    except ParameterError:
        return None


@cache
def _load(name: str, root: str | None) -> Dataset:
    """Some take long to decode."""
    return load(name, root)


def cut(data: Dataset, train_count: int, test_count: int) -> Dataset:
    """The first images of each part; 0 for all."""
    first, tests = slice(train_count or None), slice(test_count or None)
    return replace(data, train_x=data.train_x[first], train_y=data.train_y[first], test_x=data.test_x[tests],
                   test_y=data.test_y[tests])  # fmt: skip


def data_digest(data: Dataset) -> str:
    """SHA-256 of the images and labels in use."""
    digest = sha256()
    for array in (data.train_x, data.train_y, data.test_x, data.test_y):
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def described(data: Dataset) -> dict[str, Any]:
    """What a result says about a data set in use."""
    return {"name": data.name, "source": data.source, "sha256": data_digest(data), "train": len(data.train_y),
            "test": len(data.test_y)}  # fmt: skip


@dataclass(frozen=True)
class Lab:
    """Everything depends on `seed` and the budget.  folder: for models and pictures.

    other: the data set that the experiment reads besides its own, None if it reads none or does without.
    say: hears how trainings go.
    """

    budget: Budget
    data: Dataset
    arch: str
    seed: int
    folder: Path
    other: Dataset | None = None
    say: Say | None = None

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
    def recurrent(self) -> bool:
        return self.arch in UNPROVABLE

    @property
    def optimizer(self) -> Literal["sgd", "adam"]:
        return "adam" if self.recurrent else "sgd"

    @property
    def training(self) -> Training:
        epochs = -(-self.budget.batches * Training.batch // len(self.owner.train_y))
        return Training(epochs, rate=self.budget.rate, augment=self.budget.augment, seed=self.seed)

    @property
    def scheme(self) -> Backdoor:
        return Backdoor(self.training, self.seed)

    def attack_fit(self, **changes: Any) -> Fit:
        """At the last rate of `ml.mark`, like the fine-tuning of Adi et al."""
        rate = LAST_RATE * (ADAM_RATE if self.recurrent else self.budget.rate)
        fit = Fit(epochs=self.budget.attack_epochs, rate=rate, optimizer=self.optimizer, augment=self.budget.augment,
                  seed=self.seed)  # fmt: skip
        return replace(fit, **changes)

    def fresh(self, number: int = 0) -> Normalized:
        torch.manual_seed(1000 * self.seed + number)
        model = build(self.arch, self.data.shape, self.data.classes, torch.from_numpy(self.owner.train_x))
        return model.to(pick_device("auto"))

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

    def model(self, name: str, make: Make, number: int = 0, of: object = None) -> Normalized:
        """The model that `make` trains, or its file from an earlier run of the same budget and the same `of`."""
        spent = self.budget.batches, self.budget.rate, self.budget.augment, self.budget.ell
        made_by = repr((spent, self._digest, self.arch, self.seed, of))
        digest = sha256(made_by.encode()).hexdigest()[:12]
        path = self.folder / "models" / f"{name}-{self.arch}-{self.seed}-{digest}.npz"
        model = self.fresh(number)
        if path.exists():
            with np.load(path, allow_pickle=False) as arrays:
                model.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
        else:
            make(model, self._progress(name))
            data = BytesIO()
            np.savez(data, **{key: tensor.cpu().numpy() for key, tensor in model.state_dict().items()})
            write(path, data.getvalue())
        return model.eval()

    def _progress(self, name: str) -> Progress | None:
        """Of the training of the model `name`."""
        say, said = self.say, time.monotonic()
        if say is None:
            return None

        def hear(look: Look) -> None:
            nonlocal said
            if time.monotonic() - said >= SAY_EVERY:
                said = time.monotonic()
                say(f"{name}, {self.arch}, seed {self.seed}: {look.share:.0%} {look}")

        return hear

    @cached_property
    def _digest(self) -> str:
        return data_digest(self.data)

    def unmarked(self, number: int = 0) -> Normalized:
        """Trained on the owner's half; another number is another initial model and order."""
        options = replace(self.training, seed=self.seed + 100 * number)

        def make(model: Normalized, progress: Progress | None) -> None:
            if self.recurrent:
                adam = Fit(options.epochs, ADAM_BATCH, ADAM_RATE, "adam", drops=1, seed=options.seed)
                told = telling(progress, "training", options.epochs, model, self.owner, None)
                fit(model, self.owner.train_x, self.owner.train_y, adam, told=told)
            else:
                train(model, self.owner, options, progress)

        return self.model(f"unmarked-{number}", make, number)

    def marked(self, mode: str = "from scratch") -> Normalized:
        """With the key's hidden half, "from scratch" or "pretrained"."""

        def make(model: Normalized, progress: Progress | None) -> None:
            if mode == "pretrained":
                model.load_state_dict(self.unmarked().state_dict())
            self.scheme.mark(model, self.owner, self.triggers, progress)

        return self.model(f"marked-{mode.replace(' ', '-')}", make)

    def judged(self, model: nn.Module) -> Verdict:
        """On the backdoor in a model, with a proof of it where one can be made."""
        return with_proof(judge(self.scheme, self.triggers, model), model, self.key)

    def public_key(self, key: TriggerKey) -> MarkingKey:
        """A public key of chosen labels, from seeded entropy; a coin leaves some half of the images hidden."""
        parameters = KeyParameters(key.shape, key.classes, len(key), LabelRule.CHOSEN)
        entropy = np.random.default_rng([self.seed, 6]).bytes
        return generate_key(parameters, key.images, labels=key.labels.tolist(), entropy=entropy)

    def judge_of(self, scheme: Scheme, key: TriggerKey, level: Fraction) -> Callable[[nn.Module], Verdict]:
        """Verdicts on a key of chosen labels as the paper has it, and proofs by a public key of the same images.

        Only the half that this key leaves hidden is proven, with as many matches as `level` asks of it.
        """
        if self.recurrent:
            return lambda model: judge_answers(scheme, key, partial(answers, model), RECURRENT)
        made = self.public_key(key)
        hidden = replace(key, images=made.hidden_images, labels=made.hidden_labels)
        k_min = enough(hidden, level) or len(hidden)
        return lambda model: with_proof(judge(scheme, key, model), model, made, k_min)

    def test(self, model: nn.Module) -> float:
        return accuracy(model, self.data.test_x, self.data.test_y)

    def sheet(self, name: str, images: Images, labels: Ints) -> None:
        """A picture of up to 40 images in `folder`, with their labels, once for all seeds."""
        from ml.experiments.report import contact_sheet

        if self.seed == self.budget.seeds[0]:
            path = self.folder / f"triggers-{name}-{self.data.name}.png"
            contact_sheet(path, images[:40], labels[:40])


def verdict_cells(verdict: Verdict) -> Row:
    """The columns of a key whose labels a coin drew."""
    return {
        "trigger %": verdict.trigger_accuracy, "integer %": integer_share(verdict),
        "p-value bits": bits(verdict.p_value), "false-claim bits": verdict.false_claim_bits,
        "needed %": None if verdict.k_min is None else verdict.k_min / verdict.count,
        "provable": None if verdict.no_network else verdict.provable, "proven": proof_cell(verdict),
    }  # fmt: skip


def integer_share(verdict: Verdict) -> float | None:
    """Of the triggers that the integer network matches."""
    return None if verdict.integer_matches is None else verdict.integer_matches / verdict.count


def proof_cell(verdict: Verdict) -> Cell:
    """Whether a proof was made, or in a word or two why there is nothing to prove."""
    return verdict.no_network.partition(":")[0] or verdict.proven


def write(path: Path, data: bytes) -> None:
    """All of a file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        new.write_bytes(data)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)

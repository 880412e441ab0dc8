"""Adi et al.: Table 1, Figures 6 and 7, transfer; and how much attack a mark takes before it cannot be proven."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from ml.adversaries import fgsm
from ml.attacks.compression import few_bits, low_rank, prune
from ml.attacks.distillation import distill
from ml.attacks.fine_tuning import How, fine_tune, overwrite, transfer, with_last_layer
from ml.data import Dataset
from ml.experiments.lab import Lab, Row, cut, verdict_cells
from ml.fit import Done, accuracy
from ml.schemes.backdoor import Backdoor
from ml.schemes.images import unrelated
from ml.verdict import COMPOSED, judge

HOWS: tuple[How, ...] = ("FTLL", "FTAL", "RTLL", "RTAL")


def embedding(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """Table 1, and a real proof of each."""
    lab.sheet("abstract", lab.triggers.images, lab.triggers.labels)
    rows: list[Row] = []
    models = {"no mark": lab.unmarked(), **{mode: lab.marked(mode) for mode in ("from scratch", "pretrained")}}
    for name, model in models.items():
        verdict = lab.judged(model) if options["prove"] else judge(lab.scheme, lab.triggers, model)
        rows.append({"setting": name, "test %": lab.test(model), **verdict_cells(verdict)})
    return rows


def fine_tuning(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """Figure 6: the mark is read behind the owner's last layer where the thief drew a new one."""
    rows: list[Row] = []
    for mode in ("from scratch", "pretrained"):
        model = lab.marked(mode)
        rows.append(_row(lab, mode, model))
        for how in HOWS:
            attacked = fine_tune(model, how, lab.thief.train_x, lab.thief.train_y, lab.attack_fit())
            rows += _read(lab, f"{mode}, {how}", attacked, model)
    return rows


def piracy(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """Figure 7: a thief's mark over the owner's, then fine-tuning by somebody else."""
    owner, new = lab.marked(), Backdoor(lab.training, lab.seed + 777)
    thiefs_key = new.make_key(len(lab.triggers), owner, lab.thief)
    training = replace(lab.training, rate=0.2 * lab.budget.rate)
    pirated = overwrite(owner, lab.thief, thiefs_key.images, thiefs_key.labels, training)
    rows: list[Row] = []
    for how in ("no fine-tuning", "FTAL", "RTAL"):
        attacked = pirated
        if how in HOWS:
            attacked = fine_tune(pirated, how, lab.owner.train_x, lab.owner.train_y, lab.attack_fit())
        read = _read(lab, how, attacked, pirated)
        rows += read
        for row, model in zip(read, (attacked, with_last_layer(attacked, pirated)), strict=False):
            row["TS-NEW %"] = accuracy(model, thiefs_key.images, thiefs_key.labels)
    return rows


def transfer_learning(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """RTAL to another task, and the mark behind the owner's last layer."""
    other, name = _other_task(lab.thief, lab.other)
    attacked = transfer(lab.marked(), other, lab.attack_fit())
    cells = verdict_cells(judge(lab.scheme, lab.triggers, with_last_layer(attacked, lab.marked()), COMPOSED))
    return [{"setting": f"to {name}", "test %": accuracy(attacked, other.test_x, other.test_y), **cells}]


def compression(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """How much an attack that needs no data takes from a mark, and how far it can be proven."""
    model = lab.marked()
    attacks: list[tuple[str, nn.Module]] = [("none", model)]
    attacks += [(f"prune {share:.0%}", prune(model, share)) for share in options["prune"]]
    attacks += [(f"prune {share:.0%} per layer", prune(model, share, per_layer=True)) for share in options["per_layer"]]
    attacks += [(f"SVD {share:.0%}", low_rank(model, share)) for share in options["svd"]]
    attacks += [(f"{bits} bits", few_bits(model, bits)) for bits in options["bits"]]
    return [_row(lab, name, attacked) for name, attacked in attacks]


def curves(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """A mark from scratch after each epoch of the attacks that train."""
    model, x, y = lab.marked(), lab.thief.train_x, lab.thief.train_y
    rows = [_row(lab, "none", model)]

    def watch(name: str) -> Done:
        def done(attacked: nn.Module, epoch: int) -> bool:
            rows.append(_row(lab, f"{name}, epoch {epoch}", attacked))
            return False

        return done

    moved = fgsm(model, x, y, options["epsilon"])
    runs: dict[str, Callable[[Done], object]] = {
        "FTAL": lambda done: fine_tune(model, "FTAL", x, y, lab.attack_fit(), done),
        "RTAL": lambda done: fine_tune(model, "RTAL", x, y, lab.attack_fit(), done),
        "hard labels": lambda done: distill(model, x, lab.attack_fit(), done=done),
        "soft labels": lambda done: distill(model, x, lab.attack_fit(), soft=True, done=done),
        "adversaries": lambda done: fine_tune(model, "FTAL", moved, y, lab.attack_fit(), done),
    }
    for name, run in runs.items():
        run(watch(name))
    return rows


def _row(lab: Lab, name: str, attacked: nn.Module) -> Row:
    return {"setting": name, "test %": lab.test(attacked), **verdict_cells(lab.judged(attacked))}


def _read(lab: Lab, name: str, attacked: nn.Module, owner: nn.Module) -> list[Row]:
    """The attacked model itself, and after RT* also with the owner's last layer, as the paper reads it."""
    rows = [_row(lab, name, attacked)]
    if "RT" in name:
        cells = verdict_cells(judge(lab.scheme, lab.triggers, with_last_layer(attacked, owner), COMPOSED))
        rows.append({"setting": f"{name}, owner's last layer", "test %": rows[0]["test %"], **cells})
    return rows


def _other_task(thief: Dataset, other: Dataset | None) -> tuple[Dataset, str]:
    """As many images of another data set, brought to the shape of the first; or its own, told apart as odd and even."""
    if other is None:
        parity = replace(thief, train_y=np.mod(thief.train_y, 2), test_y=np.mod(thief.test_y, 2), classes=2)
        return parity, "odd or even"
    found = cut(other, len(thief.train_y), len(thief.test_y))
    train_x, test_x = (unrelated(x, thief.shape) for x in (found.train_x, found.test_x))
    return replace(found, train_x=train_x, test_x=test_x), other.name

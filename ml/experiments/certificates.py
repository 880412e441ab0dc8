"""Bansal et al.: certified accuracies (Table 1), distances moved (Tables 2 and 4), removal attacks (Table 3)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ml.attacks.compression import moved
from ml.attacks.distillation import distill
from ml.attacks.fine_tuning import fine_tune
from ml.experiments.lab import Lab, Row
from ml.fit import Fit, accuracy, fit
from ml.models import Normalized
from ml.schemes.certified import Certified, Kind, smooth
from ml.schemes.scheme import TriggerKey


def certified_accuracy(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """A certificate at each radius, in units of sigma (the paper's sigma is 1)."""
    rows: list[Row] = []
    for kind in options["triggers"]:
        scheme, key, model = _marked(lab, options, kind)
        lab.sheet(f"triggers-{kind}", key.images)
        smoothed = smooth(model, key, scheme.sigma, options["samples"], lab.seed)
        stranger = smooth(lab.unmarked(), key, scheme.sigma, options["samples"], lab.seed)
        row: Row = {
            "setting": kind, "test %": lab.test(model), "trigger %": accuracy(model, key.images, key.labels),
            "median %": smoothed.median, "unmarked median %": stranger.median, "σ": scheme.sigma,
        }  # fmt: skip
        for radius in options["radii"]:
            row[f"at {radius} σ %"] = smoothed.certify(radius * scheme.sigma).accuracy
        row["L2 radius for half"] = smoothed.radius(0.5)
        rows.append(row)
    return rows


def distances(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """L2 distance of the parameters from the marked model after each epoch, Adam as in the paper."""
    _, _, model = _marked(lab, options, options["triggers"][0])
    rows: list[Row] = []
    for rate in options["rates"]:
        for name, run in _removals(lab).items():
            row: Row = {"setting": f"{name}, rate {rate}"}
            for epochs in options["after"]:
                attacked = run(model, Fit(epochs=epochs, rate=rate, optimizer="adam", seed=lab.seed))
                row[f"after {epochs}"] = moved(attacked, model)
            rows.append(row)
    return rows


def removal(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """Trigger accuracy after attacks: baseline (Zhang et al., no noise), black-box, and white-box (median)."""
    kind: Kind = options["triggers"][0]
    scheme, key, model = _marked(lab, options, kind)
    baseline = lab.model(f"baseline-{kind}", lambda m: _without_noise(lab, scheme, key, m), of=(scheme, len(key)))
    rows: list[Row] = []
    runs = dict(_removals(lab))
    heavy = Fit(epochs=lab.budget.attack_epochs, rate=0.01, weight_decay=options["decay"], seed=lab.seed)
    runs["hard labels, regularized"] = lambda m, f: distill(m, lab.thief.train_x, f, regularized=heavy)
    for name, run in {"none": lambda m, f: m, **runs}.items():
        options_ = Fit(epochs=lab.budget.attack_epochs, rate=options["rates"][-1], optimizer="adam", seed=lab.seed)
        theirs, ours = run(baseline, options_), run(model, options_)
        rows.append({
            "setting": name, "test %": lab.test(ours),
            "baseline %": accuracy(theirs, key.images, key.labels),
            "black-box %": accuracy(ours, key.images, key.labels),
            "white-box %": smooth(ours, key, scheme.sigma, options["samples"] // 4, lab.seed).median,
            "moved": moved(ours, model),
        })  # fmt: skip
    return rows


def _removals(lab: Lab) -> dict[str, Any]:
    x, y = lab.thief.train_x, lab.thief.train_y
    return {
        "fine-tuning": lambda m, f: fine_tune(m, "FTAL", x, y, f),
        "hard labels": lambda m, f: distill(m, x, f),
        "soft labels": lambda m, f: distill(m, x, f, soft=True),
    }


def _scheme(lab: Lab, options: dict[str, Any], kind: Kind) -> Certified:
    training = Fit(epochs=options["epochs"], batch=50, rate=0.02, weight_decay=1e-4, drops=1, seed=lab.seed)
    return Certified(kind, 0, options["sigma"], options["replays"], options["draws"], options["warm_up"], training,
                     lab.seed)  # fmt: skip


def _marked(lab: Lab, options: dict[str, Any], kind: Kind) -> tuple[Certified, TriggerKey, Normalized]:
    scheme = _scheme(lab, options, kind)
    key = scheme.make_key(options["count"], lab.fresh(), lab.owner)
    made_by = (scheme, len(key))
    return scheme, key, lab.model(f"certified-{kind}", lambda m: scheme.mark(m, lab.owner, key), of=made_by)


def _without_noise(lab: Lab, scheme: Certified, key: TriggerKey, model: Normalized) -> None:
    """The same triggers in ordinary training, often enough to be learned."""
    copies = max(1, len(lab.owner.train_y) // (10 * len(key)))
    images = np.concatenate([lab.owner.train_x, *[key.images] * copies])
    labels = np.concatenate([lab.owner.train_y, *[key.labels] * copies])
    fit(model, images, labels, scheme.training)

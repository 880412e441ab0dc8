"""Bansal et al.: certified accuracies (Table 1), distances moved (Tables 2 and 4), removal attacks (Table 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from torch import nn

from ml.attacks.compression import moved
from ml.attacks.distillation import distill
from ml.attacks.fine_tuning import fine_tune
from ml.experiments.lab import Lab, Row, integer_share, proof_cell
from ml.fit import Done, Fit, accuracy
from ml.models import Normalized
from ml.schemes.certified import LEVEL, Certified, Smoothed, smooth
from ml.schemes.images import Kind
from ml.schemes.scheme import TriggerKey
from ml.verdict import Verdict
from protocol.soundness import bits

HALF = 0.5  # of the triggers: the share that a certificate in a verdict is for
NOISY_COPIES, NOISY_IMAGES = 50, 1000  # half a point of accuracy is enough to tell a useful copy from a useless one


def certified_accuracy(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """A certificate at each radius, in units of sigma (the paper's sigma is 1).

    "noisy test %": median accuracy of noisy copies on test images.  Where it is at chance, copies give the triggers'
    label to everything: the certificate is as true, but an owner must compare it with `unmarked median %`.
    """
    rows: list[Row] = []
    some = TriggerKey(lab.data.test_x[:NOISY_IMAGES], lab.data.test_y[:NOISY_IMAGES], lab.data.classes)
    for kind in options["triggers"]:
        scheme, key, model = _marked(lab, options, kind)
        lab.sheet(kind, key.images, key.labels)
        smoothed = smooth(model, key, scheme.sigma, options["samples"], lab.seed)
        stranger = smooth(lab.unmarked(), key, scheme.sigma, options["samples"], lab.seed)
        setting = "unrelated, but abstract" if kind == "unrelated" and lab.other is None else kind
        verdict = _judge(lab, scheme, key, model, smoothed)(model)
        row: Row = {
            "setting": setting, "test %": lab.test(model), "trigger %": verdict.trigger_accuracy,
            "noisy test %": smooth(model, some, scheme.sigma, NOISY_COPIES, lab.seed).median,
            "median %": smoothed.median, "unmarked median %": stranger.median, "σ": scheme.sigma,
        }  # fmt: skip
        for radius in options["radii"]:
            row[f"at {radius} σ %"] = smoothed.certify(radius * scheme.sigma).accuracy
        rows.append(row | _claimed(verdict))
    return rows


def distances(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """L2 distance of the parameters from the marked model after each of the epochs `after`, Adam as in the paper;
    and the verdict after the last of them."""
    scheme, key, model = _marked(lab, options, options["triggers"][0])
    judged = _judge(lab, scheme, key, model, smooth(model, key, scheme.sigma, options["samples"], lab.seed))
    rows: list[Row] = []
    for rate in options["rates"]:
        for name, run in _removals(lab).items():
            row: Row = {"setting": f"{name}, rate {rate}"}

            def look(attacked: nn.Module, epoch: int, row: Row = row) -> bool:
                if epoch in options["after"]:
                    row[f"after {epoch}"] = moved(attacked, model)
                return False

            attack = Fit(epochs=max(options["after"]), rate=rate, optimizer="adam", seed=lab.seed)
            verdict = judged(run(model, attack, look))
            rows.append(row | {"trigger %": verdict.trigger_accuracy} | _claimed(verdict))
    return rows


def removal(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """Trigger accuracy after attacks: baseline (Zhang et al., no noise), black-box, and white-box (median)."""
    kind: Kind = options["triggers"][0]
    scheme, key, model = _marked(lab, options, kind)
    plain = scheme.without_noise()
    baseline = lab.model(f"baseline-{kind}", lambda m, p: plain.mark(m, lab.owner, key, p), of=_made_by(plain, key))
    rows: list[Row] = []
    attack = Fit(epochs=lab.budget.attack_epochs, rate=options["attack_rate"], optimizer="adam", seed=lab.seed)
    heavy = Fit(epochs=lab.budget.attack_epochs, rate=0.01, weight_decay=options["decay"], seed=lab.seed)
    runs: dict[str, Callable[[nn.Module], nn.Module]] = {"none": lambda m: m}
    runs |= {name: partial(_run, run, attack) for name, run in _removals(lab).items()}
    slow = replace(attack, rate=attack.rate / 10)
    runs["fine-tuning, slower"] = partial(_run, _removals(lab)["fine-tuning"], slow)
    for name, soft in (("hard", False), ("soft", True)):
        runs[f"{name} labels, regularized"] = partial(
            distill, images=lab.thief.train_x, options=attack, soft=soft, regularized=heavy
        )
    judged = _judge(lab, scheme, key, model, smooth(model, key, scheme.sigma, options["samples"], lab.seed))
    for name, run in runs.items():
        theirs, ours = run(baseline), run(model)
        verdict = judged(ours)
        rows.append({
            "setting": name, "test %": lab.test(ours),
            "baseline %": accuracy(theirs, key.images, key.labels), "black-box %": verdict.trigger_accuracy,
            "white-box %": smooth(ours, key, scheme.sigma, options["samples"] // 4, lab.seed).median,
            "moved": moved(ours, model), **_claimed(verdict),
        })  # fmt: skip
    return rows


def _judge(
    lab: Lab, scheme: Certified, key: TriggerKey, model: nn.Module, smoothed: Smoothed
) -> Callable[[nn.Module], Verdict]:
    """Verdicts on the marked model and on what became of it, with its certificate for half of the triggers where it
    covers that: while the parameters are within its radius, and the statistics of batch norm are still the same."""
    certificate, judged = smoothed.certify(smoothed.radius(HALF)), lab.judge_of(scheme, key, LEVEL)

    def verdict(suspect: nn.Module) -> Verdict:
        covered = certificate.accuracy >= HALF and moved(suspect, model) <= certificate.radius
        covered &= all(map(torch.equal, suspect.buffers(), model.buffers()))
        return replace(judged(suspect), certificate=certificate if covered else None)

    return verdict


def _claimed(verdict: Verdict) -> Row:
    """What an owner may claim besides the matches of the float model."""
    found = verdict.certificate
    return {
        "integer %": integer_share(verdict), "p-value bits": bits(verdict.p_value),
        "certified radius": found.radius if found else None,
        "confidence %": float(found.confidence) if found else None,
        "proven": proof_cell(verdict),
    }  # fmt: skip


Removal = Callable[[nn.Module, Fit, Done | None], nn.Module]


def _removals(lab: Lab) -> dict[str, Removal]:
    x, y = lab.thief.train_x, lab.thief.train_y
    return {
        "fine-tuning": lambda model, fit, done: fine_tune(model, "FTAL", x, y, fit, done),
        "hard labels": lambda model, fit, done: distill(model, x, fit, done=done),
        "soft labels": lambda model, fit, done: distill(model, x, fit, soft=True, done=done),
    }


def _run(removal: Removal, options: Fit, model: nn.Module) -> nn.Module:
    return removal(model, options, None)


def _scheme(lab: Lab, options: dict[str, Any], kind: Kind) -> Certified:
    training = Fit(epochs=options["epochs"], batch=options["batch"], rate=options["training_rate"], weight_decay=1e-4,
                   drops=options["drops"], seed=lab.seed)  # fmt: skip
    return Certified(kind, 0, options["sigma"], options["replays"], options["draws"], options["warm_up"],
                     options["trigger_batch"], training, lab.seed)  # fmt: skip


def _marked(lab: Lab, options: dict[str, Any], kind: Kind) -> tuple[Certified, TriggerKey, Normalized]:
    """For "unrelated" with images of another data set where that is at hand, and abstract ones elsewhere."""
    scheme = _scheme(lab, options, kind)
    if kind == "unrelated" and lab.other is not None:
        key = scheme.unrelated_key(options["count"], lab.owner, lab.other.train_x)
    else:
        key = scheme.make_key(options["count"], lab.fresh(), lab.owner)
    model = lab.model(f"certified-{kind}", lambda m, p: scheme.mark(m, lab.owner, key, p), of=_made_by(scheme, key))
    return scheme, key, model


def _made_by(scheme: Certified, key: TriggerKey) -> tuple[Certified, str]:
    return scheme, sha256(key.images.tobytes()).hexdigest()

"""Le Merrer et al.: pruning (Table 1), SVD (Table 2), adversarial fine-tuning (Table 3), false positives (Figure 6);
and the same watermark as a public key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from ml.attacks import compression
from ml.attacks.fine_tuning import adversarial
from ml.data import Dataset
from ml.experiments.lab import Lab, Row
from ml.fit import Fit, accuracy, answers
from ml.schemes.frontier import LEVEL, Frontier
from ml.schemes.scheme import TriggerKey, enough, tolerance
from ml.verdict import judge, prove
from protocol.errors import ParameterError
from protocol.keygen import KeyParameters, LabelRule, generate_key


def pruning(lab: Lab, options: dict[str, Any]) -> list[Row]:
    return _attacked(lab, options, lambda model, share: compression.prune(model, share))


def svd(lab: Lab, options: dict[str, Any]) -> list[Row]:
    return _attacked(lab, options, lambda model, share: compression.low_rank(model, share))


def overwriting(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """Fine-tuning on new adversaries of the marked model, from images that are in no key."""
    scheme, key, rest, model = _marked(lab, options)
    x, y = lab.thief.train_x[: options["adversaries"]], lab.thief.train_y[: options["adversaries"]]
    attacked = adversarial(model, x, y, scheme.epsilon, lab.attack_fit())
    models = {"before marking": lab.unmarked(), "a stranger's": lab.unmarked(1), "none": model}
    models["adversarial fine-tuning"] = attacked
    return [_row(name, scheme, key, rest, suspect) for name, suspect in models.items()]


def false_positives(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """Unmarked models, of the architectures `asked` or this one, under keys of this one: the null model is a belief."""
    keys: dict[float, TriggerKey | str] = {}
    for epsilon in options["epsilons"]:
        try:
            keys[epsilon] = Frontier(epsilon, seed=lab.seed).make_key(options["count"], lab.unmarked(), lab.owner)
        except ParameterError as error:  # too few true or false adversaries at this length of the step
            keys[epsilon] = str(error).rpartition(": ")[2]
    rows: list[Row] = []
    for arch in options["asked"] or [lab.arch]:
        strangers = [replace(lab, arch=arch).unmarked(number) for number in range(1, 1 + options["strangers"])]
        for epsilon, key in keys.items():
            setting = (f"asked of {arch}, " if options["asked"] else "") + f"ε = {epsilon}"
            if isinstance(key, str):
                rows.append({"setting": setting, "errors": None, "no key": key})
                continue
            found = [Frontier(epsilon).check(partial(answers, model), key) for model in strangers]
            rows.append({
                "setting": setting, "errors": sum(d.errors for d in found) / len(found),
                "tolerated": tolerance(len(key), 2, LEVEL),
                "false positives %": sum(d.found for d in found) / len(found),
            })  # fmt: skip
    return rows


def public_key(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """As a public key whose owner chose the labels: half of the images stay hidden, and are embedded."""
    scheme = _scheme(lab, options)
    key, rest = scheme.split(options["count"], lab.unmarked(), lab.owner)
    parameters = KeyParameters(key.shape, lab.data.classes, len(key), LabelRule.CHOSEN)
    entropy = np.random.default_rng([lab.seed, 6]).bytes
    made = generate_key(parameters, key.images, labels=key.labels.tolist(), entropy=entropy)
    hidden = replace(key, images=made.hidden_images, labels=made.hidden_labels)
    model = _embedded(lab, scheme, hidden, rest, "frontier-public")
    k_min = enough(hidden, LEVEL) or len(hidden)  # what the paper's test needs
    models = {"before marking": lab.unmarked(), "a stranger's": lab.unmarked(1), "none": model}
    models |= {f"prune {share:.0%}": compression.prune(model, share) for share in options["shares"]}
    rows: list[Row] = []
    for name, suspect in models.items():
        verdict = judge(scheme, hidden, suspect)
        rows.append({
            "setting": name, "test %": accuracy(suspect, rest.test_x, rest.test_y),
            "trigger %": verdict.trigger_accuracy, "integer %": (verdict.integer_matches or 0) / len(hidden),
            "p-value": float(verdict.p_value), "needed %": k_min / len(hidden), "proven": prove(suspect, made, k_min),
        })  # fmt: skip
    return rows


def _scheme(lab: Lab, options: dict[str, Any]) -> Frontier:
    embedding = Fit(epochs=100, batch=20, rate=options["embedding_rate"], seed=lab.seed)
    return Frontier(options["epsilon"][lab.arch], "linf", embedding, options["rehearsal"], lab.seed)


def _embedded(lab: Lab, scheme: Frontier, key: TriggerKey, rest: Dataset, name: str) -> nn.Module:
    def make(model: nn.Module) -> None:
        model.load_state_dict(lab.unmarked().state_dict())
        scheme.mark(model, rest, key)

    return lab.model(name, make, of=(scheme, len(key)))


def _marked(lab: Lab, options: dict[str, Any]) -> tuple[Frontier, TriggerKey, Dataset, nn.Module]:
    scheme = _scheme(lab, options)
    key, rest = scheme.split(options["count"], lab.unmarked(), lab.owner)
    lab.sheet(f"frontier-{lab.arch}", key.images, key.labels)
    return scheme, key, rest, _embedded(lab, scheme, key, rest, "frontier")


def _attacked(
    lab: Lab, options: dict[str, Any], attack: Callable[[nn.Module, float], nn.Module]
) -> list[Row]:
    scheme, key, rest, model = _marked(lab, options)
    models = {"before marking": lab.unmarked(), "a stranger's": lab.unmarked(1), "none": model}
    models |= {f"{share:.0%}": attack(model, share) for share in options["shares"]}
    return [_row(name, scheme, key, rest, suspect) for name, suspect in models.items()]


def _row(name: str, scheme: Frontier, key: TriggerKey, rest: Dataset, model: nn.Module) -> Row:
    """By answers alone, as in the paper: a recurrent network has no integer form."""
    decision = scheme.check(lambda images: answers(model, images), key)
    return {
        "setting": name, "test %": accuracy(model, rest.test_x, rest.test_y),
        "removed of 100": 100 * decision.errors / decision.count, "extracted": decision.found,
        "p-value": float(decision.p_value),
    }  # fmt: skip

"""Le Merrer et al.: pruning (Table 1), SVD (Table 2), adversarial fine-tuning (Table 3), false positives (Figure 6);
the same in a recurrent network, and as a public key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from ml.attacks import compression
from ml.attacks.fine_tuning import adversarial
from ml.data import Dataset
from ml.experiments.lab import Lab, Row, integer_share, proof_cell
from ml.fit import Fit, accuracy
from ml.mark import Progress
from ml.schemes.frontier import LEVEL, Frontier
from ml.schemes.scheme import TriggerKey, enough, tolerance
from ml.verdict import judge, with_proof
from protocol.errors import ParameterError


def pruning(lab: Lab, options: dict[str, Any]) -> list[Row]:
    return _attacked(lab, options, lambda model, share: compression.prune(model, share))


def svd(lab: Lab, options: dict[str, Any]) -> list[Row]:
    return _attacked(lab, options, lambda model, share: compression.low_rank(model, share))


def overwriting(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """Fine-tuning on new adversaries of the marked model, from images that are in no key."""
    return _attacked(lab, options)


def recurrent(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """Pruning and adversarial fine-tuning in one table."""
    return _attacked(lab, options, lambda model, share: compression.prune(model, share))


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
        theirs = replace(lab, arch=arch)
        strangers = [theirs.unmarked(number) for number in range(1, 1 + options["strangers"])]
        for epsilon, key in keys.items():
            setting = (f"asked of {arch}, " if options["asked"] else "") + f"ε = {epsilon}"
            if isinstance(key, str):
                rows.append({"setting": setting, "errors": None, "no key": key})
                continue
            found = list(map(theirs.judge_of(Frontier(epsilon), key, LEVEL), strangers))
            rows.append({
                "setting": setting, "errors": sum(v.count - v.matches for v in found) / len(found),
                "tolerated": tolerance(len(key), 2, LEVEL),
                "false positives %": sum(v.found for v in found) / len(found),
                "proven %": None if found[0].no_network else sum(v.proven is True for v in found) / len(found),
            })  # fmt: skip
    return rows


def public_key(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """As a public key whose owner chose the labels: half of the images stay hidden, and are embedded."""
    scheme = _scheme(lab, options)
    key, rest = scheme.split(options["count"], lab.unmarked(), lab.owner)
    made = lab.public_key(key)
    hidden = replace(key, images=made.hidden_images, labels=made.hidden_labels)
    model = _embedded(lab, scheme, hidden, rest, "frontier-public")
    k_min = enough(hidden, LEVEL) or len(hidden)  # what the paper's test needs
    models = {"before marking": lab.unmarked(), "a stranger's": lab.unmarked(1), "none": model}
    models |= {f"prune {share:.0%}": compression.prune(model, share) for share in options["shares"]}
    rows: list[Row] = []
    for name, suspect in models.items():
        verdict = with_proof(judge(scheme, hidden, suspect), suspect, made, k_min)
        rows.append({
            "setting": name, "test %": accuracy(suspect, rest.test_x, rest.test_y),
            "trigger %": verdict.trigger_accuracy, "integer %": integer_share(verdict),
            "p-value": float(verdict.p_value), "needed %": k_min / len(hidden), "proven": proof_cell(verdict),
        })  # fmt: skip
    return rows


def _scheme(lab: Lab, options: dict[str, Any]) -> Frontier:
    embedding = Fit(epochs=100, batch=20, rate=options["embedding_rate"], optimizer=lab.optimizer, seed=lab.seed)
    return Frontier(options["epsilon"][lab.arch], "linf", embedding, options["rehearsal"], lab.seed)


def _embedded(lab: Lab, scheme: Frontier, key: TriggerKey, rest: Dataset, name: str) -> nn.Module:
    def make(model: nn.Module, progress: Progress | None) -> None:
        model.load_state_dict(lab.unmarked().state_dict())
        scheme.mark(model, rest, key, progress)

    return lab.model(name, make, of=(scheme, len(key)))


def _marked(lab: Lab, options: dict[str, Any]) -> tuple[Frontier, TriggerKey, Dataset, nn.Module]:
    scheme = _scheme(lab, options)
    key, rest = scheme.split(options["count"], lab.unmarked(), lab.owner)
    lab.sheet(f"frontier-{lab.arch}", key.images, key.labels)
    return scheme, key, rest, _embedded(lab, scheme, key, rest, "frontier")


def _attacked(
    lab: Lab, options: dict[str, Any], attack: Callable[[nn.Module, float], nn.Module] | None = None
) -> list[Row]:
    """Models without the mark; with it; under an attack by its `shares`; and fine-tuned on so many `adversaries`."""
    scheme, key, rest, model = _marked(lab, options)
    models = {"before marking": lab.unmarked(), "a stranger's": lab.unmarked(1), "none": model}
    if attack is not None:
        models |= {f"{share:.0%}": attack(model, share) for share in options["shares"]}
    if count := options.get("adversaries"):
        x, y = lab.thief.train_x[:count], lab.thief.train_y[:count]
        models["adversarial fine-tuning"] = adversarial(model, x, y, scheme.epsilon, lab.attack_fit())
    judged = lab.judge_of(scheme, key, LEVEL)
    rows: list[Row] = []
    for name, suspect in models.items():
        verdict = judged(suspect)
        removed = 100 * (verdict.count - verdict.matches) / verdict.count
        rows.append({
            "setting": name, "test %": accuracy(suspect, rest.test_x, rest.test_y), "removed of 100": removed,
            "extracted": verdict.found, "p-value": float(verdict.p_value), "integer %": integer_share(verdict),
            "proven": proof_cell(verdict),
        })  # fmt: skip
    return rows

"""Hitaj and Mancini: ensemble and detector (Table I); Liu et al.: false claims with transferable adversaries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ml.attacks.evasion import evading, train_detector, vote
from ml.attacks.false_claim import false_key
from ml.experiments.lab import Lab, Row, verdict_cells
from ml.fit import Fit, accuracy
from ml.mark import train
from ml.models import Normalized
from ml.schemes.scheme import TriggerKey
from ml.triggers import abstract_images
from ml.verdict import judge, judge_answers, with_proof
from protocol.keygen import KeyParameters, generate_key


def ensemble(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """What an owner sees who asks a vote of n marked models, and what is provable of the owner's own member."""
    models = [lab.marked(), *(_marked_by_another(lab, number) for number in range(1, max(options["sizes"])))]
    rows: list[Row] = []
    for size in options["sizes"]:
        service = vote(models[:size], lab.seed)
        cells = verdict_cells(judge_answers(lab.scheme, lab.triggers, service))
        test = accuracy(service, lab.data.test_x, lab.data.test_y)
        rows.append({"setting": f"vote of {size}", "test %": test, **cells})
    own = verdict_cells(lab.judged(lab.marked()))
    return [*rows, {"setting": "its weights", "test %": lab.test(lab.marked()), **own}]


def detector(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """Trained on the thief's own abstract images; tested on the key's and on test images."""
    rng = np.random.default_rng([lab.seed, 4])
    count = options["images"]
    suspicious = abstract_images(count, lab.data.shape, rng.bytes)
    model = lab.marked()
    found = train_detector(model, lab.thief.train_x[:count], suspicious,
                           Fit(epochs=options["epochs"], batch=64, rate=0.02, seed=lab.seed))  # fmt: skip
    clean, caught = (accuracy(found, x, np.full(len(x), label)) for x, label in
                     ((lab.data.test_x, 0), (lab.triggers.images, 1)))  # fmt: skip
    service = evading(model, found, lab.data.classes, lab.seed)
    cells = verdict_cells(judge_answers(lab.scheme, lab.triggers, service))
    test = accuracy(service, lab.data.test_x, lab.data.test_y)
    own = verdict_cells(lab.judged(model))
    return [
        {"setting": "service with detector", "test %": test, "detector %": (clean + caught) / 2, **cells},
        {"setting": "its weights", "test %": lab.test(model), **own},
    ]


def false_claim(lab: Lab, options: dict[str, Any]) -> list[Row]:
    """Keys of adversaries against a model that their maker never saw: of chosen labels, and of the joint coin's."""
    surrogates = [_surrogate(lab, number) for number in range(options["surrogates"])]
    false = false_key(surrogates, lab.thief, options["count"], options["epsilon"], seed=lab.seed)
    lab.sheet("false-claim", false.images, false.labels)
    parameters = KeyParameters(false.shape, false.classes, len(false))
    coin = generate_key(parameters, false.images, entropy=np.random.default_rng([lab.seed, 5]).bytes)
    victim = lab.unmarked()
    rows: list[Row] = []
    for name, key in (("labels chosen", lab.public_key(false)), ("labels of the joint coin", coin)):
        hidden = replace(TriggerKey.from_marking_key(key), chosen="")  # judged as if its labels were a coin's
        verdict = judge(lab.scheme, hidden, victim)
        rows.append({"setting": name, **verdict_cells(with_proof(verdict, victim, key, verdict.k_min))})
    return rows


def _marked_by_another(lab: Lab, number: int) -> Normalized:
    key = TriggerKey.from_marking_key(lab.marking_key(number))
    return lab.model(f"marked-other-{number}", lambda m, p: lab.scheme.mark(m, lab.owner, key, p), number)


def _surrogate(lab: Lab, number: int) -> Normalized:
    options = replace(lab.training, seed=1000 + number)
    return lab.model(f"surrogate-{number}", lambda m, p: train(m, lab.thief, options, p), 50 + number)

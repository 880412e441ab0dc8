"""The verdict counts what it says, and its proof is one: a marked digits network is proven, a pruned one is not."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from ml.attacks.compression import few_bits, prune
from ml.data import Dataset
from ml.fit import Fit, answers, fit, last_layer
from ml.mark import Training
from ml.models import Normalized
from ml.schemes.backdoor import Backdoor
from ml.schemes.certified import Smoothed
from ml.schemes.frontier import Frontier
from ml.schemes.scheme import TriggerKey
from ml.triggers import abstract_images
from ml.verdict import COMPOSED, RECURRENT, SERVICE, judge, judge_answers, prove, with_proof
from protocol.errors import ParameterError
from protocol.keygen import KeyParameters, LabelRule, MarkingKey, generate_key
from protocol.soundness import false_claim_bits, smallest_k_min

SCHEME = Backdoor(Training(epochs=10))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def marking_key() -> MarkingKey:
    rng = np.random.default_rng(2)
    images = abstract_images(160, (1, 8, 8), rng.bytes)
    return generate_key(KeyParameters((1, 8, 8), 10, 160), images, entropy=rng.bytes)


@pytest.fixture(scope="module")
def marked(digits: Dataset, marking_key: MarkingKey) -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
    model = Normalized(body, torch.tensor([78.0]), torch.tensor([96.0]))
    SCHEME.mark(model, digits, TriggerKey.from_marking_key(marking_key))
    return model


def test_a_marked_model_is_provable_and_proven(marked: nn.Module, marking_key: MarkingKey) -> None:
    key = TriggerKey.from_marking_key(marking_key)
    verdict = judge(SCHEME, key, marked)
    h = len(key)
    assert (verdict.count, verdict.matches, verdict.integer_matches) == (h, h, h) and verdict.trigger_accuracy == 1.0
    assert verdict.p_value == Fraction(1, 10**h) and verdict.found and verdict.no_bound == ""
    assert verdict.k_min == smallest_k_min(h, 10) and verdict.provable and verdict.proven is None
    assert verdict.false_claim_bits == false_claim_bits(h, 10, h)
    proven = with_proof(verdict, marked, marking_key)
    assert proven.proven is True
    plain = json.loads(json.dumps(proven.to_json()))
    assert plain["proven"] and plain["p_value_bits"] == pytest.approx(h * np.log2(10)) and "p_value" not in plain
    assert prove(few_bits(marked, 8), marking_key)


def test_an_attacked_model_that_is_not_provable_is_not_proven(marked: nn.Module, marking_key: MarkingKey) -> None:
    key = TriggerKey.from_marking_key(marking_key)
    attacked = prune(marked, 0.98)
    verdict = judge(SCHEME, key, attacked)
    assert verdict.k_min is not None and (verdict.integer_matches or 0) < verdict.k_min and not verdict.provable
    assert with_proof(verdict, attacked, marking_key).proven is False
    weak = 0 if verdict.integer_matches is None else verdict.integer_matches
    assert verdict.false_claim_bits is not None and verdict.false_claim_bits < 128
    assert weak == 0 or prove(attacked, marking_key, weak)  # a smaller claim is still provable, only worth less


def test_a_service_has_no_provable_mark(marked: nn.Module, marking_key: MarkingKey) -> None:
    key = TriggerKey.from_marking_key(marking_key)
    verdict = judge_answers(SCHEME, key, lambda x: answers(marked, x))
    assert verdict.found and verdict.integer_matches is None and not verdict.provable
    assert verdict.false_claim_bits is None and verdict.no_bound == verdict.no_network == SERVICE


def test_a_borrowed_layer_gives_no_claim(marked: nn.Module, marking_key: MarkingKey) -> None:
    """A stranger's features behind a layer fitted to the labels: every trigger matches, and nothing follows."""
    key = TriggerKey.from_marking_key(marking_key)
    stranger = Normalized(nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10)),
                          torch.tensor([78.0]), torch.tensor([96.0]))  # fmt: skip
    fit(stranger, key.images, key.labels, Fit(epochs=150, rate=0.02), last_layer(stranger).parameters())
    verdict = judge(SCHEME, key, stranger, COMPOSED)
    assert verdict.trigger_accuracy > 0.95  # though its features have never seen a trigger
    assert verdict.false_claim_bits is None and verdict.k_min is None and not verdict.provable
    assert verdict.no_bound == verdict.no_network == COMPOSED


def test_chosen_labels_have_no_bound_but_can_be_proven_under_their_own_rule(marked: nn.Module, digits: Dataset) -> None:
    scheme = Frontier(0.1, fine_tuning=Fit(epochs=100, rate=0.01), rehearsal=200)
    key, _ = scheme.split(20, marked, digits)
    verdict = judge(scheme, key, marked)
    assert verdict.matches == 10 and not verdict.found and verdict.p_value == Fraction(616666, 2**20)
    assert verdict.false_claim_bits is None and verdict.k_min is None and "chose" in verdict.no_bound
    assert verdict.no_network == ""  # there is a network, and no bound
    answered = judge_answers(scheme, key, lambda x: answers(marked, x), RECURRENT)
    assert answered.no_network == RECURRENT and answered.no_bound == verdict.no_bound
    assert (answered.matches, answered.integer_matches, answered.found) == (verdict.matches, None, verdict.found)
    parameters = KeyParameters((1, 8, 8), 10, 20, LabelRule.CHOSEN)
    rng = np.random.default_rng(1)
    made = generate_key(parameters, key.images, labels=key.labels.tolist(), entropy=rng.bytes)
    hidden = TriggerKey.from_marking_key(made)
    matches = int((answers(marked, hidden.images) == hidden.labels).sum())
    with pytest.raises(ParameterError, match="no k_min"):
        prove(marked, made)
    assert not prove(marked, made, matches + 3)


def test_other_classes(marked: nn.Module) -> None:
    with pytest.raises(ParameterError, match="classes"):
        judge(SCHEME, TriggerKey(np.zeros((1, 1, 8, 8), np.uint8), np.array([10]), 11), marked)
    with pytest.raises(ParameterError, match="classes"):  # its labels exist, but the chance of a match is another
        judge(SCHEME, TriggerKey(np.zeros((1, 1, 8, 8), np.uint8), np.array([0]), 11), marked)


def test_a_certificate_goes_with_a_verdict(marked: nn.Module, marking_key: MarkingKey) -> None:
    certificate = Smoothed(np.ones(1000), 0.1).certify(0.1)
    verdict = replace(judge(SCHEME, TriggerKey.from_marking_key(marking_key), marked), certificate=certificate)
    plain = json.loads(json.dumps(verdict.to_json()))
    assert plain["certificate"]["accuracy"] == 1.0 and plain["certificate"]["confidence"] == 0.999

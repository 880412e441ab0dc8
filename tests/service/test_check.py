"""From bytes to a verdict: what is accepted, rejected, undecided, malformed."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx
import pytest
from rich.console import Console

from ml.quantise import Derivation, Fidelity, derive, images_digest
from ml.triggers import abstract_images
from protocol import soundness
from protocol.anchor import Anchor
from protocol.argument import Context, Statement, verify
from protocol.claim import Claim
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.identity import public_key
from protocol.keygen import KeyParameters, LabelRule, VerificationKey, commit_key, generate_key
from protocol.log import Checkpoint, Entry, EntryKind, LogKey, leaf_hash, open_note, sign_checkpoint
from protocol.soundness import smallest_k_min, void_limit
from protocol.transcript import FiatShamir
from prover.jobs import make_claim, subject
from tests.service.conftest import memorize, two_layers
from verifier import check as checking
from verifier.check import Subject, Verdict, check, check_key
from verifier.ground_truth import check_ground_truth, void_items
from verifier.html import verdict_page
from verifier.policy import Policy
from verifier.report import print_verdict

CONTEXT = Context("a dispute", "the owner", "the court", bytes(range(32)))
PLAIN = Derivation()


@pytest.fixture(scope="module")
def claim(world) -> Claim:
    k_min = smallest_k_min(world.key.vk.h, 10)
    return make_claim(world.key, subject(world.marked, PLAIN, None, world.key.vk), k_min, CONTEXT)


@pytest.fixture
def suspect(world) -> Subject:
    return Subject(world.key.vk, world.marked, CONTEXT)


def judge(suspect: Subject, claim: Claim | bytes, policy: Policy | None = None) -> Verdict:
    data = claim if isinstance(claim, bytes) else claim.to_bytes()
    return check(suspect, lambda _: (data, FiatShamir()), policy)


def test_an_honest_claim_is_accepted(world, suspect, claim):
    verdict = judge(suspect, claim)
    assert verdict.accepted and verdict.failed_check is None
    assert verdict.k_min == claim.k_min and verdict.h == world.key.vk.h
    assert verdict.false_claim_bits >= 128 and verdict.argument_bits >= 120
    assert verdict.vk_digest == world.key.vk.digest.hex()
    assert verdict.fidelity is None and checking.UNFAITHFUL in verdict.caveats
    assert set(verdict.seconds) == {"key", "derive", "verify"}
    assert verdict.context["claimant"] == "the owner" and verdict.assumptions


def test_the_verdict_is_json(suspect, claim):
    values = json.loads(json.dumps(judge(suspect, claim).to_json()))
    assert {
        "accepted", "outcome", "failed_check", "h", "k_min", "false_claim_bits", "argument_bits", "cut_and_choose_b",
        "fidelity", "vk_digest", "model_digest", "network_digest", "proof_bytes", "seconds", "context",
    } <= values.keys()  # fmt: skip


@pytest.mark.parametrize("field", ["purpose", "claimant", "verifier", "nonce"])
def test_another_context(suspect, claim, field):
    other = replace(CONTEXT, **{field: bytes(32) if field == "nonce" else "another"})
    verdict = judge(replace(suspect, context=other), claim)
    assert (verdict.outcome, verdict.failed_check) == ("rejected", f"statement.{field}")


@pytest.mark.reaches("statement.model")
def test_another_model(world, suspect, claim):
    assert judge(replace(suspect, model=world.other), claim).failed_check == "statement.model"
    assert judge(replace(suspect, model=world.copy), claim).failed_check == "statement.model"


@pytest.mark.reaches("statement.model", "statement.network")
def test_one_weight(world, suspect, claim):
    """It makes another file, and another network in a claim that names this file."""
    model = onnx.load_from_string(world.marked)
    weights = onnx.numpy_helper.to_array(model.graph.initializer[2]).copy()
    weights[0, 0] *= -1
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(weights, "w2"))
    changed = replace(suspect, model=model.SerializeToString())
    assert judge(changed, claim).failed_check == "statement.model"
    key, _, network, derivation = claim.digests
    named = replace(claim, digests=(key, hashlib.sha256(changed.model).digest(), network, derivation))
    assert judge(changed, named).failed_check == "statement.network"


@pytest.mark.reaches("statement.network")
def test_another_derivation(suspect, claim):
    changed = replace(suspect, derivation=Derivation(table_bits=15))
    assert judge(changed, claim, Policy(min_bits=10)).failed_check == "statement.network"


@pytest.mark.reaches("statement.derivation")
def test_another_derivation_of_the_same_network(world, suspect, claim):
    """All outputs by name are all outputs; but a claimant could have named others, which is why it is said."""
    named = Derivation(outputs=tuple(range(10)))
    assert derive(world.marked, named).network.digest == derive(world.marked, PLAIN).network.digest
    assert judge(replace(suspect, derivation=named), claim, Policy(min_bits=10)).failed_check == "statement.derivation"


@pytest.mark.reaches("statement.key")
def test_another_key(suspect, claim):
    key = generate_key(KeyParameters((1, 4, 4), 10, 160), abstract_images(160, (1, 4, 4)))
    assert judge(replace(suspect, key=key.vk), claim, Policy(min_bits=10)).failed_check == "statement.key"


def test_the_digests_of_a_claim_are_not_believed(world, suspect, claim):
    """A claim relabeled for another statement passes the comparison, and fails in the argument."""
    about = subject(world.other, PLAIN, None, world.key.vk)
    forged = replace(
        claim, digests=(world.key.vk.digest, about.model_digest, about.network.digest, about.derivation_digest)
    )
    verdict = judge(replace(suspect, model=world.other), forged)
    assert verdict.outcome == "rejected" and not str(verdict.failed_check).startswith(("statement", "policy"))
    forged = replace(claim, context=replace(CONTEXT, nonce=bytes(32)))
    verdict = judge(replace(suspect, context=forged.context), forged)
    assert verdict.outcome == "rejected" and not str(verdict.failed_check).startswith(("statement", "policy"))


@pytest.mark.parametrize("change", [-1, 1])
def test_another_k_min(suspect, claim, change):
    verdict = judge(suspect, replace(claim, k_min=claim.k_min + change))
    assert verdict.outcome == "rejected"
    assert (verdict.failed_check == "policy.k_min") == (change < 0)


@pytest.mark.reaches("policy.k_min")
@pytest.mark.parametrize("k_min", [0, 1, 10_000, (1 << 32) - 1])
def test_k_min_out_of_range(suspect, claim, k_min):
    assert judge(suspect, replace(claim, k_min=k_min)).failed_check == "policy.k_min"


@pytest.mark.reaches("policy.k_min")
def test_the_verifiers_own_minimum(suspect, claim):
    assert judge(suspect, claim, Policy(min_bits=300)).failed_check == "policy.k_min"
    assert judge(suspect, claim, Policy(min_bits=10)).accepted


def test_truncated_claims_are_malformed(suspect, claim):
    data = claim.to_bytes()
    for size in (0, 1, 14, 18, 22, 60, 100, 190, 240, 400, len(data) // 2, len(data) - 1):
        with pytest.raises(DecodingError):
            judge(suspect, data[:size])
    with pytest.raises(DecodingError):
        judge(suspect, data + b"\0")
    with pytest.raises(DecodingError):
        judge(suspect, b"zkmark claim 9\n" + data[15:])


def test_oversized_lengths_are_malformed(suspect, claim):
    data = claim.to_bytes()
    for at in range(0, 400, 7):
        with pytest.raises(DecodingError):
            judge(suspect, data[:at] + b"\xff" * 8 + data[at + 8 : at + 40])


def test_flipped_bits_never_pass(suspect, claim):
    data = claim.to_bytes()
    rng = np.random.default_rng(1)
    for at in [*range(15, 60, 6), *rng.integers(60, len(data), 24).tolist()]:
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        try:
            verdict = judge(suspect, bytes(changed))
        except DecodingError:
            continue
        assert verdict.outcome == "rejected" and verdict.failed_check, at


def test_a_false_key_is_rejected_by_name(suspect, claim):
    changed = bytearray(suspect.key.to_bytes())
    changed[-1] ^= 1
    verdict = judge(replace(suspect, key=VerificationKey.from_bytes(bytes(changed))), claim)
    assert (verdict.outcome, verdict.failed_check) == ("rejected", "key.signature")


@pytest.mark.reaches("policy.owner", "key.signature")
def test_only_the_named_owner_counts(world, suspect, claim):
    assert judge(suspect, claim, Policy(owner=world.key.vk.owner_public_key)).accepted
    verdict = check(suspect, lambda _: pytest.fail("asked for a proof"), Policy(owner=bytes(32)))
    assert (verdict.outcome, verdict.failed_check) == ("rejected", "policy.owner")
    assert verdict.owner == world.key.vk.owner_public_key.hex() and "key" not in verdict.seconds
    other = public_key(bytes(32))
    forged = replace(suspect.key, owner_public_key=other)  # somebody who did not sign
    verdict = judge(replace(suspect, key=forged), claim, Policy(owner=other))
    assert verdict.failed_check == "key.signature"


@pytest.mark.reaches("policy.chosen_labels")
def test_chosen_labels_are_refused_by_default(world, suspect, claim):
    labels = [n % 10 for n in range(160)]
    parameters = KeyParameters((1, 4, 4), 10, 160, LabelRule.CHOSEN)
    key = generate_key(parameters, world.key.images, labels=labels)
    chosen = replace(suspect, key=key.vk)
    verdict = judge(chosen, claim)
    assert (verdict.failed_check, verdict.label_rule) == ("policy.chosen_labels", "chosen")
    assert check_key(key.vk).failed_check == "policy.chosen_labels"
    assert check_key(key.vk, Policy(chosen_labels=True)).accepted


@pytest.fixture(scope="module")
def chosen(world):
    """(key, model, claim): a key with chosen labels that a model keeps, and a claim about it."""
    labels = [3 - n % 2 for n in range(160)]
    key = generate_key(KeyParameters((1, 4, 4), 10, 160, LabelRule.CHOSEN), world.key.images, labels=labels)
    model = two_layers(*memorize(key.hidden_images, key.hidden_labels, 3))
    return key, model, make_claim(key, subject(model, PLAIN, None, key.vk), 60, CONTEXT)


def test_chosen_labels_have_a_p_value_and_no_bound(chosen):
    key, model, claim = chosen
    suspect, h = Subject(key.vk, model, CONTEXT), key.vk.h
    verdict = judge(suspect, claim, Policy(chosen_labels=True))
    assert verdict.accepted and verdict.false_claim_bits is None and verdict.no_bound == soundness.NO_BOUND
    assert verdict.null_probability == "1/2"
    assert verdict.p_value_bits == soundness.bits(soundness.p_value(h, 60, Fraction(1, 2)))
    verdict = judge(suspect, claim, Policy(chosen_labels=True, null=Fraction(1, 10)))
    assert verdict.p_value_bits == soundness.bits(soundness.tail(h, 10, 60)) > 60
    lenient = Policy(chosen_labels=True, null=Fraction(9, 10))  # strangers match nearly all: the claim says nothing
    assert judge(suspect, claim, lenient).failed_check == "policy.k_min"
    assert json.loads(json.dumps(verdict.to_json()))["no_bound"] == soundness.NO_BOUND


def test_chosen_labels_may_be_the_true_ones(chosen):
    """A frontier key keeps the classes that its images show: void items are counted, and no fault."""
    key, model, claim = chosen
    truth = Subject(key.vk, model, CONTEXT, reference=two_layers(*memorize(key.images, key.labels, 4)))
    verdict = judge(truth, claim, Policy(chosen_labels=True))
    assert verdict.accepted and verdict.void_items > void_limit(len(key.vk.opened), 10)


def test_a_proof_under_chosen_labels_is_none_under_the_coin(chosen):
    """The same commitments under the other rule are another key, and the proof is of another statement."""
    key, model, claim = chosen
    joint = replace(key.vk, parameters=replace(key.vk.parameters, label_rule=LabelRule.JOINT_COIN))
    suspect = Subject(joint, model, CONTEXT)
    assert judge(suspect, claim).failed_check == "key.signature"
    about = subject(model, PLAIN, None, joint)
    statement = Statement(joint, about.network, 60, CONTEXT, about.model_digest, about.derivation_digest)
    with pytest.raises(VerificationError) as error:
        verify(statement, claim.proof)
    assert error.value.check == "owner.signature"


@pytest.fixture(scope="module")
def anchored(world):
    """(log key, key): its commitments are the only entry of a log."""
    secret = bytes(range(32))
    log = LogKey("log.example/keys", public_key(secret))
    pending = commit_key(KeyParameters((1, 4, 4), 10, 160), world.key.images)
    while True:
        leaf = leaf_hash(Entry(EntryKind.COMMITMENTS, pending.digest, b"", 1_700_000_000).to_bytes())
        _, signature = open_note(sign_checkpoint(secret, Checkpoint(log.name, 1, leaf)), log)
        key = pending.draw(Anchor(log, 0, 1_700_000_000, (), 1, leaf, signature).to_bytes())
        if key is not None:
            return log, key
        pending = pending.blinded_anew()


@pytest.mark.reaches("policy.anchor")
def test_an_anchor_counts_if_its_log_is_trusted(world, anchored):
    log, key = anchored
    other = LogKey("another.example/keys", log.public)
    plain = check_key(key.vk)
    assert plain.accepted and plain.anchor["log"] == log.to_text() and not plain.anchor["trusted"]
    assert plain.anchored_b is None and plain.log2_coins is None
    assert check_key(key.vk, Policy(anchor_logs=(other, log))).log2_coins == 18  # the other would have done, too
    verdict = check_key(key.vk, Policy(anchor_logs=(log, log)))
    assert verdict.accepted and verdict.anchor["trusted"] and verdict.anchor["time"] == "2023-11-14 22:13:20 UTC"
    assert verdict.log2_coins == 17 and verdict.cut_and_choose_b == soundness.hidden_bad(160, 128)
    assert verdict.anchored_b == soundness.hidden_bad(160, 17, 40) < verdict.cut_and_choose_b
    assert json.loads(json.dumps(verdict.to_json()))["anchored_b"] == verdict.anchored_b
    for policy, vk in ((Policy(anchor_logs=(other,)), key.vk), (Policy(anchor_logs=(log,)), world.key.vk)):
        found = check_key(vk, policy)
        assert (found.outcome, found.failed_check) == ("rejected", "policy.anchor")


def test_the_verdict_says_what_an_anchor_is_worth(anchored):
    log, key = anchored
    out = Console(file=io.StringIO(), width=300)
    for policy, words in ((Policy(), "--anchor-log"), (Policy(anchor_logs=(log,)), "2^17 coins, not hashes")):
        print_verdict(check_key(key.vk, policy), out)
        assert words in out.file.getvalue()
    verdict = check_key(key.vk, Policy(anchor_logs=(log,)))
    verdict.k_min, verdict.false_claim_bits = 70, 128.5
    assert "one of at most 2<sup>17</sup>: an accuser" in verdict_page(verdict, key.vk, [])
    page = verdict_page(check_key(key.vk, Policy(anchor_logs=(log,))), key.vk, [])
    assert "2<sup>17</sup> coins" in page and "Commitments logged" in page and "2023-11-14" in page
    page = verdict_page(check_key(key.vk), key.vk, [])
    assert "does not say that she trusts it" in page and "2023-11-14" not in page  # whoever keeps a log sets its clock


@pytest.mark.parametrize("null", [Fraction(0), Fraction(1), Fraction(-1, 2), Fraction(1, 10**7)])
def test_null_probabilities_out_of_range(null):
    with pytest.raises(ParameterError, match="between 0 and 1"):
        Policy(null=null)


def test_policies_that_nothing_falls_short_of():
    for number in (float("nan"), -1.0):
        for name in ("min_bits", "min_agreement"):
            with pytest.raises(ParameterError, match="negative"):
                Policy(**{name: number})


def test_malformed_models(world, suspect, claim):
    for model in (b"", b"junk", world.marked[:-9], world.marked[: len(world.marked) // 2]):
        with pytest.raises((DecodingError, ParameterError)):
            judge(replace(suspect, model=model), claim)


def test_a_model_of_other_classes(suspect, claim):
    with pytest.raises(ParameterError, match="the key is for"):
        judge(replace(suspect, derivation=Derivation(outputs=(0, 1, 2))), claim)


def test_fidelity_is_reported(world, suspect, claim):
    verdict = judge(replace(suspect, images=world.key.images), claim)
    assert verdict.accepted and verdict.fidelity.count == 160 and verdict.fidelity.agreement >= 0.98
    assert checking.UNFAITHFUL not in verdict.caveats


@pytest.mark.parametrize("found", [Fidelity(200, 0.979, False), Fidelity(200, 1.0, True)])
def test_a_failed_fidelity_floor_is_undecided(suspect, claim, monkeypatch, found):
    monkeypatch.setattr(checking, "fidelity", lambda *_: found)
    images = np.zeros((1, 1, 4, 4), np.uint8)
    verdict = check(replace(suspect, images=images), lambda _: pytest.fail("asked for a proof"))
    assert (verdict.outcome, verdict.failed_check) == ("undecided", "policy.fidelity")
    assert verdict.fidelity == found and not verdict.accepted


def test_without_onnxruntime(suspect, claim, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ParameterError, match="onnxruntime"):
        judge(replace(suspect, images=np.zeros((1, 1, 4, 4), np.uint8)), claim)


def test_a_refusal_is_a_verdict(suspect):
    def refuse(_: object) -> bytes:
        raise VerificationError("prover.refused", "no proof is made for this model")

    verdict = check(suspect, refuse)
    assert (verdict.outcome, verdict.failed_check) == ("rejected", "prover.refused")


def test_calibration_images_are_part_of_the_statement(world, suspect):
    images = world.key.images[:40]
    derivation = Derivation(calibration=images_digest(images))
    about = subject(world.marked, derivation, images, world.key.vk)
    calibrated = make_claim(world.key, about, smallest_k_min(world.key.vk.h, 10, 128, about.freedom_bits), CONTEXT)
    named = replace(suspect, derivation=derivation, calibration=images)
    verdict = judge(named, calibrated)
    assert verdict.accepted and checking.CALIBRATED in verdict.caveats and verdict.freedom_bits == 1
    with pytest.raises(ParameterError):
        judge(replace(named, calibration=images[::-1]), calibrated)


@pytest.mark.reaches("key.ground_truth")
def test_ground_truth(world):
    key = world.key.vk
    labels = key.opened_labels
    limit = void_limit(len(labels), 10)
    truth = np.full(len(labels), -1)
    assert void_items(key, truth) == 0
    truth[: limit + 1] = labels[: limit + 1]
    assert void_items(key, truth) == limit + 1
    with pytest.raises(ParameterError):
        void_items(key, truth[1:])

    class Reference:
        shape, classes = (1, 4, 4), 10

        def __init__(self, answers: np.ndarray) -> None:
            self.classify = lambda _: answers

    with pytest.raises(VerificationError) as caught:
        check_ground_truth(key, Reference(truth))
    assert caught.value.check == "key.ground_truth"
    truth[0] = -1
    assert check_ground_truth(key, Reference(truth)) == limit


def test_a_reference_model(world, suspect, claim):
    verdict = judge(replace(suspect, reference=world.other), claim)
    assert verdict.void_items is not None and verdict.void_items <= void_limit(len(world.key.vk.opened), 10)


def test_a_claim_can_be_checked_again(suspect, claim):
    first, again = (judge(suspect, claim).to_json() for _ in range(2))
    when = {"seconds": None, "times": None}
    assert first | when == again | when

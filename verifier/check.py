"""From bytes and a policy to a verdict: the whole of what a verifier does, with files or with a prover on the line.

Order: key, label rule, ground truth, derivation, fidelity, then the claim.  The verifier computes everything that she
compares: from a claim she takes k_min and the proof.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from ml.quantise import Derivation, Derived, Fidelity, derive, derive_once, fidelity
from protocol import keygen
from protocol.anchor import WINDOW
from protocol.argument import Context, Statement, verify
from protocol.claim import Claim, compare
from protocol.errors import ParameterError, VerificationError
from protocol.keygen import LabelRule, VerificationKey
from protocol.soundness import ANCHOR_DOUBT, NO_BOUND, anchored_work, bits, hidden_bad, p_value
from protocol.transcript import Channel, FiatShamir
from verifier.ground_truth import check_ground_truth, check_review
from verifier.policy import Policy
from verifier.review import Review
from zkmark.terminal import Report

Images = npt.NDArray[np.uint8]
Publication = Callable[[VerificationKey], dict[str, str | int]]
Obtain = Callable[[VerificationKey], tuple[bytes, Channel]]
MAX_UNIX_TIME = 253402300799  # the year 9999
CUT_AND_CHOOSE_WORK = 128  # log2 of the hashes that a cheating owner may have spent on the key

CAVEATS = (
    "The claim is about the model file with this digest.  That it is the suspect's model is not proven: "
    "obtain it from the suspect and export it yourself.",
    "The model derives from marked material; whether a license allowed that is not judged.",
    "That nobody put the triggers into the suspect's training data after the key was published is not proven.",
    "Of several valid keys the one published first counts; its date is not part of the proof.",
)
CALIBRATED = "The calibration images are this verifier's own: the verdict convinces those who trust her choice."
REVIEWED = "Who signed the review of the opened triggers, and whether honestly, is not proven."
UNREVIEWED = "What the opened triggers show was not compared with their labels: look at them."
UNNAMED = "No claimant is named: somebody else may have passed on the owner's answer as his own."
UNFAITHFUL = "Whether the integer network classifies like the model was not examined."


@dataclass(frozen=True)
class Subject:
    """What the verifier holds: the key, the suspect's model as ONNX bytes, and how she reads it.

    calibration: the images that the derivation names, if any.  images: her own, uint8 [n, C, H, W], for the fidelity
    floor; None to go without.  What the opened triggers show is known from `reference`, ONNX bytes of a classifier of
    such images, or from a person's `review`, if any.  publication: finds log, index and time of the key on a board;
    stamp: finds time and authority of a time-stamp; their VerificationError is a verdict.
    model_date, claim_date: of the files, where they are files; shown, not believed.
    """

    key: VerificationKey
    model: bytes
    context: Context
    derivation: Derivation = field(default_factory=Derivation)
    calibration: Images | None = None
    images: Images | None = None
    reference: bytes | None = None
    review: Review | None = None
    publication: Publication | None = None
    stamp: Publication | None = None
    model_date: datetime | None = None
    claim_date: datetime | None = None


@dataclass
class Verdict:
    """What was found; fields stay None when a check before them failed.

    outcome: accepted, rejected, or undecided (the fidelity floor failed: nothing is known about the mark).
    failed_check: its name in SPEC.md.  bits: -log2 of probabilities.  digests: hexadecimal.  seconds: per phase.
    times: of the model's file, of the claim (its file's, or when it came), of the check; by this verifier's clock.
    cut_and_choose_b: ill-formed triggers that can hide after 2^128 hashes of work.  anchor: where the commitments were
    logged; if that log is trusted, there were 2^log2_coins coins, and anchored_b can hide but for probability 2^-40.
    no_bound: why there are no false_claim_bits; then there is a p-value for strangers of the given null_probability.
    """

    outcome: str = "rejected"
    failed_check: str | None = None
    message: str = ""
    shape: tuple[int, int, int] | None = None
    classes: int | None = None
    ell: int | None = None
    h: int | None = None
    k_min: int | None = None
    false_claim_bits: float | None = None
    argument_bits: float | None = None
    ledger: list[tuple[str, float]] | None = None
    cut_and_choose_b: int | None = None
    anchor: dict[str, str | int] | None = None
    log2_coins: int | None = None
    anchored_b: int | None = None
    label_rule: str | None = None
    no_bound: str | None = None
    null_probability: str | None = None
    p_value_bits: float | None = None
    published: dict[str, str | int] | None = None
    stamped: dict[str, str | int] | None = None
    void_items: int | None = None
    reviewer: str | None = None
    fidelity: Fidelity | None = None
    owner: str | None = None
    vk_digest: str | None = None
    model_digest: str | None = None
    network_digest: str | None = None
    derivation_digest: str | None = None
    freedom_bits: float | None = None
    proof_bytes: int | None = None
    interactive: bool = False
    context: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    times: dict[str, str] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        return self.outcome == "accepted"

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, `accepted` first."""
        values = dict(vars(self))
        if self.fidelity is not None:
            values["fidelity"] = vars(self.fidelity)
        return {"accepted": self.accepted, **values}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Verdict:
        """The verdict that `to_json` wrote.  Raises KeyError or TypeError if a field is missing."""
        known = {one.name: values[one.name] for one in fields(Verdict)}
        for name in ("shape", "assumptions", "caveats"):
            known[name] = None if known[name] is None else tuple(known[name])
        if known["ledger"] is not None:
            known["ledger"] = [(str(name), float(value)) for name, value in known["ledger"]]
        if known["fidelity"] is not None:
            known["fidelity"] = Fidelity(**known["fidelity"])
        return Verdict(**known)


def check_owner(
    key: VerificationKey, reference: bytes | None, policy: Policy, verdict: Verdict, review: Review | None = None
) -> None:
    """Check a key, and note what it says.  Raises VerificationError.

    reference: ONNX bytes of a classifier that knows what natural triggers show, if any.  review: a person's, if any.
    """
    parameters = key.parameters
    verdict.shape, verdict.classes, verdict.ell, verdict.h = parameters.shape, parameters.classes, parameters.ell, key.h
    verdict.vk_digest, verdict.owner = key.digest.hex(), key.owner_public_key.hex()
    verdict.label_rule = parameters.label_rule.name.lower()
    policy.check_owner(key)
    with _timed(verdict, "key"):
        keygen.check_key(key)
    policy.check_label_rule(key)
    policy.check_anchor(key)
    if parameters.label_rule is LabelRule.CHOSEN:
        verdict.no_bound = NO_BOUND
    verdict.cut_and_choose_b = hidden_bad(parameters.ell, CUT_AND_CHOOSE_WORK)
    if key.anchor is not None:
        verdict.anchor = {
            "log": key.anchor.log.to_text(), "index": key.anchor.index, "size": key.anchor.size,
            "time": unix_time_text(key.anchor.unix_time), "trusted": policy.trusts_anchor(key),
        }  # fmt: skip
    if key.anchor is not None and policy.trusts_anchor(key):
        verdict.log2_coins = anchored_work(key.anchor.size, WINDOW, len(set(policy.anchor_logs)))
        verdict.anchored_b = hidden_bad(parameters.ell, verdict.log2_coins, ANCHOR_DOUBT)
    if reference is not None:
        verdict.void_items = check_ground_truth(key, derive(reference, Derivation()).network)
    if review is not None:
        verdict.reviewer = review.reviewer.hex()
        policy.check_reviewer(review)
        verdict.void_items = check_review(key, review)


def check_key(
    key: VerificationKey,
    policy: Policy | None = None,
    *,
    reference: bytes | None = None,
    review: Review | None = None,
    publication: Publication | None = None,
    stamp: Publication | None = None,
) -> Verdict:
    """Check a verification key and what its owner opened; the verdict says what it is for.

    Checks: those of `protocol.keygen.check_key`, `key.ground_truth`, `policy.*` of keys.  The arguments are those of
    `Subject`.  Raises DecodingError or ParameterError for a malformed reference, and as they do.
    """
    verdict = Verdict()
    try:
        check_owner(key, reference, policy or Policy(), verdict, review)
        _date_key(key, publication, stamp, verdict)
        verdict.outcome = "accepted"
    except VerificationError as error:
        verdict.failed_check, verdict.message = error.check, str(error)
    return verdict


def _date_key(
    key: VerificationKey, publication: Publication | None, stamp: Publication | None, verdict: Verdict
) -> None:
    if stamp is not None:
        verdict.stamped = stamp(key)
    if publication is not None:
        verdict.published = publication(key)


def check_claim(subject: Subject, claim: bytes, policy: Policy | None = None) -> Verdict:
    """Check the bytes of a claim about `subject`: see `check`.  Raises DecodingError or ParameterError."""
    return check(subject, lambda _: (claim, FiatShamir()), policy)


def check(
    subject: Subject,
    obtain: Obtain,
    policy: Policy | None = None,
    *,
    progress: Report | None = None,
) -> Verdict:
    """Check everything and return the verdict; `progress(phase, 0)` when what may take long begins.

    Statement: at least k_min hidden triggers of the key are classified as their labels by the network derived from the
    model.  `obtain` returns the bytes of the claim, from a file or from a prover, and the channel in which it was made;
    it is called when all else is in order, and its VerificationError (a prover who refuses) is a verdict, too.

    Checks: those of `protocol.keygen.check_key`, `protocol.argument.verify`, `protocol.claim.compare`, and `policy.*`.
    Soundness error: `false_claim_bits` and `argument_bits` of the verdict.
    Left to the caller: the provenance of the model, of the key, and the nonce (fresh, drawn after the model was fixed).
    Raises DecodingError or ParameterError for malformed input, and what `obtain` raises besides.
    """
    policy = policy or Policy()
    verdict = Verdict(model_digest=hashlib.sha256(subject.model).hexdigest())
    if subject.model_date is not None:
        verdict.times["model"] = time_text(subject.model_date)
    context = subject.context
    verdict.context = {
        "purpose": context.purpose, "claimant": context.claimant, "verifier": context.verifier,
        "nonce": context.nonce.hex(),
    }  # fmt: skip
    verdict.caveats = (
        *CAVEATS,
        *((CALIBRATED,) if subject.calibration is not None else ()),
        *((UNFAITHFUL,) if subject.images is None else ()),
        *((UNNAMED,) if not context.claimant else ()),
        *((REVIEWED,) if subject.review is not None and policy.reviewer is None else ()),
        *((UNREVIEWED,) if subject.review is None and subject.reference is None else ()),
    )
    try:
        _check(subject, obtain, policy, verdict, progress)
        verdict.outcome = "accepted"
    except VerificationError as error:
        verdict.failed_check, verdict.message = error.check, str(error)
        verdict.outcome = "undecided" if error.check == "policy.fidelity" else "rejected"
    verdict.times["checked"] = time_text(datetime.now(UTC))
    return verdict


def _check(subject: Subject, obtain: Obtain, policy: Policy, verdict: Verdict, progress: Report | None) -> None:
    key = subject.key
    check_owner(key, subject.reference, policy, verdict, subject.review)
    _date_key(key, subject.publication, subject.stamp, verdict)
    with _timed(verdict, "derive", progress):
        derived = derive_once(subject.model, subject.derivation, subject.calibration)
        verdict.network_digest = derived.network.digest.hex()
    verdict.derivation_digest, verdict.freedom_bits = subject.derivation.digest.hex(), derived.freedom_bits
    if derived.network.shape != key.parameters.shape or derived.network.classes != key.parameters.classes:
        raise ParameterError(
            f"the model classifies {derived.network.shape} into {derived.network.classes} classes, "
            f"the key is for {key.parameters.shape} and {key.parameters.classes}"
        )
    _check_fidelity(subject, derived, policy, verdict, progress)
    data, channel = obtain(key)
    verdict.times["claim"] = time_text(subject.claim_date or datetime.now(UTC))
    claim, verdict.interactive = Claim.from_bytes(data), channel.interactive
    verdict.k_min, verdict.proof_bytes = claim.k_min, len(claim.proof)
    verdict.false_claim_bits = policy.check_k_min(key, claim.k_min, derived.freedom_bits)
    if verdict.no_bound is not None:
        verdict.null_probability = str(policy.null)
        verdict.p_value_bits = bits(p_value(key.h, claim.k_min, policy.null))
    model_digest = hashlib.sha256(subject.model).digest()
    statement = Statement(key, derived.network, claim.k_min, subject.context, model_digest, subject.derivation.digest)
    compare(claim, statement)
    with _timed(verdict, "verify", progress):
        ledger = verify(statement, claim.proof, channel)
    verdict.argument_bits, verdict.assumptions = ledger.bits, ledger.assumptions
    verdict.ledger = [(term.name, bits(term.error)) for term in ledger.terms if term.error]


def _check_fidelity(
    subject: Subject, derived: Derived, policy: Policy, verdict: Verdict, progress: Report | None
) -> None:
    if subject.images is None:
        return
    with _timed(verdict, "fidelity", progress):
        try:
            verdict.fidelity = fidelity(subject.model, derived.network, subject.images, subject.derivation)
        except ImportError:
            raise ParameterError("the float model needs onnxruntime: install zkmark[fidelity]") from None
    policy.check_fidelity(verdict.fidelity)


def unix_time_text(seconds: int) -> str:
    """A log's time as verdicts show it."""
    return time_text(datetime.fromtimestamp(min(seconds, MAX_UNIX_TIME), UTC))


def time_text(when: datetime) -> str:
    """A time as verdicts show it; as text in the order of time."""
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


@contextmanager
def _timed(verdict: Verdict, phase: str, progress: Report | None = None) -> Iterator[None]:
    if progress is not None:
        progress(phase, 0.0)
    start = time.perf_counter()
    try:
        yield
    finally:
        verdict.seconds[phase] = round(time.perf_counter() - start, 4)

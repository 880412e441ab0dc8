"""One verdict for every scheme and every attacked model: what the owner can see, may claim, and can prove.

Seen: private counts.  Claimed: an exact p-value under the scheme's null model, where a coin made the labels a bound on
false claims, and a certificate where the scheme has one.  Proven: whether the integer network keeps k_min matches, and
with `with_proof` whether a proof of it was made and verifies.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from hashlib import sha256
from typing import Any

from torch import nn

from ml.export import export_onnx
from ml.fit import Oracle, answers
from ml.quantise import DEFAULT, derive_once, float_classes
from ml.schemes.certified import Certificate
from ml.schemes.frontier import LEVEL
from ml.schemes.scheme import Scheme, TriggerKey, enough
from protocol import argument
from protocol.errors import ParameterError, VerificationError
from protocol.keygen import LabelRule, MarkingKey, check_key
from protocol.network import Network
from protocol.soundness import FALSE_CLAIM_TARGET, bits, false_claim_bits, smallest_k_min


@dataclass(frozen=True)
class Verdict:
    """count: triggers; matches, integer_matches: of the float model and of the integer network (None: no weights).

    found: the scheme's private decision by the float model's p_value.  false_claim_bits: of a claim of all the
    integer matches, None with the reason `no_bound`.  k_min: the fewest matches with 128 bits, None if no number has
    them.  provable: whether the integer matches reach k_min.  proven: whether a proof was made and verified, None if
    none was tried.  no_network: why there is nothing that a proof could be about, before a colon in a word or two.
    certificate: of the model that the certified scheme marked, if it covers this one.
    """

    scheme: str
    count: int
    matches: int
    integer_matches: int | None
    p_value: Fraction
    found: bool
    false_claim_bits: float | None
    no_bound: str
    k_min: int | None
    provable: bool
    no_network: str = ""
    proven: bool | None = None
    certificate: Certificate | None = None

    @property
    def trigger_accuracy(self) -> float:
        return self.matches / self.count

    def to_json(self) -> dict[str, Any]:
        """Plain values; p_value as bits, -log2."""
        fields = {**asdict(self), "p_value": None, "p_value_bits": bits(self.p_value)}
        if self.certificate is not None:
            fields["certificate"]["confidence"] = float(self.certificate.confidence)
        del fields["p_value"]
        return fields


def sentences(verdict: Verdict, key: TriggerKey) -> list[str]:
    """What the verdict says to the owner."""
    count, fact = verdict.count, "a fact" if not key.chosen else "a belief"
    integer = "" if verdict.integer_matches is None else f"{verdict.integer_matches} of {count} "
    lines = [
        f"hidden triggers: {integer}(float {verdict.matches} of {count})",
        f"the {verdict.scheme} mark is {'' if verdict.found else 'not '}found: p-value 2^-{bits(verdict.p_value):.1f}, "
        f"if strangers match each with 1/{key.sides}, which is {fact}",
    ]
    if verdict.no_bound:
        lines.append(f"no bound on false claims: {verdict.no_bound}")
        needed = enough(key, LEVEL)
        fewest = f"; from {needed} on the p-value is below {LEVEL}" if needed else ""
        lines.append(f"a proof needs an explicit --k-min{fewest}")
    elif verdict.k_min is None:
        lines.append("no number of matches has a bound of 128 bits on false claims: a proof needs an explicit --k-min")
    else:
        proof = "can be made" if verdict.provable else "cannot be made"
        lines.append(f"false claims: {verdict.false_claim_bits or 0.0:.1f} bits, of a claim of all that match")
        lines.append(f"a proof {proof}: it needs {verdict.k_min} of the hidden triggers")
    if verdict.certificate is not None:
        found = verdict.certificate
        lines.append(
            f"certificate: every model whose parameters are within {found.radius:.4g} (L2) keeps {found.accuracy:.0%} "
            f"of the triggers, as the median under noise of deviation {found.sigma:g}; confidence "
            f"{float(found.confidence):.1%}, {found.samples} samples"
        )
    return lines


COMPOSED = "not the suspect's: the last layer is the owner's, and whoever may choose a layer can fit any labels"
SERVICE = "no network: a service without weights"
RECURRENT = "no integer form: the argument has no recurrent layers"


def judge(scheme: Scheme, key: TriggerKey, model: nn.Module, no_network: str = "") -> Verdict:
    """The verdict on a model whose weights are at hand.

    no_network: why it is not what a public claim could be about, as COMPOSED for what `with_last_layer` returns.
    Raises as `derive`, and ParameterError for other classes or images.
    """
    network = derive_once(export_onnx(model, key.shape)).network
    return _verdict(scheme, key, lambda images: answers(model, images), _matches(network, key), no_network)


def judge_file(scheme: Scheme, key: TriggerKey, model_bytes: bytes) -> Verdict:
    """The verdict on a model as an ONNX file, whose float answers are onnxruntime's.  Raises as `judge`."""
    integer = _matches(derive_once(model_bytes).network, key)
    return _verdict(scheme, key, lambda images: float_classes(model_bytes, images), integer, "")


def _matches(network: Network, key: TriggerKey) -> int:
    """Of the integer network.  Raises ParameterError for other classes or images."""
    key.check_model(network.classes, network.shape)
    return int((network.classify(key.images) == key.labels).sum())


def judge_answers(scheme: Scheme, key: TriggerKey, oracle: Oracle, no_network: str = SERVICE) -> Verdict:
    """The verdict on what only answers, a service or a model without an integer form: there is nothing to prove."""
    return _verdict(scheme, key, oracle, None, no_network)


def _verdict(scheme: Scheme, key: TriggerKey, oracle: Oracle, integer: int | None, no_network: str) -> Verdict:
    decision = scheme.check(oracle, key)
    no_bound = key.chosen or no_network
    k_min = None if no_bound else smallest_k_min(len(key), key.sides)
    claimed = None
    if not no_bound and integer is not None:
        claimed = max(false_claim_bits(len(key), key.sides, integer), 0.0) if integer else 0.0
    return Verdict(
        scheme.name, len(key), decision.matches, integer, decision.p_value, decision.found, claimed, no_bound, k_min,
        integer is not None and k_min is not None and integer >= k_min, no_network,
    )  # fmt: skip


def prove(model: nn.Module, key: MarkingKey, k_min: int | None = None) -> bool:
    """Make a proof that the model's integer network keeps k_min of the hidden triggers; verify it and the key.

    k_min: by default the fewest with 128 false-claim bits.  For experiments with keys of a reduced number of triggers:
    the owner's real path is `zkmark-prover prove`.  False when too few match; ParameterError as `Statement`, and for
    a key without a default k_min.
    """
    parameters = key.vk.parameters
    if k_min is None and parameters.label_rule is LabelRule.JOINT_COIN:
        k_min = smallest_k_min(key.vk.h, parameters.classes, FALSE_CLAIM_TARGET)
    if k_min is None:
        raise ParameterError("this key gives no k_min: name one")
    model_bytes = export_onnx(model, parameters.shape)
    context = argument.Context("experiment", "owner", "experimenter", bytes(32))
    statement = argument.Statement(
        key.vk, derive_once(model_bytes).network, k_min, context, sha256(model_bytes).digest(), DEFAULT.digest
    )
    try:
        proof = argument.prove(statement, key)
    except VerificationError:
        return False
    check_key(key.vk)
    argument.verify(statement, proof)
    return True


def with_proof(verdict: Verdict, model: nn.Module, key: MarkingKey, k_min: int | None = None) -> Verdict:
    """The verdict with `proven` filled in by a real run of the argument."""
    return replace(verdict, proven=prove(model, key, k_min))

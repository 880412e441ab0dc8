"""What this verifier accepts, apart from what is true: a valid proof can still fall short of her policy."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from ml.quantise import DEFAULT_MIN_AGREEMENT, Fidelity
from protocol.errors import ParameterError, VerificationError
from protocol.keygen import LabelRule, VerificationKey
from protocol.log import LogKey
from protocol.soundness import p_value
from verifier.review import Review

MIN_BITS = 128.0
NULL = Fraction(1, 2)  # of frontier stitching (Le Merrer et al.): a stranger's frontier passes on either side
LEVEL = Fraction(1, 20)  # theirs, too


@dataclass(frozen=True)
class Policy:
    """min_bits: of the false-claim bound.  min_agreement: share of images on which integer and float model agree.

    chosen_labels: accept a key whose owner chose the labels, for which no bound on false claims exists.  null: the
    probability with which a stranger is then believed to match each trigger; a claim needs a p-value below LEVEL.
    reviewer: the Ed25519 key of the person whose review counts; None to take a review from anybody.
    owner: the Ed25519 key of the only owner whose keys count; None to take a key from anybody.
    anchor_logs: logs that are trusted to have shown no coin twice; a key must be anchored in one, if there are any.
    """

    min_bits: float = MIN_BITS
    min_agreement: float = DEFAULT_MIN_AGREEMENT
    chosen_labels: bool = False
    reviewer: bytes | None = None
    owner: bytes | None = None
    null: Fraction = NULL
    anchor_logs: tuple[LogKey, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.null < 1 or self.null.denominator > 10**6:
            raise ParameterError("the null probability is a fraction between 0 and 1, as 1/2")
        if not self.min_bits >= 0 or not 0 <= self.min_agreement <= 1:  # nor nan, which nothing falls short of
            raise ParameterError("bits are not negative, and an agreement is between 0 and 1")

    def check_owner(self, key: VerificationKey) -> None:
        """Raises VerificationError `policy.owner`.  That the owner signed the key is left to `check_key`."""
        if self.owner is not None and key.owner_public_key != self.owner:
            raise VerificationError("policy.owner", f"the key is signed by {key.owner_public_key.hex()}")

    def check_label_rule(self, key: VerificationKey) -> None:
        """Raises VerificationError `policy.chosen_labels`."""
        if key.parameters.label_rule is LabelRule.CHOSEN and not self.chosen_labels:
            raise VerificationError("policy.chosen_labels", "the owner chose the labels: false claims are not bounded")

    def check_anchor(self, key: VerificationKey) -> None:
        """Raises VerificationError `policy.anchor`.  That the anchor holds is left to `check_key`."""
        if self.anchor_logs and key.anchor is None:
            raise VerificationError("policy.anchor", "the key is not anchored in a log")
        if self.anchor_logs and not self.trusts_anchor(key):
            raise VerificationError("policy.anchor", "the key is anchored in another log")

    def trusts_anchor(self, key: VerificationKey) -> bool:
        """Whether the key is anchored in a trusted log."""
        return key.anchor is not None and key.anchor.log in self.anchor_logs

    def check_reviewer(self, review: Review) -> None:
        """Raises VerificationError `policy.review`."""
        if self.reviewer is not None and review.reviewer != self.reviewer:
            raise VerificationError("policy.review", f"the review is by {review.reviewer.hex()}")

    def check_k_min(self, key: VerificationKey, k_min: int, freedom_bits: float) -> float | None:
        """The bits of the false-claim bound, None for chosen labels.  Raises VerificationError `policy.k_min`."""
        if not 1 <= k_min <= key.h:
            raise VerificationError("policy.k_min", f"k_min is {k_min}, the key has {key.h} hidden triggers")
        bits = key.false_claim_bits(k_min, freedom_bits)
        if bits is None and p_value(key.h, k_min, self.null) >= LEVEL:
            raise VerificationError(
                "policy.k_min", f"{k_min} of {key.h} triggers have no p-value below {LEVEL}, at {self.null} for each"
            )
        if bits is not None and bits < self.min_bits:
            raise VerificationError(
                "policy.k_min",
                f"{k_min} of {key.h} triggers bound false claims by {bits:.1f} bits, not {self.min_bits:g}",
            )
        return bits

    def check_fidelity(self, fidelity: Fidelity) -> None:
        """Raises VerificationError `policy.fidelity`: then nothing is decided about the model."""
        if fidelity.constant:
            raise VerificationError("policy.fidelity", "the integer network gives every image the same class")
        if fidelity.agreement < self.min_agreement:
            raise VerificationError(
                "policy.fidelity",
                f"integer and float model agree on {fidelity.agreement:.2%} of {fidelity.count} images, "
                f"not {self.min_agreement:.0%}",
            )

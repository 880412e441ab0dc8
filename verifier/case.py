"""A case: the files and words from which one claim is judged, as the options of a command or a batch name them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ml.inputs import image_folder, read_derivation
from protocol.argument import Context
from protocol.claim import MAX_CLAIM_BYTES
from protocol.errors import ParameterError
from protocol.keygen import MAX_KEY_BYTES, VerificationKey
from verifier.check import Publication, Subject
from verifier.options import read
from verifier.review import MAX_REVIEW_BYTES, Review

MAX_MODEL_BYTES = 256 << 20


@dataclass(frozen=True)
class Case:
    """One claim to be judged: from the file `proof`, which needs the `nonce` given to the owner, or from a `prover`.

    images or without_fidelity: whether the integer network is compared with the model is said, not forgotten.
    Raises ParameterError.
    """

    vk: Path
    model: Path
    proof: Path | None = None
    prover: str | None = None
    nonce: bytes | None = None
    purpose: str = ""
    claimant: str = ""
    verifier: str = ""
    calibration: Path | None = None
    preprocess: Path | None = None
    images: Path | None = None
    without_fidelity: bool = False
    reference: Path | None = None
    review: Path | None = None

    def __post_init__(self) -> None:
        if (self.proof is None) == (self.prover is None):
            raise ParameterError("give one of --proof and --prover")
        if (self.images is None) != self.without_fidelity:
            raise ParameterError("give one of --images and --without-fidelity")
        if self.proof is not None and self.nonce is None:
            raise ParameterError("--proof needs the --nonce that you gave the owner")
        if self.review is not None and self.reference is not None:
            raise ParameterError("a --reference judges the opened triggers without a --review")

    @property
    def files(self) -> tuple[Path, ...]:
        """All files and folders that the case names."""
        named = (
            self.vk, self.model, self.proof, self.calibration, self.preprocess, self.images, self.reference,
            self.review,
        )  # fmt: skip
        return tuple(path for path in named if path is not None)

    def subject(
        self, nonce: bytes, publication: Publication | None = None, stamp: Publication | None = None
    ) -> Subject:
        """What the files hold.  Raises DecodingError, ParameterError or OSError."""
        key = VerificationKey.from_bytes(read(self.vk, MAX_KEY_BYTES, "verification key"))
        shape = key.parameters.shape
        derivation, calibration = read_derivation(self.calibration, self.preprocess, shape)
        return Subject(
            key=key,
            model=read(self.model, MAX_MODEL_BYTES, "model"),
            context=Context(self.purpose, self.claimant, self.verifier, nonce),
            derivation=derivation,
            calibration=calibration,
            images=image_folder(self.images, shape) if self.images else None,
            reference=read(self.reference, MAX_MODEL_BYTES, "model") if self.reference else None,
            review=Review.from_bytes(read(self.review, MAX_REVIEW_BYTES, "review")) if self.review else None,
            publication=publication,
            stamp=stamp,
            model_date=_date(self.model),
            claim_date=None if self.proof is None else _date(self.proof),
        )

    def claim(self) -> bytes | None:
        """The bytes of the claim, if it is a file.  Raises DecodingError or OSError."""
        return None if self.proof is None else read(self.proof, MAX_CLAIM_BYTES, "claim")


def _date(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)

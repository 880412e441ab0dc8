"""A person's judgment of the opened triggers as a file that she signs: the oracle f of the paper, by eye.

    file = magic | digest of vk[32] | reviewer's public key[32] | count | a byte per opened trigger | signature[64]

The Ed25519 signature is on the SHA-256 of everything before it.  A reviewer's secret is a text file: magic, then 64
hexadecimal digits; it says who judged, and opens nothing.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

from protocol import identity
from protocol.encoding import Reader, Writer
from protocol.errors import DecodingError, ParameterError
from protocol.keygen import MAX_ELL, VerificationKey

MAGIC = b"zkmark review 1\n"
SECRET_MAGIC = b"zkmark reviewer 1\n"
SIGNATURE_LABEL = "review"
MAX_REVIEW_BYTES = len(MAGIC) + 2 * 32 + 4 + MAX_ELL + identity.SIGNATURE_BYTES
SECRET_BYTES = len(SECRET_MAGIC) + 2 * identity.SECRET_SEED_BYTES + 1


class Judgment(IntEnum):
    """Does the image show the class of its label?  RIGHT makes the trigger void: it says nothing about a mark."""

    WRONG = 0  # it shows something else
    RIGHT = 1
    NO_OBJECT = 2  # it shows nothing, as abstract images do


@dataclass(frozen=True)
class Review:
    """One judgment per opened trigger of the key with digest `vk_digest`, in the order of the key."""

    vk_digest: bytes
    reviewer: bytes
    judgments: tuple[Judgment, ...]
    signature: bytes

    @property
    def void_items(self) -> int:
        """Triggers whose label says what they show anyway."""
        return self.judgments.count(Judgment.RIGHT)

    def to_bytes(self) -> bytes:
        return self._signed_bytes() + self.signature

    def _signed_bytes(self) -> bytes:
        out = Writer().raw(MAGIC).raw(self.vk_digest).raw(self.reviewer)
        return out.blob(bytes(self.judgments)).to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> Review:
        """The review encoded by `to_bytes`; its signature is not checked here.  Raises DecodingError."""
        r = Reader(data, "review")
        r.magic(MAGIC)
        vk_digest, reviewer, codes = r.raw(32), r.raw(identity.PUBLIC_KEY_BYTES), r.blob(MAX_ELL)
        if any(code not in list(Judgment) for code in codes):
            raise r.fail("an unknown judgment")
        identity.check_public_key(reviewer)
        review = Review(vk_digest, reviewer, tuple(map(Judgment, codes)), r.raw(identity.SIGNATURE_BYTES))
        r.done()
        return review

    def check(self, key: VerificationKey) -> None:
        """Statement: the holder of the key `reviewer` judged each opened trigger of `key`.

        Raises VerificationError `policy.review` for a false signature, ParameterError for a review of another key.
        Left to the caller: who the reviewer is.
        """
        if self.vk_digest != key.digest or len(self.judgments) != len(key.opened):
            raise ParameterError("the review is about another key")
        digest = hashlib.sha256(self._signed_bytes()).digest()
        identity.check_signature(self.reviewer, SIGNATURE_LABEL, digest, self.signature, "policy.review")


def sign_review(secret_seed: bytes, key: VerificationKey, judgments: tuple[Judgment, ...]) -> Review:
    """The review of `key` with one judgment per opened trigger, signed.  Raises ParameterError for another number."""
    if len(judgments) != len(key.opened):
        raise ParameterError(f"{len(judgments)} judgments, the key has {len(key.opened)} opened triggers")
    review = Review(key.digest, identity.public_key(secret_seed), judgments, bytes(identity.SIGNATURE_BYTES))
    digest = hashlib.sha256(review._signed_bytes()).digest()
    return replace(review, signature=identity.sign(secret_seed, SIGNATURE_LABEL, digest))


def reviewer_secret(path: Path) -> bytes:
    """The secret seed in the file at `path`, which is made if it does not exist (mode 0600).

    Raises DecodingError for another file, ParameterError for one that others may read.
    """
    try:
        return _read_secret(path)
    except FileNotFoundError:
        pass
    seed = os.urandom(identity.SECRET_SEED_BYTES)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(SECRET_MAGIC + seed.hex().encode() + b"\n")
    return seed


def _read_secret(path: Path) -> bytes:
    with open(path, "rb") as file:
        if os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077:
            raise ParameterError(f"{path}: others may read this secret; chmod 600 it, or make another")
        data = file.read(SECRET_BYTES + 1)
    if len(data) != SECRET_BYTES or not data.startswith(SECRET_MAGIC):
        raise DecodingError(f"{path}: not a reviewer's secret")
    try:
        return bytes.fromhex(data.removeprefix(SECRET_MAGIC).decode("ascii"))
    except ValueError:
        raise DecodingError(f"{path}: not a reviewer's secret") from None

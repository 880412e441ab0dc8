"""Witnesses of a log: they follow it, sign only checkpoints that continue the last one, and their signatures add up.

A log that shows two histories has to find the signatures for both; a client who asks for those of N witnesses whom she
chose knows that N of them saw the history that she sees.  What a witness signs:

    "zkmark witness 1\\n" | key of the log as text | "\\n" | text of the checkpoint

A checkpoint that several witnesses signed carries one BLS signature, for a sorted list of keys.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256

from protocol import bls
from protocol.errors import DecodingError, VerificationError
from protocol.log import Checkpoint, LogKey, check_name, is_name, unbase64

MAX_WITNESSES = 64
ALGORITHM = b"\xffzkmark BLS12-381 witness 1\n"  # 0xff: a C2SP key type with a name of its own
SIGNED = b"zkmark witness 1\n"


@dataclass(frozen=True)
class WitnessKey:
    """A witness as text: name+hash+base64 (C2SP signed-note), of the public key and the proof of its possession."""

    name: str
    public: bytes
    possession: bytes

    @staticmethod
    def of(name: str, seed: bytes) -> WitnessKey:
        """The key of the witness with this secret.  Raises ParameterError for a name that is none."""
        check_name(name)
        return WitnessKey(name, bls.public_key(seed), bls.prove_possession(seed))

    def to_text(self) -> str:
        value = ALGORITHM + self.public + self.possession
        number = sha256(self.name.encode() + b"\n" + value).digest()[:4]
        return f"{self.name}+{number.hex()}+{base64.b64encode(value).decode()}"

    @staticmethod
    def from_text(text: str) -> WitnessKey:
        """The key that `to_text` wrote, whose secret somebody knows.  Raises DecodingError."""
        name, _, rest = text.partition("+")
        value = unbase64(rest.partition("+")[2]) or b""
        at = len(ALGORITHM)
        public, possession = value[at : at + bls.PUBLIC_BYTES], value[at + bls.PUBLIC_BYTES :]
        key = WitnessKey(name, public, possession)
        if not is_name(name) or not value.startswith(ALGORITHM) or key.to_text() != text:
            raise DecodingError("witness key: not name+hash+base64 of a BLS key")
        if not bls.is_possessed(public, possession):
            raise DecodingError("witness key: nobody has shown to possess it")
        return key


def cosign(seed: bytes, log: LogKey, checkpoint: Checkpoint) -> bytes:
    """The signature of a witness.  Left to the caller: that it signed nothing that the checkpoint does not continue."""
    return bls.sign(seed, signed_bytes(log, checkpoint))


def signed_bytes(log: LogKey, checkpoint: Checkpoint) -> bytes:
    return SIGNED + f"{log.to_text()}\n{checkpoint.text()}".encode()


@dataclass(frozen=True)
class Cosignature:
    """The witnesses (public keys, ascending) that signed a checkpoint, and the sum of their signatures."""

    witnesses: tuple[bytes, ...]
    signature: bytes

    @staticmethod
    def join(signatures: Mapping[bytes, bytes]) -> Cosignature:
        """Of the signatures by public key.  Raises DecodingError for one that is none."""
        witnesses = tuple(sorted(signatures))
        return Cosignature(witnesses, bls.aggregate([signatures[public] for public in witnesses]))

    def check(self, log: LogKey, checkpoint: Checkpoint, known: Collection[WitnessKey]) -> None:
        """Statement: all of `witnesses` are `known` ones, and signed the checkpoint of the log with this key.

        Raises VerificationError `log.cosignature`, or DecodingError for what is no list of keys and a signature.
        """
        ordered = all(a < b for a, b in zip(self.witnesses, self.witnesses[1:], strict=False))
        if not 0 < len(self.witnesses) <= MAX_WITNESSES or not ordered:
            raise DecodingError("cosignature: not a sorted list of witnesses")
        if not {key.public for key in known}.issuperset(self.witnesses):  # possession of others is not shown
            raise VerificationError("log.cosignature", "signed by a witness who is not known here, too")
        if not bls.is_signed(self.witnesses, signed_bytes(log, checkpoint), self.signature):
            raise VerificationError("log.cosignature", "the witnesses did not sign this checkpoint")

"""A claim: the proof with what its reader has to compare before she checks it (SPEC section 11).

Only `k_min` is information.  The digests and the context restate what the verifier computes or chose herself; they let
her name the difference instead of seeing a failed equation, and nothing else may be taken from them.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.argument import Context, Statement
from protocol.encoding import Reader, Writer
from protocol.errors import VerificationError

MAGIC = b"zkmark claim 1\n"
MAX_CONTEXT_BYTES = 2048
MAX_CLAIM_BYTES = 128 << 20  # some sixteen times the proof of a ResNet-18


@dataclass(frozen=True)
class Claim:
    """A claim file; digests are 32 bytes each, in the order vk, model file, network, derivation."""

    k_min: int
    context: Context
    digests: tuple[bytes, bytes, bytes, bytes]
    proof: bytes

    def to_bytes(self) -> bytes:
        out = Writer().raw(MAGIC).u32(self.k_min).blob(self.context.to_bytes())
        for digest in self.digests:
            out.raw(digest)
        return out.blob(self.proof).to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> Claim:
        """The claim encoded by `to_bytes`.  Raises DecodingError."""
        r = Reader(data, "claim")
        r.magic(MAGIC)
        k_min = r.u32()
        context = Context.from_bytes(r.blob(MAX_CONTEXT_BYTES))
        claim = Claim(k_min, context, (r.raw(32), r.raw(32), r.raw(32), r.raw(32)), r.blob(MAX_CLAIM_BYTES))
        r.done()
        return claim


def statement_digests(statement: Statement) -> tuple[bytes, bytes, bytes, bytes]:
    """The digests of a claim about `statement`."""
    return statement.key.digest, statement.model_digest, statement.network.digest, statement.derivation_digest


def compare(claim: Claim, statement: Statement) -> None:
    """Raise VerificationError `statement.NAME` if the claim says that it is about another NAME."""
    names = ("key", "model", "network", "derivation")
    for name, theirs, ours in zip(names, claim.digests, statement_digests(statement), strict=True):
        if theirs != ours:
            raise VerificationError(f"statement.{name}", f"the claim is about {theirs.hex()}, not {ours.hex()}")
    for name in ("nonce", "purpose", "claimant", "verifier"):
        if getattr(claim.context, name) != getattr(statement.context, name):
            raise VerificationError(f"statement.{name}", f"the claim was made for another {name}")
    if claim.k_min != statement.k_min:
        raise VerificationError("statement.k_min", f"the claim is about {claim.k_min}, not {statement.k_min}")

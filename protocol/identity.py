"""The owner's identity: Ed25519 (RFC 8032) signatures on labelled digests, never on bytes that somebody else chose."""

from __future__ import annotations

from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa

from protocol.errors import DecodingError, ParameterError, VerificationError

PUBLIC_KEY_BYTES = 32
SECRET_SEED_BYTES = 32
SIGNATURE_BYTES = 64
DIGEST_BYTES = 32


def public_key(secret_seed: bytes) -> bytes:
    """The 32-byte public key of a 32-byte secret seed."""
    return bytes(_secret_key(secret_seed).public_key().export_key(format="raw"))


def sign(secret_seed: bytes, label: str, digest: bytes) -> bytes:
    """The 64-byte signature on a 32-byte digest, in the role that `label` names."""
    return eddsa.new(_secret_key(secret_seed), "rfc8032").sign(_message(label, digest))


def check_public_key(owner: bytes) -> None:
    """Raise DecodingError unless the 32 bytes encode a point of the curve whose order is not small."""
    _public_key(owner)


def check_signature(owner: bytes, label: str, digest: bytes, signature: bytes, check: str = "signature") -> None:
    """Raise VerificationError `check` unless `owner` (a public key) signed the digest under this label."""
    key = _public_key(owner)
    try:
        eddsa.new(key, "rfc8032").verify(_message(label, digest), signature)
    except ValueError:
        raise VerificationError(check, f"not the owner's signature on this {label}") from None


def sign_text(secret_seed: bytes, text: str) -> bytes:
    """The signature on a note (C2SP signed-note), whose format has no label.

    Only for a key that signs nothing else.
    """
    return eddsa.new(_secret_key(secret_seed), "rfc8032").sign(text.encode())


def check_text(public: bytes, text: str, signature: bytes, check: str = "signature") -> None:
    """Raise VerificationError `check` unless `public` signed the text of a note."""
    key = _public_key(public)
    try:
        eddsa.new(key, "rfc8032").verify(text.encode(), signature)
    except ValueError:
        raise VerificationError(check, "not a signature on this note") from None


def _public_key(owner: bytes) -> ECC.EccKey:
    try:
        key = eddsa.import_public_key(owner)
        if not (key.pointQ * 8).is_point_at_infinity():  # under a key of small order everybody can sign
            return key
    except ValueError:
        pass
    raise DecodingError("not an Ed25519 public key")


def _secret_key(seed: bytes) -> ECC.EccKey:
    if len(seed) != SECRET_SEED_BYTES:
        raise ParameterError("an Ed25519 secret seed has 32 bytes")
    return ECC.construct(curve="Ed25519", seed=seed)


def _message(label: str, digest: bytes) -> bytes:
    if len(digest) != DIGEST_BYTES:
        raise ParameterError("only digests of 32 bytes are signed")
    return b"zkmark signature 1\0" + label.encode() + b"\0" + digest

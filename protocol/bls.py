"""BLS signatures over BLS12-381: many signatures on one text become one (draft-irtf-cfrg-bls-signature-05).

Ciphersuite BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_: public keys are 48 bytes in G1, signatures 96 bytes in G2.
Signatures on the same text are added up, and checked against the sum of the keys.  That is only sound for keys whose
owners have proven to possess the secret: else a key that is made up from those of others cancels them.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from py_arkworks_bls12381 import GT, G1Point, G2Point, Scalar

from protocol import group
from protocol.errors import DecodingError

PUBLIC_BYTES = 48
SECRET_SEED_BYTES = 32
SIGN = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"
POSSESSION = b"BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"


def secret_key(seed: bytes) -> int:
    """KeyGen (section 2.3) with 32 random bytes as key material."""
    salt, secret = b"BLS-SIG-KEYGEN-SALT-", 0
    while secret == 0:
        salt = hashlib.sha256(salt).digest()
        extracted = hmac.digest(salt, seed + b"\0", "sha256")
        first = hmac.digest(extracted, b"\0\x30\x01", "sha256")
        second = hmac.digest(extracted, first + b"\0\x30\x02", "sha256")
        secret = int.from_bytes((first + second)[:48], "big") % group.ORDER
    return secret


def public_key(seed: bytes) -> bytes:
    """The 48 bytes of the key whose secret comes from this seed."""
    return group.encode(group.multiply(G1Point(), secret_key(seed)))


def sign(seed: bytes, message: bytes) -> bytes:
    """The 96 bytes of the signature on a message; there is no other one."""
    return _sign(seed, message, SIGN)


def prove_possession(seed: bytes) -> bytes:
    """96 bytes that show that somebody knows the secret of `public_key(seed)` (section 3.3.2)."""
    return _sign(seed, public_key(seed), POSSESSION)


def is_possessed(public: bytes, proof: bytes) -> bool:
    """Whether the proof shows that somebody knows the secret.  Raises DecodingError for what encodes no key."""
    return _holds(group.decode(public), public, proof, POSSESSION)


def aggregate(signatures: Sequence[bytes]) -> bytes:
    """The signature of all who made these signatures on one message.  Raises DecodingError."""
    total = G2Point.identity()
    for signature in signatures:
        total = total + _signature(signature)
    return bytes(total.to_compressed_bytes())


def is_signed(publics: Sequence[bytes], message: bytes, signature: bytes) -> bool:
    """Whether everybody of `publics` signed the message (FastAggregateVerify, section 3.3.4).

    Raises DecodingError for what encodes no keys or no signature.
    Left to the caller: that all keys are possessed, that they are different.
    """
    keys = [group.decode(public) for public in publics]
    return _holds(group.sum_points(keys), message, signature, SIGN)


def _sign(seed: bytes, message: bytes, domain: bytes) -> bytes:
    secret = Scalar.from_le_bytes(secret_key(seed).to_bytes(32, "little"))
    point = G2Point.hash_to_curve(message, domain) * secret
    return bytes(point.to_compressed_bytes())


def _signature(data: bytes) -> G2Point:
    """Raises DecodingError unless it is the one encoding of a point of the prime-order subgroup, not of infinity."""
    try:
        point = G2Point.from_compressed_bytes(data)
    except (ValueError, TypeError):
        raise DecodingError("not a BLS signature") from None
    if bytes(point.to_compressed_bytes()) != data or point == G2Point.identity():
        raise DecodingError("not the canonical encoding of a BLS signature")
    return point


def _holds(key: G1Point, message: bytes, signature: bytes, domain: bytes) -> bool:
    points = [G2Point.hash_to_curve(message, domain), _signature(signature)]
    return key != group.identity() and bool(GT.pairing_check([key, -G1Point()], points))

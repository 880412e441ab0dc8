"""Time-stamps (RFC 3161): an authority says that it has seen the digest of a key, and when.

The message imprint of a token is the vk digest, so that other programs can check it, too:

    openssl ts -verify -digest HEX -in owner.vk.tsr -CAfile roots.pem
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from rfc3161_client import (
    HashAlgorithm,
    TimestampRequestBuilder,
    TimeStampResponse,
    VerifierBuilder,
    decode_timestamp_response,
)
from rfc3161_client import VerificationError as Unverified

from protocol.errors import DecodingError, VerificationError

MAX_RESPONSE_BYTES = 1 << 16
MAX_ROOTS_BYTES = 1 << 20
STRANGE = (  # what a certificate raises that is none, or unlike all others; anybody can add one to a token
    x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, UnsupportedAlgorithm,
)
SHA256 = x509.ObjectIdentifier("2.16.840.1.101.3.4.2.1")


@dataclass(frozen=True)
class Timestamp:
    """time: in UTC, by the clock of the authority.  authority: the subject of its certificate (RFC 4514)."""

    time: datetime
    authority: str


@dataclass(frozen=True)
class Query:
    """What an authority is asked.  nonce: it has to come back."""

    request: bytes
    nonce: int


def query(data: bytes) -> Query:
    """The question for a token over the SHA-256 digest of `data`, with a fresh nonce."""
    request = TimestampRequestBuilder().data(data).hash_algorithm(HashAlgorithm.SHA256).build()
    return Query(request.as_bytes(), int(request.nonce or 0))


def check_timestamp(response: bytes, roots: bytes, digest: bytes, nonce: int | None = None) -> Timestamp:
    """Statement: an authority below one of the `roots` (PEM) has seen this SHA-256 digest at the time that is returned.

    Raises VerificationError `timestamp.digest` if it has seen something else, `timestamp.signature` if it is not an
    authority below these roots, or not its word, or not the answer to the question with this nonce; DecodingError.
    Left to the caller: whether the roots are trusted, and that no certificate was revoked.
    """
    if len(response) > MAX_RESPONSE_BYTES or len(roots) > MAX_ROOTS_BYTES:
        raise DecodingError("time-stamp: too long")
    try:
        known = x509.load_pem_x509_certificates(roots)
    except ValueError:
        raise DecodingError("roots of time-stamps: not certificates in PEM") from None
    try:
        decoded = decode_timestamp_response(response)
        imprint, time = decoded.tst_info.message_imprint, decoded.tst_info.gen_time
    except ValueError:
        raise DecodingError("time-stamp: not a response with a token (RFC 3161)") from None
    if imprint.hash_algorithm != SHA256 or imprint.message != digest:
        raise VerificationError("timestamp.digest", "the time-stamp is of something else")
    builder = VerifierBuilder(roots=known, nonce=nonce)
    try:
        builder.build().verify(decoded, digest)
        return Timestamp(time.astimezone(UTC), _signer(decoded))
    except (Unverified, ValueError, *STRANGE) as error:
        reason = f"not the word of an authority below these roots: {error}"
        raise VerificationError("timestamp.signature", reason) from None


def _signer(response: TimeStampResponse) -> str:
    """The subject of the certificate that signed; one that only looks like it, by issuer and number, is not allowed."""
    (signer,) = response.signed_data.signer_infos
    given = [x509.load_der_x509_certificate(data) for data in response.signed_data.certificates]
    found = [one for one in given if (one.issuer, one.serial_number) == (signer.issuer, signer.serial_number)]
    if len(found) != 1:
        raise ValueError("not one certificate of the signer")
    return found[0].subject.rfc4514_string()

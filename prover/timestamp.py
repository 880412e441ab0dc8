"""Asking a time-stamp authority over HTTP (RFC 3161 section 3.4).  What it answers is kept only if it convinces."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

from protocol.errors import ParameterError
from protocol.identity import SIGNATURE_BYTES
from protocol.keygen import VerificationKey
from protocol.timestamp import MAX_RESPONSE_BYTES, Timestamp, check_timestamp, query

TIMEOUT_S = 30.0


def ask_authority(
    url: str, key: VerificationKey, roots: bytes, timeout_s: float = TIMEOUT_S
) -> tuple[bytes, Timestamp]:
    """The answer of the authority at `url` for the digest of a key, and what it says, checked against the roots (PEM).

    Raises ParameterError for a URL that is none, ConnectionError without an answer, and as `check_timestamp` does.
    """
    asked = query(key.to_bytes()[:-SIGNATURE_BYTES])  # its digest is that of the key
    response = _post(url, asked.request, timeout_s)
    return response, check_timestamp(response, roots, key.digest, asked.nonce)


def _post(url: str, body: bytes, timeout_s: float) -> bytes:
    """One request; redirections are not followed."""
    try:
        parts = urlsplit(url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        connection = kinds[parts.scheme](parts.hostname or "", parts.port, timeout=timeout_s)
    except (ValueError, KeyError, http.client.HTTPException):
        raise ParameterError("an authority has a URL such as https://HOST/PATH") from None
    headers = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        data: bytes = answer.read(MAX_RESPONSE_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConnectionError(f"no answer from {parts.hostname}: {type(error).__name__}") from None
    finally:
        connection.close()
    if answer.status != 200 or len(data) > MAX_RESPONSE_BYTES:
        raise ConnectionError(f"no time-stamp from {parts.hostname}: status {answer.status}")
    return data

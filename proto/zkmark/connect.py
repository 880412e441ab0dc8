"""How a client reaches a server of zkmark: plain or TLS, with or without a certificate and a token of its own.

Both parties use it, so that a token never travels in the clear: it is sent over TLS, or to this machine.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from zkmark.v1 import zkmark_pb2 as pb

MAX_FILE_BYTES = 1 << 20
OPTIONS = [  # a dead server is noticed, and one that is back, too
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_reconnect_backoff_ms", 15_000),
]


@dataclass(frozen=True)
class Tls:
    """roots: PEM of the authorities to believe, None for those of the system.  certificate, key: PEM of this client."""

    roots: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


def read_tls(roots: Path | None, certificate: Path | None = None, key: Path | None = None) -> Tls:
    """The PEM files that options name.  Raises OSError for one that cannot be read or used (ssl.SSLError is one)."""
    if (certificate is None) != (key is None):
        raise OSError("a certificate and its key go together")
    context = ssl.create_default_context()
    if roots is not None:
        context.load_verify_locations(roots)
    if certificate is not None and key is not None:
        context.load_cert_chain(certificate, key, password="")  # raises if the key is encrypted; never prompts
    return Tls(_read(roots), _read(certificate), _read(key))


def read_token(path: Path) -> str:
    """The first line of a token file.  Raises OSError if it is no token."""
    token = (_read(path) or b"").split(b"\n")[0].strip()
    if not token or not token.isascii() or any(c <= 32 for c in token):
        raise OSError(f"{path}: no token")
    return token.decode()


def connect(target: str, tls: Tls | None = None, token: str = "") -> grpc.Channel:
    """A channel to HOST:PORT; without `tls` it is plain.  Close it, or use it in a `with`.

    Raises ConnectionError for a token that would travel in the clear.
    """
    if token and tls is None and not is_loopback(target):
        raise ConnectionError(f"a token is not sent to {target} without TLS")
    if tls is None:
        channel = grpc.insecure_channel(target, OPTIONS)
    else:
        credentials = grpc.ssl_channel_credentials(tls.roots, tls.key, tls.certificate)
        channel = grpc.secure_channel(target, credentials, OPTIONS)
    return grpc.intercept_channel(channel, _Bearer(token)) if token else channel


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT (or unix:PATH) is on this machine for certain."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def job_id(header: pb.ProveHeader) -> bytes:
    """The 32 bytes that name a job on both sides: everything that it depends on."""
    parts = (hashlib.sha256(header.derivation).digest(), hashlib.sha256(header.context).digest())
    return hashlib.sha256(b"zkmark job 1\n" + header.vk_digest + header.model_sha256 + b"".join(parts)).digest()


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise OSError(f"{path}: too long")
    return data


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: list[tuple[str, str]]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the token to every call."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    def _call(self, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        metadata = [*(details.metadata or ()), self._entry]
        changed = _Details(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready, details.compression
        )
        return continuation(changed, request)

    intercept_unary_unary = _call  # type: ignore[assignment]
    intercept_unary_stream = _call  # type: ignore[assignment]
    intercept_stream_unary = _call  # type: ignore[assignment]
    intercept_stream_stream = _call  # type: ignore[assignment]

"""Who a client is, and how often it may ask.

A client is the subject of its TLS certificate under the key that signed it, else the name of its token, else the
address from which it calls (of IPv6 the first 64 bits, which is what one customer gets).  Nobody can borrow that key,
while two authorities may issue the same subject, and have the same name, too.  A certificate that an authority renews
stays the same client, whatever its own key; an authority that signs with another key has other clients.

A list of tokens holds their SHA-256 only, so that a copy of it opens nothing; it is read again when it changes, and a
list that cannot be read lets nobody in.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import re
import resource
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol.errors import DecodingError, ParameterError
from prover.keys import read_capped
from zkmark.connect import is_loopback

MAX_TOKENS_BYTES = 1 << 20
MAX_CLIENTS = 4096  # whose rate is remembered
MAX_CONNECTIONS = 4096
RESERVED_FILES = 512  # descriptors that are not for connections
MAX_FILES = 1 << 16
HANDSHAKE_S = 10.0  # for what comes before the first call
IDLE_S = 300.0  # after which a connection without a call is closed
MAX_SUBJECT = 200  # characters of the subject of a certificate that are shown
MAX_CHAIN = 8  # certificates between a client's and an authority
SIGNER_DIGITS = 32  # hexadecimal: 128 bits, and whoever wants to be another client has to meet them all
LINE = re.compile(r"([A-Za-z0-9._@-]{1,64}):([0-9a-f]{64})")
log = logging.getLogger("zkmark.prover")


class Unauthenticated(Exception):
    """No token, or none that is known."""


class TooOften(Exception):
    """The client asks more often than it may."""


class Tokens:
    """The list of tokens in a file of lines NAME:HEX, HEX the SHA-256 of the token; # begins a comment."""

    def __init__(self, path: Path) -> None:
        """Raises DecodingError or OSError."""
        self._path = path
        self._version, self._digests = self._stat(), self._load()

    def __len__(self) -> int:
        return len(self._digests)

    def name(self, token: str) -> str | None:
        """Whose token it is.  All are compared, each in constant time."""
        if self._stat() != self._version:
            self._version = self._stat()
            try:
                self._digests = self._load()
            except (DecodingError, OSError):
                log.error("the list of tokens cannot be read any more; nobody is let in")
                self._digests = {}
        given, found = hashlib.sha256(token.encode()).digest(), None
        for name, digest in self._digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found

    def _stat(self) -> tuple[int, int, int]:
        try:
            status = os.stat(self._path)
        except OSError:
            return 0, 0, 0
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _load(self) -> dict[str, bytes]:
        digests: dict[str, bytes] = {}
        for line in read_capped(self._path, MAX_TOKENS_BYTES, "list of tokens").decode("utf-8", "replace").splitlines():
            text = line.partition("#")[0].strip()
            match = LINE.fullmatch(text)
            if match:
                digests[match[1]] = bytes.fromhex(match[2])
            elif text:
                raise DecodingError(f"{self._path}: a line is not NAME:SHA-256")
        return digests


class Rate:
    """A token bucket for each client: `burst` requests at once, `per_minute` in the long run."""

    def __init__(self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = per_minute / 60, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when

    def spend(self, client: str) -> None:
        """Raises TooOften."""
        now = self._clock()
        left, then = self._buckets.pop(client, (float(self._burst), now))
        left = min(left + (now - then) * self._rate, self._burst)
        self._buckets[client] = (max(left - 1, 0.0) if left >= 1 else left, now)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if left < 1:
            raise TooOften


@dataclass(frozen=True)
class Listening:
    """TLS of a server.  certificate, key: PEM; client_authorities: PEM of those whose clients may call, or None."""

    certificate: bytes
    key: bytes
    client_authorities: bytes | None = None

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], self.client_authorities, self.client_authorities is not None
        )


def read_listening(certificate: Path | None, key: Path | None, authorities: Path | None) -> Listening | None:
    """The PEM files that options name; None for a plain server.

    Raises ParameterError for a half of a pair, OSError or DecodingError for a file that cannot be read or used.
    """
    if certificate is None and key is None and authorities is None:
        return None
    if certificate is None or key is None:
        raise ParameterError("TLS needs a certificate and its key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key, password="")  # raises if the key is encrypted; never prompts
    if authorities is not None:
        context.load_verify_locations(authorities)
        try:
            x509.load_pem_x509_certificates(authorities.read_bytes())
        except ValueError as error:  # this reader is the stricter one
            raise DecodingError(f"{authorities.name}: {error}") from None
    return Listening(
        certificate.read_bytes(), key.read_bytes(), None if authorities is None else authorities.read_bytes()
    )


def allow_files() -> None:
    """Raise the number of files that this process may open as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_options() -> list[tuple[str, int]]:
    """Of a grpc server: those who connect and say nothing are closed, and leave it the files that its work needs."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    connections = MAX_CONNECTIONS
    if files != resource.RLIM_INFINITY:
        connections = min(connections, max(files - RESERVED_FILES, files // 2))
    return [
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_S * 1000)),
        ("grpc.max_connection_idle_ms", int(IDLE_S * 1000)),
    ]


def check_address(listen: str, tls: Listening | None, insecure: bool) -> None:
    """Raises ParameterError for what is no address, or one in the clear that others can reach, unless that is meant."""
    if not listen.startswith("unix:"):
        split_address(listen)
    if tls is None and not insecure and not is_loopback(listen):
        raise ParameterError(f"without TLS a server listens on this machine only, not on {listen} (or give --insecure)")


def split_address(listen: str) -> tuple[str, int]:
    """Host and port.  Raises ParameterError, also for a port out of range, of which grpc would take the low 16 bits."""
    host, _, port = listen.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ParameterError(f"{listen} is not HOST:PORT")
    return host.strip("[]"), int(port)


def client(call: grpc.aio.ServicerContext[Any, Any], tokens: Tokens | None, authorities: bytes | None) -> str:
    """The name of the client of a call.  Raises Unauthenticated if `tokens` are asked for and it has none, and for a
    certificate that TLS takes and the reader here does not.

    authorities: PEM of those whose certificates TLS lets in, None if it asks for no certificate.
    """
    name = None
    if tokens is not None:
        given = [value for key, value in call.invocation_metadata() or () if key == "authorization"]
        scheme, _, token = str(given[0]).partition(" ") if len(given) == 1 else ("", "", "")
        name = tokens.name(token) if scheme.lower() == "bearer" else None
        if name is None:
            raise Unauthenticated
    known = {key: next(iter(values), b"") for key, values in call.auth_context().items()}
    full = known.get("x509_subject") or known.get("x509_common_name")
    if full and authorities is not None:
        subject = full.decode("utf-8", "replace")
        if len(subject) > MAX_SUBJECT:  # two that begin alike are two clients
            subject = f"{subject[:MAX_SUBJECT]}... {hashlib.sha256(full).hexdigest()}"
        try:
            signer = _signer(known["x509_pem_cert"], known.get("x509_pem_cert_chain", b""), authorities)
        except (ValueError, UnsupportedAlgorithm):
            raise Unauthenticated from None
        return f"certificate {subject} signed by {signer}"
    return f"token {name}" if name is not None else f"address {address_of(call.peer())}"


@lru_cache(64)
def _signer(certificate: bytes, chain: bytes, authorities: bytes) -> str:
    """The SHA-256 of the key that signed the certificate of a client, of which TLS has found that it may call.

    That is an authority's, or one in the chain that leads to an authority: a client could make up others with which its
    certificate verifies, to be many.  Where it sends no such chain, its own key takes that place.
    """
    own, trusted = x509.load_pem_x509_certificate(certificate), x509.load_pem_x509_certificates(authorities)
    above: list[x509.Certificate] = []
    with suppress(ValueError):  # none there, or one that cannot be read
        above = [one for one in x509.load_pem_x509_certificates(chain)[:MAX_CHAIN] if _may_sign(one)]
    known = [*trusted]
    for _ in above:  # they come in any order
        known += [one for one in above if one not in known and any(_signed(one, issuer) for issuer in known)]
    signers = (issuer for issuer in known if _signed(own, issuer))
    key = next(signers, own).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).hexdigest()[:SIGNER_DIGITS]


def _may_sign(certificate: x509.Certificate) -> bool:
    """Whether it is one of an authority: a client's signs nothing that counts, though its owner could."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return False


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the issuer's key signed the certificate, in the issuer's name."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def address_of(peer: str) -> str:
    """The address in what grpc calls a peer, without the port."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    try:
        address = ipaddress.ip_address(rest.rpartition(":")[0].strip("[]").partition("%")[0])
    except ValueError:
        return kind
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)

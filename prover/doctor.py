"""`zkmark-prover doctor`: whether a server can run here, before it has to.  Changes nothing."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from protocol.argument import Context, Statement
from protocol.errors import DecodingError, ParameterError
from protocol.keygen import MAX_KEY_BYTES, MarkingKey, VerificationKey
from protocol.warm_up import warm_up
from prover.access import Tokens, read_listening, split_address
from prover.keys import Approvals, load_owner, read_capped
from prover.requests import Networks
from prover.state import State
from zkmark.connect import is_loopback

FREE_BYTES = 2 << 30
CERTIFICATE_DAYS = 14
BUILT = 1_760_000_000  # unix time: no clock that is right shows less (October 2025)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    well: bool
    found: str


@dataclass(frozen=True)
class Papers:
    """As the options of `serve`: PEM files of the server, of the authorities of its clients, and their tokens."""

    certificate: Path | None = None
    key: Path | None = None
    client_authorities: Path | None = None
    tokens: Path | None = None


def examine(
    mk: Path, vk: Path | None, secret: bytes, state: Path, listen: str, papers: Papers, secrets: list[Path],
    memory_limit: int, insecure: bool = False,
) -> list[Finding]:  # fmt: skip
    """secrets: other files that nobody else may read.  memory_limit: bytes for one proof.  insecure: as of `serve`."""
    findings = [_private(path) for path in (mk, *secrets, *([papers.key] if papers.key else []))]
    opened: tuple[MarkingKey, Approvals] | None = None

    def look(what: str, examined: Callable[[], str]) -> None:
        try:
            findings.append(Finding(what, True, examined()))
        except (DecodingError, ParameterError, OSError, RuntimeError) as error:
            findings.append(Finding(what, False, str(error)))

    def key() -> str:
        nonlocal opened
        opened = load_owner(mk, secret)
        used, budget = len(opened[1].k_min), opened[1].budget
        return f"opens; {used} of {budget} networks used"

    look("marking key", key)
    if vk is not None and opened is not None:
        look("verification key", lambda: _pair(vk, opened[0].vk))
    look("kernels", lambda: _kernels())
    look("port", lambda: _port(listen))
    look("address", lambda: _address(listen, papers, insecure))
    look("clock", lambda: _clock(mk))
    look("disk", lambda: _disk(state))
    if state.is_dir():
        findings.append(_private(state))
    if opened is not None:
        look("memory", lambda: _memory(state, *opened, memory_limit))
    if papers != Papers():
        look("certificate", lambda: _certificate(papers))
    if (tokens := papers.tokens) is not None:
        look("tokens", lambda: f"{len(Tokens(tokens))} clients")
    return findings


def _private(path: Path) -> Finding:
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    well = not mode & 0o077 and status.st_uid in (os.getuid(), 0)
    text = f"{mode:o}" if well else f"{mode:o}, and others may reach it: chmod go= {path}"
    return Finding(f"mode of {path.name}", well, text)


def _pair(vk: Path, key: VerificationKey) -> str:
    if VerificationKey.from_bytes(read_capped(vk, MAX_KEY_BYTES, "verification key")).digest != key.digest:
        raise ParameterError("belongs to another marking key")
    return "belongs to the marking key"


def _kernels() -> str:
    said: list[str] = []
    warm_up(said.append)
    return "had to be compiled; they are ready now" if said else "compiled"


def _port(listen: str) -> str:
    host, port = split_address(listen)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError:
        raise ParameterError(f"{listen} is no address") from None
    with closing(socket.socket(found[0], found[1])) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind(found[4])
    return f"{listen} is free"


def _address(listen: str, papers: Papers, insecure: bool) -> str:
    """Who can reach it, and what they could read and change on the way."""
    if is_loopback(listen):
        return f"{listen} is for this machine only"
    if papers.certificate is not None or papers.key is not None:
        return f"others can reach {listen}, over TLS"
    if not insecure:
        raise ParameterError(f"others can reach {listen}, without TLS: `serve` refuses that (or give --insecure)")
    return f"others can reach {listen}, without TLS as you say: who is on the way reads and changes everything"


def _clock(mk: Path) -> str:
    now = time.time()
    if now < max(BUILT, mk.stat().st_mtime - 60):
        raise ParameterError("the clock is behind the marking key's file")
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))


def _disk(state: Path) -> str:
    folder = next(path for path in (state, *state.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free for {state}"
    if free < FREE_BYTES:
        raise ParameterError(text)
    return text


def _memory(state: Path, key: MarkingKey, approvals: Approvals, limit: int) -> str:
    """The largest proof of the approved networks that are kept."""
    networks = Networks(State(state)).kept() if state.is_dir() else []
    context = Context("", "", "", bytes(32))
    needs = [
        Statement(key.vk, network, k_min, context, bytes(32), bytes(32)).memory_bytes
        for network in networks if (k_min := approvals.k_min.get(network.digest, 0))
    ]  # fmt: skip
    if not needs:
        return f"limit {limit / 2**30:.1f} GiB; no approved network is kept to compare it with"
    text = f"the largest of {len(needs)} networks needs about {max(needs) / 2**30:.1f} of {limit / 2**30:.1f} GiB"
    if max(needs) > limit:
        raise ParameterError(text)
    return text


def _certificate(papers: Papers) -> str:
    """That a server can use it, and for how long."""
    if read_listening(papers.certificate, papers.key, papers.client_authorities) is None or papers.certificate is None:
        return "none: clients on this machine only"
    try:
        certificate = x509.load_pem_x509_certificate(papers.certificate.read_bytes())
    except ValueError:
        raise DecodingError(f"{papers.certificate.name} is no certificate") from None
    days = (certificate.not_valid_after_utc.timestamp() - time.time()) / 86400
    text = f"{papers.certificate.name} is valid for {days:.0f} more days"
    if days < CERTIFICATE_DAYS:
        raise ParameterError(text)
    return text

"""Models that clients asked about and the owner has not approved: who asks, which file, how it differs from known ones.

A refusal costs the same whether the owner never heard of a model, approved it in vain or dismissed it: each is recorded
here, in the same way, before the client gets the answer.  What is compared is compared when the owner looks.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from protocol.argument import Context
from protocol.errors import DecodingError, ParameterError
from protocol.network import Network
from prover.derive_worker import MAX_NETWORK_BYTES
from prover.keys import read_capped, write_file
from prover.state import State, sync_folder, transaction

MAX_REQUESTS = 64
MAX_PER_CLIENT = 8
MAX_BYTES = 2 << 30
MAX_KNOWN = 1 << 14


@dataclass(frozen=True)
class Request:
    """client: as the server knows it; claimant, purpose, verifier: what it said; first, last: unix times."""

    number: int
    name: str
    model_sha256: bytes
    model_size: int
    derivation: bytes
    network_digest: bytes
    client: str
    claimant: str
    purpose: str
    verifier: str
    first: float
    last: float
    times: int
    dismissed: int


class Requests:
    """The requests in a state folder.  The server writes, the owner's commands look and decide at the same time."""

    def __init__(self, state: State) -> None:
        self._state, self._db, self._lock = state, state.connect(), Lock()

    def close(self) -> None:
        self._db.close()

    def record(
        self, model: Path, model_sha256: bytes, derivation: bytes, network_digest: bytes, client: str, context: Context
    ) -> bool:
        """Remember that `client` asked about the file at `model`; False if there is no place for it."""
        name = hashlib.sha256(model_sha256 + hashlib.sha256(derivation).digest()).digest()
        now, size, path = time.time(), model.stat().st_size, self._state.path("requests", name)
        with self._lock, transaction(self._db):
            seen = self._db.execute(
                "UPDATE requests SET last = ?, times = times + 1 WHERE name = ?", (now, name.hex())
            ).rowcount
            if seen:
                return True
            count, room = self._db.execute(
                "SELECT COUNT(*), TOTAL(model_size) FROM requests WHERE NOT dismissed"
            ).fetchone()
            mine = self._db.execute(
                "SELECT COUNT(*) FROM requests WHERE NOT dismissed AND client = ?", (client,)
            ).fetchone()[0]
            if count >= MAX_REQUESTS or mine >= MAX_PER_CLIENT or room + size > MAX_BYTES:
                return False
            path.unlink(missing_ok=True)
            os.link(model, path)
            sync_folder(path.parent)
            self._db.execute(
                "INSERT INTO requests VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 0)",
                (name.hex(), model_sha256, size, derivation, network_digest, client, context.claimant, context.purpose,
                 context.verifier, now, now),
            )  # fmt: skip
            forgotten = "DELETE FROM requests WHERE dismissed AND number <= (SELECT MAX(number) FROM requests) - ?"
            self._db.execute(forgotten, (MAX_KNOWN,))
        return True

    def all(self) -> list[Request]:
        """In the order in which they came."""
        rows = self._db.execute("SELECT * FROM requests ORDER BY number").fetchall()
        return [Request(*row) for row in rows]

    def get(self, number: int) -> Request:
        """Raises ParameterError if there is no such request."""
        held = number.bit_length() < 64  # or SQLite has no such number
        row = self._db.execute("SELECT * FROM requests WHERE number = ?", (number,)).fetchone() if held else None
        if row is None:
            raise ParameterError(f"there is no request {number}")
        return Request(*row)

    def model(self, request: Request) -> Path:
        """The file.  Raises ParameterError for a request that was dismissed."""
        path = self._state.path("requests", bytes.fromhex(request.name))
        if not path.exists():
            raise ParameterError(f"the file of request {request.number} is gone")
        return path

    def dismiss(self, request: Request) -> None:
        """Forget the file, and do not list the request again."""
        with self._lock, transaction(self._db):
            self._db.execute("UPDATE requests SET dismissed = 1 WHERE number = ?", (request.number,))
        self._state.path("requests", bytes.fromhex(request.name)).unlink(missing_ok=True)

    def settle(self, request: Request) -> None:
        """The owner decided about its network."""
        with self._lock, transaction(self._db):
            self._db.execute("DELETE FROM requests WHERE number = ?", (request.number,))
        self._state.path("requests", bytes.fromhex(request.name)).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove files that belong to no request."""
        with self._lock, transaction(self._db):
            needed = {row[0] for row in self._db.execute("SELECT name FROM requests WHERE NOT dismissed")}
            for path in (self._state.folder / "requests").iterdir():
                if path.name not in needed:
                    path.unlink()


class Networks:
    """Which file is which network, and the networks that the owner approved."""

    def __init__(self, state: State) -> None:
        self._state, self._db, self._lock = state, state.connect(), Lock()

    def close(self) -> None:
        self._db.close()

    def digest(self, model_sha256: bytes, derivation_digest: bytes) -> bytes | None:
        """Of the network that was derived from this file before."""
        with self._lock:
            row = self._db.execute(
                "SELECT network_digest FROM known WHERE model_sha256 = ? AND derivation_digest = ?",
                (model_sha256, derivation_digest),
            ).fetchone()
        return None if row is None else bytes(row[0])

    def remember(self, model_sha256: bytes, derivation_digest: bytes, network_digest: bytes) -> None:
        with self._lock, transaction(self._db):
            row = (model_sha256, derivation_digest, network_digest)
            self._db.execute("INSERT OR REPLACE INTO known VALUES (?, ?, ?)", row)
            self._db.execute("DELETE FROM known WHERE rowid <= (SELECT MAX(rowid) FROM known) - ?", (MAX_KNOWN,))

    def load(self, network_digest: bytes) -> Network | None:
        """An approved network; None if it is not kept."""
        try:
            data = read_capped(self._state.path("networks", network_digest), MAX_NETWORK_BYTES, "network")
            network = Network.from_bytes(data)
        except (OSError, DecodingError, ParameterError):
            return None
        return network if network.digest == network_digest else None

    def keep(self, network: Network) -> None:
        """An approved network, of which there are as many as the key's budget allows."""
        write_file(self._state.path("networks", network.digest), network.to_bytes())

    def kept(self) -> list[Network]:
        """All approved networks that are kept."""
        names = sorted(path.name for path in (self._state.folder / "networks").iterdir() if len(path.name) == 64)
        found = (self.load(bytes.fromhex(name)) for name in names)
        return [network for network in found if network is not None]


@dataclass(frozen=True)
class Likeness:
    """structure: all shapes, windows and sources agree; equal: share of equal weights and biases, 0 if they do not."""

    structure: bool
    equal: float


def likeness(one: Network, other: Network) -> Likeness:
    """How a network differs from a known one.  A fine-tuned copy has its structure and some of its weights."""
    shape = [_structure(network) for network in (one, other)]
    if shape[0] != shape[1]:
        return Likeness(False, 0.0)
    equal, total = 0, 0
    for a, b in zip(_integers(one), _integers(other), strict=True):
        equal += int((a == b).sum())
        total += a.size
    return Likeness(True, equal / max(total, 1))


def _structure(network: Network) -> list[object]:
    edges = [
        (index, edge.source, edge.weight.shape, edge.rows, edge.columns, edge.groups, edge.pool)
        for index, node in enumerate(network.nodes) for edge in node.edges
    ]  # fmt: skip
    return [network.shapes, [(node.product, len(node.bias)) for node in network.nodes], edges]


def _integers(network: Network) -> list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    return [array for node in network.nodes for array in (node.bias, *(edge.weight for edge in node.edges))]

"""The folder in which a server keeps what must survive it: jobs, uploads, claims, requests, known networks.

    state.sqlite   WAL, synchronous FULL: what was committed survives kill -9 and a power cut
    uploads/       models that are being received, swept at the start
    models/        of jobs that are not done yet, by job
    claims/        of jobs that are done, by job
    requests/      models that wait for the owner's word, by file and derivation
    networks/      integer networks that the owner approved, by digest

Every file gets its bytes under another name and is synced before it has its own; names are digests in hexadecimal,
never a client's text.  Nothing here is a secret of the owner, but models may be confidential: folders have mode 0700,
files 0600.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from protocol.errors import DecodingError, ParameterError

FOLDERS = ("uploads", "models", "claims", "requests", "networks")
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
  id BLOB PRIMARY KEY, place INTEGER NOT NULL, state INTEGER NOT NULL, attempts INTEGER NOT NULL,
  model_sha256 BLOB NOT NULL, model_size INTEGER NOT NULL, derivation BLOB NOT NULL, context BLOB NOT NULL,
  ended REAL NOT NULL, claim_size INTEGER NOT NULL, claim_sha256 BLOB NOT NULL,
  reason TEXT NOT NULL, malformed INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, place);
CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (ended);
CREATE TABLE IF NOT EXISTS submitters (
  job BLOB NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, client TEXT NOT NULL, PRIMARY KEY (job, client))
  WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS submitters_by_client ON submitters (client);
CREATE TABLE IF NOT EXISTS known (
  model_sha256 BLOB NOT NULL, derivation_digest BLOB NOT NULL, network_digest BLOB NOT NULL,
  PRIMARY KEY (model_sha256, derivation_digest));
CREATE TABLE IF NOT EXISTS requests (
  number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, model_sha256 BLOB NOT NULL,
  model_size INTEGER NOT NULL, derivation BLOB NOT NULL, network_digest BLOB NOT NULL, client TEXT NOT NULL,
  claimant TEXT NOT NULL, purpose TEXT NOT NULL, verifier TEXT NOT NULL, first REAL NOT NULL, last REAL NOT NULL,
  times INTEGER NOT NULL, dismissed INTEGER NOT NULL);
"""


class State:
    """A state folder, made if it does not exist."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError, and DecodingError for a database that is none."""
        self.folder = folder
        for path in (folder, *(folder / name for name in FOLDERS)):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.connect().close()

    def connect(self) -> sqlite3.Connection:
        """A new connection, for one thread at a time."""
        try:
            path = self.folder / "state.sqlite"
            db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            path.chmod(0o600)
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                db.execute(f"PRAGMA {pragma}")
            db.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise DecodingError(f"{self.folder / 'state.sqlite'}: {error}") from None
        return db

    def path(self, folder: str, name: bytes) -> Path:
        """Where the file of a digest of 32 bytes is.  Raises ParameterError for anything else."""
        if len(name) != 32:
            raise ParameterError("a name has 32 bytes")
        return self.folder / folder / name.hex()

    def new_upload(self) -> IO[bytes]:
        """A new file in uploads/, open for writing; its path is `.name`."""
        path = self.folder / "uploads" / os.urandom(16).hex()
        return open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))

    @contextmanager
    def only_server(self) -> Iterator[None]:
        """One server at a time works on a folder.  Raises ParameterError if there is one."""
        with open(self.folder / "lock", "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ParameterError(f"another server works on {self.folder}") from None
            yield


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; on disk at the end."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def sync_folder(path: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

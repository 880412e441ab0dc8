"""The durable queue of jobs: what was acknowledged is on disk, and no instant at which the process dies loses it.

A job goes QUEUED -> DERIVING -> PROVING -> DONE, or ends as FAILED or CANCELLED.  Its id says what is asked for, so
that equal requests are one job, which ends early only when all who submitted it say so.  A job whose server died in the
middle of it is queued again, and given up after MAX_ATTEMPTS: a job that kills its server does so no more often.

Uploads and claims are renamed to their place before the row that needs them is committed.  A crash in between leaves a
file that no row needs; the next start removes it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from threading import Lock
from typing import Any

from prover.keys import write_file
from prover.state import State, sync_folder, transaction

MAX_ATTEMPTS = 3
MAX_FINISHED = 10_000  # ended jobs that are remembered
MAX_REASON = 300  # characters
GAVE_UP = "the server stopped while it worked on this, again and again"


class JobState(IntEnum):
    """As in zkmark.v1.Job."""

    QUEUED = 1
    DERIVING = 2
    PROVING = 3
    DONE = 4
    FAILED = 5
    CANCELLED = 6

    @property
    def ended(self) -> bool:
        return self >= JobState.DONE


LIVE = (JobState.QUEUED, JobState.DERIVING, JobState.PROVING)
RUNNING = (JobState.DERIVING, JobState.PROVING)


@dataclass(frozen=True)
class Asked:
    """What a job is asked to do.  id, model_sha256: 32 bytes; derivation, context: their canonical bytes."""

    id: bytes
    model_sha256: bytes
    model_size: int
    derivation: bytes
    context: bytes


@dataclass(frozen=True)
class Job:
    """A row.  place: its order in the queue; ended: unix time, 0 before; reason: why it FAILED or was given up."""

    id: bytes
    place: int
    state: JobState
    attempts: int
    model_sha256: bytes
    model_size: int
    derivation: bytes
    context: bytes
    ended: float
    claim_size: int
    claim_sha256: bytes
    reason: str
    malformed: bool


@dataclass(frozen=True)
class Quota:
    """jobs: in the queue; per_client: of one client; room: bytes of uploads, and again of claims; kept_s: for how long
    the outcome of a job is kept after its end.  What is being uploaded counts as if it were there.
    """

    jobs: int = 256
    per_client: int = 16
    room: int = 4 << 30
    kept_s: float = 7 * 86400.0


class Full(Exception):
    """No place for one more job."""


class Crowded(Full):
    """Those of all clients together take the room."""


class JobQueue:
    """All methods may be called from any thread.  One process at a time: see `State.only_server`."""

    def __init__(self, state: State, quota: Quota | None = None, clock: Callable[[], float] = time.time) -> None:
        self._state, self._quota, self._clock = state, quota or Quota(), clock
        self._db, self._reader = state.connect(), state.connect()
        self._writing, self._reading, self._placing = Lock(), Lock(), Lock()
        self._uploads: list[tuple[str, int]] = []  # client and size of what is being received
        self.version = 0  # grows with every change
        self._recover()

    def close(self) -> None:
        self._db.close()
        self._reader.close()

    def find(self, job_id: bytes) -> Job | None:
        """The job, if there is one."""
        row = self._one("SELECT * FROM jobs WHERE id = ?", job_id)
        if row is None:
            return None
        values = dict(zip(Job.__dataclass_fields__, row, strict=True))
        return Job(**values | {"state": JobState(values["state"]), "malformed": bool(values["malformed"])})

    def submitted_by(self, job_id: bytes, client: str) -> bool:
        return self._one("SELECT 1 FROM submitters WHERE job = ? AND client = ?", job_id, client) is not None

    def first_client(self, job_id: bytes) -> str:
        """One of those who submitted it."""
        row = self._one("SELECT client FROM submitters WHERE job = ? LIMIT 1", job_id)
        return str(row[0]) if row else ""

    def ahead(self, job: Job) -> int:
        """Jobs that are served before one that is queued."""
        if job.state != JobState.QUEUED:
            return 0
        row = self._one("SELECT COUNT(*) FROM jobs WHERE state IN (2, 3) OR (state = 1 AND place < ?)", job.place)
        return int(row[0]) if row else 0

    def counts(self) -> dict[JobState, int]:
        """Jobs by state."""
        with self._reading:
            rows = self._reader.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall()
        return {state: 0 for state in JobState} | {JobState(state): count for state, count in rows}

    def sizes(self) -> tuple[int, int]:
        """Of the models of live jobs and of what is being uploaded, and of claims."""
        row = self._one("SELECT TOTAL(CASE WHEN state < 4 THEN model_size END), TOTAL(claim_size) FROM jobs") or (0, 0)
        return int(row[0]) + sum(size for _, size in [*self._uploads]), int(row[1])

    def resume(self, job_id: bytes, client: str) -> Job | None:
        """A live or done job that this client submitted before; None if there is none.

        Others share it by `submit`, with the model: to know what somebody asked for is not enough.
        """
        job = self.find(job_id)
        if job is None or job.state in (JobState.FAILED, JobState.CANCELLED) or not self.submitted_by(job_id, client):
            return None
        return job

    @contextmanager
    def uploading(self, client: str, size: int) -> Iterator[None]:
        """Keep a place for an upload of `size` bytes, without waiting for the disk.  Raises Full, Crowded."""
        with self._placing:
            self._check_quota(client)
            rows = self._one("SELECT COUNT(*) FROM jobs WHERE state < 4")
            if (int(rows[0]) if rows else 0) + len(self._uploads) >= self._quota.jobs:
                raise Crowded("too many jobs wait; try again later")
            if self.sizes()[0] + size > self._quota.room:
                raise Crowded("too many models wait; try again later")
            self._uploads.append((client, size))
        try:
            yield
        finally:
            with self._placing:
                self._uploads.remove((client, size))

    def submit(self, asked: Asked, client: str, upload: Path) -> Job:
        """Queue a job whose model is complete and synced in `upload`, or share the one that came first.

        The file is taken over.  On disk when this returns.
        """
        with self._changing():
            job = self.find(asked.id)
            if job is None or job.state in (JobState.FAILED, JobState.CANCELLED):
                os.replace(upload, self.model_path(asked.id))
                sync_folder(self.model_path(asked.id).parent)
                self._db.execute("DELETE FROM jobs WHERE id = ?", (asked.id,))  # and those who had submitted it
                self._db.execute(
                    "INSERT INTO jobs VALUES (?, ?, 1, 0, ?, ?, ?, ?, 0, 0, ?, '', 0)",
                    (asked.id, self._last_place() + 1, asked.model_sha256, asked.model_size, asked.derivation,
                     asked.context, b""),
                )  # fmt: skip
            self._db.execute("INSERT OR IGNORE INTO submitters VALUES (?, ?)", (asked.id, client))
        upload.unlink(missing_ok=True)
        return self._known(asked.id)

    def take(self) -> Job | None:
        """The job that is next, now DERIVING; None if none waits."""
        row = self._one("SELECT id FROM jobs WHERE state = 1 ORDER BY place LIMIT 1")
        if row is None:
            return None
        with self._changing():
            taken = self._db.execute(
                "UPDATE jobs SET state = 2, attempts = attempts + 1 WHERE id = ? AND state = 1", row
            ).rowcount
        return self._known(row[0]) if taken else self.take()

    def proving(self, job_id: bytes) -> None:
        """Its network is known and approved."""
        with self._changing():
            self._db.execute("UPDATE jobs SET state = 3 WHERE id = ? AND state = 2", (job_id,))

    def done(self, job_id: bytes, claim: bytes) -> None:
        """The claim is kept, unless the job was cancelled meanwhile."""
        write_file(self.claim_path(job_id), claim)
        size, digest = len(claim), hashlib.sha256(claim).digest()
        with self._changing():
            kept = self._db.execute(
                "UPDATE jobs SET state = 4, claim_size = ?, claim_sha256 = ?, ended = ?"
                " WHERE id = ? AND state IN (2, 3)", (size, digest, self._clock(), job_id),
            ).rowcount  # fmt: skip
        if not kept:
            self.claim_path(job_id).unlink(missing_ok=True)
        self._forget_model(job_id)

    def failed(self, job_id: bytes, reason: str, malformed: bool = False) -> None:
        """There will be no claim: this is the answer."""
        self._end(job_id, JobState.FAILED, reason, malformed)

    def give_up(self, job_id: bytes, reason: str) -> None:
        """The job ends as CANCELLED, without an answer.  One that is cancelled already only loses its model."""
        self._end(job_id, JobState.CANCELLED, reason)

    def put_back(self, job_id: bytes) -> None:
        """Queue a running job again, at its old place: its server stops on purpose."""
        with self._changing():
            self._db.execute(
                "UPDATE jobs SET state = 1, attempts = attempts - 1 WHERE id = ? AND state IN (2, 3)", (job_id,)
            )

    def cancel(self, job_id: bytes, client: str) -> Job | None:
        """One of those who submitted a live job does not want it any more."""
        with self._changing():
            job = self.find(job_id)
            if job is not None and not job.state.ended:
                self._db.execute("DELETE FROM submitters WHERE job = ? AND client = ?", (job_id, client))
                left = self._db.execute("SELECT COUNT(*) FROM submitters WHERE job = ?", (job_id,)).fetchone()[0]
                if not left:
                    self._db.execute("INSERT INTO submitters VALUES (?, ?)", (job_id, client))  # who may see the end
                    self._db.execute("UPDATE jobs SET state = 6, ended = ? WHERE id = ?", (self._clock(), job_id))
        cancelled = self.find(job_id)
        if cancelled is not None and job is not None and job.state == JobState.QUEUED and cancelled.state.ended:
            self._forget_model(job_id)  # that of a running job is removed by whoever runs it
        return cancelled

    def sweep(self) -> None:
        """Forget outcomes that are older than `kept_s`, over MAX_FINISHED, or whose claims take too much room."""
        with self._reading:
            rows = self._reader.execute(
                "SELECT id, ended, claim_size FROM jobs WHERE state >= 4 ORDER BY ended DESC"
            ).fetchall()
        room, old, forgotten = self._quota.room, self._clock() - self._quota.kept_s, []
        for number, (job_id, ended, size) in enumerate(rows):
            room -= size
            if ended < old or room < 0 or number >= MAX_FINISHED:
                forgotten.append(job_id)
        with self._changing():
            for job_id in forgotten:
                if self._db.execute("DELETE FROM jobs WHERE id = ? AND state >= 4", (job_id,)).rowcount:
                    self.claim_path(job_id).unlink(missing_ok=True)

    def model_path(self, job_id: bytes) -> Path:
        return self._state.path("models", job_id)

    def claim_path(self, job_id: bytes) -> Path:
        return self._state.path("claims", job_id)

    def take_back(self) -> None:
        """Queue again what a worker that is no more left in the middle."""
        with self._changing():
            running = self._db.execute("SELECT id, attempts FROM jobs WHERE state IN (2, 3)").fetchall()
            for job_id, attempts in running:
                if attempts >= MAX_ATTEMPTS:
                    self._set_end(job_id, JobState.CANCELLED, GAVE_UP)
                else:
                    self._db.execute("UPDATE jobs SET state = 1 WHERE id = ?", (job_id,))

    def _recover(self) -> None:
        """At the start: look at the jobs there are, and remove files that none needs."""
        self.take_back()
        with self._changing():
            rows = self._db.execute("SELECT id, state FROM jobs WHERE state <= 4").fetchall()
            for job_id, state in rows:  # files are lost only when somebody removes them
                if not (self.claim_path if state == JobState.DONE else self.model_path)(job_id).exists():
                    self._db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
        for folder, states in (("uploads", ()), ("models", LIVE), ("claims", (JobState.DONE,))):
            needed = {job_id.hex() for job_id, state in rows if state in states}
            for path in (self._state.folder / folder).iterdir():
                if path.name not in needed:
                    path.unlink()

    def _check_quota(self, client: str) -> None:
        row = self._one(
            "SELECT COUNT(*) FROM submitters JOIN jobs ON job = id WHERE client = ? AND state < 4", client
        )
        if (int(row[0]) if row else 0) + sum(name == client for name, _ in [*self._uploads]) >= self._quota.per_client:
            raise Full("you have too many jobs here; try again later")

    def _end(self, job_id: bytes, state: JobState, reason: str, malformed: bool = False) -> None:
        with self._changing():
            self._set_end(job_id, state, reason, malformed)
        self._forget_model(job_id)

    def _set_end(self, job_id: bytes, state: JobState, reason: str, malformed: bool = False) -> None:
        self._db.execute(
            "UPDATE jobs SET state = ?, reason = ?, malformed = ?, ended = ? WHERE id = ? AND state IN (2, 3)",
            (state, reason[:MAX_REASON], malformed, self._clock(), job_id),
        )

    def _forget_model(self, job_id: bytes) -> None:
        """Unless the job was queued anew while the file still lay there."""
        with self._writing:
            job = self.find(job_id)
            if job is None or job.state.ended:
                self.model_path(job_id).unlink(missing_ok=True)

    def _last_place(self) -> int:
        return int(self._db.execute("SELECT COALESCE(MAX(place), 0) FROM jobs").fetchone()[0])

    def _known(self, job_id: bytes) -> Job:
        job = self.find(job_id)
        if job is None:
            raise RuntimeError("a job vanished")
        return job

    def _one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        """What the last commit left."""
        with self._reading:
            row: tuple[Any, ...] | None = self._reader.execute(query, values).fetchone()
        return row

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._writing:
            with transaction(self._db):
                yield
            self.version += 1

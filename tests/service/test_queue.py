"""The queue of jobs on the disk: states, sharing, limits, crashes."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from protocol.errors import DecodingError, ParameterError
from prover import queue
from prover.queue import MAX_ATTEMPTS, Asked, Full, JobQueue, JobState, Quota
from prover.state import State


@pytest.fixture
def state(tmp_path) -> State:
    return State(tmp_path / "state")


def asked(size: int = 5) -> Asked:
    return Asked(os.urandom(32), bytes(32), size, b"derivation", b"context")


def add(jobs: JobQueue, state: State, what: Asked, client: str = "me") -> queue.Job:
    with state.new_upload() as file:
        file.write(b"model")
    return jobs.submit(what, client, Path(file.name))


def files(state: State, folder: str) -> list[str]:
    return sorted(path.name for path in (state.folder / folder).iterdir())


def test_a_job_from_its_beginning_to_its_end(state):
    jobs, what = JobQueue(state), asked()
    assert add(jobs, state, what).state == JobState.QUEUED
    assert jobs.model_path(what.id).read_bytes() == b"model" and not files(state, "uploads")
    taken = jobs.take()
    assert taken is not None and (taken.id, taken.state, taken.attempts) == (what.id, JobState.DERIVING, 1)
    assert jobs.take() is None
    jobs.proving(what.id)
    assert jobs.find(what.id).state == JobState.PROVING
    jobs.done(what.id, b"claim")
    done = jobs.find(what.id)
    assert (done.state, done.claim_size, jobs.claim_path(what.id).read_bytes()) == (JobState.DONE, 5, b"claim")
    assert not files(state, "models")
    assert jobs.counts()[JobState.DONE] == 1 and jobs.sizes() == (0, 5)


def test_files_are_private(state):
    jobs, what = JobQueue(state), asked()
    add(jobs, state, what)
    assert {path.stat().st_mode & 0o777 for path in state.folder.rglob("*") if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o077 for path in state.folder.rglob("models/*")} == {0}
    assert (state.folder / "state.sqlite").stat().st_mode & 0o777 == 0o600


def test_equal_requests_share_a_job_until_all_take_it_back(state):
    jobs, what = JobQueue(state), asked()
    assert jobs.resume(what.id, "one") is None
    add(jobs, state, what, "one")
    assert jobs.resume(what.id, "one").state == JobState.QUEUED and jobs.resume(what.id, "two") is None
    for client in ("two", "three"):
        assert add(jobs, state, what, client).state == JobState.QUEUED
    for client, state_then in (("one", JobState.QUEUED), ("three", JobState.QUEUED), ("two", JobState.CANCELLED)):
        assert jobs.submitted_by(what.id, client)
        assert jobs.cancel(what.id, client).state == state_then
    assert not files(state, "models") and jobs.take() is None
    assert jobs.resume(what.id, "one") is None
    assert add(jobs, state, what, "one").state == JobState.QUEUED
    assert not jobs.submitted_by(what.id, "two")


def test_a_job_cancelled_and_asked_for_again_while_it_runs(state):
    """What the first run ends with does not count for the second."""
    jobs, what = JobQueue(state), asked()
    add(jobs, state, what)
    jobs.take()
    jobs.cancel(what.id, "me")
    assert add(jobs, state, what).state == JobState.QUEUED
    jobs.done(what.id, b"of the first run")
    assert jobs.find(what.id).state == JobState.QUEUED and not files(state, "claims")
    assert jobs.model_path(what.id).exists()
    assert jobs.take().id == what.id


@pytest.mark.parametrize("proving", [False, True])
def test_a_crash_queues_a_job_again_and_not_for_ever(state, proving):
    what, other = asked(), asked()
    jobs = JobQueue(state)
    add(jobs, state, what)
    add(jobs, state, other)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        jobs = JobQueue(state)  # as after kill -9
        taken = jobs.take()
        assert (taken.id, taken.attempts) == (what.id, attempt)
        if proving:
            jobs.proving(what.id)
    jobs = JobQueue(state)
    found = jobs.find(what.id)
    assert (found.state, found.reason) == (JobState.CANCELLED, queue.GAVE_UP)
    assert files(state, "models") == [other.id.hex()]
    assert jobs.take().id == other.id


def test_a_job_put_back_keeps_its_place_and_its_attempts(state):
    jobs, what = JobQueue(state), asked()
    add(jobs, state, what)
    add(jobs, state, asked())
    for _ in range(MAX_ATTEMPTS + 1):
        assert jobs.take().attempts == 1
        jobs.put_back(what.id)
    assert jobs.take().id == what.id


def test_files_without_a_job_are_removed_at_the_start(state):
    jobs, live, done, lost = JobQueue(state), asked(), asked(), asked()
    for what in (live, done, lost):
        add(jobs, state, what)
    for _ in range(3):
        jobs.take()
    jobs.done(done.id, b"claim")
    jobs.model_path(lost.id).unlink()
    for folder in ("uploads", "models", "claims"):
        for name in ("0" * 64, done.id.hex(), live.id.hex(), ".tmp"):
            path = state.folder / folder / name
            if not path.exists():
                path.write_bytes(b"left")
    jobs = JobQueue(state)
    assert [files(state, folder) for folder in ("uploads", "models", "claims")] == [
        [], [live.id.hex()], [done.id.hex()]
    ]  # fmt: skip
    assert jobs.find(lost.id) is None and jobs.find(live.id).state == JobState.QUEUED


def test_outcomes_are_forgotten_in_the_end(state, monkeypatch):
    now = [0.0]
    jobs = JobQueue(state, Quota(kept_s=100.0, room=25), clock=lambda: now[0])
    ids = []
    for number in range(4):
        what = asked()
        ids.append(what.id)
        add(jobs, state, what)
        now[0] = 10.0 * number
        jobs.take()
        jobs.done(what.id, b"0123456789")

    def left() -> list[bool]:
        jobs.sweep()
        found = [jobs.find(name) is not None for name in ids]
        assert found == [jobs.claim_path(name).exists() for name in ids]
        return found

    assert left() == [False, False, True, True]  # there is room for 25 bytes
    now[0] = 125.0
    assert left() == [False, False, False, True]
    monkeypatch.setattr(queue, "MAX_FINISHED", 0)
    assert left() == [False] * 4


def test_quotas(state):
    jobs = JobQueue(state, Quota(jobs=3, per_client=2, room=15))
    what = asked()
    add(jobs, state, what)
    with jobs.uploading("me", 5):
        with pytest.raises(Full, match="you have"), jobs.uploading("me", 1):
            pass
        with pytest.raises(Full, match="too many models"), jobs.uploading("you", 6):
            pass
        with jobs.uploading("you", 5), pytest.raises(Full, match="too many jobs"), jobs.uploading("him", 0):
            pass
        assert jobs.resume(what.id, "me").id == what.id  # it is counted already
    jobs.cancel(what.id, "me")
    with jobs.uploading("me", 5):
        pass


@pytest.mark.parametrize("name", [b"", b"x", b"../../../../../etc/passwd", bytes(31), bytes(33)])
def test_no_name_but_a_digest_becomes_a_path(state, name):
    jobs = JobQueue(state)
    assert jobs.find(name) is None and not jobs.submitted_by(name, "me")
    assert jobs.cancel(name, "me") is None and jobs.resume(name, "me") is None
    with pytest.raises(ParameterError):
        state.path("claims", name)


def test_a_database_that_is_none(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.sqlite").write_bytes(b"junk" * 1000)
    with pytest.raises(DecodingError):
        State(tmp_path / "state")


def test_a_change_that_fails_changes_nothing(state, monkeypatch):
    """The database is full, for example: the job that was taken is still there."""
    jobs, what = JobQueue(state), asked()
    add(jobs, state, what)
    jobs.take()

    def broken(*_: object) -> float:
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(jobs, "_clock", broken)
    with pytest.raises(sqlite3.OperationalError):
        jobs.done(what.id, b"claim")
    assert jobs.find(what.id).state == JobState.DERIVING
    monkeypatch.undo()
    assert JobQueue(state).take().id == what.id

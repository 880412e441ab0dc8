"""Places for uploads: one that stalls gives way to one that waits, and no other does."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from prover.jobs import Prover
from prover.places import Busy, Pace, Places, Stalled, Upload
from prover.queue import Full, JobQueue, Quota
from prover.server import ANSWERS
from prover.state import State
from prover.upload import Header, receive
from tests.service.serving import (
    QUICK,
    SECRET,
    WAIT_S,
    Gate,
    asking,
    calling,
    failure,
    header,
    running,
    submit,
    wait_until,
)
from zkmark.v1 import zkmark_pb2 as pb

Code = grpc.StatusCode
HURRIED = replace(QUICK, uploads=2, pace=Pace(0.5))
BUSY = (Code.RESOURCE_EXHAUSTED, ANSWERS[Busy].text)
STALLED = (Code.RESOURCE_EXHAUSTED, ANSWERS[Stalled].text)


@pytest.fixture
def prover(approved_file: Path, monkeypatch) -> Prover:
    found, gate = Prover(approved_file, SECRET), Gate()
    gate.open.set()
    monkeypatch.setattr(found, "claim", gate)
    return found


@contextmanager
def stalling(world, prover, *calls) -> Iterator[list[grpc.Future]]:
    """Uploads that send a byte and then nothing; all have their places."""
    stop = threading.Event()

    def messages(kind):
        first, chunk, *_ = asking(kind, header(world, world.marked), world.marked, 1)
        yield first
        yield chunk
        stop.wait(WAIT_S)

    folder, held = prover.state.folder / "uploads", []
    for call, kind in calls:
        before = set(folder.iterdir())
        held.append(call(messages(kind), timeout=2 * WAIT_S))
        wait_until(lambda before=before: set(folder.iterdir()) - before)
    try:
        yield held
    finally:
        for one in held:
            one.cancel()
        stop.set()


def of(stub):
    """The calls that take a model."""
    return (stub.Submit.future, pb.SubmitRequest), (stub.Prove, pb.ProveRequest)


def accepted(stub, world) -> bool:
    return failure(lambda: submit(stub, header(world, world.marked), world.marked))[0] == Code.OK


def test_an_upload_that_stalls_gives_way(world, prover):
    """Of a job or of a session, the slowest first and as many as are needed; its client is told why."""
    with running(prover, HURRIED) as target, calling(target) as stub, stalling(world, prover, *of(stub)) as held:
        wait_until(lambda: accepted(stub, world))
        assert (held[0].code(), held[0].details()) == STALLED and not held[1].done()
        with stalling(world, prover, *of(stub)[:1]):  # has the place that is free
            wait_until(lambda: accepted(stub, world))
            assert (held[1].code(), held[1].details()) == STALLED


def test_nobody_is_hurried_while_there_are_places(world, prover):
    with running(prover, replace(HURRIED, pace=Pace(0.0))) as target, calling(target) as stub:
        with stalling(world, prover, *of(stub)[:1]) as held:
            assert all(accepted(stub, world) for _ in range(5))
            assert not held[0].done()


def test_an_upload_that_moves_keeps_its_place(world, prover):
    with running(prover, replace(HURRIED, pace=Pace(WAIT_S))) as target, calling(target) as stub:
        with stalling(world, prover, *of(stub)) as held:
            assert failure(lambda: submit(stub, header(world, world.marked), world.marked)) == BUSY
            assert not any(one.done() for one in held)


@pytest.mark.parametrize("what", ["bytes", "jobs"])
def test_room_for_bytes_and_jobs_is_given_away_too(what, world, prover):
    """One that announces much and sends little would hold it with a single upload."""
    quota = Quota(room=len(world.marked) + 1) if what == "bytes" else Quota(jobs=1)
    with running(prover, replace(HURRIED, quota=quota)) as target, calling(target) as stub:
        with stalling(world, prover, *of(stub)[:1]) as held:
            wait_until(lambda: accepted(stub, world))
            assert (held[0].code(), held[0].details()) == STALLED


def test_who_has_too_much_already_drives_nobody_out(world, prover):
    limits = replace(HURRIED, uploads=1, quota=Quota(per_client=1), pace=Pace(0.0))
    with running(prover, limits) as target, calling(target) as stub:
        with stalling(world, prover, *of(stub)[:1]) as held:
            found = failure(lambda: submit(stub, header(world, world.marked), world.marked))
            assert found[0] == Code.RESOURCE_EXHAUSTED and "you have too many" in found[1]
            assert not held[0].done()


# --- without a server


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_stalls(tmp_path):
    clock = Clock()

    async def look() -> None:
        with open(tmp_path / "file", "wb") as file:
            upload = Upload(file, Pace(5.0, 1000.0), clock)
            clock.now += 6
            assert not upload.stalls()  # nobody receives it
            async with upload.receiving():
                assert upload.stalls()  # nothing came
                upload.took(6000)
                assert not upload.stalls() and upload.rate() == 1000
                clock.now += 4
                assert upload.stalls()  # 600 bytes a second
                upload.took(10_000)
                assert not upload.stalls()
                clock.now += 5.5
                assert upload.rate() > 1000 and upload.stalls()  # nothing came any more
            assert not upload.stalls()  # it is complete

    asyncio.run(look())


def test_an_upload_that_cannot_be_done_in_time_stalls(tmp_path):
    """A floor alone would let one that announces much hold much for little."""

    clock = Clock()

    async def look() -> None:
        state = State(tmp_path)
        jobs = JobQueue(state)
        places = Places(jobs, state, 1, 300.0, Pace(5.0, 1000.0), clock)
        for size, stalls in ((10**6, False), (10**9, True)):
            async with places.take("me", size) as upload, upload.receiving():
                clock.now += 10
                upload.took(10**5)
                assert upload.stalls() == stalls
        jobs.close()

    asyncio.run(look())


def test_one_that_ends_by_itself_is_not_called_stalled(tmp_path):
    """Its last byte came while it was asked to give way; who asked goes on at once."""

    async def look() -> None:
        with open(tmp_path / "file", "wb") as file:
            upload = Upload(file, Pace(0.0))
            async with upload.receiving():
                asked = asyncio.create_task(upload.give_way())
                await asyncio.sleep(0)
            await asyncio.wait_for(asked, WAIT_S)
            late = Upload(file, Pace(0.0))
            with pytest.raises(TimeoutError):  # of what reads, and not of the place
                async with late.receiving(), asyncio.timeout(0.01):
                    await asyncio.sleep(WAIT_S)

    asyncio.run(look())


def test_who_waits_for_our_disk_does_not_stall(tmp_path):
    """All bytes came: that they are synced slowly is not the client's doing."""

    async def look() -> None:
        asked, synced = threading.Event(), threading.Event()

        class Disk(ThreadPoolExecutor):
            def submit(self, work, /, *arguments, **named):
                def slowly():
                    if work.__name__ == "sync":
                        asked.set()
                        assert synced.wait(WAIT_S)
                    return work(*arguments, **named)

                return super().submit(slowly)

        async def chunk() -> bytes:
            return b"model"

        digest = hashlib.sha256(b"model").digest()
        with open(tmp_path / "file", "wb") as file, Disk(1) as disk:
            upload = Upload(file, Pace(0.0))
            whole = Header(pb.ProveHeader(), None, None, 5, digest)
            received = asyncio.create_task(receive(chunk, upload, whole, WAIT_S, disk))
            await asyncio.to_thread(asked.wait, WAIT_S)
            stalled = upload.stalls()
            synced.set()
            await received
            assert asked.is_set() and not stalled

    asyncio.run(look())


def test_places_come_back(tmp_path):
    """Whatever ends an upload: its file, its place and its share of the quota are free again."""

    async def look() -> None:
        state = State(tmp_path)
        jobs = JobQueue(state, Quota(jobs=1))
        places = Places(jobs, state, 1, 300.0, Pace(WAIT_S))
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with places.take("me", 1) as upload:
                    assert upload.path.exists()
                    with pytest.raises((Busy, Full)):
                        async with places.take("you", 1):
                            raise AssertionError("two places")
                    raise ZeroDivisionError
            assert not list((tmp_path / "uploads").iterdir()) and jobs.sizes() == (0, 0)
        jobs.close()

    asyncio.run(look())

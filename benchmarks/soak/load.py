"""Crowds that follow jobs, large uploads at once, and clients that stall or send garbage."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import grpc

from benchmarks.soak.clients import Asker, World
from benchmarks.soak.servers import WAIT_S, serving
from prover.upload import Limits
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

FOLLOWED = 20  # jobs of a crowd
MEMORY_CAP = 1 << 30  # bytes of a server, whatever is uploaded
PLACES = Limits().uploads
STALLED, GARBAGE, SOCKETS = 48, 4, 16  # uploads, clients, and connections that stall or send what is no HTTP
PAUSE_S = 0.05  # between two calls of a client of garbage
NICE = 10  # other people's machines do not compete with the server for its cores


@contextmanager
def apart(work: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """A pipe to `work`, in a process of its own, so that it takes no time from the client that measures."""
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    process = spawn.Process(target=work, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield mine
    finally:
        mine.close()
        process.join(WAIT_S)


def followers(world: World, count: int, fake: float | None) -> dict[str, Any]:
    """`count` clients follow FOLLOWED jobs to their ends; how long a call of somebody else takes meanwhile."""
    with serving(world.folder, fake) as servers:
        asker = Asker(world, servers.target)
        asker.end(asker.submit(asker.header()).id)
        alone = asker.key_ms()
        names = [asker.submit(asker.header()).id for _ in range(FOLLOWED)]
        with apart(_follow, servers.target, names, count) as crowd:
            crowd.recv()  # all of them have heard of their jobs
            beside = asker.key_ms()
            running = asker.end(names[0]).state
            ends = crowd.recv()
        peak = servers.peak_bytes()
    if ends != [pb.Job.DONE] * count or running != pb.Job.DONE:
        raise RuntimeError("a follower did not see the end")
    return {
        "followers": count, "jobs": FOLLOWED, "call_ms_alone": alone, "call_ms_beside": beside, "peak_mib": peak >> 20
    }  # fmt: skip


def _follow(pipe: Connection, target: str, names: list[bytes], count: int) -> None:
    """Says when all have an answer, and then which state each saw last."""
    os.nice(NICE)

    async def one(channel: grpc.aio.Channel, name: bytes, heard: asyncio.Semaphore) -> int:
        state = 0
        async for job in pb_grpc.ProverStub(channel).Follow(pb.JobRequest(id=name), timeout=WAIT_S):
            if not state:
                heard.release()
            state = job.state
        return state

    async def run() -> list[int]:
        heard = asyncio.Semaphore(0)
        channels = [grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(count)]
        crowd = [asyncio.create_task(one(c, names[-1 - k % len(names)], heard)) for k, c in enumerate(channels)]
        for _ in channels:
            await heard.acquire()
        pipe.send("all")
        ends = await asyncio.gather(*crowd)
        await asyncio.gather(*(channel.close() for channel in channels))
        return ends

    pipe.send(asyncio.run(run()))


def uploads(world: World, count: int, megabytes: int) -> dict[str, Any]:
    """`count` uploads at once, of what is no model in the end.  Raises RuntimeError over MEMORY_CAP."""
    with serving(world.folder, None) as servers:
        asker = Asker(world, servers.target)
        asker.end(asker.submit(asker.header()).id)
        before, began, states = servers.peak_bytes(), time.monotonic(), []
        acknowledged: list[float] = []

        def one(number: int) -> None:
            model = number.to_bytes(8, "little") * (megabytes * 10**6 // 8)
            mine = Asker(world, servers.target)
            job = mine.submit(mine.header(model), model)
            acknowledged.append(time.monotonic() - began)
            states.append(mine.end(job.id).state)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        peak = servers.peak_bytes()
    if states != [pb.Job.FAILED] * count:
        raise RuntimeError("an upload was lost")
    if peak > MEMORY_CAP:
        raise RuntimeError(f"the server took {peak >> 20} MiB")
    return {
        "uploads": count, "megabytes": megabytes, "seconds": round(max(acknowledged), 1),
        "mib_before": before >> 20, "peak_mib": peak >> 20, "cap_mib": MEMORY_CAP >> 20,
    }  # fmt: skip


def stalling(world: World, rounds: int, jobs: int, fake: float | None) -> dict[str, Any]:
    """Seconds of `jobs` jobs, one after the other, with hostile clients and without, in turn, `rounds` times each."""
    with serving(world.folder, fake) as servers, apart(_hostile, world, servers.target, servers.port) as hostile:
        asker = Asker(world, servers.target)
        hostile.recv()
        _lap(asker, jobs)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        garbage, calls = 0.0, {False: 0.0, True: 0.0}
        for number in range(rounds):
            for beside in (number % 2 == 1, number % 2 == 0):  # what drifts counts for both
                if beside:
                    hostile.send("begin")
                    hostile.recv()
                before = time.monotonic()
                seconds[beside].append(_lap(asker, jobs))
                calls[beside] = asker.key_ms()
                if beside:
                    hostile.send("end")
                    garbage += hostile.recv() / (time.monotonic() - before)
    alone, beside_them = median(seconds[False]), median(seconds[True])
    return {
        "rounds": rounds, "jobs": jobs, "stalled_uploads": STALLED, "stalled_connections": 2 * SOCKETS,
        "garbage_per_s": round(garbage / rounds, 1), "seconds_alone": round(alone, 2),
        "seconds_beside": round(beside_them, 2), "delay_percent": round(100 * (beside_them / alone - 1), 1),
        "call_ms_alone": calls[False], "call_ms_beside": calls[True],
    }  # fmt: skip


def crowded(world: World, tries: int, fake: float | None) -> dict[str, Any]:
    """Seconds until a job is acknowledged while uploads of a byte a second hold all places, the longest of `tries`."""
    with serving(world.folder, fake) as servers, apart(_crowd, world, servers.target) as crowd:
        asker = Asker(world, servers.target)
        asker.key_ms(1)
        crowd.send("begin")
        crowd.recv()
        while len(list((world.folder / "owner.state" / "uploads").iterdir())) < PLACES:
            time.sleep(0.05)
        seconds = []
        for _ in range(tries):
            began, header = time.monotonic(), asker.header()
            while not _acknowledged(asker, header):
                time.sleep(PAUSE_S)
            seconds.append(time.monotonic() - began)
        crowd.send("end")
    return {"stalled_uploads": PLACES, "tries": tries, "seconds_until_a_place": round(max(seconds), 1)}


def _acknowledged(asker: Asker, header: pb.ProveHeader) -> bool:
    try:
        asker.submit(header)
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False
    return True


def _crowd(pipe: Connection, world: World, target: str) -> None:
    """As many as there are places; one that loses its own comes back, until it is told to end."""
    os.nice(NICE)
    stop = threading.Event()
    pipe.recv()
    asker = Asker(world, target)

    def hold() -> None:
        while not stop.is_set():
            with suppress(grpc.RpcError):
                asker.stub.Submit(_stalled(asker, world, stop), timeout=WAIT_S)
            stop.wait(1.0)

    work = [threading.Thread(target=hold) for _ in range(PLACES)]
    for thread in work:
        thread.start()
    pipe.send("here")
    with suppress(EOFError):
        pipe.recv()
    stop.set()
    asker.channel.close()
    for thread in work:
        thread.join()


def _lap(asker: Asker, jobs: int) -> float:
    began = time.monotonic()
    for _ in range(jobs):
        if asker.end(asker.submit(asker.header()).id).state != pb.Job.DONE:
            raise RuntimeError("a job was not done")
    return time.monotonic() - began


def _hostile(pipe: Connection, world: World, target: str, port: int) -> None:
    """Begins and ends when it is told to; says at the end how many calls of garbage it made."""
    os.nice(NICE)
    pipe.send("here")
    with suppress(EOFError):
        while pipe.recv() == "begin":
            stop, made = threading.Event(), [0] * GARBAGE
            asker = Asker(world, target)
            slow = [asker.stub.Submit.future(_stalled(asker, world, stop), timeout=WAIT_S) for _ in range(STALLED)]
            work = [threading.Thread(target=_garbage, args=(target, stop, made, k)) for k in range(GARBAGE)]
            work += [threading.Thread(target=_no_http, args=(port, stop, k % 2 == 0)) for k in range(2 * SOCKETS)]
            for thread in work:
                thread.start()
            time.sleep(0.5)  # all of them are there
            pipe.send("here")
            pipe.recv()
            stop.set()
            for call in slow:
                call.cancel()
            asker.channel.close()
            for thread in work:
                thread.join()
            pipe.send(sum(made))


def _stalled(asker: Asker, world: World, stop: threading.Event) -> Iterator[pb.SubmitRequest]:
    """An upload of a byte a second."""
    yield pb.SubmitRequest(header=asker.header())
    for byte in world.model:
        yield pb.SubmitRequest(model_chunk=bytes([byte]))
        if stop.wait(1.0):
            return


def _garbage(target: str, stop: threading.Event, made: list[int], number: int) -> None:
    """Messages that are none."""
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.stream_unary("/zkmark.v1.Prover/Submit")
        while not stop.wait(PAUSE_S):
            made[number] += 1
            with suppress(grpc.RpcError):
                call(iter([os.urandom(1000)]), timeout=WAIT_S)


def _no_http(port: int, stop: threading.Event, silent: bool) -> None:
    """A connection that never says all of HTTP's first line, or one of random bytes, again and again."""
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), WAIT_S) as connection:
            for byte in b"PRI * HTTP/2.0\r\n" if silent else b"":
                connection.sendall(bytes([byte]))
                if stop.wait(1.0):
                    return
            if not silent:
                connection.sendall(os.urandom(1000))
                connection.settimeout(1.0)
                while connection.recv(1000):
                    pass
        stop.wait(1.0)

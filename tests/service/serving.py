"""A prover's server in a thread, and requests to it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from ml.quantise import Derivation
from protocol.argument import Cancelled, Context
from prover.jobs import Prover
from prover.server import Server
from prover.upload import Limits
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

SECRET = b"correct horse battery staple"  # as in conftest.py
PLAIN = Derivation()
WAIT_S = 120.0  # for what happens at once, unless the machine is busy
QUICK = Limits(grace_s=2.0, message_s=WAIT_S, per_minute=1e6, burst=10**6)
ENDED = {pb.Job.DONE, pb.Job.FAILED, pb.Job.CANCELLED}


@contextmanager
def running(prover: Prover, limits: Limits = QUICK, **more: Any) -> Iterator[str]:
    """A server in a thread of its own: yields HOST:PORT."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Server:
        made = Server(prover, "127.0.0.1:0", limits, **more)
        await made.start()
        return made

    try:
        started = asyncio.run_coroutine_threadsafe(start(), loop).result(WAIT_S)
        try:
            yield f"127.0.0.1:{started.port}"
        finally:
            asyncio.run_coroutine_threadsafe(started.stop(), loop).result(WAIT_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WAIT_S)
        assert not thread.is_alive()
        loop.close()


@contextmanager
def calling(target: str) -> Iterator[pb_grpc.ProverStub]:
    with grpc.insecure_channel(target) as channel:
        yield pb_grpc.ProverStub(channel)


def context(claimant: str = "") -> Context:
    return Context("test", claimant, "", os.urandom(32))


def header(world, model: bytes, **changes: object) -> pb.ProveHeader:
    from hashlib import sha256

    fields = {
        "vk_digest": world.key.vk.digest, "context": context().to_bytes(), "derivation": PLAIN.to_bytes(),
        "model_size": len(model), "model_sha256": sha256(model).digest(),
    }  # fmt: skip
    return pb.ProveHeader(**{**fields, **changes})


def asking(kind: type, header: pb.ProveHeader, model: bytes, size: int = 1 << 20) -> list[Any]:
    """The messages of a SubmitRequest or ProveRequest stream."""
    chunks = [kind(model_chunk=model[at : at + size]) for at in range(0, len(model), size)]
    return [kind(header=header), *chunks]


def submit(stub: pb_grpc.ProverStub, header: pb.ProveHeader, model: bytes, **more: Any) -> pb.Job:
    return stub.Submit(iter(asking(pb.SubmitRequest, header, model)), timeout=WAIT_S, **more)


def ended(stub: pb_grpc.ProverStub, job: pb.Job, **more: Any) -> pb.Job:
    """Follow a job to its end."""
    *_, last = stub.Follow(pb.JobRequest(id=job.id), timeout=WAIT_S, **more)
    assert last.state in ENDED
    return last


def download(stub: pb_grpc.ProverStub, job: pb.Job, offset: int = 0, **more: Any) -> bytes:
    request = pb.DownloadRequest(id=job.id, offset=offset)
    return b"".join(chunk.data for chunk in stub.Download(request, timeout=WAIT_S, **more))


def failure(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """How a call fails."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def wait_until(condition: Callable[[], Any]) -> None:
    """Poll."""
    ends = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


class Gate:
    """In the place of Prover.claim: begins, and ends when it is opened or cancelled."""

    def __init__(self, claim: bytes = b"a claim") -> None:
        self.begun, self.open, self.calls, self.cancelled = threading.Event(), threading.Event(), 0, threading.Event()
        self._claim = claim

    def __call__(self, *_: object, progress: Callable[[str, float], None], cancelled: Callable[[], bool]) -> bytes:
        self.calls += 1
        progress("slow", 0.5)
        self.begun.set()
        while not self.open.wait(0.02):
            if cancelled():
                self.cancelled.set()
                raise Cancelled
        return self._claim

"""One call of Prove: a claim in the interactive channel, whose coins the client sends one by one."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, wait
from pathlib import Path
from threading import Event
from typing import Any

from protocol.argument import Cancelled
from protocol.errors import DecodingError
from protocol.transcript import COIN_BYTES, InteractiveProver
from prover.jobs import Prover
from prover.places import Upload
from prover.upload import Header, Limits, check_header, read, receive
from zkmark.v1 import zkmark_pb2 as pb

CHUNK = 1 << 20
Submit = Callable[[Callable[[], bytes]], tuple[int, asyncio.Future[bytes]]]


class Session:
    """Made for one call.  `claim` receives the model and has the claim made; `send` sends it."""

    def __init__(self, prover: Prover, limits: Limits, call: Any, disk: Executor) -> None:
        self._prover, self._limits, self._call, self._disk = prover, limits, call, disk
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._stopped = Event()
        self._progress = ("", 0.0)
        self._ends = math.inf  # of the proof, set when it begins
        self._coins_s = limits.coins_s  # what is left of them

    async def header(self) -> Header:
        message = await read(self._call, pb.ProveRequest, "header", self._limits.message_s)
        return check_header(message.header, self._prover, self._limits)

    async def receive(self, header: Header, upload: Upload) -> None:
        """The model."""

        async def chunk() -> bytes:
            message = await read(self._call, pb.ProveRequest, "model_chunk", self._limits.message_s)
            return bytes(message.model_chunk)

        await receive(chunk, upload, header, self._limits.upload_s, self._disk)

    async def claim(self, header: Header, model: Path, submit: Submit) -> bytes:
        """Have the claim made by the worker, and report meanwhile."""

        def job() -> bytes:
            self._ends = time.monotonic() + self._limits.proof_s
            if self._cancelled():
                raise Cancelled
            return self._prover.claim(
                model, header.model_sha256, header.derivation, header.context, InteractiveProver(self._ask),
                progress=self._report, cancelled=self._cancelled,
            )  # fmt: skip

        ahead, result = submit(job)
        try:
            await self._write(pb.ProveEvent(queued=pb.Queued(ahead=ahead)))
            return await self._follow(result)
        finally:
            self._stopped.set()

    async def send(self, claim: bytes) -> None:
        """The claim in chunks; a client that does not read them is left after a while."""
        header = pb.ClaimHeader(size=len(claim), sha256=hashlib.sha256(claim).digest())
        await self._write(pb.ProveEvent(claim=header))
        for at in range(0, len(claim), CHUNK):
            await self._write(pb.ProveEvent(claim_chunk=claim[at : at + CHUNK]))
        await self._write(pb.ProveEvent(done=pb.Done()))

    async def _follow(self, result: asyncio.Future[bytes]) -> bytes:
        """Report progress until the worker is done; a slow reader misses steps, and delays nobody else."""
        sent = self._progress
        while not result.done():
            await asyncio.wait({result}, timeout=0.25)
            if self._progress != sent:
                sent = self._progress
                await self._write(pb.ProveEvent(progress=pb.Progress(phase=sent[0], fraction=sent[1])))
        return result.result()

    async def _write(self, event: pb.ProveEvent) -> None:
        async with asyncio.timeout(self._limits.message_s), self._writing:
            await self._call.write(event)

    def _report(self, phase: str, fraction: float) -> None:
        self._progress = (phase, fraction)

    def _cancelled(self) -> bool:
        return self._stopped.is_set() or time.monotonic() > self._ends

    def _ask(self, pending: bytes) -> bytes:
        """In the worker: one coin of the client, who may leave or be late."""
        asked = time.monotonic()
        answer = asyncio.run_coroutine_threadsafe(self._exchange(pending), self._loop)
        while not answer.done():
            if self._cancelled() or time.monotonic() > asked + self._coins_s:
                answer.cancel()
                raise Cancelled
            wait({answer}, timeout=0.1)
        self._coins_s -= time.monotonic() - asked
        return answer.result()

    async def _exchange(self, pending: bytes) -> bytes:
        await self._write(pb.ProveEvent(pending=pending))
        coin: bytes = (await read(self._call, pb.ProveRequest, "coin", self._limits.message_s)).coin
        if len(coin) != COIN_BYTES:
            raise DecodingError(f"request: a coin has {COIN_BYTES} bytes")
        return coin

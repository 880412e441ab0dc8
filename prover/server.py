"""The gRPC face of `prover.jobs`: uploads, the queue of one worker, events, limits.

A client holds a coroutine, a temporary file and no more until its model is complete; then it waits in a short queue for
the one worker.  Whatever the client does, every wait is limited, and a client that leaves cancels its job.

The connection is plain: a proof hides its witness from everybody.  Where the model or the context is confidential, or
interactive coins must reach the prover unchanged, listen on the loopback address behind a TLS proxy.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import IO, Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from ml.quantise import Derivation
from protocol.argument import Cancelled, Context
from protocol.errors import DecodingError, ParameterError, Restart
from protocol.transcript import COIN_BYTES, FiatShamir, InteractiveProver
from prover.jobs import Prover, Refused
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

CHUNK = 1 << 20
MAX_HEADER_BYTES = 1 << 16
MAX_RPCS = 32
SERVICE = "zkmark.v1.Prover"
log = logging.getLogger("zkmark.prover")

Call = grpc.aio.ServicerContext[pb.ProveRequest, pb.ProveEvent]


@dataclass(frozen=True)
class Limits:
    """upload: bytes of a model.  waiting: clients beside the one whose proof is made, from their header on.

    Seconds: for one message, for the upload, for all coins of a proof together, for a proof, and to stop.
    """

    upload: int = 256 << 20
    waiting: int = 8
    message_s: float = 30.0
    upload_s: float = 300.0
    coins_s: float = 300.0
    proof_s: float = 600.0
    grace_s: float = 10.0


class Busy(Exception):
    """There are clients enough."""


class Servicer(pb_grpc.ProverServicer):
    """zkmark.v1.Prover over a `Prover`."""

    def __init__(self, prover: Prover, limits: Limits) -> None:
        self._prover, self._limits = prover, limits
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prover")
        self._clients = 0
        self._jobs = 0

    def close(self) -> None:
        """Wait for the worker."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    async def Key(self, request: pb.KeyRequest, context: Any) -> None:  # type: ignore[override]
        data = self._prover.vk.to_bytes()
        async with asyncio.timeout(self._limits.upload_s):
            for at in range(0, len(data), CHUNK):
                async with asyncio.timeout(self._limits.message_s):
                    await context.write(pb.KeyChunk(data=data[at : at + CHUNK]))

    async def Prove(self, request_iterator: Any, context: Call) -> None:  # type: ignore[override]
        try:
            if max(self._clients, self._jobs) > self._limits.waiting:  # jobs whose client left are in the queue, too
                raise Busy
            self._clients += 1
            try:
                claim = await Session(self._prover, self._limits, context).claim(self._submit)
            finally:
                self._clients -= 1
            await send(claim, context, self._limits)
            log.info("a claim was made and sent")
        except (DecodingError, ParameterError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Refused as error:
            log.info("a model was refused")
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except Busy:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many clients wait; try again later")
        except Restart:
            await context.abort(grpc.StatusCode.ABORTED, "begin again with fresh coins")
        except (TimeoutError, Cancelled):
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the client or the job took too long")
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            # Neither the client nor the log gets the message of an error that nobody foresaw: it may quote a secret.
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.error("internal error: %s at %s:%s", type(error).__name__, where.filename, where.lineno)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")

    def _submit(self, job: Callable[[], bytes]) -> tuple[int, asyncio.Future[bytes]]:
        """Queue a job for the worker: how many are ahead, and its result."""
        future = asyncio.get_running_loop().run_in_executor(self._worker, job)
        ahead, self._jobs = self._jobs, self._jobs + 1
        future.add_done_callback(self._finished)
        return ahead, future

    def _finished(self, future: asyncio.Future[bytes]) -> None:
        self._jobs -= 1
        if not future.cancelled():
            future.exception()  # a job whose client left is not an unhandled error


class Session:
    """One call of Prove, up to its claim."""

    def __init__(self, prover: Prover, limits: Limits, call: Call) -> None:
        self._prover, self._limits, self._call = prover, limits, call
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._stopped = Event()
        self._progress = ("", 0.0)
        self._ends = math.inf  # of the job, set when it begins
        self._coins_s = limits.coins_s  # what is left of them

    async def claim(self, submit: Callable[[Callable[[], bytes]], tuple[int, asyncio.Future[bytes]]]) -> bytes:
        """Receive the model, have the claim made, and report meanwhile."""
        header = (await self._read("header")).header
        if header.ByteSize() > MAX_HEADER_BYTES:
            raise DecodingError("request: the header is too long")
        interactive = header.interactive
        context, derivation = Context.from_bytes(header.context), Derivation.from_bytes(header.derivation)
        self._prover.check_header(header.vk_digest, context)
        if not 0 < header.model_size <= self._limits.upload:
            raise ParameterError(f"a model has 1 to {self._limits.upload} bytes here")
        size = header.model_size
        del header  # the job below must not keep it
        with tempfile.TemporaryFile() as model:
            async with asyncio.timeout(self._limits.upload_s):
                await self._receive(model, size)

            def job() -> bytes:
                self._ends = time.monotonic() + self._limits.proof_s
                if self._cancelled():
                    raise Cancelled
                model.seek(0)
                channel = InteractiveProver(self._ask) if interactive else FiatShamir()
                return self._prover.claim(
                    model.read(), derivation, context, channel, progress=self._report, cancelled=self._cancelled
                )

            ahead, result = submit(job)
            try:
                await self._write(pb.ProveEvent(queued=pb.Queued(ahead=ahead)))
                return await self._follow(result)
            finally:
                self._stopped.set()

    async def _receive(self, model: IO[bytes], size: int) -> None:
        have = 0
        while have < size:
            chunk = (await self._read("model_chunk")).model_chunk
            have += len(chunk)
            if not chunk or have > size:
                raise DecodingError("upload: empty chunk or more bytes than announced")
            model.write(chunk)

    async def _follow(self, result: asyncio.Future[bytes]) -> bytes:
        """Report progress until the worker is done; a slow reader misses steps, and delays nobody else."""
        sent = self._progress
        while not result.done():
            await asyncio.wait({result}, timeout=0.25)
            if self._progress != sent:
                sent = self._progress
                await self._write(pb.ProveEvent(progress=pb.Progress(phase=sent[0], fraction=sent[1])))
        return result.result()

    async def _read(self, kind: str) -> pb.ProveRequest:
        try:
            async with asyncio.timeout(self._limits.message_s):
                message = await self._call.read()
        except DecodeError:
            raise DecodingError("request: not a ProveRequest") from None
        if not isinstance(message, pb.ProveRequest) or message.WhichOneof("message") != kind:
            raise DecodingError(f"request: expected {kind}")
        return message

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
        coin = (await self._read("coin")).coin
        if len(coin) != COIN_BYTES:
            raise DecodingError(f"request: a coin has {COIN_BYTES} bytes")
        return coin


async def send(claim: bytes, call: Call, limits: Limits) -> None:
    """The claim in chunks; a client that does not read them is left after a while."""
    header = pb.ClaimHeader(size=len(claim), sha256=hashlib.sha256(claim).digest())
    events = [pb.ProveEvent(claim_chunk=claim[at : at + CHUNK]) for at in range(0, len(claim), CHUNK)]
    for event in (pb.ProveEvent(claim=header), *events, pb.ProveEvent(done=pb.Done())):
        async with asyncio.timeout(limits.message_s):
            await call.write(event)


class Health(health.HealthServicer):
    """The standard health service without Watch: idle watchers would use up the calls that a server takes."""

    async def Watch(self, request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask with Check")


class Server:
    """A running server: `port` is the bound one, `stop` ends it."""

    def __init__(self, prover: Prover, listen: str, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._servicer = Servicer(prover, self.limits)
        options = [("grpc.so_reuseport", 0)]  # two provers on one port would share its clients unnoticed
        self._server = grpc.aio.server(maximum_concurrent_rpcs=MAX_RPCS, options=options)
        pb_grpc.add_ProverServicer_to_server(self._servicer, self._server)
        self._health = Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            self.port = self._server.add_insecure_port(listen)
        except RuntimeError:
            raise ParameterError(f"cannot listen on {listen}") from None

    async def start(self) -> None:
        await self._server.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Take no new calls, give running ones `grace_s`, cancel the rest, wait for the worker."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self.limits.grace_s)
        await asyncio.get_running_loop().run_in_executor(None, self._servicer.close)


async def serve(prover: Prover, listen: str, limits: Limits, ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT.  `ready` gets the bound port."""
    server = Server(prover, listen, limits)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await server.start()
    ready(server.port)
    await stopping.wait()
    await server.stop()

"""The gRPC face of the prover: jobs that clients submit, follow and fetch, interactive sessions, limits.

A client holds a coroutine and a file until its model is complete; then the model is a job on the disk, or in the
interactive channel waits for the one worker.  Whatever a client does, every wait is limited.  A client that leaves
cancels its interactive session; its job goes on.

A proof hides its witness from everybody.  TLS keeps models and contexts confidential, and tokens and interactive coins
from being read or changed on the way.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from protocol.argument import Cancelled
from protocol.errors import DecodingError, ParameterError, Restart
from prover.access import (
    Listening,
    Rate,
    Tokens,
    TooOften,
    Unauthenticated,
    allow_files,
    check_address,
    connection_options,
)
from prover.access import client as client_of
from prover.jobs import Prover, Refused
from prover.places import Busy, Places, Stalled
from prover.queue import MAX_REASON, RUNNING, Asked, Crowded, Full, Job, JobQueue, JobState
from prover.requests import Requests
from prover.session import Session
from prover.strict import Strict
from prover.telemetry import Metrics
from prover.upload import Limits, check_header, read, receive
from prover.worker import Worker, report
from zkmark.connect import job_id
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

CHUNK = 1 << 20
MAX_RPCS = 512
MAX_MESSAGE_BYTES = CHUNK + (1 << 18)  # of each call one may be in memory
MAX_REFLECTIONS = 8
REFLECTION_S = 10.0
TICK_S = 0.25  # between two looks at a job that is followed
SERVICE = "zkmark.v1.Prover"
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.bdp_probe", 0),  # which would let grpc keep up to 16 MB of each upload in memory
    ("grpc.http2.lookahead_bytes", CHUNK),
    ("grpc.so_reuseport", 0),  # two provers on one port would share its clients unnoticed
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]
log = logging.getLogger("zkmark.prover")


class Unknown(Exception):
    """No such job."""


class Foreign(Exception):
    """Another client's job."""


class NotDone(Exception):
    """A claim that is not there yet, or never will be."""


class Stopping(Exception):
    """The server stops."""


@dataclass(frozen=True)
class Answer:
    """What a client gets for an error, and its cause in the metrics.  text: empty for the error's own."""

    code: grpc.StatusCode
    cause: str
    text: str = ""


LATER = grpc.StatusCode.RESOURCE_EXHAUSTED
ANSWERS: dict[type[BaseException], Answer] = {
    DecodingError: Answer(grpc.StatusCode.INVALID_ARGUMENT, "malformed"),
    ParameterError: Answer(grpc.StatusCode.INVALID_ARGUMENT, "malformed"),
    Refused: Answer(grpc.StatusCode.FAILED_PRECONDITION, "refused"),
    NotDone: Answer(grpc.StatusCode.FAILED_PRECONDITION, "not done", "there is no claim"),
    Unauthenticated: Answer(grpc.StatusCode.UNAUTHENTICATED, "unauthenticated", "this server wants a token it knows"),
    Unknown: Answer(grpc.StatusCode.NOT_FOUND, "unknown", "there is no such job"),
    Foreign: Answer(grpc.StatusCode.PERMISSION_DENIED, "foreign", "this is another client's job"),
    TooOften: Answer(LATER, "rate", "you ask too often; try again later"),
    Full: Answer(LATER, "quota"),
    Crowded: Answer(LATER, "quota"),
    Stalled: Answer(LATER, "stalled", "your upload was too slow while others waited; try again"),
    Busy: Answer(LATER, "busy", "too many clients wait; try again later"),
    Stopping: Answer(grpc.StatusCode.UNAVAILABLE, "stopping", "the server stops; try again later"),
    Restart: Answer(grpc.StatusCode.ABORTED, "restart", "begin again with fresh coins"),
    TimeoutError: Answer(grpc.StatusCode.DEADLINE_EXCEEDED, "late", "the client or the job took too long"),
    Cancelled: Answer(grpc.StatusCode.DEADLINE_EXCEEDED, "late", "the client or the job took too long"),
}
UNFORESEEN = Answer(grpc.StatusCode.INTERNAL, "internal", "internal error")


class Servicer(pb_grpc.ProverServicer):
    """zkmark.v1.Prover over a `Prover`, made in a running event loop."""

    def __init__(
        self, prover: Prover, limits: Limits, tokens: Tokens | None, authorities: bytes | None, metrics: Metrics
    ) -> None:
        self._prover, self._limits, self._metrics = prover, limits, metrics
        self._tokens, self._authorities = tokens, authorities
        self.jobs, self._requests = JobQueue(prover.state, limits.quota), Requests(prover.state)
        self._requests.sweep()
        self.worker = Worker(prover, self.jobs, self._requests, metrics, limits.proof_s)
        self._disk = ThreadPoolExecutor(4, "disk")
        self._rate, self._calls = Rate(limits.per_minute, limits.burst), Counter[str]()
        self._places = Places(self.jobs, prover.state, limits.uploads, limits.upload_s, limits.pace)
        self._sessions = 0
        self.stopping = asyncio.Event()
        self._seen: tuple[int, dict[bytes, Job]] = (-1, {})
        metrics.watch("zkmark_jobs", "Jobs by state", "state", self._counts)

    def close(self) -> None:
        """When the worker has stopped."""
        self._disk.shutdown()
        self.jobs.close()
        self._requests.close()

    async def Key(self, request: pb.KeyRequest, context: Any) -> None:  # type: ignore[override]
        async with self._client(context), asyncio.timeout(self._limits.upload_s):
            data = self._prover.vk.to_bytes()
            for at in range(0, len(data), CHUNK):
                await self._write(context, pb.KeyChunk(data=data[at : at + CHUNK]))

    async def Submit(self, request_iterator: Any, context: Any) -> pb.Job:
        async with self._client(context) as client:
            message = await read(context, pb.SubmitRequest, "header", self._limits.message_s)
            header = check_header(message.header, self._prover, self._limits)
            name, size = job_id(header.message), header.size
            known = await self._on_disk(self.jobs.resume, name, client)
            if known is not None:
                return self._message(known)
            async with self._places.take(client, size) as upload:

                async def chunk() -> bytes:
                    message = await read(context, pb.SubmitRequest, "model_chunk", self._limits.message_s)
                    self._metrics.received(len(message.model_chunk))
                    return bytes(message.model_chunk)

                await receive(chunk, upload, header, self._limits.upload_s, self._disk)
                if self.stopping.is_set():
                    raise Stopping
                asked = Asked(name, header.model_sha256, size, message.header.derivation, message.header.context)
                job: Job = await self._on_disk(self.jobs.submit, asked, client, upload.path)
            self.worker.wake()
            fields = {"job": name.hex()[:16], "client": client, "model": header.model_sha256.hex(), "bytes": size}
            log.info("job submitted", extra={"fields": fields})
            return self._message(job)

    async def Follow(self, request: pb.JobRequest, context: Any) -> None:  # type: ignore[override]
        async with self._client(context) as client:
            job, sent = self._own(request.id, client), None
            while True:
                message = self._message(job)
                if message != sent:
                    await self._write(context, message)
                    sent = message
                if job.state.ended:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self.stopping.wait()
                if self.stopping.is_set():
                    raise Stopping
                job = self._find(request.id)

    async def Download(self, request: pb.DownloadRequest, context: Any) -> None:  # type: ignore[override]
        async with self._client(context) as client, asyncio.timeout(self._limits.upload_s):
            job = self._own(request.id, client)
            if job.state != JobState.DONE:
                raise NotDone
            if request.offset > job.claim_size:
                raise ParameterError("the claim is not that long")
            with ExitStack() as stack:
                try:
                    file = stack.enter_context(open(self.jobs.claim_path(job.id), "rb"))
                except FileNotFoundError:  # swept just now
                    raise Unknown from None
                file.seek(request.offset)
                while data := await self._on_disk(file.read, CHUNK):
                    await self._write(context, pb.ClaimChunk(data=data))
                    self._metrics.sent(len(data))

    async def Cancel(self, request: pb.JobRequest, context: Any) -> pb.Job:
        async with self._client(context) as client:
            self._own(request.id, client)
            job = await self._on_disk(self.jobs.cancel, request.id, client)
            if job is None:
                raise Unknown
            return self._message(job)

    async def Prove(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        async with self._client(context) as client:
            if max(self._sessions, self.worker.sessions) > self._limits.waiting:  # those whose client left, too
                raise Busy
            self._sessions += 1
            try:
                session = Session(self._prover, self._limits, context, self._disk)
                header = await session.header()
                async with self._places.take(client, header.size) as upload:
                    await session.receive(header, upload)
                    self._metrics.received(header.size)
                    try:
                        claim = await session.claim(header, upload.path, self.worker.submit)
                    except Refused as refused:
                        await self._on_disk(
                            self.worker.record, upload.path, header.model_sha256, header.message.derivation,
                            refused.network_digest, client, header.context,
                        )  # fmt: skip
                        raise
            finally:
                self._sessions -= 1
            await session.send(claim)
            self._metrics.sent(len(claim))

    @asynccontextmanager
    async def _client(self, context: Any) -> AsyncIterator[str]:
        """One call: who calls, whether it may, and what the client gets for each error."""
        client = ""
        try:
            client = client_of(context, self._tokens, self._authorities)
            self._rate.spend(client)
            if self._calls[client] >= self._limits.calls:
                raise TooOften
            if self.stopping.is_set():
                raise Stopping
            self._calls[client] += 1
            try:
                yield client
            finally:
                self._calls[client] -= 1
                if not self._calls[client]:
                    del self._calls[client]
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:
            answer = ANSWERS.get(type(error), UNFORESEEN)
            if answer is UNFORESEEN:
                report(error)
            self._metrics.refused(answer.cause)
            flood = answer.code in (LATER, grpc.StatusCode.UNAUTHENTICATED)  # is counted, but does not fill the log
            fields = {"cause": answer.cause, "client": client}
            log.log(logging.DEBUG if flood else logging.INFO, "call ended", extra={"fields": fields})
            await context.abort(answer.code, answer.text or str(error)[:MAX_REASON])

    def _own(self, name: bytes, client: str) -> Job:
        job = self._find(name)
        if not self.jobs.submitted_by(name, client):
            raise Foreign
        return job

    def _find(self, name: bytes) -> Job:
        """From memory, unless something changed since the last look."""
        if self._seen[0] != self.jobs.version:
            self._seen = self.jobs.version, {}
        found = self._seen[1].get(name) or self.jobs.find(name)
        if found is None:
            raise Unknown
        self._seen[1][name] = found
        return found

    def _message(self, job: Job) -> pb.Job:
        message = pb.Job(
            id=job.id, state=cast("pb.Job.State.ValueType", int(job.state)), ahead=self.jobs.ahead(job),
            claim_size=job.claim_size, claim_sha256=job.claim_sha256, reason=job.reason, malformed=job.malformed,
        )  # fmt: skip
        name, phase, fraction = self.worker.progress
        if name == job.id and job.state in RUNNING:
            message.phase, message.fraction = phase, fraction
        return message

    def _counts(self) -> dict[str, float]:
        return {state.name.lower(): count for state, count in self.jobs.counts().items()}

    async def _on_disk(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *arguments)

    async def _write(self, context: Any, message: Any) -> None:
        async with asyncio.timeout(self._limits.message_s):
            await context.write(message)


class Health(health.HealthServicer):
    """The standard health service without Watch: idle watchers would use up the calls that a server takes."""

    async def Watch(self, request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask with Check")


class Reflection(reflection.aio.ReflectionServicer):
    """The standard reflection service, for few clients at a time and not for long."""

    def __init__(self) -> None:
        super().__init__((SERVICE, reflection.SERVICE_NAME))
        self._calls = 0

    async def ServerReflectionInfo(  # type: ignore[override]  # the stubs forget "async"
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[Any]:
        if self._calls >= MAX_REFLECTIONS:
            await context.abort(LATER, "too many ask; try again later")
        self._calls += 1
        try:
            async with asyncio.timeout(REFLECTION_S):
                answers: Any = super().ServerReflectionInfo(request_iterator, context)
                async for answer in answers:
                    yield answer
        except (TimeoutError, DecodeError):
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "asked for too long, or no message")
        finally:
            self._calls -= 1


class Server:
    """A server, made in a running event loop: `port` is the bound one, `start` and `stop` are called once."""

    def __init__(
        self,
        prover: Prover,
        listen: str,
        limits: Limits | None = None,
        *,
        tls: Listening | None = None,
        tokens: Tokens | None = None,
        insecure: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        """Raises ParameterError for an address that is taken, or in the clear for others than this machine."""
        check_address(listen, tls, insecure)
        self.limits = limits or Limits()
        self._exits = ExitStack()
        strict = Strict(self.limits.message_s)
        options = [*OPTIONS, *connection_options()]
        self._server = grpc.aio.server(maximum_concurrent_rpcs=MAX_RPCS, options=options, interceptors=[strict])
        self._health = Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(Reflection(), self._server)
        try:
            if tls is None:
                self.port = self._server.add_insecure_port(listen)
            else:
                self.port = self._server.add_secure_port(listen, tls.credentials())
        except RuntimeError:
            raise ParameterError(f"cannot listen on {listen}") from None
        self._exits.enter_context(prover.state.only_server())
        authorities = tls.client_authorities if tls else None
        self._servicer = Servicer(prover, self.limits, tokens, authorities, metrics or Metrics())
        pb_grpc.add_ProverServicer_to_server(self._servicer, self._server)

    async def start(self) -> None:
        await self._server.start()
        self._servicer.worker.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Take no new calls, give running ones and the job `grace_s`, cancel the rest; jobs stay in the queue."""
        await self._health.enter_graceful_shutdown()
        self._servicer.stopping.set()
        grace = self.limits.grace_s
        await asyncio.gather(self._server.stop(grace), self._servicer.worker.stop(grace))
        self._servicer.close()
        self._exits.close()


async def serve(server: Callable[[], Server], ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT.  `ready` gets the bound port."""
    allow_files()
    running, stopping = server(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await running.start()
    ready(running.port)
    await stopping.wait()
    await running.stop()

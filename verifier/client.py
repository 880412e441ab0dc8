"""A claim from a prover as a job of zkmark.v1: submit, follow, download; over as many connections as that takes.

Nothing that the prover sends is believed or kept over its cap: the result is bytes for `verifier.check`.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event
from typing import Any, TypeVar

import grpc

from protocol.claim import MAX_CLAIM_BYTES
from protocol.errors import DecodingError, ParameterError, VerificationError
from verifier.check import Subject
from zkmark.connect import Tls, connect
from zkmark.terminal import Report, printable
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

CHUNK = 1 << 16  # bytes of a model in a message: a prover sees whole messages come, also over a slow line
TIMEOUT_S = 900.0  # for a claim, with all waiting and all tries
FIRST_DELAY_S = 0.5  # between two tries, doubled up to
LAST_DELAY_S = 30.0
TRIES = 4  # in vain, one after the other, where waiting gives little hope
CANCEL_S = 5.0

T = TypeVar("T")
C = TypeVar("C", bound=Any)  # a call: its types are known to the stubs alone
Code = grpc.StatusCode
HOPEFUL = {Code.ABORTED, Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNAVAILABLE, Code.UNKNOWN}
ENDED = {pb.Job.DONE, pb.Job.FAILED, pb.Job.CANCELLED}


@dataclass(frozen=True)
class Remote:
    """A server and how it is reached: HOST:PORT, plain or with TLS, and with a token if it wants one."""

    target: str
    tls: Tls | None = None
    token: str = field(default="", repr=False)

    def connect(self) -> grpc.Channel:
        return connect(self.target, self.tls, self.token)


def obtain_claim(
    prover: Remote, subject: Subject, *, progress: Report | None = None, timeout_s: float = TIMEOUT_S
) -> bytes:
    """Ask `prover` for a claim about `subject`: its bytes, for `verifier.check.check_claim`.

    The job belongs to the subject's context: with the same nonce, a later call goes on where this one was cut off.  A
    prover that cannot be reached gets TRIES; one that acknowledged the job, or is busy, gets until `timeout_s`.
    Ctrl-C cancels the job.  `progress` is called in another thread.

    Raises VerificationError `prover.refused` if it makes no proof, DecodingError if its messages are malformed,
    ParameterError if it calls ours malformed or does not let us in, ConnectionError if it cannot be reached, is busy or
    too slow.
    """
    calls = Calls()
    with prover.connect() as connection:
        client = _Client(pb_grpc.ProverStub(connection), calls, prover.target, subject, progress, timeout_s)
        try:
            return calls.run(client.claim)
        except KeyboardInterrupt:
            client.cancel()
            raise


def header(subject: Subject) -> pb.ProveHeader:
    """What is asked for, ahead of the model itself."""
    return pb.ProveHeader(
        vk_digest=subject.key.digest,
        context=subject.context.to_bytes(),
        derivation=subject.derivation.to_bytes(),
        model_size=len(subject.model),
        model_sha256=hashlib.sha256(subject.model).digest(),
    )


class Calls:
    """The calls of a conversation, one after the other, that Ctrl-C ends.

    They run in a thread of their own: an interrupt that is raised inside of gRPC can leave it waiting for ever.
    """

    def __init__(self) -> None:
        self.stopped = Event()
        self._call: grpc.RpcContext | None = None

    def run(self, conversation: Callable[[], T]) -> T:
        """The result of `conversation`, whose calls are all begun with `begin`."""
        with ThreadPoolExecutor(1) as thread:
            try:
                return thread.submit(conversation).result()
            finally:
                self.stopped.set()
                if self._call is not None:
                    self._call.cancel()

    def begin(self, call: C) -> C:
        """`call`, unless the conversation is over."""
        self._call = call
        if self.stopped.is_set():
            call.cancel()
        return call


class _Client:
    """One job.  `_job` is what is known of it, `_data` what there is of its claim with the digest `_sha256`."""

    def __init__(
        self, stub: pb_grpc.ProverStub, calls: Calls, target: str, subject: Subject, progress: Report | None,
        timeout_s: float,
    ) -> None:  # fmt: skip
        self._stub, self._calls = stub, calls
        self._target, self._subject, self._progress = target, subject, progress
        self._timeout_s, self._ends = timeout_s, time.monotonic() + timeout_s
        self._job: pb.Job | None = None
        self._sha256, self._data = b"", bytearray()
        self._tries = 0  # in vain, since the prover last said something
        self._begin = calls.begin

    def claim(self) -> bytes:
        """One step after the other; a step that fails is tried again while there is hope."""
        while True:
            try:
                if self._job is None:
                    self._note(self._begin(self._stub.Submit.future(self._upload(), timeout=self._left())).result())
                elif self._job.state not in ENDED:
                    self._follow(self._job.id)
                elif self._job.state == pb.Job.DONE:
                    return self._download(self._job)
                else:
                    raise _ended(self._job)
            except grpc.RpcError as error:
                if self._calls.stopped.is_set() or not self._hope(error.code()):
                    raise translate(error, self._target) from None
                if error.code() == Code.NOT_FOUND:
                    self._job = None  # it was forgotten: submit again
                self._wait(error)

    def cancel(self) -> None:
        if self._job is not None:
            with suppress(grpc.RpcError):
                self._stub.Cancel(pb.JobRequest(id=self._job.id), timeout=CANCEL_S)

    def _upload(self) -> Iterator[pb.SubmitRequest]:
        """A prover that has the job answers while this is read, which ends it."""
        yield pb.SubmitRequest(header=header(self._subject))
        model = self._subject.model
        for at in range(0, len(model), CHUNK):
            self._report("upload", at / len(model))
            yield pb.SubmitRequest(model_chunk=model[at : at + CHUNK])

    def _note(self, job: pb.Job) -> None:
        if len(job.id) != 32 or (self._job is not None and job.id != self._job.id) or job.state == pb.Job.UNKNOWN:
            raise DecodingError("prover: a malformed job")
        if job.state == pb.Job.DONE and not (0 < job.claim_size <= MAX_CLAIM_BYTES and len(job.claim_sha256) == 32):
            raise DecodingError("prover: a malformed or oversized claim")
        self._job = job
        if job.state == pb.Job.QUEUED:
            self._report(f"queue, {job.ahead} ahead" if job.ahead else "queue", 0.0)
        elif job.state not in ENDED:
            self._report(job.phase or "wait", job.fraction if 0 <= job.fraction <= 1 else 0.0)  # not a number: 0

    def _follow(self, job_id: bytes) -> None:
        """Until the job ends, or the connection does."""
        for job in self._begin(self._stub.Follow(pb.JobRequest(id=job_id), timeout=self._left())):
            self._note(job)
            self._tries = 0
        if self._job is None or self._job.state not in ENDED:
            raise DecodingError("prover: a job without an end")

    def _download(self, job: pb.Job) -> bytes:
        """The rest of the claim; what a broken connection left stays in `_data`."""
        if self._sha256 != job.claim_sha256:  # also after a prover who lost the claim has made another
            self._sha256, self._data = job.claim_sha256, bytearray()
        request = pb.DownloadRequest(id=job.id, offset=len(self._data))
        while len(self._data) < job.claim_size:
            before = len(self._data)
            for chunk in self._begin(self._stub.Download(request, timeout=self._left())):
                self._data += chunk.data
                self._tries = 0
                if not chunk.data or len(self._data) > job.claim_size:
                    raise DecodingError("prover: the claim is not as long as announced")
                self._report("download", len(self._data) / job.claim_size)
            if len(self._data) == before:
                raise DecodingError("prover: the claim is not as long as announced")
            request.offset = len(self._data)
        if hashlib.sha256(self._data).digest() != job.claim_sha256:
            raise DecodingError("prover: the claim is not the announced one")
        return bytes(self._data)

    def _hope(self, code: grpc.StatusCode) -> bool:
        """Whether to try again: one that is busy or has the job, while there is time; others a few times."""
        acknowledged = self._job is not None
        if code == Code.RESOURCE_EXHAUSTED or (code == Code.UNAVAILABLE and acknowledged):
            return True
        return (code in HOPEFUL or (code == Code.NOT_FOUND and acknowledged)) and self._tries + 1 < TRIES

    def _wait(self, error: grpc.RpcError) -> None:
        """Exponential backoff with jitter, so that many clients do not come back at once."""
        delay = random.uniform(0.5, 1) * min(LAST_DELAY_S, FIRST_DELAY_S * 2 ** min(self._tries, 16))
        self._tries += 1
        if delay >= self._left():
            raise translate(error, self._target, f" within {self._timeout_s:g} s")
        self._report(f"again after: {_words(error.code())}", 0.0)
        if self._calls.stopped.wait(delay):
            raise translate(error, self._target)

    def _left(self) -> float:
        return max(self._ends - time.monotonic(), 0.0)

    def _report(self, phase: str, fraction: float) -> None:
        if self._progress is not None:
            self._progress(printable(phase), fraction)


def _ended(job: pb.Job) -> Exception:
    """Of a job without a claim."""
    if job.state == pb.Job.CANCELLED:
        return ConnectionError("the prover cancelled the job")
    reason = printable(job.reason)
    return ParameterError(f"prover: {reason}") if job.malformed else VerificationError("prover.refused", reason)


def translate(error: grpc.RpcError, target: str, limit: str = "") -> Exception:
    """What a failed call means; `limit` says how long it was tried."""
    code, details = error.code(), printable(error.details() or "")
    if code == Code.FAILED_PRECONDITION:
        return VerificationError("prover.refused", details)
    if code == Code.INVALID_ARGUMENT:
        return ParameterError(f"the prover at {target} does not take this: {details}")
    if code in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED):
        return ParameterError(f"the prover at {target} does not let you in: {_words(code)}: {details}")
    return ConnectionError(f"no claim from the prover at {target}{limit}: {_words(code)}: {details}")


def _words(code: grpc.StatusCode) -> str:
    return code.name.lower().replace("_", " ")

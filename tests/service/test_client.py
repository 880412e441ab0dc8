"""The verifier's client of jobs against provers that lie, flood, stall, forget or break off."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from protocol.argument import Context
from protocol.claim import MAX_CLAIM_BYTES
from protocol.errors import DecodingError, ParameterError, VerificationError
from verifier import client
from verifier.check import Subject
from verifier.client import Remote, obtain_claim
from zkmark.terminal import MAX_TEXT, printable
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

Code = grpc.StatusCode
DATA = os.urandom(5000)
ID = bytes(range(32))
QUEUED = pb.Job(id=ID, state=pb.Job.QUEUED, ahead=3)
PROVING = pb.Job(id=ID, state=pb.Job.PROVING, phase="x", fraction=float("nan"))
LIMIT_S = 60  # far more than any of this takes


def done(data: bytes = DATA, **changed: Any) -> pb.Job:
    fields = {"id": ID, "claim_size": len(data), "claim_sha256": hashlib.sha256(data).digest()} | changed
    return pb.Job(state=pb.Job.DONE, **fields)


def failure(code: Code, *before: Any) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
    """Some answers, then an error."""

    def behavior(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from before
        context.abort(code, "\x1b[2Jgone\n" + 5000 * "x")

    return behavior


def chunks(data: bytes = DATA, size: int = 700, stop: int | None = None) -> Callable[..., Iterator[pb.ClaimChunk]]:
    def behavior(request: pb.DownloadRequest, context: grpc.ServicerContext) -> Iterator[pb.ClaimChunk]:
        for at in range(request.offset, len(data) if stop is None else stop, size):
            yield pb.ClaimChunk(data=data[at : at + size][: None if stop is None else stop - at])

    return behavior


class Script(pb_grpc.ProverServicer):
    """A prover that answers the calls of each method as its list says, the last entry again and again.

    An entry is a list of answers or a function of request and context; `calls` notes the requests.
    """

    def __init__(self, submit: list[Any], follow: list[Any] | None = None, download: list[Any] | None = None) -> None:
        self.steps = {"submit": submit, "follow": follow or [[done()]], "download": download or [chunks()]}
        self.calls: list[tuple[str, Any]] = []
        self.cancelled: list[bytes] = []
        self.following = threading.Event()

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def _answer(self, name: str, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        steps = self.steps[name]
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        yield from step(request, context) if callable(step) else step

    def Submit(self, request_iterator, context):
        first = next(request_iterator)
        self.calls.append(("submit", first.header))
        received = b"".join(message.model_chunk for message in request_iterator)
        assert len(received) == first.header.model_size
        assert hashlib.sha256(received).digest() == first.header.model_sha256
        return next(self._answer("submit", first.header, context))

    def Follow(self, request, context):
        self.calls.append(("follow", request.id))
        self.following.set()
        yield from self._answer("follow", request, context)

    def Download(self, request, context):
        self.calls.append(("download", request.offset))
        yield from self._answer("download", request, context)

    def Cancel(self, request, context):
        self.cancelled.append(request.id)
        return pb.Job(id=request.id, state=pb.Job.CANCELLED)


@contextmanager
def serving(script: Script, address: str = "127.0.0.1:0") -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    pb_grpc.add_ProverServicer_to_server(script, server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield address if address.startswith("unix:") else f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(LIMIT_S)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(client, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(client, "LAST_DELAY_S", 0.01)


@pytest.fixture
def suspect(world) -> Subject:
    return Subject(world.key.vk, world.marked, Context("", "", "", os.urandom(32)))


def ask(suspect: Subject, script: Script, timeout_s: float = LIMIT_S, **options: Any) -> bytes:
    with serving(script) as target:
        return obtain_claim(Remote(target), suspect, timeout_s=timeout_s, **options)


# --- what goes well


def test_an_orderly_job(world, suspect):
    seen: list[tuple[str, float]] = []
    script = Script([[QUEUED]], [[QUEUED, PROVING, done()]])
    assert ask(suspect, script, progress=lambda *step: seen.append(step)) == DATA
    assert script.names() == ["submit", "follow", "download"] and script.cancelled == []
    header = script.calls[0][1]
    assert (header.vk_digest, header.context) == (world.key.vk.digest, suspect.context.to_bytes())
    assert ("queue, 3 ahead", 0.0) in seen and ("x", 0.0) in seen and seen[-1] == ("download", 1.0)
    assert all(0 <= fraction <= 1 for _, fraction in seen)


def test_a_job_that_the_prover_has_is_not_uploaded(suspect):
    """It answers after the header, and what was not sent yet never is."""
    uploaded = []

    class Early(Script):
        def Submit(self, request_iterator, context):
            next(request_iterator)
            return done()

    large = replace(suspect, model=bytes(64 << 20))
    script = Early([[done()]])
    report = lambda phase, fraction: uploaded.append(fraction) if phase == "upload" else None  # noqa: E731
    assert ask(large, script, progress=report) == DATA
    assert len(uploaded) < 64 and script.names() == ["download"]


# --- what is tried again


def test_a_follower_comes_back(suspect):
    broken = failure(Code.UNAVAILABLE, PROVING)
    script = Script([[QUEUED]], [broken, failure(Code.UNAVAILABLE), broken, broken, [PROVING, done()]])
    assert ask(suspect, script) == DATA
    assert script.names() == ["submit"] + 5 * ["follow"] + ["download"]
    assert {request for name, request in script.calls if name == "follow"} == {ID}


def test_a_download_goes_on_where_it_broke(suspect):
    broken = [lambda *args: (yield from chunks(stop=2000)(*args)), failure(Code.UNAVAILABLE)]

    def half(request: pb.DownloadRequest, context: grpc.ServicerContext) -> Iterator[pb.ClaimChunk]:
        yield from chunks(stop=3333)(request, context)
        context.abort(Code.INTERNAL, "reset")

    script = Script([[done()]], download=[*broken, half, chunks()])
    assert ask(suspect, script) == DATA
    assert [offset for name, offset in script.calls if name == "download"] == [0, 2000, 2000, 3333]


def test_a_prover_that_forgot_the_job_is_asked_again(suspect):
    """Its new claim is another one: nothing of the old one is kept."""
    other = os.urandom(4000)

    def broken(request: pb.DownloadRequest, context: grpc.ServicerContext) -> Iterator[pb.ClaimChunk]:
        yield from chunks(stop=1400)(request, context)
        context.abort(Code.UNAVAILABLE, "stopped")

    script = Script([[done()], [QUEUED]], [[done(other)]], [broken, failure(Code.NOT_FOUND), chunks(other)])
    assert ask(suspect, script) == other
    assert [request for name, request in script.calls if name == "download"] == [0, 1400, 0]
    assert script.names().count("submit") == 2


def test_a_busy_prover_is_waited_for(suspect):
    busy = [failure(Code.RESOURCE_EXHAUSTED)] * (3 * client.TRIES)
    assert ask(suspect, Script([*busy, [done()]])) == DATA


def test_a_prover_that_has_the_job_is_waited_for(suspect):
    away = [failure(Code.UNAVAILABLE)] * (3 * client.TRIES)
    script = Script([[QUEUED]], [*away, [done()]])
    assert ask(suspect, script) == DATA


def test_a_prover_that_starts_again(suspect, tmp_path):
    """For real: the socket is gone for a while, and there is another process behind it afterwards."""
    address = f"unix:{tmp_path}/socket"
    wait = threading.Event()

    def stall(request: Any, context: grpc.ServicerContext) -> Iterator[pb.Job]:
        context.add_callback(wait.set)
        yield PROVING
        wait.wait(LIMIT_S)

    first, second = Script([[QUEUED]], [stall]), Script([failure(Code.INTERNAL)])
    with ThreadPoolExecutor(1) as pool:
        with serving(first, address):
            answer = pool.submit(obtain_claim, Remote(address), suspect, timeout_s=LIMIT_S)
            assert first.following.wait(LIMIT_S)
        with serving(second, address):
            assert answer.result(LIMIT_S) == DATA
    assert second.names()[0] == "follow"


@pytest.mark.parametrize(
    ("code", "error", "calls"),
    [
        (Code.INVALID_ARGUMENT, ParameterError, 1),
        (Code.UNAUTHENTICATED, ParameterError, 1),
        (Code.PERMISSION_DENIED, ParameterError, 1),
        (Code.FAILED_PRECONDITION, VerificationError, 1),
        (Code.UNIMPLEMENTED, ConnectionError, 1),
        (Code.NOT_FOUND, ConnectionError, 1),
        (Code.UNAVAILABLE, ConnectionError, client.TRIES),
        (Code.INTERNAL, ConnectionError, client.TRIES),
        (Code.ABORTED, ConnectionError, client.TRIES),
    ],
)
def test_what_is_hopeless(suspect, code, error, calls):
    """Errors are told apart, tried again or not, and their text is short and prints."""
    script = Script([failure(code)])
    with pytest.raises(error) as caught:
        ask(suspect, script)
    assert script.names() == calls * ["submit"]
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_prover_that_always_forgets(suspect):
    script = Script([[QUEUED]], [failure(Code.NOT_FOUND)])
    with pytest.raises(ConnectionError, match="not found"):
        ask(suspect, script)
    assert script.names().count("submit") == client.TRIES


def test_nobody_there(suspect):
    with pytest.raises(ConnectionError, match="unavailable"):
        obtain_claim(Remote("127.0.0.1:1"), suspect)
    with pytest.raises(ConnectionError):
        obtain_claim(Remote("no such host:port"), suspect)
    with pytest.raises(ConnectionError, match="token"):
        obtain_claim(Remote("192.0.2.1:443", token="secret"), suspect)


# --- what the prover does wrong


JOB = pb.Job(id=ID, state=pb.Job.PROVING)


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [PROVING],
        [pb.Job()],
        [pb.Job(id=ID)],
        [pb.Job(id=ID[1:], state=pb.Job.PROVING)],
        [pb.Job(id=bytes(32), state=pb.Job.PROVING)],
        [pb.Job(id=ID, state=99)],
        [done(claim_size=0)],
        [done(claim_size=MAX_CLAIM_BYTES + 1)],
        [done(claim_size=1 << 63)],
        [done(claim_sha256=b"short")],
    ],
)
def test_malformed_jobs(suspect, answers):
    with pytest.raises(DecodingError, match="prover: "):
        ask(suspect, Script([[QUEUED]], [answers]))


@pytest.mark.parametrize(
    "download",
    [
        [],
        [pb.ClaimChunk()],
        [pb.ClaimChunk(data=DATA + b"x")],
        [pb.ClaimChunk(data=bytes(len(DATA)))],
        [pb.ClaimChunk(data=DATA), pb.ClaimChunk(data=b"x")],
    ],
)
def test_malformed_claims(suspect, download):
    with pytest.raises(DecodingError, match="prover: "):
        ask(suspect, Script([[done()]], download=[download]))


@pytest.mark.reaches("prover.refused")
def test_jobs_without_a_claim(suspect):
    evil = "\x1b[2J" + 5000 * "x"
    with pytest.raises(VerificationError) as caught:
        ask(suspect, Script([[QUEUED]], [[pb.Job(id=ID, state=pb.Job.FAILED, reason=evil)]]))
    assert caught.value.check == "prover.refused" and "\x1b" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(ParameterError, match="no model"):
        ask(suspect, Script([[pb.Job(id=ID, state=pb.Job.FAILED, reason="no model", malformed=True)]]))
    with pytest.raises(ConnectionError, match="cancelled"):
        ask(suspect, Script([[pb.Job(id=ID, state=pb.Job.CANCELLED)]]))


@pytest.mark.parametrize("name", ["submit", "follow", "download"])
def test_a_prover_that_stalls(suspect, name):
    stop = threading.Event()

    def stall(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        stop.wait(LIMIT_S)
        yield pb.ClaimChunk(data=b"x") if name == "download" else QUEUED

    steps = {"submit": [[done() if name == "download" else QUEUED]], name: [stall]}
    script = Script(**steps)
    try:
        with serving(script) as target, pytest.raises(ConnectionError, match="deadline exceeded"):
            try:
                obtain_claim(Remote(target), suspect, timeout_s=1.0)
            finally:
                stop.set()
    finally:
        stop.set()


def test_a_prover_that_floods(suspect):
    """Progress without end stops at the deadline, a claim without end at the announced size."""

    def flood(answer: Any) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
        def behavior(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            while context.is_active():
                yield answer

        return behavior

    with pytest.raises(ConnectionError, match="deadline exceeded"):
        ask(suspect, Script([[QUEUED]], [flood(PROVING)]), timeout_s=1.0)
    with pytest.raises(DecodingError, match="as long as announced"):
        ask(suspect, Script([[done()]], download=[flood(pb.ClaimChunk(data=DATA))]))


# --- Ctrl-C


def test_an_interrupt_cancels_the_job(suspect):
    def interrupt(phase: str, fraction: float) -> None:
        if phase == "x":
            raise KeyboardInterrupt

    script = Script([[QUEUED]], [[PROVING, done()]])
    with pytest.raises(KeyboardInterrupt):
        ask(suspect, script, progress=interrupt)
    assert script.cancelled == [ID]


def test_a_command_that_is_interrupted(world):
    """In a process of its own: status 130, and the prover was told."""
    wait = threading.Event()

    def stall(request: Any, context: grpc.ServicerContext) -> Iterator[pb.Job]:
        context.add_callback(wait.set)
        yield PROVING
        wait.wait(LIMIT_S)

    script = Script([[QUEUED]], [stall])
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'proto'}"}
    with serving(script) as target:
        listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # whoever runs the tests
        words = [
            sys.executable, "-c", f"{listen}; from verifier.cli import main; main()", "verify", "--prover", target,
            "--vk", world.path("owner.vk"), "--model", world.path("marked.onnx"), "--without-fidelity", "--json",
        ]  # fmt: skip
        process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert script.following.wait(5 * LIMIT_S)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=5 * LIMIT_S)
    assert process.returncode == 130 and out == b"" and script.cancelled == [ID]


def test_delays_grow_and_differ(monkeypatch):
    monkeypatch.undo()  # the short delays of the other tests
    slept: list[float] = []
    calls = SimpleNamespace(begin=None, stopped=SimpleNamespace(wait=slept.append))
    one = client._Client(None, calls, "x:1", None, None, 1e9)
    error = SimpleNamespace(code=lambda: Code.UNAVAILABLE, details=lambda: "")
    for _ in range(40):
        one._wait(error)
    assert 0.5 * client.FIRST_DELAY_S <= slept[0] <= client.FIRST_DELAY_S
    assert all(0.5 * client.LAST_DELAY_S <= delay <= client.LAST_DELAY_S for delay in slept[8:])
    assert len(set(slept)) == len(slept)


def test_a_token_is_not_shown():
    assert "secret" not in repr(Remote("x:1", token="secret"))


def test_text_of_strangers_is_printable():
    assert printable("a\x00\x1b[31mb\n\u202ec") == "a??[31mb??c"
    assert len(printable("x" * 10_000)) == MAX_TEXT

"""The interactive channel of the prover's server on port 0, and clients that behave badly in it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from ml.quantise import Derivation
from protocol.argument import Cancelled, Statement, verify
from protocol.claim import Claim
from protocol.errors import DecodingError, Restart, VerificationError
from protocol.transcript import InteractiveVerifier
from prover.jobs import REFUSAL, Prover, approve, subject
from prover.queue import Quota
from prover.requests import Requests
from prover.session import Session
from tests.service.serving import PLAIN, QUICK, SECRET, WAIT_S, Gate, asking, calling, context, failure, header, running
from zkmark.v1 import zkmark_pb2 as pb

Code = grpc.StatusCode
TOO_LONG = "the client or the job took too long"  # said by the server, not by the client's own clock


@pytest.fixture
def prover(approved_file: Path) -> Prover:
    return Prover(approved_file, SECRET)


@pytest.fixture
def gate(prover, monkeypatch) -> Gate:
    found = Gate()
    monkeypatch.setattr(prover, "claim", found)
    return found


def requests(world, model: bytes, size: int = 1 << 20, **changes: object) -> list[pb.ProveRequest]:
    return asking(pb.ProveRequest, header(world, model, **changes), model, size)


def coins(number: int) -> list[pb.ProveRequest]:
    return [pb.ProveRequest(coin=os.urandom(32)) for _ in range(number)]


def silent(first: list[pb.ProveRequest], stop: threading.Event) -> Iterator[pb.ProveRequest]:
    yield from first
    stop.wait(600)


def status(target: str, sent: Iterator[pb.ProveRequest]) -> tuple[grpc.StatusCode, str]:
    """Run one call to its end."""
    with calling(target) as stub:
        return failure(lambda: list(stub.Prove(sent, timeout=600)))


def obtain(world, target: str, message: pb.ProveHeader | None = None) -> tuple[bytes, InteractiveVerifier]:
    """A claim, and the channel that it convinces."""
    channel, answers, ready = InteractiveVerifier(os.urandom), [], threading.Condition()
    sent = asking(pb.ProveRequest, message or header(world, world.marked), world.marked)

    def ask() -> Iterator[pb.ProveRequest]:
        yield from sent
        while True:
            with ready:
                assert ready.wait_for(lambda: answers, WAIT_S)
                coin = answers.pop(0)
            if coin is None:
                return
            yield pb.ProveRequest(coin=coin)

    claim = b""
    with calling(target) as stub:
        for event in stub.Prove(ask(), timeout=600):
            if event.WhichOneof("event") in ("pending", "done"):
                with ready:
                    answers.append(channel.answer(event.pending) if event.pending else None)
                    ready.notify()
            claim += event.claim_chunk
    return claim, channel


def patiently(world, target: str) -> None:
    """A claim from a server whose limits are so short that a busy machine may need several tries."""
    for _ in range(60):
        try:
            obtain(world, target)
            return
        except grpc.RpcError:
            time.sleep(0.5)
    raise AssertionError("the server does not serve")


def test_a_claim_in_a_session(world, prover):
    asked = context()
    with running(prover) as target:
        data, channel = obtain(world, target, header(world, world.marked, context=asked.to_bytes()))
    claim = Claim.from_bytes(data)
    about = subject(world.marked, PLAIN, None, world.key.vk)
    statement = Statement(
        world.key.vk, about.network, claim.k_min, asked, about.model_digest, about.derivation_digest
    )
    assert verify(statement, claim.proof, channel).bits >= 120
    assert not list((prover.state.folder / "uploads").iterdir())


def test_refusals_tell_nothing(world, approved_file, prover):
    answers = set()
    with running(prover) as target:
        for _ in range(2):
            answers.add(status(target, iter(requests(world, world.other))))
            with pytest.raises(VerificationError):
                approve(approved_file, SECRET, subject(world.other, PLAIN, None, world.key.vk))
    assert answers == {(Code.FAILED_PRECONDITION, REFUSAL)}
    assert [request.times for request in Requests(prover.state).all()] == [2]


def test_k_min_is_not_the_clients(world, prover):
    """No request field names a k_min; one that a client smuggles in as an unknown field changes nothing."""
    kinds = (pb.ProveHeader, pb.ProveRequest, pb.SubmitRequest, pb.JobRequest, pb.DownloadRequest)
    assert not any("min" in field.name for kind in kinds for field in kind.DESCRIPTOR.fields)
    smuggled = header(world, world.marked).SerializeToString() + bytes([9 << 3, 3])  # field 9 = 3
    with running(prover) as target:
        claim = Claim.from_bytes(obtain(world, target, pb.ProveHeader.FromString(smuggled))[0])
    assert claim.k_min == prover._approvals.k_min[subject(world.marked, PLAIN, None, world.key.vk).network.digest]


def malformed(world) -> dict[str, list[pb.ProveRequest]]:
    model = world.marked
    head, *chunks = requests(world, model)
    return {
        "no header": chunks, "empty request": [pb.ProveRequest()], "two headers": [head, head],
        "coin instead of model": [head, pb.ProveRequest(coin=bytes(32))],
        "another key": requests(world, model, vk_digest=bytes(32)),
        "another claimant": requests(world, model, context=context("a thief").to_bytes()),
        "another model": requests(world, model, model_sha256=bytes(32)),
        "more than announced": requests(world, model, model_size=100),
        "empty chunk": [head, pb.ProveRequest(model_chunk=b"")],
        "junk model": requests(world, b"junk"), "truncated model": requests(world, model[:-9]),
        "calibration it lacks": requests(world, model, derivation=Derivation(calibration=bytes(32)).to_bytes()),
        "a short coin": [*requests(world, model), pb.ProveRequest(coin=b"short")],
        "a header instead of a coin": [*requests(world, model), head],
    }  # fmt: skip


def test_malformed_requests(world, prover):
    with running(prover) as target:
        for name, sent in malformed(world).items():
            code, details = status(target, iter(sent))
            assert code == Code.INVALID_ARGUMENT, (name, code, details)
        obtain(world, target)  # it still serves


def test_bytes_that_are_no_message(world, prover):
    with running(prover) as target, grpc.insecure_channel(target) as channel:
        raw = channel.stream_stream("/zkmark.v1.Prover/Prove")
        assert failure(lambda: list(raw(iter([b"\xff\xff\xff"]), timeout=WAIT_S)))[0] == Code.INVALID_ARGUMENT
        assert failure(lambda: list(raw(iter([bytes(5 << 20)]), timeout=WAIT_S)))[0] == Code.RESOURCE_EXHAUSTED


def test_a_client_that_falls_silent(world, prover):
    """In the header, in the upload, and with a coin: each is given up, and the worker is free for others."""
    stop = threading.Event()
    sent = requests(world, world.marked)
    with running(prover, replace(QUICK, message_s=1.0)) as target:
        for first in ([], sent[:1], sent):
            assert status(target, silent(first, stop))[0] == Code.DEADLINE_EXCEEDED
        patiently(world, target)
    stop.set()


def test_a_client_that_is_slow_with_every_coin(world, prover):
    """Each coin is in time, all of them are not: the worker is not held longer than `coins_s`."""

    def slowly() -> Iterator[pb.ProveRequest]:
        yield from requests(world, world.marked)
        while True:
            time.sleep(0.3)
            yield from coins(1)

    with running(prover, replace(QUICK, coins_s=1.0)) as target:
        assert status(target, slowly()) == (Code.DEADLINE_EXCEEDED, TOO_LONG)


def test_a_rejected_session_asks_for_another(world, prover, monkeypatch):
    def claim(*_: object, **__: object) -> bytes:
        raise Restart

    monkeypatch.setattr(prover, "claim", claim)
    with running(prover) as target:
        assert status(target, iter(requests(world, world.marked)))[0] == Code.ABORTED


def test_a_client_that_leaves_in_mid_proof(world, prover, monkeypatch):
    """After some coins of a real proof: the proof is cancelled and the worker free at once, not after `message_s`."""
    failed: list[type[BaseException]] = []
    real, done, stop = prover.claim, threading.Event(), threading.Event()

    def claim(*args, **kwargs) -> bytes:
        try:
            return real(*args, **kwargs)
        except BaseException as error:
            failed.append(type(error))
            raise
        finally:
            done.set()

    monkeypatch.setattr(prover, "claim", claim)
    with running(prover, replace(QUICK, message_s=600.0)) as target:
        with calling(target) as stub:
            call = stub.Prove(silent([*requests(world, world.marked), *coins(20)], stop), timeout=600)
            pending = (e for e in call if e.WhichOneof("event") == "pending")
            assert len({next(pending).pending for _ in range(21)}) == 21
            call.cancel()
        assert done.wait(WAIT_S) and failed[0] in (Cancelled, DecodingError)  # whichever notices first
        obtain(world, target)
    stop.set()


def test_deadlines_stop_a_session(world, prover, gate):
    with running(prover, replace(QUICK, proof_s=0.5)) as target:
        assert status(target, iter(requests(world, world.marked))) == (Code.DEADLINE_EXCEEDED, TOO_LONG)
    assert gate.cancelled.is_set() or not gate.begun.is_set()


def test_sessions_and_jobs_take_turns(world, prover, monkeypatch):
    """There is one worker; a session waits for the job that is being done, not for those behind it."""
    gate, order = Gate(), []

    def claim(model, digest, derivation, asked, channel, *, progress, cancelled) -> bytes:
        order.append("session" if channel.interactive else "job")
        return gate(progress=progress, cancelled=cancelled)

    monkeypatch.setattr(prover, "claim", claim)
    with running(prover) as target, calling(target) as stub:
        for _ in range(3):
            sent = asking(pb.SubmitRequest, header(world, world.marked), world.marked)
            job = stub.Submit(iter(sent), timeout=WAIT_S)
        assert gate.begun.wait(WAIT_S)
        call = stub.Prove(iter(requests(world, world.marked)), timeout=WAIT_S)
        assert next(call).WhichOneof("event") == "queued"
        gate.open.set()
        assert b"".join(event.claim_chunk for event in call) == b"a claim"
        for _ in stub.Follow(pb.JobRequest(id=job.id), timeout=WAIT_S):
            pass
    assert order == ["job", "session", "job", "job"]


def test_sessions_of_clients_who_left_are_counted(world, prover, monkeypatch):
    """Uploading, waiting for a place in the queue and hanging up, again and again, does not fill the memory."""
    began, done = threading.Event(), threading.Event()

    def claim(*_: object, **__: object) -> bytes:
        began.set()
        done.wait(WAIT_S)
        return b"done"

    monkeypatch.setattr(prover, "claim", claim)
    sent = requests(world, world.marked)
    with running(prover, replace(QUICK, waiting=2)) as target, calling(target) as stub:
        try:
            for _ in range(3):
                call = stub.Prove(iter(sent), timeout=WAIT_S)
                assert next(call).WhichOneof("event") == "queued"
                assert began.wait(WAIT_S)  # the first: one that left before would be gone at once
                call.cancel()
            assert status(target, iter(sent))[0] == Code.RESOURCE_EXHAUSTED
        finally:
            done.set()


def test_more_clients_than_may_wait(world, prover, gate):
    sent = requests(world, world.marked)
    with running(prover, replace(QUICK, waiting=1)) as target, calling(target) as stub:
        calls = []
        for _ in range(2):
            calls.append(stub.Prove(iter(sent), timeout=600))
            assert next(calls[-1]).WhichOneof("event") == "queued"
        assert status(target, iter(sent))[0] == Code.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()


def test_a_session_counts_while_it_uploads(world, prover, gate):
    stop, sent = threading.Event(), requests(world, world.marked)
    with running(prover, replace(QUICK, quota=Quota(per_client=1))) as target, calling(target) as stub:
        call = stub.Prove(silent(sent, stop), timeout=600)
        assert next(call).WhichOneof("event") == "queued"
        assert status(target, iter(sent))[0] == Code.RESOURCE_EXHAUSTED
        call.cancel()
    stop.set()


def test_a_reader_that_reads_nothing(world, prover, monkeypatch):
    """It holds its own answer for a limited time, not the worker."""
    begun, left, real, gate = threading.Event(), threading.Event(), Session.send, Gate(bytes(60 << 20))

    async def send(*args) -> None:
        begun.set()
        try:
            await real(*args)
        finally:
            left.set()

    gate.open.set()
    monkeypatch.setattr(prover, "claim", gate)
    monkeypatch.setattr(Session, "send", send)
    with running(prover, replace(QUICK, message_s=2.0)) as target, calling(target) as stub:
        while not begun.is_set():  # it has two seconds for its upload
            call = stub.Prove(iter(requests(world, world.marked)), timeout=600)
            begun.wait(10)
        monkeypatch.undo()
        patiently(world, target)
        assert left.wait(WAIT_S)
        assert failure(lambda: list(call))[0] == Code.DEADLINE_EXCEEDED


def test_an_unforeseen_error_says_nothing(world, prover, monkeypatch, caplog):
    def claim(*_: object, **__: object) -> bytes:
        raise KeyError("the secret share is 7")

    monkeypatch.setattr(prover, "claim", claim)
    with running(prover) as target:
        assert status(target, iter(requests(world, world.marked))) == (Code.INTERNAL, "internal error")
    assert "KeyError" in caplog.text and "share is 7" not in caplog.text


def test_stopping_cancels_what_does_not_end(world, prover, gate):
    with running(prover, replace(QUICK, grace_s=0.5)) as target, calling(target) as stub:
        call = stub.Prove(iter(requests(world, world.marked)), timeout=600)
        assert next(call).WhichOneof("event") == "queued"
    assert gate.cancelled.is_set() or not gate.begun.is_set()

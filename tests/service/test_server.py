"""The prover's gRPC service on port 0, and clients that behave badly."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ml.quantise import Derivation
from protocol.argument import Cancelled, Context
from protocol.claim import Claim
from protocol.errors import DecodingError, ParameterError, Restart, VerificationError
from prover import server
from prover.jobs import REFUSAL, Prover, approve, subject
from prover.server import Limits, Server
from verifier.client import obtain_claim
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

SECRET = b"correct horse battery staple"  # as in conftest.py
PLAIN = Derivation()
QUICK = Limits(grace_s=2.0)
TOO_LONG = "the client or the job took too long"  # said by the server, not by the client's own clock


@contextmanager
def running(prover: Prover, limits: Limits = QUICK) -> Iterator[str]:
    """A server in a thread of its own: yields HOST:PORT."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Server:
        made = Server(prover, "127.0.0.1:0", limits)
        await made.start()
        return made

    started = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    try:
        yield f"127.0.0.1:{started.port}"
    finally:
        asyncio.run_coroutine_threadsafe(started.stop(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        assert not thread.is_alive()
        loop.close()


@contextmanager
def calling(target: str) -> Iterator[pb_grpc.ProverStub]:
    with grpc.insecure_channel(target) as channel:
        yield pb_grpc.ProverStub(channel)


def context(claimant: str = "") -> Context:
    return Context("test", claimant, "", os.urandom(32))


def header(world, model: bytes, **changes: object) -> pb.ProveRequest:
    fields = {
        "vk_digest": world.key.vk.digest, "context": context().to_bytes(), "derivation": PLAIN.to_bytes(),
        "model_size": len(model), "interactive": False,
    }  # fmt: skip
    return pb.ProveRequest(header=pb.ProveHeader(**{**fields, **changes}))


def chunks(model: bytes, size: int = 4000) -> list[pb.ProveRequest]:
    return [pb.ProveRequest(model_chunk=model[at : at + size]) for at in range(0, len(model), size)]


def status(target: str, requests: Iterator[pb.ProveRequest], timeout: float = 60) -> tuple[grpc.StatusCode, str]:
    """Run one call to its end."""
    with calling(target) as stub:
        try:
            for _ in stub.Prove(requests, timeout=timeout):
                pass
        except grpc.RpcError as error:
            return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def slow_claim(step: float, steps: int = 200) -> Callable[..., bytes]:
    """A job that reports, looks whether it is cancelled, and otherwise takes step * steps seconds."""

    def claim(model, derivation, context, channel, *, progress, cancelled) -> bytes:
        for n in range(steps):
            if cancelled():
                raise Cancelled
            progress("slow", n / steps)
            time.sleep(step)
        return b"done"

    return claim


def patiently(world, target: str) -> None:
    """A claim from a server whose limits are so short that a busy machine may need several tries."""
    for _ in range(60):
        try:
            obtain_claim(target, world.key.vk, world.marked, PLAIN, context())
            return
        except ConnectionError:
            time.sleep(0.5)
    raise AssertionError("the server does not serve")


@pytest.fixture
def prover(approved_file: Path) -> Prover:
    return Prover(approved_file, SECRET)


def test_key_and_health(world, prover):
    with running(prover) as target, grpc.insecure_channel(target) as channel:
        data = b"".join(c.data for c in pb_grpc.ProverStub(channel).Key(pb.KeyRequest(), timeout=60))
        assert data == world.key.vk.to_bytes()
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "zkmark.v1.Prover"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("interactive", [False, True])
def test_a_claim_over_grpc(world, prover, interactive):
    phases: list[str] = []
    asked = context()
    with running(prover) as target:
        data, channel = obtain_claim(
            target, world.key.vk, world.marked, PLAIN, asked, interactive, progress=lambda name, _: phases.append(name)
        )
    claim = Claim.from_bytes(data)
    assert claim.context == asked
    assert phases
    from protocol.argument import Statement, verify

    about = subject(world.marked, PLAIN, None, world.key.vk)
    statement = Statement(
        world.key.vk, about.network, claim.k_min, asked, about.model_digest, about.derivation_digest
    )
    ledger = verify(statement, claim.proof, channel)
    assert ledger.bits >= 120


def test_a_function_preserving_copy_is_proven(world, prover):
    with running(prover) as target:
        obtain_claim(target, world.key.vk, world.copy, PLAIN, context())


def test_refusals_tell_nothing(world, approved_file, prover):
    """A network that was never approved, and one that was approved in vain, and the exact same answer."""
    answers = set()
    with running(prover) as target:
        for _ in range(2):
            answers.add(status(target, iter([header(world, world.other), *chunks(world.other)])))
            with pytest.raises(VerificationError):
                approve(approved_file, SECRET, subject(world.other, PLAIN, None, world.key.vk))
    assert answers == {(grpc.StatusCode.FAILED_PRECONDITION, REFUSAL)}


def test_k_min_is_not_the_clients(world, prover):
    """No request field names a k_min; one that a client smuggles in as an unknown field changes nothing."""
    names = {f.name for m in (pb.ProveHeader, pb.ProveRequest) for f in m.DESCRIPTOR.fields}
    assert not any("min" in name for name in names)
    smuggled = header(world, world.marked).header.SerializeToString() + bytes([9 << 3, 3])  # field 9 = 3
    request = pb.ProveRequest(header=pb.ProveHeader.FromString(smuggled))
    with running(prover) as target, calling(target) as stub:
        events = list(stub.Prove(iter([request, *chunks(world.marked)]), timeout=120))
    claim = Claim.from_bytes(b"".join(e.claim_chunk for e in events))
    assert claim.k_min == prover._approvals.k_min[subject(world.marked, PLAIN, None, world.key.vk).network.digest]


def malformed(world) -> dict[str, list[pb.ProveRequest]]:
    model = world.marked
    return {
        "no header": chunks(model),
        "empty request": [pb.ProveRequest()],
        "two headers": [header(world, model), header(world, model)],
        "coin instead of model": [header(world, model), pb.ProveRequest(coin=bytes(32))],
        "another key": [header(world, model, vk_digest=bytes(32))],
        "bad context": [header(world, model, context=b"junk")],
        "long purpose": [header(world, model, context=context().to_bytes() + bytes(300))],
        "another claimant": [header(world, model, context=context("a thief").to_bytes())],
        "bad derivation": [header(world, model, derivation=b"junk")],
        "huge derivation": [header(world, model, derivation=PLAIN.to_bytes()[:20] + b"\xff" * 8)],
        "no size": [header(world, model, model_size=0)],
        "huge size": [header(world, model, model_size=1 << 63)],
        "over the cap": [header(world, model, model_size=(256 << 20) + 1)],
        "more than announced": [header(world, model, model_size=100), *chunks(model)],
        "empty chunk": [header(world, model), pb.ProveRequest(model_chunk=b"")],
        "junk model": [header(world, b"junk"), *chunks(b"junk")],
        "truncated model": [header(world, model[:-9]), *chunks(model[:-9])],
        "calibration it lacks": [header(world, model, derivation=Derivation(calibration=bytes(32)).to_bytes()),
                                 *chunks(model)],
    }  # fmt: skip


def test_malformed_requests(world, prover):
    with running(prover) as target:
        for name, requests in malformed(world).items():
            code, details = status(target, iter(requests))
            assert code == grpc.StatusCode.INVALID_ARGUMENT, (name, code, details)
        obtain_claim(target, world.key.vk, world.marked, PLAIN, context())  # it still serves


def test_bytes_that_are_no_message(world, prover):
    with running(prover) as target, grpc.insecure_channel(target) as channel:
        raw = channel.stream_stream("/zkmark.v1.Prover/Prove")
        with pytest.raises(grpc.RpcError) as caught:
            list(raw(iter([b"\xff\xff\xff"]), timeout=60))
        assert caught.value.code() != grpc.StatusCode.OK
        big = channel.stream_stream("/zkmark.v1.Prover/Prove")
        with pytest.raises(grpc.RpcError) as caught:
            list(big(iter([bytes(5 << 20)]), timeout=60))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        obtain_claim(target, world.key.vk, world.marked, PLAIN, context())


def test_an_upload_cap_of_the_owner(world, prover):
    with running(prover, replace(QUICK, upload=len(world.marked) - 1)) as target:
        with pytest.raises(ParameterError, match="1 to"):
            obtain_claim(target, world.key.vk, world.marked, PLAIN, context())


def silent(first: list[pb.ProveRequest], stop: threading.Event) -> Iterator[pb.ProveRequest]:
    yield from first
    stop.wait(600)


def test_a_client_that_falls_silent(world, prover):
    """In the header, in the upload, and with a coin: each is given up, and the worker is free for others."""
    stop = threading.Event()
    with running(prover, replace(QUICK, message_s=1.0)) as target:
        for first in ([], [header(world, world.marked)], [header(world, world.marked, interactive=True),
                                                          *chunks(world.marked)]):  # fmt: skip
            code, _ = status(target, silent(first, stop))
            assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        patiently(world, target)
    stop.set()


def test_an_upload_that_trickles(world, prover):
    def trickle() -> Iterator[pb.ProveRequest]:
        yield header(world, world.marked)
        for chunk in chunks(world.marked, 1):
            yield chunk
            time.sleep(0.2)

    with running(prover, replace(QUICK, upload_s=1.5)) as target:
        assert status(target, trickle(), timeout=600) == (grpc.StatusCode.DEADLINE_EXCEEDED, TOO_LONG)


def test_a_coin_of_the_wrong_size(world, prover):
    def requests() -> Iterator[pb.ProveRequest]:
        yield header(world, world.marked, interactive=True)
        yield from chunks(world.marked)
        yield pb.ProveRequest(coin=b"short")

    with running(prover) as target:
        assert status(target, requests())[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_a_rejected_session_begins_again(world, prover, monkeypatch):
    real, tries = prover.claim, []

    def claim(*args, **kwargs) -> bytes:
        tries.append(1)
        if len(tries) < 3:
            raise Restart
        return real(*args, **kwargs)

    monkeypatch.setattr(prover, "claim", claim)
    with running(prover) as target:
        obtain_claim(target, world.key.vk, world.marked, PLAIN, context(), interactive=True)
    assert len(tries) == 3


def test_a_client_that_is_slow_with_every_coin(world, prover):
    """Each coin is in time, all of them are not: the worker is not held longer than `coins_s`."""

    def requests() -> Iterator[pb.ProveRequest]:
        yield header(world, world.marked, interactive=True)
        yield from chunks(world.marked)
        while True:
            time.sleep(0.3)
            yield pb.ProveRequest(coin=os.urandom(32))

    with running(prover, replace(QUICK, coins_s=1.0)) as target:
        assert status(target, requests(), timeout=600) == (grpc.StatusCode.DEADLINE_EXCEEDED, TOO_LONG)


def test_a_dropped_client_cancels_its_job(world, prover, monkeypatch):
    ended = threading.Event()
    slow = slow_claim(0.05, 10_000)

    def claim(*args, **kwargs) -> bytes:
        try:
            return slow(*args, **kwargs)
        finally:
            ended.set()

    monkeypatch.setattr(prover, "claim", claim)
    with running(prover) as target:
        with calling(target) as stub:
            call = stub.Prove(iter([header(world, world.marked), *chunks(world.marked)]), timeout=60)
            assert any(e.WhichOneof("event") == "progress" for e in call)
            call.cancel()
        assert ended.wait(60)


def test_a_client_that_leaves_in_mid_proof(world, prover, monkeypatch):
    """After some coins of a real proof: the proof is cancelled and the worker free at once, not after `message_s`."""
    ended: list[type[BaseException]] = []
    real, done, stop = prover.claim, threading.Event(), threading.Event()

    def claim(*args, **kwargs) -> bytes:
        try:
            return real(*args, **kwargs)
        except BaseException as error:
            ended.append(type(error))
            raise
        finally:
            done.set()

    monkeypatch.setattr(prover, "claim", claim)
    requests = [header(world, world.marked, interactive=True), *chunks(world.marked)]
    requests += [pb.ProveRequest(coin=os.urandom(32)) for _ in range(20)]
    with running(prover, replace(QUICK, message_s=600.0)) as target:
        with calling(target) as stub:
            call = stub.Prove(silent(requests, stop), timeout=600)
            pending = (e for e in call if e.WhichOneof("event") == "pending")
            assert len({next(pending).pending for _ in range(21)}) == 21
            call.cancel()
        assert done.wait(60) and ended[0] in (Cancelled, DecodingError)  # whichever notices first
        obtain_claim(target, world.key.vk, world.marked, PLAIN, context())
    stop.set()


def test_deadlines_stop_a_job(world, prover, monkeypatch):
    monkeypatch.setattr(prover, "claim", slow_claim(0.05))
    requests = [header(world, world.marked), *chunks(world.marked)]
    with running(prover, replace(QUICK, proof_s=0.5)) as target:
        assert status(target, iter(requests))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    with running(prover) as target:
        assert status(target, iter(requests), timeout=0.5)[0] == grpc.StatusCode.DEADLINE_EXCEEDED


def test_two_jobs_at_once(world, prover, monkeypatch):
    """One is proven, the other waits for it; both are answered."""
    active, most, lock = [0], [0], threading.Lock()
    real = prover.claim

    def claim(*args, **kwargs) -> bytes:
        with lock:
            active[0] += 1
            most[0] = max(most[0], active[0])
        time.sleep(0.3)
        try:
            return real(*args, **kwargs)
        finally:
            active[0] -= 1

    monkeypatch.setattr(prover, "claim", claim)
    results: list[bytes] = []
    with running(prover) as target:

        def ask() -> None:
            results.append(obtain_claim(target, world.key.vk, world.marked, PLAIN, context())[0])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(results)) == 3 and most[0] == 1


def test_jobs_of_clients_who_left_are_counted(world, prover, monkeypatch):
    """Uploading, waiting for a place in the queue and hanging up, again and again, does not fill the memory."""
    done = threading.Event()
    monkeypatch.setattr(prover, "claim", lambda *_, **__: done.wait(60) and b"done")
    requests = [header(world, world.marked), *chunks(world.marked)]
    try:
        with running(prover, replace(QUICK, waiting=2)) as target, calling(target) as stub:
            for _ in range(3):
                call = stub.Prove(iter(requests), timeout=60)
                assert next(call).WhichOneof("event") == "queued"
                call.cancel()
            assert status(target, iter(requests))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
            done.set()
    finally:
        done.set()


def test_a_header_has_its_size(world, prover):
    long = header(world, world.marked)
    long.header.MergeFromString(b"\xa2\x1f\x80\x80\x04" + bytes(1 << 16))  # an unknown field of 64 KiB
    with running(prover) as target:
        code, details = status(target, iter([long]))
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "request: the header is too long")


def test_health_is_asked_for_not_watched(prover):
    with running(prover) as target, grpc.insecure_channel(target) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            next(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60))
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_more_clients_than_may_wait(world, prover, monkeypatch):
    monkeypatch.setattr(prover, "claim", slow_claim(0.05, 10_000))
    requests = [header(world, world.marked), *chunks(world.marked)]
    with running(prover, replace(QUICK, waiting=1)) as target, calling(target) as stub:
        calls = []
        for _ in range(2):
            calls.append(stub.Prove(iter(requests), timeout=600))
            assert next(calls[-1]).WhichOneof("event") == "queued"
        assert status(target, iter(requests))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()


def test_a_reader_that_reads_nothing(world, prover, monkeypatch):
    """It holds its own answer for a limited time, not the worker."""
    begun, left, real = threading.Event(), threading.Event(), server.send

    async def send(*args) -> None:
        begun.set()
        try:
            await real(*args)
        finally:
            left.set()

    monkeypatch.setattr(prover, "claim", lambda *_, **__: bytes(60 << 20))
    monkeypatch.setattr(server, "send", send)
    requests = [header(world, world.marked), *chunks(world.marked)]
    with running(prover, replace(QUICK, message_s=1.0)) as target, calling(target) as stub:
        call = stub.Prove(iter(requests), timeout=600)
        assert begun.wait(60)
        monkeypatch.undo()
        patiently(world, target)
        assert left.wait(60)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_an_unforeseen_error_says_nothing(world, prover, monkeypatch, caplog):
    def claim(*_: object, **__: object) -> bytes:
        raise KeyError("the secret share is 7")

    monkeypatch.setattr(prover, "claim", claim)
    caplog.set_level(logging.DEBUG)
    with running(prover) as target:
        code, details = status(target, iter([header(world, world.marked), *chunks(world.marked)]))
    assert (code, details) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "KeyError" in caplog.text
    assert "share is 7" not in caplog.text


def test_logs_hold_no_secret(world, prover, caplog):
    caplog.set_level(logging.DEBUG)
    with running(prover) as target:
        obtain_claim(target, world.key.vk, world.marked, PLAIN, context())
        status(target, iter([header(world, world.other), *chunks(world.other)]))
    for secret in (SECRET.decode(), world.key.owner_secret_seed.hex(), str(world.key.trigger_randomness[0])):
        assert secret not in caplog.text


def test_stopping_cancels_what_does_not_end(world, prover, monkeypatch):
    monkeypatch.setattr(prover, "claim", slow_claim(0.05, 10_000))
    with running(prover, replace(QUICK, grace_s=0.5)) as target, calling(target) as stub:
        call = stub.Prove(iter([header(world, world.marked), *chunks(world.marked)]), timeout=60)
        assert next(call).WhichOneof("event") == "queued"


def test_a_restart_forgets_no_approval(world, approved_file, prover):
    with running(prover) as target:
        obtain_claim(target, world.key.vk, world.marked, PLAIN, context())
    with running(Prover(approved_file, SECRET)) as target:
        obtain_claim(target, world.key.vk, world.marked, PLAIN, context())


def test_a_taken_address_is_misuse(prover):
    with running(prover) as target:

        async def second() -> None:
            Server(prover, target)

        with pytest.raises(ParameterError, match="cannot listen"):
            asyncio.run(second())

"""The verifier's end of the interactive channel against provers that lie, flood, stall or break off."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import grpc
import pytest

from protocol.argument import Context
from protocol.claim import MAX_CLAIM_BYTES
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.soundness import SESSIONS
from protocol.transcript import InteractiveVerifier
from verifier import interactive
from verifier.check import Subject
from verifier.client import Remote
from verifier.interactive import obtain_interactively
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

Behavior = Callable[[Iterator[pb.ProveRequest], grpc.ServicerContext], Iterator[pb.ProveEvent]]
DATA = b"not really a claim"


@contextmanager
def prover(behavior: Behavior) -> Iterator[str]:
    class Servicer(pb_grpc.ProverServicer):
        def Prove(self, request_iterator, context):
            yield from behavior(request_iterator, context)

    server = grpc.server(ThreadPoolExecutor(2))
    pb_grpc.add_ProverServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(20)


def ask(world, target: str, timeout_s: float = 60) -> bytes:
    subject = Subject(world.key.vk, world.marked, Context("", "", "", os.urandom(32)))
    return obtain_interactively(Remote(target), subject, timeout_s=timeout_s)[0]


def announce(size: int = len(DATA), data: bytes = DATA) -> pb.ProveEvent:
    return pb.ProveEvent(claim=pb.ClaimHeader(size=size, sha256=hashlib.sha256(data).digest()))


CHUNK = pb.ProveEvent(claim_chunk=DATA)
MAX_COINS = 40
DONE = pb.ProveEvent(done=pb.Done())
PENDING = pb.ProveEvent(pending=bytes(32))
QUEUED = pb.ProveEvent(queued=pb.Queued(ahead=3))
STEP = pb.ProveEvent(progress=pb.Progress(phase="x", fraction=float("nan")))


def test_an_orderly_answer(world):
    with prover(lambda requests, _: iter([QUEUED, STEP, announce(), CHUNK, DONE])) as target:
        assert ask(world, target) == DATA


@pytest.mark.parametrize(
    "events",
    [
        [],
        [DONE],
        [CHUNK],
        [pb.ProveEvent()],
        [announce(), announce()],
        [announce(), DONE],
        [announce()],
        [announce(), CHUNK],
        [announce(), CHUNK, CHUNK, DONE],
        [announce(size=len(DATA) + 1), CHUNK, DONE],
        [announce(data=b"other"), CHUNK, DONE],
        [announce(size=MAX_CLAIM_BYTES + 1), CHUNK, DONE],
        [announce(size=1 << 63)],
    ],
)
def test_disorderly_answers_are_malformed(world, events):
    with prover(lambda requests, _: iter(events)) as target, pytest.raises(DecodingError, match="prover: "):
        ask(world, target)


@pytest.mark.parametrize(
    ("events", "check"),
    [
        ([PENDING, PENDING], "channel.second_coin"),
        ([pb.ProveEvent(pending=b"short")], "channel.second_coin"),
        ([pb.ProveEvent(pending=n.to_bytes(32, "little")) for n in range(MAX_COINS + 1)], "channel.coin"),
    ],
)
def test_coins_are_drawn_once_and_not_for_ever(world, events, check, monkeypatch):
    monkeypatch.setattr(interactive, "InteractiveVerifier", partial(InteractiveVerifier, limit=MAX_COINS))
    with prover(lambda requests, _: iter(events)) as target, pytest.raises(VerificationError) as caught:
        ask(world, target)
    assert caught.value.check == check


def test_no_coin_after_the_claim_was_announced(world):
    with prover(lambda requests, _: iter([announce(), PENDING])) as target, pytest.raises(DecodingError):
        ask(world, target)


def refuse(code: grpc.StatusCode, details: str) -> Behavior:
    def behavior(requests: Iterator[pb.ProveRequest], context: grpc.ServicerContext) -> Iterator[pb.ProveEvent]:
        context.abort(code, details)
        yield DONE

    return behavior


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, VerificationError),
        (grpc.StatusCode.INVALID_ARGUMENT, ParameterError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ConnectionError),
        (grpc.StatusCode.UNAVAILABLE, ConnectionError),
        (grpc.StatusCode.INTERNAL, ConnectionError),
        (grpc.StatusCode.UNIMPLEMENTED, ConnectionError),
    ],
)
def test_errors_are_told_apart_and_cleaned(world, code, error):
    with prover(refuse(code, "\x1b[2Jgone\n" + 5000 * "x")) as target, pytest.raises(error) as caught:
        ask(world, target)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_new_session_has_fresh_coins_and_ends(world):
    coins: list[bytes] = []

    def again(requests: Iterator[pb.ProveRequest], context: grpc.ServicerContext) -> Iterator[pb.ProveEvent]:
        yield PENDING
        coins.append(next_coin(requests))
        context.abort(grpc.StatusCode.ABORTED, "begin again")

    with prover(again) as target, pytest.raises(ConnectionError, match="every session"):
        ask(world, target)
    assert len(set(coins)) == len(coins) == SESSIONS


def next_coin(requests: Iterator[pb.ProveRequest]) -> bytes:
    return next(r.coin for r in requests if r.WhichOneof("message") == "coin")


def test_nobody_there(world):
    with pytest.raises(ConnectionError, match="unavailable"):
        ask(world, "127.0.0.1:1")
    with pytest.raises(ConnectionError):
        ask(world, "no such host:port")


def test_a_prover_that_stalls(world):
    stop = threading.Event()

    def stall(requests: Iterator[pb.ProveRequest], context: grpc.ServicerContext) -> Iterator[pb.ProveEvent]:
        yield QUEUED
        stop.wait(60)

    with prover(stall) as target:
        try:
            with pytest.raises(ConnectionError, match="deadline exceeded"):
                ask(world, target, timeout_s=1.0)
        finally:
            stop.set()


def test_a_prover_that_floods(world):
    """Progress without end stops at the deadline, a claim without end at the announced size."""

    def flood(event: pb.ProveEvent) -> Behavior:
        def behavior(requests: Iterator[pb.ProveRequest], context: grpc.ServicerContext) -> Iterator[pb.ProveEvent]:
            yield announce()
            while context.is_active():
                yield event

        return behavior

    with prover(flood(STEP)) as target, pytest.raises(ConnectionError, match="deadline exceeded"):
        ask(world, target, timeout_s=1.0)
    with prover(flood(CHUNK)) as target, pytest.raises(DecodingError, match="longer than announced"):
        ask(world, target)

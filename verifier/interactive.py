"""A claim in the interactive channel of zkmark.v1: upload the model, answer with coins, collect the claim.

It convinces only the verifier who drew the coins.  A session that breaks off cannot go on: the coins are spent.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import grpc

from protocol.claim import MAX_CLAIM_BYTES
from protocol.errors import DecodingError
from protocol.soundness import SESSIONS
from protocol.transcript import Channel, InteractiveVerifier
from verifier.check import Subject
from verifier.client import CHUNK, TIMEOUT_S, Calls, Remote, header, translate
from zkmark.terminal import Report, printable
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc


def obtain_interactively(
    prover: Remote,
    subject: Subject,
    *,
    draw: Callable[[int], bytes] = os.urandom,
    progress: Report | None = None,
    timeout_s: float = TIMEOUT_S,
) -> tuple[bytes, Channel]:
    """Ask `prover` for a claim about `subject` while drawing its coins from `draw`: the bytes, and the channel to check
    them with.

    A prover may ask for a new session, which rejection sampling needs once in a thousand, SESSIONS times; a cheating
    prover gains as many tries, which the ledger counts.  `timeout_s`: of one session.

    Raises as `verifier.client.obtain_claim`.
    """
    for _ in range(SESSIONS):
        channel = InteractiveVerifier(draw)
        try:
            return _session(prover, subject, channel, progress, timeout_s), channel
        except _Again:
            continue
    raise ConnectionError(f"the prover at {prover.target} broke off every session")


class _Again(Exception):
    """The prover asks for a new session."""


def _session(
    prover: Remote, subject: Subject, channel: InteractiveVerifier, progress: Report | None, timeout_s: float
) -> bytes:
    coins: SimpleQueue[bytes | None] = SimpleQueue()

    def requests() -> Iterator[pb.ProveRequest]:
        yield pb.ProveRequest(header=header(subject))
        for at in range(0, len(subject.model), CHUNK):
            yield pb.ProveRequest(model_chunk=subject.model[at : at + CHUNK])
        while (coin := coins.get()) is not None:
            yield pb.ProveRequest(coin=coin)

    calls = Calls()

    def answer() -> bytes:
        call = calls.begin(pb_grpc.ProverStub(connection).Prove(requests(), timeout=timeout_s))
        return _collect(call, channel, coins, progress)

    with prover.connect() as connection:
        try:
            return calls.run(answer)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.ABORTED:
                raise _Again from None
            raise translate(error, prover.target) from None
        finally:
            coins.put(None)


def _collect(
    call: Iterator[pb.ProveEvent],
    channel: InteractiveVerifier,
    coins: SimpleQueue[bytes | None],
    progress: Report | None,
) -> bytes:
    claim, announced = bytearray(), None
    for event in call:
        kind = event.WhichOneof("event")
        if kind == "queued" and progress is not None:
            progress("queue" if event.queued.ahead else "upload", 0.0)
        elif kind == "progress" and progress is not None:
            fraction = event.progress.fraction
            progress(printable(event.progress.phase), fraction if 0 <= fraction <= 1 else 0.0)  # not a number: 0
        elif kind == "pending" and announced is None:
            coins.put(channel.answer(event.pending))
        elif kind == "claim" and announced is None and event.claim.size <= MAX_CLAIM_BYTES:
            announced = event.claim
        elif kind == "claim_chunk" and announced is not None:
            claim += event.claim_chunk
            if len(claim) > announced.size:
                raise DecodingError("prover: the claim is longer than announced")
        elif kind == "done" and announced is not None:
            if len(claim) != announced.size or hashlib.sha256(claim).digest() != announced.sha256:
                raise DecodingError("prover: the claim is not the announced one")
            return bytes(claim)
        elif kind not in ("queued", "progress"):
            raise DecodingError(f"prover: unexpected {kind} message")
    raise DecodingError("prover: no claim before the end")

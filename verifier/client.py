"""The verifier's end of zkmark.v1: upload the model, answer with coins, collect the claim.

Nothing that the prover sends is believed or kept over its cap: the result is bytes for `verifier.check`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import grpc

from ml.quantise import Derivation
from protocol.argument import Context
from protocol.claim import MAX_CLAIM_BYTES
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.keygen import VerificationKey
from protocol.soundness import SESSIONS
from protocol.transcript import Channel, FiatShamir, InteractiveVerifier
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

CHUNK = 1 << 20
TIMEOUT_S = 900.0  # of one session
MAX_DETAILS = 200  # characters of a prover's error text that are shown

Report = Callable[[str, float], None]


def obtain_claim(
    target: str,
    key: VerificationKey,
    model: bytes,
    derivation: Derivation,
    context: Context,
    interactive: bool = False,
    *,
    draw: Callable[[int], bytes] = os.urandom,
    progress: Report | None = None,
    timeout_s: float = TIMEOUT_S,
) -> tuple[bytes, Channel]:
    """Ask the prover at `target` (HOST:PORT) for a claim: its bytes, and the channel to check it with.

    In the interactive channel the coins come from `draw`.  A prover may ask for a new session, which rejection sampling
    needs once in a thousand, SESSIONS times; a cheating prover gains as many tries, which the ledger counts.

    Raises VerificationError `prover.refused` if it makes no proof, DecodingError if its messages are malformed,
    ParameterError if it calls ours malformed, ConnectionError if it cannot be reached, is busy or too slow.
    """
    for _ in range(SESSIONS if interactive else 1):
        channel = InteractiveVerifier(draw) if interactive else None
        try:
            claim = _session(target, key, model, derivation, context, channel, progress, timeout_s)
            return claim, channel or FiatShamir()
        except _Again:
            continue
    raise ConnectionError(f"the prover at {target} broke off every session")


class _Again(Exception):
    """The prover asks for a new session."""


def _session(
    target: str,
    key: VerificationKey,
    model: bytes,
    derivation: Derivation,
    context: Context,
    channel: InteractiveVerifier | None,
    progress: Report | None,
    timeout_s: float,
) -> bytes:
    header = pb.ProveHeader(
        vk_digest=key.digest,
        context=context.to_bytes(),
        derivation=derivation.to_bytes(),
        model_size=len(model),
        interactive=channel is not None,
    )
    coins: SimpleQueue[bytes | None] = SimpleQueue()

    def requests() -> Iterator[pb.ProveRequest]:
        yield pb.ProveRequest(header=header)
        for at in range(0, len(model), CHUNK):
            yield pb.ProveRequest(model_chunk=model[at : at + CHUNK])
        while (coin := coins.get()) is not None:
            yield pb.ProveRequest(coin=coin)

    with grpc.insecure_channel(target) as connection:
        call = pb_grpc.ProverStub(connection).Prove(requests(), timeout=timeout_s)
        try:
            return _collect(call, channel, coins, progress)
        except grpc.RpcError as error:
            raise _translate(error, target) from None
        finally:
            coins.put(None)
            call.cancel()


def _collect(
    call: Iterator[pb.ProveEvent],
    channel: InteractiveVerifier | None,
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
        elif kind == "pending" and channel is not None and announced is None:
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


def _translate(error: grpc.RpcError, target: str) -> Exception:
    if error.code() == grpc.StatusCode.ABORTED:
        return _Again()
    code, details = error.code(), printable(error.details() or "")
    if code == grpc.StatusCode.FAILED_PRECONDITION:
        return VerificationError("prover.refused", details)
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return ParameterError(f"the prover at {target} does not take this: {details}")
    return ConnectionError(f"no claim from the prover at {target}: {code.name.lower().replace('_', ' ')}: {details}")


def printable(text: str) -> str:
    """A stranger's text without control characters, and short."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_DETAILS])

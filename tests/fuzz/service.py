"""Servers, boards and clients under what strangers send: messages are framed by two bytes of length."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import grpc

from ml.quantise import Derivation, derive
from protocol.argument import Context
from prover import board, keys
from prover.jobs import Prover
from prover.log import open_log
from prover.server import Limits, Server
from tests.fuzz.base import LOG, SECRET, WITNESS, Failure, models, mutated, world
from verifier import client
from verifier.check import Subject
from verifier.client import Remote
from verifier.interactive import obtain_interactively
from zkmark.v1 import zkmark_pb2 as pb


def frames(data: bytes) -> list[bytes]:
    out, at = [], 0
    while at + 2 <= len(data) and len(out) < 20:
        size = int.from_bytes(data[at : at + 2], "little")
        out.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return out


def framed(messages: list[bytes]) -> bytes:
    return b"".join(len(m).to_bytes(2, "little") + m for m in messages)


def mutated_frames(first: int = 0) -> Callable[[Random, tuple[bytes, ...]], bytes]:
    """Changes messages (from byte `first` of the input on) one by one, so that those around them stay good."""

    def mutate(random: Random, seeds: tuple[bytes, ...]) -> bytes:
        seed = random.choice(seeds)
        messages = frames(seed[first:])
        if random.random() < 0.5 or not messages:
            return mutated(random, seeds)
        at = random.randrange(len(messages))
        messages[at] = mutated(random, (messages[at],))[:0xFFFF]  # what the frame of a message can say
        return seed[:first] + framed(messages)

    return mutate


ALIVE: list[Any] = []  # servers stop when they are collected


def serving(make: Callable[[], Any]) -> str:
    """HOST:PORT of a server in a thread, for as long as the process lives."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def start() -> int:
        running = make()
        await running.start()
        ALIVE.append(running)
        return int(running.port)

    return f"127.0.0.1:{asyncio.run_coroutine_threadsafe(start(), loop).result(30)}"


@cache
def server() -> str:
    """HOST:PORT of a real prover, who proves for the first of `models`."""
    folder, key = Path(tempfile.mkdtemp()), world()[1]
    approvals = keys.Approvals(k_min={derive(models()[0]).network.digest: key.vk.smallest_k_min() or 1})
    with mock.patch.object(keys, "LOG2_N", keys.LOG2_N_RANGE.start):
        keys.write_file(folder / "owner.mk", keys._seal(key, approvals, SECRET))
    prover = Prover(folder / "owner.mk", SECRET)
    limits = Limits(message_s=2.0, upload_s=5.0, coins_s=2.0, proof_s=20.0, per_minute=1e9, burst=10**9)
    return serving(lambda: Server(prover, "127.0.0.1:0", limits))


def requests() -> tuple[bytes, ...]:
    key, (model, small) = world()[1], models()

    def one(model: bytes, interactive: bool) -> bytes:
        header = pb.ProveHeader(
            vk_digest=key.vk.digest, context=Context("", "", "", bytes(32)).to_bytes(),
            derivation=Derivation().to_bytes(), model_size=len(model), model_sha256=hashlib.sha256(model).digest(),
        )  # fmt: skip
        chunks = [pb.ProveRequest(model_chunk=model[at : at + 30000]) for at in range(0, len(model), 30000)]
        messages = [pb.ProveRequest(header=header), *chunks, *([pb.ProveRequest(coin=bytes(32))] * interactive)]
        return framed([message.SerializeToString() for message in messages])

    return one(small, False), one(model, True), one(model, False)


REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND,
}  # fmt: skip


def call_service(data: bytes) -> None:
    """The messages as an interactive session, as a job, and each as a request about a job; then about that job."""
    sent, service = frames(data), "/zkmark.v1.Prover/"
    offset = int.from_bytes(hashlib.sha256(data).digest()[:3], "little")
    jobs: list[bytes] = []  # acknowledged ones

    with grpc.insecure_channel(server()) as channel:

        def submit() -> None:
            job = channel.stream_unary(f"{service}Submit")(iter(sent), timeout=15)
            jobs.append(pb.Job.FromString(job).id)

        def ask(method: str, message: bytes) -> None:
            list(channel.unary_stream(service + method)(message, timeout=15))

        def follow() -> None:
            for job in jobs:
                ask("Follow", pb.JobRequest(id=job).SerializeToString())
                ask("Download", pb.DownloadRequest(id=job, offset=offset).SerializeToString())

        calls = [
            lambda: list(channel.stream_stream(f"{service}Prove")(iter(sent), timeout=15)), submit,
            *(partial(channel.unary_unary(f"{service}Cancel"), message, timeout=15) for message in sent[:2]),
            *(partial(ask, method, message) for message in sent[:2] for method in ("Follow", "Download")), follow,
        ]  # fmt: skip
        for call in calls:
            try:
                call()
            except grpc.RpcError as error:
                if error.code() not in REFUSALS:
                    raise Failure(f"service: {error.code()} {error.details()}") from None
        key = b"".join(
            channel.unary_stream("/zkmark.v1.Prover/Key", lambda m: m, lambda m: pb.KeyChunk.FromString(m).data)(
                b"", timeout=15))  # it still serves
        if key != world()[1].vk.to_bytes():
            raise Failure("service: it sends another key")


@cache
def board_server() -> str:
    """HOST:PORT of a real board."""
    folder = Path(tempfile.mkdtemp())
    access = board.Access(writes_per_minute=1e9, witnesses=(WITNESS,))
    return serving(lambda: board.Server(open_log(folder / "board", LOG.name), "127.0.0.1:0", access))


BOARD = ("Publish", "Find", "Checkpoint", "Anchor", "Offer", "AddCosignature")


def calls() -> tuple[bytes, ...]:
    """A byte that names the method, then its requests."""
    vk = world()[0].key
    chunks = [pb.KeyChunk(data=part).SerializeToString() for part in (vk.to_bytes()[:9000], vk.to_bytes()[9000:])]
    find = pb.FindRequest(vk_digest=vk.digest, old_size=1, witnesses=[WITNESS.public], threshold=1)
    last, anchor = pb.CheckpointRequest(old_size=1), pb.AnchorRequest(digest=vk.digest)
    signed = pb.CosignatureRequest(size=1, witness=WITNESS.public, signature=WITNESS.possession)
    others = [find, last, anchor, last, signed]
    return b"\0" + framed(chunks), *(bytes([n + 1]) + framed([o.SerializeToString()]) for n, o in enumerate(others))


def call_board(data: bytes) -> None:
    method, messages = BOARD[(data or b"\0")[0] % len(BOARD)], frames(data[1:])
    with grpc.insecure_channel(board_server()) as channel:
        call: Any = channel.stream_unary if method == "Publish" else channel.unary_unary
        given = iter(messages) if method == "Publish" else (messages or [b""])[0]
        try:
            call(f"/zkmark.v1.Board/{method}", lambda m: m, lambda m: m)(given, timeout=15)
        except grpc.RpcError as error:
            if error.code() not in REFUSALS | {grpc.StatusCode.NOT_FOUND}:
                raise Failure(f"board: {error.code()} {error.details()}") from None


ANSWER: list[list[bytes]] = [[]]


@cache
def lying_server() -> str:
    """A prover that says ANSWER: all of it in a session; of a job the first message, those up to an empty one while it
    is followed, the others when its claim is fetched."""

    def session(messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        yield from ANSWER[0]

    def submit(messages: Iterator[bytes], context: Any) -> bytes:
        return (ANSWER[0] or [b""])[0]

    def part(number: int) -> Callable[[bytes, Any], Iterator[bytes]]:
        def answer(request: bytes, context: Any) -> Iterator[bytes]:
            empty = ANSWER[0].index(b"") if b"" in ANSWER[0] else len(ANSWER[0])
            yield from (ANSWER[0][1:empty], ANSWER[0][empty + 1 :])[number]

        return answer

    def raw(handler: Callable[..., Any], make: Any) -> Any:
        return make(handler, lambda m: m, lambda m: m)

    handlers = {
        "Prove": raw(session, grpc.stream_stream_rpc_method_handler),
        "Submit": raw(submit, grpc.stream_unary_rpc_method_handler),
        "Follow": raw(part(0), grpc.unary_stream_rpc_method_handler),
        "Download": raw(part(1), grpc.unary_stream_rpc_method_handler),
    }
    running = grpc.server(ThreadPoolExecutor(4))
    running.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("zkmark.v1.Prover", handlers),))
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    ALIVE.append(running)
    return f"127.0.0.1:{port}"


CLAIM = b"claim"


def answers() -> tuple[bytes, ...]:
    """Of a session: with a coin, and without."""
    events = [
        pb.ProveEvent(queued=pb.Queued(ahead=1)), pb.ProveEvent(progress=pb.Progress(phase="x", fraction=0.5)),
        pb.ProveEvent(pending=bytes(range(32))),
        pb.ProveEvent(claim=pb.ClaimHeader(size=len(CLAIM), sha256=hashlib.sha256(CLAIM).digest())),
        pb.ProveEvent(claim_chunk=CLAIM), pb.ProveEvent(done=pb.Done()),
    ]  # fmt: skip
    plain = [event for event in events if not event.pending]
    return tuple(framed([event.SerializeToString() for event in some]) for some in (events, plain))


def answers_about_a_job() -> tuple[bytes, ...]:
    job = bytes(range(32))
    followed = [
        pb.Job(id=job, state=pb.Job.QUEUED, ahead=2), pb.Job(id=job, state=pb.Job.PROVING, phase="x", fraction=0.5),
        pb.Job(id=job, state=pb.Job.DONE, claim_size=len(CLAIM), claim_sha256=hashlib.sha256(CLAIM).digest()),
    ]  # fmt: skip
    chunks = [pb.ClaimChunk(data=CLAIM[:2]), pb.ClaimChunk(data=CLAIM[2:])]
    said = [message.SerializeToString() for message in followed]
    return (framed([*said, b"", *(chunk.SerializeToString() for chunk in chunks)]),)


def asked() -> tuple[Remote, Subject]:
    return Remote(lying_server()), Subject(world()[0].key, b"model", Context("", "", "", bytes(32)))


def collect_claim(data: bytes) -> None:
    ANSWER[0] = frames(data)
    obtain_interactively(*asked(), timeout_s=15)


def collect_job(data: bytes) -> None:
    """A server that takes up what it broke off is asked again until the time is over: little of it, for what is bad."""
    ANSWER[0] = frames(data)
    limit = 15.0 if data in answers_about_a_job() else 2.0
    with mock.patch.object(client, "FIRST_DELAY_S", 1e-3):
        if client.obtain_claim(*asked(), timeout_s=limit) == b"":
            raise Failure("client: a claim of nothing")

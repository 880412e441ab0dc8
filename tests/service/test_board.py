"""The board: what the log keeps, what it proves over gRPC, and what a verifier notices when it lies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from sqlalchemy import URL, text

from ml.quantise import Derivation
from ml.triggers import abstract_images
from protocol import bls
from protocol.argument import Context
from protocol.cosignature import MAX_WITNESSES, WitnessKey, cosign
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.keygen import KeyParameters, VerificationKey, generate_key
from protocol.log import EntryKind, LogKey, Receipt, open_checkpoint
from protocol.soundness import smallest_k_min
from prover import board
from prover.access import Listening, Tokens
from prover.board import Access, Server, anchor, publish
from prover.cli import cli as prover_cli
from prover.jobs import make_claim, subject
from prover.log import KEPT_CHECKPOINTS, OFFER_S, Item, Log, open_log
from prover.witness import Witness
from verifier.board import Board, find
from verifier.cli import cli as verifier_cli
from zkmark.connect import Tls
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

ROOT = Path(__file__).parents[2]
NAME = "log.example/keys"
SEED = bytes(range(32))
KEY = EntryKind.KEY
LONG_S = 60.0  # for what takes no time


def keys(count: int, start: int = 0) -> list[Item]:
    return [(KEY, bytes([n // 256, n % 256]) * 16, bytes([n % 256]) * 32) for n in range(start, start + count)]


# --- the service


@contextmanager
def serving(log: Log, access: Access | None = None, tls: Listening | None = None) -> Iterator[str]:
    """A board in a thread with an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> Server:
        server = Server(log, "127.0.0.1:0", access or Access(writes_per_minute=10_000.0), tls)
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(begin(), loop).result(LONG_S)
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(LONG_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def others() -> list[VerificationKey]:
    images = abstract_images(160, (1, 4, 4))
    return [generate_key(KeyParameters((1, 4, 4), 10, 160), images).vk for _ in range(3)]


@pytest.mark.reaches("policy.published")
def test_publish_and_find(world, others, tmp_path):
    seen, log = tmp_path / "seen", open_log(tmp_path / "board", NAME)
    with serving(log) as target:
        for index, key in enumerate((others[0], world.key.vk)):
            receipt = publish(target, key.to_bytes())
            assert receipt.check(log.key, key.digest, key.owner_public_key).size == receipt.index + 1 == index + 1
        assert find(Board(target, log.key), world.key.vk, seen).index == 1
        first = seen.read_text()
        publish(target, others[1].to_bytes())
        assert publish(target, world.key.vk.to_bytes()).index == 1
        assert find(Board(target, log.key), world.key.vk, seen).index == 1
        sizes = [open_checkpoint(note, log.key).size for note in (first, seen.read_text())]
        assert sizes == [2, 3]
        with pytest.raises(VerificationError) as caught:
            find(Board(target, log.key), others[2], seen)
        assert caught.value.check == "policy.published"
    assert [path.name for path in tmp_path.iterdir()] == sorted(["board", "seen"])


def test_a_late_answer_takes_nothing_back(world, tmp_path, monkeypatch):
    """Of two verifiers with one file, the first gets its answer when the second has had one: the larger stays."""
    key, seen, log = world.key.vk, tmp_path / "seen", open_log(tmp_path / "board", NAME)
    log.append([(KEY, key.digest, key.owner_public_key)])
    asked, answered, reading = threading.Event(), threading.Event(), threading.Lock()

    def ask(_: Board, request: pb.FindRequest, timeout_s: float) -> pb.Receipt:
        late = not asked.is_set()
        with reading:
            answer = log.receipt(KEY, request.vk_digest, request.old_size)
        asked.set()
        if late:
            answered.wait(1)
        return answer

    monkeypatch.setattr("verifier.board._ask", ask)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(find, Board("nowhere", log.key), key, seen)
        assert asked.wait(LONG_S)
        with reading:
            log.append(keys(7))
        second = pool.submit(find, Board("nowhere", log.key), key, seen)
        second.add_done_callback(lambda _: answered.set())
        assert (first.result().index, second.result().index) == (0, 0)
    assert open_checkpoint(seen.read_text(), log.key).size == 8


def test_many_publish_at_once(world, others, tmp_path):
    with serving(open_log(tmp_path / "board", NAME)) as target, ThreadPoolExecutor(6) as pool:
        data = [key.to_bytes() for key in (*others, world.key.vk)] * 3
        receipts = list(pool.map(lambda one: publish(target, one), data))
    assert sorted({receipt.index for receipt in receipts}) == [0, 1, 2, 3]
    assert len({(receipt.index, receipt.entry) for receipt in receipts}) == 4


def test_only_keys_that_pass_their_checks_are_taken(world, tmp_path, monkeypatch):
    data = world.key.vk.to_bytes()
    log = open_log(tmp_path / "board", NAME)
    with serving(log) as target:
        for bad in (b"", b"junk", data[:-1], data + b"\0", data[:-1] + bytes([data[-1] ^ 1]), world.marked):
            with pytest.raises(ParameterError, match="does not take"):
                publish(target, bad)
        monkeypatch.setattr(board, "MAX_KEY_BYTES", len(data) - 1)
        with pytest.raises(ParameterError, match="more than"):
            publish(target, data)
        monkeypatch.setattr(board, "MAX_KEY_BYTES", len(data))
        assert publish(target, data).index == 0


@pytest.fixture
def stalled(monkeypatch) -> Iterator[Callable[[pb_grpc.BoardStub], grpc.Future]]:
    """Calls Publish and stops in the middle; returns when the board waits for the rest."""
    begun, stop, real = threading.Semaphore(0), threading.Event(), board._collect

    async def collect(chunks: object) -> bytes:
        begun.release()
        return await real(chunks)

    def half() -> Iterator[pb.KeyChunk]:
        yield pb.KeyChunk(data=b"zkmark")
        stop.wait()

    def call(stub: pb_grpc.BoardStub) -> grpc.Future:
        future = stub.Publish.future(half())
        assert begun.acquire(timeout=LONG_S)
        return future

    monkeypatch.setattr(board, "_collect", collect)
    yield call
    stop.set()


def publish_when_free(target: str, data: bytes) -> Receipt:
    for _ in range(600):
        try:
            return publish(target, data)
        except ConnectionError as error:
            assert "too many" in str(error)
            threading.Event().wait(0.1)
    raise AssertionError("no place became free")


def test_uploads_are_limited(world, tmp_path, monkeypatch, stalled):
    """Clients that stop in the middle take places, and give them back when they go; readers are not delayed."""
    monkeypatch.setattr(board, "MAX_UPLOADS", 2)
    monkeypatch.setattr(board, "UPLOAD_S", 3600.0)
    with serving(open_log(tmp_path / "board", NAME)) as target, grpc.insecure_channel(target) as connection:
        stub = pb_grpc.BoardStub(connection)
        calls = [stalled(stub) for _ in range(2)]
        with pytest.raises(ConnectionError, match="too many"):
            publish(target, world.key.vk.to_bytes())
        assert stub.Checkpoint(pb.CheckpointRequest(), timeout=LONG_S).note
        assert not any(call.done() for call in calls)
        for call in calls:
            call.cancel()
        assert publish_when_free(target, world.key.vk.to_bytes()).index == 0


def test_a_stalled_upload_is_ended(world, tmp_path, monkeypatch, stalled):
    monkeypatch.setattr(board, "MAX_UPLOADS", 1)
    monkeypatch.setattr(board, "UPLOAD_S", 0.5)
    with serving(open_log(tmp_path / "board", NAME)) as target, grpc.insecure_channel(target) as connection:
        assert stalled(pb_grpc.BoardStub(connection)).exception(LONG_S).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        monkeypatch.setattr(board, "UPLOAD_S", 3600.0)
        assert publish_when_free(target, world.key.vk.to_bytes()).index == 0


def test_commitments_are_anchored(world, tmp_path):
    """The same digest may be the one of a key and of commitments; each is logged once."""
    log, vk = open_log(tmp_path / "board", NAME), world.key.vk
    with serving(log) as target:
        first = anchor(target, log.key, vk.digest)
        assert (first.index, first.size) == (0, 1)
        assert publish(target, vk.to_bytes()).index == 1
        again = anchor(target, log.key, vk.digest)
        assert (again.index, again.size, again.unix_time) == (0, 2, first.unix_time)
        assert again.signature != first.signature  # another coin
        with pytest.raises(VerificationError, match=r"log\.signature"):
            anchor(target, LogKey(NAME, vk.owner_public_key), vk.digest)
        for bad in (b"", bytes(31), bytes(33)):
            with pytest.raises(ParameterError, match="32 bytes"):
                anchor(target, log.key, bad)
        find(Board(target, log.key), vk, tmp_path / "seen")
    with pytest.raises(ConnectionError):
        anchor(target, log.key, bytes(32))


def test_requests_of_any_size(world, tmp_path):
    with serving(open_log(tmp_path / "board", NAME)) as target, grpc.insecure_channel(target) as connection:
        stub = pb_grpc.BoardStub(connection)
        long = pb.FindRequest(vk_digest=b"x" * 100_000)
        many = pb.FindRequest(witnesses=[b""] * (MAX_WITNESSES + 1))
        for request, code in (
            (pb.FindRequest(vk_digest=b"", old_size=(1 << 64) - 1), grpc.StatusCode.NOT_FOUND),
            (pb.FindRequest(vk_digest=b"x" * 1000, threshold=3), grpc.StatusCode.NOT_FOUND),
            (long, grpc.StatusCode.INVALID_ARGUMENT), (many, grpc.StatusCode.INVALID_ARGUMENT),
        ):  # fmt: skip
            with pytest.raises(grpc.RpcError) as caught:
                stub.Find(request, timeout=LONG_S)
            assert caught.value.code() == code
        publish(target, world.key.vk.to_bytes())
        for size in (0, 1, 2, 1 << 62, (1 << 64) - 1):
            assert stub.Find(pb.FindRequest(vk_digest=world.key.vk.digest, old_size=size), timeout=LONG_S).index == 0
            assert not stub.Checkpoint(pb.CheckpointRequest(old_size=size), timeout=LONG_S).consistency


def test_bytes_that_are_no_message_are_refused_quietly(tmp_path, caplog, capfd):
    with serving(open_log(tmp_path / "board", NAME)) as target, grpc.insecure_channel(target) as connection:
        for method in ("Publish", "Anchor", "Find", "Checkpoint", "Offer", "AddCosignature"):
            call = connection.stream_unary if method == "Publish" else connection.unary_unary
            given = iter([b"\xff\xff"]) if method == "Publish" else b"\xff\xff"
            with pytest.raises(grpc.RpcError) as caught:
                call(f"/zkmark.v1.Board/{method}")(given, timeout=LONG_S)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, method
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


def test_a_database_that_fails(world, tmp_path, caplog):
    """The client may try again, and learns nothing of the database."""
    log = open_log(tmp_path / "board", NAME)
    with serving(log) as target:
        publish(target, world.key.vk.to_bytes())
        with log._engine.begin() as db:
            db.execute(text("ALTER TABLE entries RENAME TO hidden"))
        for ask in (
            lambda: publish(target, world.key.vk.to_bytes()), lambda: anchor(target, log.key, bytes(32)),
            lambda: find(Board(target, log.key), world.key.vk, tmp_path / "seen"),
        ):  # fmt: skip
            with pytest.raises(ConnectionError, match="cannot be read or written; try again"):
                ask()
        with log._engine.begin() as db:
            db.execute(text("ALTER TABLE hidden RENAME TO entries"))
        find(Board(target, log.key), world.key.vk, tmp_path / "seen")
    assert "OperationalError" in caplog.text and "entries" not in caplog.text


# --- who may write


def test_tokens_are_for_writing(world, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"owner:{hashlib.sha256(b'open sesame').hexdigest()}\n")
    log, data = open_log(tmp_path / "board", NAME), world.key.vk.to_bytes()
    with serving(log, Access(Tokens(tokens))) as target:
        for token in ("", "open says me"):
            with pytest.raises(ConnectionError, match="token is needed"):
                publish(target, data, token=token)
            with pytest.raises(ConnectionError, match="token is needed"):
                anchor(target, log.key, bytes(32), token=token)
        assert publish(target, data, token="open sesame").index == 0
        assert anchor(target, log.key, bytes(32), token="open sesame").index == 1
        find(Board(target, log.key), world.key.vk, tmp_path / "seen")


def test_a_client_may_write_so_often(world, tmp_path):
    log = open_log(tmp_path / "board", NAME)
    with serving(log, Access(writes_per_minute=1e-3)) as target:
        anchor(target, log.key, bytes(32))
        with pytest.raises(ConnectionError, match="too often"):
            anchor(target, log.key, bytes(32))
        with pytest.raises(ConnectionError, match="too often"):
            publish(target, world.key.vk.to_bytes())
        assert log.size == 1


def test_a_board_behind_tls(world, tmp_path):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
         "-keyout", "key", "-out", "certificate", "-subj", "/CN=board", "-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    certificate, key = (tmp_path / "certificate").read_bytes(), (tmp_path / "key").read_bytes()
    log, tls = open_log(tmp_path / "board", NAME), Tls(certificate)
    with serving(log, tls=Listening(certificate, key)) as target:
        with pytest.raises(ConnectionError):
            publish(target, world.key.vk.to_bytes())
        assert publish(target, world.key.vk.to_bytes(), tls=tls).index == 0
        assert find(Board(target, log.key, tls=tls), world.key.vk, tmp_path / "seen").index == 0
        assert anchor(target, log.key, bytes(32), tls=tls).index == 1


# --- witnesses


class Witnesses:
    """`count` of them, and a board that knows them."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.seeds = [bytes([n + 1]) * 32 for n in range(count)]
        self.keys = tuple(WitnessKey.of(f"witness.example/{n}", seed) for n, seed in enumerate(self.seeds))
        self.all = [Witness(k.public, s, folder / f"signed{n}")
                    for n, (k, s) in enumerate(zip(self.keys, self.seeds, strict=True))]  # fmt: skip
        self.access = Access(writes_per_minute=10_000.0, witnesses=self.keys)


@pytest.mark.reaches("policy.witnesses")
def test_a_client_asks_for_witnesses(world, others, tmp_path):
    crowd, log, seen, key = Witnesses(tmp_path), open_log(tmp_path / "board", NAME), tmp_path / "seen", world.key.vk
    with serving(log, crowd.access) as target:
        publish(target, others[0].to_bytes())
        publish(target, key.to_bytes())

        def ask(threshold: int, known: tuple[WitnessKey, ...] = crowd.keys) -> str:
            try:
                find(Board(target, log.key, known, threshold), key, seen)
            except VerificationError as error:
                return error.check
            return "found"

        assert ask(1) == "policy.witnesses"
        assert crowd.all[0].sign_next(target, log.key).size == 2
        assert [ask(n) for n in (1, 2, 3)] == ["found", "policy.witnesses", "policy.witnesses"]
        publish(target, others[1].to_bytes())
        for witness in crowd.all[1:]:  # who comes later signs the same checkpoint
            assert witness.sign_next(target, log.key).size == 2
        assert [ask(n) for n in (1, 2, 3)] == ["found"] * 3
        assert [ask(n, crowd.keys[:2]) for n in (1, 2)] == ["found"] * 2
        assert crowd.all[0].sign_next(target, log.key).size == 3  # all have signed the last one
        assert [ask(n) for n in (1, 2, 3)] == ["found"] * 3  # the last one with so many
        stranger = WitnessKey.of("stranger", bytes(32))
        assert ask(1, (stranger,)) == "policy.witnesses" and ask(2, (stranger, *crowd.keys[:1])) == "policy.witnesses"
        assert open_checkpoint(seen.read_text(), log.key).size == 3


def test_an_offer_has_its_time(tmp_path):
    """A witness who is gone holds the others up for a minute only."""
    clock = [1000.0]
    log = Log(URL.create("sqlite", database=str(tmp_path / "log.sqlite")), NAME, SEED, lambda: clock[0])

    def offered() -> int:
        return open_checkpoint(log.offer(0, [b"1", b"2"]).note, log.key).size

    assert offered() == 0
    log.append(keys(3))
    assert offered() == 3  # an empty log needs no witnesses
    log.append(keys(1, 3))
    log.cosigned(3, b"1", b"signature")
    clock[0] += OFFER_S - 1
    assert offered() == 3
    clock[0] += 1
    assert offered() == 4
    clock[0] = 5.0  # the clock went back
    log.append(keys(1, 4))
    assert offered() == 5
    log.append(keys(1, 5))
    for witness in (b"1", b"2"):
        assert offered() == 5
        log.cosigned(5, witness, b"signature")
    assert offered() == 6
    for size in range(6, 6 + 2 * KEPT_CHECKPOINTS):
        log.cosigned(size, b"1", b"signature")
    with log._engine.connect() as db:
        assert db.scalar(text("SELECT COUNT(*) FROM cosignatures")) == KEPT_CHECKPOINTS
    log.close()


def test_signatures_that_a_board_does_not_take(world, others, tmp_path):
    crowd, log = Witnesses(tmp_path, 2), open_log(tmp_path / "board", NAME)
    stranger = Witness(bls.public_key(bytes(32)), bytes(32), tmp_path / "stranger")
    with serving(log, crowd.access) as target, grpc.insecure_channel(target) as connection:
        stub = pb_grpc.BoardStub(connection)
        publish(target, world.key.vk.to_bytes())
        with pytest.raises(ParameterError, match="not a witness"):
            stranger.sign_next(target, log.key)
        crowd.all[0].sign_next(target, log.key)
        at = log.checkpoint(0).note
        checkpoint = open_checkpoint(at, log.key)
        good = cosign(crowd.seeds[1], log.key, checkpoint)
        one = crowd.keys[1].public
        for size, witness, signature, code in (
            (1, one, cosign(crowd.seeds[0], log.key, checkpoint), grpc.StatusCode.INVALID_ARGUMENT),
            (1, one, good[:-1], grpc.StatusCode.INVALID_ARGUMENT), (1, b"", good, grpc.StatusCode.INVALID_ARGUMENT),
            (2, one, good, grpc.StatusCode.FAILED_PRECONDITION), (0, one, good, grpc.StatusCode.FAILED_PRECONDITION),
            ((1 << 64) - 1, one, good, grpc.StatusCode.FAILED_PRECONDITION),
        ):  # fmt: skip
            request = pb.CosignatureRequest(size=size, witness=witness, signature=signature)
            with pytest.raises(grpc.RpcError) as caught:
                stub.AddCosignature(request, timeout=LONG_S)
            assert caught.value.code() == code
        stub.AddCosignature(pb.CosignatureRequest(size=1, witness=one, signature=good), timeout=LONG_S)
    with pytest.raises(ParameterError, match="different"):
        Access(witnesses=crowd.keys * 2)
    for bad in ((crowd.keys, 0), (crowd.keys, 3), ((), 1), (crowd.keys[:1] * 2, 1)):
        with pytest.raises(ParameterError):
            Board("", log.key, *bad)


def test_a_witness_may_be_there_before_the_first_entry(world, tmp_path):
    """An empty log is the beginning of every history, and no contradiction of any."""
    crowd, log = Witnesses(tmp_path), open_log(tmp_path / "board", NAME)
    with serving(log, crowd.access) as target:
        assert [witness.sign_next(target, log.key).size for witness in crowd.all * 2] == [0] * 6
        publish(target, world.key.vk.to_bytes())
        assert [witness.sign_next(target, log.key).size for witness in crowd.all] == [1] * 3
        where = Board(target, log.key, crowd.keys, 3)
        assert find(where, world.key.vk, tmp_path / "seen").index == 0
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".conflict")]


def test_a_witness_signs_one_history(world, others, tmp_path):
    """A board whose operator puts back an old copy gets no signature for it, and convicts itself."""
    crowd, folder = Witnesses(tmp_path, 1), tmp_path / "board"
    log = open_log(folder, NAME)
    with serving(log, crowd.access) as target:
        publish(target, world.key.vk.to_bytes())
    shutil.copytree(folder, tmp_path / "backup")
    with serving(open_log(folder, NAME), crowd.access) as target:
        publish(target, others[0].to_bytes())
        assert crowd.all[0].sign_next(target, log.key).size == 2
        assert crowd.all[0].sign_next(target, log.key).size == 2
    with serving(open_log(tmp_path / "backup", NAME), crowd.access) as target:
        with pytest.raises(VerificationError) as caught:
            crowd.all[0].sign_next(target, log.key)
        assert caught.value.check == "log.rollback" and "signed0.conflict" in str(caught.value)
        publish(target, others[1].to_bytes())
        clock_free = Witness(crowd.keys[0].public, crowd.seeds[0], tmp_path / "empty")
        assert clock_free.sign_next(target, log.key).size in (1, 2)  # who loses the file signs anything
        with pytest.raises(VerificationError):
            crowd.all[0].sign_next(target, log.key)


def test_the_commands_of_a_witness(world, tmp_path):
    vk, secret = world.path("owner.vk"), ["--secret", tmp_path / "secret", "--name", "witness.example"]
    status, values = run(prover_cli, "witness", *secret)
    key = values["witness_key"]
    assert status == 0 and run(prover_cli, "witness", *secret)[1]["witness_key"] == key
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    log = open_log(tmp_path / "board", NAME)
    with serving(log, Access(witnesses=(WitnessKey.from_text(key),))) as target:
        where = ["--board", target, "--log-key", log.key.to_text()]
        asked = ["key", vk, *where, "--seen", tmp_path / "seen", "--witness", key]
        assert run(prover_cli, "publish", "--vk", vk, *where)[0] == 0
        status, values = run(verifier_cli, *asked)
        assert (status, values["failed_check"]) == (1, "policy.witnesses")
        follow = ["witness", *secret, *where, "--state", tmp_path / "state", "--once"]
        result = CliRunner().invoke(prover_cli, [*map(str, follow)])
        assert result.exit_code == 0 and "signed the checkpoint of 1 entries" in result.output
        status, values = run(verifier_cli, *asked)
        assert status == 0 and values["published"]["witnesses"] == 1
        assert "signed by 1 of the named witnesses" in CliRunner().invoke(verifier_cli, [*map(str, asked)]).output
        for wrong in (["--witnesses", 2], ["--witness", key], ["--witness", key[:-8]]):
            assert run(verifier_cli, *asked, *wrong)[0] == 2
        assert CliRunner().invoke(prover_cli, [*map(str, follow[:7])]).exit_code == 2
    assert CliRunner().invoke(prover_cli, [*map(str, follow)]).exit_code == 2  # nobody there
    assert CliRunner().invoke(verifier_cli, ["key", vk, "--witness", key]).exit_code == 2


# --- boards that lie


def test_a_rollback_is_noticed(world, others, tmp_path):
    """The operator puts back an older copy of the log."""
    folder, seen = tmp_path / "board", tmp_path / "seen"
    log = open_log(folder, NAME)
    with serving(log) as target:
        publish(target, world.key.vk.to_bytes())
    shutil.copytree(folder, tmp_path / "backup")
    with serving(open_log(folder, NAME)) as target:
        publish(target, others[0].to_bytes())
        find(Board(target, log.key), world.key.vk, seen)
    last = seen.read_text()
    with serving(open_log(tmp_path / "backup", NAME)) as target:
        with pytest.raises(VerificationError) as caught:
            find(Board(target, log.key), world.key.vk, seen)
        assert caught.value.check == "log.rollback"
        evidence = tmp_path / "seen.conflict"
        assert seen.read_text() == last and str(evidence) in str(caught.value)
        assert open_checkpoint(evidence.read_text(), log.key).size == 1
        # Another key makes the two histories of one size.
        publish(target, others[1].to_bytes())
        with pytest.raises(VerificationError) as caught:
            find(Board(target, log.key), world.key.vk, seen)
        assert caught.value.check == "log.split" and seen.read_text() == last
        # And longer ones that do not join.
        publish(target, others[2].to_bytes())
        with pytest.raises(VerificationError) as caught:
            find(Board(target, log.key), world.key.vk, seen)
        assert caught.value.check == "log.consistency" and seen.read_text() == last
        find(Board(target, log.key), world.key.vk, tmp_path / "of a newcomer")  # whom only a comparison helps
        with pytest.raises(VerificationError):
            find(Board(target, log.key), world.key.vk, seen)


Change = Callable[[pb.Receipt], object]


@contextmanager
def lying(log: Log, change: Change) -> Iterator[str]:
    class Servicer(pb_grpc.BoardServicer):
        def Find(self, request, context):
            wanted = request.vk_digest, request.old_size, set(request.witnesses), request.threshold
            answer = log.receipt(KEY, *wanted)
            change(answer)
            return answer

    server = grpc.server(ThreadPoolExecutor(1))
    pb_grpc.add_BoardServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(LONG_S)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda a: a.ClearField("entry"), DecodingError),
        (lambda a: setattr(a, "entry", a.entry[:-1] + b"\x01"), VerificationError),
        (lambda a: setattr(a, "index", a.index + 1), VerificationError),
        (lambda a: setattr(a, "index", (1 << 64) - 1), VerificationError),
        (lambda a: a.ClearField("path"), VerificationError),
        (lambda a: a.path.append(bytes(32)), VerificationError),
        (lambda a: a.path.append(bytes(31)), DecodingError),
        (lambda a: a.path.extend([bytes(32)] * 10_000), DecodingError),
        (lambda a: a.ClearField("checkpoint"), DecodingError),
        (lambda a: setattr(a.checkpoint, "note", "x" * 100_000), DecodingError),
        (lambda a: setattr(a.checkpoint, "note", a.checkpoint.note.replace("\n9\n", "\n8\n")), VerificationError),
        (lambda a: a.checkpoint.ClearField("consistency"), VerificationError),
        (lambda a: a.checkpoint.consistency.append(bytes(32)), VerificationError),
        (lambda a: a.checkpoint.consistency.append(b""), DecodingError),
    ],
)
def test_no_lie_passes(world, tmp_path, change, error):
    key, seen = world.key.vk, tmp_path / "seen"
    log = open_log(tmp_path / "board", NAME)
    log.append([*keys(4), (KEY, key.digest, key.owner_public_key)])
    with lying(log, lambda answer: None) as target:
        find(Board(target, log.key), key, seen)
    log.append(keys(4, 4))
    before = seen.read_text()
    with lying(log, change) as target:
        with pytest.raises(error):
            find(Board(target, log.key), key, seen)
    assert seen.read_text() == before
    with lying(log, lambda answer: None) as target:
        find(Board(target, log.key), key, seen)
    assert seen.read_text() != before
    log.close()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda a: a.ClearField("witnessed"), VerificationError),
        (lambda a: setattr(a.witnessed, "note", ""), DecodingError),
        (lambda a: setattr(a.witnessed, "note", a.checkpoint.note), VerificationError),
        (lambda a: setattr(a.witnessed, "note", a.witnessed.note.replace("\n5\n", "\n6\n")), VerificationError),
        (lambda a: setattr(a.witnessed, "signature", bytes(96)), DecodingError),
        (lambda a: setattr(a.witnessed, "signature", a.witnessed.signature[:-1]), DecodingError),
        (lambda a: a.witnessed.witnesses.append(b"\xff" * 48), VerificationError),
        (lambda a: a.witnessed.witnesses.append(a.witnessed.witnesses[0]), DecodingError),
        (lambda a: a.witnessed.witnesses.pop(), VerificationError),
        (lambda a: a.witnessed.path.pop(), VerificationError),
        (lambda a: a.witnessed.path.append(b""), DecodingError),
        (lambda a: a.witnessed.consistency.pop(), VerificationError),
        (lambda a: a.witnessed.ClearField("consistency"), VerificationError),
    ],
)
def test_no_lie_about_witnesses_passes(world, tmp_path, change, error):
    key, log, crowd = world.key.vk, open_log(tmp_path / "board", NAME), Witnesses(tmp_path, 2)
    log.append([*keys(4), (KEY, key.digest, key.owner_public_key)])
    checkpoint = open_checkpoint(log.checkpoint(0).note, log.key)
    for seed, known in zip(crowd.seeds, crowd.keys, strict=True):
        log.cosigned(5, known.public, cosign(seed, log.key, checkpoint))
    log.append(keys(4, 4))
    with lying(log, change) as target, pytest.raises(error):
        find(Board(target, log.key, crowd.keys, 2), key, tmp_path / "seen")
    with lying(log, lambda answer: None) as target:
        find(Board(target, log.key, crowd.keys, 2), key, tmp_path / "seen")
    log.close()


def test_another_log_under_the_same_name(world, tmp_path):
    log = open_log(tmp_path / "board", NAME)
    pinned = LogKey(NAME, world.key.vk.owner_public_key)
    with serving(log) as target:
        publish(target, world.key.vk.to_bytes())
        with pytest.raises(VerificationError, match=r"log\.signature"):
            find(Board(target, pinned), world.key.vk, tmp_path / "seen")
    assert not (tmp_path / "seen").exists()


def test_nobody_there(world, tmp_path):
    key = LogKey(NAME, world.key.vk.owner_public_key)
    with pytest.raises(ConnectionError, match="unavailable"):
        find(Board("127.0.0.1:1", key), world.key.vk, tmp_path / "seen")
    with pytest.raises(ConnectionError):
        publish("127.0.0.1:1", b"x")
    (tmp_path / "seen").write_bytes(b"\xff\xfe")
    with pytest.raises(DecodingError):
        find(Board("127.0.0.1:1", key), world.key.vk, tmp_path / "seen")


# --- the commands


@dataclass
class Running:
    process: subprocess.Popen[str]
    target: str
    log_key: str


def start(folder: Path, *more: str) -> Running:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}"}
    words = ["board", "--folder", str(folder), "--name", NAME, "--listen", "127.0.0.1:0", "--json", *more]
    program = [sys.executable, "-c", "from prover.cli import main; main()", *words]
    process = subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True)
    values = json.loads(process.stdout.readline())
    return Running(process, values["listening"], values["log_key"])


def run(cli: object, *args: object) -> tuple[int, dict[str, object]]:
    result = CliRunner().invoke(cli, [*(str(arg) for arg in args), "--json"])
    return result.exit_code, json.loads(result.stdout) if result.stdout.startswith("{") else {}


def test_a_verdict_says_when_the_key_was_published(world, others, tmp_path):
    context = Context("", "", "", bytes(32))
    about = subject(world.marked, Derivation(), None, world.key.vk)
    claim = make_claim(world.key, about, smallest_k_min(world.key.vk.h, 10), context)
    (tmp_path / "claim.proof").write_bytes(claim.to_bytes())
    log = open_log(tmp_path / "board", NAME)
    with serving(log) as target:
        words = [
            "verify", "--vk", world.path("owner.vk"), "--model", world.path("marked.onnx"), "--nonce", "00" * 32,
            "--proof", tmp_path / "claim.proof", "--without-fidelity",
            "--board", target, "--log-key", log.key.to_text(), "--seen", tmp_path / "seen",
        ]  # fmt: skip
        status, values = run(verifier_cli, *words, "--html", tmp_path / "a.html")
        assert (status, values["failed_check"]) == (1, "policy.published")
        assert "not looked up" in (tmp_path / "a.html").read_text()
        publish(target, others[0].to_bytes())
        publish(target, world.key.vk.to_bytes())
        status, values = run(verifier_cli, *words, "--html", tmp_path / "b.html")
        page = (tmp_path / "b.html").read_text()
        assert status == 0 and values["published"]["index"] == 1
        assert values["published"]["time"] in page and "entry 1 of the log" in page and f"--board {target}" in page


def test_a_published_key_survives_kill_and_restart(world, others, tmp_path):
    vk, seen, folder = world.path("owner.vk"), tmp_path / "seen", tmp_path / "board"
    board = start(folder)
    try:
        where = ["--board", board.target, "--log-key", board.log_key]
        status, values = run(verifier_cli, "key", vk, *where, "--seen", seen)
        assert (status, values["failed_check"]) == (1, "policy.published")
        status, values = run(prover_cli, "publish", "--vk", vk, *where)
        assert status == 0 and (values["index"], values["size"]) == (0, 1)
        board.process.send_signal(signal.SIGKILL)
        board.process.wait(LONG_S)
        assert run(verifier_cli, "key", vk, *where, "--seen", seen)[0] == 2
        board = start(folder)
        assert board.log_key == where[-1]
        where[1] = board.target
        status, values = run(verifier_cli, "key", vk, *where, "--seen", seen)
        assert status == 0 and values["published"]["index"] == 0 and values["published"]["log"] == board.log_key
        assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC", values["published"]["time"])
        (tmp_path / "other.vk").write_bytes(others[0].to_bytes())
        assert run(prover_cli, "publish", "--vk", tmp_path / "other.vk", *where)[1]["index"] == 1
        result = CliRunner().invoke(verifier_cli, ["key", vk, *where, "--seen", str(seen)])
        assert result.exit_code == 0 and f"entry 0 of {NAME}" in result.output
        assert run(verifier_cli, "key", vk, *where)[0] == 2
        assert run(verifier_cli, "key", vk, "--seen", seen)[0] == 2
        assert run(verifier_cli, "key", vk, *where[:3], "junk", "--seen", seen)[0] == 2
        assert run(prover_cli, "publish", "--vk", world.path("marked.onnx"), *where)[0] == 2
        board.process.send_signal(signal.SIGTERM)
        assert board.process.wait(LONG_S) == 0
    finally:
        board.process.kill()
        board.process.wait()


def test_boards_on_one_database_show_one_log(world, others, largest_database, tmp_path):
    """Two processes take keys, one of them dies; a client who asks now this one, now that one sees one history."""
    url, seen = largest_database.render_as_string(hide_password=False), tmp_path / "seen"
    boards: list[Running] = []
    try:
        for _ in range(2):
            boards.append(start(tmp_path / "board", "--database", url))
        log = LogKey.from_text(boards[0].log_key)
        assert boards[1].log_key == boards[0].log_key
        mine = world.key.vk
        assert publish(boards[0].target, others[0].to_bytes()).index == 0
        assert publish(boards[1].target, mine.to_bytes()).index == 1
        assert publish(boards[0].target, mine.to_bytes()).index == 1
        for board in (*boards, *boards):
            assert [find(Board(board.target, log), key, seen).index for key in (others[0], mine)] == [0, 1]
        boards[0].process.kill()
        assert publish(boards[1].target, others[1].to_bytes()).index == 2
        assert find(Board(boards[1].target, log), mine, seen).index == 1
        assert open_checkpoint(seen.read_text(), log).size == 3
    finally:
        for board in boards:
            board.process.kill()
            board.process.wait()

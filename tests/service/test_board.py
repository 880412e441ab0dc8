"""The board: what the log keeps, what it proves over gRPC, and what a verifier notices when it lies."""

from __future__ import annotations

import asyncio
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

from ml.quantise import Derivation
from ml.triggers import abstract_images
from protocol.argument import Context
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.keygen import KeyParameters, VerificationKey, generate_key
from protocol.log import Entry, EntryKind, LogKey, Receipt, check_consistency, open_checkpoint
from protocol.soundness import smallest_k_min
from prover import board
from prover.board import Item, Log, Server, anchor, open_log, publish
from prover.cli import cli as prover_cli
from prover.jobs import make_claim, subject
from verifier.board import find
from verifier.cli import cli as verifier_cli
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

ROOT = Path(__file__).parents[2]
NAME = "log.example/keys"
SEED = bytes(range(32))
KEY = EntryKind.KEY
LONG_S = 60.0  # for what takes no time


def keys(count: int, start: int = 0) -> list[Item]:
    return [(KEY, bytes([n // 256, n % 256]) * 16, bytes([n % 256]) * 32) for n in range(start, start + count)]


@pytest.fixture
def log(tmp_path) -> Iterator[Log]:
    found = Log(tmp_path / "log.sqlite", NAME, SEED)
    yield found
    found.close()


def checked(log: Log, kind: EntryKind, vk_digest: bytes, owner: bytes, old_size: int = 0) -> Receipt:
    answer = log.receipt(kind, vk_digest, old_size)
    note = answer.checkpoint.note
    receipt = Receipt(Entry.from_bytes(answer.entry), answer.index, tuple(answer.path), note)
    receipt.check(log.key, vk_digest, owner)
    return receipt


# --- the log


def test_every_key_stays_where_it_was_taken(log):
    known = keys(37)
    seen = []
    for size in range(0, 37, 4):
        log.append(known[size : size + 4])
        seen.append(open_checkpoint(log.checkpoint(0).note, log.key))
    assert [checkpoint.size for checkpoint in seen] == [*range(4, 37, 4), 37] and log.size == 37
    for index, key in enumerate(known):
        assert checked(log, *key).index == index
    for old in seen:
        answer = log.checkpoint(old.size)
        check_consistency(old, open_checkpoint(answer.note, log.key), answer.consistency)
    assert log.receipt(KEY, bytes(31), 0) is None and list(log.checkpoint(38).consistency) == []


def test_an_empty_log(log):
    assert log.size == 0 and open_checkpoint(log.checkpoint(0).note, log.key).size == 0
    assert log.receipt(KEY, bytes(32), 0) is None


def test_a_key_is_taken_once(log):
    log.append(keys(3))
    before = log.checkpoint(0).note
    log.append([*keys(2), *keys(2)])
    assert log.checkpoint(0).note == before
    log.append([*keys(1, 9), *keys(1, 9), *keys(1, 10)])
    assert log.size == 5


def test_times_never_go_back(tmp_path):
    clock = iter([1000.0, 900.0, 2000.5])
    log = Log(tmp_path / "log.sqlite", NAME, SEED, lambda: next(clock))
    for n in range(3):
        log.append(keys(1, n))
    assert [checked(log, *keys(1, n)[0]).entry.unix_time for n in range(3)] == [1000, 1000, 2000]
    log.close()


def test_a_failed_batch_leaves_nothing(log, monkeypatch):
    log.append(keys(3))
    before = log.checkpoint(0).note
    real, calls = board.leaf_hash, []

    def fail(data: bytes) -> bytes:
        calls.append(data)
        if len(calls) == 4:
            raise OSError("no space")
        return real(data)

    monkeypatch.setattr(board, "leaf_hash", fail)
    with pytest.raises(OSError, match="no space"):
        log.append(keys(8, 3))
    assert log.size == 3 and log.checkpoint(0).note == before
    log.append(keys(9, 100))  # other ones: nothing of the first try is left, in memory neither
    assert log.size == 12 and all(checked(log, *key).index == 3 + n for n, key in enumerate(keys(9, 100)))


def test_a_log_is_opened_again(tmp_path):
    folder = tmp_path / "board"
    log = open_log(folder, NAME)
    log.append(keys(5))
    note, key = log.checkpoint(0).note, log.key
    log.close()
    again = open_log(folder, NAME)
    assert again.key == key and open_checkpoint(again.checkpoint(0).note, key) == open_checkpoint(note, key)
    again.close()
    assert (folder / "log.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ParameterError, match=re.escape(key.to_text())):
        open_log(folder, "another.example")
    (folder / "log.key").write_text("zkmark log key 1\nzz\n")
    with pytest.raises(DecodingError):
        open_log(folder, NAME)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "log.sqlite").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(DecodingError):
        open_log(folder, NAME)
    with pytest.raises(ParameterError):
        open_log(tmp_path / "c", "two words")


def test_what_is_stored_is_what_is_proven(log):
    """An entry that is altered behind the log's back no longer has a proof."""
    log.append(keys(6))
    forged = Entry(*keys(1, 2)[0], 1).to_bytes()
    log._db.execute("UPDATE entries SET entry = ? WHERE position = 2", (forged,))
    with pytest.raises(VerificationError, match=r"log\.inclusion"):
        checked(log, *keys(1, 2)[0])


# --- the service


@contextmanager
def serving(log: Log) -> Iterator[str]:
    """A board in a thread with an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> Server:
        server = Server(log, "127.0.0.1:0")
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


def test_publish_and_find(world, others, tmp_path):
    seen, log = tmp_path / "seen", open_log(tmp_path / "board", NAME)
    with serving(log) as target:
        for index, key in enumerate((others[0], world.key.vk)):
            receipt = publish(target, key.to_bytes())
            assert receipt.check(log.key, key.digest, key.owner_public_key).size == receipt.index + 1 == index + 1
        assert find(target, log.key, world.key.vk, seen).index == 1
        first = seen.read_text()
        publish(target, others[1].to_bytes())
        assert publish(target, world.key.vk.to_bytes()).index == 1
        assert find(target, log.key, world.key.vk, seen).index == 1
        sizes = [open_checkpoint(note, log.key).size for note in (first, seen.read_text())]
        assert sizes == [2, 3]
        with pytest.raises(VerificationError) as caught:
            find(target, log.key, others[2], seen)
        assert caught.value.check == "policy.published"
    assert [path.name for path in tmp_path.iterdir()] == sorted(["board", "seen"])


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
        find(target, log.key, vk, tmp_path / "seen")
    with pytest.raises(ConnectionError):
        anchor(target, log.key, bytes(32))


def test_requests_of_any_size(world, tmp_path):
    with serving(open_log(tmp_path / "board", NAME)) as target, grpc.insecure_channel(target) as connection:
        stub = pb_grpc.BoardStub(connection)
        for digest in (b"", b"x" * 100_000):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Find(pb.FindRequest(vk_digest=digest, old_size=(1 << 64) - 1), timeout=LONG_S)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        publish(target, world.key.vk.to_bytes())
        for size in (0, 1, 2, 1 << 62, (1 << 64) - 1):
            assert stub.Find(pb.FindRequest(vk_digest=world.key.vk.digest, old_size=size), timeout=LONG_S).index == 0
            assert not stub.Checkpoint(pb.CheckpointRequest(old_size=size), timeout=LONG_S).consistency


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
        find(target, log.key, world.key.vk, seen)
    last = seen.read_text()
    with serving(open_log(tmp_path / "backup", NAME)) as target:
        with pytest.raises(VerificationError) as caught:
            find(target, log.key, world.key.vk, seen)
        assert caught.value.check == "log.rollback"
        evidence = tmp_path / "seen.conflict"
        assert seen.read_text() == last and str(evidence) in str(caught.value)
        assert open_checkpoint(evidence.read_text(), log.key).size == 1
        # Another key makes the two histories of one size.
        publish(target, others[1].to_bytes())
        with pytest.raises(VerificationError) as caught:
            find(target, log.key, world.key.vk, seen)
        assert caught.value.check == "log.split" and seen.read_text() == last
        # And longer ones that do not join.
        publish(target, others[2].to_bytes())
        with pytest.raises(VerificationError) as caught:
            find(target, log.key, world.key.vk, seen)
        assert caught.value.check == "log.consistency" and seen.read_text() == last
        find(target, log.key, world.key.vk, tmp_path / "of a newcomer")  # whom only a comparison helps
        with pytest.raises(VerificationError):
            find(target, log.key, world.key.vk, seen)


Change = Callable[[pb.Receipt], object]


@contextmanager
def lying(log: Log, change: Change) -> Iterator[str]:
    class Servicer(pb_grpc.BoardServicer):
        def Find(self, request, context):
            answer = log.receipt(KEY, request.vk_digest, request.old_size)
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
    log = Log(tmp_path / "log.sqlite", NAME, SEED)
    log.append([*keys(4), (KEY, key.digest, key.owner_public_key)])
    with lying(log, lambda answer: None) as target:
        find(target, log.key, key, seen)
    log.append(keys(4, 4))
    before = seen.read_text()
    with lying(log, change) as target:
        with pytest.raises(error):
            find(target, log.key, key, seen)
    assert seen.read_text() == before
    with lying(log, lambda answer: None) as target:
        find(target, log.key, key, seen)
    assert seen.read_text() != before
    log.close()


def test_another_log_under_the_same_name(world, tmp_path):
    log = open_log(tmp_path / "board", NAME)
    pinned = LogKey(NAME, world.key.vk.owner_public_key)
    with serving(log) as target:
        publish(target, world.key.vk.to_bytes())
        with pytest.raises(VerificationError, match=r"log\.signature"):
            find(target, pinned, world.key.vk, tmp_path / "seen")
    assert not (tmp_path / "seen").exists()


def test_nobody_there(world, tmp_path):
    key = LogKey(NAME, world.key.vk.owner_public_key)
    with pytest.raises(ConnectionError, match="unavailable"):
        find("127.0.0.1:1", key, world.key.vk, tmp_path / "seen")
    with pytest.raises(ConnectionError):
        publish("127.0.0.1:1", b"x")
    (tmp_path / "seen").write_bytes(b"\xff\xfe")
    with pytest.raises(DecodingError):
        find("127.0.0.1:1", key, world.key.vk, tmp_path / "seen")


# --- the commands


@dataclass
class Running:
    process: subprocess.Popen[str]
    target: str
    log_key: str


def start(folder: Path) -> Running:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}"}
    words = ["board", "--folder", str(folder), "--name", NAME, "--listen", "127.0.0.1:0", "--json"]
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

"""Anchored keys: made on a board, finished after a crash at any instant, and never twice of one set of commitments."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from Crypto.Hash import SHAKE256

from protocol import keygen
from protocol.anchor import Anchor
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.identity import public_key
from protocol.keygen import KeyParameters, LabelRule, PendingKey, VerificationKey, check_key, commit_key
from protocol.log import Checkpoint, Entry, EntryKind, LogKey, leaf_hash, node_hash, open_note, sign_checkpoint
from prover import pending as pending_module
from prover.board import Access, Server, anchor, publish
from prover.cli import cli as prover_cli
from prover.keys import load_marking_key
from prover.log import Log, open_log
from prover.pending import MAX_DRAWS, anchored_key, pending_path
from verifier import board as verifying
from verifier.cli import cli as verifier_cli

SECRET = b"correct horse battery staple"
SEED = bytes(range(32))
LOG = LogKey("log.example/keys", public_key(SEED))
PARAMETERS = KeyParameters((1, 4, 4), 10, 12, LabelRule.CHOSEN)  # few triggers: these keys are made often
LONG_S = 60.0


def commit() -> PendingKey:
    images = np.frombuffer(SHAKE256.new(b"pending").read(12 * 16), np.uint8).reshape(12, 1, 4, 4)
    return commit_key(PARAMETERS, images, labels=[n % 10 for n in range(12)])


class Board:
    """A log of two entries, the second of which is another in every answer: no two answers are one coin."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def ask(self, digest: bytes) -> Anchor:
        self.asked.append(digest)
        second = bytes([len(self.asked)]) * 32
        root = node_hash(leaf_hash(Entry(EntryKind.COMMITMENTS, digest, b"", 1).to_bytes()), second)
        note = sign_checkpoint(SEED, Checkpoint(LOG.name, 2, root))
        return Anchor(LOG, 0, 1, (second,), 2, root, open_note(note, LOG)[1])


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "owner.mk", tmp_path / "owner.vk"


def make(files: tuple[Path, Path], ask: Callable[[bytes], Anchor], **changes: object) -> keygen.MarkingKey:
    given = {"secret": SECRET, "parameters": PARAMETERS, "commit": commit, **changes}
    return anchored_key(*files, ask=ask, **given)  # type: ignore[arg-type]


def refuse(*_: object) -> None:
    pytest.fail("was asked again")


def test_the_pending_key_is_stored_before_a_log_hears_of_it(files):
    board = Board()

    def ask(digest: bytes) -> Anchor:
        stored = pending_module._load(pending_path(files[0]), SECRET)
        assert stored.digest == digest and not files[0].exists() and not files[1].exists()
        return board.ask(digest)

    key = make(files, ask)
    check_key(key.vk)
    assert key.vk.anchor is not None and key.vk.anchor.log == LOG
    assert VerificationKey.from_bytes(files[1].read_bytes()).digest == key.vk.digest
    assert load_marking_key(files[0], SECRET).to_bytes() == key.to_bytes()
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["owner.mk", "owner.vk"]


def test_a_pending_key_is_encrypted(files):
    with pytest.raises(ConnectionError):
        make(files, unreachable)
    path = pending_path(files[0])
    data, stored = path.read_bytes(), pending_module._load(path, SECRET)
    assert path.stat().st_mode & 0o777 == 0o600
    for hidden in (stored.secrets.owner_secret_seed, stored.secrets.images[3].tobytes(), stored.digest):
        assert hidden not in data
    with pytest.raises(ParameterError, match="wrong passphrase"):
        make(files, Board().ask, secret=b"another")
    for bad in (b"", data[:40], data[:-1], data + b"\0", (files[0].parent / "owner.mk.pending").read_bytes()[::-1]):
        path.write_bytes(bad)
        with pytest.raises((DecodingError, ParameterError)):
            make(files, Board().ask)


def unreachable(_: bytes) -> Anchor:
    raise ConnectionError("no board")


class Crash(BaseException):
    """The process ends here."""


STEPS = ["commit", "ask", "asked", "mk", "mk written", "vk", "vk written"]


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_is_made_good(files, monkeypatch, step):
    """The same call again makes the key, and no second one of the same commitments is ever shown."""
    board, shown = Board(), []

    def crash(here: str) -> None:
        if here == step:
            raise Crash

    def ask(digest: bytes) -> Anchor:
        crash("ask")
        found = board.ask(digest)
        crash("asked")
        return found

    save, write = pending_module.save_marking_key, pending_module.write_file

    def save_crashing(path, key, secret):
        crash("mk")
        save(path, key, secret)
        shown.append(key.vk.to_bytes())
        crash("mk written")

    def write_crashing(path, data, mode=0o600):
        final = Path(path) == files[1]
        if final:
            crash("vk")
        write(path, data, mode)
        if final:
            shown.append(bytes(data))
            crash("vk written")
        else:
            crash("commit")

    with monkeypatch.context() as patch:
        patch.setattr(pending_module, "save_marking_key", save_crashing)
        patch.setattr(pending_module, "write_file", write_crashing)
        with pytest.raises(Crash):
            make(files, ask)
    assert pending_path(files[0]).exists()
    stored = pending_module._load(pending_path(files[0]), SECRET)
    if step == "mk written":
        files[1].write_bytes(b"mine")
        with pytest.raises(ParameterError, match="not overwritten"):
            make(files, refuse, commit=refuse)
        files[1].unlink()
    key = make(files, refuse if step in STEPS[4:] else board.ask, commit=refuse)
    shown += [files[1].read_bytes(), key.vk.to_bytes(), load_marking_key(files[0], SECRET).vk.to_bytes()]
    assert len(set(shown)) == 1 and key.owner_secret_seed == stored.secrets.owner_secret_seed
    check_key(key.vk)
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["owner.mk", "owner.vk"]


def test_a_coin_outside_the_window_takes_other_commitments(files, monkeypatch):
    """They are stored, too, before a log hears of them; and the coin that was refused opened nothing."""
    board, real = Board(), keygen.window
    monkeypatch.setattr(keygen, "window", lambda ell: real(ell) if len(board.asked) > 2 else (ell + 1, ell))
    stored = []

    def ask(digest: bytes) -> Anchor:
        stored.append(pending_module._load(pending_path(files[0]), SECRET).digest)
        return board.ask(digest)

    key = make(files, ask)
    assert board.asked == stored and len(set(board.asked)) == len(board.asked) >= 3
    assert key.vk.commitments_digest == board.asked[-1]
    check_key(key.vk)


def test_commitments_of_long_ago_are_blinded_anew(files):
    """The log took them, the owner's machine was off for weeks: the checkpoint of today does not count for them."""
    board, asked = Board(), []

    def ask(digest: bytes) -> Anchor:
        asked.append(digest)
        if len(asked) == 1:
            raise VerificationError("log.window", "late")
        return board.ask(digest)

    assert make(files, ask).vk.commitments_digest == asked[-1] != asked[0]


def test_other_errors_of_a_log_end_it(files):
    def ask(_: bytes) -> Anchor:
        raise VerificationError("log.signature", "forged")

    with pytest.raises(VerificationError, match=r"log\.signature"):
        make(files, ask)
    assert pending_path(files[0]).exists() and not files[0].exists() and not files[1].exists()
    make(files, Board().ask, commit=refuse)


def test_a_log_whose_coins_never_suit(files, monkeypatch):
    monkeypatch.setattr(keygen, "window", lambda ell: (ell + 1, ell))
    board = Board()
    with pytest.raises(ParameterError, match="not honest"):
        make(files, board.ask)
    assert len(board.asked) == MAX_DRAWS


def test_what_is_there_is_not_overwritten(files):
    mk, vk = files
    for path in files:
        path.write_bytes(b"mine")
        with pytest.raises(ParameterError, match="not overwritten"):
            make(files, refuse, commit=refuse)
        path.unlink()
    with pytest.raises(ConnectionError):
        make(files, unreachable)
    vk.write_bytes(b"mine")
    with pytest.raises(ParameterError, match="not overwritten"):
        make(files, refuse)
    vk.unlink()
    with pytest.raises(ParameterError, match="other parameters"):
        make(files, refuse, parameters=KeyParameters((1, 4, 4), 10, 13, LabelRule.CHOSEN))
    elsewhere = mk.parent / "elsewhere"
    elsewhere.mkdir()
    other = make((elsewhere / "owner.mk", elsewhere / "owner.vk"), Board().ask)
    mk.write_bytes((elsewhere / "owner.mk").read_bytes())
    with pytest.raises(ParameterError, match="not the key that"):
        make(files, refuse)
    assert not vk.exists() and load_marking_key(mk, SECRET).vk.digest == other.vk.digest


# On a board


@contextmanager
def serving(log: Log) -> Iterator[str]:
    """A board in a thread with an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> Server:
        server = Server(log, "127.0.0.1:0", Access(writes_per_minute=10_000.0), None)
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


@pytest.mark.reaches("log.consistency")
def test_a_coin_from_another_history_is_found_out(tmp_path):
    """The log shows an owner entries that it shows to nobody else: her anchor is not part of what others see."""
    log = open_log(tmp_path / "board", "log.example/keys")
    shutil.copytree(tmp_path / "board", tmp_path / "private")

    def key_anchored_on(board: str) -> VerificationKey:
        pending = commit()
        while (key := pending.draw(anchor(board, log.key, pending.digest).to_bytes())) is None:
            pending = pending.blinded_anew()
        return key.vk

    with serving(log) as target, serving(open_log(tmp_path / "private", "log.example/keys")) as private:
        for n in range(9):
            anchor(target, log.key, hashlib.sha256(bytes([n])).digest())
        where = verifying.Board(target, log.key)
        honest, cheat = key_anchored_on(target), key_anchored_on(private)
        for key in (honest, cheat):
            check_key(key)
            publish(target, key.to_bytes())
        assert verifying.find(where, honest, tmp_path / "seen").index > honest.anchor.index
        with pytest.raises(VerificationError) as caught:
            verifying.find(where, cheat, tmp_path / "seen")
    assert caught.value.check == "log.consistency"


def run(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])  # type: ignore[arg-type]


def test_a_key_is_anchored_on_a_board(files, tmp_path, monkeypatch):
    monkeypatch.setenv("ZKMARK_PASSPHRASE", "a passphrase")
    mk, vk = files
    log = open_log(tmp_path / "board", "log.example/keys")
    text = log.key.to_text()
    keygen_options = ["keygen", "--shape", "1,4,4", "--classes", 10, "--ell", 160, "--mk", mk, "--vk", vk]
    assert run(prover_cli, *keygen_options, "--board", "127.0.0.1:1").exit_code == 2
    away = run(prover_cli, *keygen_options, "--board", "127.0.0.1:1", "--log-key", text)
    assert away.exit_code == 2 and "no answer" in away.output and pending_path(mk).exists()
    assert run(prover_cli, *keygen_options).exit_code == 2  # another key at this place would forget the pending one
    with serving(log) as target:
        other = LogKey("another.example/keys", log.key.public).to_text()
        refused = run(prover_cli, *keygen_options, "--board", target, "--log-key", other, "--json")
        assert refused.exit_code == 1 and json.loads(refused.stdout)["failed_check"] == "log.signature"
        made = run(prover_cli, *keygen_options, "--board", target, "--log-key", text, "--json")
        assert made.exit_code == 0, made.output
        assert json.loads(made.stdout)["anchored"] is True and not pending_path(mk).exists()
        assert run(prover_cli, *keygen_options, "--board", target, "--log-key", text).exit_code == 2
        published = run(prover_cli, "publish", "--vk", vk, "--board", target, "--log-key", text, "--json")
        assert json.loads(published.stdout)["index"] == json.loads(published.stdout)["size"] - 1 > 0
    key = VerificationKey.from_bytes(vk.read_bytes())
    assert key.anchor is not None and key.anchor.index < key.anchor.size

    found = json.loads(run(verifier_cli, "key", vk, "--anchor-log", other, "--anchor-log", text, "--json").stdout)
    assert found["accepted"] and found["anchor"]["trusted"] and found["anchored_b"] < found["cut_and_choose_b"]
    plain = run(verifier_cli, "key", vk)
    assert plain.exit_code == 0 and "--anchor-log" in plain.output
    wrong = run(verifier_cli, "key", vk, "--anchor-log", other, "--json")
    assert wrong.exit_code == 1 and json.loads(wrong.stdout)["failed_check"] == "policy.anchor"
    assert run(verifier_cli, "key", vk, "--anchor-log", "junk").exit_code == 2

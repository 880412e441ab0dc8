"""The stored log, in SQLite and in PostgreSQL: what it keeps, and that writers do not disturb each other."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.log import Entry, EntryKind, Receipt, check_consistency, open_checkpoint
from prover import log as stored
from prover.log import Item, Log, open_log

NAME = "log.example/keys"
SEED = bytes(range(32))
KEY = EntryKind.KEY


def keys(count: int, start: int = 0) -> list[Item]:
    return [(KEY, bytes([n // 256, n % 256]) * 16, bytes([n % 256]) * 32) for n in range(start, start + count)]


@pytest.fixture
def log(database) -> Iterator[Log]:
    found = Log(database, NAME, SEED)
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


def test_times_never_go_back(database):
    clock = iter([1000.0, 900.0, 2000.5])
    log = Log(database, NAME, SEED, lambda: next(clock))
    for n in range(3):
        log.append(keys(1, n))
    assert [checked(log, *keys(1, n)[0]).entry.unix_time for n in range(3)] == [1000, 1000, 2000]
    log.close()


def test_a_failed_batch_leaves_nothing(log, monkeypatch):
    log.append(keys(3))
    before = log.checkpoint(0).note
    real, calls = stored.leaf_hash, []

    def fail(data: bytes) -> bytes:
        calls.append(data)
        if len(calls) == 4:
            raise OSError("no space")
        return real(data)

    monkeypatch.setattr(stored, "leaf_hash", fail)
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
    with log._engine.begin() as db:
        db.execute(text("UPDATE entries SET entry = :forged WHERE position = 2"), {"forged": forged})
    with pytest.raises(VerificationError, match=r"log\.inclusion"):
        checked(log, *keys(1, 2)[0])


@given(st.integers(0, 62), st.integers(0, (1 << 62) - 1))
def test_nodes_have_places_of_their_own(level, position):
    node = level, position >> level
    tile, slot = stored._place(node)
    assert stored._node(tile, slot) == node and 0 <= tile < 1 << 63 and 2 <= slot < 1 << stored.TILE + 1


def test_a_database_that_is_none(tmp_path):
    for url in ("junk", "nosuchthing://x", "postgresql+nosuchdriver://x", "://"):
        with pytest.raises(ParameterError, match="URL"):
            open_log(tmp_path / "board", NAME, url)
    with pytest.raises(ConnectionError, match="does not answer") as caught:
        open_log(tmp_path / "board", NAME, f"postgresql+psycopg://me:secret@/x?host={tmp_path}")
    assert "secret" not in str(caught.value)


def test_a_database_has_one_log(database, log):
    log.append(keys(1))
    with pytest.raises(ParameterError, match=re.escape(log.key.to_text())):
        Log(database, NAME, SEED[::-1])
    again = Log(database, NAME, SEED)
    assert again.size == 1
    again.close()


def test_several_boards_keep_one_log(database, log):
    """Whatever they do at the same time, there is one history, in which everything is once."""

    def write(start: int) -> None:
        """A board of its own: every other batch is also written by the next board."""
        mine = Log(database, NAME, SEED)
        for n in range(20):
            mine.append(keys(5, start + 5 * n))
            mine.checkpoint(0)
        mine.close()

    seen = []
    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, start) for start in (0, 50, 100)]
        while not all(writer.done() for writer in writers):
            seen.append(open_checkpoint(log.checkpoint(0).note, log.key))
    for writer in writers:
        writer.result()
    assert log.size == 200
    assert sorted(checked(log, *key).index for key in keys(200)) == list(range(200))
    for old in {checkpoint.size: checkpoint for checkpoint in seen}.values():
        answer = log.checkpoint(old.size)
        check_consistency(old, open_checkpoint(answer.note, log.key), answer.consistency)
    assert [checkpoint.size for checkpoint in seen] == sorted(checkpoint.size for checkpoint in seen)


def test_a_connection_that_breaks_is_made_again(log):
    log.append(keys(3))
    log._reader.connection.dbapi_connection.close()
    with pytest.raises(SQLAlchemyError):
        log.checkpoint(0)
    assert log.size == 3
    log.append(keys(3, 3))
    assert [checked(log, *key).index for key in keys(6)] == list(range(6))


def test_a_large_log_is_read_with_little_memory(database, monkeypatch):
    """The cache of nodes is bounded, and what was thrown out of it is fetched again."""
    monkeypatch.setattr(stored, "CACHED_NODES", 8)
    log = Log(database, NAME, SEED)
    log.append(keys(300))
    assert [checked(log, *key).index for key in keys(300)] == list(range(300)) and len(log._nodes) == 8
    log.close()

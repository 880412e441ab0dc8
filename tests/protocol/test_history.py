"""The checkpoint that somebody keeps: what replaces it, what convicts a log, and that a crash loses neither."""

import fcntl
import os
import stat

import pytest

from protocol import history
from protocol.errors import DecodingError, VerificationError
from protocol.history import alone, last_seen, see
from protocol.identity import public_key
from protocol.log import EMPTY_ROOT, MAX_NOTE_BYTES, Checkpoint, LogKey, leaf_hash, node_hash, sign_checkpoint

SEED = bytes(range(32))
KEY = LogKey("log.example/keys", public_key(SEED))
LEAF, NEXT = leaf_hash(b"one"), leaf_hash(b"two")
ONE, TWO = Checkpoint(KEY.name, 1, LEAF), Checkpoint(KEY.name, 2, node_hash(LEAF, NEXT))
OTHER = Checkpoint(KEY.name, 2, node_hash(NEXT, LEAF))


def note(checkpoint):
    return sign_checkpoint(SEED, checkpoint)


def test_the_last_checkpoint_is_kept(tmp_path):
    path = tmp_path / "seen"
    nothing = last_seen(path, KEY)
    assert nothing == Checkpoint(KEY.name, 0, EMPTY_ROOT)
    see(path, nothing, ONE, note(ONE), [])
    assert path.read_text() == note(ONE) and last_seen(path, KEY) == ONE
    see(path, ONE, TWO, note(TWO), [NEXT])
    assert last_seen(path, KEY) == TWO and os.listdir(tmp_path) == ["seen"]


@pytest.mark.parametrize(
    ("old", "new", "path", "check"),
    [(TWO, ONE, [], "log.rollback"), (TWO, OTHER, [], "log.split"), (ONE, OTHER, [NEXT], "log.consistency")],
)
def test_what_convicts_a_log_is_written_beside(tmp_path, old, new, path, check):
    """Both notes are signed: the old one stays, and the verdict says where they are."""
    kept, evidence = tmp_path / "seen", tmp_path / "seen.conflict"
    kept.write_text(note(old))
    with pytest.raises(VerificationError) as error:
        see(kept, old, new, note(new), path)
    assert error.value.check == check and str(error.value).count(check) == 1
    assert str(error.value).endswith(f"; {kept} and {evidence} show it")
    assert kept.read_text() == note(old) and evidence.read_text() == note(new)


def test_a_file_that_is_no_checkpoint(tmp_path):
    path = tmp_path / "seen"
    longest = note(ONE)
    longest += f"— {'x' * (MAX_NOTE_BYTES - len(longest.encode()) - 10)} AAAA\n"
    path.write_text(longest)
    assert len(path.read_bytes()) == MAX_NOTE_BYTES and last_seen(path, KEY) == ONE
    for data in (b"", b"\xff\n", note(ONE).encode()[:-2], longest.encode() + b"\n", longest.encode() + b"x"):
        path.write_bytes(data)
        with pytest.raises(DecodingError):
            last_seen(path, KEY)
    with pytest.raises(OSError):
        last_seen(tmp_path, KEY)


def test_one_at_a_time(tmp_path):
    """Whoever else locks the folder has to wait, also after an error."""

    def is_free():
        folder = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(folder)
        return True

    with alone(tmp_path / "seen"):
        assert not is_free()
    assert is_free()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyError), alone(tmp_path / "seen"):
        raise KeyError
    assert is_free() and len(os.listdir("/proc/self/fd")) == descriptors


def test_it_is_on_disk_at_return(tmp_path, monkeypatch):
    """First all bytes of the file, then its name: a crash leaves the old note or the new one."""
    path, synced = tmp_path / "seen", []

    def fsync(descriptor):
        found = os.fstat(descriptor)
        folder = stat.S_ISDIR(found.st_mode)
        synced.append(("folder", path.read_text()) if folder else ("file", found.st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    descriptors = len(os.listdir("/proc/self/fd"))
    see(path, last_seen(path, KEY), ONE, note(ONE), [])
    assert synced == [("file", len(note(ONE).encode()), False), ("folder", note(ONE))]
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_failed_write_leaves_the_old_note_alone(tmp_path, monkeypatch):
    path = tmp_path / "seen"
    path.write_text(note(ONE))
    monkeypatch.setattr(history.os, "replace", lambda *names: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        see(path, ONE, TWO, note(TWO), [NEXT])
    assert path.read_text() == note(ONE) and os.listdir(tmp_path) == ["seen"]

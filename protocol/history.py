"""The last checkpoint of a log that somebody accepted, kept in a file as a signed note.

Whoever keeps it notices when the log takes back what it showed; two who compare theirs notice two histories.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import DecodingError, VerificationError
from protocol.log import EMPTY_ROOT, MAX_NOTE_BYTES, Checkpoint, LogKey, check_consistency, open_checkpoint

CONFLICT = ".conflict"  # what is appended to a file name for the note that contradicts the file


def last_seen(path: Path, key: LogKey) -> Checkpoint:
    """The checkpoint in the file, of 0 entries if there is no file.  Raises as `open_checkpoint` does, or OSError."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_NOTE_BYTES + 1)
    except FileNotFoundError:
        return Checkpoint(key.name, 0, EMPTY_ROOT)
    try:
        return open_checkpoint(data.decode(), key)
    except UnicodeDecodeError:
        raise DecodingError(f"{path}: not a checkpoint") from None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Between `last_seen` and `see` nobody else is: an answer that came late must not take back what came meanwhile.

    The folder is locked, since the file itself is replaced.
    """
    import fcntl

    folder = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def see(path: Path, old: Checkpoint, new: Checkpoint, note: str, consistency: Sequence[bytes]) -> None:
    """Put the note of `new` in place of that of `old`, which the log at `new` must begin with; on disk at return.

    Raises as `check_consistency` does.  Then the new note is written beside the file: the two convict the log.
    """
    try:
        check_consistency(old, new, consistency)
    except VerificationError as error:
        evidence = path.with_name(path.name + CONFLICT)
        _write(evidence, note)
        reason = str(error).removeprefix(f"{error.check}: ")
        raise VerificationError(error.check, f"{reason}; {path} and {evidence} show it") from None
    _write(path, note)


def _write(path: Path, note: str) -> None:
    """All or nothing, so that a crash never loses the last checkpoint."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(note)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

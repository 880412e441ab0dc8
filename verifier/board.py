"""Where and when a key was published: a board is asked, and not believed.

The log must prove that it holds the key, and that it only grew since the checkpoint that this verifier saw last.  That
checkpoint is a file, a C2SP signed note: a verifier who asks with the file of another one sees whether both are shown
one log.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import grpc

from protocol.errors import DecodingError, VerificationError
from protocol.keygen import VerificationKey
from protocol.log import MAX_NOTE_BYTES, Checkpoint, Entry, LogKey, Receipt, check_consistency, open_checkpoint
from zkmark.terminal import printable
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

TIMEOUT_S = 30.0
CONFLICT = ".conflict"  # what is appended to a file name for the note that contradicts the file


def find(target: str, log: LogKey, key: VerificationKey, seen: Path, timeout_s: float = TIMEOUT_S) -> Receipt:
    """The receipt of `key` on the board at `target`, checked, and not older than `seen`, which is brought up to date.

    seen: the file of the last checkpoint, written if it does not exist yet.  If the log contradicts it, the new note is
    written beside it: the two files convict the log.

    Raises VerificationError `policy.published` if the log does not hold the key, or the failed check of `protocol.log`;
    DecodingError for malformed answers, ConnectionError if the board cannot be reached.
    """
    old = _last(seen, log)
    answer = _ask(target, pb.FindRequest(vk_digest=key.digest, old_size=old.size), timeout_s)
    note = answer.checkpoint.note
    receipt = Receipt(Entry.from_bytes(answer.entry), answer.index, tuple(answer.path), note)
    new = receipt.check(log, key.digest, key.owner_public_key)
    try:
        check_consistency(old, new, answer.checkpoint.consistency)
    except VerificationError as error:
        evidence = seen.with_name(seen.name + CONFLICT)
        _write(evidence, note)
        raise VerificationError(error.check, f"{_reason(error)}; {seen} and {evidence} show it") from None
    _write(seen, note)
    return receipt


def _last(path: Path, key: LogKey) -> Checkpoint:
    try:
        with open(path, "rb") as file:
            data = file.read(4 * MAX_NOTE_BYTES + 1)
    except FileNotFoundError:
        return Checkpoint(key.name, 0, bytes(32))
    try:
        return open_checkpoint(data.decode(), key)
    except UnicodeDecodeError:
        raise DecodingError(f"{path}: not a checkpoint") from None


def _ask(target: str, request: pb.FindRequest, timeout_s: float) -> pb.Receipt:
    with grpc.insecure_channel(target) as connection:
        try:
            return pb_grpc.BoardStub(connection).Find(request, timeout=timeout_s)
        except grpc.RpcError as error:
            details = printable(error.details() or "")
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise VerificationError("policy.published", details) from None
            code = error.code().name.lower().replace("_", " ")
            raise ConnectionError(f"no answer from the board at {target}: {code}: {details}") from None


def _reason(error: VerificationError) -> str:
    return str(error).removeprefix(f"{error.check}: ")


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

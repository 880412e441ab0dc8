"""Where and when a key was published: a board is asked, and not believed.

The log must prove that it holds the key, and that it only grew since the checkpoint that this verifier saw last.  That
checkpoint is a file, a C2SP signed note: a verifier who asks with the file of another one sees whether both are shown
one log.  A key that is anchored in this log must have its coin from the same history.  Witnesses whom she names have
looked before: so many of them must have signed a checkpoint that holds the key and that the log continues.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from protocol.cosignature import MAX_WITNESSES, Cosignature, WitnessKey
from protocol.errors import ParameterError, VerificationError
from protocol.history import alone, last_seen, see
from protocol.keygen import VerificationKey
from protocol.log import Checkpoint, Entry, LogKey, Receipt, check_consistency
from zkmark.connect import Tls, connect
from zkmark.terminal import printable
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Board:
    """A board and whom to believe about it: its log's key, and `threshold` of the `witnesses`."""

    target: str
    log: LogKey
    witnesses: tuple[WitnessKey, ...] = ()
    threshold: int = 0
    tls: Tls | None = None

    def __post_init__(self) -> None:
        if len({key.public for key in self.witnesses}) != len(self.witnesses) or len(self.witnesses) > MAX_WITNESSES:
            raise ParameterError(f"at most {MAX_WITNESSES} different witnesses")
        if not 0 <= self.threshold <= len(self.witnesses) or (self.witnesses and not self.threshold):
            raise ParameterError(f"of {len(self.witnesses)} witnesses as many can sign, and not {self.threshold}")


def find(board: Board, key: VerificationKey, seen: Path, timeout_s: float = TIMEOUT_S) -> Receipt:
    """The receipt of `key` on a board, checked, and not older than `seen`, which is brought up to date.

    seen: the file of the last checkpoint, written if it does not exist yet.  If the log contradicts it, the new note is
    written beside it: the two files convict the log.

    Raises VerificationError `policy.published` if the log does not hold the key, `policy.witnesses` if too few
    witnesses signed a checkpoint that does, or the failed check of `protocol.log` and `protocol.cosignature`;
    DecodingError for malformed answers, ConnectionError if the board cannot be reached.
    """
    publics = [witness.public for witness in board.witnesses]
    anchor = key.anchor if key.anchor is not None and key.anchor.log == board.log else None
    with alone(seen):
        old = last_seen(seen, board.log)
        request = pb.FindRequest(
            vk_digest=key.digest, old_size=old.size, witnesses=publics, threshold=board.threshold,
            anchor_size=0 if anchor is None else anchor.size,
        )  # fmt: skip
        answer = _ask(board, request, timeout_s)
        note = answer.checkpoint.note
        receipt = Receipt(Entry.from_bytes(answer.entry), answer.index, tuple(answer.path), note)
        new = receipt.check(board.log, key.digest, key.owner_public_key)
        see(seen, old, new, note, answer.checkpoint.consistency)
    if anchor is not None:
        check_consistency(anchor.checkpoint, new, answer.anchored)
    if board.threshold:
        _check_witnessed(board, key, receipt, new, answer.witnessed)
    return receipt


def _check_witnessed(
    board: Board, key: VerificationKey, receipt: Receipt, new: Checkpoint, witnessed: pb.Witnessed
) -> None:
    """Statement: enough witnesses signed a checkpoint that holds the key, and the log at `new` continues it."""
    if len(witnessed.witnesses) < board.threshold:
        found = f"{board.threshold} of the {len(board.witnesses)} witnesses"
        raise VerificationError("policy.witnesses", f"no checkpoint with this key is signed by {found}")
    signed = Receipt(receipt.entry, receipt.index, tuple(witnessed.path), witnessed.note)
    checkpoint = signed.check(board.log, key.digest, key.owner_public_key)
    Cosignature(tuple(witnessed.witnesses), witnessed.signature).check(board.log, checkpoint, board.witnesses)
    check_consistency(checkpoint, new, witnessed.consistency)


def _ask(board: Board, request: pb.FindRequest, timeout_s: float) -> pb.Receipt:
    with connect(board.target, board.tls) as connection:
        try:
            return pb_grpc.BoardStub(connection).Find(request, timeout=timeout_s)
        except grpc.RpcError as error:
            details = printable(error.details() or "")
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise VerificationError("policy.published", details) from None
            code = error.code().name.lower().replace("_", " ")
            raise ConnectionError(f"no answer from the board at {board.target}: {code}: {details}") from None

"""Anchors: a log took a key's commitments, and only then said what the key's coin depends on.

The owner has the digest of the commitments logged and waits for a signed checkpoint that holds it.  Ed25519 signatures
are deterministic and nobody but the log can tell the next one, so that the coin, into which all bytes of the anchor
are mixed, cannot be known when the commitments are made.  Who wants another coin needs another entry or a later
checkpoint of a log that everybody watches; a checkpoint counts for `WINDOW` entries, so that the number of coins that
an owner can have seen is at most WINDOW times the entries of the log.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol import identity
from protocol.encoding import Reader, Writer
from protocol.errors import ParameterError, VerificationError
from protocol.log import (
    HASH_BYTES,
    MAX_NAME,
    MAX_PATH,
    MAX_SIZE,
    Checkpoint,
    Entry,
    EntryKind,
    LogKey,
    Receipt,
    check_inclusion,
    check_name,
    leaf_hash,
    open_note,
)

WINDOW = 4096  # entries of a checkpoint from the anchored one on
MAX_ANCHOR_BYTES = 4096
MAGIC = b"zkmark anchor 1\n"


@dataclass(frozen=True)
class Anchor:
    """That a log held the commitments at a checkpoint.  index, unix_time: of their entry."""

    log: LogKey
    index: int
    unix_time: int
    path: tuple[bytes, ...]
    size: int
    root: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """The one encoding; what the coin depends on."""
        out = Writer().raw(MAGIC).text(self.log.name).raw(self.log.public).u64(self.index).u64(self.unix_time)
        out.u8(len(self.path)).raw(b"".join(self.path))
        return out.u64(self.size).raw(self.root).raw(self.signature).to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> Anchor:
        """The anchor encoded by `to_bytes`, not checked.  Raises DecodingError."""
        r = Reader(data, "anchor")
        r.magic(MAGIC)
        name, public = r.text(MAX_NAME), r.raw(identity.PUBLIC_KEY_BYTES)
        try:
            check_name(name)
        except ParameterError as error:
            raise r.fail(str(error)) from None
        identity.check_public_key(public)
        index, unix_time, length = r.u64(), r.u64(), r.u8()
        if length > MAX_PATH:
            raise r.fail("the path is too long")
        path = tuple(r.raw(HASH_BYTES) for _ in range(length))
        size, root, signature = r.u64(), r.raw(HASH_BYTES), r.raw(identity.SIGNATURE_BYTES)
        r.done()
        if not index < size <= MAX_SIZE:
            raise r.fail("the entry is not below the size")
        return Anchor(LogKey(name, public), index, unix_time, path, size, root, signature)

    @property
    def checkpoint(self) -> Checkpoint:
        """To be compared with checkpoints seen elsewhere (`protocol.log.check_consistency`)."""
        return Checkpoint(self.log.name, self.size, self.root)

    def check(self, digest: bytes) -> None:
        """Statement: the log `self.log` held the commitments with this digest when it signed `self.checkpoint`.

        Raises VerificationError `log.signature`, `log.inclusion`, or `log.window` if the checkpoint is later than
        WINDOW entries.  Left to the caller: whether that log is trusted.
        """
        identity.check_text(self.log.public, self.checkpoint.text(), self.signature, "log.signature")
        leaf = leaf_hash(Entry(EntryKind.COMMITMENTS, digest, b"", self.unix_time).to_bytes())
        check_inclusion(leaf, self.index, self.size, self.path, self.root)
        if self.size - self.index > WINDOW:
            raise VerificationError("log.window", f"the checkpoint is {self.size - self.index} entries later")


def anchor_of(receipt: Receipt, log: LogKey, digest: bytes) -> Anchor:
    """The anchor that a log's receipt of COMMITMENTS makes, checked.

    Raises VerificationError `log.entry` if the entry is of something else, or as `Anchor.check` does; DecodingError.
    """
    checkpoint, signature = open_note(receipt.note, log)
    entry = receipt.entry
    if (entry.kind, entry.digest) != (EntryKind.COMMITMENTS, digest):
        raise VerificationError("log.entry", f"the entry is of {entry.digest.hex()}")
    path, size, root = receipt.path, checkpoint.size, checkpoint.root
    anchor = Anchor(log, receipt.index, entry.unix_time, path, size, root, signature)
    anchor.check(digest)
    return anchor

"""A log of commitments in memory, which anchors keys."""

from __future__ import annotations

from collections.abc import Iterable

from protocol import identity
from protocol.anchor import Anchor
from protocol.log import (
    Checkpoint,
    Entry,
    EntryKind,
    LogKey,
    appended,
    inclusion_path,
    leaf_hash,
    open_note,
    root_hash,
    sign_checkpoint,
)

TIME = 1_700_000_000  # of all entries


class Log:
    """A log that anybody may ask: entries of commitments, checkpoints, anchors."""

    def __init__(self, secret: bytes, digests: Iterable[bytes] = ()) -> None:
        self._secret, self.key = secret, LogKey("log.example/keys", identity.public_key(secret))
        self._nodes: dict[tuple[int, int], bytes] = {}
        self._size = 0
        for digest in digests:
            self.take(digest)

    def _read(self, level: int, index: int) -> bytes:
        return self._nodes[level, index]

    def take(self, digest: bytes) -> None:
        """A new entry."""
        leaf = leaf_hash(Entry(EntryKind.COMMITMENTS, digest, b"", TIME).to_bytes())
        for level, index, value in appended(self._read, self._size, leaf):
            self._nodes[level, index] = value
        self._size += 1

    def anchor(self, index: int, size: int | None = None) -> Anchor:
        """Of an entry, at the checkpoint of the first `size` entries; of all by default."""
        size = size or self._size
        checkpoint = Checkpoint(self.key.name, size, root_hash(self._read, size))
        _, signature = open_note(sign_checkpoint(self._secret, checkpoint), self.key)
        path = tuple(inclusion_path(self._read, index, size))
        return Anchor(self.key, index, TIME, path, size, checkpoint.root, signature)

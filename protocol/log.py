"""An append-only log of published keys: Merkle proofs (RFC 9162), checkpoints and signed notes (C2SP).

    leaf = SHA-256(0x00 | entry),  node = SHA-256(0x01 | left | right); n leaves split at the largest power of two < n

The hash of every complete subtree is stored; a node (level, index) covers the leaves index 2^level to
(index + 1) 2^level - 1, and `Read` gets it.  So an append writes, and a proof reads, about log2(n) hashes.

A checkpoint is the text "origin\\nsize\\nbase64 of the root\\n" (C2SP tlog-checkpoint); its note carries an Ed25519
signature under the name of the log (C2SP signed-note).  Two notes that no consistency proof joins convict the log.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256

from protocol import identity
from protocol.encoding import Reader, Writer
from protocol.errors import DecodingError, ParameterError, VerificationError

HASH_BYTES = 32
MAX_SIZE = 1 << 62  # entries
MAX_PATH = 64  # hashes of a proof
MAX_NOTE_BYTES = 1 << 16
MAX_NAME = 256  # characters of an origin
ED25519 = b"\x01"  # the algorithm, in key hashes
EMPTY_ROOT = sha256(b"").digest()
NUMBER = re.compile("0|[1-9][0-9]{0,18}")
# Of ASCII only: which other characters are letters, spaces or nothing depends on the version of Unicode.
NAME = re.compile(f"[!-*,-~]{{1,{MAX_NAME}}}")

Read = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


# Making proofs


def appended(read: Read, size: int, leaf: bytes) -> list[tuple[int, int, bytes]]:
    """The complete subtrees (level, index, hash) that one more leaf closes, when there are `size` leaves."""
    level, index, out = 0, size, [(0, size, leaf)]
    while index & 1:
        leaf = node_hash(read(level, index - 1), leaf)
        level, index = level + 1, index >> 1
        out.append((level, index, leaf))
    return out


def root_hash(read: Read, size: int) -> bytes:
    """The root over the first `size` leaves."""
    return _subtree(read, 0, size) if size else EMPTY_ROOT


def inclusion_path(read: Read, index: int, size: int) -> list[bytes]:
    """The proof that leaf `index` is under the root over `size` leaves (RFC 9162 section 2.1.3.1)."""
    _check_range(0 <= index < size)
    first, last, path = 0, size, []
    while last - first > 1:
        middle = first + _split(last - first)
        if index < middle:
            path.append(_subtree(read, middle, last))
            last = middle
        else:
            path.append(_subtree(read, first, middle))
            first = middle
    return path[::-1]


def consistency_path(read: Read, old: int, new: int) -> list[bytes]:
    """The proof that the first `old` of `new` leaves have not changed (RFC 9162 section 2.1.4.1)."""
    _check_range(0 <= old <= new)
    if old in (0, new):
        return []
    first, last, path = 0, new, []
    while old != last:
        middle = first + _split(last - first)
        if old <= middle:
            path.append(_subtree(read, middle, last))
            last = middle
        else:
            path.append(_subtree(read, first, middle))
            first = middle
    if first:
        path.append(_subtree(read, first, last))
    return path[::-1]


def _subtree(read: Read, first: int, last: int) -> bytes:
    size = last - first
    if size & (size - 1) == 0:
        return read(size.bit_length() - 1, first // size)
    middle = first + _split(size)
    return node_hash(_subtree(read, first, middle), _subtree(read, middle, last))


def _split(size: int) -> int:
    """The largest power of two below `size` >= 2."""
    return 1 << (size - 1).bit_length() - 1


def _check_range(inside: bool) -> None:
    if not inside:
        raise ParameterError("no such part of the log")


# Checking proofs


def check_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Statement: `leaf` is the hash of leaf `index` under `root`, which is over `size` leaves (RFC 9162 2.1.3.2).

    Raises VerificationError `log.inclusion`, DecodingError for a path that is no list of hashes.
    """
    _check_path(path)
    at, last, found = index, size - 1, leaf
    good = 0 <= index < size <= MAX_SIZE
    for sibling in path:
        good = good and last > 0
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    if not good or last != 0 or found != root:
        raise VerificationError("log.inclusion", f"entry {index} is not in the log of {size} entries")


def check_consistency(old: Checkpoint, new: Checkpoint, path: Sequence[bytes]) -> None:
    """Statement: the log at `new` begins with all entries that it had at `old` (RFC 9162 section 2.1.4.2).

    Raises VerificationError: `log.rollback` if `new` is smaller, `log.split` if one size has two roots, otherwise
    `log.consistency`; DecodingError for a path that is no list of hashes.
    """
    _check_path(path)
    if old.origin != new.origin:
        raise ParameterError("checkpoints of two logs")
    if new.size < old.size:
        raise VerificationError("log.rollback", f"the log had {old.size} entries, and shows {new.size} now")
    if new.size == old.size and new.root != old.root:
        raise VerificationError("log.split", f"the log has shown two different histories of {old.size} entries")
    if old.size in (0, new.size):
        good = not path
    else:
        good = _joins(old, new, path)
    if not good:
        raise VerificationError("log.consistency", f"it is not shown that {old.size} entries stayed as they were")


def _check_path(path: Sequence[bytes]) -> None:
    if len(path) > MAX_PATH or any(len(value) != HASH_BYTES for value in path):
        raise DecodingError("log proof: not a list of hashes")


def _joins(old: Checkpoint, new: Checkpoint, path: Sequence[bytes]) -> bool:
    hashes = [old.root, *path] if old.size & (old.size - 1) == 0 else list(path)
    if not hashes:
        return False
    at, last = old.size - 1, new.size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = after = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            before, after = node_hash(sibling, before), node_hash(sibling, after)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            after = node_hash(after, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and (before, after) == (old.root, new.root)


# Checkpoints and notes


@dataclass(frozen=True)
class Checkpoint:
    """What a log shows: its name, the number of its entries, the root over them.  Raises ParameterError."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        check_name(self.origin)
        if not 0 <= self.size <= MAX_SIZE or len(self.root) != HASH_BYTES:
            raise ParameterError("not a checkpoint")

    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n"


@dataclass(frozen=True)
class LogKey:
    """The name and the Ed25519 public key of a log, as text: name+hash+base64 (C2SP signed-note, verifier key)."""

    name: str
    public: bytes

    @property
    def hash(self) -> bytes:
        """The 4 bytes that a signature line carries."""
        return sha256(self.name.encode() + b"\n" + ED25519 + self.public).digest()[:4]

    def to_text(self) -> str:
        return f"{self.name}+{self.hash.hex()}+{_base64(ED25519 + self.public)}"

    @staticmethod
    def from_text(text: str) -> LogKey:
        """The key that `to_text` wrote.  Raises DecodingError."""
        name, _, rest = text.partition("+")
        value = unbase64(rest.partition("+")[2])
        if not is_name(name) or value is None or value[:1] != ED25519:
            raise DecodingError("log key: not name+hash+base64 of an Ed25519 key")
        identity.check_public_key(value[1:])
        key = LogKey(name, value[1:])
        if key.to_text() != text:
            raise DecodingError("log key: the hash is not of this key")
        return key


def sign_checkpoint(secret_seed: bytes, checkpoint: Checkpoint) -> str:
    """The note: the text, and the signature of the log with this secret."""
    key, text = LogKey(checkpoint.origin, identity.public_key(secret_seed)), checkpoint.text()
    return f"{text}\n— {key.name} {_base64(key.hash + identity.sign_text(secret_seed, text))}\n"


def open_checkpoint(note: str, key: LogKey) -> Checkpoint:
    """The checkpoint in a note of the log with this key; signatures of others and extension lines are passed over.

    Raises as `open_note` does.
    """
    return open_note(note, key)[0]


def open_note(note: str, key: LogKey) -> tuple[Checkpoint, bytes]:
    """The checkpoint in a note of the log with this key, and the log's signature.

    Raises DecodingError for what is no checkpoint in a note, VerificationError `log.signature` without a signature of
    the log.
    """
    text, found, signatures = note.rpartition("\n\n")
    if len(note.encode()) > MAX_NOTE_BYTES or not found or not signatures.endswith("\n"):
        raise DecodingError("checkpoint: not a signed note")
    text += "\n"
    lines = text.split("\n")
    if len(lines) < 4 or not is_name(lines[0]) or not NUMBER.fullmatch(lines[1]) or not all(lines[:-1]):
        raise DecodingError("checkpoint: not origin, size and root")
    root, size = unbase64(lines[2]), int(lines[1])
    if root is None or len(root) != HASH_BYTES or size > MAX_SIZE:
        raise DecodingError("checkpoint: not origin, size and root")
    if lines[0] != key.name:
        raise VerificationError("log.signature", f"a checkpoint of another log than {key.name}")
    signed = [_signature(line) for line in signatures[:-1].split("\n")]
    for name, data in signed:
        if name == key.name and data[:4] == key.hash:
            identity.check_text(key.public, text, data[4:], "log.signature")
            return Checkpoint(lines[0], size, root), data[4:]
    raise VerificationError("log.signature", f"no signature of {key.name}")


def _signature(line: str) -> tuple[str, bytes]:
    mark, _, rest = line.partition(" ")
    name, _, value = rest.partition(" ")
    data = unbase64(value)
    if mark != "—" or not name or "+" in name or data is None:  # others may have names of any characters
        raise DecodingError("checkpoint: a line is no signature")
    return name, data


def check_name(name: str) -> None:
    """Raise ParameterError unless a log can have this name: ASCII that prints, without spaces and plus signs."""
    if not is_name(name):
        raise ParameterError(f"a name has 1 to {MAX_NAME} ASCII characters, without spaces and plus signs")


def is_name(name: str) -> bool:
    """Whether a log, or a witness, can have this name."""
    return NAME.fullmatch(name) is not None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unbase64(text: str) -> bytes | None:
    """The bytes with this canonical encoding, None for other text."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return data if _base64(data) == text else None


# Entries


class EntryKind(IntEnum):
    """What an entry is about: a published key, or commitments whose coin is yet to be drawn."""

    KEY = 0
    COMMITMENTS = 1


@dataclass(frozen=True)
class Entry:
    """What the log holds.  digest: of the vk, or of the commitments (`protocol.anchor`).

    owner: the public key of a KEY's owner, nothing for COMMITMENTS.  unix_time: seconds since 1970, when the log took
    it, by its own clock.
    """

    kind: EntryKind
    digest: bytes
    owner: bytes
    unix_time: int

    def to_bytes(self) -> bytes:
        out = Writer().raw(b"zkmark log entry 2\n").u8(self.kind)
        return out.raw(self.digest).raw(self.owner).u64(self.unix_time).to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> Entry:
        """The entry encoded by `to_bytes`.  Raises DecodingError."""
        r = Reader(data, "log entry")
        r.magic(b"zkmark log entry 2\n")
        kind = r.u8()
        if kind not in list(EntryKind):
            raise r.fail(f"unknown kind {kind}")
        owner_bytes = identity.PUBLIC_KEY_BYTES if kind == EntryKind.KEY else 0
        entry = Entry(EntryKind(kind), r.raw(HASH_BYTES), r.raw(owner_bytes), r.u64())
        r.done()
        return entry


@dataclass(frozen=True)
class Receipt:
    """That something was logged: its entry, where it is, the path to the root of the signed checkpoint."""

    entry: Entry
    index: int
    path: tuple[bytes, ...]
    note: str

    def check(self, key: LogKey, vk_digest: bytes, owner: bytes) -> Checkpoint:
        """Statement: the log with this key holds, at its checkpoint (returned), the vk with this digest and owner.

        Raises VerificationError `log.entry`, `log.inclusion` or `log.signature`, or DecodingError.
        Left to the caller: that others see the same log (`check_consistency` with checkpoints seen elsewhere).
        """
        checkpoint = open_checkpoint(self.note, key)
        if (self.entry.kind, self.entry.digest, self.entry.owner) != (EntryKind.KEY, vk_digest, owner):
            raise VerificationError("log.entry", f"the entry is of {self.entry.digest.hex()}")
        leaf = leaf_hash(self.entry.to_bytes())
        check_inclusion(leaf, self.index, checkpoint.size, self.path, checkpoint.root)
        return checkpoint

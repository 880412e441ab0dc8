"""A log of published keys in a database: SQLite in a folder, or PostgreSQL for several boards that keep one log.

All that was appended is on disk when `append` returns, and one writer at a time appends: it holds the one row of the
table `log`, also against other processes.  The hash of every complete subtree is a row; what a proof reads is fetched
in one query, or is in memory already, since it never changes.  Who puts back an older copy of the database makes the
log show two histories, and its clients will say so; a PostgreSQL must not answer from a replica that lags.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    make_url,
    select,
    update,
)
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, NoSuchModuleError, OperationalError

from protocol.cosignature import Cosignature
from protocol.errors import DecodingError, ParameterError
from protocol.identity import SECRET_SEED_BYTES, public_key
from protocol.log import (
    Checkpoint,
    Entry,
    EntryKind,
    LogKey,
    Read,
    appended,
    check_name,
    consistency_path,
    inclusion_path,
    leaf_hash,
    open_checkpoint,
    root_hash,
    sign_checkpoint,
)
from zkmark.v1 import zkmark_pb2 as pb

SECRET_MAGIC = "zkmark log key 1"
CACHED_NODES = 1 << 18  # some 50 MB
TILE = 6  # levels that are fetched together
BUSY_S = 60.0  # how long SQLite waits for another process
OFFER_S = 60.0  # how long witnesses are asked for the same checkpoint, if not all of them sign it before
KEPT_CHECKPOINTS = 8  # with cosignatures
KEPT_JOINED = 256  # sums of them

BIG = BigInteger().with_variant(Integer, "sqlite")
SCHEMA = MetaData()
# offered: the size of the checkpoint that witnesses are asked to sign, since when.
LOG = Table(
    "log", SCHEMA, Column("number", Integer, primary_key=True), Column("key", Text, nullable=False),
    Column("offered", BIG, nullable=False), Column("since", BIG, nullable=False),
)  # fmt: skip
ENTRIES = Table(
    "entries", SCHEMA, Column("position", BIG, primary_key=True, autoincrement=False),
    Column("kind", Integer, nullable=False), Column("digest", LargeBinary, nullable=False),
    Column("entry", LargeBinary, nullable=False), UniqueConstraint("digest", "kind"),
)  # fmt: skip
# Hashes of complete subtrees.  A tile holds TILE levels of a subtree, its slots are numbered like a heap's.
NODES = Table(
    "nodes", SCHEMA, Column("tile", BIG, primary_key=True, autoincrement=False),
    Column("slot", Integer, primary_key=True, autoincrement=False), Column("hash", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)  # fmt: skip
COSIGNATURES = Table(
    "cosignatures", SCHEMA, Column("size", BIG, primary_key=True, autoincrement=False),
    Column("witness", LargeBinary, primary_key=True), Column("signature", LargeBinary, nullable=False),
)  # fmt: skip

SIZE = select(func.coalesce(func.max(ENTRIES.c.position), -1) + 1)
NEWEST = select(ENTRIES.c.entry).order_by(ENTRIES.c.position.desc()).limit(1)
FIND = select(ENTRIES.c.position, ENTRIES.c.entry, SIZE.scalar_subquery()).where(
    ENTRIES.c.digest == bindparam("digest"), ENTRIES.c.kind == bindparam("kind")
)
KNOWN = select(ENTRIES.c.kind, ENTRIES.c.digest).where(ENTRIES.c.digest.in_(bindparam("digests", expanding=True)))
FETCH = select(NODES).where(NODES.c.tile.in_(bindparam("tiles", expanding=True)))
OFFER = select(LOG.c.offered, LOG.c.since)

Item = tuple[EntryKind, bytes, bytes]  # kind, digest, owner
Node = tuple[int, int]  # level, position
K = TypeVar("K")
V = TypeVar("V")


class Log:
    """The stored log.  One thread at a time may use it.  Raises SQLAlchemyError if the database fails."""

    def __init__(self, database: URL, name: str, secret_seed: bytes, clock: Callable[[], float] = time.time) -> None:
        """Raises ParameterError for a database with another log in it."""
        self.key = LogKey(name, public_key(secret_seed))
        self._secret_seed, self._clock = secret_seed, clock
        self._notes: dict[int, str] = {}  # by size
        self._nodes: dict[Node, bytes] = {}
        self._joined: dict[tuple[int, tuple[bytes, ...]], Cosignature] = {}  # by size and witnesses
        self._engine = _engine(database)
        self._reader: Connection | None = None
        stored = self._make()
        if stored != self.key.to_text():
            self.close()
            raise ParameterError(f"the log in {database.render_as_string(hide_password=True)} is {stored}")

    def _make(self) -> str:
        """The key of the log in the database, which is made if there is none."""
        try:
            SCHEMA.create_all(self._engine)
        except DatabaseError:
            SCHEMA.create_all(self._engine)  # another process made it meanwhile
        with suppress(IntegrityError), self._engine.begin() as db:
            db.execute(insert(LOG).values(number=1, key=self.key.to_text(), offered=0, since=0))
        with self._reading() as db:
            return str(db.scalar(select(LOG.c.key)))

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A connection without transactions, kept as long as it works: making one takes longer than a proof."""
        if self._reader is None:
            self._reader = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            yield self._reader
        except BaseException:
            self._reader.close()
            self._reader = None
            raise

    @property
    def size(self) -> int:
        """Number of entries."""
        with self._reading() as db:
            return _size(db)

    def append(self, items: Sequence[Item]) -> None:
        """Take items, all or none; those that the log holds stay where they are.  On disk at return.

        The times of entries never go back, whatever the clock does.
        """
        with self._engine.begin() as db:
            _lock(db)
            size, newest = _size(db), db.scalar(NEWEST)
            now = max(int(self._clock()), Entry.from_bytes(newest).unix_time if newest else 0)
            known = {(kind, digest) for kind, digest in db.execute(KNOWN, {"digests": [item[1] for item in items]})}
            entries: list[dict[str, Any]] = []
            nodes: dict[Node, bytes] = {}

            def read(level: int, position: int) -> bytes:
                node = level, position
                return nodes[node] if node in nodes else self._fetched(db, [node])[node]

            for kind, digest, owner in items:
                if (kind, digest) in known:
                    continue
                known.add((kind, digest))
                data, position = Entry(kind, digest, owner, now).to_bytes(), size + len(entries)
                for level, place, value in appended(read, position, leaf_hash(data)):
                    nodes[level, place] = value
                entries.append({"position": position, "kind": kind, "digest": digest, "entry": data})
            if entries:
                db.execute(insert(ENTRIES), entries)
                db.execute(insert(NODES), [_stored(node, value) for node, value in nodes.items()])

    def receipt(
        self, kind: EntryKind, digest: bytes, old_size: int, witnesses: Collection[bytes] = (), threshold: int = 0,
        anchor_size: int = 0,
    ) -> pb.Receipt | None:  # fmt: skip
        """Where an item is at the newest checkpoint, which continues that of `old_size` and that of `anchor_size`
        entries; None if the log does not hold it.

        With a threshold also where it is at the newest checkpoint that so many of the `witnesses` signed, if any.
        """
        with self._reading() as db:
            row = db.execute(FIND, {"kind": kind, "digest": digest}).first()
            if row is None:
                return None
            position, entry, size = row
            path = self._proof(db, lambda read: inclusion_path(read, position, size))
            checkpoint = self._checkpoint(db, old_size, size)
            anchored = self._continued(db, anchor_size, size)
            found = pb.Receipt(entry=entry, index=position, path=path, checkpoint=checkpoint, anchored=anchored)
            if threshold > 0:
                for signed, signatures in _cosignatures(db, position, size, witnesses).items():
                    if len(signatures) >= threshold:
                        found.witnessed.CopyFrom(self._witnessed(db, position, size, signed, signatures))
                        break
            return found

    def checkpoint(self, old_size: int) -> pb.SignedCheckpoint:
        """The newest checkpoint, and the proof that it continues the one of `old_size` entries."""
        with self._reading() as db:
            return self._checkpoint(db, old_size, _size(db))

    def offer(self, old_size: int, witnesses: Collection[bytes]) -> pb.SignedCheckpoint:
        """The checkpoint that all witnesses are asked to sign: the newest, when the last one had its time."""
        with self._engine.begin() as db:
            size, (offered, since), now = _size(db), db.execute(OFFER).one(), int(self._clock())
            if size > offered and (_signed_by(db, offered) >= set(witnesses) or not since <= now < since + OFFER_S):
                db.execute(update(LOG).where(LOG.c.offered < size).values(offered=size, since=now))
                offered = size
            return self._checkpoint(db, old_size, offered)

    def cosigned(self, size: int, witness: bytes, signature: bytes) -> None:
        """Keep the signature, already checked, of a witness on the checkpoint of `size` entries."""
        with self._engine.begin() as db:
            _lock(db)
            one = (COSIGNATURES.c.size == size) & (COSIGNATURES.c.witness == witness)
            db.execute(delete(COSIGNATURES).where(one))
            db.execute(insert(COSIGNATURES).values(size=size, witness=witness, signature=signature))
            sizes = select(COSIGNATURES.c.size).distinct().order_by(COSIGNATURES.c.size.desc())
            if (last := db.scalar(sizes.offset(KEPT_CHECKPOINTS - 1).limit(1))) is not None:
                db.execute(delete(COSIGNATURES).where(COSIGNATURES.c.size < last))

    def offered(self) -> Checkpoint:
        """The checkpoint that `offer` gave last."""
        with self._reading() as db:
            return open_checkpoint(self._note(db, db.execute(OFFER).one().offered), self.key)

    def _witnessed(
        self, db: Connection, position: int, size: int, signed: int, signatures: Mapping[bytes, bytes]
    ) -> pb.Witnessed:
        signers = signed, tuple(sorted(signatures))
        if signers not in self._joined:
            _keep(self._joined, {signers: Cosignature.join(signatures)}, KEPT_JOINED)
        joined = self._joined[signers]
        return pb.Witnessed(
            note=self._note(db, signed), witnesses=joined.witnesses, signature=joined.signature,
            path=self._proof(db, lambda read: inclusion_path(read, position, signed)),
            consistency=self._proof(db, lambda read: consistency_path(read, signed, size)),
        )  # fmt: skip

    def _checkpoint(self, db: Connection, old_size: int, size: int) -> pb.SignedCheckpoint:
        return pb.SignedCheckpoint(note=self._note(db, size), consistency=self._continued(db, old_size, size))

    def _continued(self, db: Connection, old_size: int, size: int) -> list[bytes]:
        return self._proof(db, lambda read: consistency_path(read, old_size, size)) if old_size <= size else []

    def _note(self, db: Connection, size: int) -> str:
        if size not in self._notes:
            (root,) = self._proof(db, lambda read: [root_hash(read, size)])
            note = sign_checkpoint(self._secret_seed, Checkpoint(self.key.name, size, root))
            _keep(self._notes, {size: note}, KEPT_CHECKPOINTS)
        return self._notes[size]

    def _proof(self, db: Connection, compute: Callable[[Read], list[bytes]]) -> list[bytes]:
        """What `compute` finds with the hashes of nodes, which are in memory, or fetched at once: a run says which."""
        with suppress(KeyError):
            return compute(lambda level, position: self._nodes[level, position])
        wanted: list[Node] = []

        def record(level: int, position: int) -> bytes:
            wanted.append((level, position))
            return bytes(32)

        compute(record)
        found = self._fetched(db, wanted)
        return compute(lambda level, position: found[level, position])

    def _fetched(self, db: Connection, nodes: Sequence[Node]) -> dict[Node, bytes]:
        """The hashes of stored nodes, and of some beside them."""
        found = {node: self._nodes[node] for node in nodes if node in self._nodes}
        if missing := {_place(node)[0] for node in nodes if node not in found}:
            rows = db.execute(FETCH, {"tiles": [*missing]})
            stored = {_node(tile, slot): bytes(value) for tile, slot, value in rows}
            _keep(self._nodes, stored, CACHED_NODES)
            found |= stored
        return found


def open_log(folder: Path, name: str, database: str = "") -> Log:
    """The log whose secret is in a folder, in a database (a URL of SQLAlchemy; by default SQLite in the folder).

    What does not exist is made.  Raises DecodingError, ParameterError or OSError.
    """
    check_name(name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    seed = secret_seed(folder / "log.key", SECRET_MAGIC)
    try:
        url = make_url(database) if database else URL.create("sqlite", database=str(folder / "log.sqlite"))
        return Log(url, name, seed)
    except (ArgumentError, NoSuchModuleError, ImportError):
        raise ParameterError("the database is a URL such as postgresql+psycopg://USER@HOST/NAME") from None
    except OperationalError as error:
        raise ConnectionError(f"the database does not answer: {error.orig}") from None
    except (DatabaseError, sqlite3.DatabaseError) as error:
        raise DecodingError(f"not the database of a log: {getattr(error, 'orig', error)}") from None


def secret_seed(path: Path, magic: str) -> bytes:
    """The 32 bytes in a file of a line `magic` and a line of hexadecimal digits; made, and on disk, if there is none.

    Raises DecodingError or OSError.
    """
    with suppress(FileExistsError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{magic}\n{os.urandom(SECRET_SEED_BYTES).hex()}\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        found, secret = path.read_text("ascii").split("\n")[:2]
        seed = bytes.fromhex(secret)
    except ValueError:
        found, seed = "", b""
    if found != magic or len(seed) != SECRET_SEED_BYTES:
        raise DecodingError(f"{path}: not a secret of this kind")
    return seed


def _engine(database: URL) -> Engine:
    if database.get_backend_name() != "sqlite":
        return create_engine(database, pool_pre_ping=True)
    engine = create_engine(database, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def durable(connection: Any, _: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    return engine


def _lock(db: Connection) -> None:
    """Be the only writer until the transaction ends: an update, since SQLite has no SELECT ... FOR UPDATE."""
    db.execute(update(LOG).values(number=LOG.c.number))


def _size(db: Connection) -> int:
    return int(db.scalar(SIZE) or 0)


def _place(node: Node) -> tuple[int, int]:
    """Tile and slot; the lowest four bits of a tile say how high it is."""
    band, depth = divmod(node[0], TILE)
    tile, rest = divmod(node[1], 1 << TILE - depth)
    return tile << 4 | band, (1 << TILE - depth) + rest


def _node(tile: int, slot: int) -> Node:
    height = slot.bit_length() - 1  # from the bottom of the heap
    return (tile & 15) * TILE + TILE - height, ((tile >> 4) - 1 << height) + slot


def _stored(node: Node, value: bytes) -> dict[str, Any]:
    tile, slot = _place(node)
    return {"tile": tile, "slot": slot, "hash": value}


def _signed_by(db: Connection, size: int) -> set[bytes]:
    return {bytes(one) for one in db.scalars(select(COSIGNATURES.c.witness).where(COSIGNATURES.c.size == size))}


def _cosignatures(
    db: Connection, position: int, size: int, witnesses: Collection[bytes]
) -> dict[int, dict[bytes, bytes]]:
    """The signatures of these witnesses on checkpoints that hold the entry, by size, the newest first."""
    query = select(COSIGNATURES).where(COSIGNATURES.c.size > position, COSIGNATURES.c.size <= size)
    found: dict[int, dict[bytes, bytes]] = {}
    for signed, witness, signature in db.execute(query.order_by(COSIGNATURES.c.size.desc())):
        if witness in witnesses:
            found.setdefault(signed, {})[bytes(witness)] = bytes(signature)
    return found


def _keep(cache: dict[K, V], more: Mapping[K, V], limit: int) -> None:
    """Add to a cache, and forget what has been there longest."""
    cache |= more
    for key in list(islice(cache, max(len(cache) - limit, 0))):
        del cache[key]

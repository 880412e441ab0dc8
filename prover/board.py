"""The board: a log of published keys in SQLite, and its gRPC face `zkmark.v1.Board`.

Keys wait in a queue and are appended together, one transaction and one sync to disk for all that came meanwhile: what
was acknowledged survives a crash, and what was not acknowledged may have been taken, too.  The folder of a board holds
its secret (`log.key`) and the log (`log.sqlite`).  Who puts back an older copy of the log makes it show two histories,
and its clients will say so.

Everybody may publish.  The board looks at a key before it takes it, and keeps only its digest; who may connect is for
a proxy in front of it to decide.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from protocol.anchor import Anchor, anchor_of
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.identity import SECRET_SEED_BYTES, public_key
from protocol.keygen import VerificationKey, check_key
from protocol.log import (
    HASH_BYTES,
    Checkpoint,
    Entry,
    EntryKind,
    LogKey,
    Receipt,
    appended,
    check_name,
    consistency_path,
    inclusion_path,
    leaf_hash,
    root_hash,
    sign_checkpoint,
)
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

SECRET_MAGIC = "zkmark log key 1"
MAX_KEY_BYTES = 64 << 20  # of a published key, in memory while it is checked
MAX_UPLOADS = 8
MAX_RPCS = 64
MAX_DETAILS = 200  # characters of an error text that are shown
CHUNK = 1 << 20
MAX_BATCH = 1024
CACHED_NODES = 1 << 17  # some 20 MB
UPLOAD_S = 60.0
GRACE_S = 10.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS log (key TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entries (position INTEGER PRIMARY KEY, kind INTEGER NOT NULL, digest BLOB NOT NULL,
  entry BLOB NOT NULL, UNIQUE (kind, digest));
CREATE TABLE IF NOT EXISTS nodes (level INTEGER, position INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, position))
  WITHOUT ROWID;
"""

Item = tuple[EntryKind, bytes, bytes]  # kind, digest, owner


class Log:
    """The stored log.  One thread at a time may use it."""

    def __init__(self, path: Path, name: str, secret_seed: bytes, clock: Callable[[], float] = time.time) -> None:
        self.key = LogKey(name, public_key(secret_seed))
        self._secret_seed, self._clock = secret_seed, clock
        self._signed: tuple[int, str] | None = None
        self._read = lru_cache(CACHED_NODES)(self._stored)  # a node never changes
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(SCHEMA)
        row = self._db.execute("SELECT key FROM log").fetchone()
        if row is None:
            self._db.execute("INSERT INTO log VALUES (?)", (self.key.to_text(),))
        elif row[0] != self.key.to_text():
            raise ParameterError(f"the log in {path} is {row[0]}")

    def close(self) -> None:
        self._db.close()

    @property
    def size(self) -> int:
        """Number of entries."""
        last: int | None = self._db.execute("SELECT MAX(position) FROM entries").fetchone()[0]
        return 0 if last is None else last + 1

    def append(self, items: Sequence[Item]) -> None:
        """Take items, all or none; those that the log holds stay where they are.  On disk at return.

        The times of entries never go back, whatever the clock does.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            size = self.size
            now = max(int(self._clock()), self._entry(size - 1).unix_time if size else 0)
            for kind, digest, owner in items:
                if self._position(kind, digest) is None:
                    self._append(size, Entry(kind, digest, owner, now))
                    size += 1
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            self._read.cache_clear()
            raise

    def receipt(self, kind: EntryKind, digest: bytes, old_size: int) -> pb.Receipt | None:
        """Where an item is at the newest checkpoint; None if the log does not hold it."""
        position, size = self._position(kind, digest), self.size
        if position is None:
            return None
        path = inclusion_path(self._read, position, size)
        checkpoint = self.checkpoint(old_size)
        return pb.Receipt(entry=self._entry(position).to_bytes(), index=position, path=path, checkpoint=checkpoint)

    def checkpoint(self, old_size: int) -> pb.SignedCheckpoint:
        """The newest checkpoint, and the proof that it continues the one of `old_size` entries."""
        size = self.size
        if self._signed is None or self._signed[0] != size:
            checkpoint = Checkpoint(self.key.name, size, root_hash(self._read, size))
            self._signed = size, sign_checkpoint(self._secret_seed, checkpoint)
        path = consistency_path(self._read, old_size, size) if old_size <= size else []
        return pb.SignedCheckpoint(note=self._signed[1], consistency=path)

    def _append(self, size: int, entry: Entry) -> None:
        data = entry.to_bytes()
        self._db.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (size, entry.kind, entry.digest, data))
        self._db.executemany("INSERT INTO nodes VALUES (?, ?, ?)", appended(self._read, size, leaf_hash(data)))

    def _position(self, kind: EntryKind, digest: bytes) -> int | None:
        query = "SELECT position FROM entries WHERE kind = ? AND digest = ?"
        row = self._db.execute(query, (kind, digest)).fetchone()
        return None if row is None else int(row[0])

    def _entry(self, position: int) -> Entry:
        row = self._db.execute("SELECT entry FROM entries WHERE position = ?", (position,)).fetchone()
        return Entry.from_bytes(row[0])

    def _stored(self, level: int, position: int) -> bytes:
        query = "SELECT hash FROM nodes WHERE level = ? AND position = ?"
        return bytes(self._db.execute(query, (level, position)).fetchone()[0])


def open_log(folder: Path, name: str) -> Log:
    """The log in a folder; both are made if they do not exist.  Raises DecodingError, ParameterError or OSError."""
    check_name(name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "log.key"
    with suppress(FileExistsError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{SECRET_MAGIC}\n{os.urandom(SECRET_SEED_BYTES).hex()}\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        magic, secret = path.read_text("ascii").split("\n")[:2]
        seed = bytes.fromhex(secret)
    except ValueError:
        magic, seed = "", b""
    if magic != SECRET_MAGIC or len(seed) != SECRET_SEED_BYTES:
        raise DecodingError(f"{path}: not the secret of a log")
    try:
        return Log(folder / "log.sqlite", name, seed)
    except sqlite3.DatabaseError as error:
        raise DecodingError(f"{folder / 'log.sqlite'}: {error}") from None


class Servicer(pb_grpc.BoardServicer):
    """zkmark.v1.Board over a `Log`: one thread for the log, one to look at keys."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._reader, self._checker = ThreadPoolExecutor(1, "log"), ThreadPoolExecutor(1, "keys")
        self._uploads = 0
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def Publish(self, request_iterator: Any, context: Any) -> pb.Receipt:
        if self._uploads >= MAX_UPLOADS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many publish; try again later")
        self._uploads += 1
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(UPLOAD_S):
                data = await _collect(request_iterator)
                key = await loop.run_in_executor(self._checker, _checked, data)
            receipt = await self._append(EntryKind.KEY, key.digest, key.owner_public_key)
        except (DecodingError, ParameterError, VerificationError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the upload took too long")
        finally:
            self._uploads -= 1
        return receipt

    async def Anchor(self, request: pb.AnchorRequest, context: Any) -> pb.Receipt:
        if len(request.digest) != HASH_BYTES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a digest has {HASH_BYTES} bytes")
        return await self._append(EntryKind.COMMITMENTS, request.digest, b"")

    async def Find(self, request: pb.FindRequest, context: Any) -> pb.Receipt:
        loop = asyncio.get_running_loop()
        wanted = EntryKind.KEY, request.vk_digest, request.old_size
        receipt = await loop.run_in_executor(self._reader, self._log.receipt, *wanted)
        if receipt is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the log does not hold this key")
        return receipt or pb.Receipt()

    async def Checkpoint(self, request: pb.CheckpointRequest, context: Any) -> pb.SignedCheckpoint:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, self._log.checkpoint, request.old_size)

    async def _append(self, kind: EntryKind, digest: bytes, owner: bytes) -> pb.Receipt:
        """Have an item appended, together with all that wait when the log is free."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append(((kind, digest, owner), done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await done
        return await loop.run_in_executor(self._reader, self._log.receipt, kind, digest, 0) or pb.Receipt()

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            items = [item for item, _ in batch]
            failure: Exception | None = None
            try:
                await asyncio.get_running_loop().run_in_executor(self._reader, self._log.append, items)
            except Exception as error:
                failure = error
            for _, done in batch:
                if not done.cancelled():
                    done.set_exception(failure) if failure else done.set_result(None)

    async def close(self) -> None:
        """Finish what was begun, and close the log."""
        if self._writing is not None:
            await self._writing
        for pool in (self._checker, self._reader):
            await asyncio.get_running_loop().run_in_executor(None, pool.shutdown)
        self._log.close()


async def _collect(chunks: Any) -> bytes:
    data = bytearray()
    try:
        async for chunk in chunks:
            if not chunk.data or len(data) + len(chunk.data) > MAX_KEY_BYTES:
                raise DecodingError(f"verification key: an empty chunk, or more than {MAX_KEY_BYTES} bytes")
            data += chunk.data
    except DecodeError:
        raise DecodingError("request: not a KeyChunk") from None
    return bytes(data)


def _checked(data: bytes) -> VerificationKey:
    key = VerificationKey.from_bytes(data)
    check_key(key)
    return key


class Server:
    """A running board: `port` is the bound one, `stop` ends it."""

    def __init__(self, log: Log, listen: str) -> None:
        self._servicer = Servicer(log)
        self._server = grpc.aio.server(maximum_concurrent_rpcs=MAX_RPCS, options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_BoardServicer_to_server(self._servicer, self._server)
        try:
            self.port = self._server.add_insecure_port(listen)
        except RuntimeError:
            raise ParameterError(f"cannot listen on {listen}") from None

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(GRACE_S)
        await self._servicer.close()


async def serve(log: Log, listen: str, ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT.  `ready` gets the bound port."""
    server, stopping = Server(log, listen), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await server.start()
    ready(server.port)
    await stopping.wait()
    await server.stop()


def publish(target: str, data: bytes, timeout_s: float = UPLOAD_S) -> Receipt:
    """Publish an encoded verification key on the board at `target`; the receipt is still to be checked.

    Raises ParameterError if the board does not take it, DecodingError if its answer is malformed, ConnectionError if it
    cannot be reached or is busy.
    """
    chunks = (pb.KeyChunk(data=data[at : at + CHUNK]) for at in range(0, len(data), CHUNK))
    return _receipt(target, lambda board: board.Publish(chunks, timeout=timeout_s))


def anchor(target: str, log: LogKey, digest: bytes, timeout_s: float = UPLOAD_S) -> Anchor:
    """Have the digest of a key's commitments logged on the board at `target`, whose log has this key; checked.

    The same digest again gives an anchor with the same entry at a later checkpoint.

    Raises as `publish` and `protocol.anchor.anchor_of` do.
    """
    request = pb.AnchorRequest(digest=digest)
    return anchor_of(_receipt(target, lambda board: board.Anchor(request, timeout=timeout_s)), log, digest)


def _receipt(target: str, call: Callable[[pb_grpc.BoardStub], pb.Receipt]) -> Receipt:
    with grpc.insecure_channel(target) as connection:
        try:
            answer = call(pb_grpc.BoardStub(connection))
        except grpc.RpcError as error:
            details = "".join(c if c.isprintable() else "?" for c in (error.details() or "")[:MAX_DETAILS])
            if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
                raise ParameterError(f"the board at {target} does not take this: {details}") from None
            raise ConnectionError(f"no answer from the board at {target}: {details}") from None
    return Receipt(Entry.from_bytes(answer.entry), answer.index, tuple(answer.path), answer.checkpoint.note)

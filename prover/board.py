"""The board: the gRPC face `zkmark.v1.Board` of a log of published keys (`prover.log`).

Entries wait in a queue and are appended together, one transaction and one sync to disk for all that came meanwhile:
what was acknowledged survives a crash, and what was not acknowledged may have been taken, too.

Everybody may read; with a list of tokens only their owners may write.  The board looks at a key before it takes it, and
keeps only its digest.  Witnesses whom the board knows sign its checkpoints; it keeps their signatures for clients who
ask for them.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError
from sqlalchemy.exc import SQLAlchemyError

from protocol.anchor import Anchor, anchor_of
from protocol.cosignature import MAX_WITNESSES, Cosignature, WitnessKey
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.keygen import VerificationKey, check_key
from protocol.log import HASH_BYTES, Entry, EntryKind, LogKey, Receipt
from prover.access import (
    Listening,
    Rate,
    Tokens,
    TooOften,
    Unauthenticated,
    allow_files,
    client,
    connection_options,
)
from prover.log import Item, Log
from prover.strict import Strict
from zkmark.connect import Tls, connect
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

MAX_KEY_BYTES = 64 << 20  # of a published key, in memory while it is checked
MAX_UPLOADS = 8
MAX_RPCS = 256
MAX_REQUEST_BYTES = 1 << 16  # of one message that is no chunk of a key
MAX_DETAILS = 200  # characters of an error text that are shown
CHUNK = 1 << 20
MAX_BATCH = 1024
UPLOAD_S = 60.0
GRACE_S = 10.0
WRITES_PER_MINUTE = 60.0  # of one client, and as many at once
OPTIONS = [
    ("grpc.max_receive_message_length", CHUNK + MAX_REQUEST_BYTES),
    ("grpc.http2.bdp_probe", 0),  # which would let grpc keep up to 16 MB of each upload in memory
    ("grpc.so_reuseport", 0),  # two boards on one port would share its clients unnoticed
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),  # clients ping each minute
]
logger = logging.getLogger("zkmark.board")
T = TypeVar("T")


@dataclass(frozen=True)
class Access:
    """Who may write, and how often.  witnesses: whose signatures the board keeps."""

    tokens: Tokens | None = None
    writes_per_minute: float = WRITES_PER_MINUTE
    witnesses: Sequence[WitnessKey] = ()

    def __post_init__(self) -> None:
        if len({key.public for key in self.witnesses}) != len(self.witnesses) or len(self.witnesses) > MAX_WITNESSES:
            raise ParameterError(f"a board has at most {MAX_WITNESSES} different witnesses")


class Servicer(pb_grpc.BoardServicer):
    """zkmark.v1.Board over a `Log`: one thread for the log, one to look at keys and signatures."""

    def __init__(self, log: Log, access: Access, authorities: bytes | None) -> None:
        self._log, self._access, self._authorities = log, access, authorities
        self._rate = Rate(access.writes_per_minute, max(int(access.writes_per_minute), 1))
        self._witnesses = {key.public: key for key in access.witnesses}
        self._reader, self._checker = ThreadPoolExecutor(1, "log"), ThreadPoolExecutor(1, "keys")
        self._uploads = 0
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def Publish(self, request_iterator: Any, context: Any) -> pb.Receipt:
        await self._admit(context)
        if self._uploads >= MAX_UPLOADS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many publish; try again later")
        self._uploads += 1
        try:
            async with asyncio.timeout(UPLOAD_S):
                data = await _collect(request_iterator)
                key = await asyncio.get_running_loop().run_in_executor(self._checker, _checked, data)
        except (DecodingError, ParameterError, VerificationError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the upload took too long")
        finally:
            self._uploads -= 1
        return await self._append((EntryKind.KEY, key.digest, key.owner_public_key), context)

    async def Anchor(self, request: pb.AnchorRequest, context: Any) -> pb.Receipt:
        await self._admit(context)
        if len(request.digest) != HASH_BYTES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a digest has {HASH_BYTES} bytes")
        return await self._append((EntryKind.COMMITMENTS, request.digest, b""), context)

    async def Find(self, request: pb.FindRequest, context: Any) -> pb.Receipt:
        if request.ByteSize() > MAX_REQUEST_BYTES or len(request.witnesses) > MAX_WITNESSES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request: too long")
        wanted = EntryKind.KEY, request.vk_digest, request.old_size, set(request.witnesses), request.threshold
        receipt = await self._read(context, self._log.receipt, *wanted, request.anchor_size)
        if receipt is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the log does not hold this key")
        return receipt or pb.Receipt()

    async def Checkpoint(self, request: pb.CheckpointRequest, context: Any) -> pb.SignedCheckpoint:
        return await self._read(context, self._log.checkpoint, request.old_size)

    async def Offer(self, request: pb.CheckpointRequest, context: Any) -> pb.SignedCheckpoint:
        return await self._read(context, self._log.offer, request.old_size, tuple(self._witnesses))

    async def AddCosignature(self, request: pb.CosignatureRequest, context: Any) -> pb.CosignatureAnswer:
        await self._admit(context)
        if request.witness not in self._witnesses:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a witness of this board")
        offered = await self._read(context, self._log.offered)
        if offered.size != request.size:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another checkpoint is offered")
        given = Cosignature((request.witness,), request.signature)
        known = [self._witnesses[request.witness]]
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._checker, given.check, self._log.key, offered, known)
        except (DecodingError, VerificationError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        await self._read(context, self._log.cosigned, request.size, request.witness, request.signature)
        return pb.CosignatureAnswer()

    async def _admit(self, context: Any) -> None:
        """A client who may write now, or the end of the call."""
        try:
            self._rate.spend(client(context, self._access.tokens, self._authorities))
        except Unauthenticated:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is needed")
        except TooOften:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too often; try again later")

    async def _read(self, context: Any, call: Callable[..., T], *args: object) -> T:
        """What the log answers, in its thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, call, *args)
        except SQLAlchemyError as error:
            logger.error("the database fails: %s", type(error).__name__)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the log cannot be read or written; try again later")
            raise

    async def _append(self, item: Item, context: Any) -> pb.Receipt:
        """Have an item appended, together with all that wait when the log is free."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        try:
            await done
        except SQLAlchemyError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the log cannot be read or written; try again later")
        return await self._read(context, self._log.receipt, item[0], item[1], 0) or pb.Receipt()

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            items = [item for item, _ in batch]
            failure: Exception | None = None
            try:
                await asyncio.get_running_loop().run_in_executor(self._reader, self._log.append, items)
            except Exception as error:
                logger.error("nothing was appended: %s", type(error).__name__)
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

    def __init__(self, log: Log, listen: str, access: Access | None = None, tls: Listening | None = None) -> None:
        self._servicer = Servicer(log, access or Access(), tls.client_authorities if tls else None)
        options = [*OPTIONS, *connection_options()]
        self._server = grpc.aio.server(interceptors=[Strict()], maximum_concurrent_rpcs=MAX_RPCS, options=options)
        pb_grpc.add_BoardServicer_to_server(self._servicer, self._server)
        try:
            if tls is None:
                self.port = self._server.add_insecure_port(listen)
            else:
                self.port = self._server.add_secure_port(listen, tls.credentials())
        except RuntimeError:
            raise ParameterError(f"cannot listen on {listen}") from None

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(GRACE_S)
        await self._servicer.close()


async def serve(make: Callable[[], Server], ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT with the server that `make` makes in this loop.  `ready` gets the bound port."""
    allow_files()
    server, stopping = make(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await server.start()
    ready(server.port)
    await stopping.wait()
    await server.stop()


def publish(
    target: str, data: bytes, timeout_s: float = UPLOAD_S, *, tls: Tls | None = None, token: str = ""
) -> Receipt:
    """Publish an encoded verification key on the board at `target`; the receipt is still to be checked.

    Raises ParameterError if the board does not take it, DecodingError if its answer is malformed, ConnectionError if it
    cannot be reached or is busy.
    """
    chunks = (pb.KeyChunk(data=data[at : at + CHUNK]) for at in range(0, len(data), CHUNK))
    return _receipt(ask(target, lambda board: board.Publish(chunks, timeout=timeout_s), tls, token))


def anchor(
    target: str, log: LogKey, digest: bytes, timeout_s: float = UPLOAD_S, *, tls: Tls | None = None, token: str = ""
) -> Anchor:
    """Have the digest of a key's commitments logged on the board at `target`, whose log has this key; checked.

    The same digest again gives an anchor with the same entry at a later checkpoint.

    Raises as `publish` and `protocol.anchor.anchor_of` do.
    """
    request = pb.AnchorRequest(digest=digest)
    answer = ask(target, lambda board: board.Anchor(request, timeout=timeout_s), tls, token)
    return anchor_of(_receipt(answer), log, digest)


def ask(target: str, call: Callable[[pb_grpc.BoardStub], T], tls: Tls | None, token: str) -> T:
    """One answer of the board at `target`.

    Raises ParameterError for INVALID_ARGUMENT, ConnectionError for everything else that is no answer.
    """
    with connect(target, tls, token) as connection:
        try:
            return call(pb_grpc.BoardStub(connection))
        except grpc.RpcError as error:
            details = "".join(c if c.isprintable() else "?" for c in (error.details() or "")[:MAX_DETAILS])
            if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
                raise ParameterError(f"the board at {target} does not take this: {details}") from None
            raise ConnectionError(f"no answer from the board at {target}: {details}") from None


def _receipt(answer: pb.Receipt) -> Receipt:
    return Receipt(Entry.from_bytes(answer.entry), answer.index, tuple(answer.path), answer.checkpoint.note)

"""What a client sends before anything is computed: a header and a model, within limits."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError

from ml.quantise import Derivation
from protocol.argument import Context
from protocol.errors import DecodingError, ParameterError
from prover.jobs import Prover
from prover.places import Pace, Upload
from prover.queue import Quota
from zkmark.v1 import zkmark_pb2 as pb

MAX_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class Limits:
    """upload: bytes of a model.  uploads: at once.  waiting: interactive sessions beside the one that is served.
    calls: of one client at once; per_minute, burst: calls that it may begin.  quota: of the queue.  pace: of uploads
    while others wait for their places.

    Seconds: for one message, for the upload, for all coins of a proof together, for a proof, and to stop.
    """

    upload: int = 256 << 20
    uploads: int = 64
    waiting: int = 8
    calls: int = 64
    per_minute: float = 120.0
    burst: int = 60
    quota: Quota = field(default_factory=Quota)
    pace: Pace = field(default_factory=Pace)
    message_s: float = 30.0
    upload_s: float = 300.0
    coins_s: float = 300.0
    proof_s: float = 600.0
    grace_s: float = 10.0


@dataclass(frozen=True)
class Header:
    """A header that was checked.  model_sha256: what the upload must have."""

    message: pb.ProveHeader
    context: Context
    derivation: Derivation
    size: int
    model_sha256: bytes


async def read(call: Any, expected: type[Any], kind: str, seconds: float) -> Any:
    """The next message of a call, with `kind` set.  Raises DecodingError, TimeoutError."""
    try:
        async with asyncio.timeout(seconds):
            message = await call.read()
    except DecodeError:
        raise DecodingError(f"request: not a {expected.__name__}") from None
    if not isinstance(message, expected) or message.WhichOneof("message") != kind:
        raise DecodingError(f"request: expected {kind}")
    return message


def check_header(message: pb.ProveHeader, prover: Prover, limits: Limits) -> Header:
    """Raises DecodingError or ParameterError for what can be told before the model is there."""
    if message.ByteSize() > MAX_HEADER_BYTES:
        raise DecodingError("request: the header is too long")
    context, derivation = Context.from_bytes(message.context), Derivation.from_bytes(message.derivation)
    prover.check_header(message.vk_digest, context, derivation)
    if not 0 < message.model_size <= limits.upload:
        raise ParameterError(f"a model has 1 to {limits.upload} bytes here")
    if len(message.model_sha256) != 32:
        raise DecodingError("request: the SHA-256 of a model has 32 bytes")
    return Header(message, context, derivation, message.model_size, message.model_sha256)


async def receive(
    chunk: Callable[[], Awaitable[bytes]], upload: Upload, header: Header, seconds: float, disk: Executor
) -> None:
    """The model, synced in its file.  Raises DecodingError unless it is the announced one, TimeoutError, Stalled."""
    have, digest, loop = 0, hashlib.sha256(), asyncio.get_running_loop()

    def take(data: bytes) -> None:
        upload.file.write(data)
        digest.update(data)

    def sync() -> None:
        upload.file.flush()
        os.fsync(upload.file.fileno())

    async with asyncio.timeout(seconds):
        async with upload.receiving():
            while have < header.size:
                data = await chunk()
                have += len(data)
                upload.took(len(data))
                if not data or have > header.size:
                    raise DecodingError("upload: empty chunk or more bytes than announced")
                await loop.run_in_executor(disk, take, data)
        await loop.run_in_executor(disk, sync)  # however long: the client has done its part
    if digest.digest() != header.model_sha256:
        raise DecodingError("upload: not the announced model")

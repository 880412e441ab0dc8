"""Places for the models that clients send: an upload that stalls gives its place to one that waits for it.

Otherwise those who send a byte a second would keep everybody else out for as long as an upload may take.  While there
are places enough, nobody is hurried.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prover.queue import Crowded, JobQueue
from prover.state import State


class Busy(Exception):
    """There are clients enough."""


class Stalled(Exception):
    """The upload came too slowly, and its place was needed."""


@dataclass(frozen=True)
class Pace:
    """An upload stalls if nothing came for `patience_s` seconds, or on the whole less than `rate` bytes a second."""

    patience_s: float = 3.0
    rate: float = float(16 << 10)


class Upload:
    """One model on its way into `file`."""

    def __init__(self, file: IO[bytes], pace: Pace, clock: Callable[[], float] = time.monotonic) -> None:
        self.file, self.path = file, Path(os.fsdecode(file.name))
        self._pace, self._clock = pace, clock
        self._began = self._last = clock()
        self._bytes, self._given_away = 0, False
        self._limit: asyncio.Timeout | None = None  # while it is received
        self._over = asyncio.Event()

    def took(self, count: int) -> None:
        """So many bytes came."""
        self._bytes += count
        self._last = self._clock()

    def rate(self) -> float:
        """Bytes a second, since it began."""
        return self._bytes / max(self._clock() - self._began, 1e-6)

    def stalls(self) -> bool:
        now, patience = self._clock(), self._pace.patience_s
        slow = now - self._began > patience and self.rate() < self._pace.rate
        return self._limit is not None and (slow or now - self._last > patience)

    @asynccontextmanager
    async def receiving(self) -> AsyncIterator[None]:
        """Around what reads the model.  Raises Stalled if the place was given away before the end."""
        try:
            async with asyncio.timeout(None) as self._limit:
                yield
        except TimeoutError:
            if self._given_away:
                raise Stalled from None
            raise
        finally:
            self._limit = None
            self._over.set()

    async def give_way(self) -> None:
        """End `receiving`, unless it comes to its end by itself.  For an upload that stalls."""
        limit, self._limit = self._limit, None  # it is asked once
        if limit is not None:
            self._given_away = True
            limit.reschedule(asyncio.get_running_loop().time())
        await self._over.wait()  # whoever received it leaves its place in the same step of the loop


class Places:
    """most: uploads at once.  upload_s: seconds for each; one that is too slow for that stalls, too."""

    def __init__(
        self, jobs: JobQueue, state: State, most: int, upload_s: float, pace: Pace,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._jobs, self._state, self._most, self._upload_s, self._pace = jobs, state, most, upload_s, pace
        self._clock = clock
        self._uploads: set[Upload] = set()

    @asynccontextmanager
    async def take(self, client: str, size: int) -> AsyncIterator[Upload]:
        """A place, and a file that is removed unless it was taken over.  Raises Busy or Full."""
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self._jobs.uploading(client, size))
                    if len(self._uploads) >= self._most:
                        raise Busy
                    break
                except (Busy, Crowded):
                    stack.close()
                    if not await self._made_room():
                        raise
            pace = Pace(self._pace.patience_s, max(self._pace.rate, size / self._upload_s))
            upload = Upload(stack.enter_context(self._state.new_upload()), pace, self._clock)
            stack.callback(upload.path.unlink, missing_ok=True)
            self._uploads.add(upload)
            stack.callback(self._uploads.remove, upload)
            yield upload

    async def _made_room(self) -> bool:
        """Whether one stalled: the slowest gives way."""
        slowest = min((upload for upload in self._uploads if upload.stalls()), key=Upload.rate, default=None)
        if slowest is not None:
            await slowest.give_way()
        return slowest is not None

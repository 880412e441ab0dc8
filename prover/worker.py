"""The one worker: a thread that makes claims, for queued jobs and for interactive sessions in turn."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event

from ml.quantise import Derivation
from protocol.argument import Cancelled, Context
from protocol.errors import DecodingError, ParameterError
from protocol.transcript import FiatShamir
from prover.jobs import REFUSAL, Prover, Refused
from prover.queue import RUNNING, Job, JobQueue
from prover.requests import Requests
from prover.telemetry import Metrics

SWEEP_S = 600.0
AGAIN_S = 5.0  # after an error of the disk
INTERNAL = "internal error"
TOO_LONG = "the proof took too long"
log = logging.getLogger("zkmark.prover")


class Worker:
    """Made in a running event loop.  `version` grows with every progress."""

    def __init__(self, prover: Prover, jobs: JobQueue, requests: Requests, metrics: Metrics, proof_s: float) -> None:
        self._prover, self._jobs, self._requests, self._metrics = prover, jobs, requests, metrics
        self._proof_s = proof_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prover")
        self._loop = asyncio.get_running_loop()
        self._wake, self._stopping = asyncio.Event(), Event()
        self._running: asyncio.Task[None] | None = None
        self._ends = 0.0
        self.sessions = 0  # that wait or are served
        self.progress: tuple[bytes, str, float] = (b"", "", 0.0)  # job, phase, fraction

    def start(self) -> None:
        """Begin with the jobs that wait."""
        self._running = asyncio.create_task(self._run())

    def wake(self) -> None:
        """There is a new job."""
        self._wake.set()

    def submit(self, session: Callable[[], bytes]) -> tuple[int, asyncio.Future[bytes]]:
        """Have an interactive session served in its turn: how many are ahead, and its result."""
        future = self._loop.run_in_executor(self._thread, session)
        ahead, self.sessions = self.sessions, self.sessions + 1
        future.add_done_callback(self._finished)
        return ahead, future

    async def stop(self, grace_s: float) -> None:
        """Give the running job `grace_s`, then put it back into the queue; wait for the thread."""
        self._wake.set()
        self._stopping.set()
        self._ends = time.monotonic() + grace_s
        if self._running is not None:
            await self._running
        await self._loop.run_in_executor(None, lambda: self._thread.shutdown(wait=True, cancel_futures=True))

    def record(
        self, model: Path, model_sha256: bytes, derivation: bytes, network_digest: bytes, client: str, context: Context
    ) -> None:
        """Keep a refused model for the owner to look at.  The client is answered in any case."""
        try:
            kept = self._requests.record(model, model_sha256, derivation, network_digest, client, context)
            if not kept:
                log.warning("no place for one more request; see zkmark-prover requests")
        except Exception as error:
            report(error)

    def _finished(self, future: asyncio.Future[bytes]) -> None:
        self.sessions -= 1
        if not future.cancelled():
            future.exception()  # a session whose client left is not an unhandled error

    async def _run(self) -> None:
        """One job at a time goes to the thread, so that sessions get their turn."""
        swept, broken = -SWEEP_S, False
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                if broken:
                    await self._loop.run_in_executor(self._thread, self._jobs.take_back)
                    broken = False
                found = await self._loop.run_in_executor(self._thread, self._next)
                if time.monotonic() > swept + SWEEP_S:
                    swept = time.monotonic()
                    await self._loop.run_in_executor(self._thread, self._jobs.sweep)
            except Exception as error:  # a full disk, for example: whatever was acknowledged is there still
                report(error)
                found, broken = False, True
            if not found:
                with suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN_S if broken else SWEEP_S):
                        await self._wake.wait()

    def _next(self) -> bool:
        """In the thread: do the next job; False if there is none."""
        job = None if self._stopping.is_set() else self._jobs.take()
        if job is None:
            return False
        began, state = time.monotonic(), "failed"
        try:
            claim = self._claim(job)
            self._jobs.done(job.id, claim)
            state = "done"
        except Refused as refused:
            self._metrics.refused("refused")
            self.record(
                self._jobs.model_path(job.id), job.model_sha256, job.derivation, refused.network_digest,
                self._jobs.first_client(job.id), Context.from_bytes(job.context),
            )  # fmt: skip
            self._jobs.failed(job.id, REFUSAL)
        except (DecodingError, ParameterError) as error:
            self._metrics.refused("malformed")
            self._jobs.failed(job.id, str(error), malformed=True)
        except Cancelled:
            if self._stopping.is_set():
                self._jobs.put_back(job.id)
                state = "put back"
            elif time.monotonic() > began + self._proof_s:
                self._jobs.give_up(job.id, TOO_LONG)
            else:
                self._jobs.give_up(job.id, "")  # its clients did already
                state = "cancelled"
        except Exception as error:
            report(error)
            self._jobs.give_up(job.id, INTERNAL)
        seconds = time.monotonic() - began
        self._metrics.job_seconds(seconds)
        log.info("job ended", extra={"fields": {"job": job.id.hex()[:16], "end": state, "seconds": round(seconds, 3)}})
        return True

    def _claim(self, job: Job) -> bytes:
        began, proving = time.monotonic(), False

        def progress(phase: str, fraction: float) -> None:
            nonlocal proving
            if phase != "derive" and not proving:
                self._jobs.proving(job.id)
                proving = True
            self.progress = (job.id, phase, fraction)

        def cancelled() -> bool:
            now, row = time.monotonic(), self._jobs.find(job.id)
            late = now > began + self._proof_s or (self._stopping.is_set() and now > self._ends)
            return late or row is None or row.state not in RUNNING

        derivation, context = Derivation.from_bytes(job.derivation), Context.from_bytes(job.context)
        model = self._jobs.model_path(job.id)
        return self._prover.claim(
            model, job.model_sha256, derivation, context, FiatShamir(), progress=progress, cancelled=cancelled
        )


def report(error: BaseException) -> None:
    """Neither a client nor the log gets the message of an error that nobody foresaw: it may quote a secret."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    log.error("internal error: %s at %s:%s", type(error).__name__, where.filename, where.lineno)

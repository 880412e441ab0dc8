"""What the job service survives: `python -m benchmarks.soak [--kills N] [--followers N] [--uploads N] [--megabytes N]`.

- N times kill -9 at random instants while clients submit, follow and fetch: what was acknowledged is done at the end,
  once, and its claim never changes.
- N clients that follow jobs, all of which see the end.
- N uploads at once: the memory of the server.
- Clients that stall and clients that send garbage: how much they delay jobs of others.

Figures go to benchmarks/results/soak.json.  Servers are forked from a process that has imported everything, so that a
kill costs little time; proofs are real, of a small network, unless --fake says how many seconds one pretends to take.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from ml.quantise import Derivation
from protocol.argument import Cancelled, Context
from zkmark.connect import job_id
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

RESULT = Path(__file__).parent / "results" / "soak.json"
SECRET = b"soak"
CHUNK = 1 << 20
WAIT_S = 600.0
CLIENTS = 4
LAPS = 20


# The server's side


def zygote(folder: Path, fake: float | None) -> None:
    """For each line of the input, a port: fork a server for it, and say its port and process."""
    import prover.server  # noqa: F401  (everything that servers need, once)
    from protocol.warm_up import warm_up

    if fake is None:
        warm_up(lambda _: None)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    own = os.getpid()

    def orphaned() -> None:
        while os.getppid() == own:
            time.sleep(1)
        os._exit(1)

    for line in sys.stdin:
        if os.fork() == 0:
            threading.Thread(target=orphaned, daemon=True).start()
            asyncio.run(_serve(folder, int(line), fake))
            os._exit(0)


async def _serve(folder: Path, port: int, fake: float | None) -> None:
    from prover.jobs import Prover
    from prover.queue import Quota
    from prover.server import Server, serve
    from prover.upload import Limits

    made = Prover(folder / "owner.mk", SECRET)
    if fake is not None:
        made.claim = _pretend(fake)  # type: ignore[method-assign]
    limits = Limits(
        per_minute=1e9, burst=10**9, calls=10**6, quota=Quota(10**4, 10**4, 16 << 30), grace_s=1.0, message_s=300.0
    )

    def ready(bound: int) -> None:
        print(bound, os.getpid(), flush=True)

    await serve(lambda: Server(made, f"127.0.0.1:{port}", limits), ready)


def _pretend(seconds: float) -> Callable[..., bytes]:
    """Takes as long as a proof, and gives other bytes each time."""

    def claim(*_: Any, progress: Callable[[str, float], None], cancelled: Callable[[], bool]) -> bytes:
        ends = time.monotonic() + seconds
        progress("pretend", 0.0)
        while time.monotonic() < ends:
            if cancelled():
                raise Cancelled
            time.sleep(0.005)
        return os.urandom(1000)

    return claim


class Servers:
    """One server at a time, on the port of the first."""

    def __init__(self, folder: Path, fake: float | None) -> None:
        options = [] if fake is None else ["--fake", str(fake)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.soak", "--zygote", str(folder), *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.port = self.pid = 0

    def start(self) -> None:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("pipes were asked for")
        self._process.stdin.write(f"{self.port}\n")
        self._process.stdin.flush()
        self.port, self.pid = (int(n) for n in self._process.stdout.readline().split())

    def end(self, number: int) -> None:
        """Send a signal, and wait until the process is gone."""
        os.kill(self.pid, number)
        ends = time.monotonic() + WAIT_S
        while Path(f"/proc/{self.pid}").exists():
            if time.monotonic() > ends:
                raise TimeoutError("a server does not end")
            time.sleep(0.005)

    def peak_bytes(self) -> int:
        """The most memory that the server has held."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def serving(folder: Path, fake: float | None) -> Iterator[Servers]:
    servers = Servers(folder, fake)
    try:
        servers.start()
        yield servers
        servers.end(signal.SIGTERM)
    finally:
        if servers.pid and Path(f"/proc/{servers.pid}").exists():
            os.kill(servers.pid, signal.SIGKILL)
        servers.close()


# The clients' side


@dataclass
class Asker:
    """Makes headers for a model under a key, and runs calls."""

    vk_digest: bytes
    model: bytes
    target: str

    def __post_init__(self) -> None:
        self.channel = grpc.insecure_channel(self.target, [("grpc.max_reconnect_backoff_ms", 100)])
        self.stub = pb_grpc.ProverStub(self.channel)

    def header(self, model: bytes | None = None) -> pb.ProveHeader:
        model = self.model if model is None else model
        return pb.ProveHeader(
            vk_digest=self.vk_digest, context=Context("soak", "", "", os.urandom(32)).to_bytes(),
            derivation=Derivation().to_bytes(), model_size=len(model), model_sha256=hashlib.sha256(model).digest(),
        )  # fmt: skip

    def submit(self, header: pb.ProveHeader, model: bytes | None = None) -> pb.Job:
        model = self.model if model is None else model
        chunks = (pb.SubmitRequest(model_chunk=model[at : at + CHUNK]) for at in range(0, len(model), CHUNK))
        sent = _stream(pb.SubmitRequest(header=header), chunks)
        return self.stub.Submit(sent, timeout=WAIT_S, wait_for_ready=True)

    def end(self, name: bytes) -> pb.Job:
        *_, last = self.stub.Follow(pb.JobRequest(id=name), timeout=WAIT_S, wait_for_ready=True)
        return last

    def download(self, name: bytes) -> bytes:
        request = pb.DownloadRequest(id=name)
        return b"".join(chunk.data for chunk in self.stub.Download(request, timeout=WAIT_S, wait_for_ready=True))


def _stream(first: pb.SubmitRequest, rest: Iterator[pb.SubmitRequest]) -> Iterator[pb.SubmitRequest]:
    yield first
    yield from rest


@dataclass
class Books:
    """acknowledged: headers by id; claims: the digest that was seen first; wrong: what must not happen."""

    acknowledged: dict[bytes, pb.ProveHeader] = field(default_factory=dict)
    claims: dict[bytes, bytes] = field(default_factory=dict)
    gave_up: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, job: pb.Job, data: bytes) -> None:
        digest = hashlib.sha256(data).digest()
        with self.lock:
            if digest != job.claim_sha256 or self.claims.setdefault(job.id, digest) != digest:
                self.wrong.append(f"{job.id.hex()[:16]}: another claim than before")


def kill_loop(
    folder: Path, vk_digest: bytes, model: bytes, kills: int, fake: float | None, most_s: float
) -> dict[str, Any]:
    """`kills` times kill -9 within at most `most_s` after a server began.  Raises RuntimeError if anything was lost."""
    books, stop, began = Books(), threading.Event(), time.monotonic()
    with serving(folder, fake) as servers:
        target = f"127.0.0.1:{servers.port}"
        askers = [Asker(vk_digest, model, target) for _ in range(CLIENTS)]
        threads = [threading.Thread(target=_client, args=(asker, books, stop)) for asker in askers]
        for thread in threads:
            thread.start()
        for _ in range(kills):
            time.sleep(random.uniform(0, most_s))
            servers.end(signal.SIGKILL)
            servers.start()
        stop.set()
        for thread in threads:
            thread.join()
        asker = Asker(vk_digest, model, target)
        for name, header in books.acknowledged.items():
            _settle(asker, books, name, header)
    _look(folder, books)
    if books.wrong:
        raise RuntimeError("; ".join(books.wrong[:5]))
    return {
        "kills": kills, "acknowledged": len(books.acknowledged), "lost": 0, "duplicated": 0,
        "given_up_and_asked_again": books.gave_up, "seconds": round(time.monotonic() - began),
    }  # fmt: skip


def _client(asker: Asker, books: Books, stop: threading.Event) -> None:
    """Submits each job twice, sometimes fetches one, and minds no failure."""
    while not stop.is_set():
        header = asker.header()
        for _ in range(2):
            while not stop.is_set():
                try:
                    job = asker.submit(header)
                except grpc.RpcError:
                    time.sleep(0.02)
                    continue
                with books.lock:
                    books.acknowledged[job.id] = header
                break
        with suppress(grpc.RpcError, ValueError):
            if random.random() < 0.5 and (last := asker.end(job_id(header))).state == pb.Job.DONE:
                books.note(last, asker.download(last.id))
        stop.wait(0.1)


def _settle(asker: Asker, books: Books, name: bytes, header: pb.ProveHeader) -> None:
    """An acknowledged job is there, and ends with a claim."""
    ends = time.monotonic() + WAIT_S
    while time.monotonic() < ends:
        try:
            last = asker.end(name)
            if last.state == pb.Job.DONE:
                books.note(last, asker.download(name))
                return
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:  # a connection to a server that is dead
                time.sleep(0.05)
                continue
            books.wrong.append(f"{name.hex()[:16]}: {error.code().name}")
            return
        if last.state != pb.Job.CANCELLED or not last.reason:
            books.wrong.append(f"{name.hex()[:16]}: state {last.state} {last.reason}")
            return
        books.gave_up += 1  # its server was killed three times: it is asked for again
        with suppress(grpc.RpcError):
            asker.submit(header)
    books.wrong.append(f"{name.hex()[:16]}: no end")


def _look(folder: Path, books: Books) -> None:
    """The folder holds one row and one claim for each job, and no other file."""
    from prover.state import State

    state = State(folder / "owner.state")
    db = state.connect()
    rows = dict(db.execute("SELECT id, state FROM jobs").fetchall())
    db.close()
    if not set(books.acknowledged) <= set(rows):
        books.wrong.append("an acknowledged job has no row")
    claims = {path.name for path in (state.folder / "claims").iterdir()}
    if claims != {name.hex() for name, value in rows.items() if value == pb.Job.DONE}:
        books.wrong.append("claims and jobs that are done differ")
    models = {path.name for path in (state.folder / "models").iterdir()}
    if models != {name.hex() for name, value in rows.items() if value < pb.Job.DONE}:
        books.wrong.append("models and jobs that wait differ")
    if list((state.folder / "uploads").iterdir()):
        books.wrong.append("uploads are left")


def followers(folder: Path, vk_digest: bytes, model: bytes, count: int, fake: float | None) -> dict[str, Any]:
    """`count` clients follow four jobs; how long a call of somebody else takes meanwhile."""

    async def follow(target: str, names: list[bytes]) -> list[int]:
        async def one(channel: grpc.aio.Channel, name: bytes) -> int:
            state = 0
            async for job in pb_grpc.ProverStub(channel).Follow(pb.JobRequest(id=name), timeout=WAIT_S):
                state = job.state
            return state

        channels = [grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(count)]
        ends = await asyncio.gather(*(one(c, names[k % len(names)]) for k, c in enumerate(channels)))
        await asyncio.gather(*(channel.close() for channel in channels))
        return ends

    with serving(folder, fake) as servers:
        asker = Asker(vk_digest, model, f"127.0.0.1:{servers.port}")
        alone = _latency(asker)
        names = [asker.submit(asker.header()).id for _ in range(4)]
        ends: list[int] = []
        thread = threading.Thread(target=lambda: ends.extend(asyncio.run(follow(asker.target, names))))
        thread.start()
        time.sleep(1.0)
        beside = _latency(asker)
        thread.join()
        peak = servers.peak_bytes()
    if ends != [pb.Job.DONE] * count:
        raise RuntimeError("a follower did not see the end")
    return {"followers": count, "call_ms_alone": alone, "call_ms_beside": beside, "peak_mib": peak >> 20}


def _latency(asker: Asker) -> float:
    """Milliseconds of a small call, the median of some."""
    times = []
    for _ in range(50):
        began = time.perf_counter()
        b"".join(chunk.data for chunk in asker.stub.Key(pb.KeyRequest(), timeout=WAIT_S))
        times.append(time.perf_counter() - began)
    return round(sorted(times)[len(times) // 2] * 1000, 2)


def uploads(folder: Path, vk_digest: bytes, count: int, megabytes: int) -> dict[str, Any]:
    """`count` uploads at once, of what is no model in the end."""
    with serving(folder, None) as servers:
        target = f"127.0.0.1:{servers.port}"
        before = _warm(Asker(vk_digest, b"x", target), servers)
        began, states = time.monotonic(), []

        def one(number: int) -> None:
            model = number.to_bytes(8, "little") * (megabytes * 10**6 // 8)
            asker = Asker(vk_digest, model, target)
            states.append(asker.end(asker.submit(asker.header()).id).state)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        peak = servers.peak_bytes()
    if states != [pb.Job.FAILED] * count:
        raise RuntimeError("an upload was lost")
    return {
        "uploads": count, "megabytes": megabytes, "seconds": round(time.monotonic() - began, 1),
        "mib_before": before >> 20, "peak_mib": peak >> 20,
    }  # fmt: skip


def _warm(asker: Asker, servers: Servers) -> int:
    asker.end(asker.submit(asker.header()).id)
    return servers.peak_bytes()


def stalling(folder: Path, vk_digest: bytes, model: bytes, fake: float | None) -> dict[str, Any]:
    """Seconds of LAPS jobs, one after the other: alone, and beside 48 uploads that stall and 4 clients of garbage."""
    with serving(folder, fake) as servers:
        target, stop = f"127.0.0.1:{servers.port}", threading.Event()
        asker = Asker(vk_digest, model, target)
        _lap(asker)

        def stalled() -> Iterator[pb.SubmitRequest]:
            yield pb.SubmitRequest(header=asker.header())
            yield pb.SubmitRequest(model_chunk=model[:100])
            stop.wait()

        def garbage() -> None:
            with grpc.insecure_channel(target) as channel:
                call: Any = channel.stream_unary("/zkmark.v1.Prover/Submit")
                while not stop.wait(0.05):
                    try:
                        call(iter([os.urandom(1000)]), timeout=WAIT_S)
                    except grpc.RpcError:
                        continue

        alone, beside = [_lap(asker)], []
        slow = [Asker(vk_digest, model, target).stub.Submit.future(stalled(), timeout=WAIT_S) for _ in range(48)]
        threads = [threading.Thread(target=garbage) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        beside.append(_lap(asker))
        stop.set()
        for call in slow:
            call.cancel()
        for thread in threads:
            thread.join()
        alone.append(_lap(asker))
    return {
        "jobs": LAPS, "seconds_alone": round(min(alone), 2), "seconds_beside": round(beside[0], 2),
        "delay_percent": round(100 * (beside[0] / min(alone) - 1), 1),
    }  # fmt: skip


def _lap(asker: Asker) -> float:
    began = time.monotonic()
    for _ in range(LAPS):
        if asker.end(asker.submit(asker.header()).id).state != pb.Job.DONE:
            raise RuntimeError("a job was not done")
    return time.monotonic() - began


def small_world(folder: Path) -> tuple[bytes, bytes]:
    """owner.mk in a folder, with an approved network: the digest of its key, and the model."""
    from benchmarks.model import memorize
    from ml.triggers import abstract_images
    from protocol.keygen import KeyParameters, generate_key
    from prover.jobs import approve, subject
    from prover.keys import save_marking_key

    shape = (1, 12, 12)
    key = generate_key(KeyParameters(shape, 10, 160), abstract_images(160, shape))
    model = memorize(key, "mlp", 0.25)
    save_marking_key(folder / "owner.mk", key, SECRET)
    approve(folder / "owner.mk", SECRET, subject(model, Derivation(), None, key.vk))
    return key.vk.digest, model


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--followers", type=int, default=200)
    parser.add_argument("--uploads", type=int, default=50)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--fake", type=float, metavar="SECONDS", help="no real proofs; one takes so long")
    parser.add_argument("--dry", action="store_true", help="write no result")
    parser.add_argument("--zygote", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.zygote:
        zygote(options.zygote, options.fake)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digest, model = small_world(folder)
        found: dict[str, Any] = {}
        stages: dict[str, Callable[[], dict[str, Any]]] = {
            "stalling": lambda: stalling(folder, digest, model, options.fake),
            "followers": lambda: followers(folder, digest, model, options.followers, options.fake),
            "uploads": lambda: uploads(folder, digest, options.uploads, options.megabytes),
            "kill -9": lambda: kill_loop(folder, digest, model, options.kills, options.fake, 3.0),
        }
        for what, run in stages.items():
            print(f"{what} ...", flush=True)
            found[what] = run()
            print(json.dumps(found[what]), flush=True)
    if not options.dry:
        RESULT.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""kill -9 at random instants, while clients submit, share, follow, fetch and take back jobs."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections import Counter, deque
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from benchmarks.soak.clients import Asker, Kind, World, kinds
from benchmarks.soak.servers import WAIT_S, serving
from zkmark.connect import job_id
from zkmark.v1 import zkmark_pb2 as pb

CLIENTS = 4
OPEN = 2  # jobs of a client that have not ended: more would only wait, and be done after the last kill
MOST_S = 3.0  # after which a server is killed at the latest
STATES = {pb.Job.QUEUED: "queued", pb.Job.DERIVING: "deriving", pb.Job.PROVING: "proving"}


@dataclass
class Asked:
    """A job that was acknowledged.  taken_back: None, or whether the server acknowledged that, too."""

    header: pb.ProveHeader
    model: bytes
    ends: int
    taken_back: bool | None = None


@dataclass
class Books:
    """claims: the digest that was seen first; wrong: what must not happen."""

    acknowledged: dict[bytes, Asked] = field(default_factory=dict)
    claims: dict[bytes, bytes] = field(default_factory=dict)
    gave_up: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, job: pb.Job, data: bytes) -> None:
        digest = hashlib.sha256(data).digest()
        with self.lock:
            if digest != job.claim_sha256 or self.claims.setdefault(job.id, digest) != digest:
                self.wrong.append(f"{job.id.hex()[:16]}: another claim than before")


def kill(world: World, kills: int, fake: float | None, side_by_side: int) -> dict[str, Any]:
    """`kill_loop` of several servers at once, each with a folder of its own; the sums of what they say."""
    shares = [kills // side_by_side + (number < kills % side_by_side) for number in range(side_by_side)]
    with tempfile.TemporaryDirectory() as name:
        worlds = [World(Path(name) / str(number), world.vk_digest, world.model) for number in range(side_by_side)]
        for each in worlds:
            each.folder.mkdir()
            shutil.copy(world.folder / "owner.mk", each.folder)
        with multiprocessing.get_context("spawn").Pool(side_by_side) as pool:
            jobs = [(each, share, fake, MOST_S) for each, share in zip(worlds, shares, strict=True)]
            found = pool.starmap(kill_loop, jobs, chunksize=1)
    sums = {name: sum(each[name] for each in found) for name in found[0] if name not in ("struck", "seconds")}
    struck = sum((Counter(each["struck"]) for each in found), Counter[str]())
    return {**sums, "servers": side_by_side, "struck": struck, "seconds": max(each["seconds"] for each in found)}


def kill_loop(world: World, kills: int, fake: float | None, most_s: float) -> dict[str, Any]:
    """`kills` times kill -9 within at most `most_s` after a server began.  Raises RuntimeError if anything was lost.

    struck: at how many kills there were uploads, and jobs in each state.
    """
    books, stop, began, struck = Books(), threading.Event(), time.monotonic(), Counter[str]()
    asked_for = kinds(world.model, fake is not None)
    with serving(world.folder, fake) as servers:
        askers = [Asker(world, servers.target) for _ in range(CLIENTS)]
        threads = [threading.Thread(target=_client, args=(asker, asked_for, books, stop)) for asker in askers]
        for thread in threads:
            thread.start()
        for _ in range(kills):
            time.sleep(random.uniform(0, most_s))
            servers.end(signal.SIGKILL)
            struck.update(_struck(world.folder))
            servers.start()
        stop.set()
        for thread in threads:
            thread.join()
        asker = Asker(world, servers.target)
        for name, asked in books.acknowledged.items():
            _settle(asker, books, name, asked)
    _look(world.folder, books)
    if books.wrong:
        raise RuntimeError("; ".join(books.wrong[:5]))
    return {
        "kills": kills, "acknowledged": len(books.acknowledged), "lost": 0, "duplicated": 0,
        "taken_back": sum(asked.taken_back is True for asked in books.acknowledged.values()),
        "given_up_and_asked_again": books.gave_up, "struck": struck, "seconds": round(time.monotonic() - began),
    }  # fmt: skip


def _client(asker: Asker, asked_for: list[Kind], books: Books, stop: threading.Event) -> None:
    """Submits each job twice, takes some back, fetches the others, and minds no failure."""
    waiting: deque[bytes] = deque()
    shares = [kind.share for kind in asked_for]
    while not stop.is_set():
        if len(waiting) >= OPEN:
            _fetch(asker, books, waiting.popleft(), stop)
            continue
        (kind,) = random.choices(asked_for, shares)
        model = kind.make()
        header = asker.header(model)
        asked = Asked(header, model, kind.ends)
        for _ in range(2):
            while not stop.is_set():
                try:
                    job = asker.submit(header, model, random.uniform(0, 1))
                except grpc.RpcError:
                    time.sleep(0.02)
                    continue
                with books.lock:
                    books.acknowledged[job.id] = asked
                break
        if random.random() < 0.1 and job_id(header) in books.acknowledged:
            _take_back(asker, asked)
        elif random.random() < 0.9:  # nobody asks for the others before the end
            waiting.append(job_id(header))
        stop.wait(random.uniform(0, 0.5))


def _take_back(asker: Asker, asked: Asked) -> None:
    asked.taken_back = False
    with suppress(grpc.RpcError):
        job = asker.cancel(job_id(asked.header))
        asked.taken_back = job.state == pb.Job.CANCELLED and not job.reason  # it was not given up before


def _fetch(asker: Asker, books: Books, name: bytes, stop: threading.Event) -> None:
    """Follow a job to its end, over all servers."""
    while not stop.is_set():
        with suppress(grpc.RpcError):
            last = asker.end(name)
            if last.state == pb.Job.DONE:
                books.note(last, asker.download(name))
            return
        stop.wait(0.02)


def _settle(asker: Asker, books: Books, name: bytes, asked: Asked) -> None:
    """An acknowledged job is there, and ends as it must."""
    ends = time.monotonic() + WAIT_S
    while time.monotonic() < ends:
        try:
            last = asker.end(name)
            if last.state == pb.Job.DONE:
                books.note(last, asker.download(name))
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:  # a connection to a server that is dead
                time.sleep(0.05)
                continue
            books.wrong.append(f"{name.hex()[:16]}: {error.code().name}")
            return
        if last.state == pb.Job.CANCELLED and last.reason:  # its server was killed three times: it is asked for again
            books.gave_up += 1
            with suppress(grpc.RpcError):
                asker.submit(asked.header, asked.model)
            continue
        wanted = [] if asked.taken_back else [asked.ends]
        if asked.taken_back is not None:
            wanted.append(pb.Job.CANCELLED)
        if last.state not in wanted:
            books.wrong.append(f"{name.hex()[:16]}: state {last.state} {last.reason}")
        return
    books.wrong.append(f"{name.hex()[:16]}: no end")


def _struck(folder: Path) -> set[str]:
    """What a server that was killed had begun: from a copy, so that the next server finds what the last one left."""
    state = folder / "owner.state"
    with tempfile.TemporaryDirectory() as name:
        for path in state.glob("state.sqlite*"):
            shutil.copy(path, name)
        with closing(sqlite3.connect(Path(name) / "state.sqlite")) as db:
            rows = db.execute("SELECT DISTINCT state FROM jobs WHERE state < 4").fetchall()
    found = {STATES[value] for (value,) in rows}
    if os.listdir(state / "uploads"):
        found.add("uploading")
    return found or {"idle"}


def _look(folder: Path, books: Books) -> None:
    """The folder holds one row and one claim for each job, and no other file."""
    from prover.state import State

    state = State(folder / "owner.state")
    with closing(state.connect()) as db:
        rows = dict(db.execute("SELECT id, state FROM jobs").fetchall())
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

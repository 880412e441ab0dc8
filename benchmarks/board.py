"""How fast a board is: `python -m benchmarks.board` writes benchmarks/results/board.json.

- append: entries a second, 1024 in a transaction, each synced to disk.
- prove: receipts a second of random entries, each with an inclusion proof and a consistency proof from a random size.
- find: the same over gRPC, for clients in processes of their own.
- anchor: entries a second over gRPC, when as many calls as the board takes wait for the disk together.

The log is in SQLite in a temporary folder, and then, where it is installed, in a PostgreSQL of our own that syncs to
the same disk (board-postgresql.json); with --database URL it is there alone, and stays.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import grpc
from sqlalchemy import URL, make_url

from benchmarks import postgres, results
from protocol.log import EntryKind
from prover.board import Access, Server, serve
from prover.log import Item, Log
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

NAME, SEED = "benchmark", bytes(32)
BATCH = 1024
CALLS = 64  # of one client at once


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.board", description=__doc__)
    parser.add_argument("--database", metavar="URL")
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--proofs", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--calls", type=int, default=4000, help="of each client")
    parser.add_argument("--dry", action="store_true", help="write no result")
    options = parser.parse_args()
    if options.database:
        measure(make_url(options.database), options)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(sqlite(Path(folder)), options)
    if postgres.programs():
        with postgres.temporary(durable=True) as url:
            measure(url, options)


def measure(url: URL, options: argparse.Namespace) -> None:
    busy, kind = results.others(), url.get_backend_name()
    log, drawn = Log(url, NAME, SEED), Random(1)
    items: list[Item] = [(EntryKind.KEY, drawn.randbytes(32), bytes(32)) for _ in range(options.entries)]
    found: dict[str, Any] = {"database": kind, "entries": options.entries, "batch": BATCH}
    found["appends_per_s"] = appends(log, items)
    found["proofs_per_s"] = proofs(log, items, options.proofs, drawn)
    log.close()
    digests = [digest for _, digest, _ in items]
    found |= {"clients": options.clients, "calls": options.calls}
    for name in ("Find", "Anchor"):
        found[f"{name.lower()}_per_s"] = served(url, name, digests, options.clients, options.calls)
    print(json.dumps(found), flush=True)
    if not options.dry:
        results.save("board" if kind == "sqlite" else f"board-{kind}", busy, found)


def sqlite(folder: Path) -> URL:
    return URL.create("sqlite", database=str(folder / "log.sqlite"))


def appends(log: Log, items: list[Item]) -> float:
    start = time.perf_counter()
    for at in range(0, len(items), BATCH):
        log.append(items[at : at + BATCH])
    return round(len(items) / (time.perf_counter() - start), 1)


def proofs(log: Log, items: list[Item], count: int, drawn: Random) -> float:
    wanted = [(drawn.choice(items)[1], drawn.randint(1, len(items))) for _ in range(count)]
    start = time.perf_counter()
    for digest, old_size in wanted:
        log.receipt(EntryKind.KEY, digest, old_size)
    return round(count / (time.perf_counter() - start), 1)


def served(url: URL, method: str, digests: list[bytes], clients: int, calls: int) -> float:
    """Answers a second of a board in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    board = spawn.Process(target=keep, args=(url.render_as_string(hide_password=False), theirs))
    board.start()
    port: int = mine.recv()
    with spawn.Pool(clients) as pool:
        pool.map(ready, range(clients))
        start = time.perf_counter()
        pool.starmap(ask, [(port, method, digests, calls, seed) for seed in range(clients)], chunksize=1)
        taken = time.perf_counter() - start
    os.kill(board.pid or 0, signal.SIGTERM)
    board.join()
    return round(clients * calls / taken, 1)


def ready(_: int) -> None:
    """Has a client imported everything."""


def keep(url: str, started: Connection) -> None:
    log = Log(make_url(url), NAME, SEED)
    asyncio.run(serve(lambda: Server(log, "127.0.0.1:0", Access(writes_per_minute=1e9)), started.send))


def ask(port: int, method: str, digests: list[bytes], calls: int, seed: int) -> None:
    """One client, with up to CALLS calls at once."""
    drawn = Random(seed)

    async def run() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            board = pb_grpc.BoardStub(channel)

            async def some(count: int) -> None:
                for _ in range(count):
                    if method == "Find":
                        size = drawn.randint(1, len(digests))
                        await board.Find(pb.FindRequest(vk_digest=drawn.choice(digests), old_size=size))
                    else:
                        await board.Anchor(pb.AnchorRequest(digest=os.urandom(32)))

            await asyncio.gather(*(some(calls // CALLS) for _ in range(CALLS)))

    asyncio.run(run())


if __name__ == "__main__":
    main()

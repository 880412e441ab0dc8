"""How a proof speeds up with the workers of a Ray cluster of this machine, each with one core of its own."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.jobs import JOBS, load_key, statement_of
from protocol.argument import prove, verify
from protocol.kernels import cpu
from protocol.warm_up import warm_up

JOB, FIRST = "resnet18-32x32", "lenet-28x28"  # the second starts the workers
WORKERS = (1, 2)


@dataclass
class Times:
    """Seconds of a proof, and of its forks, which is what workers prove."""

    proof: float = 0.0
    forks: float = 0.0


def measure(runs: int) -> dict[str, Any]:
    """Medians by number of workers, with as many cores for them and for this process together."""
    warm_up(print)
    cores, found = sorted(os.sched_getaffinity(0)), {}
    for workers in WORKERS:
        os.sched_setaffinity(0, cores[:workers])
        found[str(workers)] = asdict(_times(workers, runs))
    os.sched_setaffinity(0, cores)
    return {"network": JOB, "h": JOBS[JOB].h, "runs": runs, "workers": found}


def _times(workers: int, runs: int) -> Times:
    import ray
    from threadpoolctl import threadpool_limits

    from prover.cluster import ray_engine

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    engine, cpu.THREADS = ray_engine(workers=workers), workers
    marks: dict[str, float] = {}

    def report(phase: str, fraction: float) -> None:
        marks.setdefault(phase, time.perf_counter())

    found = []
    with threadpool_limits(workers):
        for name in (FIRST, *[JOB] * runs):
            key = load_key(JOBS[name])
            statement = statement_of(JOBS[name], key)
            marks.clear()
            proof = prove(statement, key, engine=engine, progress=report)
            found.append((marks["done"] - marks["evaluate"], marks["open"] - marks["nodes"]))
            verify(statement, proof)
    ray.shutdown()
    return Times(*(median(column) for column in zip(*found[1:], strict=True)))


def line(measured: dict[str, Any]) -> str:
    """For README.md."""
    one, two = (Times(**measured["workers"][str(workers)]) for workers in WORKERS)
    return (
        f"Ray on one machine, {measured['network']}, h = {measured['h']}: {one.proof:.0f} s with one worker on one "
        f"core, {two.proof:.0f} s with two on two, {one.proof / two.proof:.2f} times as fast; of that the nodes' "
        f"relations, which are what workers prove, take {one.forks:.0f} and {two.forks:.0f} s, "
        f"{one.forks / two.forks:.2f} times as fast. The rest is done by the process that asks them, on as many cores."
    )

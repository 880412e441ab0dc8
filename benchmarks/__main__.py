"""Measure this machine: `python -m benchmarks [JOB ...]`; with `--check`, only see that README.md shows the results."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import results


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("jobs", nargs="*", help="jobs to measure; default: all, and the micro benches")
    parser.add_argument("--check", action="store_true", help="only check that README.md shows the stored results")
    parser.add_argument("--stage", nargs=2, metavar=("STAGE", "JOB"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check:
        if results.README.read_text() != results.render():
            print("README.md does not show benchmarks/results: run `make bench`", file=sys.stderr)
            return 1
        return 0
    if options.stage:
        return _stage(*options.stage)
    _measure(options.jobs)
    results.README.write_text(results.render())
    print(results.table())
    return 0


def _stage(stage: str, name: str) -> int:
    """Run one stage in this process; its result is the last line of the output."""
    from benchmarks.jobs import JOBS, STAGES

    result = STAGES[stage](JOBS[name])
    print(json.dumps({**result, "peak_memory": results.peak_memory()}))
    return 0


def _measure(names: list[str]) -> None:
    from benchmarks.jobs import JOBS, RUNS
    from benchmarks.micro import micro

    for name in names or JOBS:
        results.save(name, {"job": name, "machine": results.machine(), "runs": RUNS, **_job(name)})
    if not names:
        print("micro benches", flush=True)
        results.save("micro", {"machine": results.machine(), **micro()})


def _job(name: str) -> dict[str, Any]:
    """All stages of one job, each in a fresh process."""
    from benchmarks.jobs import CLASSES, ELL, HIDDEN, JOBS

    job = JOBS[name]
    merged: dict[str, Any] = {
        "seed": job.seed,
        "architecture": job.architecture,
        "shape": list(job.shape),
        "classes": CLASSES,
        "ell": ELL,
        "h": HIDDEN,
        "seconds": {},
        "peak_memory_bytes": {},
    }
    for stage in ("keygen", "train", "derive", "prove", "verify"):
        result = _run(stage, name)
        peak = result.pop("peak_memory")
        if stage != "train":
            merged["peak_memory_bytes"][stage] = peak
        merged["seconds"] |= result.pop("seconds", {})
        merged |= result
    with tempfile.TemporaryDirectory() as empty:
        environment = {"NUMBA_CACHE_DIR": empty}
        cold, warm = (_run("first-use", name, environment)["wall"] for _ in range(2))
    merged["seconds"]["first_use_compile"] = cold - warm
    del merged["wall"]
    return merged


def _run(stage: str, name: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    print(f"{name}: {stage} ...", end=" ", flush=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks", "--stage", stage, name]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, **(environment or {})})
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    result["wall"] = time.perf_counter() - start
    print(f"{result['wall']:.1f} s", flush=True)
    return result


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    sys.exit(main())

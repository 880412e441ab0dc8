"""Measure this machine: `python -m benchmarks [NAME ...]`; with `--check`, only see that the texts show the results.

A NAME is a job, or: small (default, with micro), large, micro, curves, peers, fidelity, workers; or, where there is a
GPU, device, or one of its parts: device/micro, device/marking,
device/JOB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import results
from protocol import kernels
from protocol.errors import ParameterError

BARE = ("keygen", "fit", "derive", "prove", "verify")
WHOLE = (*BARE, "profile")
ON_DEVICE = ("keygen", "fit", "derive", "prove-device")
UNMEASURED = ("fit", "profile")  # stages whose memory says nothing


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure; default: small micro")
    parser.add_argument("--runs", type=int, default=3, help="of which medians are taken (default 3)")
    parser.add_argument("--check", action="store_true", help="only check that the texts show the stored results")
    parser.add_argument("--render", action="store_true", help="only write the texts and the picture anew")
    parser.add_argument("--stage", nargs=2, metavar=("STAGE", "JOB"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check:
        stale = [path.name for path, text in results.texts().items() if not path.exists() or path.read_text() != text]
        if stale:
            print(f"{', '.join(stale)}: not of the results in benchmarks/results; run `make bench`", file=sys.stderr)
        return 1 if stale else 0
    if options.stage:
        stage, name = options.stage
        return _stage(stage, name, options.runs)
    if not options.render:
        _measure(options.names or ["small", "micro"], options.runs)
    from benchmarks.curves import draw

    draw()
    for path, text in results.texts().items():
        path.write_text(text)
    print(results.table())
    return 0


def _stage(stage: str, name: str, runs: int) -> int:
    """Run one stage in this process; its result is the last line of the output."""
    from benchmarks.jobs import JOBS, STAGES

    result = STAGES[stage](JOBS[name], runs)
    print(json.dumps({**result, "peak_memory": results.peak_memory()}))
    return 0


def _measure(names: list[str], runs: int) -> None:
    from benchmarks.jobs import BY_ACTIVATIONS, BY_TRIGGERS, DEVICE, JOBS, LARGE, SMALL
    from benchmarks.micro import micro
    from benchmarks.peers import ezkl

    groups = {"small": SMALL, "large": LARGE}
    device = ["device/micro", "device/marking", *(f"device/{job.name}" for job in DEVICE)]
    if unknown := set(names) - {*JOBS, *groups, *device, "device", "micro", "curves", "peers", "fidelity", "workers"}:
        raise SystemExit(f"no benchmark {', '.join(sorted(unknown))}; jobs are {', '.join([*JOBS, *device])}")
    names = [one for name in names for one in (device if name == "device" else [name])]
    if set(names) & set(device):
        try:
            kernels.on("cuda")
        except ParameterError as error:
            raise SystemExit(str(error)) from None
    for name in names:
        busy = results.others()
        if name == "micro":
            print("micro benches", flush=True)
            results.save("micro", busy, {"first_use_compile_seconds": _compile(), **micro()})
        elif name == "curves":
            curves = {"triggers": BY_TRIGGERS, "activations": BY_ACTIVATIONS}
            measured: dict[str, Any] = {job.name: {} for jobs in curves.values() for job in jobs}
            for point in measured:
                measured[point] = _job(point, runs, BARE)
            points = {kind: [measured[job.name] for job in jobs] for kind, jobs in curves.items()}
            results.save("curves", busy, {"runs": runs, **points})
        elif name == "fidelity":
            from benchmarks import fidelity

            results.save("fidelity", busy, {"networks": [*fidelity.measure()]})
        elif name == "workers":
            from benchmarks import workers

            for stage, which in product(("keygen", "fit", "derive"), (workers.FIRST, workers.JOB)):
                _run(stage, which, 1)
            results.save("workers", busy, workers.measure(runs))
        elif name == "peers":
            ours = _job("lenet-28x28", runs, BARE)
            results.save("peers", busy, {"runs": runs, "zkmark": ours, "ezkl": ezkl(JOBS["lenet-28x28"], runs)})
        elif name == "device/micro":
            results.save(name, busy, _run("device-rates", DEVICE[0].name, 1))
        elif name == "device/marking":
            results.save(name, busy, {"runs": runs, **_run("marking", "resnet18-32x32", runs)})
        elif name in device:
            results.save(name, busy, {"runs": runs, **_job(name.removeprefix("device/"), runs, ON_DEVICE)})
        else:
            for job in groups.get(name, (JOBS.get(name),)):
                if job is not None:
                    results.save(job.name, results.others(), {"runs": runs, **_job(job.name, runs)})


def _job(name: str, runs: int, stages: tuple[str, ...] = WHOLE) -> dict[str, Any]:
    """These stages of one job, each in a fresh process.  What is measured on a device has the names of the others."""
    from benchmarks.jobs import JOBS

    job = JOBS[name]
    merged: dict[str, Any] = {
        "job": name,
        "architecture": job.architecture,
        "width": job.width,
        "shape": list(job.shape),
        "classes": job.classes,
        "ell": job.ell,
        "h": job.h,
        "seconds": {},
        "peak_memory_bytes": {},
    }
    for stage in stages:
        result = _run(stage, name, runs)
        peak, what = result.pop("peak_memory"), stage.removesuffix("-device")
        if what not in UNMEASURED:
            merged["peak_memory_bytes"][what] = peak
        merged["seconds"] |= result.pop("seconds", {})
        merged |= result
    return merged


def _compile() -> float:
    """Seconds that the first use of the kernels takes longer than later ones."""
    with tempfile.TemporaryDirectory() as empty:
        environment = {"NUMBA_CACHE_DIR": empty}
        cold, warm = (_run("first-use", "lenet-28x28", 1, environment)["seconds"]["warm_up"] for _ in range(2))
    return float(cold - warm)


def _run(stage: str, name: str, runs: int, environment: dict[str, str] | None = None) -> dict[str, Any]:
    print(f"{name}: {stage} ...", end=" ", flush=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks", "--stage", stage, name, "--runs", str(runs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, **(environment or {})})
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{time.perf_counter() - start:.1f} s", flush=True)
    return result


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    sys.exit(main())

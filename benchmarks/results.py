"""What the benchmarks write: one JSON file per job, and the table of README.md rendered from them."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
README = Path(__file__).parent.with_name("README.md")
BEGIN, END = "<!-- benchmarks: begin -->\n", "<!-- benchmarks: end -->\n"
LIBRARIES = ("numpy", "numba", "llvmlite", "py_arkworks_bls12381", "pycryptodome", "onnxruntime", "torch")


def machine() -> dict[str, Any]:
    """What the numbers depend on and a reader can compare with."""
    return {
        "processor": _proc("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(int((_proc("/proc/meminfo", "MemTotal") or "0").split()[0]) / 2**20),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _proc(path: str, field: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), None)


def save(name: str, result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def table() -> str:
    """The measured table in Markdown, from the files in results/."""
    files = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    jobs = sorted((entry for entry in files if "job" in entry), key=lambda entry: entry["seconds"]["prove"])
    if not jobs:
        return "Nothing measured yet.\n"
    host = jobs[0]["machine"]
    lines = [
        f"{host['processor']}, {host['cores']} cores, {host['memory_gib']} GiB, Python {host['python']}; "
        f"medians of {jobs[0]['runs']}. All {jobs[0]['h']} hidden triggers of a key with ell = {jobs[0]['ell']} in one "
        "proof, kernels compiled.",
        "",
        "| job | keygen | derive | prove | verify | proof | memory, prove / verify | soundness |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for job in jobs:
        seconds, memory = job["seconds"], job["peak_memory_bytes"]
        lines.append(
            f"| {job['job']} | {seconds['keygen']:.1f} s | {seconds['derive']:.2f} s | {seconds['prove']:.1f} s "
            f"| {seconds['verify']:.2f} s | {job['proof_bytes'] / 1e6:.2f} MB "
            f"| {memory['prove'] / 2**30:.1f} / {memory['verify'] / 2**30:.1f} GiB | {job['argument_bits']:.1f} bits |"
        )
    first = max(job["seconds"]["first_use_compile"] for job in jobs)
    lines += ["", f"Compiling the kernels on first use adds {first:.0f} s, once."]
    for kernels in (entry for entry in files if "lookup_leaf_ns" in entry):
        lines[-1] += (
            f" A product in the extension field takes {kernels['extension_multiply_ns']:.1f} ns on one core, a leaf of "
            f"a lookup tree {kernels['lookup_leaf_ns']:.0f} ns and a butterfly {kernels['ntt_butterfly_ns']:.2f} ns on "
            f"all; SHA-256 runs at {kernels['sha256_gb_per_s']:.1f} GB/s."
        )
    return "\n".join(lines) + "\n"


def render() -> str:
    """README.md with the current table in its place."""
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


def peak_memory() -> int | None:
    """The largest resident set that this process ever had, in bytes; None where the system does not say."""
    peak = _proc("/proc/self/status", "VmHWM")
    return None if peak is None else 1024 * int(peak.split()[0])

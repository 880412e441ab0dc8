"""What proving on a GPU should take, what it takes, and how fast the device multiplies, hashes and moves."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks import marking, results
from benchmarks.jobs import DEVICE, repeated
from benchmarks.phases import synchronize
from protocol import field

TARGETS = dict(zip((job.name for job in DEVICE), (0.5, 5.0, 20.0, 120.0), strict=True))  # seconds of a proof
MEMORY_TARGET = 100e9  # bytes of the device
EMPTY = "not measured"
RUNS, LAUNCHES = 5, 8  # launches one after the other in a run hide what a launch costs


def rates(k: ModuleType, log2_size: int = 26) -> dict[str, float]:
    """As `micro`, of the whole device: nanoseconds per operation, gigabytes per second; medians.

    log2_size: of the arrays, in entries.  Multiplications are taken from the kernels that move the least for each:
    `k_outer` writes 20 bytes for a product in K, `leaves` 28 for ten in F.
    """
    size, side = 1 << log2_size, 1 << log2_size // 2
    images = 1 << log2_size // 3
    rows, generator = size // images, np.random.default_rng(1)

    def uniform(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint32]]:
        return generator.integers(0, field.P, shape, np.uint32)

    def timed(work: Callable[[], object]) -> float:
        def launches() -> None:
            for _ in range(LAUNCHES):
                work()
            synchronize(k)

        launches()  # compiles
        return repeated(launches, RUNS) / LAUNCHES

    there, words = k.empty(size), k.to_device(uniform(size))
    one = [uniform(field.DEGREE, 1) for _ in range(3)]
    a, b = (k.to_device(uniform(field.DEGREE, side)) for _ in range(2))
    outer, to = timed(lambda: k.k_outer(a, b, there[:, : side * side])), k.words(size)
    leaves = timed(lambda: k.leaves(*one, words, words, there, 0, 0, size))
    copy = timed(lambda: to.__setitem__(slice(None), words))
    block = words.reshape(rows, images)
    halves = [k.to_device(uniform(field.DEGREE, images) & np.uint32(0x7FFF)) for _ in range(2)]
    combine = timed(lambda: k.combine(block, *halves, k.empty(rows), 0, rows))
    hashes = k.Leaves(np.zeros((rows, 33), np.uint8))
    hashed = timed(lambda: hashes.update(block))
    x, y = (k.to_device(generator.random((side, side))) for _ in range(2))
    product = k.reals(side, side)
    return {
        "extension_multiply_ns": outer / side**2 * 1e9,
        "base_multiply_ns": leaves / (10 * size) * 1e9,
        "multiply_add_ns": combine / (10 * size) * 1e9,
        "matrix_multiply_add_ns": timed(lambda: k.matmul(x, y, product)) / side**3 * 1e9,
        "sha256_gb_per_s": 4 * size / hashed / 1e9,
        "memory_gb_per_s": 8 * size / copy / 1e9,
    }


def lines() -> list[str]:
    """For README.md: the targets, and what was measured of them."""
    found = {job.name: entry for job in DEVICE if (entry := results.load(f"device/{job.name}"))}
    hosts = dict.fromkeys(f"{entry['device']} ({results.host(entry['machine'])})" for entry in found.values())
    rows = []
    for job in DEVICE:
        time = memory = EMPTY
        if entry := found.get(job.name):
            time = results.seconds(entry["seconds"]["prove"])
            host = entry["peak_memory_bytes"].get("prove")
            memory = f"{entry['device_memory_bytes'] / 1e9:.1f} / {f'{host / 1e9:.1f}' if host else '-'} GB"
        rows.append(
            f"| {job.name} | {job.h} | {time} | {TARGETS[job.name]:g} s | {memory} | {MEMORY_TARGET / 1e9:g} GB |"
        )
    remarks = dict.fromkeys(f" {entry['remark']}" for entry in found.values() if "remark" in entry)
    return [
        "All h hidden triggers in one proof on a GPU, against the targets, which for memory are about the device"
        f"{''.join(f'; {name}' for name in hosts)}.{''.join(remarks)}{results.disturbed([*found.values()])}",
        "",
        "| network | h | prove | target | memory, device / host | target |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        marking.line(results.load("device/marking")),
    ]


def phase_lines() -> list[str]:
    """For PHASES.md: where the time of a proof on the device goes, as far as it was measured."""
    found = [entry for job in DEVICE if (entry := results.load(f"device/{job.name}"))]
    micro = results.load("device/micro")
    text = ["", "# On a GPU", ""]
    if not found:
        return [*text, "Not measured."]
    if not micro:
        return [*text, "How fast the device multiplies, hashes and moves is not measured.",
                *(line for job in found for line in _seconds(job))]  # fmt: skip
    text.append(
        f"{micro['device']} ({results.host(micro['machine'])}). *busy* is about kernels of the processor alone, "
        f"*memory*, *products* and *floor* are of the whole device: K {micro['extension_multiply_ns']:.4f} ns, F "
        f"{micro['base_multiply_ns']:.5f} ns, multiply-add {micro['multiply_add_ns']:.5f} ns, float64 matrix product "
        f"{micro['matrix_multiply_add_ns']:.6f} ns, {micro['memory_gb_per_s']:.0f} GB/s, SHA-256 "
        f"{micro['sha256_gb_per_s']:.0f} GB/s."
    )
    return [*text, *(line for job in found for line in results.phase_table(job, micro))]


def _seconds(job: dict[str, Any]) -> list[str]:
    """The phases of one proof without a floor."""
    whole = sum(entry["seconds"] for entry in job["phases"].values())
    busy = f" The device computed or copied for {job['device_seconds']:.2f} s." if "device_seconds" in job else ""
    return [
        "", f"## {job['job']}", "", f"{job['device']} ({results.host(job['machine'])}).{busy}", "",
        "| phase | s | share | in kernels of the processor |", "|---|---|---|---|",
        *(f"| {phase} | {entry['seconds']:.2f} | {entry['seconds'] / whole:.0%} | {entry['kernel_seconds']:.2f} s |"
          for phase, entry in job["phases"].items()),
        f"| **all** | {whole:.2f} | 100% | {sum(entry['kernel_seconds'] for entry in job['phases'].values()):.2f} s |",
    ]  # fmt: skip

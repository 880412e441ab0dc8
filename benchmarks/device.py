"""What proving on a GPU should take, and what it takes."""

from __future__ import annotations

from benchmarks import results
from benchmarks.jobs import DEVICE

TARGETS = dict(zip((job.name for job in DEVICE), (0.5, 5.0, 20.0, 120.0), strict=True))  # seconds of a proof
MEMORY_TARGET = 100e9  # bytes of the device
EMPTY = "not measured"


def lines() -> list[str]:
    """For README.md: the targets, and what was measured of them."""
    found = {job.name: entry for job in DEVICE if (entry := results.load(f"device/{job.name}"))}
    hosts = dict.fromkeys(f"{entry['device']} ({results.host(entry['machine'])})" for entry in found.values())
    rows = []
    for job in DEVICE:
        time = memory = EMPTY
        if entry := found.get(job.name):
            time = results.seconds(entry["seconds"]["prove"])
            memory = f"{entry['device_memory_bytes'] / 1e9:.1f} / {entry['peak_memory_bytes']['prove'] / 1e9:.1f} GB"
        rows.append(
            f"| {job.name} | {job.h} | {time} | {TARGETS[job.name]:g} s | {memory} | {MEMORY_TARGET / 1e9:g} GB |"
        )
    return [
        "All h hidden triggers in one proof on a GPU, against the targets, which for memory are about the device"
        f"{''.join(f'; {name}' for name in hosts)}.{results.disturbed([*found.values()])}",
        "",
        "| network | h | prove | target | memory, device / host | target |",
        "|---|---|---|---|---|---|",
        *rows,
    ]

"""What the benchmarks write: JSON files, and the Markdown of README.md and PHASES.md rendered from them."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
README = Path(__file__).parent.with_name("README.md")
PHASES = Path(__file__).with_name("PHASES.md")
BEGIN, END = "<!-- benchmarks: begin -->\n", "<!-- benchmarks: end -->\n"
BUSY = 0.1  # share of the processor time of others from which the texts say that there was other work
# (job, whose figure, seconds to prove one image, how), as their authors published them.
PUBLISHED = (
    ("vgg16-32x32", "zkCNN", 88.0, "one thread, one image"),
    ("vgg16-32x32", "zkPyTorch", 2.2, "one core, no zero knowledge"),
    ("resnet18-32x32", "Bionetta", 14.1, "16 threads, a setup per circuit"),
    ("resnet18-32x32", "EZKL", 6840.0, "104 GB"),
    ("mobilenetv2-32x32", "Bionetta", 24.5, "16 threads, a setup per circuit"),
)
STRUCK = ("uploading", "queued", "deriving", "proving")  # states of a job that a kill may strike
DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
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
    return next((line[len(field) :].strip(" \t:") for line in lines if line.startswith(field)), None)


def others(seconds: float = 1.0) -> float:
    """Share of the machine's processor time that is in use while this process sleeps."""

    def ticks() -> tuple[int, int]:
        numbers = [int(n) for n in (_proc("/proc/stat", "cpu ") or "0 0 0 0 0").split()]
        return sum(numbers[:8]), numbers[3] + numbers[4]

    before = ticks()
    time.sleep(seconds)
    total, idle = (b - a for a, b in zip(before, ticks(), strict=True))
    return round(1 - idle / total, 2) if total else 0.0


def save(name: str, busy: float, result: dict[str, Any]) -> None:
    """busy: `others` before the measurement."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {**machine(), "busy_before": busy}
    path.write_text(json.dumps({"machine": about, **result}, indent=2) + "\n")


def load(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def jobs() -> list[dict[str, Any]]:
    """All jobs measured on the processor, the quickest proof first."""
    files = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    return sorted((entry for entry in files if "job" in entry), key=lambda entry: entry["seconds"]["prove"])


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 2 else f"{value:.1f} s" if value < 20 else f"{value:.0f} s"


def disturbed(measured: list[dict[str, Any]]) -> str:
    """A sentence, if there is one to say, about what else the machine did."""
    names = [job["job"] for job in measured if _busy(job)]
    return f" The machine had other work while these were measured: {', '.join(names)}." if names else ""


def remark(measured: dict[str, Any]) -> str:
    """As `disturbed`, for one measurement."""
    return " The machine had other work while this was measured." if _busy(measured) else ""


def _busy(measured: dict[str, Any]) -> bool:
    return float(measured["machine"].get("busy_before", 1.0)) > BUSY


def memory(job: dict[str, Any], *stages: str) -> str:
    return " / ".join(f"{job['peak_memory_bytes'][stage] / 2**30:.1f}" for stage in stages) + " GiB"


def table() -> str:
    """What README.md shows, in Markdown, from the files in results/."""
    measured = jobs()
    if not measured:
        return "Nothing measured yet.\n"
    hosts = dict.fromkeys(host(entry["machine"]) for entry in measured)
    lines = [
        f"{'; '.join(hosts)}. All h hidden triggers in one proof, kernels compiled; seconds are medians of the runs, "
        "memory is the peak of a fresh process." + disturbed(measured),
        "",
        "| network | h | activations per image | keygen | derive | prove | verify | proof "
        "| memory, derive / prove / verify | soundness | runs |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for job in measured:
        times = job["seconds"]
        lines.append(
            f"| {job['job']} | {job['h']} | {_count(job['activations_per_image'])} | {seconds(times['keygen'])} "
            f"| {seconds(times['derive'])} | {seconds(times['prove'])} | {seconds(times['verify'])} "
            f"| {job['proof_bytes'] / 1e6:.2f} MB | {memory(job, 'derive', 'prove', 'verify')} "
            f"| {job['argument_bits']:.1f} bits | {job['runs']} |"
        )
    kernels = load("micro")
    if kernels:
        lines += ["", (
            f"Compiling the kernels on first use takes {kernels['first_use_compile_seconds']:.0f} s, once. A product "
            f"in the extension field takes {kernels['extension_multiply_ns']:.1f} ns on one core, a leaf of a lookup "
            f"tree {kernels['lookup_leaf_ns']:.0f} ns and a butterfly {kernels['ntt_butterfly_ns']:.2f} ns on all. "
            "[Time by phase, against the floor](benchmarks/PHASES.md)."
        )]  # fmt: skip
    from benchmarks.device import lines as device_lines

    lines += ["", *device_lines()]
    lines += ["", *_published({job["job"]: job for job in measured})]
    if fidelity := load("fidelity"):
        from benchmarks.fidelity import lines as fidelity_lines

        lines += ["", *fidelity_lines(fidelity)]
    if curves := load("curves"):
        from benchmarks.curves import linearity

        lines += ["", "![Cost of a proof by its size](benchmarks/results/scaling.svg)", "",
                  f"ResNet-18 at 32 x 32: {linearity(curves)}{remark(curves)}"]  # fmt: skip
    if peers := load("peers"):
        lines += ["", *_peers(peers)]
    if workers := load("workers"):
        from benchmarks.workers import line

        lines += ["", line(workers) + remark(workers)]
    if soak := load("soak"):
        lines += ["", _soak(soak) + remark(soak)]
    for name in ("board", "board-postgresql"):
        if board := load(name):
            lines += ["", _board(board) + remark(board)]
    return "\n".join(lines) + "\n"


def _soak(soak: dict[str, Any]) -> str:
    kills, crowd, load, stall = (soak[name] for name in ("kill -9", "followers", "uploads", "stalling"))
    crowded = soak.get("crowded")
    wait = "" if crowded is None else (
        f" While {crowded['stalled_uploads']} such uploads hold all places, another waits for its own for "
        f"{crowded['seconds_until_a_place']:.1f} s at most."
    )  # fmt: skip
    struck = ", ".join(f"{kills['struck'].get(state, 0)} while one was {state}" for state in STRUCK)
    return (
        f"The job service on one machine with its clients: after {kills['kills']:,} kill -9 at random instants "
        f"({struck}) none of {kills['acknowledged']:,} acknowledged jobs was lost or done twice; with "
        f"{crowd['followers']} clients that follow jobs another's call takes {crowd['call_ms_beside']:.1f} ms instead "
        f"of {crowd['call_ms_alone']:.1f}; {load['uploads']} uploads of {load['megabytes']} MB at once raise the "
        f"server's memory from {load['mib_before']} to {load['peak_mib']} MiB (cap: {load['cap_mib']}); "
        f"{stall['stalled_uploads']} uploads of a byte a second, {stall['stalled_connections']} connections that are "
        f"no HTTP and {stall['garbage_per_s']:.0f} calls of garbage a second delay the jobs of others by "
        f"{max(0.0, stall['delay_percent']):.0f} % (median of {stall['rounds']} rounds with them and as many without)."
        f"{wait}"
    )


def _board(board: dict[str, Any]) -> str:
    return (
        f"A board on {DATABASES[board['database']]} appends {board['appends_per_s']:,.0f} entries a second, "
        f"{board['batch']} in a transaction that is synced to disk, and proves {board['proofs_per_s']:,.0f} of "
        f"{board['entries']:,} a second (inclusion, and consistency with an older checkpoint). Over gRPC, with "
        f"{board['clients']} clients on the same machine, it answers {board['find_per_s']:,.0f} of such questions a "
        f"second and takes {board['anchor_per_s']:,.0f} entries."
    )


def _published(measured: dict[str, dict[str, Any]]) -> list[str]:
    """Seconds per image beside what others published for networks of the same name."""
    rows = [
        f"| {job} | {measured[job]['seconds']['prove'] / measured[job]['h']:.2f} s | {who} | {theirs:g} s | {how} |"
        for job, who, theirs, how in PUBLISHED
        if job in measured
    ]
    if not rows:
        return []
    return [
        "Per image, beside figures that others published for networks of the same name, on their machines and not run "
        "here. Theirs are of one image and say what it is classified as; ours are of all images of a proof together, "
        "which stay hidden with their labels.",
        "",
        "| network | zkmark, per image | | published | |",
        "|---|---|---|---|---|",
        *rows,
    ]


def _peers(peers: dict[str, Any]) -> list[str]:
    """The same network by EZKL; what a proof says differs, so the text says what."""
    ours, theirs = peers["zkmark"], peers["ezkl"]
    settings, h = theirs["settings"], ours["h"]
    return [
        f"LeNet against EZKL {theirs['version']} in one run: the image is private, the weights are public. A proof of "
        f"zkmark is about {h} images and hides their logits; one of EZKL is about one image (2^{settings['logrows']} "
        f"rows, scales 2^{settings['input_scale']} from its own calibration for `{theirs['target']}`), shows the "
        f"logits, and needs a reference string from a trusted setup and a key per network.{remark(peers)}",
        "",
        "| | prove, per image | prove, one proof | verify | proof | memory, prove / verify | setup per network |",
        "|---|---|---|---|---|---|---|",
        f"| zkmark, {h} images | {1000 * ours['seconds']['prove'] / h:.0f} ms | {seconds(ours['seconds']['prove'])} "
        f"| {seconds(ours['seconds']['verify'])} | {ours['proof_bytes'] / 1e3:.0f} kB "
        f"| {memory(ours, 'prove', 'verify')} | {seconds(ours['seconds']['derive'])} (derive) |",
        f"| EZKL, one image | {1000 * (theirs['seconds']['prove'] + theirs['seconds']['gen_witness']):.0f} ms "
        f"| {seconds(theirs['seconds']['prove'] + theirs['seconds']['gen_witness'])} "
        f"| {seconds(theirs['seconds']['verify'])} | {theirs['proof_bytes'] / 1e3:.0f} kB "
        f"| {memory(theirs, 'prove', 'verify')} "
        f"| {seconds(theirs['seconds']['calibrate_settings'] + theirs['seconds']['setup'])} (calibrate, setup) |",
    ]


def phase_work(
    phase: str, entry: dict[str, float], job: dict[str, Any], micro: dict[str, Any]
) -> tuple[float, float, float]:
    """Seconds that a phase must take, on all cores or the device, to multiply, to hash, and to move its bytes."""
    cores = 1 if "device" in job else job["machine"]["cores"]
    products: float = sum(
        entry[name] * micro[kernel] / cores * 1e-9
        for name, kernel in (
            ("k_products", "extension_multiply_ns"),
            ("f_products", "base_multiply_ns"),
            ("multiply_adds", "multiply_add_ns"),
        )
    )
    if phase == "evaluate":
        products += job["multiply_adds_per_image"] * job["h"] * micro["matrix_multiply_add_ns"] * 1e-9
    hashes = entry["hashed_bytes"] / (micro["sha256_gb_per_s"] * 1e9) / cores
    return products, hashes, entry["bytes"] / (micro["memory_gb_per_s"] * 1e9)


def phase_floor(phase: str, entry: dict[str, float], job: dict[str, Any], micro: dict[str, Any]) -> float:
    """Seconds that a phase must take: what it multiplies and hashes, or what it moves, if that is more."""
    products, hashes, moved = phase_work(phase, entry, job, micro)
    return max(products + hashes, moved)


def phase_text() -> str:
    """benchmarks/PHASES.md: time by phase per activation, against the floor."""
    from benchmarks.device import phase_lines

    micro, lines = load("micro"), ["# Time by phase", ""]
    measured = [job for job in jobs() if "phases" in job]
    if not micro or not measured:
        return "\n".join([*lines, "Nothing measured yet."]) + "\n"
    lines += [
        f"{host(micro['machine'])}. One proof of each network under a profiler; all figures are per committed "
        "activation (activations per image times h).",
        "",
        "*ns*: time of the phase. *busy*: share of the cores' time in compiled kernels (the rest is numpy, hashing and "
        "Python). *bytes*, *K*: what the kernels read and write, and their products in the extension field. *memory*, "
        "*products*: shares of the time that would be enough at the measured bandwidth for the bytes, and for all "
        "products at the speed of one core within its cache times the cores "
        f"(K {micro['extension_multiply_ns']:.2f} ns, F {micro['base_multiply_ns']:.2f} ns, multiply-add "
        f"{micro['multiply_add_ns']:.2f} ns, float64 matrix product {micro['matrix_multiply_add_ns']:.3f} ns on all "
        f"cores; {micro['memory_gb_per_s']:.1f} GB/s). *floor*: the larger of the bytes' time and that of products and "
        f"hashes (SHA-256 {micro['sha256_gb_per_s']:.2f} GB/s on one core).",
    ]
    for job in measured:
        lines += phase_table(job, micro)
    return "\n".join([*lines, *phase_lines()]) + "\n"


def phase_table(job: dict[str, Any], micro: dict[str, Any]) -> list[str]:
    """The phases of one proof, with a title."""
    total, cores = job["activations_per_image"] * job["h"], job["machine"]["cores"]
    lines = [
        "", f"## {job['job']}: {total / 1e6:.1f} million activations", "",
        "| phase | ns | share | busy | bytes | K | memory | products | floor, ns | ns / floor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    whole = sum(entry["seconds"] for entry in job["phases"].values())
    sums = [0.0] * 7
    for phase, entry in job["phases"].items():
        products, _, moved = phase_work(phase, entry, job, micro)
        values = (entry["seconds"], entry["kernel_seconds"], entry["bytes"], entry["k_products"], moved, products,
                  phase_floor(phase, entry, job, micro))  # fmt: skip
        sums = [a + b for a, b in zip(sums, values, strict=True)]
        lines.append(_phase_row(phase, values, whole, total, cores))
    return [*lines, _phase_row("**all**", tuple(sums), whole, total, cores)]


def _phase_row(name: str, values: tuple[float, ...], whole: float, total: int, cores: int) -> str:
    time, busy, bytes_, k_products, moved, products, floor = values

    def share(seconds: float, of: float = time) -> str:
        return f"{seconds / of:.0%}" if of else "-"

    return (
        f"| {name} | {time / total * 1e9:.1f} | {share(time, whole)} | {share(busy / cores)} | {bytes_ / total:.0f} "
        f"| {k_products / total:.1f} | {share(moved)} | {share(products)} | {floor / total * 1e9:.1f} "
        f"| {f'{time / floor:.1f}' if floor > time / 1000 else '-'} |"
    )


def host(machine: dict[str, Any]) -> str:
    return f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Python {machine['python']}"


def _count(value: int) -> str:
    return f"{value / 1e3:.3g} k" if value < 1e6 else f"{value / 1e6:.2f} M"


def texts() -> dict[Path, str]:
    """The files that show results, and what they must contain."""
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return {README: before + BEGIN + table() + END + after, PHASES: phase_text()}


def peak_memory() -> int | None:
    """The largest resident set that this process ever had, in bytes; None where the system does not say."""
    peak = _proc("/proc/self/status", "VmHWM")
    return None if peak is None else 1024 * int(peak.split()[0])

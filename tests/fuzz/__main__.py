"""Long fuzzing: `python -m tests.fuzz [--seconds N] [TARGET ...]`, each target for N seconds.

With atheris (pip install atheris) inputs are kept that reach new code; without it they are mutated at random.  What
misbehaves is written to build/fuzz/TARGET-*, and the exit code is 1.  Put it into tests/fuzz/corpus/TARGET when fixed.
`--report` puts what was run into the table of tests/fuzz/REPORT.md.  `--keep` runs nothing: it chooses anew which
inputs of interest stay in tests/fuzz/corpus (keeping.py), of those there and in build/fuzz/corpus-TARGET.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from random import Random

OUT = Path("build/fuzz")
REPORT = Path(__file__).with_name("REPORT.md")
LONG_S = 600


class Meter:
    """Counts the inputs of one target in build/fuzz/TARGET.json, as it goes on: libFuzzer ends the process."""

    def __init__(self, name: str, engine: str, target: Callable[[bytes], bool]) -> None:
        self._name, self._engine, self._target = name, engine, target
        target(b"")  # what is built at the first call is not the input's
        self._started = self._written = time.monotonic()
        self._most, self._inputs, self._taken, self._slowest = 0, 0, 0, 0.0

    def __call__(self, data: bytes) -> bool:
        """As the target."""
        forget_peak()
        began, before, taken = time.process_time(), peak(), False
        try:
            taken = self._target(data)
        finally:
            now = time.monotonic()
            self._inputs, self._taken = self._inputs + 1, self._taken + taken
            self._slowest = max(self._slowest, time.process_time() - began)
            self._most = max(self._most, peak() - before)
            if now - self._written > 2 or self._inputs == 1:
                self._written = now
                self.write(now)
        return taken

    def write(self, now: float) -> None:
        found = {
            "target": self._name, "engine": self._engine, "seconds": round(now - self._started), "inputs": self._inputs,
            "taken": self._taken, "failures": 0, "slowest": round(self._slowest, 2),
            "memory": self._most >> 20,
        }  # fmt: skip
        (OUT / f"{self._name}.json").write_text(json.dumps(found))


def peak() -> int:
    """The most memory that this process has held since `forget_peak`, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def forget_peak() -> None:
    """As that of tests.fuzz.base, which is imported only where it is instrumented."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def report(name: str, failures: int, names: Iterable[str]) -> None:
    """Put the last run of a target into the table, and below it which of all `names` have not run for long."""
    found = json.loads((OUT / f"{name}.json").read_text()) | {"failures": failures}
    row = "| " + " | ".join(f"`{name}`" if key == "target" else f"{value}" for key, value in found.items()) + " |"
    lines = REPORT.read_text().splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("|---")) + 1
    rows = [line for line in lines[first:] if line.startswith("| `") and not line.startswith(f"| `{name}` |")]
    rows = sorted([*rows, row])
    REPORT.write_text("\n".join([*lines[:first], *rows, "", due(rows, names)]) + "\n")


def due(rows: Iterable[str], names: Iterable[str]) -> str:
    """What is said of targets without a row of LONG_S seconds."""
    cells = [row.split(" | ") for row in rows]
    done = {row[0].strip("|` ") for row in cells if int(row[2]) >= LONG_S}
    rest = sorted({*names} - done)
    return f"Not run for {LONG_S} s yet: {', '.join(f'`{name}`' for name in rest)}." if rest else "All ran."


def plain(name: str, seconds: float) -> int:
    """Random mutation of seeds, corpus and whatever was taken."""
    from tests.fuzz.targets import Failure, targets

    target, random = targets()[name], Random(time.time_ns())
    meter, pool = Meter(name, "random", target), [*target.seeds, *target.corpus()]
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        data = target.mutate(random, tuple(pool))
        try:
            if meter(data) and data not in pool and len(pool) < 64:
                pool.append(data)
        except Failure as error:
            path = OUT / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"{path}: {error}")
            return 1
    meter.write(time.monotonic())
    return 0


def guided(name: str, seconds: float) -> int:
    """Coverage-guided, in this process, which libFuzzer ends."""
    import atheris

    import protocol.kernels.cpu  # noqa: F401  (compiled: imported before anything is instrumented)

    with atheris.instrument_imports(include=["protocol", "prover", "verifier", "ml"]):
        from tests.fuzz.targets import targets

        target = targets()[name]
    corpus = OUT / f"corpus-{name}"
    corpus.mkdir(exist_ok=True)
    for data in (*target.seeds, *target.corpus()):
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.3:
            return atheris.Mutate(data, most)[:most]
        return target.mutate(random, (data, data, *target.seeds))[:most]

    meter = Meter(name, "atheris", target)

    def one(data: bytes) -> None:
        meter(data)

    size = 2 * max(map(len, target.seeds)) + 4096
    options = [f"-max_total_time={seconds + 5:.0f}", f"-artifact_prefix={OUT}/{name}-", f"-max_len={size}",
               "-timeout=600", "-rss_limit_mb=0", "-print_final_stats=1", "-verbosity=0"]  # fmt: skip
    # Without a limit on the process: what coverage remembers grows with the inputs, and each is measured by itself.
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for each target")
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--report", action="store_true", help=f"into the table of {REPORT.name}")
    parser.add_argument("--keep", action="store_true", help="choose the inputs in tests/fuzz/corpus")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="TARGET")
    arguments = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    atheris = importlib.util.find_spec("atheris") is not None and not arguments.plain
    if arguments.here:
        return (guided if atheris else plain)(arguments.names[0], arguments.seconds)
    from tests.fuzz.targets import targets

    if arguments.keep:
        from tests.fuzz.keeping import Watch, keep

        with Watch() as watch:
            for name in arguments.names or targets():
                looked_at, kept = keep(targets()[name], OUT / f"corpus-{name}", watch)
                print(f"{name}: {looked_at} inputs, {kept} kept", flush=True)
        return 0
    failed = []
    for name in arguments.names or targets():
        command = [sys.executable, "-m", "tests.fuzz", "--here", "--seconds", str(arguments.seconds), name]
        print(f"== {name}", flush=True)
        (OUT / f"{name}.json").unlink(missing_ok=True)
        if subprocess.run([*command, *(["--plain"] if not atheris else [])], check=False).returncode:
            failed.append(name)
        if arguments.report:
            report(name, int(name in failed), targets())
    print(f"failed: {', '.join(failed)}" if failed else "no target failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

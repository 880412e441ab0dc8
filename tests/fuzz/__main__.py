"""Long fuzzing: `python -m tests.fuzz [--seconds N] [TARGET ...]`, each target for N seconds.

With atheris (pip install atheris) inputs are kept that reach new code; without it they are mutated at random.  What
misbehaves is written to build/fuzz/TARGET-*, and the exit code is 1.  Put it into tests/fuzz/corpus/TARGET when fixed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from random import Random

OUT = Path("build/fuzz")


def plain(name: str, seconds: float) -> int:
    """Random mutation of seeds, corpus and whatever was taken."""
    from tests.fuzz.targets import Failure, targets

    target, count, random = targets()[name], 0, Random(time.time_ns())
    pool, ends = [*target.seeds, *target.corpus()], time.monotonic() + seconds
    while time.monotonic() < ends:
        data = target.mutate(random, tuple(pool))
        count += 1
        try:
            if target(data) and data not in pool and len(pool) < 64:
                pool.append(data)
        except Failure as error:
            path = OUT / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"{path}: {error}")
            return 1
    print(f"{name}: {count} inputs")
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

    def one(data: bytes) -> None:
        target(data)

    size = 2 * max(map(len, target.seeds)) + 4096
    options = [f"-max_total_time={seconds:.0f}", f"-artifact_prefix={OUT}/{name}-", f"-max_len={size}", "-timeout=60",
               "-rss_limit_mb=4096", "-print_final_stats=1", "-verbosity=0"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for each target")
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="TARGET")
    arguments = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    atheris = importlib.util.find_spec("atheris") is not None and not arguments.plain
    if arguments.here:
        return (guided if atheris else plain)(arguments.names[0], arguments.seconds)
    from tests.fuzz.targets import targets

    failed = []
    for name in arguments.names or targets():
        command = [sys.executable, "-m", "tests.fuzz", "--here", "--seconds", str(arguments.seconds), name]
        print(f"== {name}", flush=True)
        if subprocess.run([*command, *(["--plain"] if not atheris else [])], check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "no target failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

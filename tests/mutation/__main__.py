"""Mutation testing of the verifier: `python -m tests.mutation [MODULE ...]`, from the root of the repository.

Every mutant is judged in a fork of this process, which holds all libraries and compiled kernels: it imports the
package anew, with one module changed, and runs the suites of targets.py until one fails.  What was found is kept in
build/mutation/MODULE.json: a mutant that was killed is not run again while its module stays as it is.  The counts go
into outcomes.json, where they replace those that the module had, and REPORT.md is written from there; survivors.json
says why a survivor is no hole.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import importlib
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from contextlib import redirect_stdout
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from io import StringIO
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import hypothesis
import pytest
from hypothesis import Phase

from tests.mutation.operators import mutants
from tests.mutation.report import dumps, merged, render, summary
from tests.mutation.targets import CHEATS, EDGES, EQUATIONS, HONEST, KEYS, PROOFS, TARGETS, path_of

HERE, OUT = Path(__file__).parent, Path("build/mutation")
OUTCOMES = HERE / "outcomes.json"
LIMIT_S = 20  # of processor time: one case of the corpus, or one file of tests.  What takes longer is killed.
PYTEST = ["-x", "-q", "-p", "no:cacheprovider", "-o", "timeout=0", "--hypothesis-profile=mutation"]
MEMORY_BYTES = 8 << 30


class Swapped(MetaPathFinder, Loader):
    """Imports one module from other code."""

    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        self._name, self._path, self._code = name, path, code

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self._path, loader=self) if name == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)


def warm_up() -> None:
    """Load what mutants share, then forget the package but for its kernels."""
    from protocol import warm_up
    from protocol.kernels import cpu

    cpu.THREADS = 1  # threads do not survive a fork
    warm_up._run_all()
    hypothesis.settings.register_profile(
        "mutation", derandomize=True, deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
    from tests.mutation import killers

    corpus = OUT / "corpus"
    if not (corpus / "outcomes.json").exists():
        corpus.mkdir(parents=True, exist_ok=True)
        killers.build(corpus)
    killers.honest(corpus)
    with redirect_stdout(StringIO()):
        pytest.main([*PYTEST, "--collect-only", "tests/protocol/test_merkle.py"])
    kept = ("protocol.kernels", "tests.mutation.operators", "tests.mutation.report", "tests.mutation.targets")
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("protocol", "tests") and not name.startswith(kept):
            del sys.modules[name]
    gc.collect()
    gc.freeze()


def judge(module: str, tree: ast.Module) -> int:
    """The process that judges a mutant: its exit status is 0 when all suites pass."""
    path = Path(f"protocol/{module}.py")
    code = compile(tree, str(path), "exec")
    child = os.fork()
    if not child:
        status = 1
        try:
            status = _judge(Swapped(f"protocol.{module}", path.resolve(), code), TARGETS[module].suites)
        finally:
            os._exit(status)
    return child


def _judge(swapped: Swapped, suites: tuple[str, ...]) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    sys.meta_path.insert(0, swapped)
    for suite in suites:
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        if suite in (HONEST, KEYS, CHEATS):
            from tests.mutation import killers

            getattr(killers, suite)(OUT / "corpus", lambda: signal.setitimer(signal.ITIMER_PROF, LIMIT_S))
        elif suite in (EDGES, EQUATIONS, PROOFS):
            for name, test in vars(importlib.import_module(suite)).items():
                if name.startswith("test_"):
                    test()
        elif pytest.main([*PYTEST, str(path_of(suite))]):
            return 1
    return 0


def source(module: str) -> str:
    return Path(f"protocol/{module}.py").read_text()


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Found:
    """Mutant to outcome of one module, as kept in build/mutation."""

    def __init__(self, module: str, source: str) -> None:
        self._path, self._digest = OUT / f"{module}.json", digest(source)
        kept = json.loads(self._path.read_text()) if self._path.exists() else {}
        self.mutants: dict[str, str] = kept["mutants"] if kept.get("digest") == self._digest else {}
        self._running: dict[int, str] = {}

    def start(self, name: str, process: int, jobs: int) -> None:
        self._running[process] = name
        self.wait(jobs - 1)

    def wait(self, most: int) -> None:
        """Until at most so many processes run."""
        while len(self._running) > most:
            process, status = os.wait()
            name = self._running.pop(process)
            late, failed = os.WIFSIGNALED(status), os.WEXITSTATUS(status)
            self.mutants[name] = "timeout" if late else "killed" if failed else "survived"
            if self.mutants[name] == "survived":
                print(f"  survived  {name}", flush=True)
            self.keep(0)

    def keep(self, every: int) -> None:
        """every: the number of all mutants, judged or not, once it is known."""
        kept = {"digest": self._digest, "all": every, "mutants": self.mutants}
        self._path.write_text(json.dumps(kept, indent=0))


def run(module: str, share: float, jobs: int) -> None:
    """Judge the mutants of a module, or a fixed share of them that looks random."""
    text = source(module)
    found, names, began = Found(module, text), [], time.monotonic()
    if os.waitpid(judge(module, ast.parse(text)), 0)[1]:
        raise SystemExit(f"{module}: the suites fail without a mutant")
    for mutant, tree in mutants(text, set(TARGETS[module].excluded)):
        names.append(name := str(mutant))
        before = found.mutants.get(name)
        chosen = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < share * 2**32
        if before == "survived" or (before is None and chosen):
            found.start(name, judge(module, tree), jobs)
    found.wait(0)
    found.mutants = {name: found.mutants[name] for name in names if name in found.mutants}
    found.keep(len(names))
    counts = dict(Counter(found.mutants.values()))
    print(f"{module}: {len(names)} mutants, {counts}, {time.monotonic() - began:.0f} s", flush=True)
    known = json.loads(OUTCOMES.read_text())
    OUTCOMES.write_text(dumps(merged(known, module, summary(digest(text), len(names), found.mutants))))


def report() -> None:
    """Write REPORT.md from what is known of every module."""
    reasons = json.loads((HERE / "survivors.json").read_text())
    digests = {module: digest(source(module)) for module in TARGETS}
    (HERE / "REPORT.md").write_text(render(json.loads(OUTCOMES.read_text()), reasons, digests))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TARGETS)}; all when none is named")
    parser.add_argument("--share", type=float, default=1, help="of the mutants that are judged, always the same ones")
    parser.add_argument("--jobs", type=int, default=1, help="mutants that are judged at a time")
    parser.add_argument("--render", action="store_true", help="only write the report")
    arguments = parser.parse_args()
    if not arguments.render:
        warm_up()
        for module in arguments.modules or TARGETS:
            run(module, arguments.share, arguments.jobs)
            report()
    report()


if __name__ == "__main__":
    main()

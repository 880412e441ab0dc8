"""What is kept of long runs: for each target a few small inputs that together reach all code that the run did.

    reached   the pairs of successive lines of the package that an input runs through, in all threads
    kept      smallest first, an input is kept if it reaches something that neither a good input nor a kept one did

Large and slow inputs are left out, whole proofs among them: what is kept is committed, and run by every `make test`.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.base import CORPUS, ROOT, Target

PACKAGES = tuple(f"{ROOT / name}/" for name in ("protocol", "prover", "verifier", "ml"))
INPUTS, INPUT_BYTES, TARGET_BYTES = 64, 8 << 10, 48 << 10  # of a target, at most
SECONDS = 1.0  # of the processor, of one input while it is watched
Reached = set[tuple[str, int, int]]  # (file, line before, line)


class Watch:
    """Collects what is reached, in threads that start while it is open, too."""

    def __init__(self) -> None:
        self._found: Reached = set()

    def __enter__(self) -> Watch:
        threading.settrace(self._enter)
        return self

    def __exit__(self, *error: object) -> None:
        threading.settrace(None)  # type: ignore[arg-type]

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Called for every function, and returns what is called for each of its lines."""
        name, before = frame.f_code.co_filename, frame.f_lineno
        if not name.startswith(PACKAGES):
            return None

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal before
            if event == "line":
                self._found.add((name, before, frame.f_lineno))
                before = frame.f_lineno
            return line

        return line

    def reached(self, target: Target, data: bytes) -> Reached:
        self._found = set()
        sys.settrace(self._enter)
        try:
            with suppress(*target.allowed), warnings.catch_warnings(action="ignore"):
                target.run(data)
        finally:
            sys.settrace(None)
        return self._found


def chosen(target: Target, pool: Iterable[bytes], watch: Watch) -> list[bytes]:
    """Of a pool of inputs, those that are kept."""
    known: Reached = set()
    for data in target.seeds:
        known |= watch.reached(target, data)
    kept: list[bytes] = []
    for data in sorted({*pool}, key=lambda data: (len(data), data)):
        full = len(kept) == INPUTS or sum(map(len, kept)) + len(data) > TARGET_BYTES
        if full or len(data) > INPUT_BYTES:
            break
        started = time.process_time()
        new = watch.reached(target, data) - known
        if new and time.process_time() - started < SECONDS:
            kept.append(data)
            known |= new
    return kept


def keep(target: Target, found: Path, watch: Watch) -> tuple[int, int]:
    """Choose from what a run found and from what was kept before.  Returns (inputs looked at, inputs kept).

    Files with names of words are of inputs that somebody looked at: they stay.
    """
    folder = CORPUS / target.name
    before = [path for path in folder.glob("*") if path.suffix == ".input"]
    pool = [path.read_bytes() for path in (*before, *found.glob("*"))]
    kept = chosen(target, pool, watch)
    for path in before:
        path.unlink()
    for data in kept:
        folder.mkdir(exist_ok=True)
        (folder / f"{hashlib.sha256(data).hexdigest()[:16]}.input").write_bytes(data)
    return len(pool), len(kept)

"""What the commands show on a terminal: progress, and the text of strangers.  Imported by prover, verifier and ml.

Phases and messages can come from the other side of a connection: they are shown as characters that print, shortened,
and progress elsewhere than on a terminal ends after MAX_PHASES lines.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

MAX_TEXT = 200  # characters of a stranger's text that are shown
MAX_PHASES = 32  # lines of progress

Report = Callable[[str, float], None]


def printable(text: str) -> str:
    """A stranger's text without control characters, and short."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_TEXT])


@contextmanager
def progress(quiet: bool = False) -> Iterator[Report]:
    """Where progress goes, a phase and a fraction of it in [0, 1], on the standard error.

    To a bar on a terminal, in a line per phase elsewhere, nowhere when quiet.
    """
    if not quiet and sys.stderr.isatty():
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda phase, fraction: bar.update(task, description=escape(printable(phase)), completed=fraction)
        return
    seen: set[str] = set()

    def line(phase: str, fraction: float) -> None:
        if not quiet and phase not in seen and len(seen) < MAX_PHASES:
            seen.add(phase)
            click.echo(f"{printable(phase)} ...", err=True)

    yield line

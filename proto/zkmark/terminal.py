"""What the commands take from a terminal and show on it: misuse, numbers, progress, the text of strangers.

Imported by prover, verifier and ml.

Phases and messages can come from the other side of a connection: they are shown as characters that print, shortened,
and progress elsewhere than on a terminal ends after MAX_PHASES lines.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

MAX_TEXT = 200  # characters of a stranger's text that are shown
MAX_PHASES = 32  # lines of progress
MAX_NUMBER = 1e9  # of an option: seconds, GiB, bits, calls; 30 years, and 64 bits hold what follows from it

FAILED: dict[str, object] = {"done": False, "failed_check": None}  # of the JSON of prover and ml

Report = Callable[[str, float], None]


class Program(click.Group):
    """The commands of a program.  Misuse of any is JSON, too, where --json is asked for, wherever it is found."""

    def __init__(self, *given: Any, misuse: Mapping[str, object], **more: Any) -> None:
        """misuse: what the program's JSON says beside `error`."""
        super().__init__(*given, **more)
        self._misuse = misuse

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        words = tuple(args)  # before they are parsed, which may be what fails
        with self._telling(words):
            made = super().make_context(info_name, args, parent, **extra)
        made.obj = words
        return made

    def invoke(self, ctx: click.Context) -> Any:
        with self._telling(ctx.obj):
            return super().invoke(ctx)

    @contextmanager
    def _telling(self, words: tuple[str, ...]) -> Iterator[None]:
        try:
            yield
        except click.UsageError as error:  # what click says on the standard error follows
            asked = error.ctx is not None and error.ctx.params.get("as_json")  # by a variable, if it was parsed
            if asked or "--json" in words:
                click.echo(json.dumps({**self._misuse, "error": error.format_message()}))
            raise


class Number(click.FloatRange):
    """A number in a range, and no larger than MAX_NUMBER.  Not `nan`, which lies in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not abs(number) <= MAX_NUMBER:
            self.fail(f"{value} is not a number up to {MAX_NUMBER:g}.", param, ctx)
        return number


def one_line(text: str) -> str:
    """A message on one line, without control characters: it may quote a stranger's file."""
    return "".join(c if c.isprintable() else "?" for c in text)


def quiet_grpc() -> None:
    """Keep what grpc notes about broken connections of strangers off the standard error; before it is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def printable(text: str) -> str:
    """A stranger's text without control characters, and short."""
    return one_line(text[:MAX_TEXT])


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

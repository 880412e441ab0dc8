"""README.md and the quickstart speak of commands and options that exist."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"\bzkmark-(prover|verifier|ml) ([a-z]+)\b([^`]*)")


def spoken(document: str) -> list[tuple[str, str, str]]:
    """(program, command, options) of every command line in a document, continuation lines joined."""
    text = (ROOT / document).read_text().replace("\\\n", " ")
    return [found.groups() for line in text.splitlines() for found in COMMAND.finditer(line)]  # type: ignore[misc]


COMMANDS = sorted({*spoken("README.md"), *spoken("examples/quickstart.sh")})


@pytest.mark.parametrize(("program", "name", "options"), COMMANDS, ids=[" ".join(c[:2]) for c in COMMANDS])
def test_commands_in_documents_exist(program: str, name: str, options: str) -> None:
    cli = import_module(f"{program}.cli").cli
    assert isinstance(cli, click.Group)
    assert name in cli.commands
    known = {option for parameter in cli.commands[name].params for option in parameter.opts} | {"--help"}
    assert set(re.findall(r"--[a-z][a-z-]*", options)) <= known


def test_readme_shows_every_everyday_command() -> None:
    assert {command[:2] for command in spoken("README.md")} >= {
        ("prover", "keygen"),
        ("prover", "prove"),
        ("prover", "approve"),
        ("prover", "serve"),
        ("ml", "mark"),
        ("ml", "train"),
        ("ml", "evaluate"),
        ("verifier", "key"),
        ("verifier", "verify"),
    }


def test_documents_name_files_that_exist() -> None:
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (ROOT / target).exists(), f"{document.name}: {target}"

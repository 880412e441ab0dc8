"""README.md, packaging/README.md and the quickstart speak of commands and options that exist."""

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


COMMANDS = sorted({*spoken("README.md"), *spoken("examples/quickstart.sh"), *spoken("packaging/README.md")})


@pytest.mark.parametrize(("program", "name", "options"), COMMANDS, ids=[" ".join(c[:2]) for c in COMMANDS])
def test_commands_in_documents_exist(program: str, name: str, options: str) -> None:
    cli = import_module(f"{program}.cli").cli
    assert isinstance(cli, click.Group)
    assert name in cli.commands
    command = cli.commands[name]
    if isinstance(command, click.Group) and options.split():  # the next word says which
        command = command.commands[options.split()[0]]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
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
        ("verifier", "batch"),
        ("verifier", "review"),
    }


def test_the_program_in_the_readme_runs(world, approved_file, tmp_path, monkeypatch, capsys) -> None:
    """Against a server; and the list of cases is read."""
    from prover.jobs import Prover
    from tests.service.serving import SECRET, running
    from verifier.batch import read_list

    text = (ROOT / "README.md").read_text()
    program = re.findall("```python\n(.*?)```", text, re.DOTALL)
    cases = re.findall("    # cases.toml.*?\n\n", text, re.DOTALL)
    assert len(program) == len(cases) == 1
    (tmp_path / "owner.vk").write_bytes(world.key.vk.to_bytes())
    (tmp_path / "model.onnx").write_bytes(world.marked)
    (tmp_path / "cases.toml").write_text("\n".join(line[4:] for line in cases[0].splitlines()))
    monkeypatch.chdir(tmp_path)
    with running(Prover(approved_file, SECRET, claimant="Ada")) as address:
        exec(program[0].replace("prover.example:50051", address), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first == "accepted" and second.startswith("accepted ")
    assert {name: case.claimant for name, case in read_list(tmp_path / "cases.toml").items()} == {
        "app-3.1": "Ada",
        "app-3.2": "Ada",
    }


def test_documents_name_files_that_exist() -> None:
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (ROOT / target).exists(), f"{document.name}: {target}"

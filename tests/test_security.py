"""The tables of SECURITY.md are complete, and everything they name exists."""

import ast
import importlib
import inspect
import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from protocol import soundness
from protocol.keygen import MarkingKey
from protocol.soundness import Counts, Parameters, argument_ledger

ROOT = Path(__file__).parents[1]
SECURITY = (ROOT / "SECURITY.md").read_text()
SPEC = (ROOT / "protocol" / "SPEC.md").read_text()


def rows(text: str, header: str) -> list[list[str]]:
    """Rows of all tables whose first header cell is `header`."""
    found, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            inside = False
        elif inside and not set(cells[0]) <= set("-"):
            found.append(cells)
        elif cells[0] == header:
            inside = True
    assert found, header
    return found


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


CHECKS = rows(SECURITY, "check")
TESTS = sorted(set(re.findall(r"`([\w/]+\.py::\w+)`", SECURITY)))


@cache
def functions(path: Path) -> dict[str, str]:
    """Source of every test of a file, with its decorators."""
    source = path.read_text()
    lines = source.splitlines()
    return {
        node.name: "\n".join(lines[min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1 : node.end_lineno])
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def source(test: str) -> str:
    name, function = test.split("::")
    path = ROOT / name if "/" in name else ROOT / "tests" / "protocol" / name
    return functions(path)[function]


def test_every_check_has_a_row():
    stated, found = [row[0].strip("`") for row in rows(SPEC, "check")], [quoted(row[0])[0] for row in CHECKS]
    assert sorted(set(stated) - set(found)) == [], "new checks need a row, with a test that reaches them"
    assert sorted(found) == sorted(stated)


@pytest.mark.parametrize("row", CHECKS, ids=lambda row: row[0].strip("`"))
def test_a_check_is_raised_and_reached(row):
    """By the function that is named, or a part of its module; and each test names it."""
    (check,), (code,) = quoted(row[0]), quoted(row[1])
    module, name = code.rsplit(".", 1)
    found = importlib.import_module(module)
    assert hasattr(found, name)
    family, _, rest = check.partition(".")
    written = inspect.getsource(found)
    assert f'"{check}"' in written or (family == "statement" and f'"{rest}"' in written)
    tests = quoted(row[3])
    assert tests
    for test in tests:
        text = source(test)
        assert check in text or f"{family}.{{" in text or (family == "statement" and 'startswith("statement.")' in text)


@pytest.mark.parametrize("test", TESTS)
def test_a_test_that_is_named_exists(test):
    assert source(test)


@cache
def ledger_terms() -> set[str]:
    counts = Counts(1000, 1000, (10,), 10, 10, 100, 1, 100, 16)
    return {term.name for term in argument_ledger(counts, Parameters(13), interactive=True).terms}


def test_every_ledger_term_has_checks_and_an_experiment():
    used = {term for row in CHECKS for term in quoted(row[2])}
    assert used == ledger_terms() | {"sessions"} and soundness.SESSIONS
    measured = [term for row in rows(SECURITY, "ledger term") for term in quoted(row[0])]
    assert sorted(measured) == sorted(ledger_terms())
    assert all(quoted(row[1]) for row in rows(SECURITY, "ledger term"))


def test_every_secret_has_evidence():
    secrets = rows(SECURITY, "secret")
    assert {name for row in secrets for name in quoted(row[0])} == {f.name for f in fields(MarkingKey)} - {"vk"}
    assert all(any("::" in name for name in quoted(row[2])) for row in secrets)

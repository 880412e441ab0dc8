"""The tables of SECURITY.md are complete, and everything they name exists."""

import ast
import re
from collections import Counter
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from protocol import soundness
from protocol.keygen import MarkingKey
from protocol.soundness import Counts, Parameters, argument_ledger
from tests.adversary import reached, table

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


def test_the_table_of_checks_is_rendered():
    assert table.render() in SECURITY, "run python -m tests.adversary.table"
    assert table.NOBODY not in SECURITY, "mark tests that reach these checks with @pytest.mark.reaches(CHECK)"


def test_the_table_of_results_is_rendered():
    """Each says which sources it ran on; that a result is of these sources is for its reader to see."""
    assert table.results() in SECURITY, "run python -m tests.adversary.table"
    digests = [quoted(row[-1]) for row in rows(SECURITY, "run")]
    assert len(digests) == 5 and all(re.fullmatch(r"[0-9a-f]{64}", one) for (one,) in digests)


def test_a_check_without_a_cheater_is_noticed(monkeypatch):
    monkeypatch.setattr(table, "checks", lambda: ["linear.sum", "linear.product"])
    monkeypatch.setitem(table.LEDGER, "linear.product", table.EXACT)
    assert table.render().count(table.NOBODY) == 2


def test_every_check_says_what_it_rests_on(monkeypatch):
    assert {*table.LEDGER} == {*table.checks()}
    monkeypatch.setattr(table, "checks", lambda: ["linear.product"])
    with pytest.raises(KeyError, match=r"linear\.product"):
        table.render()


def test_cheaters_reach_what_they_say(request):
    """Runs last: all runs of a cheater together reached each check of his mark, by the code that the table names.

    That no other check stopped him was seen when he ran (tests/adversary/reached.py).
    """
    begun, marks = Counter(), {}
    for item in request.session.items:
        begun[reached.name(item)] += 1
        marks[reached.name(item)] = reached.declared(item)
    found, missed = request.config.stash[reached.STASH], []
    for test, runs in found.runs.items():
        if runs != begun[test]:
            continue  # some of its parameters only
        missed += [(test, check) for check in marks[test] if not found.functions[test][check] & {*table.code(check)}]
    assert missed == []


@pytest.mark.parametrize("test", TESTS)
def test_a_test_that_is_named_exists(test):
    assert source(test)


@cache
def ledger_terms() -> set[str]:
    counts = Counts(1000, 1000, (10,), 10, 10, 100, 1, 100, 16)
    return {term.name for term in argument_ledger(counts, Parameters(13), interactive=True).terms}


def test_every_ledger_term_has_checks_and_an_experiment():
    used = {term for cell in table.LEDGER.values() for term in quoted(cell)}
    assert used == ledger_terms() | {"sessions"} and soundness.SESSIONS
    measured = [term for row in rows(SECURITY, "ledger term") for term in quoted(row[0])]
    assert sorted(measured) == sorted(ledger_terms())
    assert all(quoted(row[1]) for row in rows(SECURITY, "ledger term"))


def test_every_secret_has_evidence():
    secrets = rows(SECURITY, "secret")
    assert {name for row in secrets for name in quoted(row[0])} == {f.name for f in fields(MarkingKey)} - {"vk"}
    assert all(any("::" in name for name in quoted(row[2])) for row in secrets)

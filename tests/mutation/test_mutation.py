"""The operators on a few lines, the list of targets against the code, and the report against the reasons it gives."""

import ast
import importlib
import inspect
import json
from pathlib import Path

import pytest

from tests.mutation.operators import mutants
from tests.mutation.report import CHANGED, dumps, merged, render, summary
from tests.mutation.targets import EDGES, EQUATIONS, KNOWN, PROOFS, TARGETS, path_of

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
SOURCE = '''
"""Text."""
__all__ = ["check"]
CAP: int = 3

@cache
def check(a, b):
    """Text."""
    if a < CAP and not b:
        raise VerificationError("name", "message")
    count += field.add(a, b)
    call(a)
    return [x for x in a if x]

def prove(witness):
    if witness is not None:
        secret = 1
    return 2
'''
EXPECTED = {
    "CAP": {"CAP: int = 4"},
    "check": {
        "if False:", "if True:", "if a < CAP or not b:", "if not b:", "if a < CAP:", "if a <= CAP and (not b):",
        "if a < CAP and b:", "raise VerificationError('XXname', 'message')", "count -= field.add(a, b)",
        "count = field.add(a, b)", "count += field.sub(a, b)", "pass", "return [x for x in a]",
        "return [x for x in a if False]",
    },
    "prove": {"return 3"},
}  # fmt: skip


def found(excluded):
    out = {}
    for mutant, tree in mutants(SOURCE, excluded):
        compile(tree, "mutant", "exec")
        out.setdefault(mutant.scope, []).append(mutant.after)
    return out


def test_operators():
    assert {scope: set(lines) for scope, lines in found(set()).items()} == EXPECTED
    assert found(set())["check"].count("pass") == 2  # the sum and the call


def test_what_is_excluded():
    assert set(found({"check"})) == {"CAP", "prove"}
    with pytest.raises(ValueError, match="checks"):
        found({"checks"})


def test_the_tree_is_restored():
    for mutant, tree in mutants(SOURCE, set()):
        assert ast.unparse(tree) != ast.unparse(ast.parse(SOURCE)), mutant
        last = tree
    list(mutants(SOURCE, set()))
    assert isinstance(last, ast.Module)


def test_targets_exist():
    for module, target in TARGETS.items():
        tree = ast.parse((ROOT / "protocol" / f"{module}.py").read_text())
        names = set(_names(tree, ""))
        assert target.excluded <= names, (module, target.excluded - names)
        for suite in target.suites:
            assert suite in KNOWN.values() or (ROOT / path_of(suite)).exists()


def _names(node, scope):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            name = f"{scope}.{child.name}".lstrip(".")
            yield name
            yield from _names(child, name)
        elif not scope and isinstance(child, (ast.Assign, ast.AnnAssign)):
            target = child.targets[0] if isinstance(child, ast.Assign) else child.target
            yield getattr(target, "id", "")


def test_tests_that_a_mutant_calls_take_no_argument():
    for suite in (EDGES, EQUATIONS, PROOFS):
        tests = {name: test for name, test in vars(importlib.import_module(suite)).items() if name.startswith("test_")}
        assert tests and not [name for name, test in tests.items() if inspect.signature(test).parameters]


def test_a_run_of_one_module_leaves_the_others():
    """What was known of it is replaced, also when it is less now."""
    found = {"a: `x` → `y`": "killed", "a: `x` → `z`": "timeout", "a: `y` → `x`": "survived"}
    first = merged({}, "log", summary("1" * 64, 9, found))
    both = merged(first, "link", summary("2" * 64, 5, {"b: `1` → `2`": "killed"}))
    assert [*both] == ["link", "log"] and both["log"] == first["log"]
    assert both["log"] == {"digest": "1" * 64, "all": 9, "killed": 1, "timeout": 1, "survived": ["a: `y` → `x`"]}
    again = merged(json.loads(dumps(both)), "log", summary("3" * 64, 8, {}))
    assert again["link"] == both["link"] and again["log"]["killed"] == 0

    report = render(both, {"log": {"a: `y` → `x`": "The same."}}, {"log": "1" * 64, "link": "4" * 64})
    assert "| log | 11111111 | 9 | 3 | 2 | 1 | 1 | 66.7 |" in report and "| 14 | 4 | 3 | 1 | 1 | 75.0 |" in report
    assert "- a: `y` → `x`  \n  The same.\n" in report and f"{CHANGED}: link.\n" in report
    assert "**Not explained.**" in render(both, {}, {"log": "1" * 64, "link": "2" * 64})


def test_the_report_is_that_of_the_outcomes():
    """Every module was judged, 95 % were killed and survivors explained; which modules changed since is left open."""
    known, reasons = (json.loads((HERE / f"{name}.json").read_text()) for name in ("outcomes", "survivors"))
    lines = [line for line in (HERE / "REPORT.md").read_text().split("\n") if line and not line.startswith(CHANGED)]
    rendered = render(known, reasons, {module: result["digest"] for module, result in known.items()})
    assert lines == [*filter(None, rendered.split("\n"))]
    assert [*known] == [*TARGETS] and "Not explained" not in rendered
    assert {module: {*why} for module, why in reasons.items()} == {
        module: {*result["survived"]} for module, result in known.items() if result["survived"]}
    for module, result in known.items():
        killed, lived = result["killed"] + result["timeout"], len(result["survived"])
        assert killed >= 0.95 * (killed + lived), module

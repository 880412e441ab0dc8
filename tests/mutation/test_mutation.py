"""The operators on a few lines, the list of targets against the code, and the report against the reasons it gives."""

import ast
import json
from pathlib import Path

import pytest

from tests.mutation.operators import mutants
from tests.mutation.targets import KNOWN, TARGETS, path_of

ROOT = Path(__file__).parents[2]
SOURCE = '''
"""Text."""
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


def test_every_survivor_of_the_report_is_explained():
    here = Path(__file__).parent
    report = (here / "REPORT.md").read_text()
    assert "Not explained" not in report
    for reasons in json.loads((here / "survivors.json").read_text()).values():
        for reason in reasons.values():
            assert reason in report

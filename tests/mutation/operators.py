"""Mutants of a module: its syntax tree with one small change.

The operators are those of mutmut 3 (other comparison, other arithmetic, other boolean operator, numbers plus one, other
strings, without unary operator, other keyword) and some that suit a verifier: a statement is dropped, a condition is
always or never true, an operand of a condition is dropped, and arithmetic in K, which is written as calls, is another.
Its "argument or value becomes None" is left out: in typed code such a mutant ends in a TypeError.  mutmut itself cannot
be used, as it passes over everything under a decorator: all records, properties and decoders.

Left alone: annotations, decorators, docstrings, messages of errors, the `strict` of a zip, `__all__`, and the branches
that only a prover takes.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.Continue: ast.Break, ast.Break: ast.Continue,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}
IN_K = {"add": "sub", "sub": "add", "mul": "add", "ONE": "ZERO", "ZERO": "ONE"}
# Tests of branches that only a prover takes, and that branch: neither is mutated.
PROVERS = ("witness", "context.witness", "sums", "tensors", "self._pads")
PROVING = {"tensors": "body", "x is None or y is None": "orelse"} | {f"{name} is not None": "body" for name in PROVERS}
MESSAGES = {"DecodingError", "ParameterError", "RuntimeError", "ValueError", "fail"}


@dataclass(frozen=True)
class Mutant:
    """`before` and `after`: the changed statement, of a compound one its first line."""

    scope: str
    before: str
    after: str
    number: int  # among those that read the same

    def __str__(self) -> str:
        again = f" (no. {self.number})" if self.number > 1 else ""
        return f"{self.scope}: `{self.before}` → `{self.after}`{again}"


def mutants(source: str, excluded: set[str]) -> Iterator[tuple[Mutant, ast.Module]]:
    """Every mutant of a module but those within the functions and classes `excluded`, with its tree.

    The tree is good until the next step.  Raises ValueError for an excluded name that the module has not.
    """
    tree, seen, left_out = ast.parse(source), Counter[tuple[str, str, str]](), set[str]()
    for place in list(_places(tree, "", tree, excluded, left_out)):
        original = place.get()
        before = _line(place.statement)
        for change in _changes(original):
            place.set(change)
            after = _line(change if original is place.statement else place.statement)
            if after != before:
                key = (place.scope, before, after)
                seen[key] += 1
                yield Mutant(*key, seen[key]), ast.fix_missing_locations(tree)
            place.set(original)
    if unknown := excluded - left_out:
        raise ValueError(f"not in the module: {sorted(unknown)}")


@dataclass(frozen=True)
class _Place:
    scope: str
    statement: ast.AST
    owner: Any
    key: str | int

    def get(self) -> Any:
        return getattr(self.owner, self.key) if isinstance(self.key, str) else self.owner[self.key]

    def set(self, node: Any) -> None:
        if isinstance(self.key, str):
            setattr(self.owner, self.key, node)
        else:
            self.owner[self.key] = node


def _places(node: ast.AST, scope: str, statement: ast.AST, excluded: set[str], left_out: set[str]) -> Iterator[_Place]:
    """All nodes below `node` that may be replaced."""
    skipped = {"decorator_list", "annotation", "returns", "bases", "ops", "op"}
    if _is_proving(node):
        skipped |= {"test", PROVING[ast.unparse(node.test)]}
    elif isinstance(node, ast.Call):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        skipped |= {"args", "keywords"} if called in MESSAGES else set()
    for name, value in ast.iter_fields(node):
        children = enumerate(value) if isinstance(value, list) else [(name, value)]
        for key, child in children:
            if name in skipped or not isinstance(child, ast.AST) or _is_message(node, name, key):
                continue
            if isinstance(node, ast.If) and isinstance(child, ast.Raise) and len(node.body) == 1:
                yield from _places(child, scope, child, excluded, left_out)  # dropped by the condition
                continue
            if isinstance(child, (ast.Import, ast.ImportFrom, ast.JoinedStr)) or _is_text(child):
                continue
            if _assigned(child) == "__all__":
                continue
            named = isinstance(child, (ast.FunctionDef, ast.ClassDef))
            inner = f"{scope}.{child.name}".lstrip(".") if named else scope or _assigned(child)
            if inner in excluded:
                left_out.add(inner)
                continue
            within = child if isinstance(child, ast.stmt) else statement
            if not _is_proving(child):
                yield _Place(inner, within, value if isinstance(value, list) else node, key)
            yield from _places(child, inner, within, excluded, left_out)


def _is_proving(node: ast.AST) -> bool:
    return isinstance(node, (ast.If, ast.IfExp)) and ast.unparse(node.test) in PROVING


def _assigned(node: ast.AST) -> str:
    """The name that an assignment gives a value to, outside classes and functions."""
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return getattr(target, "id", "")


def _is_message(node: ast.AST, name: str, key: str | int) -> bool:
    """The message of a VerificationError, what a Reader says that it reads, or the `strict` of a zip."""
    called = getattr(getattr(node, "func", None), "id", "")
    message = name == "args" and key == 1 and called in ("VerificationError", "Reader")
    return message or getattr(node, "arg", "") == "strict"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _changes(node: Any) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    true, false = ast.Constant(True), ast.Constant(False)
    if isinstance(node, ast.Compare):
        for k, op in enumerate(node.ops):
            yield ast.Compare(node.left, [*node.ops[:k], SWAPS[type(op)](), *node.ops[k + 1 :]], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(SWAPS[type(node.op)](), node.values)
        for k in range(len(node.values)):
            rest = [*node.values[:k], *node.values[k + 1 :]]
            yield ast.BoolOp(node.op, rest) if len(rest) > 1 else rest[0]
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from _other_constants(node.value)
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield ast.Name(NAMES[node.id], node.ctx)
    elif isinstance(node, ast.Attribute):
        names = IN_K if getattr(node.value, "id", "") == "field" else NAMES
        if node.attr in names:
            yield ast.Attribute(node.value, names[node.attr], node.ctx)
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        fields = dict(ast.iter_fields(node))
        yield type(node)(**fields | {"test": false})
        if not isinstance(node, ast.While):
            yield type(node)(**fields | {"test": true})
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield ast.comprehension(node.target, node.iter, [], node.is_async)
        yield ast.comprehension(node.target, node.iter, [false], node.is_async)
    elif isinstance(node, (ast.Continue, ast.Break)):
        yield SWAPS[type(node)]()
    elif isinstance(node, ast.AugAssign):
        yield ast.AugAssign(node.target, SWAPS[type(node.op)](), node.value)
        yield ast.Assign([node.target], node.value)
        yield ast.Pass()
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Subscript, ast.Attribute)):
        yield ast.Pass()
    elif isinstance(node, (ast.Raise, ast.Expr)):
        yield ast.Pass()


def _other_constants(value: object) -> Iterator[ast.AST]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, (int, float)):
        yield ast.Constant(value + 1)
    elif isinstance(value, str):
        yield ast.Constant(f"XX{value}")
    elif isinstance(value, bytes):
        yield ast.Constant(b"XX" + value)


def _line(node: ast.AST) -> str:
    """The node in one line; of a compound statement the first line below its decorators."""
    return next(line for line in ast.unparse(ast.fix_missing_locations(node)).split("\n") if line[0] != "@")

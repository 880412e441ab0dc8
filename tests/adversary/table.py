"""The auditor's path, check by check: `python -m tests.adversary.table` renders it into SECURITY.md.

    check        every name in SPEC.md, in its order
    in the code  the functions that raise it, found in the source
    ledger term  the errors that a cheater may hope for there (LEDGER, which has to name every check)
    cheaters     the tests that are marked with `@pytest.mark.reaches(check)`; they fail where another check stops them

And what was run outside of the tests: how much of it, and on which sources.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECURITY = ROOT / "SECURITY.md"
BEGIN, END = "<!-- {}: rendered by python -m tests.adversary.table -->", "<!-- end of the rendered table -->"
RESULTS = ROOT / "benchmarks" / "results"
RAISERS = ("VerificationError", "check_signature", "check_text", "check_name", "_check")

NOBODY = "**nobody**"
EXACT = "none: exact"  # it compares what is public
SIGNATURE, HASHES, WITNESSES = "Ed25519", "collisions of SHA-256", "BLS"
LEDGER = {
    "prove.matches": "the prover's own",
    "key.signature": SIGNATURE,
    "key.window": EXACT,
    "key.openings": "2^-128, binding of the commitments",
    "key.range": "cut and choose",
    "key.duplicates": "cut and choose",
    "key.ground_truth": "void limit, 2^-40",
    "log.signature": SIGNATURE,
    "log.entry": EXACT,
    "log.inclusion": HASHES,
    "log.window": EXACT,
    "log.rollback": EXACT,
    "log.split": EXACT,
    "log.consistency": HASHES,
    "log.cosignature": WITNESSES,
    "timestamp.digest": HASHES,
    "timestamp.signature": "the authority's signature",
    "policy.owner": SIGNATURE,
    "policy.anchor": "cut and choose",
    "policy.chosen_labels": "none: no bound",
    "policy.k_min": "false-claim bits",
    "policy.fidelity": "none: undecided",
    "policy.published": EXACT,
    "policy.witnesses": WITNESSES,
    "policy.review": SIGNATURE,
    "prover.refused": EXACT,
    "owner.signature": SIGNATURE,
    "statement.key": HASHES,
    "statement.model": HASHES,
    "statement.network": HASHES,
    "statement.derivation": HASHES,
    "statement.nonce": EXACT,
    "statement.purpose": EXACT,
    "statement.claimant": EXACT,
    "statement.verifier": EXACT,
    "statement.k_min": EXACT,
    "channel.second_coin": "`sessions`",
    "channel.coin": "`sessions`",
    "channel.unused_coin": "`sessions`",
    "link.range": "`link of pixels`, `link of labels`",
    "link.opening": "`openings checked at once`, `link of pixels`, `link of labels`",
    "messages.count": EXACT,
    "linear.sum": "`batched linear equations`, `lookups`, `lookup trees`, `affine and output sumchecks`, "
                  "`random points`",
    "quadratic.zero": "`batched quadratic constraints`",
    "merkle.path": HASHES,
    "proximity.columns": "`proximity`, `column queries`",
    "linear.columns": "`column queries`, `batched linear equations`",
    "quadratic.columns": "`column queries`, `batched quadratic constraints`",
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def checks() -> list[str]:
    """The names in the tables of SPEC.md whose first column is "check"."""
    found, inside = [], False
    for line in (ROOT / "protocol" / "SPEC.md").read_text().splitlines():
        if not line.startswith("|"):
            inside = False
        elif inside and (name := re.match(r"\| `([a-z]+\.[a-z0-9_]+)` \|", line)):
            found.append(name[1])
        elif line.startswith("| check |"):
            inside = True
    return found


def named(call: ast.Call) -> set[str]:
    """The checks, or families ("statement."), that a call of RAISERS names."""
    if getattr(call.func, "id", getattr(call.func, "attr", "")) not in RAISERS:
        return set()
    parts = (part for given in (*call.args, *(k.value for k in call.keywords)) for part in ast.walk(given))
    texts = (part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))
    return {text for text in texts if re.fullmatch(r"[a-z]+\.[a-z0-9_]*", text)}


@cache
def raisers() -> dict[str, list[str]]:
    """The functions of the packages that name a check where it is raised, as module.qualname."""
    found: dict[str, list[str]] = {}

    def visit(node: ast.AST, path: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = path
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{path}.{child.name}"
            elif isinstance(child, ast.Call):
                for check in named(child):
                    if path not in found.setdefault(check, []):
                        found[check].append(path)
            visit(child, inner)

    for package in ("protocol", "prover", "verifier", "ml"):
        for path in sorted((ROOT / package).rglob("*.py")):
            visit(tree(path), ".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


def code(check: str) -> list[str]:
    family = check.partition(".")[0] + "."
    return raisers().get(check) or raisers().get(family) or []


@cache
def cheaters() -> dict[str, dict[str, list[str]]]:
    """The marked tests of each check, by file."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in tree(path).body:
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.reaches":
                    for check in map(ast.literal_eval, mark.args):
                        tests = found.setdefault(check, {}).setdefault(str(path.relative_to(ROOT)), [])
                        tests.append(node.name)  # type: ignore[attr-defined]
    return found


def render() -> str:
    """The table, with NOBODY in the cells of checks that no code raises or no marked test reaches."""
    rows = ["| check | in the code | ledger term | cheaters whom it stops |", "|---|---|---|---|"]

    def quoted(names: Iterable[str]) -> str:
        return ", ".join(f"`{name}`" for name in names)

    def by_file(tests: dict[str, list[str]]) -> str:
        return "; ".join(
            f"`{path.removeprefix('tests/protocol/')}`: {', '.join(name.removeprefix('test_') for name in names)}"
            for path, names in tests.items()
        )

    for check in checks():
        found = quoted(code(check)) or NOBODY, LEDGER[check], by_file(cheaters().get(check, {})) or NOBODY
        row = (f"`{check}`", *found)
        rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows)


def results() -> str:
    """The table of what is kept in benchmarks/results, with the digests of the sources as `agree.sources` has them."""
    asked, found = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("agreement", "assurance"))
    passed = found["cut_and_choose"]
    keys, bad = passed[0]["trials"], passed[-1]["bad"]
    sizes = ", ".join(map(str, sorted({row["ell"] for row in passed})))
    ground = max(row["trials"] << row["log2_work"] for row in found["grinding"])
    parts = {
        "experiments": f"{len(found['experiments'])} attacks compared with their exact rates",
        "cut_and_choose": f"{keys:,} coins for each size of keys ({sizes} items), up to {bad} items ill-formed",
        "grinding": f"{ground:,} coins of keys of 160 items",
        "hiding": f"{found['hiding']['proofs']:,} proofs with one key",
    }
    differences = len(asked["differences"])
    lines = [("`make agree`", f"{asked['proofs']:,} proofs, {asked['bases']} of them honest, {differences} differences",
              asked["sources"])]  # fmt: skip
    lines += [(f"`make assurance`, {name}", what, found["sources"][name]) for name, what in parts.items()]
    head = ["| run | how much | SHA-256 of the sources of `protocol/` that it ran on |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {run} | {what} | `{digest}` |" for run, what, digest in lines)])


def main() -> int:
    text = SECURITY.read_text()
    for name, table in (("checks", render()), ("results", results())):
        before, _, rest = text.partition(BEGIN.format(name))
        _, _, after = rest.partition(END)
        text = f"{before}{BEGIN.format(name)}\n\n{table}\n\n{END}{after}"
    SECURITY.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

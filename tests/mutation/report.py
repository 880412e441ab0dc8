"""REPORT.md out of what the mutants did."""

from __future__ import annotations

from typing import Any

from tests.mutation.targets import TARGETS

Found = dict[str, dict[str, Any]]  # module to its mutants' outcomes (`mutants`) and the number of `all`

HEAD = """# Mutants of the verifier

Written by `make mutate`. Every mutant is the code of a module of `protocol/` with one small change
([operators](operators.py)); the suites of [targets.py](targets.py) judge it. A timeout counts as killed. Left out is
what only a prover, an owner or a log's server runs, and the kernels, which have plain twins.

*source* are the first digits of the SHA-256 of the module that was mutated. Fewer mutants are *judged* than there are
where only a share of them was run (`python -m tests.mutation --share 0.3`): a hash of the mutant decides, so that the
share looks random and is always the same. The rate is that of those judged.
"""


def render(found: Found, reasons: dict[str, dict[str, str]], digests: dict[str, str]) -> str:
    """reasons: module to mutant to why it is no hole.  digests: of the modules as they are now."""
    lines = [HEAD, "| module | source | mutants | judged | killed | of these by time | survived | killed, % |",
             "|---|---|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    total = [0] * 5
    for module, result in found.items():
        outcomes = list(result["mutants"].values())
        lived, late = outcomes.count("survived"), outcomes.count("timeout")
        row = [result["all"], len(outcomes), len(outcomes) - lived, late, lived]
        total = [a + b for a, b in zip(total, row, strict=True)]
        lines.append(_row(f"{module} | {result['digest'][:8]}", row))
    lines += [_row("**all** |", total), ""]
    if rest := [module for module in TARGETS if module not in found]:
        lines += [f"Not judged yet: {', '.join(rest)}.", ""]
    if changed := [module for module, result in found.items() if result["digest"] != digests[module]]:
        lines += [f"Changed since they were judged: {', '.join(changed)}.", ""]
    lines += ["## Survivors", ""]
    for module, result in found.items():
        known = reasons.get(module, {})
        lived = [name for name, outcome in result["mutants"].items() if outcome == "survived"]
        if lived:
            reasoned = (f"- {name}  \n  {known.get(name, '**Not explained.**')}" for name in lived)
            lines += [f"### {module}", "", *reasoned, ""]
    lines += ["## Left out", ""]
    for module, target in TARGETS.items():
        if target.excluded:
            lines.append(f"- {module}: {', '.join(f'`{name}`' for name in sorted(target.excluded))}")
    return "\n".join(lines) + "\n"


def _row(name: str, row: list[int]) -> str:
    return f"| {name} | " + " | ".join(map(str, row)) + f" | {100 * row[2] / max(row[1], 1):.1f} |"

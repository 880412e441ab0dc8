"""REPORT.md out of what the mutants did, and the few numbers about each module that it is made from."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tests.mutation.targets import TARGETS

Summary = dict[str, Any]  # of a module: `digest`, `all` its mutants, how many were `killed`, by `timeout`, `survived`

HEAD = """# Mutants of the verifier

Written by `make mutate`. Every mutant is the code of a module of `protocol/` with one small change
([operators](operators.py)); the suites of [targets.py](targets.py) judge it. A timeout counts as killed. Left out is
what only a prover, an owner or a log's server runs, and the kernels with what calls them, which have plain twins.

*source* are the first digits of the SHA-256 of the module that was mutated. A run of some modules replaces only
what [outcomes.json](outcomes.json) says of these. Fewer mutants are *judged* than there are where only a share of them
was run (`python -m tests.mutation --share 0.3`): a hash of the mutant decides, so that the share looks random and is
always the same. The rate is that of those judged.
"""

CHANGED = "Changed since they were judged"
HISTORY = """Tests were written for what survived. Before them 530 of 577 mutants (91.9 %) were killed in a first
judging, and 825 of 873 (94.5 %) in a second one, of more modules.
"""


def summary(digest: str, every: int, outcomes: dict[str, str]) -> Summary:
    """every: the number of all mutants, judged or not.  outcomes: of those judged."""
    counts = Counter(outcomes.values())
    survived = [name for name, outcome in outcomes.items() if outcome == "survived"]
    return {"digest": digest, "all": every, "killed": counts["killed"], "timeout": counts["timeout"],
            "survived": survived}  # fmt: skip


def merged(known: dict[str, Summary], module: str, found: Summary) -> dict[str, Summary]:
    """What is known, with one module's summary instead of the one that it had, in the order of the targets."""
    every = known | {module: found}
    return {name: every[name] for name in TARGETS if name in every}


def dumps(known: dict[str, Summary]) -> str:
    """The text of outcomes.json."""
    return json.dumps(known, indent=1, ensure_ascii=False) + "\n"


def render(known: dict[str, Summary], reasons: dict[str, dict[str, str]], digests: dict[str, str]) -> str:
    """reasons: module to mutant to why it is no hole.  digests: of the modules as they are now."""
    lines = [HEAD, "| module | source | mutants | judged | killed | of these by time | survived | killed, % |",
             "|---|---|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    total = [0] * 5
    for module, result in known.items():
        killed, lived = result["killed"] + result["timeout"], len(result["survived"])
        row = [result["all"], killed + lived, killed, result["timeout"], lived]
        total = [a + b for a, b in zip(total, row, strict=True)]
        lines.append(_row(f"{module} | {result['digest'][:8]}", row))
    lines += [_row("**all** |", total), ""]
    if rest := [module for module in TARGETS if module not in known]:
        lines += [f"Not judged yet: {', '.join(rest)}.", ""]
    if changed := [module for module, result in known.items() if result["digest"] != digests[module]]:
        lines += [f"{CHANGED}: {', '.join(changed)}.", ""]
    lines += [HISTORY, "## Survivors", ""]
    for module, result in known.items():
        why = reasons.get(module, {})
        if result["survived"]:
            reasoned = (f"- {name}  \n  {why.get(name, '**Not explained.**')}" for name in result["survived"])
            lines += [f"### {module}", "", *reasoned, ""]
    lines += ["## Left out", ""]
    for module, target in TARGETS.items():
        if target.excluded:
            lines.append(f"- {module}: {', '.join(f'`{name}`' for name in sorted(target.excluded))}")
    return "\n".join(lines) + "\n"


def _row(name: str, row: list[int]) -> str:
    return f"| {name} | " + " | ".join(map(str, row)) + f" | {100 * row[2] / max(row[1], 1):.1f} |"

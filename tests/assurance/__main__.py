"""What can be measured about soundness and hiding: `python -m tests.assurance` (`make assurance`), some minutes.

Runs the experiments of the tests and larger ones, writes the numbers to benchmarks/results/assurance.json, each part
with a digest of the package's sources that it ran on, and draws them: how often cheats succeed against the exact rates,
and what shows in thousands of proofs with one key.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.adversary import rates
from tests.adversary.agree import sources
from tests.adversary.coins import accepted, coins, exactly
from tests.adversary.rates import Observed, agrees
from tests.assurance import hiding

RESULTS = Path("benchmarks/results")
EXPERIMENTS = ("tests/protocol/test_soundness_by_experiment.py", "tests/ml/test_false_claims.py")
SIZES = (16, 40, 160)
GROUND = 10  # ill-formed items of the grinding owner, among 160


def cut_and_choose(count: int) -> list[dict[str, Any]]:
    """Keys with k ill-formed items among ell that pass, of `count` for each ell."""
    found = []
    for ell in SIZES:
        opened = coins(ell, count)
        for bad in range(9):
            hits = int(accepted(opened, bad).sum())
            agrees(f"{bad} bad of {ell}", hits, count, exactly(ell, bad), 1)
            found.append({"ell": ell, "bad": bad} | asdict(rates.OBSERVED.pop()))
    return found


def grinding(log2_count: int) -> list[dict[str, Any]]:
    """An owner with 10 ill-formed items among 160 draws 2^w keys and shows one that passes, if there is one."""
    rate, found = exactly(160, GROUND), []
    passed = accepted(coins(160, 1 << log2_count), GROUND)
    for w in range(0, log2_count - 3, 2):
        wins = int(passed.reshape(-1, 1 << w).any(axis=1).sum())
        agrees(f"2^{w} keys", wins, 1 << log2_count - w, 1 - (1 - rate) ** (1 << w), (1 << w) * rate)
        found.append({"log2_work": w} | asdict(rates.OBSERVED.pop()))
    return found


def hidden(proofs: int) -> dict[str, Any]:
    """What thousands of proofs with one key show, and what those of two weakened provers do."""
    found, weak = hiding.measure(proofs), hiding.measure(60, lambda: hiding.small_masks(33))
    pads = hiding.measure(60, hiding.small_pads)
    bins = np.linspace(-5, 5, 41)

    def histogram(one: hiding.Found) -> list[int]:
        z = np.concatenate(list(one.deviates.values()))
        return np.histogram(np.clip(z, -5, 5), bins)[0].tolist()

    return {
        "proofs": proofs,
        "positions": {kind: len(z) for kind, z in found.deviates.items()},
        "largest_deviate": {kind: round(float(np.abs(z).max()), 2) for kind, z in found.deviates.items()},
        "chance": {kind: float(f"{found.chance(kind):.3g}") for kind in found.deviates},
        "messages_that_repeat": found.repeated,
        "error_of_a_pixel": round(found.error),
        "bins": bins.tolist(), "histogram": histogram(found),
        "weakened": {
            "error_of_a_pixel": round(weak.error, 2),
            "farthest_pixel": round(float(np.abs(weak.slopes - hiding.pixels()).max()), 2),
            "chance": {kind: float(f"{pads.chance(kind):.3g}") for kind in pads.deviates},
            "histogram": histogram(pads),
        },
    }  # fmt: skip


def draw(found: dict[str, Any], path: Path) -> None:
    """Four pictures in one file."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "zkmark", "svg.fonttype": "none"}
    from matplotlib import pyplot

    figure, ((keys, toys), (ground, hides)) = pyplot.subplots(2, 2, figsize=(11, 8.5), layout="constrained")

    def points(axes: Any, x: Any, rows: list[dict[str, Any]], **style: Any) -> None:
        observed = [Observed(*(row[name] for name in ("part", "hits", "trials", "rate", "most"))) for row in rows]
        y = np.array([o.hits / o.trials for o in observed])
        spans = np.array([o.interval() for o in observed])
        axes.errorbar(x, y, np.abs(spans.T - y), fmt="o", markersize=4, capsize=2, linewidth=1, **style)

    for number, ell in enumerate(SIZES):
        rows = [row for row in found["cut_and_choose"] if row["ell"] == ell]
        bad = [row["bad"] for row in rows]
        keys.plot(bad, [row["rate"] for row in rows], color=f"C{number}", linewidth=1)
        label = f"{ell} items, {rows[0]['trials']} keys"
        points(keys, np.array(bad) + 0.12 * (number - 1), rows, color=f"C{number}", label=label)
    keys.set(yscale="log", xlabel="ill-formed items", ylabel="keys that pass", title="Cut and choose (lines: exact)")
    keys.legend()

    parts = defaultdict(list)
    for row in found["experiments"]:
        parts[row["part"]].append(row)
    for number, (part, rows) in enumerate(sorted(parts.items())):
        style = {"color": f"C{number % 10}", "markerfacecolor": "white" if number >= 10 else None}
        points(toys, [row["rate"] for row in rows], [row for row in rows], label=part, **style)
        bounds = [(row["most"], row["hits"] / row["trials"]) for row in rows if row["most"] is not None]
        toys.plot([min(b, 1) for b, _ in bounds], [y for _, y in bounds], "|", color=style["color"], markersize=9)
    toys.plot([1e-4, 1], [1e-4, 1], color="gray", linewidth=0.8)
    toys.set(xscale="log", yscale="log", xlabel="exact rate of the attack (bars: what the formula allows)",
             ylabel="measured", title="Best attacks at toy parameters")  # fmt: skip
    toys.legend(fontsize=7, loc="upper left")

    rows = found["grinding"]
    work = [row["log2_work"] for row in rows]
    ground.plot(work, [row["rate"] for row in rows], linewidth=1, label="exact")
    ground.plot(work, [min(1, row["most"]) for row in rows], "--", linewidth=1, label="work x error")
    points(ground, work, rows, color="C3", label="measured")
    ground.set(yscale="log", xlabel="log2 of the keys drawn", ylabel="owners with a key that passes",
               title=f"Grinding the coin: {GROUND} ill-formed items of 160")  # fmt: skip
    ground.legend()

    hiding_ = found["hiding"]
    bins = np.array(hiding_["bins"])
    middle = (bins[1:] + bins[:-1]) / 2
    for counts, label, color in ((hiding_["histogram"], f"{hiding_['proofs']} proofs with one key", "C0"),
                                 (hiding_["weakened"]["histogram"], "60 proofs with small pads", "C1")):  # fmt: skip
        hides.step(middle, np.maximum(np.array(counts) / sum(counts), 1e-6), where="mid", color=color, label=label)
    hides.plot(middle, np.diff(stats.norm.cdf(bins)), "k:", linewidth=1, label="normal: nothing to be seen")
    hides.set(yscale="log", xlabel="deviate of a mean or correlation", ylabel="share of positions",
              title="What a proof's positions say about what they hide")  # fmt: skip
    hides.legend()
    figure.savefig(path, metadata={"Date": None})


def experiments() -> list[dict[str, Any]]:
    """What the tests compare."""
    if pytest.main(["-q", "-p", "no:cacheprovider", *EXPERIMENTS]):
        raise SystemExit("an experiment failed")
    return [asdict(one) for one in rates.OBSERVED]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--proofs", type=int, default=2000, help="with one key")
    parser.add_argument("--coins", type=int, default=20, help="log2 of the keys that are drawn")
    parser.add_argument("parts", nargs="*", help="experiments, cut_and_choose, grinding, hiding, draw; default: all")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "experiments": experiments,
        "cut_and_choose": lambda: cut_and_choose(1 << arguments.coins - 3),
        "grinding": lambda: grinding(arguments.coins),
        "hiding": lambda: hidden(arguments.proofs),
    }
    path, digest = RESULTS / "assurance.json", sources()
    for name in arguments.parts or parts:
        if name in parts:
            part = parts[name]()
            found = json.loads(path.read_text()) if path.exists() else {}
            ran_on = found.get("sources", {}) | {name: digest}
            path.write_text(json.dumps(found | {name: part, "sources": ran_on}, indent=1) + "\n")
    draw(json.loads(path.read_text()), RESULTS / "catch-rates.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How a proof's cost grows with the hidden triggers and with the activations: the fit, and the picture of README.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.results import RESULTS

PICTURE = RESULTS / "scaling.svg"
NAMES = {"triggers": "more triggers, h = 64 to 512", "activations": "a wider network, h = 64"}
LINEAR = 0.15  # the largest deviation from a line that counts as linear


def total(point: dict[str, Any]) -> float:
    """Activations of all images in the proof."""
    return float(point["activations_per_image"] * point["h"])


def deviation(points: list[dict[str, Any]]) -> float:
    """Largest relative distance of the prove times from the line through them, fitted to relative errors."""
    x, y = (np.array([value(p) for p in points]) for value in (total, lambda p: p["seconds"]["prove"]))
    matrix = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    line, *_ = np.linalg.lstsq(matrix, np.ones_like(y), rcond=None)
    return float(np.abs(matrix @ line - 1).max())


def linearity(curves: dict[str, Any]) -> str:
    """One sentence on how linear the prove times are."""
    parts = []
    for kind, name in NAMES.items():
        points = sorted(curves[kind], key=total)
        first, last = (p["seconds"]["prove"] / total(p) * 1e9 for p in (points[0], points[-1]))
        gap = deviation(points)
        parts.append(
            f"{name}: {first:.0f} to {last:.0f} ns per activation, {100 * gap:.0f} % off a line at most"
            + ("" if gap <= LINEAR else f" (over {100 * LINEAR:.0f} %)")
        )
    return "; ".join(parts) + "."


def draw() -> None:
    """Write the picture, if there are curves."""
    source = RESULTS / "curves.json"
    if not source.exists():
        return
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    curves = json.loads(source.read_text())
    quantities: dict[str, Callable[[dict[str, Any]], float]] = {
        "prove [s]": lambda p: p["seconds"]["prove"],
        "peak memory, prove [GiB]": lambda p: p["peak_memory_bytes"]["prove"] / 2**30,
        "verify [s]": lambda p: p["seconds"]["verify"],
        "proof [MB]": lambda p: p["proof_bytes"] / 1e6,
    }
    with matplotlib.rc_context({"svg.hashsalt": "zkmark", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure, axes = pyplot.subplots(2, 2, figsize=(8, 5.2), sharex=True, layout="constrained")
        for axis, (title, value) in zip(axes.flat, quantities.items(), strict=True):
            for (kind, name), marker in zip(NAMES.items(), "os", strict=True):
                points = sorted(curves[kind], key=total)
                axis.plot([total(p) / 1e6 for p in points], [value(p) for p in points], marker=marker, label=name)
            axis.set_title(title)
            axis.set_ylim(bottom=0)
            axis.set_xlim(left=0)
        for axis in axes[1]:
            axis.set_xlabel("activations in the proof [million]")
        axes[0, 0].legend(frameon=False)
        figure.savefig(PICTURE, metadata={"Date": None})
        pyplot.close(figure)

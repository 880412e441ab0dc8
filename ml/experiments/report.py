"""Results as Markdown and pictures.  Several seeds become a mean with the smallest and the largest value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ml.experiments.lab import Cell, Row, write
from ml.fit import Images


def cell(name: str, values: Sequence[Cell]) -> str:
    """One cell of several seeds."""
    present = [v for v in values if v is not None]
    if not present:
        return "–"
    if all(isinstance(v, bool) for v in present):
        yes = sum(map(bool, present))
        return "yes" if yes == len(present) else f"{yes} of {len(present)}" if yes else "no"
    if any(isinstance(v, str) for v in present):
        return ", ".join(dict.fromkeys(map(str, present)))
    numbers = [float(v) * (100 if name.endswith("%") else 1) for v in present]
    mean = _number(sum(numbers) / len(numbers))
    spread = f" ({_number(min(numbers))} .. {_number(max(numbers))})" if min(numbers) < max(numbers) else ""
    return mean + spread


def _number(value: float) -> str:
    if not math.isfinite(value) or value == round(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def merged(by_seed: Sequence[Sequence[Row]]) -> dict[str, dict[str, list[Cell]]]:
    """setting -> column -> values of the seeds; settings and columns in the order of their first appearance."""
    out: dict[str, dict[str, list[Cell]]] = {}
    for rows in by_seed:
        for row in rows:
            columns = out.setdefault(str(row["setting"]), {})
            for name, value in row.items():
                if name != "setting":
                    columns.setdefault(name, []).append(value)
    return out


def markdown(result: dict[str, Any]) -> str:
    """The section of one experiment: title, table, the paper's numbers in their own columns, how it was made."""
    table = merged(list(result["rows"].values()))
    names = list(dict.fromkeys(name for columns in table.values() for name in columns))
    paper: dict[str, dict[str, str]] = result["paper_values"]
    papers = list(dict.fromkeys(name for values in paper.values() for name in values))
    head = ["", *names, *(f"paper: {name}" for name in papers)]
    note = " ".join(filter(None, (result["note"], result["reading"])))
    lines = [f"## {result['title']}", "", note, "", _line(head), _line(["---"] * len(head))]
    for setting, columns in table.items():
        measured = [cell(name, columns.get(name, [])) for name in names]
        lines.append(_line([setting, *measured, *(paper.get(setting, {}).get(name, "–") for name in papers)]))
    made = result["data"]
    lines += ["", f"Paper: {result['paper']}. Here: {made['name']} ({made['source']}), {made['train']} training and "
              f"{made['test']} test images, {made['arch']}, seeds {', '.join(result['rows'])}; preset "
              f"`{result['preset']}`."]  # fmt: skip
    if result.get("plot"):
        lines += ["", f"![{result['title']}]({result['name']}.png)"]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def figure(path: Path, result: dict[str, Any]) -> None:
    """`plot` names the columns that become bars, or with `lines` curves; `needed %` is drawn as a dashed line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    plot = result["plot"]
    table = merged(list(result["rows"].values()))
    picture = Figure(figsize=(max(6.0, 0.9 * len(table) + 2), 3.6), layout="constrained")
    axes = picture.subplots()
    at = np.arange(len(table))
    wide = 0.8 / len(plot["columns"])
    for number, name in enumerate(plot["columns"]):
        values = [[100 * float(v) if name.endswith("%") else float(v) for v in columns.get(name, []) if v is not None]
                  for columns in table.values()]  # fmt: skip
        means = np.array([np.mean(v) if v else np.nan for v in values])
        spread = np.array([[m - min(v, default=m), max(v, default=m) - m] for m, v in zip(means, values, strict=True)])
        if plot.get("lines"):
            axes.errorbar(at, means, spread.T, marker="o", capsize=3, label=name)
        else:
            axes.bar(at + (number - (len(plot["columns"]) - 1) / 2) * wide, means, wide, yerr=spread.T, label=name)
    needed = [100 * float(v) for c in table.values() for v in c.get("needed %", []) if v is not None]
    if needed:
        axes.axhline(float(np.mean(needed)), linestyle="--", color="black", linewidth=1, label="needed for a proof %")
    axes.set_xticks(at, list(table), rotation=30 if len(table) > 3 else 0, ha="right" if len(table) > 3 else "center")
    axes.set_ylim(bottom=0)
    axes.set_title(result["title"], fontsize=10)
    if all(name.endswith("%") for name in plot["columns"]):
        axes.set_ylabel("%")
    picture.legend(fontsize=8, loc="outside right upper")
    data = BytesIO()
    picture.savefig(data, format="png", dpi=120, metadata={"Software": None})
    write(path, data.getvalue())


def contact_sheet(path: Path, images: Images, columns: int = 10) -> None:
    """A PNG of images u8 [n, C, H, W], C 1 or 3, each enlarged to at least 48 pixels, with gaps."""
    n, channels, rows, wide = images.shape
    zoom = max(1, -(-48 // max(rows, wide)))
    lines = -(-n // columns)
    sheet = np.full((lines * (rows * zoom + 4), columns * (wide * zoom + 4), channels), 255, np.uint8)
    for number, image in enumerate(images):
        large = image.transpose(1, 2, 0).repeat(zoom, axis=0).repeat(zoom, axis=1)
        top, left = (number // columns) * (rows * zoom + 4), (number % columns) * (wide * zoom + 4)
        sheet[top : top + large.shape[0], left : left + large.shape[1]] = large
    data = BytesIO()
    with Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet) as picture:
        picture.save(data, format="PNG")
    write(path, data.getvalue())

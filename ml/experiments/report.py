"""Results as Markdown and pictures.  Several seeds become a mean and the standard deviation of a sample."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from PIL import Image

from ml.experiments.lab import Cell, Row, write
from ml.fit import Images

INTRODUCTION = """\
# Watermarks and attacks, measured

Where several seeds were run, a cell is their mean ± the standard deviation of one, and of p-values the largest. The
papers' own numbers are in the columns on the right. "trigger %" counts the float model's matches, "integer %" those of
the integer network that a proof is about; a claim with "needed %" of them keeps 128 bits against false claims, so that
it can be proven.
"""

Table = dict[str, dict[str, list[Cell]]]  # setting -> column -> values of the seeds


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
    numbers = _numbers(name, present)
    if name == "p-value":
        return _number(max(numbers))
    if len(numbers) < 2 or min(numbers) == max(numbers) or not all(map(math.isfinite, numbers)):
        return _number(mean(numbers))
    return f"{_number(mean(numbers))} ± {_number(stdev(numbers))}"


def _numbers(name: str, values: Sequence[Cell]) -> list[float]:
    return [float(v) * (100 if name.endswith("%") else 1) for v in values if v is not None]


def _number(value: float) -> str:
    if not math.isfinite(value) or value == round(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def merged(by_seed: Sequence[Sequence[Row]]) -> Table:
    """Settings and columns in the order of their first appearance."""
    out: Table = {}
    for rows in by_seed:
        for row in rows:
            columns = out.setdefault(str(row["setting"]), {})
            for name, value in row.items():
                if name != "setting":
                    columns.setdefault(name, []).append(value)
    return out


def _tables(result: dict[str, Any]) -> dict[str, Table]:
    """By architecture."""
    return {arch: merged(list(by_seed.values())) for arch, by_seed in result["rows"].items()}


def markdown(result: dict[str, Any]) -> str:
    """The section of one experiment: title, table, the paper's numbers in their own columns, how it was made."""
    tables = _tables(result)
    names = list(dict.fromkeys(name for table in tables.values() for columns in table.values() for name in columns))
    papers = list(dict.fromkeys(name for values in result["paper_values"].values() for name in values))
    head = ["", *names, *(f"paper: {name}" for name in papers)]
    note = " ".join(filter(None, (result["note"], result["reading"])))
    lines = [f"## {result['title']}", "", note, "", _line(head), _line(["---"] * len(head))]
    for arch, table in tables.items():
        paper = result["papers_by_arch"].get(arch, result["paper_values"])
        for setting, columns in table.items():
            label = setting if len(tables) == 1 else f"{arch}, {setting}"
            theirs = paper.get(setting, {})
            measured = [cell(name, columns.get(name, [])) for name in names]
            lines.append(_line([label, *measured, *(theirs.get(name, "–") for name in papers)]))
    made = result["data"]
    runs = "; ".join(f"{arch}, seeds {', '.join(by_seed)}" for arch, by_seed in result["rows"].items())
    lines += ["", f"Paper: {result['paper']}. Here: {made['name']} ({made['source']}), {made['train']} training and "
              f"{made['test']} test images; {runs}; preset `{result['preset']}`."]  # fmt: skip
    if result.get("plot"):
        lines += ["", f"![{result['title']}]({result['name']}.png)"]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


NUMBER = re.compile(r"\d+(\.\d+)?%?")
PANELS = 3  # side by side
STYLES = (("o", "-"), ("s", "-"), ("x", "--"))  # of curves, told apart where they meet


def _family(setting: str) -> str:
    """A setting without its strength."""
    return " ".join(NUMBER.sub("", setting, count=1).split()).strip(" ,=")


def _panels(tables: dict[str, Table], curves: bool) -> Iterator[tuple[str, dict[str, dict[str, list[Cell]]]]]:
    """(title, columns by label) of each picture: for curves, an attack at growing strength from the model before it."""
    for arch, table in tables.items():
        prefix = f"{arch}: " if len(tables) > 1 else ""
        before = {setting: columns for setting, columns in table.items() if setting == "none"}
        numbered = [item for item in table.items() if NUMBER.search(item[0])]
        if not curves or not numbered:
            yield prefix.removesuffix(": "), table
            continue
        for family, items in groupby(numbered, key=lambda item: _family(item[0])):
            points = {NUMBER.search(setting)[0]: columns for setting, columns in items}  # type: ignore[index]
            yield (prefix + family).removesuffix(": "), before | points


def figure(path: Path, result: dict[str, Any]) -> None:
    """`plot` names the columns that become bars, or with `curves` curves, and `lines` at some height by their names.

    `needed %` becomes such a line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    plot = result["plot"]
    tables = _tables(result)
    panels = list(_panels(tables, bool(plot.get("curves"))))
    down = -(-len(panels) // PANELS)
    across = -(-len(panels) // down)
    width = 1 + max((0.36 if plot.get("curves") else 0.8) * len(table) for _, table in panels)
    long = max((len(label) for _, table in panels for label in table), default=0) > 12
    size = max(6.0, across * width + 2), down * (4.4 if long else 2.6) + 0.8
    picture = Figure(figsize=size, layout="constrained")
    needed = [v for table in tables.values() for c in table.values() for v in _numbers("%", c.get("needed %", []))]
    lines = plot.get("lines", {}) | ({"needed for a proof %": mean(needed)} if needed else {})
    all_axes = picture.subplots(down, across, sharey=True, squeeze=False).flat
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, table) in zip(all_axes, panels, strict=False):
        at = np.arange(len(table))
        wide = 0.8 / len(plot["columns"])
        for number, name in enumerate(plot["columns"]):
            values = [_numbers(name, columns.get(name, [])) for columns in table.values()]
            means = np.array([mean(v) if v else np.nan for v in values])
            spread = np.array([stdev(v) if len(v) > 1 else 0.0 for v in values])
            if plot.get("curves"):
                marker, style = STYLES[number % len(STYLES)]
                axes.errorbar(at, means, spread, marker=marker, linestyle=style, markersize=4, capsize=3, label=name)
            else:
                axes.bar(at + (number - (len(plot["columns"]) - 1) / 2) * wide, means, wide, yerr=spread, label=name)
        for name, height in lines.items():
            axes.axhline(height, linestyle="--", color="black", linewidth=1, label=name)
        slanted = long or len(table) > 3
        axes.set_xticks(at, list(table), rotation=35 if slanted else 0, ha="right" if slanted else "center", fontsize=8)
        axes.set_title(title, fontsize=9)
    all_axes[0].set_ylim(bottom=0)  # of all, and now that all are drawn: it ends the choice of the upper limit
    if all(name.endswith("%") for name in plot["columns"]):
        all_axes[0].set_ylabel("%")
    picture.suptitle(result["title"], x=0.02, ha="left", fontsize=10)
    picture.legend(*all_axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    data = BytesIO()
    picture.savefig(data, format="png", dpi=110, metadata={"Software": None})
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

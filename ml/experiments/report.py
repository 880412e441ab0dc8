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
from PIL import Image, ImageDraw, ImageFont

from ml.experiments.lab import Cell, Row, write
from ml.fit import Images, Ints

INTRODUCTION = """\
# Watermarks and attacks, measured

Where several seeds were run, a cell is their mean ± the standard deviation of one, and of p-values the largest. The
papers' own numbers are in the columns on the right. "trigger %" counts the float model's matches, "integer %" those of
the integer network that a proof is about; a claim with "needed %" of them keeps 128 bits against false claims, so that
it can be proven: "provable" is that count. "proven" is no count: the argument was run on the network, and the proof
verified; "no" where too few match for one. It says "not the suspect's" of what is read behind the owner's last layer,
"no network" of a service, whose weights nobody shows, and "no integer form" of recurrent layers; "–" where none was
tried. Where the owner chose the labels it is about the half of the images that a public key made of them keeps hidden,
and as many matches of these as have a p-value below 1/20 (frontier stitching, as in the paper) or 2^-20 (certified
marks), so that it can differ from the test of all of them.

The transfer of Adi et al. goes from CIFAR-10 and CIFAR-100 to STL-10 in the paper, and to Fashion-MNIST here.
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


def cost(results: Sequence[dict[str, Any]]) -> str:
    """What the presets of these results took."""
    hours: dict[str, float] = {}
    for result in results:
        spent = sum(seconds for by_seed in result["seconds"].values() for seconds in by_seed.values())
        hours[result["preset"]] = hours.get(result["preset"], 0.0) + spent / 3600
    took = " and ".join(f"`{preset}` {_number(spent)} hours" for preset, spent in hours.items())
    return (f"The tables took {took}, the sum of `seconds` in the JSON files. That counts also the time in which\n"
            "a part waited for others: of the project's own results, the seeds of `cpu` ran side by side on two busy\n"
            "cores.\n")  # fmt: skip


def markdown(result: dict[str, Any], sheets: Sequence[str] = ()) -> str:
    """The section of one experiment: title, table, the paper's numbers in their own columns, how it was made.

    sheets: files of pictures of its triggers.
    """
    tables = _tables(result)
    names = list(dict.fromkeys(name for table in tables.values() for columns in table.values() for name in columns))
    if "provable" in names and "proven" not in names:  # of before every network was put to the proof
        names.append("proven")
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
    made, other = result["data"], result.get("other")
    beside = f" Beside it: {other['name']} ({other['source']})." if other else ""
    runs = "; ".join(f"{arch}, seeds {', '.join(by_seed)}" for arch, by_seed in result["rows"].items())
    lines += ["", f"Paper: {result['paper']}. Here: {made['name']} ({made['source']}), {made['train']} training and "
              f"{made['test']} test images; {runs}; preset `{result['preset']}`.{beside}"]  # fmt: skip
    if result.get("plot"):
        lines += ["", f"![{result['title']}]({result['name']}.png)"]
    if sheets:
        pictures = (f'<img src="{sheet}" width="400" alt="{Path(sheet).stem}">' for sheet in sheets)
        lines += ["", "The first of the triggers:", "", "\n".join(pictures)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


NUMBER = re.compile(r"\d+(\.\d+)?%?")
CAPTION = 14  # pixels
PANELS = 3  # side by side
STYLES = (("o", "-"), ("s", "-"), ("x", "--"))  # of curves, told apart where they meet
HEIGHTS = {"needed %": "needed for a proof %", "tolerated": "tolerated"}  # columns that are a line over all settings
HATCHED: dict[str, Any] = {"hatch": "///", "edgecolor": "white", "alpha": 0.5}


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


def _strength(family: str, strengths: Sequence[str]) -> str:
    """What grows along the curves of a family: "epoch" of "FTAL, epoch"; nothing without an attack."""
    numbers = [strength for strength in strengths if NUMBER.fullmatch(strength)]
    return "share" if any("%" in number for number in numbers) else family.split()[-1] if numbers and family else ""


def figure(path: Path, result: dict[str, Any]) -> None:
    """`plot` names the columns that become bars, or with `curves` curves, and `lines` at some height by their names.

    HEIGHTS become such lines.  Bars without the height of the others, behind the owner's last layer, are hatched and
    have no line over them.  Where there is `no key`, the curve has none either.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    plot = result["plot"]
    curves, names = bool(plot.get("curves")), [name for name in plot["columns"] if name not in HEIGHTS]
    tables = _tables(result)
    panels = list(_panels(tables, curves))
    down = -(-len(panels) // PANELS)
    across = -(-len(panels) // down)
    width = 1 + max((0.36 if curves else 0.8) * len(table) for _, table in panels)
    long = max((len(label) for _, table in panels for label in table), default=0) > 12
    size = max(6.0, across * width + 2), down * (4.4 if long else 2.8) + 0.8
    picture = Figure(figsize=size, layout="constrained")
    lines = dict(plot.get("lines", {}))
    for column, label in HEIGHTS.items():
        if heights := [v for t in tables.values() for c in t.values() for v in _numbers(column, c.get(column, []))]:
            lines[label] = mean(heights)
    grid = picture.subplots(down, across, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, table) in zip(grid.flat, panels, strict=False):
        at = np.arange(len(table))
        lined = np.array([any(v is not None for v in columns.get("needed %", [])) for columns in table.values()])
        foreign = ~lined & lined.any()
        wide = 0.8 / len(names)
        for number, name in enumerate(names):
            values = [_numbers(name, columns.get(name, [])) for columns in table.values()]
            means = np.array([mean(v) if v else np.nan for v in values])
            spread = np.array([stdev(v) if len(v) > 1 else 0.0 for v in values])
            if curves:
                marker, style = STYLES[number % len(STYLES)]
                axes.errorbar(at, means, spread, marker=marker, linestyle=style, markersize=4, capsize=3, label=name)
                continue
            bars = axes.bar(at + (number - (len(names) - 1) / 2) * wide, means, wide, yerr=spread, label=name)
            for place in np.flatnonzero(foreign & (name != "test %")):  # the suspect's own in every row
                bars[place].set(**HATCHED)
        for label, height in lines.items():
            ends, level = np.column_stack([at - 0.5, at + 0.5]).ravel(), np.where(foreign, np.nan, height).repeat(2)
            axes.plot(ends, level, linestyle="--", color="black", linewidth=1, label=label)
        if foreign.any():
            axes.bar(0, 0, color="gray", **HATCHED, label="not the suspect's\nnetwork: no proof")
        for place, columns in zip(at, table.values(), strict=True):
            if columns.get("no key") and not any(_numbers(name, columns.get(name, [])) for name in names):
                axes.text(place, 0.5, "no key", transform=axes.get_xaxis_transform(), rotation=90, ha="center",
                          va="center", fontsize=8, color="gray")  # fmt: skip
        slanted = long or len(table) > 3
        axes.set_xticks(at, list(table), rotation=35 if slanted else 0, ha="right" if slanted else "center", fontsize=8)
        axes.set_xlim(-0.5, len(table) - 0.5)
        grows = _strength(title, list(table)) if curves else ""
        axes.set_title(title.removesuffix(f", {grows}"), fontsize=9)
        axes.set_xlabel(grows, fontsize=8)
    grid[0, 0].set_ylim(bottom=0)  # of all, and now that all are drawn: it ends the choice of the upper limit
    for axes in grid[:, 0]:
        axes.set_ylabel("%" if all(name.endswith("%") for name in names) else ", ".join(names))
    picture.suptitle(result["title"], x=0.02, ha="left", fontsize=10)
    picture.legend(*grid[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    data = BytesIO()
    picture.savefig(data, format="png", dpi=110, metadata={"Software": None})
    write(path, data.getvalue())


def contact_sheet(path: Path, images: Images, labels: Ints | None = None, columns: int = 10) -> None:
    """A PNG of images u8 [n, C, H, W], C 1 or 3, each enlarged to at least 48 pixels, with its label [n] below it."""
    n, channels, rows, wide = images.shape
    zoom = max(1, -(-48 // max(rows, wide)))
    high, across = rows * zoom + 4 + (0 if labels is None else CAPTION), wide * zoom + 4
    sheet = np.full((-(-n // columns) * high, columns * across, channels), 255, np.uint8)
    for number, image in enumerate(images):
        large = image.transpose(1, 2, 0).repeat(zoom, axis=0).repeat(zoom, axis=1)
        top, left = (number // columns) * high, (number % columns) * across
        sheet[top : top + large.shape[0], left : left + large.shape[1]] = large
    data = BytesIO()
    with Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet) as picture:
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
        for number, label in enumerate([] if labels is None else labels.tolist()):
            middle = (number % columns) * across + wide * zoom // 2, (number // columns) * high + rows * zoom + 2
            draw.text(middle, str(label), "black", font, anchor="mt")
        picture.save(data, format="PNG")
    write(path, data.getvalue())

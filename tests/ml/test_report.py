"""Results become cells, tables and pictures that say what was measured; files are there whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ml.data import load
from ml.experiments.lab import write
from ml.experiments.report import _panels, _tables, cell, contact_sheet, figure, markdown, merged


def test_cells() -> None:
    for name, values, text in (
        ("test %", [0.5], "50"), ("test %", [0.5, 0.6], "55 ± 7.1"), ("errors", [4, 4], "4"),
        ("bits", [3.14159], "3.1"),
        ("p-value", [1e-9, 2e-30], "1e-09"),
        ("provable", [True, True], "yes"), ("provable", [False], "no"), ("provable", [True, False], "1 of 2"),
        ("x", [None], "–"), ("x", [], "–"), ("why", ["a", "a", "b"], "a, b"), ("bits", [float("inf")], "inf"),
        ("false-claim bits", [None, 4.0], "4"),
    ):  # fmt: skip
        assert cell(name, values) == text
    old = [{"setting": "a", "provable": True}]
    assert "| a | yes | – |" in markdown({
        "title": "", "paper": "", "note": "", "reading": "", "preset": "", "paper_values": {}, "papers_by_arch": {},
        "rows": {"cnn": {"0": old}}, "data": {"name": "", "source": "", "train": 2, "test": 2}})  # none was tried then
    assert merged([[{"setting": "a", "x": 1}], [{"setting": "a", "x": 2}, {"setting": "b", "y": 3}]]) == {
        "a": {"x": [1, 2]}, "b": {"y": [3]}}


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result: dict[str, Any] = {
        "name": "n", "title": "A title", "paper": "A paper", "note": "A note.", "preset": "tiny", "paper_values": {},
        "papers_by_arch": {}, "reading": "It grows.",
        "plot": {"columns": ["test %"]},
        "rows": {"cnn": {"0": [{"setting": "a", "test %": 0.5, "needed %": 0.4}, {"setting": "b", "test %": None}]}},
        "data": {"name": "digits", "source": "scikit-learn", "train": 2, "test": 2},
    }  # fmt: skip
    figure(tmp_path / "a.png", result)
    figure(tmp_path / "b.png", result | {"plot": {"columns": ["test %", "needed %"]}})
    strengths = ("none", "prune 25%", "prune 50%", "SVD 25%", "8 bits, per layer", "4 bits, per layer")
    attacked = [{"setting": name, "test %": 0.5} for name in strengths]
    curves = result | {"plot": {"columns": ["test %"], "curves": True}, "rows": {"cnn": {"0": attacked, "1": attacked}}}
    assert [(title, list(table)) for title, table in _panels(_tables(curves), True)] == [
        ("prune", ["none", "25%", "50%"]), ("SVD", ["none", "25%"]), ("bits, per layer", ["none", "8", "4"])]
    figure(tmp_path / "c.png", curves)
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    rising = [{"setting": setting, "test %": height} for setting, height in (("a 1%", 0.2), ("b 1%", 0.9))]
    figure(tmp_path / "d.png", curves | {"rows": {"cnn": {"0": rising}}})
    assert [axes.get_title() for axes in drawn[0].axes] == ["a", "b"]
    assert all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 90 for axes in drawn[0].axes)  # of both
    assert [axes.get_xlabel() for axes in drawn[0].axes] == 2 * ["share"] and drawn[0].axes[0].get_ylabel() == "%"
    keyless = [{"setting": "asked, ε = 0.1", "errors": 3, "tolerated": 42},
               {"setting": "asked, ε = 0.5", "errors": None, "no key": "smaller"}]  # fmt: skip
    figure(tmp_path / "e.png", curves | {
        "plot": {"columns": ["errors", "tolerated"], "curves": True}, "rows": {"cnn": {"0": keyless}}})
    (axes,) = drawn[1].axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("asked", "ε", "errors")
    assert [(text.get_text(), text.get_position()[0]) for text in axes.texts] == [("no key", 1)]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert axes.get_legend_handles_labels()[1] == ["tolerated", "errors"] and list(lines["tolerated"]) == 4 * [42]
    composed = [{"setting": "a", "test %": 0.6, "trigger %": 0.5, "needed %": 0.4},
                {"setting": "b", "test %": 0.6, "trigger %": 0.9, "needed %": None}]  # fmt: skip
    figure(tmp_path / "f.png", result | {
        "plot": {"columns": ["test %", "trigger %"]}, "rows": {"cnn": {"0": composed}}})
    (axes,) = drawn[2].axes
    hatched = [(round(bar.get_x(), 1), bar.get_height()) for bar in axes.patches if bar.get_hatch()]
    assert hatched == [(1.0, 90.0), (-0.4, 0)]  # of "b" the triggers alone, and the legend's own
    (line,) = axes.lines[:1]
    assert np.array_equal(line.get_ydata(), [40, 40, np.nan, np.nan], equal_nan=True)
    for name in ("a.png", "b.png", "c.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
    assert "| b | – | – |" in markdown(result) and "A note. It grows." in markdown(result)
    contact_sheet(tmp_path / "sheet.png", load("digits").test_x[:13])
    contact_sheet(tmp_path / "color.png", np.zeros((1, 3, 32, 32), np.uint8), np.array([7]))
    with Image.open(tmp_path / "color.png") as color:
        below = np.asarray(color)[64 + 2 :]
        assert color.size == (10 * 68, 64 + 4 + 14) and below[:, :64].min() < 99 and below[:, 68:].min() == 255
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (10 * 52, 2 * 52)
    write(tmp_path / "deep" / "file", b"x")
    assert (tmp_path / "deep" / "file").read_bytes() == b"x"


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def full(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"old"

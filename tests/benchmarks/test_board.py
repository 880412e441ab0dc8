"""The benchmark of boards, in a short form: what it measures is done, and its figures make a sentence."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import board, postgres, results


def test_boards_are_measured(monkeypatch, tmp_path):
    """On SQLite and, where it is installed, on PostgreSQL."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    words = ["--entries", "1500", "--proofs", "50", "--clients", "1", "--calls", str(2 * board.CALLS)]
    monkeypatch.setattr(sys, "argv", ["board", *words])
    board.main()
    names = ["board", "board-postgresql"] if postgres.programs() else ["board"]
    assert sorted(path.stem for path in tmp_path.iterdir()) == names
    for name in names:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert all(found[f"{what}_per_s"] > 0 for what in ("appends", "proofs", "find", "anchor"))
        assert results.DATABASES[found["database"]] in results._board(found)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_figures_are_said(database):
    figures = {"appends_per_s": 1234.5, "proofs_per_s": 5678.9, "find_per_s": 90.0, "anchor_per_s": 12.0}
    said = results._board({"database": database, "batch": 1024, "entries": 100_000, "clients": 2, **figures})
    assert all(text in said for text in ("1,234", "5,679", "100,000", "1024", " 90 ", " 12 "))
    assert results.DATABASES[database] in said

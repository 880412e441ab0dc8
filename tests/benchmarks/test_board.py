"""The benchmark of boards, in a short form: what it measures is done, and its figures make a sentence."""

from __future__ import annotations

from random import Random

from benchmarks.board import NAME, SEED, appends, proofs, sqlite
from benchmarks.results import _board
from protocol.log import EntryKind
from prover.log import Log


def test_a_board_is_measured(tmp_path):
    drawn = Random(1)
    items = [(EntryKind.KEY, drawn.randbytes(32), bytes(32)) for _ in range(2000)]
    log = Log(sqlite(tmp_path), NAME, SEED)
    assert appends(log, items) > 0 and log.size == 2000
    assert proofs(log, items, 100, drawn) > 0
    log.close()


def test_the_figures_are_said():
    figures = {"appends_per_s": 1234.5, "proofs_per_s": 5678.9, "find_per_s": 90.0, "anchor_per_s": 12.0}
    said = _board({"batch": 1024, "entries": 100_000, "clients": 2, **figures})
    assert all(text in said for text in ("1,234", "5,679", "100,000", "1024", " 90 ", " 12 "))

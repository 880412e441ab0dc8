"""Verdicts as text, and the contact sheet."""

from __future__ import annotations

import io

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from verifier import report
from verifier.check import Verdict
from verifier.cli import cli
from verifier.report import contact_sheet, print_verdict


def text(verdict: Verdict) -> str:
    out = io.StringIO()
    print_verdict(verdict, Console(file=out, width=60, force_terminal=False))
    return out.getvalue()


def test_strangers_cannot_style_the_report():
    verdict = Verdict(outcome="rejected", message="prover.refused: [bold green]accepted[/] [link=x]", context={
        "purpose": "[red]x[/]", "claimant": "[/]", "verifier": "", "nonce": "00",
    })  # fmt: skip
    shown = text(verdict)
    assert shown.startswith("rejected") and "[bold green]accepted[/]" in shown and "[red]x[/]" in shown


def test_digests_are_never_cut():
    assert "ab" * 32 in text(Verdict(vk_digest="ab" * 32))


def test_caveats_are_shown_with_acceptance_only():
    caveat = "not this"
    assert caveat in text(Verdict(outcome="accepted", caveats=(caveat,)))
    assert caveat not in text(Verdict(outcome="rejected", caveats=(caveat,)))


def test_undecided_is_a_word_of_its_own():
    assert text(Verdict(outcome="undecided", failed_check="policy.fidelity")).startswith("undecided")


def test_the_contact_sheet_shows_the_opened_images(world, tmp_path):
    key = world.key.vk
    assert contact_sheet(key, tmp_path / "sheet.png", limit=20) == 20
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert pixels.shape[1] == 16 * 72
    first = key.openings.images[0, 0].repeat(16, 0).repeat(16, 1)
    assert np.array_equal(pixels[4:68, 4:68, 0], first)


@pytest.mark.parametrize(
    ("shape", "count", "size"),
    [
        ((1, 1, 1 << 18), 30, (16 * 520, 2 * 25)), ((1, 1 << 18, 1), 30, (16 * 9, 2 * 536)),
        ((3, 600, 600), 3, (3 * 520, 536)),
    ],
)
def test_no_key_makes_a_huge_sheet(world, tmp_path, monkeypatch, shape, count, size):
    """Whatever the shape of its images is, up to one line of 2^18 pixels."""
    images = np.zeros((count, *shape), np.uint8)
    monkeypatch.setattr(report, "opened_items", lambda key: (images, np.zeros(count, np.int64)))
    path = tmp_path / "sheet.png"
    assert contact_sheet(world.key.vk, path) == count and Image.open(path).size == size
    monkeypatch.setattr(report, "MAX_SHEET_PIXELS", 2 * (size[0] // min(count, 16)) * (size[1] // -(-count // 16)))
    assert contact_sheet(world.key.vk, path) == 2


def test_a_sheet_that_is_not_all_says_so(world, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_SHEET_PIXELS", 50 * 72 * 88)
    vk = tmp_path / "owner.vk"
    vk.write_bytes(world.key.vk.to_bytes())
    result = CliRunner().invoke(cli, ["key", str(vk), "--sheet", str(tmp_path / "sheet.png")])
    assert result.exit_code == 0 and f"the first 50 of {len(world.key.vk.opened)} opened" in result.stderr

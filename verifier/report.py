"""Verdicts and keys for people: text by rich, and the contact sheet of the opened triggers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from protocol.keygen import VerificationKey
from verifier.check import Verdict
from verifier.ground_truth import opened_items
from zkmark.terminal import printable

if TYPE_CHECKING:
    from verifier.batch import Result

Pixels = npt.NDArray[np.uint8]
COLORS = {"accepted": "bold green", "rejected": "bold red", "undecided": "bold yellow"}
CELL = 64  # pixels of a thumbnail's longer side, at least
MAX_CELL = 512  # and at most
CAPTION = 16
BACKGROUND = "#e4e4e4"  # neither white nor black, so that every image ends visibly
MAX_SHEET_ITEMS = 1024
MAX_SHEET_PIXELS = 1 << 27
MAX_SHEET_COLUMNS = 16


def print_verdict(verdict: Verdict, console: Console) -> None:
    """The verdict, with everything that a reader has to know to rely on it."""
    reason = f"  {verdict.message}" if verdict.message else ""
    console.print(f"[{COLORS[verdict.outcome]}]{verdict.outcome}[/]{escape(reason)}", soft_wrap=True)
    rows: list[tuple[str, str | None]] = [
        ("triggers", _triggers(verdict)),
        ("claim", _claim(verdict)),
        ("false claims", _bits(verdict.false_claim_bits, "a model without the mark passes with probability")),
        ("false claims", None if verdict.no_bound is None else f"no bound: {verdict.no_bound}"),
        ("p-value", _bits(verdict.p_value_bits, f"strangers who match each with {verdict.null_probability} pass with")),
        ("argument", _bits(verdict.argument_bits, "a false proof passes with probability")),
        ("ill-formed triggers", _if(verdict.cut_and_choose_b, "at most {} can hide (2^128 hashes of work)")),
        ("anchored", _anchored(verdict)),
        ("void triggers", _if(verdict.void_items, "{} of the opened half")),
        ("reviewer", verdict.reviewer),
        ("published", _published(verdict)),
        ("time-stamp", None if verdict.stamped is None else "{time}, by {authority}".format_map(verdict.stamped)),
        ("fidelity", _fidelity(verdict)),
        ("owner", verdict.owner),
        ("key", verdict.vk_digest),
        ("model file", verdict.model_digest),
        ("network", verdict.network_digest),
        *((name, value) for name, value in verdict.context.items()),
        ("proof", _if(verdict.proof_bytes, "{:,} bytes" + (", interactive" if verdict.interactive else ""))),
        ("seconds", ", ".join(f"{name} {value:.2f}" for name, value in verdict.seconds.items())),
    ]
    for name, value in rows:
        if value:
            console.print(f"  {name:<22}{escape(value)}", soft_wrap=True)
    for title, lines in (("Assumptions", verdict.assumptions), ("Not proven", verdict.caveats)):
        if verdict.accepted and lines:
            console.print(f"\n{title}")
            for line in lines:
                console.print(f"  - {escape(line)}", soft_wrap=True)


def print_batch(results: Sequence[Result], console: Console) -> None:
    """The table of a batch, and how many were accepted."""
    table = Table("case", "outcome", "claim", "false claims", "fidelity", "why", box=None, header_style="dim")
    for result in results:
        found = result.verdict if result.outcome == "accepted" else None
        table.add_row(
            result.name,
            f"[{COLORS.get(result.outcome, 'bold')}]{result.outcome}[/]",
            "" if found is None else f"{found.k_min} of {found.h}",
            "" if found is None else f"2^-{found.false_claim_bits:.1f}" if found.false_claim_bits else "no bound",
            f"{found.fidelity.agreement:.2%}" if found is not None and found.fidelity is not None else "",
            escape(printable(result.error if result.verdict is None else result.verdict.message)),
        )
    console.print(table)
    accepted = sum(result.outcome == "accepted" for result in results)
    console.print(f"{accepted} of {len(results)} accepted")


def _triggers(verdict: Verdict) -> str | None:
    if verdict.shape is None or verdict.label_rule is None:
        return None
    shape = "x".join(map(str, verdict.shape))
    labels = f"labels by {verdict.label_rule.replace('_', ' ')} from {verdict.classes} classes"
    return f"{verdict.ell} of {shape}, {verdict.h} of them hidden; {labels}"


def _claim(verdict: Verdict) -> str | None:
    if verdict.k_min is None or verdict.h is None:
        return None
    return f"at least {verdict.k_min} of {verdict.h} hidden triggers have their secret labels"


def _bits(value: float | None, what: str) -> str | None:
    return None if value is None else f"{what} 2^-{value:.1f}"


def _if(value: int | None, text: str) -> str | None:
    return None if value is None else text.format(value)


def _fidelity(verdict: Verdict) -> str | None:
    found = verdict.fidelity
    return None if found is None else f"integer and float model agree on {found.agreement:.2%} of {found.count} images"


def _anchored(verdict: Verdict) -> str | None:
    if verdict.anchor is None:
        return None
    where = "entry {index} of {log}, {time} by the clock of the log".format_map(verdict.anchor)
    if verdict.anchored_b is None:
        return f"{where}; you do not say that you trust this log (--anchor-log)"
    return f"{where}; at most {verdict.anchored_b} can hide, but for 2^-40: 2^{verdict.log2_coins} coins, not hashes"


def _published(verdict: Verdict) -> str | None:
    found = verdict.published
    if found is None:
        return None
    signed = ", signed by {witnesses} of the named witnesses" if found.get("witnesses") else ""
    return ("entry {index} of {log}, {time} by the clock of the log" + signed).format_map(found)


def contact_sheet(key: VerificationKey, path: Path, limit: int = MAX_SHEET_ITEMS) -> int:
    """Write a PNG of the first opened triggers with their labels, for a person to look at; how many it shows.

    Below each image stand its index in the key and its label.  At most `limit`, and as many as MAX_SHEET_PIXELS hold.
    """
    images, labels = opened_items(key)
    width, height = _cell(np.zeros(images.shape[1:], np.uint8)).size
    cell_width, cell_height = width + 8, height + CAPTION + 8
    count = min(len(images), limit, MAX_SHEET_PIXELS // (cell_width * cell_height))
    columns = min(MAX_SHEET_COLUMNS, max(count, 1))
    sheet = Image.new("RGB", (columns * cell_width, max(1, -(-count // columns)) * cell_height), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place in range(count):
        left, top = place % columns * cell_width + 4, place // columns * cell_height + 4
        sheet.paste(_cell(images[place]), (left, top))
        text = f"{key.opened[place]}: {labels[place]}"
        draw.text((left + width // 2, top + height + 2), text, "black", font, anchor="mt")
    sheet.save(path, format="PNG")
    return count


def _cell(image: Pixels) -> Image.Image:
    """An image [C, H, W] in the size in which a sheet shows it."""
    longer = max(image.shape[1:])
    picture = _picture(image, max(1, -(-CELL // longer)))
    if longer > MAX_CELL:
        picture.thumbnail((MAX_CELL, MAX_CELL), Image.Resampling.BOX)
    return picture


def thumbnail(image: Pixels, longest: int | None = None) -> bytes:
    """A PNG of an image uint8 [C, H, W], its longer side reduced to at most `longest` pixels."""
    picture = _picture(image)
    if longest is not None:
        picture.thumbnail((longest, longest), Image.Resampling.BOX)
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()


def _picture(image: Pixels, factor: int = 1) -> Image.Image:
    """An image [C, H, W], enlarged by a whole factor: gray for one channel, the first three as colors otherwise."""
    if len(image) < 3:
        return Image.fromarray(np.ascontiguousarray(image[0].repeat(factor, 0).repeat(factor, 1)))
    return Image.fromarray(np.ascontiguousarray(image[:3].transpose(1, 2, 0).repeat(factor, 0).repeat(factor, 1)))

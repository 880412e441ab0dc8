"""A verdict as one HTML page for people: no scripts, nothing to load, to be read, printed and filed.

Everything that a stranger could have written passes through autoescaping and `visible`; a content security policy in
the page forbids the rest.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ml.quantise import DEFAULT_MIN_AGREEMENT
from protocol.keygen import LabelRule, VerificationKey
from protocol.soundness import ANCHOR_DOUBT, LOG2_MODELS, SESSIONS, bits, tail, void_limit
from verifier.check import CUT_AND_CHOOSE_WORK, Verdict
from verifier.ground_truth import opened_items
from verifier.options import tool_version
from verifier.report import thumbnail

if TYPE_CHECKING:
    from verifier.batch import Result

MAX_PAGE_ITEMS = 512  # opened triggers that a page shows: some 9 MB of noise
THUMBNAIL = 64  # pixels of a thumbnail's longer side, at most
PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("pages")),
    autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """Bin(h, 1 / classes) as an SVG path, and where the claim starts; coordinates in the drawing's own unit.

    peak: the largest probability.  tail_bits: -log2 P[at least k_min].  after: there is room for text right of k_min.
    """

    path: str
    ticks: tuple[tuple[float, int], ...]
    least: float
    after: bool
    peak: float
    tail_bits: float
    width: int = 760
    height: int = 280
    left: int = 56
    right: int = 744
    top: int = 24
    base: int = 226


def chance_chart(h: int, classes: int, k_min: int) -> Chart:
    """The histogram of what a model without the mark reaches.  1 <= k_min <= h."""
    masses = [comb(h, j) * (classes - 1) ** (h - j) / classes**h for j in range(h + 1)]
    peak, step = max(masses), (Chart.right - Chart.left) / (h + 1)
    gap = 0.15 * step if step > 3 else 0.0
    bars = []
    for j, mass in enumerate(masses):
        height = (Chart.base - Chart.top) * mass / peak
        if height >= 0.05:
            x, width = Chart.left + j * step + gap, step - 2 * gap
            bars.append(f"M{x:.2f} {Chart.base}v{-height:.2f}h{width:.2f}V{Chart.base}z")
    spacing = _round_number(h / 8)
    ticks = tuple((round(Chart.left + (j + 0.5) * step, 2), j) for j in range(0, h + 1, spacing))
    least = round(Chart.left + k_min * step, 2)
    return Chart("".join(bars), ticks, least, 2 * k_min <= h, peak, bits(tail(h, classes, k_min)))


def _round_number(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least `least`."""
    scale = 1
    while True:
        for digit in (1, 2, 5):
            if digit * scale >= least:
                return digit * scale
        scale *= 10


def verdict_page(verdict: Verdict, key: VerificationKey, commands: Sequence[tuple[str, str]]) -> str:
    """The page.  commands: pairs of what a command shows and the command."""
    sheet = _sheet(key) if verdict.cut_and_choose_b is not None else []  # of a key that passed its checks
    context = verdict.context
    chart = None
    if verdict.false_claim_bits is not None and verdict.k_min is not None:
        chart = chance_chart(key.h, key.parameters.classes, verdict.k_min)
    prefix = f"{verdict.failed_check}: "
    return PAGES.get_template("verdict.html").render(
        verdict=verdict,
        key=key,
        joint_coin=key.parameters.label_rule is LabelRule.JOINT_COIN,
        reason=visible(verdict.message.removeprefix(prefix) if verdict.message != verdict.failed_check else ""),
        expected=f"{key.h / key.parameters.classes:.1f}",
        occasion=[
            ("Purpose", visible(context.get("purpose", ""))),
            ("Claimant", visible(context.get("claimant", ""))),
            ("Verifier", visible(context.get("verifier", ""))),
            ("Nonce", context.get("nonce", "")),
            ("Kind of proof", "interactive: it convinces only this verifier" if verdict.interactive else ""),
        ],
        digests=[
            ("Model file", verdict.model_digest),
            ("Verification key", verdict.vk_digest),
            ("Owner", verdict.owner),
            ("Integer network", verdict.network_digest),
            ("Derivation", verdict.derivation_digest),
        ],
        chart=chart,
        sheet=sheet,
        opened=len(key.opened),
        void_limit=void_limit(len(key.opened), key.parameters.classes),
        decimals=_decimals,
        min_agreement=DEFAULT_MIN_AGREEMENT,
        log2_models=LOG2_MODELS,
        sessions=SESSIONS,
        work=CUT_AND_CHOOSE_WORK,
        doubt=ANCHOR_DOUBT,
        commands=commands,
        events=_events(verdict),
        version=tool_version(),
    )


@dataclass(frozen=True)
class Event:
    """When something happened, and who says so."""

    time: str
    what: str
    source: str


def _events(verdict: Verdict) -> list[Event]:
    """What happened, in the order of the times."""
    known = verdict.times
    when, stamped = verdict.published or {}, verdict.stamped or {}
    anchor = verdict.anchor if verdict.anchor and verdict.anchor["trusted"] else {}  # else it is the owner's word
    events = [
        Event(str(anchor.get("time", "")), "Commitments logged", "by the clock of the log"),
        Event(str(when.get("time", "")), "Key published", "by the clock of the log"),
        Event(str(stamped.get("time", "")), "Key time-stamped", str(stamped.get("authority", ""))),
        Event(known.get("model", ""), "Model seen", "the date of the verifier's file"),
        Event(known.get("claim", ""), "Proof made", "at the latest: the file's date, or when it came from the prover"),
        Event(known.get("checked", ""), "Proof checked", "by the clock of the verifier's computer"),
    ]
    return sorted((event for event in events if event.time), key=lambda event: event.time)


def batch_page(results: Sequence[Result]) -> str:
    """The table of a batch."""
    return PAGES.get_template("batch.html").render(
        results=results,
        accepted=sum(result.outcome == "accepted" for result in results),
        decimals=_decimals,
        visible=visible,
        version=tool_version(),
    )


def _sheet(key: VerificationKey) -> list[dict[str, str | int]]:
    images, labels = opened_items(key)
    return [
        {"index": int(index), "label": int(label), "source": _data_url(thumbnail(image, THUMBNAIL))}
        for index, label, image in zip(key.opened[:MAX_PAGE_ITEMS], labels, images, strict=False)
    ]


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def visible(text: str) -> str:
    """Text with everything that does not print, or that turns the reading direction, written as \\uXXXX."""
    return "".join(c if c.isprintable() else _code(c) for c in text)


def quote(argument: str) -> str:
    """An argument for bash, in printable characters only."""
    if argument.isprintable():
        return shlex.quote(argument)
    return "$'" + "".join("\\" + c if c in "\\'" else c if c.isprintable() else _code(c) for c in argument) + "'"


def _code(character: str) -> str:
    point = ord(character)
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def _decimals(power: float) -> int:
    """n with 2^-power < 10^-n."""
    return floor(power * log10(2))

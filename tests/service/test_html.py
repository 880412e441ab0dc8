"""The verdict as a page: what it says, that strangers cannot write into it, and that its commands run."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from itertools import pairwise
from math import comb, log2
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ml.quantise import Derivation, Fidelity
from protocol.argument import Context
from protocol.keygen import LabelRule
from protocol.soundness import smallest_k_min
from prover.jobs import make_claim, subject
from verifier.check import CAVEATS, Subject, Verdict, check
from verifier.cli import cli
from verifier.html import Chart, chance_chart, quote, verdict_page, visible

NONCE = "cd" * 32
PURPOSE = "it's <b>a</b> \"test\" & `more`"
CLAIMANT = "the owner\n\u202e$(reboot)\\"
VOID = {"meta", "img", "rect", "path", "line", "link", "br", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, its text, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(part for tag, parts in self.text.items() if tag != "style" for part in parts).split())


@pytest.fixture(scope="module")
def desk(world, tmp_path_factory) -> Path:
    """What a verifier holds, with a claim whose strings are as bad as they may be."""
    folder = tmp_path_factory.mktemp("a desk")
    context = Context(PURPOSE, CLAIMANT, "", bytes.fromhex(NONCE))
    k_min = smallest_k_min(world.key.vk.h, 10)
    claim = make_claim(world.key, subject(world.marked, Derivation(), None, world.key.vk), k_min, context)
    (folder / "claim.proof").write_bytes(claim.to_bytes())
    for name in ("owner.vk", "marked.onnx", "other.onnx"):
        (folder / name).write_bytes((world.folder / name).read_bytes())
    return folder


def verify(desk: Path, page: Path, *args: object, model: str = "marked.onnx") -> Result:
    words = [
        "verify", "--vk", desk / "owner.vk", "--model", desk / model, "--proof", desk / "claim.proof",
        "--nonce", NONCE, "--purpose", PURPOSE, "--claimant", CLAIMANT, "--without-fidelity", "--html", page, *args,
    ]  # fmt: skip
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture(scope="module")
def accepted(desk, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    result = verify(desk, path)
    assert result.exit_code == 0, result.output
    return path.read_text()


def commands(page: str) -> list[list[str]]:
    """The commands on the page, as bash splits them."""
    out = []
    for line in Page(page).text["code"]:
        if line.startswith(("zkmark-verifier", "sha256sum", "python")):
            split = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
            out.append(split.decode().split("\0")[:-1])
    return out


def test_it_says_what_was_found(world, desk, accepted):
    words, key = Page(accepted).words, world.key.vk
    assert "Accepted" in words and "Rejected" not in words and "Undecided" not in words
    k_min = smallest_k_min(key.h, 10)
    assert f"at least {k_min} of the {key.h} secret trigger images" in words
    for digest in (key.digest, hashlib.sha256(world.marked).digest(), key.owner_public_key, bytes.fromhex(NONCE)):
        assert digest.hex() in words
    assert all(" ".join(line.split()) in words for line in CAVEATS)
    for term in ("column queries", "lookups", "proximity", "Not measured."):
        assert term in words


def test_it_stands_alone(accepted):
    """Nothing is loaded, and nothing could run: no script, no address, and a policy that forbids both."""
    page = Page(accepted)
    tags = Counter(tag for tag, _ in page.elements)
    assert not tags.keys() & {"script", "iframe", "object", "embed", "link", "form", "base", "a"}
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in page.all("img"))
    assert not any(name.startswith("on") or name == "href" for _, found in page.elements for name in found)
    style = "".join(page.text["style"])
    assert "url(" not in style and "@import" not in style
    policy = next(found["content"] for found in page.all("meta") if "http-equiv" in found)
    assert "default-src 'none'" in policy and "script" not in policy


def test_it_is_accessible(world, accepted):
    page = Page(accepted)
    assert page.all("html") == [{"lang": "en"}] and len(page.all("main")) == len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert all(found.get("alt") for found in page.all("img"))
    names = [found["id"] for _, found in page.elements if "id" in found]
    assert len(names) == len(set(names))
    for _, found in page.elements:
        assert set(found.get("aria-labelledby", "").split()) <= set(names)
    assert all(found.get("scope") in ("row", "col") for found in page.all("th"))
    (drawing,) = page.all("svg")
    assert drawing["role"] == "img" and len(page.text["title"]) == 2 and page.text["desc"]


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_the_colors_have_contrast():
    """At least 4.5 to 1 for all text on both grounds, light and dark (WCAG 2.2, 1.4.3)."""
    style = (Path(__file__).parents[2] / "verifier" / "pages" / "style.css").read_text()
    palettes = [block.split("}")[0] for block in style.split(":root {")[1:3]]
    for block in palettes:
        palette = dict(part.strip().removeprefix("--").split(": ") for part in block.split(";") if "--" in part)
        for ground in ("ground", "panel"):
            for ink in ("ink", "quiet", "good", "bad", "open", "link"):
                pair = sorted((luminance(palette[ground]), luminance(palette[ink])))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (ground, ink)


def test_strangers_cannot_write_into_it(accepted):
    page = Page(accepted)
    assert not page.all("b") and PURPOSE in page.words
    assert "\u202e" not in accepted and "the owner\\u000a\\u202e$(reboot)\\" in page.words


def test_names_of_files_and_messages_are_escaped(world):
    evil = "<img src=x onerror=alert(1)>"
    verdict = Verdict(message=f"x.y: {evil}", failed_check="x.y", context={"purpose": evil, "claimant": "</td>"})
    verdict.void_items, verdict.reviewer, verdict.cut_and_choose_b = 3, evil, 9
    page = verdict_page(verdict, world.key.vk, [(evil, evil)])
    assert evil not in page and not any("onerror" in found for _, found in Page(page).elements)


@pytest.mark.parametrize("text", ["", "plain", "a b", "it's", "$HOME", "\n", "\\", "a\u202e'\\\"\U000e0001b", "é"])
def test_quoting(text):
    shown = subprocess.run(["bash", "-c", f"printf %s {quote(text)}"], capture_output=True, env={"LC_ALL": "C.UTF-8"})
    assert shown.stdout.decode() == text and quote(text).isprintable()
    assert visible(text).isprintable()


def test_the_commands_give_the_same_result(world, desk, accepted):
    key, digest, again, chance = commands(accepted)
    assert CliRunner().invoke(cli, [*key[1:-2], "--json"]).exit_code == 0
    assert hashlib.sha256(Path(digest[1]).read_bytes()).hexdigest() in Page(accepted).words
    assert "--html" not in again and again[again.index("--claimant") + 1] == CLAIMANT
    result = CliRunner().invoke(cli, [*again[1:], "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    command = [sys.executable, *chance[1:]]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True).stdout
    assert float(printed) == pytest.approx(values["false_claim_bits"])


def test_the_sheet_shows_the_opened_triggers(world, accepted):
    key, pictures = world.key.vk, Page(accepted).all("img")
    assert len(pictures) == len(key.opened)
    for n in (0, len(pictures) - 1):
        assert pictures[n]["alt"] == f"Opened trigger {key.opened[n]} with label {key.opened_labels[n]}"
        data = base64.b64decode(pictures[n]["src"].split(",")[1])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), key.openings.images[n, 0])


@pytest.mark.parametrize(
    ("h", "classes", "k_min"), [(78, 10, 60), (256, 10, 118), (34, 1000, 20), (300, 2, 260), (5, 2, 1)]
)
def test_the_histogram(h, classes, k_min):
    chart = chance_chart(h, classes, k_min)
    exact = [Fraction(comb(h, j) * (classes - 1) ** (h - j), classes**h) for j in range(h + 1)]
    assert chart.peak == pytest.approx(float(max(exact)))
    upper = sum(exact[k_min:])
    assert chart.tail_bits == pytest.approx(log2(upper.denominator) - log2(upper.numerator))
    step = (Chart.right - Chart.left) / (h + 1)
    drawn = {}
    for bar in chart.path.split("M")[1:]:
        x, height = float(bar.split()[0]), -float(bar.split("v")[1].split("h")[0])
        drawn[int((x - Chart.left) / step + 0.01)] = height
    for j, mass in enumerate(exact):
        assert drawn.get(j, 0.0) == pytest.approx(float(mass / max(exact)) * (Chart.base - Chart.top), abs=0.06)
    assert chart.least == pytest.approx(Chart.left + k_min * step, abs=0.01)
    assert 2 <= len(chart.ticks) <= 10 and chart.ticks[0][1] == 0


def test_rejected_and_undecided_say_what_does_not_follow(world, desk, tmp_path):
    path = tmp_path / "report.html"
    assert verify(desk, path, model="other.onnx").exit_code == 1
    page = Page(path.read_text())
    assert "Rejected" in page.words and "statement.model" in page.words and "Accepted" not in page.words
    assert "Chance of a false" not in page.words  # numbers of a claim that failed would look like evidence
    assert "That the model is free of the watermark does not follow" in page.words
    undecided = Verdict("undecided", "policy.fidelity", "policy.fidelity: they differ", fidelity=Fidelity(9, 0.5, True))
    undecided.times["checked"] = "2026-01-02 03:04:05 UTC"
    words = Page(verdict_page(undecided, world.key.vk, [])).words
    assert "Undecided" in words and "Nothing is known about the watermark" in words and "50.00 %" in words
    assert "they differ" in words and "2026-01-02 03:04:05 UTC" in words


def test_chosen_labels_have_no_histogram(world):
    verdict = Verdict("accepted", ell=160, h=80, classes=10, k_min=70, label_rule="chosen")
    key = replace(world.key.vk, parameters=replace(world.key.vk.parameters, label_rule=LabelRule.CHOSEN))
    page = Page(verdict_page(verdict, key, []))
    assert not page.all("svg") and "The owner chose the labels" in page.words and "expected" not in page.words


@pytest.mark.parametrize("published", ["2026-01-02 03:04:05 UTC", "2026-03-02 03:04:05 UTC"])
def test_the_time_line_is_in_the_order_of_the_times(world, published):
    """And says so if the key is younger than the model."""
    verdict = Verdict("accepted", published={"log": "a log", "index": 3, "time": published, "witnesses": 0})
    verdict.times = {"model": "2026-02-01 00:00:00 UTC", "claim": "2026-02-02 00:00:00 UTC"}
    verdict.times["checked"] = "2026-02-03 00:00:00 UTC"
    page = Page(verdict_page(verdict, world.key.vk, []))
    times = [found["datetime"] for found in page.all("time")]
    assert len(times) == 4 and times == sorted(times)
    late = published > verdict.times["model"]
    assert times.index(published[:10] + "T03:04:05Z") == (3 if late else 0)
    assert ("after the date of the model file" in page.words) == late and "entry 3 of the log" in page.words


def test_an_interactive_claim_says_whom_it_convinces(world):
    verdict = Verdict("accepted", interactive=True, ledger=[("x", 125.0)], argument_bits=122.0)
    words = Page(verdict_page(verdict, world.key.vk, [])).words
    assert "it convinces only this verifier" in words and "over 8 sessions" in words


def test_large_images_are_reduced(world):
    count = len(world.key.vk.opened)
    openings = replace(world.key.vk.openings, images=np.zeros((count, 3, 99, 200), np.uint8))
    key = replace(world.key.vk, openings=openings)
    found = Page(verdict_page(Verdict(cut_and_choose_b=9), key, [])).all("img")
    data = base64.b64decode(found[0]["src"].split(",")[1])
    assert len(found) == count and Image.open(io.BytesIO(data)).size == (64, 32)


def test_a_false_key_has_a_page(world):
    """Also one that opens fewer triggers than it must."""
    key = replace(world.key.vk, openings=world.key.openings(world.key.vk.opened[:3]))
    verdict = check(Subject(key, world.marked, Context("", "", "", bytes(32))), lambda _: pytest.fail("asked"))
    page = Page(verdict_page(verdict, key, []))
    assert "key.openings" in page.words or "key.signature" in page.words
    assert not page.all("img")


def test_a_claim_from_a_prover_can_be_kept(world, desk, tmp_path, monkeypatch):
    """With --save-claim the page says how to check the file, without it how to ask again."""
    claim = (desk / "claim.proof").read_bytes()
    monkeypatch.setattr("verifier.client.obtain_claim", lambda *args, **_: claim)

    def online(page: Path, *args: object) -> Result:
        words = [
            "verify", "--vk", desk / "owner.vk", "--model", desk / "marked.onnx", "--prover", "127.0.0.1:1",
            "--nonce", NONCE, "--purpose", PURPOSE, "--claimant", CLAIMANT, "--without-fidelity", "--html", page, *args,
        ]  # fmt: skip
        return CliRunner().invoke(cli, [str(word) for word in words])

    kept, token = tmp_path / "kept.proof", tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o600)
    reach = ["--token-file", token, "--timeout", 30, "--tls"]
    assert online(tmp_path / "a.html", "--save-claim", kept, *reach).exit_code == 0 and kept.read_bytes() == claim
    again = commands((tmp_path / "a.html").read_text())[2]
    assert again[again.index("--proof") + 1] == str(kept)
    assert not {"--prover", "--token-file", "--timeout", "--tls"} & set(again)  # only what others have, too
    assert CliRunner().invoke(cli, again[1:]).exit_code == 0
    assert online(tmp_path / "b.html").exit_code == 0
    again = commands((tmp_path / "b.html").read_text())[2]
    assert again[again.index("--prover") + 1] == "127.0.0.1:1" and not {"--nonce", "--proof"} & set(again)
    assert online(tmp_path / "c.html", "--save-claim", kept).exit_code == 2
    assert online(tmp_path / "c.html", "--interactive", "--save-claim", tmp_path / "new").exit_code == 2
    assert verify(desk, tmp_path / "c.html", "--save-claim", tmp_path / "new").exit_code == 2
    assert not (tmp_path / "c.html").exists()


def test_no_page_is_overwritten_and_none_is_left_by_malformed_input(desk, tmp_path):
    path = tmp_path / "report.html"
    assert verify(desk, path, "--proof", desk / "owner.vk").exit_code == 2 and not path.exists()
    path.write_text("mine")
    result = verify(desk, path)
    assert result.exit_code == 2 and "not overwritten" in result.output and path.read_text() == "mine"
    assert verify(desk, tmp_path / "gone" / "report.html").exit_code == 2

"""Both pages in a real browser, where there is one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml.quantise import Derivation
from protocol.argument import Context
from protocol.soundness import smallest_k_min
from prover.jobs import make_claim, subject
from tests.service.browser import CHROMIUM, Browser, browser
from verifier.check import Subject, check_claim
from verifier.html import verdict_page
from verifier.review import Judgment
from verifier.review_page import Desk, collect

if CHROMIUM is not None:

    @pytest.fixture(scope="module")
    def tab() -> Iterator[Browser]:
        with browser() as found:
            yield found

    @pytest.fixture(scope="module")
    def report(world, tmp_path_factory) -> Path:
        about = subject(world.marked, Derivation(), None, world.key.vk)
        context = Context("an audit", "<b>Ada</b>", "", bytes(32))
        claim = make_claim(world.key, about, smallest_k_min(world.key.vk.h, 10), context)
        verdict = check_claim(Subject(world.key.vk, world.marked, context), claim.to_bytes())
        verdict.published = {"log": "a.log/keys+0123", "index": 3, "witnesses": 0}
        verdict.published["time"] = "2026-01-02 03:04:05 UTC"
        path = tmp_path_factory.mktemp("page") / "report.html"
        path.write_text(verdict_page(verdict, world.key.vk, [("The digest.", "sha256sum " + 300 * "x")]))
        return path

    def complaints(tab: Browser) -> list[object]:
        return tab.told("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")

    @pytest.mark.parametrize("width", [360, 1280])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_the_verdict_page(tab, report, width, scheme):
        """Nothing is asked of any network, nothing is cut off, and all pictures show."""
        tab.events.clear()
        tab.window(width, scheme=scheme)
        tab.open(report.as_uri())
        asked = {found["request"]["url"].split(":")[0] for found in tab.told("Network.requestWillBeSent")}
        assert asked <= {"file", "data"} and complaints(tab) == []
        assert tab.ask("document.documentElement.scrollWidth <= innerWidth")
        assert tab.ask("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert tab.ask("document.querySelector('h1').innerText").strip().endswith("Accepted")
        assert tab.ask("document.querySelector('svg').getBoundingClientRect().width > 200")
        assert tab.ask("document.querySelector('b') === null && document.body.innerText.includes('<b>Ada</b>')")
        times = tab.ask("[...document.querySelectorAll('.times time')].map(t => t.getBoundingClientRect().top)")
        assert len(times) == 3 and times == sorted(times)
        ground = tab.ask("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")

    def test_it_prints(tab, report):
        """In dark mode, too, on white; the commands wrap."""
        tab.window(794, scheme="dark", media="print")
        tab.open(report.as_uri())
        assert tab.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.ask("document.documentElement.scrollWidth <= innerWidth")

    def test_a_review_by_keyboard(world, tab):
        """From the first image to the signature without a mouse; a key back and another answer count."""
        saved: list[tuple[Judgment, ...]] = []
        ready, where = threading.Event(), []

        def begin(address: str) -> None:
            where.append(address)
            ready.set()

        desk = Desk(world.key.vk, ["cat", "<i>dog</i>"], saved.append)
        thread = threading.Thread(target=collect, args=(desk, begin), daemon=True)
        thread.start()
        assert ready.wait(60)
        tab.events.clear()
        tab.window(1280)
        tab.open(where[0])
        assert tab.ask("document.querySelector('i') === null")
        tab.wait("document.querySelector('output').innerText.startsWith('0 of')")
        for key in ("1", "w", "Backspace", "3"):
            tab.press(key)
        tab.wait("document.querySelector('output').innerText.startsWith('2 of')")
        tab.ask("document.getElementById('rest').click()")
        assert tab.ask("document.activeElement.innerText") == "Sign and save"
        tab.press("Enter")
        thread.join(60)
        assert not thread.is_alive()
        tab.wait("document.body.innerText.includes('signed and saved')")
        (judgments,) = saved
        assert judgments[:2] == (Judgment.RIGHT, Judgment.NO_OBJECT)
        assert set(judgments[2:]) == {Judgment.NO_OBJECT} and len(judgments) == len(world.key.vk.opened)
        assert tab.told("Runtime.exceptionThrown") == []

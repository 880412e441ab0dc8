"""Hypothesis profiles, and the guard on how much the suite really runs.

`--guard-counts` (what `make test` passes) fails the run when fewer tests pass, more are skipped or fewer property
examples are executed than tests/floor.json says: a suite that silently shrank must not look green.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.adversary import reached

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("fixed")

# The networks here are small: a second thread gives their training little, and on busy cores costs much.
os.environ.setdefault("OMP_NUM_THREADS", "1")

FLOOR = Path(__file__).with_name("floor.json")


class Counts:
    """Counts property examples as they run and compares the totals with the floor at the end."""

    def __init__(self, guard: bool) -> None:
        self.guard = guard
        self.examples = 0
        self.broken: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        statistics = getattr(item, "hypothesis_statistics", "")
        self.examples += sum(int(count) for count in re.findall(r"(\d+) passing", statistics))
        yield

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        reporter = session.config.pluginmanager.getplugin("terminalreporter")
        self.tests = len(reporter.stats.get("passed", []))
        self.skips = len(reporter.stats.get("skipped", []))
        if not self.guard:
            return
        floor = json.loads(FLOOR.read_text())
        if self.tests < floor["tests"]:
            self.broken.append(f"{self.tests} tests passed, at least {floor['tests']} expected")
        if self.skips > floor["skips"]:
            self.broken.append(f"{self.skips} tests skipped, at most {floor['skips']} expected")
        if self.examples < floor["examples"]:
            self.broken.append(f"{self.examples} property examples, at least {floor['examples']} expected")
        if self.broken and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(
            f"counts: {self.tests} tests passed, {self.skips} skipped, {self.examples} property examples"
        )
        for line in self.broken:
            terminalreporter.write_line(f"counts: {line} (tests/floor.json)", red=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--guard-counts", action="store_true", help="fail when the suite ran less than tests/floor.json")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Counts(config.getoption("--guard-counts")), "zkmark-counts")
    reached.configure(config)

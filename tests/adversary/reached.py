"""A pytest plugin: a cheater says which checks stop him, and his test fails if others do.

`@pytest.mark.reaches("linear.sum", ...)` on a test: while it runs, every VerificationError is noted with the functions
that were on the stack when it was made, and so is every one that `pytest.raises` catches.  Each run has to be stopped
by one of these checks at least, and by no other; and all runs of a test together are stopped by every one of them, in
code that the table of SECURITY.md names (tests/test_security.py).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from protocol.errors import VerificationError

PACKAGES = ("protocol.", "prover.", "verifier.", "ml.", "zkmark.")


@dataclass
class Reached:
    """functions[test][check]: on the stack when the check failed; runs[test]: how many were begun."""

    functions: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    runs: dict[str, int] = field(default_factory=lambda: defaultdict(int))


STASH = pytest.StashKey[Reached]()


def declared(item: Any) -> set[str]:
    """The checks that a test says it reaches."""
    return {check for mark in item.iter_markers("reaches") for check in mark.args}


def name(item: Any) -> str:
    """FILE::FUNCTION, whatever the parameters."""
    return str(item.nodeid).partition("[")[0]


def stack() -> set[str]:
    """module.qualname of the package's functions that are running."""
    found, frame = set(), sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(PACKAGES):
            found.add(f"{module}.{frame.f_code.co_qualname}")
        frame = frame.f_back
    return found


class Plugin:
    """Notes what marked tests reach.

    Of checks that run side by side more than one may fail: what is caught counts, if the test catches anything.
    """

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        stated = declared(item)
        if not stated:
            return (yield)
        reached, made, caught = item.config.stash[STASH], dict[str, set[str]](), set[str]()
        init, leave = VerificationError.__init__, pytest.RaisesExc.__exit__

        def note(error: VerificationError, check: str, *rest: Any) -> None:
            made[check] = made.get(check, set()) | stack()
            init(error, check, *rest)

        def catch(raises: Any, kind: Any, error: Any, trace: Any) -> bool:
            if isinstance(error, VerificationError):
                caught.add(error.check)
            return leave(raises, kind, error, trace)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(VerificationError, "__init__", note)
            patch.setattr(pytest.RaisesExc, "__exit__", catch)
            outcome = yield
        reached.runs[name(item)] += 1
        here = caught or {*made}
        for check in here:
            reached.functions[name(item)][check] |= made.get(check, set())
        if not here or not here <= stated:
            pytest.fail(f"says that it reaches {sorted(stated)}, and reached {sorted(here)}", pytrace=False)
        return outcome

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """The test of what was reached runs last."""
        items.sort(key=lambda item: item.name == "test_cheaters_reach_what_they_say")


def configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "reaches(*checks): the checks that stop this test's cheater, and no others")
    config.stash[STASH] = Reached()
    config.pluginmanager.register(Plugin(), "zkmark-reached")

"""What is said about compiling is true: as soon as a kernel is compiled, and never for one that only loads slowly."""

from __future__ import annotations

import time
from pathlib import Path

import numba
import pytest

from protocol import warm_up
from protocol.kernels import cpu

KERNEL = "def kernel(n):\n    return n + 1\n"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes one anew from the same file, as another process does."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "kernel.py").write_text(KERNEL)

    def make():
        names: dict = {}
        exec(compile(KERNEL, str(tmp_path / "kernel.py"), "exec"), names)
        return numba.njit(cache=True)(names["kernel"])

    return make


def said_by(work, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(warm_up, "_run_all", work)
    warm_up.warm_up(said.append)
    return said


def test_compiling_is_said_once_and_loading_is_not(kernel, monkeypatch):
    def both(one, two) -> None:
        assert one(1) == 2 and two(1.0) == 2.0  # two compilations

    made = kernel()
    assert said_by(lambda: both(made, made), monkeypatch) == [warm_up.MESSAGE]
    cached = kernel()
    assert said_by(lambda: both(cached, cached), monkeypatch) == []
    assert sum(cached.stats.cache_hits.values()) == 2  # loaded it was, and not forgotten
    assert said_by(lambda: both(cached, cached), monkeypatch) == []


def test_every_kernel_is_run(monkeypatch):
    kernels = {name: value for name, value in vars(cpu).items()
               if hasattr(value, "targetoptions") and not value.targetoptions.get("forceinline")}  # fmt: skip
    ran = set()
    for name, kernel in kernels.items():
        monkeypatch.setattr(cpu, name, lambda *given, name=name, kernel=kernel: ran.add(name) or kernel(*given))
    warm_up._run_all()
    assert ran == set(kernels)


def test_a_busy_machine_is_no_compilation(monkeypatch):
    assert said_by(lambda: time.sleep(1.5), monkeypatch) == []


def test_nothing_is_said_about_what_others_compile_later(kernel, monkeypatch):
    said = said_by(lambda: None, monkeypatch)
    assert kernel()(1) == 2 and said == []

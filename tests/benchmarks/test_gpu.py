"""The profiler and the rates of a device, by Triton's interpreter or, with TRITON_INTERPRET=0, by a real one."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

from itertools import count
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks import device, phases, results
from protocol import field, kernels, lookup, reed_solomon
from protocol.kernels import cpu, cuda
from protocol.pads import Need, Party
from protocol.transcript import FiatShamir, Transcript

SHAPE, ORDER = (2, 3, 5, 4, 6), (3, 2, 1, 4, 0)


def work(k: ModuleType) -> None:
    """A tree that ends on the host, a code, and columns that are hashed."""
    rng = np.random.default_rng(1)
    need = lookup.tree_need(SHAPE, ORDER)
    pads = field.zeros(need.free + 3 * need.triples)
    party = Party(Transcript("test", FiatShamir()), need, Need(), need.triples, pads=pads)
    leaves = k.to_device(rng.integers(1, field.P, (field.DEGREE, prod(SHAPE)), np.uint32))
    lookup.fractional_tree(party, SHAPE, ORDER, lookup.TreeWitness(None, leaves, SHAPE, ORDER))
    values = k.to_device(rng.integers(0, field.P, (8, 40), np.uint32))
    reed_solomon.encode(values, values, 2)
    reed_solomon.interpolate_subgroup(values)
    signed = k.plain(k.to_device(rng.integers(-4, 4, (3, 7), np.int32)))
    k.residues(signed.reshape(-1), k.words(21), 0, 21)
    columns = k.Leaves(np.zeros((8, 33), np.uint8))
    columns.update(values[:, :9])


def test_a_device_does_what_the_processor_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every phase the same products and bytes, wherever they were made, though no clock is the same."""
    monkeypatch.setattr(kernels, "SMALL", 300)
    work(cpu)  # what is computed once and kept counts for neither
    found = []
    for k in (cpu, cuda):
        kept = {name: getattr(module, name) for module in (cpu, k) for name in phases.COSTS if hasattr(module, name)}
        with phases.Profile(k) as profile:
            work(k)
        assert kept == {name: getattr(module, name) for module in (cpu, k) for name in kept if hasattr(module, name)}
        counted = profile.result()
        found.append({phase: {name: entry[name] for name in phases.COUNTS if name != "hashed_bytes"}
                      for phase, entry in counted.items()})  # fmt: skip
        assert counted["commit: hash"]["hashed_bytes"] >= 8 * 9 * 4
    assert found[0] == found[1]
    for phase in ("trees: rounds", "trees: fold", "trees: build", "commit: encode", "rest"):
        assert found[1][phase]["bytes"]


def test_a_phase_lasts_until_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is read after the device, at every switch."""
    events: list[Any] = []
    ticks = count()
    monkeypatch.setattr(phases, "synchronize", lambda k: events.append(k))
    monkeypatch.setattr(phases.time, "perf_counter", lambda: events.append("clock") or float(next(ticks)))
    profile = phases.Profile(cuda)
    events.clear()
    with profile:
        reed_solomon.encode(*[cuda.words(4, 3)] * 2, 2)
    assert events == [cuda, "clock"] * 4  # open, into the phase, out of it, close


def test_rates_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the floor needs, as `micro` names it."""
    monkeypatch.setattr(device, "LAUNCHES", 1)
    monkeypatch.setattr(device, "RUNS", 1)
    found = device.rates(cuda, log2_size=6)
    entry = dict.fromkeys(phases.COUNTS, 1.0)
    job = {"device": "GPU", "machine": {}, "multiply_adds_per_image": 1, "h": 1}
    assert results.phase_floor("evaluate", entry, job, found) > 0
    assert all(value > 0 for value in found.values()) and len(found) == 6

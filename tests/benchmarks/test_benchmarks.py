"""What the benchmarks say must be about what they ran: keys, profiles and fits; their numbers are nobody's promise."""

from __future__ import annotations

from itertools import count
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as main
from benchmarks import curves, device, marking, phases, results
from benchmarks.jobs import DEVICE, JOBS, Job, fixed_entropy, make_key
from ml.triggers import abstract_images
from protocol import field, kernels, ligero, lookup
from protocol.errors import ParameterError
from protocol.kernels import cpu
from protocol.keygen import check_key
from protocol.pads import Need, Party
from protocol.transcript import FiatShamir, Transcript

SHAPE, ORDER = (2, 3, 5, 4, 6), (3, 2, 1, 4, 0)


def run_tree() -> None:
    need = lookup.tree_need(SHAPE, ORDER)
    leaves = np.random.default_rng(1).integers(1, field.P, (field.DEGREE, prod(SHAPE)), np.uint32)
    party = Party(
        Transcript("test", FiatShamir()), need, Need(), need.triples, pads=field.zeros(need.free + 3 * need.triples)
    )
    lookup.fractional_tree(party, SHAPE, ORDER, lookup.TreeWitness(None, leaves, SHAPE, ORDER))


def test_keys_hide_exactly_half_and_are_valid() -> None:
    job = Job("tiny", "cnn", (1, 8, 8), classes=100, ell=74)
    images = abstract_images(job.ell, job.shape, fixed_entropy("test"))
    key = make_key(job, images)
    assert key.vk.h == job.h == 37
    check_key(key.vk)
    assert make_key(job, images).to_bytes() == key.to_bytes()
    assert len(key.hidden_images) == 37 and (key.images == images).all()


def test_jobs_that_share_a_key_have_the_same_parameters() -> None:
    by_path: dict[object, set[object]] = {}
    for job in JOBS.values():
        by_path.setdefault(job.path("key"), set()).add((job.shape, job.classes, job.ell))
    assert all(len(parameters) == 1 for parameters in by_path.values())
    assert len({job.path("network") for job in JOBS.values()}) == len(JOBS)


def test_every_kernel_has_a_cost() -> None:
    assert set(phases.kernels()) == set(phases.COSTS)


def test_profile_adds_up_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: getattr(cpu, name) for name in phases.kernels()}
    ticks = count()
    monkeypatch.setattr(phases.time, "perf_counter", lambda: float(next(ticks)))
    with phases.Profile() as profile:
        first = next(ticks)
        run_tree()
    elapsed = next(ticks) - first
    assert {name: getattr(cpu, name) for name in before} == before
    found = profile.result()
    assert sum(entry["seconds"] for entry in found.values()) == elapsed
    assert found["trees: rounds"]["k_products"] and found["trees: fold"]["k_products"]
    assert found["trees: rounds"]["seconds"] and not found["affine"]["seconds"]


def test_profile_counts_the_products_that_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    fold = cpu.fold

    def count(table: object, out: field.Vector, *rest: int) -> None:
        nonlocal made
        first, last = rest[-2:]
        made += out.size // field.DEGREE * (last - first) // (out.shape[1] // rest[1])
        fold(table, out, *rest)

    monkeypatch.setattr(cpu, "fold", count)
    monkeypatch.setattr(phases, "kernels", lambda: ["fold"])
    with phases.Profile() as profile:
        run_tree()
    assert made == profile.result()["trees: fold"]["k_products"]


def test_a_phase_ends_with_an_error() -> None:
    profile = phases.Profile()
    with pytest.raises(TypeError), profile:
        ligero.Committed()  # type: ignore[call-arg]
    assert profile._phase == phases.REST


@pytest.mark.parametrize(("power", "linear"), [(1.0, True), (1.5, False)])
def test_linearity(power: float, linear: bool) -> None:
    prove = {h: 1 + (h / 64) ** power for h in (64, 128, 256, 512)}
    points = [{"activations_per_image": 1000, "h": h, "seconds": {"prove": seconds}} for h, seconds in prove.items()]
    assert (curves.deviation(points) < 1e-9) == linear
    assert (curves.deviation(points) <= curves.LINEAR) == linear


MICRO = {"extension_multiply_ns": 5.0, "base_multiply_ns": 1.0, "multiply_add_ns": 1.0, "sha256_gb_per_s": 1.0,
         "memory_gb_per_s": 10.0, "matrix_multiply_add_ns": 0.1}  # fmt: skip
JOB = {"machine": {**results.machine(), "cores": 2}, "multiply_adds_per_image": 10, "h": 3}


def test_the_floor_is_the_larger_of_work_and_traffic() -> None:
    entry = dict.fromkeys(phases.COUNTS, 0.0) | {"k_products": 4e9, "bytes": 1e9}
    assert results.phase_floor("trees: fold", entry, JOB, MICRO) == pytest.approx(10.0)
    assert results.phase_floor("trees: fold", entry | {"bytes": 2e11}, JOB, MICRO) == pytest.approx(20.0)
    assert results.phase_floor("evaluate", dict.fromkeys(phases.COUNTS, 0.0), JOB, MICRO) == pytest.approx(3e-9)


def test_the_table_shows_how_far_bandwidth_and_products_are_used() -> None:
    """In 20 s, 4e9 products of 5 ns on two cores are a half and 2e10 bytes at 1e10 a second a tenth."""
    counts = {"seconds": 20.0, "kernel_seconds": 30.0, "f_products": 0, "multiply_adds": 0, "hashed_bytes": 0,
              "k_products": 4e9, "bytes": 2e10}  # fmt: skip
    job = JOB | {"job": "some", "activations_per_image": 10**9, "phases": {"trees: fold": counts}}
    row = "| 6.7 | 100% | 75% | 7 | 1.3 | 10% | 50% | 3.3 | 2.0 |"
    assert results.phase_table(job, MICRO)[-2:] == [f"| trees: fold {row}", f"| **all** {row}"]
    # the rates of a device are of all of it, and it may have a processor with many cores
    whole = results.phase_table(job | {"device": "GPU"}, MICRO)[-1]
    assert whole == "| **all** | 6.7 | 100% | 75% | 7 | 1.3 | 10% | 100% | 6.7 | 1.0 |"


@pytest.mark.parametrize("name", ["workers", "soak", "board", "curves", "peers"])
def test_other_work_on_the_machine_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In the text of every measurement of time, as beside the table."""
    remark, load = " The machine had other work while this was measured.", results.load
    for busy in (results.BUSY, results.BUSY + 0.01):
        found = load(name)
        assert found
        found["machine"]["busy_before"] = busy
        monkeypatch.setattr(results, "load", lambda asked, found=found: found if asked == name else None)
        assert (remark in results.table()) == (busy > results.BUSY)


def fake_stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages that cost nothing; each names its seconds after itself.  Those that ran."""
    ran: list[str] = []

    def run(stage: str, name: str, runs: int) -> dict[str, Any]:
        ran.append(stage)
        more = {"device": "GPU", "device_memory_bytes": 7 * 10**9} if stage == "prove-device" else {}
        seconds = {stage.removesuffix("-device"): 0.25}
        if stage == "device-rates":
            more = {"device": "GPU", **MICRO}
        if stage == "marking":
            more, seconds = {"device": "GPU", "operations": 7 * 10**9}, {"step": 0.25}
        if stage in ("profile", "prove-device"):
            more |= {"phases": {"open": dict.fromkeys((*phases.COUNTS, "seconds", "kernel_seconds"), 0.5)}}
        return {"peak_memory": 3 * 10**9, "seconds": seconds, "proof_bytes": 1, "activations_per_image": 1,
                "multiply_adds_per_image": 1, "argument_bits": 124.0, **more}  # fmt: skip

    monkeypatch.setattr(main, "_run", run)
    monkeypatch.setattr(main, "_compile", lambda: 1.0)
    return ran


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of results without any."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "others", lambda: 0.0)
    return tmp_path


def test_the_processor_is_measured_without_the_device(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    ran = fake_stages(monkeypatch)
    main._measure(["lenet-28x28"], 1)
    assert ran == ["keygen", "fit", "derive", "prove", "verify", "profile"]
    assert [path.name for path in empty.iterdir()] == ["lenet-28x28.json"]


def test_the_device_fills_its_table_and_no_other(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    before = device.lines()
    assert device.phase_lines()[-1] == "Not measured."
    assert [line.count(device.EMPTY) for line in before[4:]] == [2] * len(DEVICE) + [0, 1]
    ran = fake_stages(monkeypatch)
    monkeypatch.setattr(kernels, "on", lambda name: {"cuda": object()}[name])
    main._measure(["device/resnet50-224x224-64"], 1)
    assert ran == ["keygen", "fit", "derive", "prove-device"]
    assert device.lines()[4:-3] == before[4:-3] and device.lines()[-1] == before[-1]
    assert device.lines()[-3] == "| resnet50-224x224-64 | 64 | 0.25 s | 120 s | 7.0 / 3.0 GB | 100 GB |"
    assert "GPU" in device.lines()[0] and not results.jobs()
    assert device.phase_lines()[-2:] == ["| open | 0.50 | 100% | 0.50 s |", "| **all** | 0.50 | 100% | 0.50 s |"]
    main._measure(["device/micro", "device/marking"], 1)
    assert any(line.startswith("| open |") for line in device.phase_lines())
    assert device.lines()[-1].endswith(" 250.00 ms on GPU for 7 billion operations.")


def test_a_step_of_marking_counts_its_operations() -> None:
    """Per image and weight two forward, two for its gradient, and two for that of its input, except the images."""
    job = Job("tiny", "mlp", (1, 8, 8), width=1 / 64)
    hidden, found = 8, marking.measure(job, 1, device="cpu", steps=2)
    first, rest = 64 * hidden, hidden * hidden + hidden * job.classes
    assert found["batch"] == 102 and found["seconds"]["step"] > 0
    assert found["operations"] == 102 * (4 * first + 6 * rest)


def test_a_step_is_compared_with_the_peak_of_its_device() -> None:
    found = {"device": "NVIDIA H200", "operations": 989 * 10**9, "seconds": {"step": 0.0025}}
    assert "2.50 ms" in marking.line(found) and "2.5 times the 1.00 ms" in marking.line(found)


def test_the_device_has_to_be_there(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    def none(name: str) -> None:
        raise ParameterError("no device to prove on")

    ran = fake_stages(monkeypatch)
    monkeypatch.setattr(kernels, "on", none)
    with pytest.raises(SystemExit, match="no device"):
        main._measure(["small", "device"], 1)
    assert not ran


def test_the_targets_of_the_device() -> None:
    found = [(job.architecture, job.shape[1:], job.h, device.TARGETS[job.name]) for job in DEVICE]
    assert found == [
        ("lenet", (28, 28), 256, 0.5), ("resnet18", (32, 32), 256, 5), ("resnet18", (224, 224), 64, 20),
        ("resnet50", (224, 224), 64, 120),
    ]  # fmt: skip

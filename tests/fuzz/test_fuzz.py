"""A bounded run of every fuzz target; `make fuzz` is the long one."""

import hashlib
from random import Random

import hypothesis
import numpy as np
import onnx
import pytest
from hypothesis import strategies as st

from protocol.argument import Context
from tests.fuzz.__main__ import REPORT, due
from tests.fuzz.base import CORPUS, mutated_model
from tests.fuzz.keeping import INPUT_BYTES, INPUTS, TARGET_BYTES, Watch, chosen
from tests.fuzz.targets import Failure, Target, decoder, mutated, targets

NAMES = [
    "context", "claim", "derivation", "network", "key", "pending-key", "marking-key", "review", "log-entry",
    "anchor", "log-note", "log-key", "witness-key", "anchor-answer", "offer", "receipt", "timestamp", "cases",
    "owner-file", "proof", "signed-proof", "proof-words", "model", "images", "label-table", "preprocessing",
    "service", "board", "client", "client-job",
]  # fmt: skip


def test_all_targets_are_run():
    assert list(targets()) == NAMES


def test_the_report_says_what_has_not_run_for_long():
    lines = REPORT.read_text().splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert lines[-1] == due(rows, NAMES)
    assert due(rows, []) == "All ran." and "`other`" in due([*rows, "| `other` | atheris | 599 | 1 |"], ["other"])


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_corpus(name):
    """Good inputs are taken; those that were of interest once misbehave no more."""
    target = targets()[name]
    assert all([target(seed) for seed in target.seeds])
    for data in target.corpus():
        target(data)


@pytest.mark.parametrize("name", NAMES)
def test_mutations(name):
    target = targets()[name]
    kept = target.corpus()

    @hypothesis.settings(max_examples=target.examples, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(st.randoms(use_true_random=False))
    def run(random):
        target(target.mutate(random, random.choice((target.seeds, (*target.seeds, *kept)))))

    run()


def test_what_is_kept_is_small_and_of_a_target():
    """Every file has the name of its digest, but for those that somebody looked at."""
    folders = {path.name: [file.read_bytes() for file in path.glob("*.input")] for path in CORPUS.iterdir()}
    assert {*folders} <= {*NAMES} and sum(map(len, folders.values())) > 200
    for name, inputs in folders.items():
        assert len(inputs) <= INPUTS and sum(map(len, inputs)) <= TARGET_BYTES
        assert max(map(len, inputs), default=0) <= INPUT_BYTES
        assert {path.stem for path in (CORPUS / name).glob("*.input")} == {
            hashlib.sha256(data).hexdigest()[:16] for data in inputs}  # fmt: skip


def test_what_reaches_nothing_new_is_not_kept():
    """Of inputs that stop at the same place the smallest stays; none that a good one covers, and no large one."""
    good = Context("a", "b", "c", bytes(32)).to_bytes()
    target = Target("context", Context.from_bytes, (good,), mutated)
    short, long, large = good[:-1], good[:-1] + b"xx", bytes(INPUT_BYTES + 1)
    with Watch() as watch:
        assert watch.reached(target, short) - watch.reached(target, good)
        assert chosen(target, [good], watch) == []
        assert chosen(target, [good[:-2], short, good], watch) == [good[:-2]]
        assert chosen(target, [large, long, short], watch) == [short, long]


def test_a_failure_is_noticed(monkeypatch):
    """Other exceptions, warnings, lying decoders, slowness and memory are failures."""

    def failing(run):
        return Target("wrong", run, (b"",), mutated)

    with pytest.raises(Failure, match="KeyError"):
        failing({}.__getitem__)(b"x")
    with pytest.raises(Failure, match="RuntimeWarning"):
        failing(lambda data: np.float64(1e308) * np.float64(10))(b"x")
    with pytest.raises(Failure, match="encode to others"):
        failing(decoder(lambda data: Context("", "", "", bytes(32))))(b"x")
    monkeypatch.setattr("tests.fuzz.base.SECONDS", 0.0)
    with pytest.raises(Failure, match=r" s$"):
        failing(lambda data: sum(range(10**6)))(b"x")
    monkeypatch.setattr("tests.fuzz.base.SECONDS", 60)
    monkeypatch.setattr("tests.fuzz.base.BYTES", -1)
    with pytest.raises(Failure, match="MiB"):
        failing(len)(b"x")
    monkeypatch.setattr("tests.fuzz.base.BYTES", 64 << 20)
    large = failing(lambda data: np.ones(len(data) << 20, np.uint8))
    assert large(bytes(40))
    with pytest.raises(Failure, match="MiB"):  # though not much more than an input took before
        large(bytes(90))


def test_models_with_names_that_are_no_text_are_changed_too():
    """Coverage keeps inputs that only the reader turns down."""
    seed = targets()["model"].seeds[0]
    name = onnx.ModelProto.FromString(seed).graph.node[0].input[0].encode()
    broken, random = seed.replace(name, b"\x82" * len(name)), Random(1)
    assert len({mutated_model(random, (broken,)) for _ in range(50)}) > 25

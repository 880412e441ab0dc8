"""A bounded run of every fuzz target; `make fuzz` is the long one."""

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.fuzz.targets import BYTES, Failure, Target, mutated, targets

NAMES = ["context", "claim", "derivation", "network", "key", "marking-key", "owner-file", "proof", "signed-proof",
         "proof-words", "model", "images", "preprocessing", "service", "client"]  # fmt: skip


def test_all_targets_are_run():
    assert list(targets()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_corpus(name):
    """Good inputs are taken; those that were of interest once misbehave no more."""
    target = targets()[name]
    taken = [target(seed) for seed in target.seeds]
    assert all(taken) or (name == "client" and taken == [False, True])  # coins, where none were to be asked for
    for data in target.corpus():
        target(data)


@pytest.mark.parametrize("name", NAMES)
def test_mutations(name):
    target = targets()[name]

    @hypothesis.settings(max_examples=target.examples, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(st.randoms(use_true_random=False))
    def run(random):
        target(target.mutate(random, target.seeds))

    run()


def test_a_failure_is_noticed():
    """Other exceptions, lying decoders, slowness and memory are failures."""

    def wrong(data: bytes) -> None:
        raise KeyError(data)

    with pytest.raises(Failure, match="KeyError"):
        Target("wrong", wrong, (b"",), mutated)(b"x")
    assert BYTES <= 2 << 30

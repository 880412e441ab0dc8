"""Forks that are proven elsewhere, in any order, make the proof that one process makes."""

import pickle

import pytest

from protocol import argument
from protocol.argument import Cancelled, prove, verify
from protocol.errors import ParameterError
from protocol.transcript import InteractiveProver
from tests.adversary import agree
from tests.assurance.hiding import tiny


@pytest.fixture
def fixed(monkeypatch):
    """Randomness that two proofs share."""
    monkeypatch.setattr(argument.os, "urandom", bytes)


def elsewhere(shared, tasks, report):
    """In another order, and with nothing but what can be sent to another process."""
    found = {}
    for task in reversed(tasks):
        report(len(found) / len(tasks))
        there, fork, part = pickle.loads(pickle.dumps((shared, *task)))
        found[fork.index] = there.prove(fork, part)
    return found


def test_the_proof_does_not_depend_on_where_forks_are_proven(statement, key, fixed):
    here, shares = prove(statement, key), []
    there = prove(statement, key, engine=elsewhere, progress=lambda phase, share: shares.append((phase, share)))
    assert here == there
    assert shares == sorted(shares, key=lambda one: one[1])
    verify(statement, there)


def test_two_verifiers_accept_a_proof_from_elsewhere():
    statement, key = tiny()
    assert agree.both(statement, prove(statement, key, engine=elsewhere)) == ("true", "true")


def test_a_part_is_what_its_fork_reads_and_no_more(statement, key):
    sizes = []

    def engine(shared, tasks, report):
        whole = sum(array.size for _, part in tasks for array in part.columns.values())
        sizes.extend(part.columns.keys() | part.arrays.keys() for _, part in tasks)
        assert whole < 4 * shared.layout.depth * shared.layout.h
        return elsewhere(shared, tasks, report)

    prove(statement, key, engine=engine)
    assert sizes[0] == {"x", "z0"} and sizes[-1] == {"uses"} and {"v0", "v1"} <= sizes[-2]


def test_cancelled_while_forks_are_elsewhere(statement, key):
    asked = []

    def stop():
        return len(asked) > 3

    with pytest.raises(Cancelled):
        prove(statement, key, engine=elsewhere, cancelled=stop, progress=lambda *one: asked.append(one))


def test_no_engine_where_the_verifier_tosses_coins(statement, key):
    with pytest.raises(ParameterError, match="coins"):
        prove(statement, key, InteractiveProver(lambda pending: bytes(32)), engine=elsewhere)

"""Proofs on a Ray cluster of this machine: two workers, one of which dies."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import ray

from ml.quantise import Derivation
from protocol import argument
from protocol.argument import Cancelled, Context, Statement, prove, verify
from protocol.errors import ParameterError, VerificationError
from protocol.forks import Shared
from protocol.transcript import InteractiveProver, InteractiveVerifier
from prover import cluster
from prover.jobs import Resources, Subject, make_claim, subject
from prover.options import resources
from tests.adversary import agree
from tests.assurance.hiding import tiny


@pytest.fixture(scope="module")
def engine():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield cluster.ray_engine(workers=2)
    ray.shutdown()


@pytest.fixture(scope="module")
def case(world):
    about = subject(world.marked, Derivation(), None, world.key.vk)
    context = Context("", "", "", bytes(32))
    return Statement(world.key.vk, about.network, 1, context, about.model_digest, about.derivation_digest), world.key


@dataclass(frozen=True)
class Deadly(Shared):
    """Kills the first worker that proves with it."""

    mark: Path | None = None

    def prove(self, fork, part):
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().prove(fork, part)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_proof(engine, case):
    statement, key = case
    seen = []
    verify(statement, prove(statement, key, engine=engine, progress=lambda phase, share: seen.append(phase)))
    assert "nodes" in seen


def test_two_verifiers_accept_a_proof(engine):
    statement, key = tiny()
    assert agree.both(statement, prove(statement, key, engine=engine)) == ("true", "true")


def test_a_worker_that_dies_is_replaced(engine, case, tmp_path):
    statement, key = case

    def deadly(shared, tasks, report):
        return engine(Deadly(**vars(shared), mark=tmp_path / "dead"), tasks, report)

    verify(statement, prove(statement, key, engine=deadly))
    assert (tmp_path / "dead").exists()


def gone():
    raise ModuleNotFoundError("no module that another version has")


class Foreign(Shared):
    """Cannot be read where it arrives."""

    def __reduce__(self):
        return gone, ()


def test_another_version(engine, case, monkeypatch):
    """A worker looks at the version before it reads what it is sent."""
    statement, key = case

    def foreign(shared, tasks, report):
        return engine(Foreign(**vars(shared)), tasks, report)

    with pytest.raises(ModuleNotFoundError):
        prove(statement, key, engine=foreign)
    monkeypatch.setattr(cluster, "version", lambda: "another")
    for one in (engine, foreign):
        with pytest.raises(ParameterError, match="version"):
            prove(statement, key, engine=one)


@pytest.mark.parametrize("changed", [cluster, argument])
def test_a_version_is_the_source_of_what_workers_run(changed, monkeypatch):
    read, before = Path.read_bytes, cluster.version()
    assert cluster.version.__wrapped__() == before
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path == Path(changed.__file__)))
    assert cluster.version.__wrapped__() != before


def test_cancelled(engine, case):
    statement, key = case
    seen = []
    with pytest.raises(Cancelled):
        prove(statement, key, engine=engine, progress=lambda phase, share: seen.append(phase),
              cancelled=lambda: "nodes" in seen)  # fmt: skip
    verify(statement, prove(statement, key, engine=engine))


def test_what_the_options_say(engine):
    here, there = resources(2, "cpu", "local", None, False), resources(None, "cpu", "ray", None, True)
    assert (here.memory, here.engine, here.check) == (2 << 30, None, False)
    assert there.memory is None and there.engine is not None and there.check
    with pytest.raises(click.UsageError, match="--engine ray"):
        resources(None, "cpu", "local", "127.0.0.1:6379", True)


def test_an_interactive_proof_stays_here(engine, case):
    statement, key = case
    about = Subject(statement.network, statement.model_digest, statement.derivation_digest, 0.0)
    verifier = InteractiveVerifier(os.urandom)
    claim = make_claim(key, about, 1, statement.context, InteractiveProver(verifier.answer),
                       resources=Resources(engine=engine))  # fmt: skip
    verify(statement, claim.proof, verifier)


def test_a_worker_that_computes_wrongly(case):
    """What it proved is not given out, unless the owner says not to look."""
    statement, key = case
    about = Subject(statement.network, statement.model_digest, statement.derivation_digest, 0.0)

    def wrong(shared, tasks, report):
        found = {fork.index: shared.prove(fork, part) for fork, part in tasks}
        found[1].values[0, 0] ^= 1
        return found

    def claim(check):
        return make_claim(key, about, 1, statement.context, resources=Resources(engine=wrong, check=check))

    with pytest.raises(RuntimeError, match=r"computed wrongly: the proof fails linear\.sum"):
        claim(True)
    with pytest.raises(VerificationError):
        verify(statement, claim(False).proof)


def test_no_cluster(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ParameterError, match="Ray"):
        cluster.ray_engine("127.0.0.1:1")

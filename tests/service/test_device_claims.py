"""Claims that a device makes, by Triton's interpreter: what it computes wrongly, and whether it has the memory."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

from dataclasses import dataclass, replace

import pytest

from protocol import kernels
from protocol.argument import Statement, verify
from protocol.claim import Claim
from protocol.errors import ParameterError, VerificationError
from protocol.kernels import cpu, cuda
from protocol.keygen import MarkingKey
from prover import jobs
from prover.jobs import Resources, Subject, find_device, make_claim
from tests.assurance.hiding import tiny
from tests.protocol.test_device import Leaves

LITTLE, MUCH = 2**27, 2**40


@dataclass(frozen=True)
class Case:
    """A statement that as many triggers match as it says."""

    statement: Statement
    key: MarkingKey

    def claim(self, **use: object) -> Claim:
        s = self.statement
        about = Subject(s.network, s.model_digest, s.derivation_digest, 0.0)
        return make_claim(self.key, about, s.k_min, s.context, resources=Resources(**({"device": "cuda"} | use)))


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(*tiny())


def test_a_device_that_computes_wrongly(case, monkeypatch):
    """One bit in the middle of a proof: it is not given out, unless the owner says not to look."""
    monkeypatch.setattr(kernels, "SMALL", 6)  # half of what test_device.py has: the pairs of the largest leaves, too
    monkeypatch.setattr(cuda, "Leaves", Leaves)
    right, calls = cuda.round_sums, []

    def wrong(*given):
        sums = right(*given)
        sums[0, 0] ^= not calls
        calls.append(1)
        return sums

    monkeypatch.setattr(cuda, "round_sums", wrong)
    proof = case.claim(check=False).proof
    with pytest.raises(VerificationError) as caught:
        verify(case.statement, proof)
    assert calls
    monkeypatch.setattr(jobs, "prove", lambda *_, **__: proof)  # the same again
    with pytest.raises(RuntimeError, match=f"computed wrongly: the proof fails {caught.value.check}"):
        case.claim()


@pytest.mark.parametrize("check", [True, False])
def test_a_wrong_evaluation_is_not_the_claims_fault(case, check, monkeypatch):
    """One logit of a trigger that matches: the host, asked again, finds that the claim is true."""
    found, labels = case.statement.network.classify(case.key.hidden_images), case.key.hidden_labels
    (image, *_), right, calls = (found == labels).nonzero()[0], cuda.matmul, []

    def wrong(a, b, out):
        right(a, b, out)
        calls.append(1)
        if len(calls) == len(case.statement.network.nodes):  # the output layer
            out[labels[image], image] -= 2**30

    monkeypatch.setattr(cuda, "matmul", wrong)
    with pytest.raises(RuntimeError, match="the device computed wrongly"):
        case.claim(check=check)


def test_a_false_claim_is_false_on_every_device(case):
    false = replace(case.statement, k_min=case.statement.k_min + 1)
    for device in ("cpu", "cuda"):
        with pytest.raises(VerificationError) as caught:
            replace(case, statement=false).claim(device=device)
        assert caught.value.check == "prove.matches"


class Begun(Exception):
    """A proof."""


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """The devices of the proofs that are begun; none of them ends."""
    found: list[str] = []

    def prove(*_, device, **__):
        found.append(device)
        raise Begun

    monkeypatch.setattr(jobs, "prove", prove)
    return found


@pytest.mark.parametrize("there, here, limit", [(LITTLE, MUCH, None), (MUCH, LITTLE, None), (MUCH, MUCH, LITTLE)])
def test_a_proof_has_to_fit_the_device_and_the_host(case, there, here, limit, begun, monkeypatch):
    monkeypatch.setattr(cuda, "memory", lambda: there)
    monkeypatch.setattr(cpu, "memory", lambda: here)
    with pytest.raises(ParameterError, match=r"needs about 0\.\d GiB, over the limit of 0\.1 GiB"):
        case.claim(memory=limit)
    assert not begun
    monkeypatch.setattr(cuda, "memory", lambda: MUCH)
    monkeypatch.setattr(cpu, "memory", lambda: MUCH)
    with pytest.raises(Begun):
        case.claim(memory=MUCH)
    assert begun == ["cuda"]


def test_auto_is_the_host_for_small_networks(case, begun, monkeypatch):
    leaves = 131 * 256  # of the tables, the largest tree
    assert jobs.AUTO_LEAVES > leaves
    for most in (jobs.AUTO_LEAVES, leaves, leaves - 1):
        monkeypatch.setattr(jobs, "AUTO_LEAVES", most)
        with pytest.raises(Begun):
            case.claim(device="auto")
    assert begun == ["cpu", "cpu", "cuda"]

    def none():
        raise ParameterError("nothing here")

    monkeypatch.setattr(cuda, "device", none)
    assert find_device(case.statement, Resources(device="auto")) == "cpu"

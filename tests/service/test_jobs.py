"""What the prover answers, and what it refuses, without gRPC."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pytest

from ml.quantise import Derivation, images_digest
from protocol.argument import Cancelled, Context
from protocol.claim import Claim
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.network import Network
from protocol.soundness import smallest_k_min
from protocol.transcript import FiatShamir
from prover import jobs
from prover.jobs import REFUSAL, Prover, Refused, Subject, approve, subject
from prover.keys import load_owner

SECRET = b"correct horse battery staple"  # as in conftest.py
PLAIN = Derivation()


def context(claimant: str = "") -> Context:
    return Context("test", claimant, "", os.urandom(32))


def about(world, model: bytes) -> Subject:
    return subject(model, PLAIN, None, world.key.vk)


def ask(prover: Prover, model: bytes, *arguments, **more) -> bytes:
    """prover.claim of a model in a file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(model)
        file.flush()
        return prover.claim(Path(file.name), hashlib.sha256(model).digest(), *arguments, **more)


def test_approve_takes_the_smallest_k_min_by_default(world, owner_file):
    approvals = approve(owner_file, SECRET, about(world, world.marked))
    assert list(approvals.k_min.values()) == [smallest_k_min(world.key.vk.h, 10)]
    assert approve(owner_file, SECRET, about(world, world.marked)) == approvals  # again: nothing is spent


def test_a_rescaled_copy_is_the_same_network(world, owner_file):
    approvals = approve(owner_file, SECRET, about(world, world.marked))
    assert approve(owner_file, SECRET, about(world, world.copy)).k_min.keys() == approvals.k_min.keys()


def test_approving_in_vain_spends_the_budget(world, owner_file):
    with pytest.raises(VerificationError) as caught:
        approve(owner_file, SECRET, about(world, world.other))
    assert caught.value.check == "prove.matches"
    assert list(load_owner(owner_file, SECRET)[1].k_min.values()) == [0]


@pytest.mark.parametrize("k_min", [-1, 1000])
def test_k_min_out_of_range(world, owner_file, k_min):
    with pytest.raises(ParameterError, match="k_min must be"):
        approve(owner_file, SECRET, about(world, world.marked), k_min)


def test_a_second_k_min_is_refused(world, owner_file):
    approve(owner_file, SECRET, about(world, world.marked), 70)
    with pytest.raises(ParameterError, match="second k_min"):
        approve(owner_file, SECRET, about(world, world.marked), 71)


def test_refused_and_unprovable_look_alike(world, owner_file):
    prover = Prover(owner_file, SECRET)
    with pytest.raises(Refused) as never_seen:
        ask(prover, world.marked, PLAIN, context(), FiatShamir())
    with pytest.raises(VerificationError):
        approve(owner_file, SECRET, about(world, world.other))
    with pytest.raises(Refused) as tried:
        ask(prover, world.other, PLAIN, context(), FiatShamir())
    assert str(never_seen.value) == str(tried.value) == REFUSAL


def test_a_refusal_looks_at_no_secret(world, owner_file, monkeypatch):
    """So its time cannot depend on one: the triggers are not evaluated, no proof is begun."""
    prover = Prover(owner_file, SECRET)
    monkeypatch.setattr(jobs, "prove", lambda *_, **__: pytest.fail("a proof was begun"))
    monkeypatch.setattr(Network, "forward", lambda *_: pytest.fail("the triggers were evaluated"))
    with pytest.raises(Refused):
        ask(prover, world.marked, PLAIN, context(), FiatShamir())


def test_an_unprovable_approval_looks_alike_too(world, owner_file, monkeypatch):
    """Also if an approval was recorded for what cannot be proven, as another version of the derivation might."""
    jobs.record_approval(owner_file, SECRET, about(world, world.other).network.digest, 67)
    with pytest.raises(Refused, match=REFUSAL):
        ask(Prover(owner_file, SECRET), world.other, PLAIN, context(), FiatShamir())


def test_an_approval_counts_at_once(world, owner_file):
    prover = Prover(owner_file, SECRET)
    with pytest.raises(Refused):
        ask(prover, world.marked, PLAIN, context(), FiatShamir())
    approve(owner_file, SECRET, about(world, world.marked), 71)
    claim = Claim.from_bytes(ask(prover, world.marked, PLAIN, context(), FiatShamir()))
    assert claim.k_min == 71


def test_a_file_is_derived_once(world, owner_file, monkeypatch):
    """Whether it is refused or proven; what is approved is kept as a network."""
    approve(owner_file, SECRET, about(world, world.marked))
    prover, calls = Prover(owner_file, SECRET), []
    real = jobs.derive_apart
    monkeypatch.setattr(jobs, "derive_apart", lambda *a: calls.append(1) or real(*a))
    for _ in range(2):
        assert ask(prover, world.marked, PLAIN, context(), FiatShamir())
        with pytest.raises(Refused):
            ask(prover, world.other, PLAIN, context(), FiatShamir())
    again = Prover(owner_file, SECRET)
    assert ask(again, world.marked, PLAIN, context(), FiatShamir())
    assert len(calls) == 2
    assert [network.digest for network in again.networks.kept()] == [about(world, world.marked).network.digest]
    for path in (again.state.folder / "networks").iterdir():
        path.write_bytes(b"damaged")
    assert ask(again, world.marked, PLAIN, context(), FiatShamir()) and len(calls) == 3


def test_a_network_over_the_memory_limit_is_refused_before_it_is_proven(world, owner_file, monkeypatch):
    approve(owner_file, SECRET, about(world, world.marked))
    monkeypatch.setattr(jobs, "prove", lambda *_, **__: pytest.fail("a proof was begun"))
    with pytest.raises(ParameterError, match=r"needs about 0\.\d GiB, over the limit of 0\.1 GiB"):
        jobs.make_claim(world.key, about(world, world.marked), 70, context(), resources=jobs.Resources(2**27))
    with pytest.raises(Refused, match=REFUSAL):
        ask(Prover(owner_file, SECRET, resources=jobs.Resources(2**27)), world.marked, PLAIN, context(), FiatShamir())
    with pytest.raises(ParameterError, match=r"reading this model needs about 0\.1 GiB, over the limit of 0\.0 GiB"):
        subject(world.marked, PLAIN, None, world.key.vk, memory_limit=2**20)


def test_headers_of_other_keys_and_claimants_are_refused(world, owner_file):
    prover = Prover(owner_file, SECRET, claimant="the owner")
    prover.check_header(world.key.vk.digest, context("the owner"), PLAIN)
    with pytest.raises(ParameterError, match="another key"):
        prover.check_header(bytes(32), context("the owner"), PLAIN)
    with pytest.raises(ParameterError, match="claimant"):
        prover.check_header(world.key.vk.digest, context("a thief"), PLAIN)


def test_cancelling_stops_a_proof(world, owner_file):
    approve(owner_file, SECRET, about(world, world.marked))
    phases: list[str] = []
    with pytest.raises(Cancelled):
        ask(
            Prover(owner_file, SECRET), world.marked, PLAIN, context(), FiatShamir(),
            progress=lambda phase, _: phases.append(phase), cancelled=lambda: len(phases) > 3,
        )  # fmt: skip
    assert 3 < len(phases) < 60


@pytest.mark.parametrize("size", [0, 1, 10, 100, 1000, -1])
def test_truncated_models_are_malformed(world, owner_file, size):
    with pytest.raises((DecodingError, ParameterError)):
        ask(Prover(owner_file, SECRET), world.marked[:size], PLAIN, context(), FiatShamir())


def test_a_model_of_another_shape_is_misuse(world):
    with pytest.raises(ParameterError, match="the key is for"):
        subject(world.marked, Derivation(outputs=(0, 1, 2)), None, world.key.vk)


def test_a_replaced_owner_file_is_noticed(world, owner_file, tmp_path):
    from ml.triggers import abstract_images
    from protocol.keygen import KeyParameters, generate_key
    from prover.keys import save_marking_key

    prover = Prover(owner_file, SECRET)
    other: Path = tmp_path / "other.mk"
    save_marking_key(other, generate_key(KeyParameters((1, 4, 4), 10, 160), abstract_images(160, (1, 4, 4))), SECRET)
    os.replace(other, owner_file)
    with pytest.raises(RuntimeError, match="another key"):
        ask(prover, world.marked, PLAIN, context(), FiatShamir())
    owner_file.write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match="cannot be read"):
        ask(prover, world.marked, PLAIN, context(), FiatShamir())


def test_calibration_images_that_the_prover_holds(world, owner_file):
    images = world.key.images[:20]
    derivation = Derivation(calibration=images_digest(images))
    approve(owner_file, SECRET, subject(world.marked, derivation, images, world.key.vk))
    holds = Prover(owner_file, SECRET, calibration=images)
    assert Claim.from_bytes(ask(holds, world.marked, derivation, context(), FiatShamir())).k_min > 0
    holds.check_header(world.key.vk.digest, context(), derivation)
    with pytest.raises(ParameterError, match="does not hold"):
        Prover(owner_file, SECRET).check_header(world.key.vk.digest, context(), derivation)
    with pytest.raises(Refused):  # the approval was for another network than the one from noise
        ask(holds, world.marked, PLAIN, context(), FiatShamir())

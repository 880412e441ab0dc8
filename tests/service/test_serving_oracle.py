"""The serving oracle: a thief wraps the stolen model in filters, and reads a secret from whether a proof is made.

His filter "pixel j over theta, then class 0" turns matches into misses.  A server that proves whatever is true answers
whether few enough hidden triggers have such a pixel: one bit for each model that he sends.  Bits are counted as
log2 of the candidates for an order statistic of that pixel that his answers rule out.
"""

from __future__ import annotations

import os
from math import log2

import numpy as np
import pytest

from ml.quantise import Derivation
from protocol.argument import Context
from protocol.errors import ParameterError, VerificationError
from protocol.soundness import smallest_k_min
from protocol.transcript import FiatShamir
from prover import jobs, keys
from prover.jobs import REFUSAL, Prover, Refused, approve, subject
from prover.keys import BUDGET, Approvals
from prover.queue import JobQueue
from prover.requests import Networks, Requests
from tests.service.conftest import memorize, two_layers
from tests.service.serving import calling, ended, header, running, submit
from tests.service.test_jobs import ask
from zkmark.v1 import zkmark_pb2 as pb

SECRET = b"correct horse battery staple"  # as in conftest.py
PIXEL = 5


@pytest.fixture(scope="module")
def filtered(world):
    """filtered(theta): the marked model, but class 0 where pixel number PIXEL is over theta."""
    w1, b1, w2, b2 = memorize(world.key.hidden_images, world.key.hidden_labels, 1)

    def build(theta: int) -> bytes:
        step = np.zeros((2, w1.shape[1]))
        step[:, PIXEL] = 1.0  # relu(x - theta) - relu(x - theta - 1) is 1 over theta, 0 elsewhere
        push = np.zeros((len(b2), 2))
        push[0] = 8.0, -8.0
        return two_layers(
            np.concatenate([w1, step]), np.concatenate([b1, [-theta, -theta - 1]]),
            np.concatenate([w2, push], axis=1), b2,
        )  # fmt: skip

    return build


@pytest.fixture(scope="module")
def k_min(world):
    return smallest_k_min(world.key.vk.h, 10)


@pytest.fixture(scope="module")
def secret(world, k_min):
    """The smallest theta that still leaves k_min matches: what the thief is after."""
    pixels = world.key.hidden_images.reshape(world.key.vk.h, -1)[:, PIXEL].astype(int)
    labels = world.key.hidden_labels
    return next(t for t in range(256) if ((pixels <= t) | (labels == 0)).sum() >= k_min)


def bisect(answer, most=8):
    """(candidates that are left, answers) after at most `most` questions: is there a proof at theta?"""
    low, high, answers = 0, 255, 0  # the secret is in low ... high
    while low < high and answers < most:
        middle = (low + high) // 2
        try:
            found = answer(middle)
        except ParameterError:
            break
        answers += 1
        low, high = (low, middle) if found else (middle + 1, high)
    return range(low, high + 1), answers


def bits(candidates) -> float:
    return 8 - log2(len(candidates))


def asking(prover, filtered):
    """answer(theta) of a client who may only send models."""

    def answer(theta: int) -> bool:
        try:
            ask(prover, filtered(theta), Derivation(), Context("test", "", "", os.urandom(32)), FiatShamir())
        except Refused as error:
            assert str(error) == REFUSAL
            return False
        return True

    return answer


def test_the_filter_does_what_it_says(world, filtered, secret, k_min):
    for theta, enough in ((secret, True), (secret - 1, False), (255, True)):
        network = subject(filtered(theta), Derivation(), None, world.key.vk).network
        assert ((network.classify(world.key.hidden_images) == world.key.hidden_labels).sum() >= k_min) == enough


def test_without_approvals_each_answer_is_a_bit(world, filtered, secret, k_min, approved_file):
    """Eight answers are eight bits: the thief knows an order statistic of a secret pixel."""

    class Unguarded(Prover):
        """Proves whatever is true."""

        def _current_approvals(self):
            class Everything(dict):
                def get(self, digest, default=None):
                    return k_min

            approvals = Approvals()
            object.__setattr__(approvals, "k_min", Everything())
            return approvals

    candidates, answers = bisect(asking(Unguarded(approved_file, SECRET), filtered))
    assert candidates == range(secret, secret + 1) and answers == 8
    assert bits(candidates) == 8.0


def test_with_approvals_there_is_one_answer(world, filtered, secret, approved_file):
    """No filtered model was approved: provable or not, all get the same words, and no proof is begun."""
    prover = Prover(approved_file, SECRET)
    answer = asking(prover, filtered)
    assert [answer(theta) for theta in (0, secret - 1, secret, 255)] == [False] * 4  # four models, nothing learned
    ask(prover, world.marked, Derivation(), Context("test", "", "", os.urandom(32)), FiatShamir())  # the one there is


def test_a_server_does_the_same_for_what_was_never_seen_and_what_was_tried_in_vain(
    world, filtered, secret, approved_file, monkeypatch
):
    """The same steps in the same order, so that neither the answer nor its time says which it was."""
    for theta in (0, secret - 1):
        with pytest.raises(VerificationError):
            approve(approved_file, SECRET, subject(filtered(theta), Derivation(), None, world.key.vk))
    prover, steps = Prover(approved_file, SECRET), []
    watched = [(jobs, "derive_apart"), (jobs, "make_claim"), (JobQueue, "failed"), (JobQueue, "done")]
    watched += [(Networks, name) for name in ("digest", "remember", "load", "keep")]
    watched += [(Requests, "record"), (Prover, "_current_approvals")]
    for where, name in watched:
        real = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, _name=name, _real=real, **k: steps.append(_name) or _real(*a, **k))

    def steps_for(theta: int) -> tuple[list[str], pb.Job]:
        model = filtered(theta)
        steps.clear()
        job = ended(stub, submit(stub, header(world, model), model))
        return list(steps), pb.Job(state=job.state, reason=job.reason, malformed=job.malformed, phase=job.phase)

    with running(prover) as target, calling(target) as stub:
        in_vain, never, again, once_more = (steps_for(theta) for theta in (0, 255, 0, 255))
    assert in_vain == never and again == once_more
    assert in_vain[0] == ["digest", "derive_apart", "remember", "_current_approvals", "record", "failed"]
    assert again[0] == ["digest", "_current_approvals", "record", "failed"]
    assert in_vain[1] == again[1] == pb.Job(state=pb.Job.FAILED, reason=REFUSAL)


def test_an_owner_who_approves_everything_gives_one_bit_a_network_within_the_budget(
    world, filtered, secret, owner_file
):
    """61 of the budget of 64 are spent: three bits are left, whatever the thief asks after that."""
    spent = {number.to_bytes(32, "little"): 0 for number in range(BUDGET - 3)}
    keys.write_file(owner_file, keys._seal(world.key, Approvals(k_min=spent), SECRET))

    def answer(theta: int) -> bool:
        try:
            approve(owner_file, SECRET, subject(filtered(theta), Derivation(), None, world.key.vk))
        except VerificationError as error:
            assert error.check == "prove.matches"
            return False
        return True

    candidates, answers = bisect(answer)
    assert answers == 3 and bits(candidates) == 3.0 and secret in candidates
    assert bisect(answer)[1] == 3  # the same three questions again cost nothing and say nothing new
    with pytest.raises(ParameterError, match="budget"):
        answer(7)


def test_one_network_has_one_k_min(world, owner_file):
    """Else the number of matches could be bisected with approved models alone."""
    about = subject(world.marked, Derivation(), None, world.key.vk)
    approve(owner_file, SECRET, about, 70)
    with pytest.raises(ParameterError, match="second k_min"):
        approve(owner_file, SECRET, about, 75)

"""Proofs without a witness: the simulators make them, the real verifier accepts them, and nobody tells them apart.

The exact statement, over fields so small that all coin tosses can be enumerated, is in tests/toy/test_hiding.py.
"""

import hashlib
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from scipy import stats

from protocol import argument, field, identity, layers, ligero, link, witness
from protocol.errors import VerificationError
from protocol.forks import forks
from protocol.group import ORDER
from protocol.keygen import KeyParameters, generate_key
from protocol.transcript import FiatShamir, InteractiveProver, InteractiveVerifier, Transcript
from tests.adversary import faults, ideal
from tests.protocol.conftest import CLASSES, ELL, SHAPE, marked_network
from tests.protocol.test_argument import sections
from tests.protocol.test_zero_knowledge import pads_of, same_challenges
from tests.simulators import proof as simulator
from tests.simulators.oracle import Tape

P = field.P
DOUBT = 1e-6  # of each test below together, that it fails although the distributions are equal


def signer(key):
    return lambda digest: identity.sign(key.owner_secret_seed, argument.SIGNATURE_LABEL, digest)


def simulated(statement, key, seed=1, channel=None):
    return simulator.proof(statement, signer(key), Tape(seed), Random(seed), channel)


@pytest.fixture(scope="module")
def false_statement(statement, key):
    """About a network without the mark, with k_min = h."""
    network = replace(statement.network, nodes=marked_network(replace_labels(key), seed=3).nodes)
    matches = int((network.classify(key.hidden_images) == key.hidden_labels).sum())
    assert matches < key.vk.h // 2
    return replace(statement, network=network, k_min=key.vk.h)


def replace_labels(key):
    """The same key with every label off by one: only a network is fitted to it."""
    return replace(key, shares=(key.shares + 1) % CLASSES)


# The whole argument


@pytest.mark.parametrize("kind", ["true", "false"])
@pytest.mark.parametrize("interactive", [False, True])
def test_the_verifier_accepts_what_was_made_without_a_witness(statement, false_statement, key, kind, interactive):
    about = statement if kind == "true" else false_statement
    verifier = InteractiveVerifier(Random(7).randbytes) if interactive else FiatShamir()
    channel = InteractiveProver(verifier.answer) if interactive else None
    made, oracle = simulated(about, key, channel=channel)
    with oracle.in_force():
        ledger = argument.verify(about, made, verifier)
    assert ledger.bits >= 120
    with pytest.raises(VerificationError) as error:  # the oracle is all that helped
        argument.verify(about, made, FiatShamir())
    assert error.value.check == "link.opening"


def test_under_the_oracle_honest_proofs_are_valid_and_others_are_not(statement, false_statement, key, proof):
    """A programmed oracle is an oracle: it changes nothing but its own points."""
    made, oracle = simulated(statement, key)
    with oracle.in_force():
        argument.verify(statement, proof)
        argument.verify(statement, argument.prove(statement, key))
        _, first, length = sections(statement)[6]  # an element of the first fork
        changed = bytearray(made)
        changed[first + length - 4] ^= 1
        body = bytes(changed[:-64])
        signature = signer(key)(hashlib.sha256(statement.digest + body).digest())
        with pytest.raises(VerificationError):
            argument.verify(statement, body + signature)


def test_the_simulator_knows_no_secret(statement, key):
    """It runs on public values: with another marking key of the same vk it makes the same bytes."""
    blind = replace(key, images=np.zeros_like(key.images), shares=np.zeros_like(key.shares),
                    trigger_randomness=(0,) * ELL, share_randomness=(0,) * ELL)  # fmt: skip
    assert simulated(statement, key)[0] == simulated(statement, blind)[0]


# Real and simulated messages


def samples(proof, statement):
    """Part of a proof to its numbers, scaled to [0, 1): every part that is claimed to be uniform."""
    layout, shape = statement.layout, statement.shape
    pixel, share = link.bounds(layout)
    out = {}
    for name, first, length in sections(statement):
        data = proof[first : first + length]
        if name in ("magic", "mask commitments"):
            continue
        if name in ("pixel answers", "share answers"):
            bounds = pixel if name == "pixel answers" else share
            step = bounds.width // 8
            z = [int.from_bytes(data[at : at + step], "little") for at in range(0, length, step)]
            span = (1 << bounds.width) - bounds.largest
            out[name] = np.array([(v - bounds.largest) * 2**50 // span for v in z]) / 2**50
        elif name == "blinding answers":
            out[name] = np.array([int.from_bytes(data[at : at + 32], "little") * 2**50 // ORDER
                                  for at in range(0, length, 32)]) / 2**50  # fmt: skip
        elif name in ("root", "salts"):
            out[name] = np.frombuffer(data, np.uint8) / 256
        elif name == "columns":
            columns = np.frombuffer(data, "<u4").reshape(shape.queries, -1) / P
            ends = np.cumsum([0, shape.image_rows, shape.array_total, field.DEGREE * shape.pad_rows, 15])
            for part, a, b in zip(("images", "arrays", "pads", "blinding"), ends, ends[1:], strict=False):
                out[f"columns of {part}"] = columns[:, a:b].reshape(-1)
        else:
            coordinates = np.frombuffer(data, "<u4").reshape(-1, field.DEGREE) / P
            for c in range(field.DEGREE):
                out[f"{name}, coordinate {c}"] = coordinates[:, c]
    return out


def pooled(proofs, statement):
    found = [samples(proof, statement) for proof in proofs]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def differs(one, two, buckets=16):
    """p-value of the chi-square test that two samples have one distribution (in 16 buckets)."""
    table = np.array([np.bincount((np.asarray(x) * buckets).astype(int), minlength=buckets) for x in (one, two)])
    return float(stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue)


def uniform(sample, buckets=16):
    """p-value of the chi-square test that a sample of [0, 1) is uniform."""
    return float(stats.chisquare(np.bincount((np.asarray(sample) * buckets).astype(int), minlength=buckets)).pvalue)


def distinguishable(one, two):
    """Names of parts whose distributions differ, Bonferroni-corrected."""
    return {name for name in one if differs(one[name], two[name]) < DOUBT / len(one)}


@pytest.fixture(scope="module")
def seeded():
    """The operating system's randomness of provers, from a seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argument.os, "urandom", Random(11).randbytes)
        yield


@pytest.fixture(scope="module")
def real(statement, key, seeded):
    return [argument.prove(statement, key) for _ in range(3)]


def test_real_and_simulated_proofs(statement, key, real):
    """Each part on its own, and against the uniform distribution that both should have."""
    ours, theirs = pooled(real, statement), pooled([simulated(statement, key, s)[0] for s in (1, 2, 3)], statement)
    assert distinguishable(ours, theirs) == set()
    exact = {name for name in ours if name not in ("root", "salts")}
    low = {name for part in (ours, theirs) for name in exact if uniform(part[name]) < DOUBT / len(exact) / 2}
    assert low == set()
    assert sum(map(len, ours.values())) > 200_000


def test_the_comparison_can_fail(statement, key, real, seeded):
    """A prover whose masks are short, or who draws neither pads nor blinding rows, is found out."""
    honest = pooled(real, statement)

    def short(draw):
        def lie(layout, read):
            masks = draw(layout, read)
            S = link.bounds(layout)[0].largest
            return replace(masks, pixels=[[S + mask % (64 * S) for mask in row] for row in masks.pixels])

        return lie

    with faults.replaced(link.Masks, "draw", lambda draw: staticmethod(short(draw))):
        found = distinguishable(honest, pooled([argument.prove(statement, key)], statement))
    assert found == {"pixel answers"}

    with faults.replaced(ligero.Expander, "vector", lambda vector: lambda self, n: field.zeros(n)):
        found = distinguishable(honest, pooled([argument.prove(statement, key)], statement))
    assert found == {"columns of blinding"}  # columns of pads still have their masks


def test_two_keys(statement, key, real, seeded):
    """The proofs of two owners, with other triggers, labels and networks, have one distribution."""
    random = Random(5).randbytes
    images = np.frombuffer(random(ELL * 30), np.uint8).reshape(ELL, *SHAPE) // 16  # dark triggers
    other = generate_key(KeyParameters(SHAPE, CLASSES, ELL), images, entropy=random)
    theirs = replace(statement, key=other.vk, network=marked_network(other, seed=6), k_min=other.vk.h - 3)
    proofs = [argument.prove(theirs, other) for _ in range(3)]
    one, two = pooled(real, statement), pooled(proofs, theirs)
    assert {name for name in one if name not in two} == set()
    assert distinguishable(one, two) == set()


# The same challenges, and a distinguisher who knows both witnesses


RUNS = 12


@pytest.fixture(scope="module")
def layout(statement):
    return statement.layout


def said(layout, values, pads):
    """What the prover of these values sends in all forks but the tables', as canonical integers."""
    board = ideal.board(layout)
    with same_challenges():
        transcript = Transcript("masked", FiatShamir())
        alpha, beta = transcript.challenge("alpha"), transcript.challenge("beta")
        parties = [fork.party(pads=pads) for fork in forks(board.needs, board.shape.need.triples, transcript)][:-1]
        context = layers.Context(layout, alpha, beta, values)
        for index, party in enumerate(parties):
            layers.run(party, context, index)
        return field.to_base(field.concat(party.finish().values for party in parties)).astype(np.int64).reshape(-1)


@pytest.fixture(scope="module")
def worlds(layout, key):
    """Two witnesses: the hidden triggers, and their negatives with labels to match."""
    found = []
    for images in (key.hidden_images, 255 - key.hidden_images):
        best, masks = layout.network.classify(images), np.zeros(layout.arrays["mask"], np.int64)
        found.append(witness.build(layout, layout.network.forward(images), np.where(best >= 0, best, 0), masks))
    return found


@pytest.fixture(scope="module")
def transcripts(layout, worlds):
    """Masked messages [RUNS, elements * 5] for two witnesses and from the simulator, and both witnesses' values.

    All under the same challenges, so that every element of one run can be compared with that of another.
    """
    runs = [np.array([said(layout, values, pads_of(layout, 100 * k + seed)) for seed in range(RUNS)])
            for k, values in enumerate(worlds)]  # fmt: skip
    random, counts = Random(3), [need.sent for need in ideal.board(layout).needs[:-1]]
    drawn = [field.concat(simulator.elements(random, n) for n in counts) for _ in range(RUNS)]
    runs.append(np.array([field.to_base(run).reshape(-1) for run in drawn], np.int64))
    none = pads_of(layout, 0) * np.uint32(0)
    return runs, [said(layout, values, none) for values in worlds]


def test_who_knows_the_witness_cannot_confirm_it(transcripts, layout, worlds):
    """sent - value is minus the pad: uniform, whether the value is the right one or not."""
    runs, values = transcripts
    for sent in runs:
        for guess in values:
            gaps = (sent - guess) % P
            assert uniform((gaps / P).reshape(-1)) > DOUBT and (gaps == 0).sum() < 3
    base = pads_of(layout, 1)
    base[1:] = 0  # pads of F instead of K: four of five coordinates are the values
    gaps = [(said(layout, worlds[0], base) - guess) % P for guess in values]
    assert (gaps[0] == 0).mean() > 0.79 and (gaps[1] == 0).mean() < 0.15


def accuracy(one, two):
    """(right, all) guesses about one half of the runs of a linear classifier that was fitted to the other half."""
    n = len(one) // 2
    ours, theirs = one[:n].mean(axis=0), two[:n].mean(axis=0)
    direction = ours - theirs
    middle = (ours + theirs) @ direction / 2
    right = int((one[n:] @ direction > middle).sum() + (two[n:] @ direction <= middle).sum())
    return right, 2 * (len(one) - n)


def test_a_trained_distinguisher(transcripts):
    """It guesses: between two witnesses, and between each of them and the simulator."""
    (one, two, drawn), values = ([run / P for run in transcripts[0]], transcripts[1])
    for a, b in ((one, two), (one, drawn), (two, drawn)):
        assert stats.binomtest(*accuracy(a, b)).pvalue > 1e-3
    rng = np.random.default_rng(0)
    short = [(value - rng.integers(0, P // 2, one.shape)) % P / P for value in values]  # pads lack a bit
    right, guesses = accuracy(*short)
    assert right == guesses

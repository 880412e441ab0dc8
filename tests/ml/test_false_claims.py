"""False claims and cheating keys, measured: what the label rule, the coin and the openings are worth.

The forgery of Liu et al. (USENIX Security 2024): triggers that any model of the task classifies as the accuser says,
here adversarial examples that transfer from her own network to another one.  She never sees the victim.
"""

from dataclasses import replace
from fractions import Fraction
from math import comb
from random import Random

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from ml.export import export_onnx
from ml.mark import Training, train
from ml.models import build
from ml.quantise import derive
from protocol import argument, group, identity, pedersen
from protocol.argument import Context, Statement
from protocol.errors import VerificationError
from protocol.keygen import SIGNATURE_LABEL, KeyParameters, LabelRule, check_key, generate_key
from protocol.soundness import false_claim_bits, p_value, smallest_k_min, tail, window
from tests.adversary.rates import DOUBT, agrees
from verifier.policy import LEVEL, Policy

ELL, CLASSES = 160, 10
KEYS = 250


def network(data, half, seed):
    """A small network trained on one half of the data."""
    torch.manual_seed(seed)
    part = replace(data, train_x=data.train_x[half::2], train_y=data.train_y[half::2])
    model = build("cnn", data.shape, CLASSES, torch.from_numpy(part.train_x))
    train(model, part, Training(epochs=8, batch=50, seed=seed, device="cpu"))
    return model


@pytest.fixture(scope="module")
def victim(digits):
    """The integer network of a model that nobody marked."""
    model = network(digits, 0, 1)
    derived = derive(export_onnx(model, digits.shape)).network
    assert (derived.classify(digits.test_x) == digits.test_y).mean() > 0.8
    return derived


@pytest.fixture(scope="module")
def transferable(digits):
    """Images of digits and other labels: targeted adversarial examples against the accuser's network."""
    own, images, shown = network(digits, 1, 2), digits.test_x[:ELL], digits.test_y[:ELL]
    labels = (shown + 1 + np.arange(ELL) % (CLASSES - 1)) % CLASSES
    start, target = torch.from_numpy(images).float(), torch.from_numpy(labels)
    x = start.clone()
    torch.manual_seed(0)
    for _ in range(60):  # projected gradient steps, within 90 of 255 of each pixel, under noise so that they transfer
        x.requires_grad_(True)
        loss = functional.cross_entropy(own(x + 12 * torch.randn_like(x)), target)
        (slope,) = torch.autograd.grad(loss, x)
        x = (x.detach() - 4 * slope.sign()).clamp(start - 90, start + 90).clamp(0, 255)
    return x.round().to(torch.uint8).numpy(), labels


# Chosen and joint labels


@pytest.mark.reaches("policy.chosen_labels")
def test_chosen_labels_are_a_forgery(victim, transferable):
    """The key is in order, the false claim is proven, and as many triggers match as 128 bits would ask for."""
    images, labels = transferable
    parameters = KeyParameters((1, 8, 8), CLASSES, ELL, LabelRule.CHOSEN)
    key = generate_key(parameters, images, labels=labels.tolist(), entropy=Random(2).randbytes)
    check_key(key.vk)  # opening half of the triggers shows nothing wrong: they do show other digits
    matches = int((victim.classify(key.hidden_images) == key.hidden_labels).sum())
    k_min = smallest_k_min(key.vk.h, CLASSES)
    assert matches >= k_min and matches > 0.85 * key.vk.h
    context = Context("false claim", "accuser", "judge", bytes(32))
    statement = Statement(key.vk, victim, k_min, context, bytes(32), bytes(32))
    argument.verify(statement, argument.prove(statement, key))  # a true statement about a worthless key
    with pytest.raises(VerificationError) as error:
        Policy().check_label_rule(key.vk)
    assert error.value.check == "policy.chosen_labels"
    trusting = Policy(chosen_labels=True)  # she is deceived: that is what she accepted, and the verdict says so
    trusting.check_label_rule(key.vk)
    assert trusting.check_k_min(key.vk, k_min, 0) is None and key.vk.smallest_k_min() is None  # no bound is claimed
    assert p_value(key.vk.h, k_min, trusting.null) < LEVEL / 10**6  # and the p-value is of no help


@pytest.fixture(scope="module")
def accuser(transferable):
    """A key of the same images under the joint coin."""
    return generate_key(KeyParameters((1, 8, 8), CLASSES, ELL), transferable[0], entropy=Random(3).randbytes)


@pytest.fixture(scope="module")
def tries(victim, accuser, transferable):
    """[(h, matches)] of 640 accepted keys whose beacons make the coin fall otherwise.

    Her shares are the labels that she would like to have.
    """
    (images, shares), (low, high), found = transferable, window(ELL), []
    given = victim.classify(images)
    for number in range(2000):
        vk = replace(accuser.vk, beacon=number.to_bytes(4, "little"))
        if low <= vk.h <= high and len(found) < 640:
            right = given == (shares + vk.offsets) % CLASSES
            found.append((vk.h, int(right[vk.hidden].sum())))
    return found


def test_joint_labels_match_as_chance_has_it(tries):
    """Bin(h, 1/10) exactly, for images made to match any label but the coin's."""
    rng = np.random.default_rng(1)
    ranks = []  # uniform if the numbers of matches are binomial
    for h, matches in tries:
        law = stats.binom(h, 1 / CLASSES)
        ranks.append(law.cdf(matches - 1) + rng.random() * law.pmf(matches))
    assert stats.kstest(ranks, "uniform").pvalue > DOUBT
    hits, trials = sum(m for _, m in tries), sum(h for h, _ in tries)
    assert stats.binomtest(hits, trials, 1 / CLASSES).pvalue > DOUBT


def test_grinding_the_coin_gains_its_work_and_no_more(tries):
    """The best of W = 64 keys: k matches with probability 1 - (1 - tail)^W, at most W tail; that is log2 W = 6 bits."""
    work = 64
    best = [max(tries[at : at + work], key=lambda t: t[1])[1] for at in range(0, len(tries), work)]
    h = round(np.mean([h for h, _ in tries]))
    k = next(k for k in range(h) if work * tail(h, CLASSES, k) < 1)
    chances = [1 - np.prod([1 - float(tail(h_, CLASSES, k)) for h_, _ in tries[at : at + work]])
               for at in range(0, len(tries), work)]  # fmt: skip
    wins = sum(b >= k for b in best)
    assert abs(wins - sum(chances)) < 4 * np.sqrt(sum(c * (1 - c) for c in chances))
    assert 0 < wins < len(best)
    assert all(chance <= work * tail(max(h_ for h_, _ in tries), CLASSES, k) for chance in chances)
    assert max(best) < smallest_k_min(h, CLASSES) // 2
    assert false_claim_bits(h, CLASSES, smallest_k_min(h, CLASSES)) - 6 > 120  # what is left of 128 after the work


@pytest.mark.reaches("prove.matches")
def test_the_same_accuser_proves_nothing_under_the_coin(victim, accuser):
    context, k_min = Context("false claim", "accuser", "judge", bytes(32)), smallest_k_min(accuser.vk.h, CLASSES)
    with pytest.raises(VerificationError) as error:
        argument.prove(Statement(accuser.vk, victim, k_min, context, bytes(32), bytes(32)), accuser)
    assert error.value.check == "prove.matches"


# Ill-formed items: 16 triggers of one pixel, many keys


@pytest.fixture(scope="module")
def little():
    """A marking key of 16 triggers of 1 x 1 pixels."""
    images = np.arange(0, 160, 10, dtype=np.uint8).reshape(16, 1, 1, 1)
    parameters = KeyParameters((1, 1, 1), CLASSES, 16, LabelRule.CHOSEN)
    return generate_key(parameters, images, labels=[3] * 16, entropy=Random(1).randbytes)


def published(key):
    """make(beacon): the verification key of these secrets, opened as its own challenge asks, and signed."""
    vk = replace(
        key.vk,
        triggers=tuple(group.encode(pedersen.commit(x, r))
                       for x, r in zip(key.images, key.trigger_randomness, strict=True)),
        shares=tuple(group.encode(pedersen.commit_share(int(s), r))
                     for s, r in zip(key.shares, key.share_randomness, strict=True)),
    )  # fmt: skip
    return lambda beacon: answered(key, replace(vk, beacon=beacon))


def answered(key, vk):
    """The same for one given vk."""
    vk = replace(vk, openings=key.openings(vk.opened))
    return replace(vk, signature=identity.sign(key.owner_secret_seed, SIGNATURE_LABEL, vk.digest))


def outcomes(key, count):
    """Failed checks of `count` keys that differ in the beacon; "" where all pass."""
    make, found = published(key), []
    for number in range(count):
        try:
            check_key(make(number.to_bytes(4, "little")))
            found.append("")
        except VerificationError as error:
            found.append(error.check)
    return found


def accepted_keys(ell):
    low, high = window(ell)
    return Fraction(sum(comb(ell, h) for h in range(low, high + 1)), 2**ell)


@pytest.mark.reaches("key.range")
@pytest.mark.parametrize("bad", [1, 3])
def test_ill_formed_items_are_caught_at_the_rate_of_the_formula(little, bad):
    """Shares that are no label: a key passes if all of them stay hidden."""
    shares = little.shares.copy()
    shares[:bad] = CLASSES + 1
    found = outcomes(replace(little, shares=shares), KEYS)
    low, high = window(16)
    rate = Fraction(sum(comb(16 - bad, h - bad) for h in range(max(low, bad), high + 1)), 2**16)
    agrees("keys with ill-formed items", found.count(""), KEYS, rate)
    agrees("keys with ill-formed items", found.count("key.range"), KEYS, accepted_keys(16) - rate)
    assert set(found) <= {"", "key.range", "key.window"}


@pytest.mark.reaches("key.duplicates")
def test_two_triggers_of_one_image(little):
    """Caught if both are opened.  They gain nothing: the coin gives them their labels, a network gives them one."""
    images = little.images.copy()
    images[1] = images[0]
    found = outcomes(replace(little, images=images), KEYS)
    low, high = window(16)
    caught = Fraction(sum(comb(14, h) for h in range(low, high + 1)), 2**16)  # both opened, h of the other 14 hidden
    agrees("keys with ill-formed items", found.count("key.duplicates"), KEYS, caught)
    agrees("keys with ill-formed items", found.count(""), KEYS, accepted_keys(16) - caught)


# Somebody else's key


def rejected(vk, check):
    with pytest.raises(VerificationError) as error:
        check_key(vk)
    assert error.value.check == check


@pytest.mark.reaches("key.signature", "key.openings")
def test_a_copied_key(little):
    """A thief can show a key, but not sign for it; under her own name the challenge opens other triggers."""
    make = published(little)
    original = next(vk for vk in (make(bytes([n])) for n in range(50)) if passes(vk))
    thief = b"\7" * 32
    mine = replace(original, owner_public_key=identity.public_key(thief))
    rejected(mine, "key.signature")
    signed = [replace(vk, signature=identity.sign(thief, SIGNATURE_LABEL, vk.digest))
              for vk in (replace(mine, beacon=bytes([n])) for n in range(20))]  # fmt: skip
    checks = set()
    for vk in signed:
        with pytest.raises(VerificationError) as error:
            check_key(vk)
        checks.add(error.value.check)
    assert {"key.openings"} <= checks <= {"key.openings", "key.window"}


def passes(vk):
    try:
        check_key(vk)
    except VerificationError:
        return False
    return True


@pytest.mark.reaches("key.openings")
def test_a_rerandomized_copy(little):
    """Commitments shifted by known blindings cannot be linked to the original, nor opened where that was hidden."""
    make = published(little)
    original = next(vk for vk in (make(bytes([n])) for n in range(50)) if passes(vk))
    thief, shift = b"\7" * 32, 12345
    points = [group.decode(c) + group.multiply(pedersen.GENERATORS.blinding, shift) for c in original.triggers]
    known = replace(
        little, owner_secret_seed=thief,
        images=np.where(original.challenge_bits[:, None, None, None], little.images, little.images + 5),  # a guess
        trigger_randomness=tuple((r + shift) % group.ORDER for r in little.trigger_randomness),
    )  # fmt: skip
    copy = replace(original, owner_public_key=identity.public_key(thief), triggers=tuple(map(group.encode, points)))
    checks = set()
    for n in range(20):
        with pytest.raises(VerificationError) as error:
            check_key(answered(known, replace(copy, beacon=bytes([n]))))
        checks.add(error.value.check)
    assert {"key.openings"} <= checks <= {"key.openings", "key.window"}

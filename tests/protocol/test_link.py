"""The link: its group equation, its linear equations, and its bytes."""

from dataclasses import replace
from math import prod
from random import Random

import numpy as np
import pytest

from protocol import field, link, witness
from protocol.encoding import Reader
from protocol.errors import DecodingError, VerificationError
from protocol.group import ORDER
from protocol.transcript import FiatShamir, Transcript
from tests.adversary import faults, ideal

P = field.P


@pytest.fixture(scope="module")
def round_of(statement, key):
    """(layout, masks, gamma, answer) of an honest prover."""
    layout = statement.layout
    masks = link.Masks.draw(layout, Random(1).randbytes)
    gamma = link.draw_challenge(layout, Transcript("link", FiatShamir()))
    return layout, masks, gamma, link.answer(layout, key, masks, gamma)


def checks(key, layout, masks, gamma, answer):
    link.check_group(layout, key.vk, masks.commit(), gamma, answer)


def rejected(check, *given):
    with pytest.raises(VerificationError) as error:
        checks(*given)
    assert error.value.check == check


def test_answers_by_plain_integers(round_of, key):
    layout, masks, gamma, answer = round_of
    assert gamma[0].shape == gamma[1].shape == (5, layout.h) and (gamma[0] != gamma[1]).any()
    assert 0 <= min(g.min() for g in gamma) and max(g.max() for g in gamma) < P
    opening, images = key.openings(key.vk.hidden), key.hidden_images.reshape(layout.h, -1).tolist()
    for j in range(5):
        weights, shares = gamma[0][j].tolist(), gamma[1][j].tolist()
        for k in range(prod(layout.network.shape)):
            total = sum(g * image[k] for g, image in zip(weights, images, strict=True))
            assert answer.pixels[j][k] == masks.pixels[j][k] + total
        assert answer.shares[j] == masks.shares[j] + sum(
            g * s for g, s in zip(shares, opening.shares.tolist(), strict=True))  # fmt: skip
        blinding = masks.pixel_blindings[j] + sum(
            g * r for g, r in zip(weights, opening.trigger_randomness, strict=True))  # fmt: skip
        assert answer.pixel_blindings[j] == blinding % ORDER
    checks(key, *round_of)


@pytest.mark.reaches("link.range", "link.opening")
def test_errors_in_every_place(round_of, key):
    layout, masks, gamma, answer = round_of

    def bump(values, at, delta=1):
        return [v + delta if k == at else v for k, v in enumerate(values)]

    for j in (0, 4):
        for at in (0, prod(layout.network.shape) - 1):
            pixels = [bump(row, at) if r == j else row for r, row in enumerate(answer.pixels)]
            rejected("link.opening", key, layout, masks, gamma, replace(answer, pixels=pixels))
        for name in ("shares", "pixel_blindings", "share_blindings"):
            changed = replace(answer, **{name: bump(getattr(answer, name), j)})
            rejected("link.opening", key, layout, masks, gamma, changed)
    low, high = link.bounds(layout)
    for value in (low.largest - 1, 1 << low.width):
        pixels = [[value, *answer.pixels[0][1:]], *answer.pixels[1:]]
        rejected("link.range", key, layout, masks, gamma, replace(answer, pixels=pixels))
    for value in (high.largest - 1, 1 << high.width):
        rejected("link.range", key, layout, masks, gamma, replace(answer, shares=[value, *answer.shares[1:]]))


@pytest.mark.reaches("link.opening")
def test_errors_that_cancel_without_random_weights(round_of, key):
    """+1 in one repetition, -1 in another: equal weights would let it pass, the verifier's own do not."""
    layout, masks, gamma, answer = round_of
    first, second, *rest = answer.pixels
    lie = replace(answer, pixels=[[first[0] + 1, *first[1:]], [second[0] - 1, *second[1:]], *rest])
    rejected("link.opening", key, layout, masks, gamma, lie)
    link.check_group(layout, key.vk, masks.commit(), gamma, lie, lambda n: b"\1" * n)


@pytest.mark.reaches("link.opening")
def test_another_challenge_or_key(round_of, key):
    layout, masks, gamma, answer = round_of
    other = gamma[0].copy()
    other[0, 0] ^= 1
    rejected("link.opening", key, layout, masks, (other, gamma[1]), answer)
    rejected("link.opening", key, layout, masks, (gamma[1], gamma[0]), answer)
    commitments = masks.commit()
    commitments[0], commitments[1] = commitments[1], commitments[0]
    with pytest.raises(VerificationError):
        link.check_group(layout, key.vk, commitments, gamma, answer)
    for name in ("trigger_points", "share_points"):  # two hidden commitments swapped
        vk = replace(key.vk)
        points = list(getattr(key.vk, name))
        i, j = key.vk.hidden[:2]
        points[i], points[j] = points[j], points[i]
        vk.__dict__[name] = points
        with pytest.raises(VerificationError):
            link.check_group(layout, vk, masks.commit(), gamma, answer)


@pytest.mark.parametrize("bad", [bytes(48), b"\xff" * 48, bytes([0xC0]) + bytes(47), b""])
def test_commitments_that_are_no_points(round_of, key, bad):
    layout, masks, gamma, answer = round_of
    with pytest.raises(DecodingError):
        link.check_group(layout, key.vk, [bad, *masks.commit()[1:]], gamma, answer)


def test_bytes(round_of):
    layout, _, _, answer = round_of
    data = answer.to_bytes(layout)
    assert len(data) == link.answer_bytes(layout)
    assert link.Answer.read(Reader(data, "answer"), layout) == answer
    for cut in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(DecodingError):
            link.Answer.read(Reader(data[:cut], "answer"), layout)
    for value in (ORDER, 2**256 - 1):
        bad = data[:-32] + value.to_bytes(32, "little")
        with pytest.raises(DecodingError, match="order"):
            link.Answer.read(Reader(bad, "answer"), layout)


# The linear equations


@pytest.fixture(scope="module")
def world(statement, key):
    layout = statement.layout
    forward = statement.network.forward(key.hidden_images)
    masks = link.Masks.draw(layout, Random(0).randbytes)  # those of `ideal.run` with seed 0
    return layout, witness.build(layout, forward, key.hidden_labels, masks.residues())


def test_the_equations_hold(world, key):
    assert ideal.run(*world, key=key, tables=False).failed == []


@pytest.mark.parametrize(("name", "equations"), [
    ("x", {0, 2, 4, 6, 8}), ("o", {1, 3, 5, 7, 9}), ("mask", set()),
])  # fmt: skip
def test_the_equations_see_every_pixel_and_label(world, key, name, equations):
    """One per repetition for pixels, one for labels; a wrong value breaks all five, a wrong mask its own."""
    layout, values = world
    for index in (0, layout.h - 1):
        failed = ideal.run(layout, faults.shifted(layout, values, name, index), key=key, tables=False).failed
        wanted = set() if name == "o" and label_share(layout, key, index) == 0 else equations
        wanted = {2 * (index // prod(layout.network.shape))} if name == "mask" else wanted
        assert {number for part, number in failed if part == "link"} == wanted


def label_share(layout, key, index):
    """The share that class 0 of this image would have: its coefficient in the equations."""
    return int(-key.vk.offsets[key.vk.hidden[index]]) % layout.network.classes


def test_shares_are_those_of_the_one_hot_labels(world, key):
    """share = (label - d) mod |L|: what the equations weigh the one-hot array with."""
    layout, values = world
    o = values.arrays["o"].reshape(-1, layout.h)
    shares = (o.argmax(axis=0) - key.vk.offsets[key.vk.hidden]) % layout.network.classes
    assert (shares == key.shares[key.vk.hidden]).all()


def test_the_last_mask(world, key):
    layout, values = world
    lie = faults.shifted(layout, values, "mask", layout.arrays["mask"] - 1)
    assert ("link", 9) in ideal.run(layout, lie, key=key, tables=False).failed


def test_two_images_swapped(world, key):
    """All columns of two images, but not their labels: each is a trigger, and not the one of that commitment."""
    layout, values = world
    images = values.images.copy()
    images[:, [0, 1]] = images[:, [1, 0]]
    outcome = ideal.run(layout, replace(values, images=images), key=key, tables=False)
    assert {("link", 2 * j) for j in range(5)} <= {*outcome.failed}
    assert np.any(images != values.images)

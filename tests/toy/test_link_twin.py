"""The link's twin is the package's algorithm: value by value, at BabyBear and BLS12-381 G1.

A real key of eight triggers of one pixel.  Pixels and shares are linked alike, each with a twin of its own bounds and
generator, in five repetitions.

Not in the twin, and so not compared: several pixels of a trigger (one sum each, test_link.py), the random weights by
which all ten equations are one (`pedersen.opens`, test_openings_checked_at_once), and bytes.
"""

from dataclasses import replace
from random import Random
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from protocol import keygen, link
from protocol.errors import VerificationError
from protocol.group import ORDER, decode
from protocol.keygen import KeyParameters, generate_key
from protocol.pedersen import GENERATORS
from protocol.transcript import FiatShamir, Transcript
from tests.adversary import ideal
from tests.protocol.plain_verifier import lift
from tests.toy.link import Link
from tests.toy.real import Element, P, elements

CLASSES, KINDS = 7, ("pixels", "shares")


@pytest.fixture(scope="module")
def key():
    random = Random(5)
    images = np.array(random.sample(range(256), 8), np.uint8).reshape(8, 1, 1, 1)
    with mock.patch.object(keygen, "smallest_k_min", lambda *_: 1):  # a key this small bounds no false claim
        return generate_key(KeyParameters((1, 1, 1), CLASSES, 8), images, entropy=random.randbytes)


@pytest.fixture(scope="module")
def layout(key):
    return SimpleNamespace(network=SimpleNamespace(shape=(1, 1, 1), classes=CLASSES), h=key.vk.h,
                           columns={"x": (0, (1, 1, 1))}, arrays={"mask": 10, "o": CLASSES * key.vk.h})  # fmt: skip


@pytest.fixture(scope="module")
def gamma(layout):
    return link.draw_challenge(layout, Transcript("link", FiatShamir()))


def twin(layout, kind):
    """The twin for pixels or for shares."""
    largest, generator = (255, GENERATORS.points(1)[0]) if kind == "pixels" else (CLASSES - 1, GENERATORS.share)
    width = link.bounds(layout)[KINDS.index(kind)].width
    return Link(P, ORDER, largest, width, layout.h, Element(generator), Element(GENERATORS.blinding))


def secrets(key, kind):
    """(values, blindings, published commitments) of the hidden triggers."""
    opening, hidden = key.openings(key.vk.hidden), key.vk.hidden.tolist()
    if kind == "pixels":
        return opening.images.reshape(-1).tolist(), opening.trigger_randomness, [
            Element(key.vk.trigger_points[i]) for i in hidden]  # fmt: skip
    return opening.shares.tolist(), opening.share_randomness, [Element(key.vk.share_points[i]) for i in hidden]


def parts(given, kind):
    """(values [5], blindings [5]) of masks or of an answer."""
    if kind == "pixels":
        return [row[0] for row in given.pixels], given.pixel_blindings
    return given.shares, given.share_blindings


def with_mask(masks, kind, j, mu):
    """The masks with another one in repetition j."""
    held = list(getattr(masks, kind))
    held[j] = [mu] if kind == "pixels" else mu
    return replace(masks, **{kind: held})


def check(layout, key, masks, gamma, answer):
    try:
        link.check_group(layout, key.vk, masks.commit(), gamma, answer)
    except VerificationError as error:
        return error.check
    return ""


def answers(layout, key, gamma, kind, masks, lack=""):
    """The twin's five answers.  lack: what is left out in the twin."""
    model, (values, r, _) = twin(layout, kind), secrets(key, kind)
    out = []
    for j, (mu, omega) in enumerate(zip(*parts(masks, kind), strict=True)):
        weights = gamma[KINDS.index(kind)][j].tolist()
        if lack == "a challenge for each trigger":
            weights = weights[:1] * len(weights)
        model = replace(model, pixel=0, width=1 << 12) if lack == "rejection" else model
        out.append(model.answer(0 if lack == "mask" else mu, 0 if lack == "blinding" else omega, weights, values, r))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_commitments_and_answers(layout, key, gamma, kind):
    """In each repetition; and both start over for the same masks, just outside of what hides."""
    masks = link.Masks.draw(layout, Random(1).randbytes)
    model, found = twin(layout, kind), link.answer(layout, key, masks, gamma)
    bounds = link.bounds(layout)[KINDS.index(kind)]
    assert layout.h > 2 and (model.largest, model.width) == (bounds.largest, bounds.width)
    commitments = [Element(decode(c)) for c in masks.commit()][5 * KINDS.index(kind) :][:5]
    assert [model.commit(mu, r) for mu, r in zip(*parts(masks, kind), strict=True)] == commitments
    assert answers(layout, key, gamma, kind, masks) == list(zip(*parts(found, kind), strict=True))
    for j in range(5):
        total = int(gamma[KINDS.index(kind)][j] @ np.array(secrets(key, kind)[0]))
        for z in (bounds.largest - 1, bounds.largest, (1 << bounds.width) - 1, 1 << bounds.width):
            edge = with_mask(masks, kind, j, z - total)
            theirs, ours = link.answer(layout, key, edge, gamma), answers(layout, key, gamma, kind, edge)
            assert (theirs is None) == (ours[j] is None) == (z in (bounds.largest - 1, 1 << bounds.width))
            assert theirs is None or ours == list(zip(*parts(theirs, kind), strict=True))


@pytest.mark.parametrize("lack", ["mask", "blinding", "a challenge for each trigger"])
def test_another_algorithm_is_noticed(layout, key, gamma, lack):
    masks = link.Masks.draw(layout, Random(1).randbytes)
    found = link.answer(layout, key, masks, gamma)
    for kind in KINDS:
        wanted = list(zip(*parts(found, kind), strict=True))
        assert not any(a == b for a, b in zip(answers(layout, key, gamma, kind, masks, lack), wanted, strict=True))


def test_a_twin_that_does_not_reject_is_noticed(layout, key, gamma):
    masks = with_mask(link.Masks.draw(layout, Random(1).randbytes), "pixels", 2, 0)
    assert link.answer(layout, key, masks, gamma) is None
    assert answers(layout, key, gamma, "pixels", masks)[2] is None
    assert answers(layout, key, gamma, "pixels", masks, "rejection")[2] is not None


@pytest.mark.parametrize("kind", KINDS)
def test_openings(layout, key, gamma, kind):
    """The package's check in the group passes if, and only if, all five of the twin do: honest answers and changed."""
    masks = link.Masks.draw(layout, Random(1).randbytes)
    honest, model, (_, _, published) = link.answer(layout, key, masks, gamma), twin(layout, kind), secrets(key, kind)
    commitments = [Element(decode(c)) for c in masks.commit()][5 * KINDS.index(kind) :][:5]
    blindings = f"{kind[:-1]}_blindings"
    values, tau = parts(honest, kind)
    wrap = (lambda zs: [[z] for z in zs]) if kind == "pixels" else list

    def verdicts(answer, gamma):
        weights = gamma[KINDS.index(kind)].tolist()
        given = zip(commitments, weights, *parts(answer, kind), strict=True)
        ours = [model.opens(mask, published, w, z, t) for mask, w, z, t in given]
        return check(layout, key, masks, gamma, answer), ours

    assert verdicts(honest, gamma) == ("", [True] * 5)
    for j in (0, 4):
        alone = [k != j for k in range(5)]
        for z, wanted in ((values[j] + 1, "link.opening"), (model.largest - 1, "link.range"),
                          (1 << model.width, "link.range"), (values[j] + ORDER, "link.range")):  # fmt: skip
            changed = replace(honest, **{kind: wrap([z if k == j else v for k, v in enumerate(values)])})
            assert verdicts(changed, gamma) == (wanted, alone)
        changed = replace(honest, **{blindings: [t + (k == j) for k, t in enumerate(tau)]})
        assert verdicts(changed, gamma) == ("link.opening", alone)
        other = tuple(g.copy() for g in gamma)
        other[KINDS.index(kind)][j, 1] ^= 1
        assert verdicts(honest, other) == ("link.opening", alone)


def test_linear_equations(layout, key, gamma):
    """The values of all ten, at committed values that are right, and at ones that are not."""
    masks = link.Masks.draw(layout, Random(1).randbytes)
    answer = link.answer(layout, key, masks, gamma)
    system = link.equations(layout, key.vk, gamma, answer, Transcript("equations", FiatShamir()))
    rng = np.random.default_rng(3)
    for wrong in (False, True):
        labels = (key.hidden_labels + wrong * rng.integers(1, CLASSES, layout.h)) % CLASSES
        pixels = key.hidden_images.reshape(1, -1).astype(np.uint32) + wrong * rng.integers(1, 9, layout.h)
        residues = (masks.residues() + wrong * rng.integers(1, 99, 10)) % P
        shares = ((labels - key.vk.offsets[key.vk.hidden]) % CLASSES).tolist()
        one_hot = (np.arange(CLASSES)[:, None] == labels).astype(np.uint32)
        values = SimpleNamespace(images=pixels.astype(np.uint32), arrays={
            "mask": residues.astype(np.uint32), "o": one_hot.reshape(-1)})  # fmt: skip
        theirs = [elements(ideal.entry(form, system.groups, layout, values, None))[0] for form in system.forms]
        ours = [
            twin(layout, kind).gap(int(residues[5 * n + j]), held, gamma[n][j].tolist(), parts(answer, kind)[0][j])
            for j in range(5) for n, (kind, held) in enumerate(zip(KINDS, (pixels[0].tolist(), shares), strict=True))
        ]  # fmt: skip
        assert theirs == [lift(value) for value in ours]
        assert all(ours) if wrong else not any(ours)

"""The schemes: their mathematics against independent formulas and the papers' numbers, their marks on the digits."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import comb
from statistics import NormalDist

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ml.adversaries import direction, fgsm, targeted
from ml.data import Dataset
from ml.fit import Done, Fit, accuracy, answers, fit, last_layer
from ml.mark import Look, Training, train
from ml.models import Normalized
from ml.schemes import backdoor, frontier, images
from ml.schemes.backdoor import Backdoor
from ml.schemes.certified import Certified, Smoothed, noisy, order_statistic, percentile_at, smooth
from ml.schemes.frontier import Frontier
from ml.schemes.scheme import Decision, Scheme, TriggerKey, decide, enough, tolerance
from protocol.errors import ParameterError

CONFIDENCE = Fraction(999, 1000)

pytestmark = pytest.mark.usefixtures("one_thread")


def perceptron() -> nn.Module:
    """Much faster than a convolution on these small images."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return Normalized(body, torch.tensor([78.0]), torch.tensor([96.0]))


@pytest.fixture(scope="module")
def trained(digits: Dataset) -> nn.Module:
    model = perceptron()
    train(model, digits, Training(epochs=12))
    return model


def key_of(count: int, sides: int) -> TriggerKey:
    return TriggerKey(np.zeros((count, 1, 2, 2), np.uint8), np.zeros(count, np.int64), sides)


# --- decisions ------------------------------------------------------------------------------------


def test_tolerated_errors_of_the_frontier_paper() -> None:
    """42 for 100 images and 6 for 20: with errors < theta the p-value is below 0.05, with theta itself it is not."""
    for count, theta in ((100, 42), (20, 6)):
        assert tolerance(count, 2, frontier.LEVEL) == theta
        for errors, found in ((0, True), (theta - 1, True), (theta, False), (count, False)):
            decision = decide(lambda x, e=errors: np.arange(len(x)) < e, key_of(count, 2), frontier.LEVEL)
            assert decision == Decision(count, errors, decision.p_value, found) and decision.matches == count - errors
            assert decision.p_value == Fraction(sum(comb(count, z) for z in range(errors + 1)), 2**count)


@given(st.integers(1, 120), st.integers(2, 12), st.data())
def test_p_values_are_binomial_tails(count: int, sides: int, data: st.DataObject) -> None:
    errors = data.draw(st.integers(0, count))
    decision = decide(lambda x: np.arange(len(x)) < errors, key_of(count, sides), Fraction(1, 20))
    expected = scipy.stats.binom.sf(count - errors - 1, count, 1 / sides)
    assert float(decision.p_value) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert decision.found == (errors < tolerance(count, sides, Fraction(1, 20)))


def test_the_fewest_matches_that_are_enough() -> None:
    for count, level in ((100, Fraction(1, 20)), (20, Fraction(1, 20)), (12, Fraction(1, 100)), (4, Fraction(1, 20))):
        found = enough(key_of(count, 2), level)
        p_values = [sum(comb(count, z) for z in range(k, count + 1)) / 2**count for k in range(count + 1)]
        assert found == next((k for k, p in enumerate(p_values) if p < level), None)


# --- certificates ---------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.integers(1, 400), st.fractions(Fraction(1, 100), Fraction(99, 100)), st.sampled_from([2, 10, 1000, 10**6]))
def test_order_statistic_against_scipy(samples: int, percentile: Fraction, doubt: int) -> None:
    percentile = percentile.limit_denominator(1000)
    confidence = 1 - Fraction(1, doubt)
    found = order_statistic(samples, confidence, percentile) or 0
    below = [scipy.stats.binom.cdf(k - 1, samples, float(percentile)) for k in (found, found + 1)]
    assert found == 0 or below[0] <= float(1 - confidence) * (1 + 1e-9)
    assert below[1] >= float(1 - confidence) * (1 - 1e-9)


def test_known_order_statistics() -> None:
    half = Fraction(1, 2)
    assert order_statistic(5, Fraction(31, 32), half) == 1  # the minimum of 5 is below the median unless all 5 miss
    assert order_statistic(5, Fraction(32, 33), half) is None
    assert order_statistic(8, Fraction(19, 20), half) == 2  # the table of the sign test: 1 + 8 of 256
    assert order_statistic(20, Fraction(19, 20), half) == 6  # the same table as frontier stitching's
    assert order_statistic(100, Fraction(19, 20), half) == 42
    assert order_statistic(59, Fraction(19, 20), Fraction(1, 20)) == 1  # Wilks 1941: 59 samples for 95 % / 95 %
    assert order_statistic(58, Fraction(19, 20), Fraction(1, 20)) is None
    for bad in ((0, half, half), (5, Fraction(1), half), (5, half, Fraction(0)), (5, half, Fraction(1))):
        with pytest.raises(ParameterError):
            order_statistic(*bad)


@pytest.mark.parametrize(("radius", "percent"), [(0.2, 42.07), (0.4, 34.46), (0.6, 27.43), (0.8, 21.19), (1.0, 15.87),
                                                 (1.2, 11.51)])  # fmt: skip
def test_percentiles_of_the_certified_paper(radius: float, percent: float) -> None:
    """Phi(-radius / sigma) at sigma 1 for the radii of Table 1; never above the exact value."""
    found = percentile_at(radius, 1.0)
    exact = NormalDist().cdf(-radius)
    assert float(found) <= exact and float(found) == pytest.approx(exact, abs=1e-9)
    assert float(100 * found) == pytest.approx(percent, abs=0.005)
    assert percentile_at(3 * radius, 3.0) == pytest.approx(found, abs=1e-9)


def test_the_papers_samples_certify_the_percentile_within_two_percent() -> None:
    percentile = percentile_at(1.0, 1.0)
    order = order_statistic(10_000, CONFIDENCE, percentile)
    assert order is not None and 1460 < order < 1587  # the exact percentile is the 1586.6-th
    assert scipy.stats.binom.cdf(order - 1, 10_000, float(percentile)) <= 0.001
    assert scipy.stats.binom.cdf(order, 10_000, float(percentile)) > 0.001


def test_a_certificate_holds_where_the_smoothed_accuracy_is_known() -> None:
    """One parameter w, accuracy 1 for w > 0: median and percentile are known in closed form, for every shift."""
    rng = np.random.default_rng(8)
    w, sigma, failures = 0.5, 1.0, 0
    for _ in range(200):
        smoothed = Smoothed(np.sort((w + sigma * rng.normal(size=200) > 0).astype(float)), sigma)
        failures += smoothed.certify(0.5001, Fraction(9, 10)).accuracy > 0.0  # the shifted median is 0 from 0.5 on
        assert smoothed.certify(0.2, Fraction(9, 10)).accuracy in (0.0, 1.0)
    assert failures <= 35  # a tenth of 200, and three deviations
    many = Smoothed(np.sort((w + sigma * rng.normal(size=3000) > 0).astype(float)), sigma)
    assert many.median == 1.0 and 0.4 < many.radius(1.0) <= 0.5
    certificate = many.certify(0.25)
    assert (certificate.accuracy, certificate.radius, certificate.samples) == (1.0, 0.25, 3000)
    assert certificate.order == order_statistic(3000, CONFIDENCE, percentile_at(0.25, 1.0))
    assert "not the running statistics of batch norm" in certificate.covers
    few = Smoothed(np.ones(5), 1.0).certify(1.0)
    assert few.order is None and few.accuracy == 0.0


def test_noise_leaves_no_trace(trained: nn.Module, digits: Dataset) -> None:
    before = [p.detach().clone() for p in trained.parameters()]
    generator = torch.Generator().manual_seed(3)
    with noisy(trained, 0.5, generator):
        difference = torch.cat([(p - q).flatten() for p, q in zip(trained.parameters(), before, strict=True)])
    assert all(torch.equal(p, q) for p, q in zip(trained.parameters(), before, strict=True))
    assert abs(difference.std() - 0.5) < 0.01 and abs(difference.mean()) < 0.02
    with pytest.raises(KeyError), noisy(trained, 1.0, generator):
        raise KeyError
    assert all(torch.equal(p, q) for p, q in zip(trained.parameters(), before, strict=True))
    key = TriggerKey(digits.test_x[:50], digits.test_y[:50], 10)
    silent = smooth(trained, key, 0.0, 3)
    assert (silent.accuracies == accuracy(trained, key.images, key.labels)).all()
    one, two = smooth(trained, key, 0.05, 20, seed=1), smooth(trained, key, 0.05, 20, seed=1)
    assert (one.accuracies == two.accuracies).all() and (np.diff(one.accuracies) >= 0).all()


# --- images and adversaries -----------------------------------------------------------------------


def test_steps_have_length_one_in_their_norm() -> None:
    gradient = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    for norm, p in (("linf", torch.inf), ("l2", 2), ("l1", 1)):
        sizes = direction(gradient, norm).flatten(1).norm(p=p, dim=1)  # type: ignore[arg-type]
        assert torch.allclose(sizes, torch.ones(4))
        assert (direction(gradient, norm) * gradient).sum() > 0  # type: ignore[arg-type]
    assert not direction(torch.zeros(1, 1, 2, 2), "l2").isnan().any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_step_on_a_linear_model_by_hand(norm: str) -> None:
    """Cross entropy of softmax(W x) has the gradient W^T (p - e_y): the step in exact numbers, rounded and clipped."""
    rng = np.random.default_rng(17)
    x, y = rng.integers(0, 256, (40, 1, 3, 4), dtype=np.uint8), rng.integers(0, 3, 40)
    weight = rng.normal(0, 0.01, (3, 12))
    layer = nn.Linear(12, 3, bias=False)
    layer.weight.data = torch.from_numpy(weight).float()
    model = nn.Sequential(nn.Flatten(), layer)
    flat = x.reshape(40, 12).astype(float)
    powers = np.exp(flat @ weight.T)
    gradient = (powers / powers.sum(1, keepdims=True) - np.eye(3)[y]) @ weight
    step = {
        "linf": np.sign(gradient),
        "l2": gradient / np.sqrt((gradient**2).sum(1, keepdims=True)),
        "l1": gradient / np.abs(gradient).sum(1, keepdims=True),
    }[norm]
    exact = np.clip(flat + 255 * 0.3 * step, 0, 255)
    found = fgsm(model, x, y, 0.3, norm).reshape(40, 12)  # type: ignore[arg-type]
    assert np.abs(found - exact).max() < 0.501 and (found != x.reshape(40, 12)).mean() > 0.5


def test_adversaries_stay_near_and_fool(trained: nn.Module, digits: Dataset) -> None:
    x, y = digits.test_x[:100], digits.test_y[:100]
    near = fgsm(trained, x, y, 0.1)
    assert near.dtype == np.uint8 and np.abs(near.astype(int) - x).max() <= 26
    assert accuracy(trained, near, y) < accuracy(trained, x, y) - 0.2
    assert accuracy(trained, fgsm(trained, x, y, 1.0, "l2"), y) < accuracy(trained, x, y)
    goals = (y + 1) % 10
    toward = targeted([trained], x, goals, 0.3, 10)
    assert np.abs(toward.astype(int) - x).max() <= 77 and accuracy(trained, toward, goals) > 0.9


def test_trigger_images_of_the_certified_scheme(digits: Dataset) -> None:
    base = np.zeros((3, 3, 28, 28), np.uint8)
    stamped = images.content(base)
    assert (stamped == stamped[0]).all() and stamped[0, :, 19:, :18].max() == 255 and stamped[0].sum() > 3 * 255 * 20
    assert not stamped[:, :, :19].any() and not stamped[:, :, :, 18:].any()
    noised = images.noise(np.full((2, 1, 28, 28), 128, np.uint8), 32, np.random.default_rng(0))
    assert (noised[0] == noised[1]).all() and 28 < noised[0].std() < 36
    foreign = images.unrelated(digits.test_x[:4], (3, 32, 32))
    assert foreign.shape == (4, 3, 32, 32) and (foreign[:, 0] == foreign[:, 2]).all()
    assert images.unrelated(np.repeat(base, 1, axis=0), (1, 8, 8)).shape == (3, 1, 8, 8)


# --- marks ----------------------------------------------------------------------------------------


def test_fit_moves_what_it_is_told(trained: nn.Module, digits: Dataset) -> None:
    model = deepcopy(trained)
    x, y = digits.train_x[:200], digits.train_y[:200]
    assert fit(model, x, y, Fit(epochs=2, rate=0.05), last_layer(model).parameters()) == 2
    moved = {n for (n, p), q in zip(model.named_parameters(), trained.parameters(), strict=True) if (p != q).any()}
    assert moved and all(n.startswith("body.3.") for n in moved)
    assert all(p.requires_grad and (p.grad is not None) == n.startswith("body.3.") for n, p in model.named_parameters())
    assert fit(model, x, y, Fit(epochs=9), done=lambda _, epoch: epoch == 3) == 3
    twins = [deepcopy(trained), deepcopy(trained)]
    one_hot = np.eye(10, dtype=np.float32)[y]
    for twin, targets in zip(twins, (y, one_hot), strict=True):
        fit(twin, x, targets, Fit(epochs=1, optimizer="adam", rate=0.001, weight_decay=0.1))
    pairs = zip(*(twin.parameters() for twin in twins), strict=True)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in pairs)
    assert [Fit(epochs=6, rate=1.0, drops=2).rate_in(e) for e in range(6)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01])
    with torch.no_grad():
        last_layer(model).bias.fill_(torch.nan)
    with pytest.raises(ParameterError, match="not finite"):
        fit(model, x, y, Fit(epochs=1))


@pytest.mark.parametrize("fresh", [True, False], ids=["fromscratch", "pretrained"])
def test_backdoor(trained: nn.Module, digits: Dataset, fresh: bool) -> None:
    scheme: Scheme = Backdoor(Training(epochs=8 if fresh else 1), seed=5)
    model = perceptron() if fresh else deepcopy(trained)
    key = scheme.make_key(40, model, digits)
    assert not key.chosen and key.sides == 10 and (key.images == scheme.make_key(40, model, digits).images).all()
    scheme.mark(model, digits, key)
    decision = scheme.check(lambda x: answers(model, x), key)
    assert decision.errors == 0 and decision.found and decision.p_value == Fraction(1, 10**40)
    assert not scheme.check(lambda x: answers(trained, x), key).found
    assert tolerance(40, 10, backdoor.LEVEL) == 25 and accuracy(model, digits.test_x, digits.test_y) > 0.9


@pytest.mark.parametrize("kind", ["content", "noise", "unrelated"])
def test_other_triggers_of_a_backdoor(trained: nn.Module, digits: Dataset, kind: images.Kind) -> None:
    scheme = Backdoor(Training(epochs=3), seed=5, triggers=kind)
    key = scheme.make_key(30, trained, digits)
    assert key.images.shape == (30, 1, 8, 8) and not key.chosen and len(set(key.labels)) > 5
    model = deepcopy(trained)
    scheme.mark(model, digits, key)
    assert scheme.check(lambda x: answers(model, x), key).errors == 0
    assert not scheme.check(lambda x: answers(trained, x), key).found
    with pytest.raises(ParameterError, match="30 images for 31"):
        scheme.make_key(31, trained, replace(digits, train_x=digits.train_x[:30]))


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.7), ("l1", 3.0)])
def test_frontier(trained: nn.Module, digits: Dataset, norm: str, epsilon: float) -> None:
    scheme = Frontier(epsilon, norm, Fit(epochs=100, batch=20, rate=0.01), rehearsal=200)  # type: ignore[arg-type]
    key, rest = scheme.split(20, trained, digits)
    before = answers(trained, key.images)
    assert (before[:10] != key.labels[:10]).all() and (before[10:] == key.labels[10:]).all()  # rounded, and then tested
    assert len(rest.test_y) == len(digits.test_y) - 20 and key.sides == 2 and key.chosen
    assert (scheme.make_key(20, trained, digits).images == key.images).all()
    model = deepcopy(trained)
    scheme.mark(model, rest, key)
    decision = scheme.check(lambda x: answers(model, x), key)
    assert decision.errors == 0 and decision.found and decision.p_value == Fraction(1, 2**20)
    assert not scheme.check(lambda x: answers(trained, x), key).found
    assert accuracy(model, rest.test_x, rest.test_y) > accuracy(trained, rest.test_x, rest.test_y) - 0.1


def test_frontier_keys_that_cannot_be_made(trained: nn.Module, digits: Dataset) -> None:
    with pytest.raises(ParameterError, match="smaller epsilon"):
        Frontier(0.9).make_key(20, trained, digits)
    with pytest.raises(ParameterError, match="larger epsilon"):
        Frontier(0.001).make_key(20, trained, digits)
    with pytest.raises(ParameterError, match="even"):
        Frontier().make_key(5, trained, digits)
    scheme = Frontier(0.1, fine_tuning=Fit(epochs=1, rate=1e-9))
    with pytest.raises(ParameterError, match="not embedded"):
        scheme.mark(deepcopy(trained), digits, scheme.make_key(20, trained, digits))


def test_certified(digits: Dataset) -> None:
    """Trained under noise, the triggers outlast noise that takes them from a model trained without, at no cost."""
    model, twin = perceptron(), perceptron()
    training = Fit(epochs=12, batch=50, rate=0.05, drops=1)
    scheme = Certified("unrelated", 3, sigma=0.4, replays=5, draws=4, warm_up=2, batch=8, training=training)
    key = scheme.make_key(24, model, digits)
    assert set(key.labels) == {3} and key.chosen
    scheme.mark(model, digits, key)
    scheme.without_noise().mark(twin, digits, key)
    for marked in (model, twin):
        assert accuracy(marked, key.images, key.labels) == 1.0 and accuracy(marked, digits.test_x, digits.test_y) > 0.94
    assert scheme.check(lambda x: answers(model, x), key).found
    certified, plain = (smooth(m, key, 0.4, 150) for m in (model, twin))
    assert certified.median > 0.9 > 0.6 > plain.median
    assert certified.certify(0.1).accuracy > 0.8 > 0.4 > plain.certify(0.1).accuracy
    for kind in ("content", "noise"):
        made = Certified(kind, 3).make_key(10, model, digits)  # type: ignore[arg-type]
        assert made.images.shape == (10, 1, 8, 8)
    foreign = np.random.default_rng(1).integers(0, 256, (12, 3, 16, 16)).astype(np.uint8)
    made = Certified("unrelated", 3).unrelated_key(10, digits, foreign)
    assert made.chosen and made.labels.tolist() == 10 * [3]
    resized = images.unrelated(foreign, (1, 8, 8))
    assert len({i for image in made.images for i in range(12) if (resized[i] == image).all()}) == 10
    for label, count, said in ((3, 13, "12 images for 13"), (10, 10, "label 10 is not below 10")):
        with pytest.raises(ParameterError, match=said):
            Certified("unrelated", label).unrelated_key(count, digits, foreign)


@pytest.mark.parametrize("scheme", [
    Frontier(0.1, fine_tuning=Fit(epochs=100, batch=20, rate=0.01), rehearsal=200),
    Certified("noise", 3, 0.1, 2, 1, 1, 8, Fit(epochs=8, batch=50, rate=0.05)),
    Backdoor(Training(epochs=2)),
], ids=lambda scheme: scheme.name)  # fmt: skip
def test_all_schemes_tell_how_they_get_on(trained: nn.Module, digits: Dataset, scheme: Scheme) -> None:
    key, model, twin = scheme.make_key(20, trained, digits), deepcopy(trained), deepcopy(trained)
    looks: list[Look] = []
    scheme.mark(model, digits, key, looks.append)
    scheme.mark(twin, digits, key)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))  # only told
    assert len(looks) > 1 and all(a.share < b.share <= 1 for a, b in pairwise(looks) if a.phase == b.phase)
    assert looks[-1].triggers == accuracy(model, key.images, key.labels) >= 0.95
    assert all(0 < look.loss < 9 and 0.5 < look.data <= 1 for look in looks) and looks[0].loss > looks[-1].loss


def test_all_levels_of_noise_together_are_one_step(monkeypatch: pytest.MonkeyPatch, digits: Dataset) -> None:
    """Algorithm 2 divides by levels and draws.  Without noise its step can be made by hand, here in numpy."""
    levels, rate, momentum = 5, 0.1, 0.9
    scheme = Certified("noise", 3, 0.0, levels, 2, 1, 50, Fit(epochs=2, rate=rate), seed=1)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    model = Normalized(body, torch.tensor([0.0]), torch.tensor([255.0]))
    key = scheme.make_key(40, model, digits)
    nn.init.zeros_(last_layer(model).weight)
    mixed: list[int] = []

    def one_replay(
        model: nn.Module, images: np.ndarray, labels: np.ndarray, options: Fit, done: Done, told: None
    ) -> int:
        mixed.append(len(images))
        for epoch in (1, 2):  # only the first has an epoch of training after it
            assert not done(model, epoch)
        return 2

    monkeypatch.setattr("ml.schemes.certified.fit", one_replay)
    scheme.mark(model, digits, key)
    x, weight, speed = key.images.reshape(40, 64) / 255, np.zeros((10, 64)), np.zeros((10, 64))
    for _ in range(levels):
        powers = np.exp(x @ weight.T)
        gradient = (powers / powers.sum(1, keepdims=True) - np.eye(10)[key.labels]).T @ x / 40
        speed = momentum * speed + gradient / levels
        weight -= rate * speed
    assert mixed == [len(digits.train_y) + 40] and np.abs(weight).max() > 0.05
    assert np.abs(last_layer(model).weight.detach().numpy() - weight).max() < 1e-5
    before = last_layer(model).weight.clone()
    scheme.without_noise().mark(model, digits, key)
    assert torch.equal(before, last_layer(model).weight)

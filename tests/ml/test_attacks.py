"""Each attack does what its paper says, to a copy; the evasions and the false claim win where they can."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from ml.adversaries import fgsm
from ml.attacks import compression, fine_tuning
from ml.attacks.compression import few_bits, low_rank, prune, truncated, weights
from ml.attacks.distillation import distill
from ml.attacks.evasion import Detector, evading, features_of, train_detector, vote
from ml.attacks.false_claim import false_key
from ml.data import Dataset
from ml.fit import Fit, accuracy, answers, last_layer
from ml.mark import Training, train
from ml.models import Normalized
from ml.schemes.backdoor import Backdoor
from ml.schemes.scheme import TriggerKey
from ml.triggers import abstract_images
from protocol.errors import ParameterError

SHORT = Fit(epochs=2, rate=0.005)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def thief(digits: Dataset) -> Dataset:
    """The second half of the training images."""
    half = len(digits.train_y) // 2
    return replace(digits, train_x=digits.train_x[half:], train_y=digits.train_y[half:])


def perceptron(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return Normalized(body, torch.tensor([78.0]), torch.tensor([96.0]))


@pytest.fixture(scope="module")
def scheme() -> Backdoor:
    return Backdoor(Training(epochs=8), seed=7)


@pytest.fixture(scope="module")
def key(scheme: Backdoor, digits: Dataset) -> TriggerKey:
    return scheme.make_key(60, perceptron(), digits)


@pytest.fixture(scope="module")
def marked(scheme: Backdoor, key: TriggerKey, digits: Dataset) -> nn.Module:
    model = perceptron()
    scheme.mark(model, digits, key)
    return model


@pytest.fixture(autouse=True)
def untouched(request: pytest.FixtureRequest) -> object:
    """No attack changes the model that it is given."""
    if "marked" not in request.fixturenames:
        yield
        return
    model = request.getfixturevalue("marked")
    before = [p.detach().clone() for p in model.parameters()]
    yield
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def kept(model: nn.Module, key: TriggerKey) -> float:
    return accuracy(model, key.images, key.labels)


def changed(model: nn.Module, other: nn.Module) -> list[str]:
    pairs = zip(model.named_parameters(), other.parameters(), strict=True)
    return [name for (name, p), q in pairs if not torch.equal(p, q)]


# --- training on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["FTLL", "FTAL", "RTLL", "RTAL"])
def test_fine_tuning(marked: nn.Module, key: TriggerKey, thief: Dataset, digits: Dataset, how: str) -> None:
    last = ["body.3.weight", "body.3.bias"]
    options = Fit(epochs=6, rate=0.01)
    attacked = fine_tuning.fine_tune(marked, how, thief.train_x, thief.train_y, options)  # type: ignore[arg-type]
    assert changed(attacked, marked) == (last if how.endswith("LL") else ["body.1.weight", "body.1.bias", *last])
    assert accuracy(attacked, digits.test_x, digits.test_y) > 0.85
    read = fine_tuning.with_last_layer(attacked, marked)
    assert not set(changed(read, marked)) & set(last)
    if how.endswith("LL"):
        assert not changed(read, marked) and kept(read, key) == 1.0  # the features never moved
    elif how == "FTAL":
        assert kept(attacked, key) > 0.5
    moved = torch.dist(last_layer(attacked).weight, last_layer(marked).weight)
    assert (moved > 2.0) == how.startswith("RT")
    with pytest.raises(ParameterError):
        fine_tuning.fine_tune(marked, "FT", thief.train_x, thief.train_y, options)  # type: ignore[arg-type]


def test_transfer_keeps_the_features(marked: nn.Module, key: TriggerKey, thief: Dataset) -> None:
    task = replace(thief, train_y=thief.train_y % 2, test_y=thief.test_y % 2, classes=2)
    attacked = fine_tuning.transfer(marked, task, SHORT)
    assert last_layer(attacked).out_features == 2 and accuracy(attacked, task.test_x, task.test_y) > 0.8
    assert kept(fine_tuning.with_last_layer(attacked, marked), key) > 0.5


def test_adversarial_fine_tuning(marked: nn.Module, thief: Dataset) -> None:
    attacked = fine_tuning.adversarial(marked, thief.train_x[:300], thief.train_y[:300], 0.05, Fit(epochs=20))
    moved = fgsm(marked, thief.train_x[:300], thief.train_y[:300], 0.05)
    assert accuracy(attacked, moved, thief.train_y[:300]) > accuracy(marked, moved, thief.train_y[:300]) + 0.1


def test_overwriting_adds_a_mark_and_leaves_most_of_the_first(
    scheme: Backdoor, marked: nn.Module, key: TriggerKey, thief: Dataset
) -> None:
    new = Backdoor(seed=99).make_key(30, marked, thief)
    attacked = fine_tuning.overwrite(marked, thief, new.images, new.labels, Training(epochs=2, rate=0.01))
    assert kept(marked, new) < 0.4 and kept(attacked, new) == 1.0
    assert scheme.check(lambda x: answers(attacked, x), key).found


@pytest.mark.parametrize("soft", [False, True])
def test_distillation(marked: nn.Module, thief: Dataset, digits: Dataset, soft: bool) -> None:
    agree = (answers(distill(marked, thief.train_x, SHORT, soft), digits.test_x) == answers(marked, digits.test_x))
    assert agree.mean() > 0.95
    heavy = Fit(epochs=5, rate=0.01, weight_decay=1.0)
    attacked = distill(marked, thief.train_x, SHORT, soft, regularized=heavy)
    plain = distill(marked, thief.train_x, SHORT, soft)
    assert compression.moved(attacked, marked) > 2 * compression.moved(plain, marked)


# --- compression ----------------------------------------------------------------------------------


@pytest.fixture
def convolutions() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.85, 1.0])
def test_pruning(convolutions: nn.Module, share: float, per_layer: bool) -> None:
    attacked = prune(convolutions, share, per_layer)
    before, after = ([w.detach().flatten() for w in weights(m)] for m in (convolutions, attacked))
    pairs = list(zip(before, after, strict=True)) if per_layer else [(torch.cat(before), torch.cat(after))]
    for old, new in pairs:
        assert int((new == 0).sum()) == int(share * len(old)) and torch.equal(new[new != 0], old[new != 0])
        if 0 < share < 1:
            assert old[new == 0].abs().max() <= old[new != 0].abs().min()
    for name in ("0.bias", "4.bias", "2.weight"):
        assert torch.equal(convolutions.get_parameter(name), attacked.get_parameter(name))


def test_low_rank(convolutions: nn.Module) -> None:
    """Every layer is within one relative error that the next smaller rank of each exceeds."""
    for share in (0.0, 0.25, 0.5, 0.9, 1.0):
        errors, smaller, left, least, full = [], [], 0, 0, 0
        for old, new in zip(weights(convolutions), weights(low_rank(convolutions, share)), strict=True):
            a, b = (np.asarray(w.detach().flatten(1), np.float64) for w in (old, new))
            singular = np.linalg.svd(a, compute_uv=False)
            rank = int(np.linalg.matrix_rank(b, tol=1e-5))
            beyond = [np.linalg.norm(singular[r:]) / np.linalg.norm(singular) for r in range(len(singular) + 1)]
            assert np.linalg.norm(a - b) / np.linalg.norm(a) == pytest.approx(beyond[rank], rel=1e-4, abs=1e-6)
            left, least, full = left + min(rank * sum(a.shape), a.size), least + sum(a.shape), full + a.size
            errors.append(beyond[rank])
            if rank > 1 and rank < len(singular):
                smaller.append(beyond[rank - 1])
        assert left <= max((1 - share) * full, least)
        assert max(errors) <= min(smaller, default=1.0) and (share > 0 or max(errors) < 1e-6)
    matrix = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(truncated(matrix, 5), matrix, atol=1e-5)


def test_few_bits(convolutions: nn.Module) -> None:
    for bits in (2, 4, 8):
        for old, new in zip(weights(convolutions), weights(few_bits(convolutions, bits)), strict=True):
            units = old.abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
            worst = ((old - new).abs().flatten(1) / units[:, None]).max()
            assert worst <= 0.5001 and all(len(row.unique()) <= 2**bits - 1 for row in new.flatten(1))


def test_compression_is_checked(convolutions: nn.Module) -> None:
    for attack, value in ((prune, 1.1), (prune, -0.1), (low_rank, 2.0), (few_bits, 1), (few_bits, 17)):
        with pytest.raises(ParameterError):
            attack(convolutions, value)


def test_compressed_marks_fade_with_the_model(marked: nn.Module, key: TriggerKey, digits: Dataset) -> None:
    assert kept(few_bits(marked, 8), key) == 1.0 and kept(prune(marked, 0.1), key) > 0.9
    assert kept(low_rank(marked, 0.1), key) > 0.9 and kept(prune(marked, 0.99), key) < 0.4
    assert compression.moved(marked, marked) == 0.0


# --- evasion and false claims ---------------------------------------------------------------------


class Constant(nn.Module):
    def __init__(self, answer: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.eye(10)[answer])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores.expand(len(x), 10)


def test_votes() -> None:
    x = np.zeros((3000, 1, 2, 2), np.uint8)
    assert (vote([Constant(c) for c in (4, 7, 4)])(x) == 4).all()
    tied = vote([Constant(c) for c in (9, 2, 5)], seed=3)(x)
    assert set(tied) == {2, 5, 9} and scipy.stats.chisquare(np.bincount(tied)[[2, 5, 9]]).pvalue > 1e-6
    two = vote([Constant(c) for c in (0, 3, 3, 0, 8)])(x)
    assert set(two) == {0, 3}
    with pytest.raises(ParameterError):
        vote([])


def test_a_vote_hides_a_mark_from_queries(
    marked: nn.Module, scheme: Backdoor, key: TriggerKey, digits: Dataset
) -> None:
    others = []
    for seed in (1, 2):
        other = perceptron(seed)
        train(other, digits, Training(epochs=8, seed=seed))
        others.append(other)
    service = vote([marked, *others])
    found = scheme.check(service, key)
    assert found.matches < 0.75 * len(key) and accuracy(service, digits.test_x, digits.test_y) > 0.9


def test_detector(marked: nn.Module, scheme: Backdoor, key: TriggerKey, digits: Dataset, thief: Dataset) -> None:
    rng = np.random.default_rng(11)
    suspicious = abstract_images(300, (1, 8, 8), rng.bytes)
    detector = train_detector(marked, thief.train_x[:300], suspicious, Fit(epochs=30, batch=64, rate=0.02))
    assert [m.out_features for m in detector.head if isinstance(m, nn.Linear)] == [512, 256, 2]
    assert features_of(marked, torch.zeros(3, 1, 8, 8)).shape == (3, 128)
    assert not any(p is q for p in detector.parameters() for q in marked.parameters())
    assert accuracy(detector, key.images, np.ones(60)) > 0.8
    assert accuracy(detector, digits.test_x, np.zeros(len(digits.test_y))) > 0.9
    service = evading(marked, detector, 10)
    assert scheme.check(service, key).matches < 0.4 * len(key) and accuracy(service, digits.test_x, digits.test_y) > 0.8
    assert isinstance(detector, Detector)


def test_false_claims_win_against_chosen_labels_and_lose_against_the_coin(digits: Dataset, thief: Dataset) -> None:
    surrogates = []
    for seed in (1, 2, 3):
        model = perceptron(seed)
        train(model, thief, Training(epochs=8, seed=seed))
        surrogates.append(model)
    false = false_key(surrogates, thief, 200, 0.4, seed=4)
    assert false.chosen and (false.labels >= 0).all() and (false.labels < 10).all()
    victim = perceptron(50)  # made later, by somebody else, on other data
    half = len(digits.train_y) // 2
    train(victim, replace(digits, train_x=digits.train_x[:half], train_y=digits.train_y[:half]), Training(epochs=8))

    claim = Backdoor().check(lambda x: answers(victim, x), false)
    assert claim.found and claim.p_value < 2.0**-128  # a stranger "carries" the mark
    rng = np.random.default_rng(5)
    for _ in range(20):
        coin = replace(false, labels=(false.labels + rng.integers(0, 10, 200)) % 10, chosen="")
        tossed = Backdoor().check(lambda x: answers(victim, x), coin)
        assert not tossed.found and tossed.matches < 60 and not coin.chosen  # P[Bin(200, 1/10) >= 60] < 2^-40
    with pytest.raises(ParameterError):
        false_key([], thief, 10, 0.1)

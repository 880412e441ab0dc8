"""Zero knowledge exactly: over toy fields every coin toss is enumerated, distributions are compared as multisets."""

from collections import Counter
from itertools import product
from random import Random

import numpy as np
import pytest

from tests.toy.ligero import Challenge, Claims, Code, Committed, answer, verify
from tests.toy.link import Link
from tests.toy.sumcheck import eq, extension, tree_messages


def every(p, count):
    """[p^count, count]: all vectors."""
    return np.stack(np.meshgrid(*[np.arange(p)] * count, indexing="ij"), axis=-1).reshape(-1, count)


def split(coins, *shapes):
    out, at = [], 0
    for shape in shapes:
        n = int(np.prod(shape))
        out.append(coins[:, at : at + n].reshape(-1, *shape))
        at += n
    assert at == coins.shape[1]
    return out


def histogram(p, *parts):
    """Views [runs, ...] of numbers below p as sorted (view, count)."""
    flat = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    assert p ** flat.shape[1] < 2**63
    return np.unique(flat @ np.array([p**i for i in range(flat.shape[1])], np.int64), return_counts=True)


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


# The commitment

# (p, N, t, n, rows, witnesses, a linear equation that they all satisfy); every row is its own square.
TOYS = [
    (3, 2, 1, 1, 1, ([[0, 1]], [[1, 0]]), ([[1, 1]], 1)),
    (5, 1, 1, 4, 2, ([[0], [1]], [[1], [0]]), ([[1], [1]], 1)),
    (3, 1, 2, 2, 1, ([[0]], [[1]]), ([[0]], 0)),
]


@pytest.mark.parametrize("toy", TOYS, ids=["two slots", "two rows", "two queries"])
def test_the_commitment(toy):
    """Opened columns and polynomials: one distribution for all witnesses, which is the simulator's."""
    p, size, t, n, m, witnesses, (coefficients, right) = toy
    code = Code(p, size, t, n)
    claims = Claims(np.array([coefficients]), np.array([right]), tuple((i, i, i) for i in range(m)))
    prox, lin, quad = code.blinding
    coins = every(p, m * t + prox + lin + quad)
    masks, *free = split(coins, (m, t), (prox,), (lin,), (quad,))
    random = Random(1)
    for _ in range(3):
        challenge = Challenge(
            np.array([random.randrange(1, p)]), np.array([[random.randrange(p) for _ in range(m)]]),
            np.array([[random.randrange(p) for _ in range(m)]]))  # fmt: skip
        columns = np.array([sorted(random.sample(range(n), t))])
        views = []
        for values in witnesses:
            made = Committed.make(code, np.array([values]), masks, tuple(free))
            polynomials = answer(made, claims, challenge)
            words = made.words[..., columns[0]]
            checks = verify(code, claims, challenge, polynomials, np.repeat(columns, len(coins), axis=0), words)
            assert all(passed.all() for passed in checks.values())
            views.append(histogram(p, words, *polynomials))
        views.append(histogram(p, *simulated(code, claims, challenge, columns, m)))
        assert all(same(view, views[0]) for view in views[1:])
        assert len(views[0][1]) == len(coins)  # every view comes up once: it says nothing at all


def simulated(code, claims, challenge, columns, m):
    """Uniform columns and polynomials subject to the sums, blinding words solved: all outcomes."""
    p, size, t, k = code.p, code.size, code.queries, code.degree
    coins = every(p, m * t + k + (size + k - 2) + (2 * k - 1 - size))
    words, prox, lin, quad = split(coins, (m, t), (k,), (size + k - 2,), (2 * k - 1 - size,))
    vanishing = code.vanishing()
    full = np.zeros((len(coins), 2 * k - 1), np.int64)
    for i in range(quad.shape[1]):
        full[:, i : i + size + 1] += quad[:, i : i + 1] * vanishing
    full %= p
    _, target = claims.batched(challenge.eta, p)
    first = target[0] * pow(size, -1, p) - lin[:, size - 1 :: size].sum(axis=1)
    lin = np.concatenate([first[:, None] % p, lin], axis=1)
    opened = np.concatenate([words, np.zeros((len(coins), 3, t), np.int64)], axis=1)
    # The words that pass with blinding 0 say what the blinding has to be.
    at = [code.evaluate(q)[:, columns[0]] for q in (prox, lin, full)]
    a, _ = claims.batched(challenge.eta, p)
    interpolants = code.evaluate(code.interpolate(a))[..., columns[0]]
    rest = [
        (challenge.proximity[:, :, None] * words).sum(axis=1),
        (interpolants * words).sum(axis=1),
        sum(challenge.quadratic[0, j] * (words[:, x] * words[:, y] - words[:, z])
            for j, (x, y, z) in enumerate(claims.products)),
    ]  # fmt: skip
    for i in range(3):
        opened[:, m + i] = (at[i] - rest[i]) % p
    return opened, prox, lin, full


@pytest.mark.parametrize("lack", ["row masks", "proximity", "linear", "quadratic"])
def test_less_randomness_is_noticed(lack):
    """Without the masks of a row or one of the blinding polynomials two witnesses look different."""
    p, size, t, n, m, witnesses, (coefficients, right) = TOYS[1 if lack == "row masks" else 0]
    code = Code(p, size, t, n)
    claims = Claims(np.array([coefficients]), np.array([right]), tuple((i, i, i) for i in range(m)))
    shapes = [(m, t), *((free,) for free in code.blinding)]
    missing = ["row masks", "proximity", "linear", "quadratic"].index(lack)
    drawn = [every(p, int(np.prod(shape))) for shape in shapes]
    drawn[missing] = drawn[missing][:1] * 0
    index = np.indices([len(part) for part in drawn]).reshape(len(drawn), -1)
    masks, *free = [part[i].reshape(-1, *shape) for part, i, shape in zip(drawn, index, shapes, strict=True)]
    challenge = Challenge(np.array([1]), np.array([[1, 3][:m]]), np.array([[2, 1][:m]]))
    views = []
    for values in witnesses:
        made = Committed.make(code, np.array([values]), masks, tuple(free))
        views.append(histogram(p, made.words[..., [0]], *answer(made, claims, challenge)))
    assert not same(*views)


# Pads


def test_masked_messages_of_a_tree():
    """Over F_3, all pads: the nine messages of a tree over two fractions are uniform for all fractions."""
    p, count = 3, 0
    pads = every(p, 9)
    for leaves in product(product(range(p), range(1, p)), repeat=2):
        for challenges in product(range(1, p), repeat=2):
            said = np.array(tree_messages(p, list(leaves), challenges)[0])
            _, counts = histogram(p, (said - pads) % p)
            assert len(counts) == p**9
            count += 1
    assert count == 36 * 4
    # Pads that are used twice are noticed: I and I' show that they are equal.
    twice = pads.copy()
    twice[:, 3] = twice[:, 1]
    assert len(histogram(p, (said - twice) % p)[1]) < p**9


def test_the_messages_are_those_of_the_protocol():
    """A tree over four leaves: P, Q at the last point are the extensions of the leaves."""
    p, random = 101, Random(2)
    leaves = [(random.randrange(p), random.randrange(1, p)) for _ in range(4)]
    draws = [random.randrange(1, p) for _ in range(5)]
    said, x = tree_messages(p, leaves, draws)
    assert x == [draws[-1], draws[-2]]
    assert len(said) == 2 * 2 + 3 * 2 + 5  # m^2 + 3 m + 5
    p0, p1, _, _ = said[-4:]
    at = (p0 + draws[-1] * (p1 - p0)) % p
    assert at == extension([leaf[0] for leaf in leaves], x, p)
    assert sum(eq(draws[:2], i, p) for i in range(4)) % p == 1


# The link


def test_the_link():
    """(M, z, tau) of accepted runs, and the number of restarts: the same for every pixel and every blinding."""
    link = Link(p=5, order=7, pixel=3, width=5)
    for gamma in range(5):
        views = []
        for value, r in product(range(4), range(7)):
            published = link.commit(value, r)
            view = Counter()
            for mu, omega in product(range(1 << link.width), range(7)):
                given = link.answer(mu, omega, [gamma], [value], [r])
                if given is not None:
                    mask = link.commit(mu, omega)
                    assert link.opens(mask, [published], [gamma], *given)
                    # M is a function of (z, tau) and public values: the simulator's.
                    assert mask == (link.commit(*given) - gamma * published) % 7
                view[given] += 1
            views.append(view)
        assert all(view == views[0] for view in views)
        accepted = {z for (z, _) in filter(None, views[0])}
        assert accepted == set(range(link.largest, 1 << link.width))


def test_many_proofs_with_one_key():
    """All that two accepted proofs with one key show of the link, each with its own masks: the same for all secrets.

    Given the key, proofs are independent, so one distribution for one proof is one for any number of them.
    """
    link = Link(p=3, order=7, pixel=2, width=3)
    for gammas in product(range(3), repeat=2):
        views = []
        for value, r in product(range(3), range(7)):
            single = [Counter(filter(None, (link.answer(mu, omega, [gamma], [value], [r])
                                            for mu, omega in product(range(1 << link.width), range(7)))))
                      for gamma in gammas]  # fmt: skip
            published = link.commit(value, r)
            masks = [{given: (link.commit(*given) - gamma * published) % 7 for given in one}
                     for one, gamma in zip(single, gammas, strict=True)]  # fmt: skip
            views.append((published, Counter({
                ((a, masks[0][a]), (b, masks[1][b])): n * m
                for (a, n), (b, m) in product(single[0].items(), single[1].items())
            })))  # fmt: skip
        for published, view in views:
            assert all(view == other for same, other in views if same == published)
        assert len({published for published, _ in views}) == 7


def test_a_link_without_rejection_leaks():
    """Answers below S or over the masks' range come from some pixels only."""
    link, gamma = Link(p=5, order=7, pixel=3, width=5), 4
    answers = [{mu + gamma * value for mu in range(1 << link.width)} for value in range(4)]
    assert answers[0] != answers[3] and min(answers[3]) == 12 > min(answers[0])

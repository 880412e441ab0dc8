"""Soundness measured: toy parameters at which the best known cheats succeed often enough to be counted.

Each test states the exact rate of an attack, counts how often the attack succeeds against the plain twins of tests/toy,
asks that the count is within its confidence interval of the rate, and that the rate is at most the error that the
formula of `protocol.soundness` has for these parameters.  Where the formula is attained the test says so.
"""

from fractions import Fraction
from itertools import product
from math import comb
from random import Random

import numpy as np
import pytest

from protocol import pedersen, soundness
from protocol.keygen import check_key
from tests.adversary.coins import accepted, coins, commitments, exactly
from tests.adversary.rates import agrees
from tests.protocol import plain_verifier
from tests.toy.ligero import Challenge, Claims, Code, Committed, answer, times, verify
from tests.toy.link import Link
from tests.toy.sumcheck import Verifier, difference, fractions_agree, lookup_key, sumcheck, tree

# Sumchecks and lookups


@pytest.mark.parametrize("plain", [False, True], ids=["weighted", "plain"])
@pytest.mark.parametrize(("p", "rounds"), [(31, 1), (101, 3), (61, 5)])
def test_sumcheck(p, rounds, plain):
    """A false claim survives one round in 2 of p - 1 cases, whether eq weighs the sum or not: term 2 rounds / size."""
    random, hits, trials = Random(rounds), 0, 2500
    verifier = Verifier(p, random)
    for _ in range(trials):
        tables = [[random.randrange(p) for _ in range(1 << rounds)] for _ in range(4)]

        def value(a, b, c, d):
            return a * b + c * d

        point = [verifier.draw() if random.random() < 0.9 else 1 for _ in range(rounds)]  # low = 0 is allowed
        point, claim = None if plain else point, random.randrange(p)
        _, last, ends = sumcheck(verifier, value, tables, point, claim, cheat=True)
        truth = sum(
            value(*row) * np.prod([x if i >> j & 1 else 1 - x for j, x in enumerate(point or ())], dtype=object)
            for i, row in enumerate(zip(*tables, strict=True))
        )
        hits += last == value(*(table[0] for table in ends)) % p and (truth - claim) % p != 0
    rate = (1 - Fraction(1, p)) * (1 - (1 - Fraction(2, p - 1)) ** rounds)  # the claim is true by chance in 1 of p
    agrees("sumcheck", hits, trials, rate, Fraction(2 * rounds, p - 1))


def test_a_difference_has_no_third_root():
    """Degree 2: of all challenges exactly two forgive."""
    p = 31
    verifier = Verifier(p, Random(1))
    for low, high, error in product((0, 3), (1, 7), (1, 30)):
        h0, c = difference(error, low, high, verifier)
        forgiven = [r for r in range(1, p) if verifier.next_claim(error, low, high, (h0, c), r) == 0]
        assert len(forgiven) == 2


@pytest.mark.parametrize(("p", "depth"), [(61, 1), (101, 2), (151, 3)])
def test_lookup_tree(p, depth):
    """Layer of j rounds: lambda, 2 for each round, phi: term (2 j + 2) / size, summed over the layers."""
    random, hits, trials = Random(depth), 0, 2000
    for _ in range(trials):
        leaves = [(random.randrange(p), random.randrange(1, p)) for _ in range(1 << depth)]
        wrong = random.randrange(1, p)
        hits += tree(Verifier(p, random), leaves, (wrong, random.randrange(1, p)))
    one, two = 1 - Fraction(1, p - 1), 1 - Fraction(2, p - 1)
    missed = Fraction(1)
    for j in range(depth):
        missed *= one * two**j * one
    most = Fraction(sum(2 * j + 2 for j in range(depth)), p - 1)
    agrees("lookup tree", hits, trials, 1 - missed, most)


def test_an_honest_tree():
    random = Random(4)
    for depth in range(5):
        leaves = [(random.randrange(101), random.randrange(1, 101)) for _ in range(1 << depth)]
        assert tree(Verifier(101, random), leaves)


@pytest.mark.parametrize(("p", "rows"), [(31, 4), (61, 6), (101, 20)])
def test_a_value_in_no_table(p, rows):
    """The best multiplicities are residues of a numerator with `rows` roots, counted over all challenges.

    The formula is 2 (lookups + rows) / size; one lookup of a table of one column leaves rows / size of it.
    """
    random = Random(p)
    numbers = random.sample(range(1, p), 2 * rows + 1)
    x, table, roots = numbers[0], numbers[1 : rows + 1], numbers[rows + 1 :]

    def at(points, v):
        return np.prod([v - r for r in points], dtype=object)

    scale = at(table, x) * pow(at(roots, x), -1, p)  # so that 1 / (beta - x) has the coefficient 1
    uses = []
    for t in table:
        others = [s for s in table if s != t]
        uses.append(-scale * at(roots, t) * pow((t - x) * at(others, t), -1, p) % p)
    forgiven = [beta for beta in range(1, p) if fractions_agree(p, beta, [x], table, uses)]
    assert sorted(forgiven) == sorted(roots)
    assert Fraction(len(forgiven), p - 1) == Fraction(rows, p - 1) <= Fraction(2 * (1 + rows), p - 1)


def test_no_lookup_of_two_columns_beats_the_formula():
    """Random false lookups with counted multiplicities, over all (alpha, beta)."""
    p, rows, random, most = 31, 5, Random(8), 0
    for _ in range(25):
        table = [(random.randrange(p), random.randrange(p)) for _ in range(rows)]
        values = [random.choice(table) for _ in range(3)]
        false = (random.randrange(p), random.randrange(p))
        if false in table:
            continue
        uses = [values.count(row) for row in table]
        uses[random.randrange(rows)] += 1  # she counts the false one as some other row
        hits = 0
        for alpha in range(1, p):
            looked_up, keys = ([lookup_key(alpha, row, p) for row in some] for some in ([*values, false], table))
            hits += sum(fractions_agree(p, beta, looked_up, keys, uses) for beta in range(1, p))
        assert Fraction(hits, (p - 1) ** 2) <= Fraction(2 * (4 + rows), p - 1)
        most = max(most, hits)
    assert most > p // 2  # two rows are one for a single alpha, and then for every beta


def test_a_random_point():
    """Two columns that differ by prod (x_j - a_j) are equal at a point in 1 - (1 - 1/size)^m of all: at most m/size."""
    p, m, trials = 61, 4, 20000
    x = np.random.default_rng(1).integers(1, p, (trials, m))
    hits = ((x - np.array([3, 7, 11, 13])) % p == 0).any(axis=1).sum()
    agrees("random point", hits, trials, 1 - (1 - Fraction(1, p - 1)) ** m, Fraction(m, p - 1))


# The commitment: 16 slots, 128 columns, 3 queries over F_257

A, T = 4, 3
CODE = Code(257, 1 << A, T, 8 << A)
WORST = soundness.query_error(A, 3, T)[0]  # column queries
LIST = soundness.query_error(A, 3, T)[1]  # Lambda
TRIALS = 4000


def tosses(rows, products, seed, trials=TRIALS, code=CODE):
    """Challenges and columns of honest verifiers, coins of provers."""
    rng = np.random.default_rng(seed)
    p = code.p
    challenge = Challenge(rng.integers(1, p, trials), rng.integers(1, p, (trials, rows)),
                          rng.integers(1, p, (trials, products)))  # fmt: skip
    columns = np.argsort(rng.random((trials, code.columns)), axis=1)[:, : code.queries]
    masks = rng.integers(0, p, (trials, rows, code.queries))
    free = tuple(rng.integers(0, p, (trials, n)) for n in code.blinding)
    return challenge, columns, masks, free


def opened(made, columns):
    return np.take_along_axis(made.words, np.repeat(columns[:, None], made.words.shape[1], axis=1), axis=2)


def values_of(*rows):
    out = np.zeros((1, len(rows), CODE.size), np.int64)
    for i, row in enumerate(rows):
        out[0, i, : len(row)] = row
    return out % CODE.p


def unit(rows, row, slot):
    out = np.zeros((rows, CODE.size), np.int64)
    out[row, slot] = 1
    return out


TRUE = Claims(np.array([unit(3, 0, 0), unit(3, 0, 1)]), np.array([1, 0]), ((0, 0, 0), (0, 1, 2)))
ROWS = values_of([1, 0, 1], [5, 6, 7], [5, 0, 7])


def test_an_honest_commitment():
    challenge, columns, masks, free = tosses(3, 2, 1)
    made = Committed.make(CODE, ROWS, masks, free)
    checks = verify(CODE, TRUE, challenge, answer(made, TRUE, challenge), columns, opened(made, columns))
    assert all(passed.all() for passed in checks.values())


def test_proximity():
    """A row that is wrong in e columns is not seen if none of them is opened: C(n - e, t) / C(n, t).

    The formula takes e = floor((n - k) / 2), the smallest number that the test has to notice.
    """
    e = (CODE.columns - CODE.degree) // 2
    challenge, columns, masks, free = tosses(3, 2, 2)
    made = Committed.make(CODE, ROWS, masks, free)
    polynomials = answer(made, TRUE, challenge)
    words = made.words.copy()
    words[:, 1, :e] = (words[:, 1, :e] + 1) % CODE.p
    made.words = words
    checks = verify(CODE, TRUE, challenge, polynomials, columns, opened(made, columns))
    hits = checks["proximity.columns"].sum()
    agrees("column queries", hits, TRIALS, Fraction(comb(CODE.columns - e, T), comb(CODE.columns, T)), WORST)


def test_errors_that_cancel_in_the_combination():
    """Blinding b and row f, both wrong in e + 1 columns: r cancels one of them for e + 1 of all r.

    Then the combination is within the unique decoding radius e although the rows together are not: (e + 1) / p, and the
    proximity term has n / p for it.
    """
    p, trials = CODE.p, 20000
    e = (CODE.columns - CODE.degree) // 2
    rng = np.random.default_rng(3)
    ratios = rng.permutation(np.arange(1, p))[: e + 1]  # -b / f in each wrong column
    r = rng.integers(0, p, trials)  # the theorem's coefficients are uniform
    wrong = ((r[:, None] - ratios) % p != 0).sum(axis=1)
    agrees("proximity", (wrong <= e).sum(), trials, Fraction(e + 1, p), Fraction(CODE.columns, p))


def test_a_false_sum_with_a_polynomial_of_many_roots():
    """She adds to the linear polynomial the missing sum times a polynomial with N + k - 2 roots among the points."""
    roots = CODE.size + CODE.degree - 2
    challenge, columns, masks, free = tosses(3, 2, 4)
    false = Claims(TRUE.coefficients, np.array([2, 0]), TRUE.products)
    made = Committed.make(CODE, ROWS, masks, free)
    prox, lin, quad = answer(made, false, challenge)
    delta = np.array([1], np.int64)
    for x in CODE.points[:roots]:
        delta = times(delta, np.array([-x % CODE.p, 1]), CODE.p)
    total = int(delta[:: CODE.size].sum()) * CODE.size % CODE.p
    assert total and delta.shape[-1] == lin.shape[-1]
    _, target = false.batched(challenge.eta, CODE.p)
    missing = (target - CODE.size * lin[:, :: CODE.size].sum(axis=1)) * pow(total, -1, CODE.p) % CODE.p
    lin = (lin + missing[:, None] * delta) % CODE.p
    checks = verify(CODE, false, challenge, (prox, lin, quad), columns, opened(made, columns))
    assert checks["linear.sum"].all() and missing.all()
    rate = Fraction(comb(roots, T), comb(CODE.columns, T))
    agrees("linear test", checks["linear.columns"].sum(), TRIALS, rate, WORST)


def test_a_false_product_with_a_polynomial_of_many_roots():
    """The same for the quadratic polynomial, of degree 2 k - 2: N - 1 of its roots are needed on the subgroup."""
    roots = 2 * CODE.degree - 2
    challenge, columns, masks, free = tosses(3, 2, 5)
    made = Committed.make(CODE, values_of([1, 0, 2], [5, 6, 7], [5, 0, 14]), masks, free)  # 2 is no bit
    prox, lin, quad = answer(made, TRUE, challenge)
    honest = verify(CODE, TRUE, challenge, (prox, lin, quad), columns, opened(made, columns))
    assert not honest["quadratic.zero"].any()
    wanted = np.zeros((TRIALS, CODE.size), np.int64)  # the remainder that a multiple of delta has to cancel
    for at in range(quad.shape[-1]):
        wanted[:, at % CODE.size] += quad[:, at]
    # delta = remainder + (X^N - 1) q with 2 k - 2 - (N - 1) roots at will: enough coefficients of q are free.
    free_roots = roots - CODE.size + 1
    product_ = np.array([1], np.int64)
    for x in CODE.points[:free_roots]:
        product_ = times(product_, np.array([-x % CODE.p, 1]), CODE.p)
    inverse = [pow(int(v), -1, CODE.p) for v in CODE.evaluate(product_, CODE.subgroup)]
    on_subgroup = CODE.evaluate(wanted % CODE.p, CODE.subgroup) * np.array(inverse) % CODE.p
    delta = times(CODE.interpolate(on_subgroup), product_, CODE.p)
    assert delta.shape[-1] == quad.shape[-1]
    quad = (quad - delta) % CODE.p
    checks = verify(CODE, TRUE, challenge, (prox, lin, quad), columns, opened(made, columns))
    assert checks["quadratic.zero"].all()
    # She chose free_roots of the roots; the others, of a random polynomial, hit one of the points now and then.
    zeros = (CODE.evaluate(delta) == 0).sum(axis=1)
    assert zeros.min() >= free_roots and zeros.max() <= roots
    rate = np.mean([comb(int(z), T) for z in zeros]) / comb(CODE.columns, T)
    agrees("quadratic test", checks["quadratic.columns"].sum(), TRIALS, rate, WORST)


# The batching of equations


def false_equations(roots, first):
    """Values with errors err_e such that total + sum of err_e eta^(e + first) vanishes exactly at `roots`."""
    polynomial = np.array([1], np.int64)
    for r in roots:
        polynomial = times(polynomial, np.array([-r % CODE.p, 1]), CODE.p)
    errors = polynomial[first:]
    coefficients = np.stack([unit(1, 0, e) for e in range(len(errors))])
    total = int(polynomial[0]) if first else 0
    return Claims(coefficients, np.zeros(len(errors), np.int64), first=first), values_of(errors), total


@pytest.mark.parametrize("equations", [1, 4, 12])
def test_false_equations_and_a_blinding_row_that_helps(equations):
    """The errors and the sum of the linear blinding row are the coefficients of a polynomial in eta.

    It has as many roots as there are equations: the term equations / size is attained, for a list of one polynomial.
    """
    claims, values, total = false_equations(range(2, 2 + equations), 1)
    challenge, columns, masks, free = tosses(1, 0, 10 + equations, 20000)
    made = Committed.make(CODE, values, masks, free, total)
    checks = verify(CODE, claims, challenge, answer(made, claims, challenge), columns, opened(made, columns))
    rate = Fraction(equations, CODE.p - 1)
    agrees("batched equations", checks["linear.sum"].sum(), 20000, rate, LIST * rate)
    assert all(passed.all() for name, passed in checks.items() if name != "linear.sum")


def test_a_constant_weight_is_no_weight():
    """Weights from eta^0 on: the blinding row cancels any error of equation 0, always.  From eta^1 on: one time in p-1.

    So each weight has to depend on the challenge; the real commitment has the test with the same name in test_ligero.
    """
    wrong, trials = 99, 20000
    for first, rate in ((0, Fraction(1)), (1, Fraction(1, CODE.p - 1))):
        claims = Claims(unit(1, 0, 0)[None], np.array([0]), first=first)
        challenge, columns, masks, free = tosses(1, 0, 21, trials)
        made = Committed.make(CODE, values_of([wrong]), masks, free, -wrong % CODE.p)
        checks = verify(CODE, claims, challenge, answer(made, claims, challenge), columns, opened(made, columns))
        hits = checks["linear.sum"].sum()
        assert all(passed.all() for name, passed in checks.items() if name != "linear.sum")
        if first:
            agrees("batched equations", hits, trials, rate, LIST * rate)
        else:
            assert hits == trials


def test_two_false_products_that_cancel():
    """Independent coefficients, none of them zero: two gaps cancel for one ratio of p - 1; one never does."""
    trials = 20000
    for values, rate in ((values_of([2], [3]), Fraction(1, CODE.p - 1)), (values_of([2], [1]), Fraction(0))):
        claims = Claims(np.zeros((1, 2, CODE.size), np.int64), np.array([0]), ((0, 0, 0), (1, 1, 1)))
        challenge, columns, masks, free = tosses(2, 2, 31, trials)
        made = Committed.make(CODE, values, masks, free)
        checks = verify(CODE, claims, challenge, answer(made, claims, challenge), columns, opened(made, columns))
        hits = checks["quadratic.zero"].sum()
        if rate:
            agrees("quadratic test", hits, trials, rate, LIST * rate)
        else:
            assert hits == 0


# The link


@pytest.mark.parametrize(("p", "repetitions"), [(13, 1), (11, 2), (7, 3)])
def test_link(p, repetitions):
    """Another pixel than the published one: she commits to mask residues that fit one challenge of p, each time.

    Term p^-5 for five repetitions, attained.
    """
    toy = Link(p=p, order=1009, pixel=15, width=14)
    random, trials, hits = Random(p), 20000, 0
    value, r, other = 9, 123, 4
    published = toy.commit(value, r)
    for _ in range(trials):
        passed = True
        for _ in range(repetitions):
            mu, omega = random.randrange(toy.largest, (1 << toy.width) - toy.largest), random.randrange(toy.order)
            hoped = random.randrange(p)
            residue = (mu + hoped * (value - other)) % p
            gamma = random.randrange(p)
            z, tau = toy.answer(mu, omega, [gamma], [value], [r])
            assert toy.opens(toy.commit(mu, omega), [published], [gamma], z, tau)
            passed &= toy.gap(residue, [other], [gamma], z) == 0
        hits += passed
    agrees("link", hits, trials, Fraction(1, p**repetitions), Fraction(1, p**repetitions))


def test_a_rational_opening_is_one_pixel_modulo_p():
    """A commitment to 1/2 opens for even challenges with small integers; the pixel is then 1/2 modulo p, no other."""
    p, toy = 13, Link(p=13, order=1009, pixel=15, width=14)
    half = pow(2, -1, toy.order)
    published, mu = toy.commit(half, 0), 500
    for pixel in range(p):
        accepted = 0
        for gamma in range(0, p, 2):
            z = mu + gamma // 2
            assert toy.opens(toy.commit(mu, 0), [published], [gamma], z, 0)
            accepted += toy.gap(mu % p, [pixel], [gamma], z) == 0
        assert accepted == (len(range(0, p, 2)) if pixel == pow(2, -1, p) else 1)


def test_openings_checked_at_once():
    """Two false openings with errors +1 and -1 pass if their weights are equal: 2^-b for weights of b bits."""
    bits, trials, random, hits = 3, 400, Random(3), 0
    commitments = [pedersen.commit(np.array([7]), 1), pedersen.commit(np.array([9]), 2)]
    for _ in range(trials):
        w = [random.getrandbits(bits) for _ in commitments]
        hits += pedersen.opens(commitments, w, [w[0] * 8 + w[1] * 8], w[0] + 2 * w[1])
    agrees("openings at once", hits, trials, Fraction(1, 2**bits))


# Keys


@pytest.mark.parametrize(("ell", "bad"), [(16, 1), (16, 3), (40, 2), (160, 4)])
def test_cut_and_choose(ell, bad):
    """Ill-formed items that all stay hidden: the formula behind `hidden_bad`, with the real coin."""
    trials = 8000
    hits = accepted(coins(ell, trials), bad).sum()
    agrees("cut and choose", hits, trials, exactly(ell, bad))


def test_hidden_bad_is_where_the_work_is_spent():
    """b bad items pass within 2^W tries with good chance, b + 1 with less than one: measured for W = 6."""
    ell, work = 40, 6
    bad = soundness.hidden_bad(ell, work)
    assert exactly(ell, bad) >= Fraction(1, 2**work) > exactly(ell, bad + 1)
    opened = coins(ell, 150 << work)
    for b in (bad, bad + 1):
        wins = accepted(opened, b).reshape(150, -1).any(axis=1).sum()
        agrees("grinding", wins, 150, 1 - (1 - exactly(ell, b)) ** (1 << work), (1 << work) * exactly(ell, b))


@pytest.mark.parametrize("ell", [16, 40])
def test_these_are_the_coins_of_keys(ell):
    """A key that is finished with such a beacon opens what `coins` says, for the package and for the plain verifier."""
    pending, drawn = commitments(ell), 0
    for k, opened in enumerate(coins(ell, 30)):
        key = pending.draw(k.to_bytes(8, "little"))
        assert (key is None) == (not accepted(opened[None], 0)[0])
        if key is not None:
            drawn += 1
            check_key(key.vk)
            assert (key.vk.opened == np.flatnonzero(opened)).all()
            assert (key.vk.openings.images == key.images[opened]).all()
            assert plain_verifier.Key(key.vk.to_bytes()).bits == opened.tolist()
    assert drawn > 20

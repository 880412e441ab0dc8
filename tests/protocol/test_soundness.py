"""The numbers that claim security, against independent computations and the published figures of the protocol."""

from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import comb, inf, isqrt, log, log2, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import soundness
from protocol.errors import ParameterError
from protocol.soundness import Counts, Parameters, argument_ledger, bits, choose_parameters, query_error, tail
from tests.protocol import plain_verifier

P = 15 * 2**27 + 1

# ResNet-18 on 32 x 32, h = 256: 20 requant trees and the table tree.
RESNET = Counts(
    leaves=29 * 10**7, table_rows=2**18, trees=(29,) * 21, affine_rounds=2**10, point_coordinates=2**9,
    equations=2**15, triples=1000, rows=143 * 2**11 // 8, link_coordinates=3072,
)  # fmt: skip


def test_bits():
    assert bits(Fraction(1, 8)) == 3 and bits(Fraction(1)) == 0 and bits(Fraction(0)) == inf
    assert bits(Fraction(3, 2**5000)) == 5000 - log2(3)


# False claims


def test_tail_by_enumeration():
    for h, classes in ((1, 2), (3, 3), (4, 3), (5, 2)):
        for k in range(h + 2):
            hits = sum(draw.count(0) >= k for draw in product(range(classes), repeat=h))
            assert tail(h, classes, k) == Fraction(hits, classes**h)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(2, 6))
def test_p_value_by_enumeration(h, hit, sides):
    null = Fraction(min(hit, sides - 1), sides)
    for k in range(h + 2):
        chances = (prod(null if match else 1 - null for match in draw) for draw in product((0, 1), repeat=h)
                   if sum(draw) >= k)  # fmt: skip
        assert soundness.p_value(h, k, null) == sum(chances)


def test_p_value_of_frontier_stitching():
    """Le Merrer et al., section 3: 100 images, at most 41 errors."""
    assert soundness.p_value(100, 59, Fraction(1, 2)) < Fraction(1, 20) <= soundness.p_value(100, 58, Fraction(1, 2))


def test_raw_tails():
    assert soundness.smallest_k_min(256, 10, 128, 0, 0) == 106
    assert soundness.smallest_k_min(256, 10, 256, 0, 0) == 147
    assert abs(bits(tail(256, 10, 106)) - 128.5) < 0.05
    assert abs(bits(tail(256, 10, 231)) - 656.6) < 0.05


@pytest.mark.parametrize(
    ("h", "classes", "freedom", "k_min"),
    [(256, 10, 0, 118), (256, 10, 64, 138), (256, 10, 176, 168), (223, 10, 0, 109), (289, 10, 0, 126),
     (256, 2, 0, 237), (160, 2, 0, 160), (159, 2, 0, None), (49, 10, 0, 49), (48, 10, 0, None)],
)  # fmt: skip
def test_default_k_min(h, classes, freedom, k_min):
    assert soundness.smallest_k_min(h, classes, freedom_bits=freedom) == k_min


@given(st.integers(1, 60), st.integers(2, 12), st.integers(0, 80), st.integers(0, 20))
def test_smallest_k_min_is_the_smallest(h, classes, target, freedom):
    enough = [k for k in range(1, h + 1) if tail(h, classes, k) * 2 ** (target + freedom + 3) <= 1]
    assert soundness.smallest_k_min(h, classes, target, freedom, 3) == min(enough, default=None)
    assert soundness.smallest_k_min(h, classes, target, freedom - 0.5, 3) == min(enough, default=None)  # rounded up


def test_a_threshold_is_at_least_one_match():
    """Also where nothing is asked for: no claim is about no trigger."""
    found = [soundness.smallest_k_min(5, 2, target, 0, 0) for target in (-9, -1, 0, 1, 2, 5, 6)]
    assert found == [1, 1, 1, 3, 4, 5, None]


def test_false_claim_bits():
    assert abs(soundness.false_claim_bits(256, 10, 118) - (bits(tail(256, 10, 118)) - 32)) < 1e-9
    assert soundness.false_claim_bits(256, 10, 118) >= 128 > soundness.false_claim_bits(256, 10, 117)
    assert soundness.false_claim_bits(256, 10, 118, 64, 0) == pytest.approx(bits(tail(256, 10, 118)) - 64)
    for k_min in (0, -1, 257):
        with pytest.raises(ParameterError):
            soundness.false_claim_bits(256, 10, k_min)


def test_smallest_ell():
    for classes, ell in ((10, 132), (2, 378)):
        assert soundness.smallest_ell(classes, 4096) == ell
        assert soundness.smallest_k_min(soundness.window(ell)[0], classes) is not None
        assert soundness.smallest_k_min(soundness.window(ell - 1)[0], classes) is None
    assert [soundness.smallest_ell(2, limit=limit) for limit in (300, 377, 378)] == [None, None, 378]


@given(st.integers(0, 300), st.integers(2, 100))
def test_void_limit(opened, classes):
    limit = soundness.void_limit(opened, classes)
    assert 0 <= limit <= opened and tail(opened, classes, limit + 1) <= Fraction(1, 2**40)
    assert limit == 0 or tail(opened, classes, limit) > Fraction(1, 2**40)


# Cut and choose


def test_window():
    assert soundness.window(512) == (223, 289) and soundness.window(256) == (104, 152)
    assert [soundness.window(ell) for ell in (1, 2, 3, 9, 10, 16)] == [(0, 1), (0, 2), (0, 3), (0, 8), (1, 9), (2, 14)]
    for ell in range(1, 2000):
        low, high = soundness.window(ell)
        assert 0 <= low <= high <= ell
        if ell > 9:  # rounded inwards
            assert ell // 2 - low == high - ell // 2 == max(r for r in range(ell) if 4 * r * r <= 9 * ell)


def test_hidden_bad():
    assert soundness.hidden_bad(512, 128) == 119
    assert soundness.hidden_bad(256, 80) == 74
    assert soundness.hidden_bad(512, 128, 40) == 150
    assert soundness.hidden_bad(256, 0) == 0


def test_hidden_bad_by_enumeration():
    ell = 12
    low, high = soundness.window(ell)
    for log2_work in range(ell + 1):
        accepted = [hidden for hidden in range(1 << ell) if low <= hidden.bit_count() <= high]
        survive = [sum(hidden % (1 << bad) == (1 << bad) - 1 for hidden in accepted) for bad in range(high + 1)]
        expected = max((bad for bad, ways in enumerate(survive) if ways << log2_work >= 1 << ell), default=0)
        assert soundness.hidden_bad(ell, log2_work) == expected


def test_anchored_work():
    """A weight of 1 / (32 window n) for every coin at n entries adds up to less than one, for logs of 2^45 entries."""
    assert soundness.anchored_work(1, 1) == 5 and soundness.anchored_work(2**20, 4096) == 37
    assert soundness.anchored_work(2**20, 4096, 2) == 38 and soundness.anchored_work(2**20, 4096, 3) == 39
    for size in (1, 2, 3, 1000, 2**40 + 1):
        work = soundness.anchored_work(size, 4096)
        assert 2**work >= 32 * 4096 * size > 2 ** (work - 1)
    harmonic = log(2**45) + 0.5772156649 + 2**-46  # 1 + 1/2 + ... + 1/n, to 2^-90
    assert harmonic < 32 < log(2**46) + 0.5772156649


def test_an_anchor_leaves_fewer_ill_formed_triggers():
    for ell in (132, 512):
        for entries in (1, 2**10, 2**30):
            work = soundness.anchored_work(entries, 4096)
            anchored = soundness.hidden_bad(ell, work, soundness.ANCHOR_DOUBT)
            assert anchored < soundness.hidden_bad(ell, 128)


# The argument


def oracle_query(a, inverse_rate, t):
    n, k = inverse_rate << a, (1 << a) + t
    e, j = (n - k) // 2, isqrt(242 * k * n // 100)
    return (
        Fraction(comb(max(n - e, j), t), comb(n, t)),
        Fraction(n * (j + 3 - 2 * k), (j + 1) ** 2 - n * (2 * k - 2)),
    )


def smallest_queries(a, r, target):
    return next(t for t in range(100, 256) if bits(query_error(a, r, t)[0]) >= target)


@pytest.mark.parametrize(
    ("log2_row", "rate", "expected"),
    [(14, 3, [145, 150, 155]), (13, 3, [145, 150, 155]), (12, 3, [146, 150, 155]), (11, 3, [147, 152, 158]),
     (10, 3, [156, 162, 168]), (14, 4, [132, 136, 141])],
)  # fmt: skip
def test_number_of_queries(log2_row, rate, expected):
    assert [smallest_queries(log2_row, rate, target) for target in (120, 124, 128)] == expected


@pytest.mark.parametrize(("log2_row", "rate", "queries"), [(14, 3, 150), (11, 4, 137), (10, 3, 162)])
def test_query_error_and_list_size(log2_row, rate, queries):
    assert query_error(log2_row, rate, queries) == oracle_query(log2_row, 1 << rate, queries)
    assert 1 < query_error(log2_row, rate, queries)[1] <= 11


def test_the_list_bound_depends_on_the_rate():
    assert query_error(14, 4, 136)[1] <= 11 < query_error(14, 5, 130)[1]


def test_parameters_under_the_target_cannot_be_constructed():
    assert Parameters(14).query_error == query_error(14, 3, 150)[0]
    assert (Parameters(14).row, Parameters(14).degree, Parameters(14).domain) == (2**14, 2**14 + 150, 2**17)
    Parameters(14, 3, 145)
    for bad in ((14, 3, 144), (10, 3, 150), (14, 4, 131), (14, 3, 0), (14, 3, 256), (14, 2, 150), (14, 5, 150),
                (7, 3, 250), (21, 3, 150), (-1, 3, 150)):  # fmt: skip
        with pytest.raises(ParameterError):
            Parameters(*bad)


def test_the_quadratic_polynomial_fits():
    """2 t <= N, even where the queries would have the bits."""
    assert query_error(8, 4, 150)[0] < Fraction(1, 2**120)
    with pytest.raises(ParameterError, match="twice"):
        Parameters(8, 4, 150)
    assert 2 * Parameters(9, 3, 255).queries <= 512


def terms(counts=RESNET, parameters=Parameters(14)):  # noqa: B008
    return {t.name: bits(t.error) for t in argument_ledger(counts, parameters, False).terms}


def test_ledger_of_a_resnet():
    found = terms()
    expected = {
        "lookups": 125.4,
        "affine and output sumchecks": 143.5,
        "batched linear equations": 137.0,  # list of 5.7, not 11, at rate 1/8
        "column queries": 124.4,
        "link of labels": 154.5,
        "link of pixels": 148.6,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.06), name
    assert found["lookup trees"] > 139.8  # (3 j + 2) without the equality factor divided out
    assert found["proximity"] > 136
    assert argument_ledger(RESNET, Parameters(14), False).bits == pytest.approx(123.74, abs=0.05)
    # t = 145: short rows fail, long rows pass; t = 155: the lookups dominate.
    assert argument_ledger(RESNET, Parameters(14, 3, 145), False).bits == pytest.approx(120.2, abs=0.05)
    assert argument_ledger(RESNET, Parameters(14, 3, 155), False).bits == pytest.approx(125.1, abs=0.1)
    with pytest.raises(ParameterError):
        argument_ledger(replace(RESNET, leaves=2**35), Parameters(14), False)


def test_ledger_terms_from_first_principles():
    small = Counts(10, 6, (2, 0, 3), 7, 11, 13, 1, 5, 784)
    size, p = (P - 1) * P**4, Parameters(11, 3, 152)
    n, k = 2**14, 2**11 + 152
    query, list_size = oracle_query(11, 8, 152)
    # Layers with 0, 1, ... rounds of degree 2, and two more random elements each.
    trees = (2 + 4) + (2 + 4 + 6)
    expected = [
        Fraction(32, size), Fraction(trees, size), Fraction(14, size), Fraction(11, size), list_size * 13 / size,
        list_size / size, Fraction(n * P, P**5 * (P - 5)) + Fraction((n - k) // 2, size), query,
        Fraction(1, P**5) + Fraction(5 * 10, size), Fraction(1, P**5), Fraction(1, 2**128),
    ]  # fmt: skip
    ledger = argument_ledger(small, p, False)
    assert [t.name for t in ledger.terms] == [
        "lookups", "lookup trees", "affine and output sumchecks", "random points", "batched linear equations",
        "batched quadratic constraints", "proximity", "column queries", "link of pixels", "link of labels",
        "openings checked at once",
    ]  # fmt: skip
    assert [t.error for t in ledger.terms] == expected and ledger.total == sum(expected)
    assert argument_ledger(small, p, True).total == 8 * ledger.total  # as many sessions as a verifier takes part in
    assert ledger.bits == bits(ledger.total) < bits(query)
    assert argument_ledger(replace(small, triples=0), p, True).terms[5].error == 0
    assert str(ledger.terms[7]) == "column queries: 2^-124.0"
    for pixels, coordinates in ((1, 0), (2, 1), (3, 2), (1024, 10), (1025, 11)):
        linked = argument_ledger(replace(small, link_coordinates=pixels), p, False).terms[8]
        assert linked.error == Fraction(1, P**5) + Fraction(5 * coordinates, size)


def test_every_count_matters():
    base = terms()
    for name, value in (("leaves", 2**29), ("table_rows", 2**28), ("trees", (29,) * 22), ("affine_rounds", 2**11),
                        ("point_coordinates", 2**10), ("equations", 2**16), ("rows", 2**28),
                        ("link_coordinates", 2**18)):  # fmt: skip
        changed = terms(replace(RESNET, **{name: value}))
        assert sum(changed[t] < base[t] for t in base) == 1, name


def test_assumptions_are_named():
    interactive, file = (argument_ledger(RESNET, Parameters(14), i).assumptions for i in (True, False))
    assert interactive[0].startswith("discrete logarithms in BLS12-381 G1 are hard")
    assert interactive[1].startswith("SHA-256 and cSHAKE256 behave as random oracles")
    assert file[:2] == interactive and len(interactive) == 2
    assert file[2:] == ("Fiat-Shamir: W hashes of work multiply the statistical error by W",)
    assert soundness.NO_BOUND.startswith("the owner chose the images and their labels")


def test_too_many_rows():
    with pytest.raises(ParameterError):
        argument_ledger(replace(RESNET, rows=P), Parameters(14), True)


def test_chosen_parameters_are_the_smallest_proof():
    elements = 7_500_000

    def rows(a):
        return -(-elements // 2**a) + 40

    chosen = choose_parameters(RESNET, rows)
    sizes = {}
    for a in range(9, 19):
        t = smallest_queries(a, 3, 124)
        n, k = 8 << a, (1 << a) + t
        sizes[a] = 4 * t * rows(a) + 32 * t * (1 + n.bit_length() - t.bit_length()) + 20 * (k + (1 << a) + k + 2 * k)
        assert soundness.opening_bytes(Parameters(a, 3, t), rows(a)) == sizes[a]
    assert chosen.log2_row == min(sizes, key=sizes.get) and chosen.log2_rate_inverse == 3
    assert chosen.queries == smallest_queries(chosen.log2_row, 3, 124)
    assert choose_parameters(RESNET, rows, 4).log2_rate_inverse == 4
    assert choose_parameters(RESNET, lambda a: 1 + 2**18 // 2**a).log2_row < chosen.log2_row


def test_every_row_length_is_tried():
    """With the fewest queries that do; a length at which the ledger fails stops nothing."""
    for a in range(9, 19):
        for rate in (3, 4):
            for target in (124, 128):
                assert soundness._queries(a, rate, target) == smallest_queries(a, rate, target)
        assert choose_parameters(RESNET, lambda b, a=a: 1000 if a == b else P).log2_row == a


def test_more_queries_where_there_is_no_room_for_their_error():
    """ResNet-50 at 224 x 224 with 64 triggers; where the fewer queries do, they are taken."""
    def rows(a):
        return 64 * -(-11_015_680 * 2 // 2**a) + 40

    large = replace(RESNET, leaves=1_329_853_440, trees=(31,) * 60)
    assert 8 * query_error(14, 3, 150)[0] + Fraction(16 * large.leaves, (P - 1) * P**4) > Fraction(1, 2**120)
    chosen = choose_parameters(large, rows)
    assert chosen.queries == smallest_queries(chosen.log2_row, 3, 128)
    fewer = choose_parameters(replace(large, leaves=935_053_200), rows)
    assert fewer.queries == smallest_queries(fewer.log2_row, 3, 124)
    with pytest.raises(ParameterError):
        choose_parameters(replace(large, leaves=3 * 2**29), rows)


def plainly(counts, rows):
    """(a, t) by the plain verifier."""
    layers = sum(2 * j + 2 for depth in counts.trees for j in range(depth))
    return plain_verifier.choose(rows, (counts.leaves + counts.table_rows, layers, counts.affine_rounds,
                                        counts.point_coordinates, counts.equations, 12))  # fmt: skip


def test_no_parameters_for_too_much_work():
    """Both verifiers refuse such a statement before they read a proof of it."""
    large = replace(RESNET, leaves=2**40)
    with pytest.raises(ParameterError):
        choose_parameters(large, lambda a: 10)
    with pytest.raises(plain_verifier.Failed, match=r"^malformed$"):
        plainly(large, lambda a: 10)
    chosen = choose_parameters(RESNET, lambda a: 10)
    assert plainly(RESNET, lambda a: 10) == (chosen.log2_row, chosen.queries)


def test_parameters_have_to_do_for_all_sessions():
    """8 times the sum of all errors is at most 2^-120; once the sum is not enough."""
    many = replace(RESNET, leaves=10**9)
    once = argument_ledger(replace(many, rows=1000), Parameters(14), False)
    assert 120 < once.bits < 123
    with pytest.raises(ParameterError):
        argument_ledger(replace(many, rows=1000), Parameters(14), True)
    chosen = choose_parameters(many, lambda a: 1000)
    assert chosen.queries == smallest_queries(chosen.log2_row, 3, 128)

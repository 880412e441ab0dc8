"""Every number that claims security, computed with exact integers and fractions (SPEC section 9).

False claims, cut and choose, and the ledger of the argument's statistical errors.  Bits are -log2 of a probability.
The argument's terms hold in the proven regime: unique decoding for the proximity test (BCIKS, FOCS 2020, Theorem 1.6)
and the Johnson bound for the linear and quadratic tests; no conjecture enters.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from math import ceil, comb, inf, isqrt, log2

from protocol.errors import ParameterError
from protocol.field import DEGREE, P

FALSE_CLAIM_TARGET = 128
LOG2_MODELS = 32  # models that one accuser may try a key on
VOID_TARGET = 40  # an honest key is refused for its void items with probability 2^-40
ARGUMENT_TARGET = 120  # no parameters under it can be constructed
QUERY_TARGETS = 124, 128  # bits that the column queries are chosen for; the second where the first leaves no parameters
LINK_REPETITIONS = 5
SESSIONS = 8  # that one proof may take; in the interactive channel each is a try
MAX_LOG2_ROW = 18
DISCRETE_LOGARITHM = "discrete logarithms in BLS12-381 G1 are hard (published estimates: 2^117 to 2^126)"
HASHES = "SHA-256 and cSHAKE256 behave as random oracles (collisions: 2^128)"
FIAT_SHAMIR = "Fiat-Shamir: W hashes of work multiply the statistical error by W"
ANCHOR_DOUBT = 40  # under an anchor, more ill-formed triggers than stated stay hidden with probability 2^-40
NO_BOUND = (
    "the owner chose the images and their labels: whoever picks images that models of the task answer in one way "
    "matches models that were never marked, and nothing bounds how often"
)


def bits(probability: Fraction) -> float:
    """-log2 of a probability, infinity for 0."""
    if not probability:
        return inf
    return log2(probability.denominator) - log2(probability.numerator)


# False claims


def tail(h: int, classes: int, k: int) -> Fraction:
    """P[Bin(h, 1 / classes) >= k]: that a model which does not depend on the coin matches k of h triggers."""
    return p_value(h, k, Fraction(1, classes))


def p_value(h: int, k: int, null: Fraction) -> Fraction:
    """P[Bin(h, null) >= k]: that a stranger matches k of h triggers, if each by itself with probability `null`.

    Under the joint coin `null` is 1 / classes, a fact about the key.  Under chosen labels it is a belief about
    strangers, and the p-value is worth as much as that belief.
    """
    hit, miss = null.numerator, null.denominator - null.numerator
    ways = sum(comb(h, j) * hit**j * miss ** (h - j) for j in range(max(k, 0), h + 1))
    return Fraction(ways, null.denominator**h)


def false_claim_bits(
    h: int, classes: int, k_min: int, freedom_bits: float = 0, log2_models: float = LOG2_MODELS
) -> float:
    """-log2(models * 2^freedom * P[Bin(h, 1 / classes) >= k_min]); W hashes of an accuser's work take log2 W off it."""
    if not 1 <= k_min <= h:
        raise ParameterError(f"k_min must be 1 to {h}")
    return bits(tail(h, classes, k_min)) - freedom_bits - log2_models


def smallest_k_min(
    h: int,
    classes: int,
    target: float = FALSE_CLAIM_TARGET,
    freedom_bits: float = 0,
    log2_models: float = LOG2_MODELS,
) -> int | None:
    """The smallest k_min <= h with at least `target` false-claim bits, or None."""
    limit = classes**h >> max(ceil(target + freedom_bits + log2_models), 0)
    k, ways, term = h + 1, 0, 1  # term = C(h, k-1) (classes-1)^(h-k+1)
    while k > 1 and ways + term <= limit:
        ways, k = ways + term, k - 1
        term = term * k // (h - k + 1) * (classes - 1)
    return k if k <= h else None


def smallest_ell(classes: int, limit: int, target: float = FALSE_CLAIM_TARGET) -> int | None:
    """The fewest triggers (at most `limit`) for which every accepted h has a k_min that meets `target`, or None."""
    return next((n for n in range(1, limit + 1) if smallest_k_min(window(n)[0], classes, target) is not None), None)


def void_limit(opened: int, classes: int) -> int:
    """The smallest tau with P[Bin(opened, 1 / classes) > tau] <= 2^-VOID_TARGET.

    So many opened items may carry, by the coin, the true class of their (natural) image.
    """
    return (smallest_k_min(opened, classes, VOID_TARGET, 0, 0) or opened + 1) - 1


# Cut and choose


def window(ell: int) -> tuple[int, int]:
    """The smallest and the largest accepted number of hidden triggers: ell / 2 -+ 1.5 sqrt(ell), rounded inwards."""
    reach = isqrt(9 * ell // 4)
    return max(ell // 2 - reach, 0), min(ell // 2 + reach, ell)


def hidden_bad(ell: int, log2_work: int, log2_doubt: int = 0) -> int:
    """b: how many ill-formed triggers can all stay hidden after 2^log2_work hashes, but for probability 2^-log2_doubt.

    The largest B with 2^log2_work * sum over accepted h of C(ell - B, h - B) / 2^ell >= 2^-log2_doubt; 0 if none.
    """
    low, high = window(ell)

    def possible(bad: int) -> bool:
        ways = sum(comb(ell - bad, h - bad) for h in range(max(low, bad), high + 1))
        return ways << (log2_work + log2_doubt) >= 1 << ell

    below, above = 0, high + 1  # the probability falls with B
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if possible(middle) else (below, middle)
    return below


def anchored_work(size: int, window: int, logs: int = 1) -> int:
    """log2, rounded up, of the coins that an owner can have seen for a key anchored at a checkpoint of `size` entries.

    logs: how many there are of which any would have done.

    A coin is drawn by the log: one for each of its entries and each checkpoint of up to `window` entries later, so at
    most `window` for each size.  That makes window * size coins up to this one; and 32 is for the owner's choice of
    this one among all that came before and after, since 1 + 1/2 + ... + 1/n < 32 for logs of n <= 2^45 entries.
    Coins of several logs add up.
    Holds for an honest log.  One that gives its owner coins to choose from leaves her only what she can hash.
    """
    return (32 * window * size * logs - 1).bit_length()


# The argument


@cache
def query_error(log2_row: int, log2_rate_inverse: int, queries: int) -> tuple[Fraction, Fraction]:
    """(error of the column queries, list size of the Johnson bound).

    A row has 2^a slots and t random coefficients, k = 2^a + t, in a domain of n points.  A false statement agrees with
    the committed columns in at most the larger of n - floor((n-k)/2) (proximity) and 1.1 sqrt(2k/n) n (the linear and
    quadratic tests) of the n columns, of which t distinct ones are opened.
    """
    n = 1 << (log2_row + log2_rate_inverse)
    k = (1 << log2_row) + queries
    agree = isqrt(242 * k * n // 100)
    error = Fraction(comb(max(n - (n - k) // 2, agree), queries), comb(n, queries))
    return error, Fraction(n * (agree + 3 - 2 * k), (agree + 1) ** 2 - n * (2 * k - 2))


@dataclass(frozen=True)
class Parameters:
    """The free parameters of the polynomial commitment: 2^a slots in a row, rate 2^-r, t opened columns.

    Raises ParameterError outside their ranges, or when the column queries alone miss ARGUMENT_TARGET.
    """

    log2_row: int
    log2_rate_inverse: int = 3
    queries: int = 150

    def __post_init__(self) -> None:
        if not (8 <= self.log2_row <= MAX_LOG2_ROW and self.log2_rate_inverse in (3, 4) and 1 <= self.queries <= 255):
            raise ParameterError("row length, rate or number of queries out of range")
        if 2 * self.queries > self.row:
            raise ParameterError("a row has fewer than twice as many slots as there are queries")
        if self.query_error > Fraction(1, 1 << ARGUMENT_TARGET):
            raise ParameterError(
                f"{self.queries} column queries give {bits(self.query_error):.1f} bits, under {ARGUMENT_TARGET}"
            )

    @property
    def row(self) -> int:
        """Slots in a row."""
        return 1 << self.log2_row

    @property
    def degree(self) -> int:
        """k: number of coefficients of an encoded row, which hides any `queries` columns."""
        return self.row + self.queries

    @property
    def domain(self) -> int:
        """n: number of columns."""
        return self.row << self.log2_rate_inverse

    @property
    def query_error(self) -> Fraction:
        return query_error(self.log2_row, self.log2_rate_inverse, self.queries)[0]

    @property
    def list_size(self) -> Fraction:
        return query_error(self.log2_row, self.log2_rate_inverse, self.queries)[1]


@dataclass(frozen=True)
class Counts:
    """What the ledger counts in one argument."""

    leaves: int  # looked-up values, all trees together
    table_rows: int  # of all tables together
    trees: tuple[int, ...]  # log2 of the number of leaves of each tree, the table tree included
    affine_rounds: int  # rounds of all sumchecks of degree 2 outside the trees
    point_coordinates: int  # coordinates of the random points at which committed columns are compared
    equations: int  # linear equations, batched by powers of one challenge
    triples: int  # quadratic constraints, batched with independent coefficients
    rows: int  # committed rows over F
    link_coordinates: int  # pixels of one trigger, each axis padded to a power of two


@dataclass(frozen=True)
class Term:
    """One source of error, as a probability."""

    name: str
    error: Fraction

    def __str__(self) -> str:
        return f"{self.name}: 2^-{bits(self.error):.1f}"


@dataclass(frozen=True)
class Ledger:
    """The argument's statistical error by source, and what is assumed beside it."""

    terms: tuple[Term, ...]
    assumptions: tuple[str, ...]
    sessions: int = 1  # tries that a prover has in the interactive channel

    @property
    def total(self) -> Fraction:
        return self.sessions * sum((term.error for term in self.terms), Fraction(0))

    @property
    def bits(self) -> float:
        return bits(self.total)


def argument_ledger(counts: Counts, parameters: Parameters, interactive: bool) -> Ledger:
    """The ledger of one argument.  Raises ParameterError when the total misses ARGUMENT_TARGET.

    Challenges in K have a non-zero first coordinate, so they are drawn from (p-1) p^4 elements.  The proximity theorem
    is about uniform coefficients; that none of `rows` has a zero there costs at most the factor p / (p - rows).
    """
    size, field = (P - 1) * P ** (DEGREE - 1), P**DEGREE
    n, k = parameters.domain, parameters.degree
    layers = sum(2 * j + 2 for depth in counts.trees for j in range(depth))
    coordinates = LINK_REPETITIONS * (counts.link_coordinates - 1).bit_length()
    if counts.rows >= P:
        raise ParameterError("too many committed rows")
    terms = (
        # One Schwartz-Zippel in (alpha, beta) after clearing denominators of degree 2.
        Term("lookups", Fraction(2 * (counts.leaves + counts.table_rows), size)),
        # Layer j: j rounds of degree 2 (the equality factor is divided out), one point between the pair, one batching.
        Term("lookup trees", Fraction(layers, size)),
        Term("affine and output sumchecks", Fraction(2 * counts.affine_rounds, size)),
        Term("random points", Fraction(counts.point_coordinates, size)),
        Term("batched linear equations", parameters.list_size * Fraction(counts.equations, size)),
        Term("batched quadratic constraints", parameters.list_size * Fraction(1 if counts.triples else 0, size)),
        Term("proximity", Fraction(n, field) * Fraction(P, P - counts.rows) + Fraction((n - k) // 2, size)),
        Term("column queries", parameters.query_error),
        Term("link of pixels", Fraction(1, P**LINK_REPETITIONS) + Fraction(coordinates, size)),
        Term("link of labels", Fraction(1, P**LINK_REPETITIONS)),
        Term("openings checked at once", Fraction(1, 1 << 128)),  # the verifier's weights on the link's ten equations
    )
    if interactive:
        ledger = Ledger(terms, (DISCRETE_LOGARITHM, HASHES), SESSIONS)
    else:
        ledger = Ledger(terms, (DISCRETE_LOGARITHM, HASHES, FIAT_SHAMIR))
    if ledger.total > Fraction(1, 1 << ARGUMENT_TARGET):
        raise ParameterError(f"the argument has {ledger.bits:.1f} bits, under {ARGUMENT_TARGET}")
    return ledger


def opening_bytes(parameters: Parameters, rows: int) -> int:
    """Approximate size of the commitment's part of a proof: columns, authentication paths and the three tests."""
    t, k = parameters.queries, parameters.degree
    paths = t * (1 + parameters.domain.bit_length() - t.bit_length()) * 32
    return t * rows * 4 + paths + 4 * DEGREE * (k + (parameters.row + k) + 2 * k)


def choose_parameters(counts: Counts, rows: Callable[[int], int], log2_rate_inverse: int = 3) -> Parameters:
    """The parameters of the smallest proof; `rows(a)` is the number of committed rows of 2^a slots.

    For each row length the fewest queries are taken that have the first of QUERY_TARGETS (150 from 2^12 slots on at
    rate 1/8); where no row length reaches ARGUMENT_TARGET so, those that have the second.  Raises ParameterError when
    none does then.
    """
    for target in QUERY_TARGETS:
        found = []
        for a in range(8, MAX_LOG2_ROW + 1):
            try:
                parameters = Parameters(a, log2_rate_inverse, _queries(a, log2_rate_inverse, target))
                argument_ledger(replace(counts, rows=rows(a)), parameters, interactive=True)
            except ParameterError:
                continue
            found.append(parameters)
        if found:
            return min(found, key=lambda q: opening_bytes(q, rows(q.log2_row)))
    raise ParameterError(f"no parameters reach {ARGUMENT_TARGET} bits for this network and key")


@cache
def _queries(log2_row: int, log2_rate_inverse: int, target: int) -> int:
    """The fewest queries with `target` bits, which fall short where 255 do; their error falls with their number."""

    def enough(t: int) -> bool:
        return query_error(log2_row, log2_rate_inverse, t)[0] <= Fraction(1, 1 << target)

    return bisect_left(range(255), True, key=enough)

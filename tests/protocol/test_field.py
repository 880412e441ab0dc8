"""F and K against plain Python integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import field
from protocol.errors import DecodingError
from protocol.kernels import cpu

P = 15 * 2**27 + 1
numbers = st.one_of(st.sampled_from([0, 1, 2, P - 1, P - 2, (P - 1) // 2, 2**16, 2**16 - 1]), st.integers(0, P - 1))
elements = st.tuples(*[numbers] * 5)


def vectors(least=0, most=9):
    return st.lists(elements, min_size=least, max_size=most)


def k(values):
    """Plain 5-tuples to K."""
    return field.from_base(np.array(values, np.uint32).reshape(-1, 5).T)


def plain(vector):
    """K to plain 5-tuples."""
    return [tuple(row) for row in field.to_base(vector).T.tolist()]


def times(a, b):
    """The product modulo x^5 - 2."""
    out = [0] * 5
    for i in range(5):
        for j in range(5):
            out[(i + j) % 5] += a[i] * b[j] * (2 if i + j >= 5 else 1)
    return tuple(v % P for v in out)


def plus(a, b):
    return tuple((x + y) % P for x, y in zip(a, b, strict=True))


def scaled(a, n):
    return tuple(x * n % P for x in a)


def test_the_field_is_a_field():
    assert P == field.P and all(pow(2, e, P) != 1 for e in [(P - 1) // 5])  # x^5 - 2 has no root in F ...
    assert (P - 1) % 5 == 0 and pow(2, (P - 1) // 5, P) != 1  # ... and so is irreducible, for 5 divides p - 1
    assert all(pow(field.GENERATOR, (P - 1) // q, P) != 1 for q in (2, 3, 5))
    assert (P - 1) % 2**field.TWO_ADICITY == 0 and (P - 1) >> field.TWO_ADICITY == 15


@given(vectors())
def test_round_trips(values):
    a = k(values)
    assert plain(a) == values
    data = field.to_bytes(a)
    assert data == b"".join(v.to_bytes(4, "little") for element in values for v in element)
    assert field.equal(field.from_bytes(data), a)


@given(st.lists(st.tuples(elements, elements), max_size=9))
def test_arithmetic(pairs):
    one, two = [a for a, _ in pairs], [b for _, b in pairs]
    a, b = k(one), k(two)
    assert plain(field.add(a, b)) == [plus(x, y) for x, y in pairs]
    assert plain(field.sub(a, b)) == [plus(x, scaled(y, -1)) for x, y in pairs]
    assert plain(field.neg(a)) == [scaled(x, -1) for x in one]
    assert plain(field.mul(a, b)) == [times(x, y) for x, y in pairs]
    total = (0,) * 5
    for x, y in pairs:
        total = plus(total, times(x, y))
    assert plain(field.dot(a, b)) == [total]


@given(vectors(), vectors(1, 1), vectors())
def test_broadcasts_and_outer_products(values, scalar, others):
    a, s, b = k(values), k(scalar), k(others)
    expected = [times(x, scalar[0]) for x in values]
    assert plain(field.mul(a, s)) == expected and plain(field.mul(s, a)) == expected
    assert plain(field.outer(a, b)) == [times(x, y) for x in values for y in others]
    assert plain(field.concat([a, b])) == values + others
    total = (0,) * 5
    for x in values:
        total = plus(total, x)
    assert plain(field.total(a)) == [total]


def test_lengths_that_do_not_broadcast():
    with pytest.raises(ValueError, match="broadcast"):
        field.mul(field.zeros(2), field.zeros(3))


@given(vectors(1))
def test_inverse(values):
    inverses = plain(field.inverse(k(values)))
    for x, y in zip(values, inverses, strict=True):
        assert times(x, y) == ((1, 0, 0, 0, 0) if any(x) else (0,) * 5)


@given(elements)
def test_frobenius(x):
    power = (1, 0, 0, 0, 0)
    for bit in f"{P:b}":
        power = times(power, power)
        power = times(power, x) if bit == "1" else power
    assert plain(field.frobenius(k([x]))) == [power]


@given(elements, st.integers(0, 40))
def test_powers(x, n):
    expected = [(1, 0, 0, 0, 0)]
    for _ in range(n):
        expected.append(times(expected[-1], x))
    assert plain(field.powers(k([x]), n)) == expected[:n]
    assert plain(field.power(k([x]), n)) == expected[n:]


@given(st.lists(st.integers(-(2**62), 2**62), max_size=6), vectors(1, 1))
def test_integers(values, element):
    array = np.array(values, np.int64)
    assert field.residues(array).tolist() == [v % P for v in values]
    assert plain(field.embed(array)) == [(v % P, 0, 0, 0, 0) for v in values]
    for v in values:
        assert plain(field.constant(v)) == [(v % P, 0, 0, 0, 0)]
        assert plain(field.scale(k(element), v)) == [scaled(element[0], v)]
    assert plain(field.scale(k(element * len(values)), array)) == [scaled(element[0], v) for v in values]


@pytest.mark.parametrize("threads", [1, 3])
def test_integers_by_several_threads(threads, monkeypatch):
    """Every entry once, wherever it lies in memory."""
    monkeypatch.setattr(cpu, "THREADS", threads)
    array = np.random.default_rng(6).integers(-(2**63), 2**63 - 1, (2, 20011), endpoint=True)
    array[:, :2] = -(2**63), 2**63 - 1
    expected = [[v % P for v in row] for row in array.tolist()]
    assert field.residues(array).tolist() == expected
    assert field.residues(np.asfortranarray(array)).tolist() == expected
    assert field.residues(array[:, ::-3].T).T.tolist() == [row[::-3] for row in expected]
    assert field.residues(array[:, :0]).shape == (2, 0)


@given(st.integers(0, 4), st.integers(0, 5), st.data())
def test_combine(rows, n, data):
    values = [[data.draw(numbers) for _ in range(n)] for _ in range(rows)]
    weights = [data.draw(elements) for _ in range(n)]
    found = plain(field.combine(np.array(values, np.uint32).reshape(rows, n), k(weights)))
    expected = []
    for row in values:
        total = (0,) * 5
        for v, w in zip(row, weights, strict=True):
            total = plus(total, scaled(w, v))
        expected.append(total)
    assert found == expected


@pytest.mark.parametrize("n", [1, 7, 300, 1 << 16, (1 << 16) + 1, 300_000])
def test_combine_of_the_largest_values(n):
    """Sums of n products of (p - 1) stay within 64 bits."""
    found = field.combine(np.full((3, n), P - 1, np.uint32), np.full((5, n), P - 1, np.uint32))
    assert (found == n * (P - 1) ** 2 % P).all()


@pytest.mark.parametrize("value", [P, P + 1, 2**32 - 1])
@pytest.mark.parametrize("at", [0, 3, 9])
def test_non_canonical_elements_are_malformed(value, at):
    words = np.zeros(10, "<u4")
    words[at] = value
    with pytest.raises(DecodingError, match="canonical"):
        field.from_bytes(words.tobytes())


def test_truncated_elements_are_malformed():
    for n in range(1, 20):
        with pytest.raises(DecodingError, match="truncated"):
            field.from_bytes(bytes(n))

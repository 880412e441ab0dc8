"""The codes against naive polynomial evaluation, and the number of columns that say nothing about a row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import reed_solomon
from protocol.ligero import Expander

P = 15 * 2**27 + 1
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
sizes = st.sampled_from([1, 2, 4, 8, 16])
lanes = st.sampled_from([1, 2, 32, 33])


def at(coefficients, x):
    out = 0
    for c in reversed([int(c) for c in coefficients]):
        out = (out * x + c) % P
    return out


def draw(rng, *shape):
    values = rng.integers(0, P, shape, dtype=np.uint32)
    return np.where(rng.random(shape) < 0.2, rng.choice(np.array([0, 1, P - 1], np.uint32), shape), values)


def rank(matrix):
    """Of a matrix of integers modulo p."""
    rows, found = [np.array(r, object) for r in matrix], 0
    for c in range(len(matrix[0])):
        pivot = next((i for i in range(found, len(rows)) if rows[i][c] % P), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        rows[found] = rows[found] * pow(int(rows[found][c]), -1, P) % P
        for i in range(found + 1, len(rows)):
            rows[i] = (rows[i] - rows[i][c] * rows[found]) % P
        found += 1
    return found


@pytest.mark.parametrize("size", [1, 2, 256, 1 << 27])
def test_roots(size):
    w = reed_solomon.root(size)
    assert pow(w, size, P) == 1 and (size == 1 or pow(w, size // 2, P) == P - 1)


@given(seeds, sizes, lanes)
def test_subgroup(rng, size, count):
    coefficients = draw(rng, size, count)
    values = reed_solomon.evaluate_subgroup(coefficients)
    w = reed_solomon.root(size)
    for lane in range(count):
        assert [at(coefficients[:, lane], pow(w, j, P)) for j in range(size)] == values[:, lane].tolist()
    assert (reed_solomon.interpolate_subgroup(values) == coefficients).all()


@given(seeds, st.sampled_from([2, 4, 8, 16]), st.integers(1, 6), st.sampled_from([1, 3, 17]), st.sampled_from([2, 8]))
@settings(max_examples=50)
def test_encode(rng, size, t, count, cosets):
    t = min(t, size)
    values, masks = draw(rng, size, count), draw(rng, t, count)
    coefficients = reed_solomon.row_coefficients(values, masks)
    assert coefficients.shape == (size + t, count)
    words = reed_solomon.encode(values, masks, cosets)
    points = reed_solomon.domain_points(list(range(cosets * size)), size, cosets)
    w = reed_solomon.root(size)
    for lane in {0, count - 1}:
        row = coefficients[:, lane]
        assert row[size:].tolist() == masks[:, lane].tolist()
        assert [at(row, pow(w, j, P)) for j in range(size)] == values[:, lane].tolist()
        assert [at(row, x) for x in points] == words[:, lane].tolist()
    assert (reed_solomon.evaluate_domain(coefficients, size, cosets) == words).all()
    assert len({*points}) == len(points) and not {*points} & {pow(w, j, P) for j in range(size)}


@given(seeds, st.sampled_from([2, 4, 8]), st.integers(1, 30))
@settings(max_examples=40)
def test_evaluate_domain_of_any_degree(rng, size, length):
    coefficients = draw(rng, length, 2)
    points = reed_solomon.domain_points(list(range(4 * size)), size, 4)
    found = reed_solomon.evaluate_domain(coefficients, size, 4)
    assert [[at(coefficients[:, c], x) for c in range(2)] for x in points] == found.tolist()


@given(seeds, st.sampled_from([1, 2, 8, 16]))
@settings(max_examples=40)
def test_lagrange_and_powers(rng, size):
    values = draw(rng, size, 1)
    coefficients = reed_solomon.interpolate_subgroup(values)[:, 0]
    points = [int(x) for x in rng.choice(reed_solomon.domain_points(list(range(8 * size)), size, 8), 3)]
    basis = reed_solomon.lagrange(points, size)
    found = [sum(int(v) * int(b) for v, b in zip(values[:, 0], column, strict=True)) % P for column in basis]
    assert found == [at(coefficients, x) for x in points]
    table = reed_solomon.power_table(points, 11)
    assert [[pow(x, i, P) for i in range(11)] for x in points] == table.tolist()


@given(seeds, st.sampled_from([4, 8]), st.integers(1, 4))
@settings(max_examples=40)
def test_any_t_columns_are_uniform_whatever_the_row(rng, size, t):
    """Masks to t columns is a bijection: the columns are as uniform as the masks.  One column more is determined."""
    columns = sorted(rng.choice(8 * size, t + 1, replace=False).tolist())
    zero = np.zeros((size, t), np.uint32)
    words = reed_solomon.encode(zero, np.eye(t, dtype=np.uint32), 8)[columns]  # a column per basis mask
    assert rank(words[:t].tolist()) == t == rank(words.tolist())
    other = reed_solomon.encode(draw(rng, size, 1).repeat(t, 1), np.eye(t, dtype=np.uint32), 8)[columns]
    shift = (other.astype(np.int64) - words) % P  # the row's values only add a constant
    assert (shift == shift[:, :1]).all()


def test_opened_columns_look_uniform():
    """Chi-square of the opened entries of one row of pixels, over many encodings with fresh masks."""
    row = np.full((8, 1), 255, np.uint32)
    expander, t, count = Expander(b"s" * 32), 3, 4000
    masks = expander.base(t, count)
    columns = reed_solomon.encode(row.repeat(count, 1), masks, 8)[[1, 20, 63]]
    for values in columns:
        buckets = np.bincount((values.astype(np.int64) * 64 // P), minlength=64)
        assert ((buckets - count / 64) ** 2 / (count / 64)).sum() < 110  # 63 degrees of freedom, 2e-4
    unmasked = reed_solomon.encode(row.repeat(count, 1), masks * np.uint32(0), 8)[[1, 20, 63]]
    assert len(np.unique(unmasked)) == 1  # the test can fail: without masks a constant row shows itself

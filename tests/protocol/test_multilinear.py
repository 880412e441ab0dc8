"""Multilinear extensions against their definition, over axes of any real length."""

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from protocol import field
from protocol.multilinear import eq_table, eq_tensor, evaluate, lg, real

P = 15 * 2**27 + 1
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
axes = st.integers(1, 9)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def random_point(rng, shape):
    return [field.from_base(rng.integers(0, P, (5, lg(n)), dtype=np.uint32)) for n in shape]


def eq_at(x, i):
    """prod over bits b of i of x_b or 1 - x_b, lowest bit first."""
    out = field.ONE
    for b in range(x.shape[1]):
        bit = x[:, b : b + 1]
        out = field.mul(out, bit if i >> b & 1 else field.sub(field.ONE, bit))
    return out


def test_number_of_variables():
    assert [lg(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [0, 1, 2, 2, 3, 3, 4]


@given(seeds, axes)
def test_eq_table(rng, n):
    (x,) = random_point(rng, (n,))
    table = eq_table(x, n)
    assert table.shape == (5, n)
    for i in range(n):
        assert field.equal(table[:, i : i + 1], eq_at(x, i))
    full = eq_table(x, 1 << lg(n))
    assert field.equal(field.total(full), field.ONE)
    assert eq_table(x, 0).shape == (5, 0)
    assert field.equal(eq_table(x, 1 + (1 << lg(n))), full)  # there are no more


@given(seeds, shapes)
def test_tensors(rng, shape):
    point = random_point(rng, shape)
    expected, ones = [], field.ZERO
    for index in product(*map(range, shape)):
        weight = field.ONE
        for x, i in zip(point, index, strict=True):
            weight = field.mul(weight, eq_at(x, i))
        expected.append(weight)
        ones = field.add(ones, weight)
    tensor = eq_tensor(point, shape)
    assert field.equal(tensor, field.concat(expected)) and field.equal(real(point, shape), ones)
    values = rng.integers(0, P, shape, dtype=np.uint32)
    assert field.equal(evaluate(values, point, shape), field.dot(field.embed(values.reshape(-1)), tensor))


@given(seeds, shapes)
def test_extension_of_the_cube(rng, shape):
    """At an index, the extension is the entry; at a padding index it is 0."""
    values = rng.integers(0, P, shape, dtype=np.uint32)
    index = [int(rng.integers(0, 1 << lg(n))) for n in shape]
    bits = [[i >> b & 1 for b in range(lg(n))] for i, n in zip(index, shape, strict=True)]
    point = [field.embed(np.array(b, np.int64)) for b in bits]
    inside = all(i < n for i, n in zip(index, shape, strict=True))
    expected = int(values[tuple(index)]) if inside else 0
    assert field.equal(evaluate(values, point, shape), field.constant(expected))
    assert field.equal(real(point, shape), field.constant(int(inside)))


@given(seeds, axes)
def test_axes_of_length_one_have_no_coordinates(rng, n):
    (x,) = random_point(rng, (n,))
    none = field.zeros(0)
    assert field.equal(eq_tensor([none, x, none], (1, n, 1)), eq_table(x, n))

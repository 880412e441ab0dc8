"""Every kernel against a plain loop over Python integers; `test_device` has some of the checks, too."""

import itertools
from functools import partial, reduce
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from protocol import field, reed_solomon
from protocol.kernels import cpu

P = 15 * 2**27 + 1
EDGES = np.array([0, 1, P - 1, P - 2, 2**16, 2**31 % P], np.uint32)


def times(a, b):
    out = [0] * 5
    for i in range(5):
        for j in range(5):
            out[(i + j) % 5] += a[i] * b[j] * (2 if i + j >= 5 else 1)
    return [v % P for v in out]


def combined(*terms):
    """Sum of (sign, element) pairs."""
    return [sum(sign * x[c] for sign, x in terms) % P for c in range(5)]


def plain(vector):
    return field.to_base(vector).T.tolist()


def random_base(rng, *shape):
    """Uniform elements of F with many edge cases among them."""
    values = rng.integers(0, P, shape, dtype=np.uint32)
    return np.where(rng.random(shape) < 0.3, rng.choice(EDGES, shape), values)


def random_k(rng, n):
    return field.from_base(np.ascontiguousarray(random_base(rng, 5, n)))


seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
lengths = st.sampled_from([1, 2, 3, 5, 8, 17])


def test_parallel_covers_every_row_once():
    for rows in (0, 1, 2, 3, 7, 100):
        for work in (0, 1 << 20):
            ranges = cpu.parallel(lambda a, b: (a, b), rows, work)
            assert [i for a, b in ranges for i in range(a, b)] == list(range(rows))


def test_an_error_in_a_thread_is_raised():
    def fail(a, b):
        if b == 100:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cpu.parallel(fail, 100, 1 << 20)


def check_products(k, rng, n):
    """Products, sums and differences of elements; also of every pair."""
    a, b = random_k(rng, n), random_k(rng, n)
    x, y, out, wide = k.to_device(a), k.to_device(b), k.empty(n), k.empty(n * n)
    k.k_mul(x, y, out)
    pairs = list(zip(plain(a), plain(b), strict=True))
    assert plain(k.to_host(out)) == [times(*pair) for pair in pairs]
    k.k_outer(x, y, wide)
    assert plain(k.to_host(wide)) == [times(x, y) for x in plain(a) for y in plain(b)]
    assert plain(k.to_host(k.k_add(x, y))) == [combined((1, x), (1, y)) for x, y in pairs]
    assert plain(k.to_host(k.k_sub(x, y))) == [combined((1, x), (-1, y)) for x, y in pairs]


@given(seeds, lengths)
def test_products(rng, n):
    check_products(cpu, rng, n)


def check_products_of_the_extremes(k):
    """Every coordinate at its stored extremes: the 64-bit sums of five products do not overflow."""
    values = np.array([0, 1, P - 1, P - 2], np.uint32)
    every = np.stack(np.meshgrid(*[values] * 5, indexing="ij")).reshape(5, -1)  # stored (Montgomery) words
    a, b = (np.ascontiguousarray(every[:, ::step]) for step in (37, 31))
    out = k.empty(a.shape[1] * b.shape[1])
    k.k_outer(k.to_device(a), k.to_device(b), out)
    assert plain(k.to_host(out)) == [times(x, y) for x in plain(a) for y in plain(b)]


def test_products_of_the_extremes():
    check_products_of_the_extremes(cpu)


def check_scale_and_sum(k, rng, n):
    values, factor = random_base(rng, n), random_base(rng, 1)[0]
    out = k.words(n)
    k.f_scale(k.to_device(values), factor, out)
    unit = pow(2**32, -1, P)
    assert k.to_host(out).tolist() == [int(v) * int(factor) * unit % P for v in values]
    factors, lanes = random_base(rng, n), k.words(n, 3)
    k.f_scale_rows(k.to_device(np.stack([values, values[::-1], factors], axis=1)), factors, lanes)
    columns = [[int(v) * int(f) * unit % P for v, f in zip(column, factors, strict=True)]
               for column in (values, values[::-1], factors)]  # fmt: skip
    assert k.to_host(lanes).T.tolist() == columns
    a = random_k(rng, n)
    assert plain(k.k_sum(k.to_device(a))) == [combined(*((1, x) for x in plain(a)))]


@given(seeds, lengths)
def test_scale_and_sum(rng, n):
    check_scale_and_sum(cpu, rng, n)


def check_largest_sums(k):
    """Of as many of the largest values as a proof may add up at once: they do not overflow."""
    assert (k.k_sum(k.to_device(np.full((5, 1 << 18), P - 1, np.uint32))) == (-(1 << 18)) % P).all()
    values, half = np.full((1, cpu.MAX_TERMS), P - 1, np.uint32), np.full((5, cpu.MAX_TERMS), 0xFFFF, np.uint32)
    out, halves = k.empty(1), k.to_device(half)
    k.combine(k.to_device(values), halves, halves, out, 0, 1)
    assert (k.to_host(out) == -cpu.MAX_TERMS * 0xFFFFFFFF % P).all()


def test_largest_sums():
    check_largest_sums(cpu)


@given(seeds, lengths, st.integers(0, 20))
def test_scatter_add(rng, n, m):
    target, values, index = random_k(rng, n), random_k(rng, m), rng.integers(0, n, m)
    expected = plain(target)
    for i, v in zip(index.tolist(), plain(values), strict=True):
        expected[i] = combined((1, expected[i]), (1, v))
    cpu.scatter_add(target, index, values)
    assert plain(target) == expected


def cell(vector, n, inner, o, j, i, pad):
    """Entry [o, j, i] of a plain tensor; `pad` past the end."""
    return vector[(o * n + j) * inner + i] if j < n else pad


tensors = st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 5]))


def spans(k, rows):
    """The rows in two parts; a device takes them at once."""
    return ((0, rows // 2), (rows // 2, rows)) if k is cpu else ((0, rows),)


def check_fold(k, rng, dims):
    outer, n, inner = dims
    half = (n + 1) // 2
    tables, r, pads = [random_k(rng, outer * n * inner) for _ in range(3)], random_k(rng, 1), random_k(rng, 3)
    there, folded = k.to_device(np.concatenate(tables)), k.empty(outer * half * inner, 3)
    for a, b in spans(k, outer * half):
        k.fold(there, folded, n, inner, r, pads, a, b)
    (r0,), outs = plain(r), np.split(k.to_host(folded), 3)
    for table, pad, out in zip(tables, plain(pads), outs, strict=True):
        t, expected = plain(table), []
        for o in range(outer):
            for j in range(half):
                for i in range(inner):
                    low, high = cell(t, n, inner, o, 2 * j, i, pad), cell(t, n, inner, o, 2 * j + 1, i, pad)
                    expected.append(combined((1, low), (1, times(r0, combined((1, high), (-1, low))))))
        assert plain(out) == expected


@given(seeds, tensors)
def test_fold(rng, dims):
    check_fold(cpu, rng, dims)


def check_round_sums(k, rng, dims):
    outer, n, inner = dims
    half = (n + 1) // 2
    tables = [random_k(rng, outer * n * inner) for _ in range(4)]
    weights, pads = [random_k(rng, count) for count in (outer, half, inner)], random_k(rng, 4)
    there = k.to_device(np.concatenate(tables))
    parts = [k.round_sums(there, pads, n, inner, *weights, a, b) for a, b in spans(k, outer * half)]
    found = plain(reduce(field.add, parts))
    t, (u, w, v), e = [plain(x) for x in tables], [plain(x) for x in weights], plain(pads)
    zero, square = [0] * 5, [0] * 5
    for o in range(outer):
        for j in range(half):
            for i in range(inner):
                low, high = (
                    [cell(t[m], n, inner, o, 2 * j + side, i, e[m]) for m in range(4)] for side in (0, 1))
                slope = [combined((1, x), (-1, y)) for x, y in zip(high, low, strict=True)]
                factor = times(times(u[o], w[j]), v[i])
                for total, (a, b, c, d) in ((zero, low), (square, slope)):
                    value = times(factor, combined((1, times(a, b)), (1, times(c, d))))
                    total[:] = combined((1, total), (1, value))
    assert found == [zero, square]


@given(seeds, tensors)
@settings(max_examples=60)
def test_round_sums(rng, dims):
    check_round_sums(cpu, rng, dims)


def pairs_of(vector, dims, absent):
    """Neighbors along the middle axis of a plain tensor, in the order of the halved one."""
    outer, n, inner = dims
    return [[cell(vector, n, inner, o, 2 * j + side, i, absent) for side in (0, 1)]
            for o in range(outer) for j in range((n + 1) // 2) for i in range(inner)]  # fmt: skip


ONE, ZERO = [1, 0, 0, 0, 0], [0] * 5


def check_tree_levels(k, rng, dims, ones):
    """Parents and children of a level, with numerators of its own or all 1."""
    outer, n, inner = dims
    rows = outer * ((n + 1) // 2)
    q, s = random_k(rng, outer * n * inner), random_k(rng, 1)
    p = np.repeat(field.ONE, q.shape[1], axis=1) if ones else random_k(rng, outer * n * inner)
    numerators, denominators = pairs_of(plain(p), dims, ZERO), pairs_of(plain(q), dims, ONE)
    given_p, given_q = k.empty(0) if ones else k.to_device(p), k.to_device(q)
    out, apart = [k.empty(rows * inner) for _ in range(2)], k.empty(rows * inner, 4)
    for first, last in spans(k, rows):
        if ones:
            k.tree_leaves(given_q, *out, n, inner, first, last)
        else:
            k.tree_level(given_p, given_q, *out, n, inner, first, last)
        k.tree_open(given_p, given_q, s, apart, n, inner, first, last)
    parent_p, parent_q, a, q1, p1, q0 = *map(k.to_host, out), *np.split(k.to_host(apart), 4)
    both = list(zip(numerators, denominators, strict=True))
    assert plain(parent_p) == [combined((1, times(x0, y1)), (1, times(x1, y0))) for (x0, x1), (y0, y1) in both]
    assert plain(parent_q) == [times(y0, y1) for _, (y0, y1) in both]
    (factor,) = plain(s)
    assert plain(a) == [combined((1, x0), (1, times(factor, y0))) for (x0, _), (y0, _) in both]
    assert [plain(q0), plain(q1)] == [[y[side] for _, y in both] for side in (0, 1)]
    assert plain(p1) == [x1 for (_, x1), _ in both]


@given(seeds, tensors, st.booleans())
def test_tree_levels(rng, dims, ones):
    check_tree_levels(cpu, rng, dims, ones)


def check_leaves(k, rng, dims):
    offset, n = dims[0] - 1, dims[1] * dims[2]
    constant, alpha, alpha2 = (random_k(rng, 1) for _ in range(3))
    v1, v2 = random_base(rng, n), random_base(rng, n)
    there, columns = k.to_device(field.zeros(n + offset)), (k.to_device(v1), k.to_device(v2))
    shifted = field.from_base(alpha), field.from_base(alpha2)
    for a, b in spans(k, n):
        k.leaves(constant, *shifted, *columns, there, offset, a, b)
    out = k.to_host(there)
    (c,), (x,), (y,) = plain(constant), plain(alpha), plain(alpha2)
    expected = [[(c[k] - x[k] * int(a) - y[k] * int(b)) % P for k in range(5)] for a, b in zip(v1, v2, strict=True)]
    assert plain(out) == [[0] * 5] * offset + expected


@given(seeds, tensors)
def test_leaves(rng, dims):
    check_leaves(cpu, rng, dims)


def check_combine(k, rng, rows, n):
    values, weights = random_base(rng, rows, n), random_k(rng, n)
    halves = [k.to_device(half) for half in (weights & np.uint32(0xFFFF), weights >> np.uint32(16))]
    there, out = k.to_device(values), k.empty(rows)
    for a, b in spans(k, rows):
        k.combine(there, *halves, out, a, b)
    w = plain(weights)
    assert plain(k.to_host(out)) == [combined(*((int(v), w[i]) for i, v in enumerate(row))) for row in values]


@given(seeds, st.integers(1, 4), st.sampled_from([1, 2, 9]))
def test_combine(rng, rows, n):
    check_combine(cpu, rng, rows, n)


def values_at(coefficients, points):
    """[points][lanes] of the polynomials in the columns of a matrix."""
    columns = coefficients.T.tolist()
    return [[sum(v * pow(x, i, P) for i, v in enumerate(column)) % P for column in columns] for x in points]


def check_transform(k, size, lanes):
    """Values of polynomials on a subgroup, and back.  By the codes, which prepare what the kernel is given."""
    matrix = random_base(np.random.default_rng(size * 100 + lanes), size, lanes)
    found = reed_solomon.evaluate_subgroup(k.to_device(matrix))
    w = reed_solomon.root(size)
    assert k.to_host(found).tolist() == values_at(matrix, [pow(w, j, P) for j in range(size)])
    assert (k.to_host(reed_solomon.interpolate_subgroup(found)) == matrix).all()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("lanes", [1, 15, 17, 32, 65])
def test_transform(size, lanes):
    """With every group of lanes at once."""
    check_transform(cpu, size, lanes)


def check_encode(k, size, masks, lanes):
    """Codewords are the values on the domain of the rows' polynomials."""
    rng = np.random.default_rng(size * 100 + lanes)
    values, masks = random_base(rng, size, lanes), random_base(rng, masks, lanes)
    coefficients = reed_solomon.row_coefficients(k.to_device(values), k.to_device(masks))
    rows = k.to_host(coefficients)
    assert values_at(rows, [pow(reed_solomon.root(size), j, P) for j in range(size)]) == values.tolist()
    assert (rows[size:] == masks).all()
    code = reed_solomon.encode(k.to_device(values), k.to_device(masks), 4)
    points = reed_solomon.domain_points(range(4 * size), size, 4)
    assert k.to_host(code).tolist() == values_at(rows, points)


@pytest.mark.parametrize("size, masks", [(1, 1), (2, 1), (4, 3), (8, 8)])
@pytest.mark.parametrize("lanes", [1, 33])
def test_encode(size, masks, lanes):
    check_encode(cpu, size, masks, lanes)


def check_taps(k, rng, dtype, window):
    """Gathered taps, in two parts, their product with a matrix, and channels under kernels of their own."""
    kernel, stride, dilation, before = window
    x = rng.integers(-99, 99, (3, 5, 4, 2)).astype(dtype)
    rows, columns = (
        np.array([[i if 0 <= (i := stride * p + dilation * t - before) < n else -1 for p in range(2)]
                  for t in range(kernel)]) for n in x.shape[1:3]
    )  # fmt: skip
    expected = np.zeros((3, kernel, kernel, 4, 2))
    for c, ky, kx, j in np.ndindex(expected.shape[:4]):
        row, column = rows[ky, j // 2], columns[kx, j % 2]
        expected[c, ky, kx, j] = x[c, row, column] if min(row, column) >= 0 else 0
    there = k.plain(k.to_device(x))
    parts = [k.reals(3, kernel, kernel, n, 2) for n in (1, 3)]
    for part, start in zip(parts, (0, 1), strict=True):
        k.gather(there, rows, columns, part, start)
    taps = k.join(parts, 3)
    assert (as_reals(k, taps) == expected).all()

    matrix, out = rng.integers(-9, 9, (6, 3 * kernel**2)).astype(float), k.reals(6, 8)
    k.matmul(k.to_device(matrix), taps.reshape(len(matrix.T), 8), out)
    assert (as_reals(k, out) == matrix @ expected.reshape(-1, 8)).all()

    weight, total = rng.integers(-9, 9, (3, kernel, kernel)).astype(float), k.reals(3, 2, 2, 2)
    total[:] = 1
    for a, b in spans(k, 3):
        k.depthwise(there, k.to_device(weight), rows, columns, total, a, b)
    sums = (weight[..., None, None] * expected).sum(axis=(1, 2)).reshape(total.shape)
    assert (as_reals(k, total) == 1 + sums).all()


def as_reals(k, array):
    return k.to_host(array).view(np.float64)


TAPS = [*itertools.product((np.int32, np.int64, np.float64), [(1, 1, 1, 0), (3, 2, 1, 1), (2, 1, 3, 2)])]


@pytest.mark.parametrize("dtype, window", TAPS)
def test_taps(dtype, window):
    check_taps(cpu, np.random.default_rng(1), dtype, window)


def test_blas_has_its_threads_again_when_nobody_limits_it():
    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before, first, second = threads(), cpu.single_blas(), cpu.single_blas()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert threads() == [1] * len(before)
        second.__exit__(None, None, None)
        assert threads() == before


def check_requantize(k, rng, shift):
    """Units, remainders and outputs of integers as large as they may be; negative ones, too."""
    bits, channels, n = 5, 3, 7
    half = 1 << (bits + shift - 1)
    table, offset = rng.integers(-(2**29), 2**29, 1 << bits), 1 << (shift - 1) if shift else 0
    bias = rng.integers(-(2**20), 2**20, channels)
    sums = rng.integers(-half, half, (channels, n))
    sums[0, :2] = -half, half - 1
    y = k.to_device((sums - offset - bias[:, None]).astype(np.float64))
    u, rem, z = (k.integers(channels, n) for _ in range(3))
    for a, b in spans(k, channels):
        k.requantize(y, k.to_device(bias), offset, shift, k.to_device(table), u, rem, z, a, b)
    units, remainders = sums >> shift, sums & ((1 << shift) - 1)
    expected = units, remainders, table[units + (1 << (bits - 1))]
    for found, right in zip((u, rem, z), expected, strict=True):
        assert (k.to_host(found).astype(np.int32) == right).all()


@pytest.mark.parametrize("shift", [0, 1, 7, 24])
def test_requantize(shift):
    check_requantize(cpu, np.random.default_rng(shift), shift)


def check_counts(k, rng, n):
    """Signed integers as elements of F, and how often each occurs."""
    values = rng.choice(np.array([0, 1, -1, 3 - P, P - 1, 2**30, -(2**30)], np.int32), n)
    there, out = k.to_device(values), k.words(n)
    for a, b in spans(k, n):
        k.residues(there, out, a, b)
    assert k.to_host(out).tolist() == [int(v) % P for v in values]
    small = rng.integers(-4, 4, n, dtype=np.int32)
    counts = sum(k.histogram(k.to_device(small), 4, 9, a, b) for a, b in spans(k, n))
    assert counts.tolist() == [int((small == v).sum()) for v in range(-4, 5)]


@given(seeds, lengths)
def test_counts(rng, n):
    check_counts(cpu, rng, n)


def check_columns(k, rng, widths):
    """Columns that arrive in blocks of any width are hashed as one."""
    prefixes = rng.integers(0, 256, (8, 33), np.uint8)
    blocks = [random_base(rng, 8, width) for width in widths]
    leaves = k.Leaves(prefixes)
    for block in blocks:
        leaves.update(k.to_device(block))
    columns = [b"".join(block[i].astype("<u4").tobytes() for block in blocks) for i in range(8)]
    expected = [sha256(p.tobytes() + c).digest() for p, c in zip(prefixes, columns, strict=True)]
    assert leaves.digests() == b"".join(expected)


WIDTHS = [(), (1,), (4,), (5,), (6,), (7,), (8,), (3, 2, 40), (8, 16, 1), (600,)]


@pytest.mark.parametrize("widths", WIDTHS)
def test_columns(widths):
    check_columns(cpu, np.random.default_rng(1), widths)


def test_threads_change_nothing(monkeypatch):
    """The same results on one core and on many."""
    rng = np.random.default_rng(1)
    values, weights = random_base(rng, 700, 40), random_k(rng, 40)
    many = field.combine(values, weights)
    monkeypatch.setattr(cpu, "parallel", partial(lambda call, rows, work: [call(0, rows)]))
    assert field.equal(field.combine(values, weights), many)

"""The commitment: Ligero over Reed-Solomon rows, with hiding (SPEC section 8).

The matrix of committed values, one row per line, N = 2^a slots per row:

    images   for each chunk of N entries of the images' vectors: h rows, one per image
    arrays   each array on its own rows, in the order of layout.arrays (unused slots are zero)
    pads     rows of K, five rows of F each: x of all triples, y, x y, then the free pads
    blinding three polynomials of K, five rows each: proximity, linear, quadratic

Each row is a polynomial of degree below k = N + t: N values on the subgroup H, and t uniform coefficients, so that any
t columns are uniform.  Columns are hashed with salts into a Merkle tree.  Three tests, each hidden by its blinding row:

    proximity  p = blinding + sum of random multiples of all rows has degree below k
    linear     sum over H of  p = blinding + sum A_row row  is the claimed sum; A_row interpolates the coefficients
    quadratic  p = blinding + sum c_j (x_j y_j - z_j) vanishes on H

An image row's coefficients for one group of claims are (batch weight of the image) times a vector over the slots that
all images share: both parties work with h weights and one vector per group and chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import numpy as np
from Crypto.Cipher import AES

from protocol import field, kernels, merkle, reed_solomon
from protocol.encoding import Reader
from protocol.errors import VerificationError
from protocol.field import Vector
from protocol.matrix import LinearTest, Matrix, Shape, coefficient_rows, combine, fill, pad_matrix, stacked
from protocol.pads import System
from protocol.transcript import BaseStream, Masked, MaskedElements, Messages, Transcript

_BATCH = 16  # rows of K that are transformed together
BLOCK_BYTES = 1 << 29  # of codewords that are hashed together: some 2 KiB of a column
KEPT_BYTES = 1 << 28  # of codewords that are kept until columns are opened; more are encoded again


class Expander:
    """Uniform field elements from a 32-byte seed: AES-256 in counter mode, words of p or more skipped."""

    def __init__(self, seed: bytes) -> None:
        self._cipher = AES.new(seed, AES.MODE_CTR, nonce=bytes(8))
        self._stream = BaseStream(self.bytes)

    def bytes(self, count: int) -> bytes:
        return self._cipher.encrypt(bytes(count))

    def base(self, *shape: int) -> Matrix:
        return self._stream.take(prod(shape)).reshape(shape)

    def vector(self, count: int) -> Vector:
        return field.from_base(self.base(field.DEGREE, count))


class Committed:
    """The prover's side: the matrix, its randomness and its tree."""

    def __init__(
        self, shape: Shape, images: Matrix, arrays: dict[str, Matrix], pads: Vector, expander: Expander
    ) -> None:
        """images uint32 [depth, h], arrays by name, pads [5, pad_count]; expander: fresh for every proof.

        The matrix is encoded and tested where the images are.
        """
        self.shape = shape
        size, t = shape.size, shape.queries
        self._images, k = images, kernels.of(images)
        flat = np.zeros((shape.array_total, size), np.uint32)
        for name, (first, count) in shape.array_rows.items():
            flat[first : first + count].reshape(-1)[: len(arrays[name])] = arrays[name]
        self._arrays = k.to_device(np.ascontiguousarray(flat.T))
        self._pads = k.to_device(np.ascontiguousarray(field.to_base(stacked(pad_matrix(shape, pads), size)).T))
        lanes = (*[shape.layout.h] * shape.chunks, shape.array_total, field.DEGREE * shape.pad_rows)
        self._masks = [k.to_device(expander.base(t, count)) for count in lanes]
        prox, lin, quad = (expander.vector(count) for count in shape.blinding)
        lin[:, 0] = field.neg(field.add(lin[:, size : size + 1], lin[:, 2 * size : 2 * size + 1]))[:, 0]
        quotient = quad[:, : shape.blinding[2] - size]
        quad = field.zeros(shape.blinding[2])
        quad[:, size:] = quotient
        quad[:, : quotient.shape[1]] = field.sub(quad[:, : quotient.shape[1]], quotient)
        self._blinding = (prox, lin, quad)
        self._salts = expander.bytes(merkle.SALT_BYTES * shape.columns)
        leaves = k.Leaves(merkle.prefixes(self._salts))
        self._kept: list[Matrix] | None = [] if 4 * shape.columns * shape.column_rows <= KEPT_BYTES else None
        for block in self._encode():
            leaves.update(block)
            if self._kept is not None:
                self._kept.append(block)
        self._tree = merkle.Tree(leaves.digests(), k)

    @property
    def root(self) -> Masked:
        return Masked(self._tree.root)

    def _salt(self, column: int) -> bytes:
        return self._salts[merkle.SALT_BYTES * column : merkle.SALT_BYTES * (column + 1)]

    def _values(self) -> list[Matrix]:
        """The matrix by blocks [N, rows of the block], in the order of a column."""
        size, k, out = self.shape.size, kernels.of(self._images), []
        for c in range(self.shape.chunks):
            block = self._images[c * size : (c + 1) * size]
            if len(block) < size:
                block = k.join([block, k.words(size - len(block), block.shape[1])], 0)
            out.append(block)
        return [*out, self._arrays, self._pads]

    def _encode(self) -> Iterator[Matrix]:
        """Encoded blocks [n, rows of the block]; narrow ones together, up to BLOCK_BYTES."""
        rate, values, k = self.shape.rate_inverse, self._values(), kernels.of(self._images)
        most = max(1, BLOCK_BYTES // (4 * self.shape.columns))  # rows
        at = 0
        while at < len(values):
            end, rows = at + 1, values[at].shape[1]
            while end < len(values) and rows + values[end].shape[1] <= most:
                rows, end = rows + values[end].shape[1], end + 1
            yield reed_solomon.encode(k.join(values[at:end], 1), k.join(self._masks[at:end], 1), rate)
            at = end
        coefficients = np.zeros((self.shape.blinding[2], 3 * field.DEGREE), np.uint32)
        for i, polynomial in enumerate(self._blinding):
            canonical = field.to_base(polynomial)
            coefficients[: canonical.shape[1], field.DEGREE * i : field.DEGREE * (i + 1)] = canonical.T
        yield reed_solomon.evaluate_domain(k.to_device(coefficients), self.shape.size, rate)

    def proximity(self, coefficients: Vector) -> MaskedElements:
        """p [5, k] for coefficients [5, rows]."""
        total, masks, at = field.zeros(self.shape.size), field.zeros(self.shape.queries), 0
        for values, mask in zip(self._values(), self._masks, strict=True):
            part = np.ascontiguousarray(coefficients[:, at : at + values.shape[1]])
            total = field.add(total, field.combine(values, part))
            masks = field.add(masks, field.combine(mask, part))
            at += values.shape[1]
        row = kernels.to_host(reed_solomon.row_coefficients(total.T, masks.T).T)
        return MaskedElements(field.add(np.ascontiguousarray(row), self._blinding[0]))

    def linear(self, test: LinearTest) -> MaskedElements:
        """p [5, N + k - 1]."""
        shape, size, k = self.shape, self.shape.size, kernels.of(self._images)
        arrays, pads = map(k.to_device, coefficient_rows(shape, test))
        values, total, keys = self._values(), field.zeros(4 * size), list(test.chunks)
        for first in range(0, len(keys), _BATCH):
            part = keys[first : first + _BATCH]
            rows = k.join([field.combine(values[c], test.weights[group]) for group, c in part], 0)
            masks = k.join([field.combine(self._masks[c], test.weights[group]) for group, c in part], 0)
            left = _coefficients_at(k.to_device(np.concatenate([test.chunks[key] for key in part])), 4 * size)
            right = _values_at(reed_solomon.row_coefficients(rows.T, masks.T), 4 * size)
            for i in range(len(part)):
                total = field.add(total, field.mul(_five(left, i), _five(right, i)))
        for first in range(0, shape.array_total, _BATCH):
            left = _coefficients_at(arrays[5 * first : 5 * (first + _BATCH)], 4 * size)
            lanes = slice(first, first + _BATCH)
            rows = reed_solomon.row_coefficients(self._arrays[:, lanes], self._masks[-2][:, lanes])
            right = _values_at(rows, 4 * size)
            for i in range(right.shape[1]):
                embedded = k.join([right[:, i : i + 1].T, k.words(field.DEGREE - 1, 4 * size)], 0)
                total = field.add(total, field.mul(_five(left, i), field.from_base(embedded)))
        for first in range(0, shape.pad_rows, _BATCH):
            left = _coefficients_at(pads[5 * first : 5 * (first + _BATCH)], 4 * size)
            lanes = slice(5 * first, 5 * (first + _BATCH))
            rows = reed_solomon.row_coefficients(self._pads[:, lanes], self._masks[-1][:, lanes])
            right = _values_at(rows, 4 * size)
            for i in range(right.shape[1] // 5):
                total = field.add(total, field.mul(_five(left, i), _lane(right, i)))
        product = kernels.to_host(reed_solomon.interpolate_subgroup(total.T).T)
        return MaskedElements(field.add(np.ascontiguousarray(product[:, : shape.blinding[1]]), self._blinding[1]))

    def quadratic(self, coefficients: Vector) -> MaskedElements:
        """p [5, 2 k - 1] for coefficients [5, products + triple rows]."""
        shape, size = self.shape, self.shape.size
        products = shape.products()
        # The arrays are small: their products are taken on the host.
        rows = kernels.to_host(
            _values_at(reed_solomon.row_coefficients(self._arrays, self._masks[-2]), 4 * size)).astype(np.uint64)
        gaps = np.stack([(rows[:, x] * rows[:, y] + (field.P - rows[:, z])) % np.uint64(field.P)
                         for x, y, z in products], axis=1).astype(np.uint32)
        total = field.combine(gaps, np.ascontiguousarray(coefficients[:, : len(products)]))
        wide = _values_at(reed_solomon.row_coefficients(self._pads, self._masks[-1]), 4 * size)
        for r in range(shape.triple_rows):
            x, y, z = (_lane(wide, r + i * shape.triple_rows) for i in range(3))
            gap = field.sub(field.mul(x, y), z)
            at = len(products) + r
            total = field.add(total, field.mul(gap, np.ascontiguousarray(coefficients[:, at : at + 1])))
        product = kernels.to_host(reed_solomon.interpolate_subgroup(total.T).T)
        return MaskedElements(field.add(np.ascontiguousarray(product[:, : shape.blinding[2]]), self._blinding[2]))

    def open(self, columns: list[int], out: Messages) -> None:
        """Send the columns, their salts and the siblings."""
        blocks = self._encode() if self._kept is None else self._kept
        parts = [kernels.to_host(block[columns]) for block in blocks]
        out.send(Masked(np.ascontiguousarray(np.concatenate(parts, axis=1)).astype("<u4").tobytes()))
        out.send(Masked(b"".join(self._salt(i) for i in columns)))
        out.send(Masked(b"".join(self._tree.open(columns))))


def _values_at(coefficients: Matrix, size: int) -> Matrix:
    padded: Matrix = kernels.of(coefficients).words(size, coefficients.shape[1])
    padded[: len(coefficients)] = coefficients
    return reed_solomon.evaluate_subgroup(padded)


def _coefficients_at(rows: Matrix, size: int) -> Matrix:
    """Values [size, 5 m] on the subgroup of that order of the interpolants of coefficient rows [5 m, N]."""
    return _values_at(reed_solomon.interpolate_subgroup(rows.T), size)


def _five(matrix: Matrix, row: int) -> Vector:
    """Row number `row` of K out of columns [points, 5 rows], as they are."""
    return matrix[:, 5 * row : 5 * row + 5].T


def _lane(matrix: Matrix, row: int) -> Vector:
    """Row number `row` of K out of canonical columns [points, 5 rows]."""
    return field.from_base(matrix[:, 5 * row : 5 * row + 5].T)


Challenges = tuple[Vector, Vector]


def _test_challenges(shape: Shape, transcript: Transcript) -> Challenges:
    """Coefficients of the proximity test (independent per row) and of the quadratic test."""
    products = len(shape.products()) + shape.triple_rows
    return transcript.challenge("proximity", shape.rows), transcript.challenge("quadratic", products)


def prove(committed: Committed, systems: Sequence[System], transcript: Transcript, out: Messages,
          progress: Callable[[float], None] = lambda fraction: None) -> None:
    """Send the commitment's part of the proof: three polynomials, then the opened columns."""
    shape = committed.shape
    test = combine(shape, systems, transcript.challenge("equations"))
    proximity, quadratic = _test_challenges(shape, transcript)
    progress(0.1)
    polynomials = [committed.proximity(proximity), committed.linear(test), committed.quadratic(quadratic)]
    progress(0.6)
    for name, polynomial in zip(("proximity", "linear", "quadratic"), polynomials, strict=True):
        transcript.absorb_elements(f"{name}.polynomial", polynomial)
        out.send_elements(polynomial)
    committed.open(transcript.challenge_indices("columns", shape.queries, shape.columns), out)
    progress(1.0)


def verify(shape: Shape, root: bytes, systems: Sequence[System], transcript: Transcript, reader: Reader) -> None:
    """Statement: the committed entries satisfy every equation of `systems` and the products of the layout.

    Checks (SPEC section 8): quadratic.zero, linear.sum, merkle.path, proximity.columns, linear.columns,
    quadratic.columns; degrees hold by the lengths that are read.  Soundness error: `soundness.argument_ledger`.
    """
    size = shape.size
    test = combine(shape, systems, transcript.challenge("equations"))
    proximity, quadratic = _test_challenges(shape, transcript)
    polynomials = [MaskedElements(field.from_bytes(reader.raw(count * field.ELEMENT_BYTES)))
                   for count in shape.blinding]  # fmt: skip
    for name, polynomial in zip(("proximity", "linear", "quadratic"), polynomials, strict=True):
        transcript.absorb_elements(f"{name}.polynomial", polynomial)
    p_prox, p_lin, p_quad = (polynomial.values for polynomial in polynomials)
    folded = fill(p_quad, 3, size).reshape(field.DEGREE, 3, size)
    if field.add(field.add(folded[:, 0], folded[:, 1]), folded[:, 2]).any():
        raise VerificationError("quadratic.zero", "the quadratic polynomial does not vanish on H")
    if not field.equal(field.scale(field.total(np.ascontiguousarray(p_lin[:, ::size])), size), test.target):
        raise VerificationError("linear.sum", "the linear equations do not hold")

    columns = transcript.challenge_indices("columns", shape.queries, shape.columns)
    words = reader.array("<u4", shape.queries * shape.column_rows).reshape(shape.queries, -1).astype(np.uint32)
    salts = [reader.raw(merkle.SALT_BYTES) for _ in columns]
    siblings = [reader.raw(merkle.HASH_BYTES) for _ in range(merkle.sibling_count(columns, shape.columns))]
    if (words >= field.P).any():
        raise reader.fail("a column entry is not canonical")
    opened = {
        i: merkle.leaf(salt, row.astype("<u4").tobytes()) for i, salt, row in zip(columns, salts, words, strict=True)
    }
    merkle.verify(root, shape.columns, opened, siblings)

    points = reed_solomon.domain_points(columns, size, shape.rate_inverse)
    powers = reed_solomon.power_table(points, shape.blinding[2])
    at_prox, at_lin, at_quad = (field.combine(powers[:, : p.shape[1]], p) for p in (p_prox, p_lin, p_quad))
    blinding = [_lane(words[:, shape.rows :], i) for i in range(3)]
    _check("proximity.columns", at_prox,
           field.add(blinding[0], field.combine(words[:, : shape.rows], proximity)))
    _check("linear.columns", at_lin, field.add(blinding[1], _linear_at(shape, test, words, points)))
    _check("quadratic.columns", at_quad, field.add(blinding[2], _quadratic_at(shape, quadratic, words)))


def _check(name: str, claimed: Vector, found: Vector) -> None:
    if not field.equal(claimed, found):
        raise VerificationError(name, "an opened column does not agree with the test polynomial")


def _linear_at(shape: Shape, test: LinearTest, words: Matrix, points: list[int]) -> Vector:
    """sum A_row(x) row(x) at the opened points, [5, t]."""
    h, total = shape.layout.h, field.zeros(shape.queries)
    basis = reed_solomon.lagrange(points, shape.size)
    for (group, chunk), coefficients in test.chunks.items():
        images = field.combine(words[:, chunk * h : (chunk + 1) * h], test.weights[group])
        total = field.add(total, field.mul(field.combine(basis, coefficients), images))
    arrays, pads = (
        [field.combine(basis, rows[first : first + field.DEGREE]) for first in range(0, len(rows), field.DEGREE)]
        for rows in coefficient_rows(shape, test)
    )
    for i, at in enumerate(arrays, shape.image_rows):
        total = field.add(total, field.mul(at, field.embed(words[:, i])))
    for i, at in enumerate(pads):
        total = field.add(total, field.mul(at, _lane(words[:, shape.image_rows + shape.array_total :], i)))
    return total


def _quadratic_at(shape: Shape, coefficients: Vector, words: Matrix) -> Vector:
    """sum c_j (x_j y_j - z_j) at the opened points, [5, t]."""
    products, arrays = shape.products(), words[:, shape.image_rows :].astype(np.uint64)
    gaps = np.stack([(arrays[:, x] * arrays[:, y] + (field.P - arrays[:, z])) % np.uint64(field.P)
                     for x, y, z in products], axis=1).astype(np.uint32)
    total = field.combine(gaps, np.ascontiguousarray(coefficients[:, : len(products)]))
    pads = words[:, shape.image_rows + shape.array_total :]
    for r in range(shape.triple_rows):
        x, y, z = (_lane(pads, r + i * shape.triple_rows) for i in range(3))
        at = len(products) + r
        gap = field.sub(field.mul(x, y), z)
        total = field.add(total, field.mul(gap, np.ascontiguousarray(coefficients[:, at : at + 1])))
    return total

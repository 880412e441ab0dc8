"""The committed matrix: where everything lies, and the coefficients of a linear test over it (SPEC section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from protocol import field, merkle
from protocol.field import Vector
from protocol.kernels import cpu
from protocol.layout import PRODUCTS, Layout
from protocol.multilinear import eq_tensor
from protocol.pads import Need, System
from protocol.soundness import Parameters

Matrix = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Shape:
    """Where everything lies in the matrix; a function of public values only."""

    layout: Layout
    need: Need
    parameters: Parameters

    @property
    def size(self) -> int:
        """N, slots of a row."""
        return self.parameters.row

    @property
    def queries(self) -> int:
        """t, opened columns."""
        return self.parameters.queries

    @property
    def rate_inverse(self) -> int:
        return 1 << self.parameters.log2_rate_inverse

    @property
    def degree(self) -> int:
        """k: rows are polynomials of degree below it."""
        return self.size + self.queries

    @property
    def columns(self) -> int:
        """n, the length of a codeword."""
        return self.parameters.domain

    @property
    def chunks(self) -> int:
        return -(-self.layout.depth // self.size)

    @cached_property
    def array_rows(self) -> dict[str, tuple[int, int]]:
        """Name to (first row, rows), counted from the first array row."""
        out, at = {}, 0
        for name, length in self.layout.arrays.items():
            out[name] = (at, -(-length // self.size))
            at += out[name][1]
        return out

    @property
    def array_total(self) -> int:
        return sum(count for _, count in self.array_rows.values())

    @property
    def triple_rows(self) -> int:
        return -(-self.need.triples // self.size)

    @property
    def pad_rows(self) -> int:
        """Rows of K."""
        return 3 * self.triple_rows + -(-self.need.free // self.size)

    @property
    def pad_count(self) -> int:
        return 3 * self.need.triples + self.need.free

    def pad_slots(self) -> npt.NDArray[np.int64]:
        """[pad_count] slot of every pad in the pad rows laid end to end."""
        t, block = self.need.triples, self.triple_rows * self.size
        starts = [np.arange(t) + i * block for i in range(3)]
        return np.concatenate([*starts, np.arange(self.need.free) + 3 * block])

    @property
    def image_rows(self) -> int:
        return self.chunks * self.layout.h

    @property
    def rows(self) -> int:
        """Rows of F that the proximity test covers."""
        return self.image_rows + self.array_total + field.DEGREE * self.pad_rows

    @property
    def blinding(self) -> tuple[int, int, int]:
        """Coefficients of the three test polynomials: proximity, linear, quadratic."""
        return self.degree, self.size + self.degree - 1, 2 * self.degree - 1

    @property
    def column_rows(self) -> int:
        """Words of a column."""
        return self.rows + 3 * field.DEGREE

    def products(self) -> list[tuple[int, int, int]]:
        """Array rows (x, y, z) with x y = z in every slot."""
        return [
            (self.array_rows[x][0] + i, self.array_rows[y][0] + i, self.array_rows[z][0] + i)
            for x, y, z in PRODUCTS
            for i in range(self.array_rows[x][1])
        ]

    def proof_bytes(self, siblings: int) -> int:
        """Size of the commitment's part of a proof."""
        coefficients = sum(self.blinding) * field.ELEMENT_BYTES
        return coefficients + self.queries * (4 * self.column_rows + merkle.SALT_BYTES) + 32 * siblings


@dataclass(frozen=True)
class LinearTest:
    """All equations, combined with powers of one challenge: sum coefficient * entry = target.

    chunks: (group, chunk) to coefficients [5, N] shared by the images; arrays: name to [5, length]; pads: [5, pads].
    """

    weights: dict[str, Vector]
    chunks: dict[tuple[str, int], Vector]
    arrays: dict[str, Vector]
    pads: Vector
    target: Vector


def combine(shape: Shape, systems: Sequence[System], challenge: Vector) -> LinearTest:
    """Weight equation number e of all systems, in order, by challenge^(e + 1).

    No weight is constant: the sum of the linear blinding row is the prover's, and would cancel an error of weight 1.
    """
    layout, size = shape.layout, shape.size
    weights: dict[str, Vector] = {}
    chunks: dict[tuple[str, int], Vector] = {}
    arrays: dict[str, Vector] = {}
    pads, target = field.zeros(shape.pad_count), field.ZERO
    forms = [form for system in systems for form in system.forms]
    powers = field.powers(challenge, len(forms) + 1)[:, 1:]
    for system in systems:
        weights |= system.groups
    for e, form in enumerate(forms):
        factor = np.ascontiguousarray(powers[:, e : e + 1])
        target = field.sub(target, field.mul(form.constant, factor))
        if form.pads:
            index = np.concatenate([i for i, _ in form.pads])
            coefficients = field.mul(field.concat([c for _, c in form.pads]), factor)
            cpu.scatter_add(pads, index, coefficients)
        for image in form.images:
            offset, dims = layout.columns[image.column]
            tensor = field.mul(eq_tensor(image.point, dims), field.mul(image.coefficient, factor))
            at = 0
            while at < tensor.shape[1]:
                chunk, slot = divmod(offset + at, size)
                count = min(size - slot, tensor.shape[1] - at)
                table = chunks.setdefault((image.group, chunk), field.zeros(size))
                table[:, slot : slot + count] = field.add(table[:, slot : slot + count], tensor[:, at : at + count])
                at += count
        for claim in form.arrays:
            held = arrays.setdefault(claim.array, field.zeros(layout.arrays[claim.array]))
            arrays[claim.array] = field.add(held, field.mul(claim.weights, factor))
    return LinearTest(weights, chunks, arrays, pads, target)


def fill(vector: Vector, rows: int, size: int) -> Vector:
    """[5, rows * size]: a vector padded with zeros to whole rows."""
    out = field.zeros(rows * size)
    out[:, : vector.shape[1]] = vector
    return out


def pad_matrix(shape: Shape, pads: Vector) -> Vector:
    """[5, pad_rows * N]: pads (or their coefficients) in their slots."""
    out = field.zeros(shape.pad_rows * shape.size)
    out[:, shape.pad_slots()] = pads
    return out


def coefficient_rows(shape: Shape, test: LinearTest) -> tuple[Matrix, Matrix]:
    """Coefficients of the rows of arrays and of pads, [5 rows, N] each."""
    arrays = np.concatenate([np.zeros((0, shape.size), np.uint32), *(
        stacked(fill(test.arrays.get(name, field.zeros(0)), count, shape.size), shape.size)
        for name, (_, count) in shape.array_rows.items()
    )])
    return arrays, stacked(pad_matrix(shape, test.pads), shape.size)


def stacked(vector: Vector, size: int) -> Matrix:
    """[5, m N] to [5 m, N], the five coordinates of a row together."""
    m = vector.shape[1] // size
    return np.ascontiguousarray(vector.reshape(field.DEGREE, m, size).transpose(1, 0, 2)).reshape(-1, size)

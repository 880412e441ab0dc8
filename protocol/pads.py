"""Padded messages and the linear equations that they collapse to (SPEC section 7).

Before any challenge the prover draws one uniform pad of K for every element that she will send, commits to the pads,
and sends value - pad.  A value that the verifier has received is a `Wire`: its masked form and the number of its pad. 
Every check of the argument is then one linear equation

    constant + sum coefficient * pad + sum coefficient * committed entry = 0

held by a `Form`.  A product of two wires needs the product of their pads: such wires live in *triples* (x, y, x y) of
pads, whose product relation the commitment proves.  Pad numbers: x of triple i is i, y is T + i, x y is 2 T + i for T
triples in all; free pads follow from 3 T.

One code path serves both parties: a `Party` exchanges messages in the order of the protocol, and only the prover's has
values to give.  There is no other way to send (`transcript.MaskedElements`), so an unpadded value that depends on the
witness cannot leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as dataclass_field

import numpy as np
import numpy.typing as npt

from protocol import field
from protocol.errors import VerificationError
from protocol.field import Vector
from protocol.multilinear import Point
from protocol.transcript import MaskedElements, Transcript

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Need:
    """How many pads a part of the argument uses."""

    free: int = 0
    triples: int = 0
    copies: int = 0  # triples that only copy other pads (`Party.product_of`)

    def __add__(self, other: Need) -> Need:
        return Need(self.free + other.free, self.triples + other.triples, self.copies + other.copies)

    @property
    def sent(self) -> int:
        """Elements on the wire."""
        return self.free + 2 * (self.triples - self.copies)


@dataclass(frozen=True)
class Wire:
    """Received values: sent [5, n] = value - pad, pads numbered by `index` [n]."""

    index: Indices
    sent: Vector

    def __getitem__(self, k: int) -> Wire:
        return Wire(self.index[k : k + 1], self.sent[:, k : k + 1])


@dataclass(frozen=True)
class ImageClaim:
    """coefficient * column(rho_b, point): a committed column of the images, at the batch point of `group`."""

    group: str
    column: str
    point: Point
    coefficient: Vector


@dataclass(frozen=True)
class ArrayClaim:
    """sum_i weights[i] array[i] over a committed array that is not per image."""

    array: str
    weights: Vector


@dataclass
class Form:
    """A linear form in pads and committed entries; appended to a system it claims to be zero."""

    constant: Vector = dataclass_field(default_factory=lambda: field.ZERO)
    pads: list[tuple[Indices, Vector]] = dataclass_field(default_factory=list)
    images: list[ImageClaim] = dataclass_field(default_factory=list)
    arrays: list[ArrayClaim] = dataclass_field(default_factory=list)

    def add(self, wire: Wire, coefficients: Vector) -> Form:
        """Add sum coefficient * value."""
        if coefficients.shape[1] != len(wire.index):
            coefficients = field.repeat(coefficients, len(wire.index))
        self.constant = field.add(self.constant, field.dot(wire.sent, coefficients))
        self.pads.append((wire.index, coefficients))
        return self

    def add_constant(self, value: Vector) -> Form:
        self.constant = field.add(self.constant, value)
        return self

    def add_product(self, x: Wire, y: Wire, product_index: int, coefficient: Vector) -> Form:
        """Add coefficient * x y = coefficient (s_x s_y + s_x p_y + s_y p_x + p_xy)."""
        self.constant = field.add(self.constant, field.mul(coefficient, field.mul(x.sent, y.sent)))
        self.pads.append((x.index, field.mul(coefficient, y.sent)))
        self.pads.append((y.index, field.mul(coefficient, x.sent)))
        self.pads.append((np.array([product_index]), coefficient))
        return self

    def add_image(self, group: str, column: str, point: Point, coefficient: Vector) -> Form:
        self.images.append(ImageClaim(group, column, point, coefficient))
        return self

    def add_array(self, array: str, weights: Vector) -> Form:
        self.arrays.append(ArrayClaim(array, weights))
        return self

    def add_form(self, other: Form, factor: Vector) -> Form:
        """Add factor * other."""
        self.constant = field.add(self.constant, field.mul(other.constant, factor))
        self.pads += [(index, field.mul(c, factor)) for index, c in other.pads]
        self.images += [
            ImageClaim(c.group, c.column, c.point, field.mul(c.coefficient, factor)) for c in other.images
        ]
        self.arrays += [ArrayClaim(c.array, field.mul(c.weights, factor)) for c in other.arrays]
        return self


@dataclass
class System:
    """All equations of one proof, and the batch weights [5, h] of each group of image claims."""

    forms: list[Form] = dataclass_field(default_factory=list)
    groups: dict[str, Vector] = dataclass_field(default_factory=dict)

    def append(self, form: Form) -> None:
        self.forms.append(form)


class Party:
    """One side of one fork: its transcript, its system, and its share of the pads.

    `pads` is given to the prover (the values of all pads) and None for the verifier, who has `messages` instead: the
    masked elements of this fork, in order.
    """

    def __init__(
        self, transcript: Transcript, need: Need, first: Need, triples: int, *,
        pads: Vector | None = None, messages: MaskedElements | None = None,
    ) -> None:
        self.transcript = transcript
        self.system = System()
        self._free, self._free_end = 3 * triples + first.free, 3 * triples + first.free + need.free
        self._triple, self._triple_end = first.triples, first.triples + need.triples
        self._triples = triples
        self._pads = pads
        self._messages = messages
        self._at = 0
        self._sent: list[MaskedElements] = []

    @property
    def proving(self) -> bool:
        return self._pads is not None

    def exchange(self, label: str, count: int, values: Vector | None = None) -> Wire:
        """Send (prover) or receive (verifier) `count` values under free pads."""
        index = np.arange(self._free, self._free + count)
        self._free += count
        if self._free > self._free_end:
            raise RuntimeError("pad count does not match the messages")
        return self._masked(label, index, values)

    def exchange_factors(
        self, label: str, count: int, x: Vector | None = None, y: Vector | None = None
    ) -> tuple[Wire, Wire, list[int]]:
        """The same for `count` pairs whose products are needed: wires x, y and the numbers of the product pads."""
        first = self._claim_triples(count)
        index = np.arange(first, first + count)
        both = np.concatenate([index, index + self._triples])
        wire = self._masked(label, both, None if x is None or y is None else np.concatenate([x, y], axis=1))
        return (
            Wire(both[:count], wire.sent[:, :count]),
            Wire(both[count:], wire.sent[:, count:]),
            [2 * self._triples + first + k for k in range(count)],
        )

    def product_of(self, x: Wire, y: Wire) -> int:
        """The number of a pad that holds pad_x pad_y, for wires whose own triples are others.

        A fresh triple copies the two pads; two equations say so.  Nothing is sent.
        """
        t = self._claim_triples(1)
        for original, copy in ((x, t), (y, self._triples + t)):
            form = Form()
            form.pads.append((original.index, field.ONE))
            form.pads.append((np.array([copy]), field.neg(field.ONE)))
            self.system.append(form)
        return 2 * self._triples + t

    def _claim_triples(self, count: int) -> int:
        first, self._triple = self._triple, self._triple + count
        if self._triple > self._triple_end:
            raise RuntimeError("triple count does not match the messages")
        return first

    def _masked(self, label: str, index: Indices, values: Vector | None) -> Wire:
        count = len(index)
        if self._pads is not None:
            if values is None or values.shape[1] != count:
                raise RuntimeError(f"{label}: the prover has no value to send")
            sent = MaskedElements(field.sub(values, self._pads[:, index]))
            self._sent.append(sent)
        else:
            if self._messages is None or self._at + count > self._messages.values.shape[1]:
                raise VerificationError("messages.count", "the proof has too few messages")
            sent = MaskedElements(np.ascontiguousarray(self._messages.values[:, self._at : self._at + count]))
            self._at += count
        self.transcript.absorb_elements(label, sent)
        return Wire(index, sent.values)

    def challenge(self, label: str, count: int = 1) -> Vector:
        return self.transcript.challenge(label, count)

    def finish(self) -> MaskedElements:
        """All messages of this fork [5, n], once every pad and message was used."""
        if self._free != self._free_end or self._triple != self._triple_end:
            raise RuntimeError("pad count does not match the messages")
        return MaskedElements(field.concat([sent.values for sent in self._sent]))

"""The commitment by itself: random linear systems over the committed entries, across chunks, and lies about them."""

from random import Random

import numpy as np
import pytest
from Crypto.Cipher import AES

from protocol import argument, field, ligero, link, witness
from protocol.encoding import Reader
from protocol.errors import DecodingError, VerificationError
from protocol.layout import PRODUCTS
from protocol.multilinear import lg
from protocol.pads import Form, Need, System
from protocol.soundness import Parameters
from protocol.transcript import FiatShamir, Messages, Transcript
from tests.adversary import faults, ideal

P = field.P
SHORT = Parameters(9, 3, 190)  # rows of 512 slots: an image's vector needs two chunks, columns cross their border


@pytest.fixture(scope="module", params=[SHORT, Parameters(10, 4, 150)], ids=["rate 1/8", "rate 1/16"])
def shape(request, statement):
    return ligero.Shape(statement.layout, statement.shape.need, request.param)


@pytest.fixture(scope="module")
def values(statement, key):
    layout = statement.layout
    masks = link.Masks.draw(layout, Random(0).randbytes)
    return witness.build(layout, statement.network.forward(key.hidden_images), key.hidden_labels, masks.residues())


@pytest.fixture(scope="module")
def pads(statement):
    return argument._draw_pads(statement, ligero.Expander(b"p" * 32))


@pytest.fixture(scope="module")
def committed(shape, values, pads):
    return ligero.Committed(shape, values.images, values.arrays, pads, ligero.Expander(b"c" * 32))


def random_k(rng, n):
    return field.from_base(rng.integers(0, P, (5, n), dtype=np.uint32))


def systems(shape, values, pads, seed=1):
    """Two systems that hold at these values: claims about every column, array and pad."""
    rng, layout = np.random.default_rng(seed), shape.layout
    out = []
    for part in range(2):
        system = System(groups={f"{part}{g}": random_k(rng, layout.h) for g in "ab"})
        for name, (_, dims) in layout.columns.items():
            point = [random_k(rng, lg(n)) for n in dims]
            form = Form().add_image(f"{part}{rng.choice(['a', 'b'])}", name, point, random_k(rng, 1))
            system.append(form)
        for name, length in layout.arrays.items():
            system.append(Form().add_array(name, random_k(rng, length)).add_array(name, random_k(rng, length)))
        index = rng.integers(0, shape.pad_count, 50)
        form = Form()
        form.pads += [(index, random_k(rng, 50)), (index[:3], random_k(rng, 3))]
        system.append(form)
        system.append(Form().add_form(system.forms[0], random_k(rng, 1)).add_form(system.forms[-1], random_k(rng, 1)))
        for form in system.forms:
            value = ideal.entry(form, system.groups, layout, values, pads)
            form.add_constant(field.neg(value))
        out.append(system)
    return out


def proven(committed, parts):
    out = Messages()
    ligero.prove(committed, parts, Transcript("t", FiatShamir()), out)
    return out.to_bytes()


def verify(shape, root, parts, data):
    reader = Reader(data, "commitment")
    ligero.verify(shape, root, parts, Transcript("t", FiatShamir()), reader)
    reader.done()


def rejected(check, *given):
    with pytest.raises(VerificationError) as error:
        verify(*given)
    assert error.value.check == check


@pytest.mark.reaches("merkle.path")
def test_random_systems(shape, committed, values, pads):
    parts = systems(shape, values, pads)
    data = proven(committed, parts)
    verify(shape, committed.root, parts, data)
    siblings = (len(data) - shape.proof_bytes(0)) // 32
    assert len(data) == shape.proof_bytes(siblings)
    rejected("merkle.path", shape, bytes(32), parts, data)


@pytest.mark.reaches("linear.sum")
def test_one_false_equation_among_many(shape, committed, values, pads):
    """Each constant by one, and each kind of claim: the sum of the linear test is another."""
    parts = systems(shape, values, pads)
    count = sum(len(part.forms) for part in parts)
    for number in (0, count // 2, count - 1):
        false = systems(shape, values, pads)
        forms = [form for part in false for form in part.forms]
        forms[number].add_constant(field.ONE)
        rejected("linear.sum", shape, committed.root, false, proven(committed, false))


@pytest.mark.reaches("linear.sum")
@pytest.mark.parametrize("number", [0, 1])
def test_a_blinding_that_cancels_a_false_equation(shape, values, pads, number):
    """Her linear mask is hers: were an equation's weight known to her, the sum of the mask could make up for it.

    Equation `number` is false by 1, and the mask has the sum that would cancel that under the weight 1.
    """
    with faults.masked_sum(-1):
        committed = ligero.Committed(shape, values.images, values.arrays, pads, ligero.Expander(b"l" * 32))
    parts = systems(shape, values, pads)
    parts[0].forms[number].add_constant(field.ONE)
    rejected("linear.sum", shape, committed.root, parts, proven(committed, parts))


def test_equations_of_other_batch_weights(shape, committed, values, pads):
    """The verifier takes the weights of the groups from her own run."""
    parts, false = systems(shape, values, pads), systems(shape, values, pads)
    false[1].groups["1a"] = field.add(false[1].groups["1a"], field.ONE)
    with pytest.raises(VerificationError) as error:
        verify(shape, committed.root, false, proven(committed, parts))
    assert error.value.check in ("linear.sum", "linear.columns")


def test_combine_is_the_weighted_sum_of_the_equations(shape, values, pads):
    """Against all coefficients written out, slot by slot."""
    parts = systems(shape, values, pads)
    challenge = random_k(np.random.default_rng(5), 1)
    test = ligero.combine(shape, parts, challenge)
    total, layout = field.zeros(1), shape.layout
    for (group, chunk), coefficients in test.chunks.items():
        assert coefficients.shape == (5, shape.size)
        rows = values.images[chunk * shape.size : (chunk + 1) * shape.size]
        mixed = field.combine(rows, test.weights[group])
        total = field.add(total, field.dot(mixed, np.ascontiguousarray(coefficients[:, : len(rows)])))
        assert not coefficients[:, len(rows) :].any()  # slots past the end of an image's vector
    for name, coefficients in test.arrays.items():
        assert coefficients.shape == (5, layout.arrays[name])
        total = field.add(total, field.combine(values.arrays[name].reshape(1, -1), coefficients))
    total = field.add(total, field.dot(pads, test.pads))
    assert field.equal(total, test.target)
    forms = [form for part in parts for form in part.forms]
    powers = field.mul(challenge, field.powers(challenge, len(forms)))  # none of them is constant
    constants = field.concat([form.constant for form in forms])
    assert field.equal(test.target, field.neg(field.dot(powers, constants)))
    if shape.chunks > 1:
        assert {chunk for _, chunk in test.chunks} == set(range(shape.chunks))


@pytest.mark.reaches("quadratic.zero", "quadratic.columns")
@pytest.mark.parametrize(("x", "y", "z"), PRODUCTS)
def test_products(shape, values, pads, x, y, z):
    """A false product in the last slot of an array, with equations that hold for the lie."""
    last = shape.layout.arrays[z] - 1
    lie = values
    for name in {z} if z not in (x, y) else {x}:
        lie = faults.shifted(shape.layout, lie, name, last, 5)
    committed = ligero.Committed(shape, lie.images, lie.arrays, pads, ligero.Expander(b"l" * 32))
    parts = systems(shape, lie, pads)
    rejected("quadratic.zero", shape, committed.root, parts, proven(committed, parts))
    with faults.stubborn():
        forged = proven(committed, parts)
    rejected("quadratic.columns", shape, committed.root, parts, forged)


@pytest.mark.reaches("quadratic.zero")
def test_triples(shape, values, pads):
    t = shape.need.triples
    lie = pads.copy()
    lie[:, 3 * t - 1] = 7
    committed = ligero.Committed(shape, values.images, values.arrays, lie, ligero.Expander(b"l" * 32))
    parts = systems(shape, values, lie)
    rejected("quadratic.zero", shape, committed.root, parts, proven(committed, parts))


def test_products_do_not_reach_over_the_end_of_an_array(shape):
    """Arrays of one product have one length: unused slots are zeros in all three."""
    for names in PRODUCTS:
        assert len({shape.layout.arrays[name] for name in names}) == 1
        assert len({shape.array_rows[name][1] for name in names}) == 1


def test_the_matrix_has_a_place_for_everything_once(shape):
    slots = shape.pad_slots()
    assert len({*slots.tolist()}) == len(slots) == shape.pad_count
    assert slots.max() < shape.pad_rows * shape.size
    used = [row for first, count in shape.array_rows.values() for row in range(first, first + count)]
    assert used == list(range(shape.array_total))
    assert shape.chunks * shape.size >= shape.layout.depth > (shape.chunks - 1) * shape.size
    # A vanishing quadratic polynomial is folded in three blocks, products are taken on four.
    assert 2 * shape.degree - 1 <= 3 * shape.size


@pytest.mark.parametrize("name", ["proximity", "linear", "quadratic"])
def test_each_test_polynomial_is_bound_to_the_columns(shape, committed, values, pads, name):
    parts, size = systems(shape, values, pads), shape.size
    changes = {"proximity": [(2, 1)], "linear": [(2, 1)], "quadratic": [(2, 1), (2 + size, -1)]}[name]
    with faults.polynomial(name, faults.bumped(*changes)):
        data = proven(committed, parts)
    rejected(f"{name}.columns", shape, committed.root, parts, data)


def test_truncated_and_non_canonical(shape, committed, values, pads):
    parts = systems(shape, values, pads)
    data = proven(committed, parts)
    for cut in (0, 1, 20 * shape.blinding[0], len(data) // 2, len(data) - 1):
        with pytest.raises(DecodingError):
            verify(shape, committed.root, parts, data[:cut])
    with pytest.raises(DecodingError):
        verify(shape, committed.root, parts, data + b"\0")
    columns = 20 * sum(shape.blinding)
    for at in (0, columns):
        bad = data[:at] + P.to_bytes(4, "little") + data[at + 4 :]
        with pytest.raises(DecodingError, match="canonical"):
            verify(shape, committed.root, parts, bad)


def test_expander():
    """AES-256 in counter mode from zero; 31-bit words, those of p or more skipped."""
    seed = bytes(range(32))
    stream = AES.new(seed, AES.MODE_CTR, nonce=bytes(8)).encrypt(bytes(1 << 14))
    assert ligero.Expander(seed).bytes(100) == stream[:100]
    words = [int.from_bytes(stream[i : i + 4], "little") & 0x7FFFFFFF for i in range(0, len(stream), 4)]
    kept = [w for w in words if w < P]
    assert len(kept) < len(words)
    assert ligero.Expander(seed).base(3, 7).reshape(-1).tolist() == kept[:21]
    one = ligero.Expander(seed)
    assert (one.base(10) != one.base(10)).any()  # it goes on


def test_needs_add_up():
    assert Need(1, 2, 1) + Need(3, 4) == Need(4, 6, 1) and Need(4, 6, 1).sent == 4 + 2 * 5

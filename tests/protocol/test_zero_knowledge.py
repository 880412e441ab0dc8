"""What the prover sends says nothing: each element has its own fresh pad of K, and the masks are large enough."""

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from protocol import argument, field, layers, ligero, link, reed_solomon, witness
from protocol.group import ORDER, POINT_BYTES
from protocol.layers import Witness
from protocol.layout import Layout
from protocol.lookup import copied_triples
from protocol.pads import Party
from protocol.transcript import Transcript
from tests.adversary import faults, ideal
from tests.protocol.conftest import marked_network
from tests.protocol.test_argument import sections

P = field.P


@pytest.fixture(scope="module")
def layout(statement):
    return statement.layout


@pytest.fixture(scope="module")
def worlds(layout, key):
    """Two different witnesses of one size: the hidden triggers, and other images with labels to match."""
    found = []
    for images in (key.hidden_images, 255 - key.hidden_images):
        forward = layout.network.forward(images)
        labels = np.where((best := layout.network.classify(images)) >= 0, best, 0)
        found.append(witness.build(layout, forward, labels, np.zeros(layout.arrays["mask"], np.int64)))
    return found


def same_challenges():
    """Challenges that do not depend on the messages: what is sent can be compared between runs."""

    def make(original):
        def fixed(transcript, label, count=1):
            number = transcript.__dict__.setdefault("_count", [0])
            number[0] += 1
            rng = np.random.default_rng([number[0], *label.encode()])
            return field.from_base(rng.integers(1, P, (5, count), dtype=np.uint32))

        return fixed

    return faults.replaced(Transcript, "challenge", make)


def sent(layout: Layout, values: Witness, pads=None, seed=0):
    with same_challenges():
        outcome = ideal.run(layout, values, pads=pads, seed=seed)
    return field.concat(outcome.messages), outcome.pads


def pads_of(layout, seed):
    board = ideal.board(layout)
    return argument._draw_pads(board, ligero.Expander(bytes([seed]) * 32))


# Messages


def test_the_same_coins_and_another_witness(layout, worlds):
    """With the same pads and challenges every sent element depends on the witness.

    But for what is public: the numerators of looked-up values, all 1, and the denominators of the table rows.
    """
    one, two = (sent(layout, values)[0] for values in worlds)
    same = ~(one != two).any(axis=0)
    with ExchangeLog() as log, same_challenges():
        ideal.run(layout, worlds[0])
    needs = ideal.board(layout).needs
    tables, at, public = sum(need.sent for need in needs[:-1]), 0, set()
    for label, count in log.sent:
        if label == "layer.ends":  # P_0, P_1, Q_1, Q_0
            public |= {at + 2, at + 3} if at >= tables else {at, at + 1}
        if at >= tables:  # Q and 1 / Q; P and 1 / Q
            public |= {"root.q": {at, at + 1}, "root.p": {at + 1}}.get(label, set())
        at += count
    assert at == one.shape[1] == sum(need.sent for need in needs)
    assert set(np.flatnonzero(same).tolist()) <= public and same.mean() < 0.1


class ExchangeLog:
    """Which messages the prover sends, and under which pads."""

    def __enter__(self):
        self.sent, self.indices = [], []

        def make(masked):
            def send(party, label, index, values):
                if values is not None:
                    self.sent.append((label, len(index)))
                    self.indices += index.tolist()
                return masked(party, label, index, values)

            return send

        self._patch = faults.replaced(Party, "_masked", make)
        self._patch.__enter__()
        return self

    def __exit__(self, *error):
        self._patch.__exit__(*error)


def test_every_pad_hides_one_element(layout, worlds):
    """No pad is used twice, and those that are copied hide nothing of their own."""
    board = ideal.board(layout)
    with ExchangeLog() as log:
        ideal.run(layout, worlds[0])
    assert len({*log.indices}) == len(log.indices) == sum(need.sent for need in board.needs)
    t, first, copies = board.shape.need.triples, 0, set()
    for index, need in enumerate(board.needs):
        for copy, _, _ in copied_triples(*layers.tree_shape(layout, index)):
            copies |= {first + copy, t + first + copy}
        first += need.triples
    products = set(range(2 * t, 3 * t))
    assert {*log.indices} | copies | products == set(range(board.shape.pad_count))
    assert not {*log.indices} & (copies | products)


def test_pads_are_what_is_taken_off(layout, worlds):
    """sent = value - pad: the difference of two runs over one witness is the difference of their pads, coordinatewise.

    So a sent vector is uniform because the pads are, and any witness explains it with other pads.
    """
    one, two = pads_of(layout, 1), pads_of(layout, 2)
    with ExchangeLog() as log, same_challenges():
        first = field.concat(ideal.run(layout, worlds[0], pads=one).messages)
    second, _ = sent(layout, worlds[0], two)
    index = np.array(log.indices)
    assert field.equal(field.sub(first, second), field.sub(two[:, index], one[:, index]))


def shares_coordinates(layout, values, change):
    """How many coordinates of sent elements two proofs with fresh pads (after `change`) have in common."""
    runs = [sent(layout, values, change(pads_of(layout, seed)))[0] for seed in (1, 2)]
    return int((runs[0] == runs[1]).sum()), runs[0].size


def test_pads_of_zero_or_of_the_base_field_are_noticed(layout, worlds):
    """The test of fresh pads can fail: without pads all coordinates repeat, with pads of F four of five."""

    def base(pads):
        out = np.zeros_like(pads)
        out[0] = pads[0]
        return out

    common, size = shares_coordinates(layout, worlds[0], lambda pads: pads)
    assert common == 0
    common, size = shares_coordinates(layout, worlds[0], lambda pads: pads * np.uint32(0))
    assert common == size
    common, size = shares_coordinates(layout, worlds[0], base)
    assert common >= size * 4 // 5


def test_pads_are_uniform_in_every_coordinate(layout):
    """Chi-square of each coordinate of the pads that are drawn (not of products)."""
    t = ideal.board(layout).shape.need.triples
    draws = [pads_of(layout, seed) for seed in range(20)]
    for part in (slice(0, 4), slice(3 * t, None)):
        drawn = field.to_base(field.concat([pads[:, part] for pads in draws]))
        for row in drawn:
            buckets = np.bincount(row.astype(np.int64) * 16 // P, minlength=16)
            expected = len(row) / 16
            assert ((buckets - expected) ** 2 / expected).sum() < 45  # 15 degrees of freedom, 1e-4


def repeats(elements):
    """How many of the elements [5, n] of K are there more than once."""
    return elements.shape[1] - len(np.unique(elements, axis=1).T)


def test_no_pad_is_there_twice(layout, worlds):
    """Two messages under equal pads would show their difference, however uniform each of the pads is."""
    with ExchangeLog() as log:
        ideal.run(layout, worlds[0])
    pads = pads_of(layout, 1)
    assert repeats(pads[:, log.indices]) == 0
    pads[:, 1::2] = pads[:, ::2][:, : pads[:, 1::2].shape[1]]
    assert repeats(pads[:, log.indices]) > 0.4 * len(log.indices)


# Whole proofs


def elements(proof, statement):
    """Everything of a proof that must be fresh: answers, masked elements, polynomials, columns, salts, siblings."""
    found = Counter()
    for name, first, length in sections(statement)[1:]:
        step = {"columns": 4 * statement.shape.column_rows, "mask commitments": POINT_BYTES}.get(name)
        if name == "pixel answers":
            step = link.bounds(statement.layout)[0].width // 8
        if name == "share answers":
            step = link.bounds(statement.layout)[1].width // 8
        step = step or (20 if name.startswith("fork") or name.endswith("polynomial") else 32)
        found.update(proof[at : at + step] for at in range(first, first + length, step))
    return found


@pytest.fixture(scope="module")
def second(statement, key):
    return argument.prove(statement, key)


def test_two_proofs_share_nothing(statement, proof, second):
    one, two = elements(proof, statement), elements(second, statement)
    assert max(one.values()) == max(two.values()) == 1
    assert not one.keys() & two.keys()


def test_the_same_entropy_for_another_statement_gives_other_coins(statement, key, monkeypatch):
    """A machine whose entropy repeats (a snapshot) does not repeat pads: the seed depends on the statement, too."""
    monkeypatch.setattr(argument.os, "urandom", bytes)
    drawn = []
    vector = ligero.Expander.vector
    monkeypatch.setattr(ligero.Expander, "vector", lambda self, n: drawn.append(vector(self, n)) or drawn[-1])
    statements = [
        statement, replace(statement, k_min=statement.k_min - 1), replace(statement, model_digest=bytes(32)),
        replace(statement, context=replace(statement.context, nonce=b"n" * 32)),
    ]  # fmt: skip
    proofs = [argument.prove(s, key) for s in statements]
    firsts = {drawn[k * len(drawn) // len(statements)][:, 0].tobytes() for k in range(len(statements))}
    assert len(firsts) == len(statements)
    found = [elements(proof, s) for proof, s in zip(proofs, statements, strict=True)]
    assert not found[0].keys() & found[1].keys() and not found[0].keys() & found[3].keys()


def test_the_same_coins_for_another_key_of_the_same_name(statement, key, monkeypatch):
    """Nor do two witnesses ever meet the same pads."""
    monkeypatch.setattr(argument.os, "urandom", bytes)
    seeds = []
    init = ligero.Expander.__init__
    monkeypatch.setattr(ligero.Expander, "__init__", lambda self, seed: seeds.append(seed) or init(self, seed))
    other = key.images.copy()
    other[key.vk.hidden[0]] ^= 1
    for images in (key.images, other):
        argument.prove(statement, replace(key, images=images))
    assert len({*seeds}) == 4


def test_no_secret_is_in_the_proof(statement, key, proof):
    """Neither pixels nor blindings, nor the owner's seed."""
    secrets = [key.owner_secret_seed, *(r.to_bytes(32, "little") for r in (
        *key.openings(key.vk.hidden).trigger_randomness, *key.openings(key.vk.hidden).share_randomness))]  # fmt: skip
    secrets += [image.tobytes() for image in key.hidden_images]
    assert not any(secret in proof for secret in secrets)
    shown = repr(replace(key, vk=None))
    assert shown == "MarkingKey(vk=None)"


def test_the_messages_do_not_say_how_many_match(statement, key):
    """The count is hidden: a proof of k_min has the same parts for k_min and for h matches."""
    fewer = replace(statement, network=marked_network(key, seed=2))
    assert [length for _, _, length in sections(fewer)] == [length for _, _, length in sections(statement)]


# The commitment


def test_as_many_masks_as_opened_columns(statement):
    shape = statement.shape
    assert shape.degree - shape.size == shape.queries
    masks = np.eye(shape.queries, dtype=np.uint32)
    columns = Random(1).sample(range(shape.columns), shape.queries)
    words = reed_solomon.encode(np.zeros((shape.size, shape.queries), np.uint32), masks, shape.rate_inverse)
    assert invertible(words[columns])


def invertible(matrix):
    rows = matrix.astype(np.int64)
    n = len(rows)
    for c in range(n):
        pivot = c + int(np.argmax(rows[c:, c] != 0))
        if not rows[pivot, c]:
            return False
        rows[[c, pivot]] = rows[[pivot, c]]
        rows[c] = rows[c] * pow(int(rows[c, c]), -1, P) % P
        rows[c + 1 :] = (rows[c + 1 :] - rows[c + 1 :, c : c + 1] * rows[c] % P) % P
    return True


@pytest.fixture(scope="module")
def committed(statement, worlds):
    board = statement.shape
    pads = argument._draw_pads(statement, ligero.Expander(b"p" * 32))
    return ligero.Committed(board, worlds[0].images, worlds[0].arrays, pads, ligero.Expander(b"e" * 32))


def test_the_blinding_polynomials_fill_their_spaces(committed, statement):
    """Proximity: any polynomial below k.  Linear: sum over H zero.  Quadratic: zero on H.  All of full degree."""
    size, lengths = statement.shape.size, statement.shape.blinding
    k = statement.shape.degree
    assert lengths == (k, size + k - 1, 2 * k - 1)
    prox, lin, quad = committed._blinding
    for polynomial, length in zip((prox, lin, quad), lengths, strict=True):
        assert polynomial.shape == (5, length) and polynomial[:, -1].any()
    assert not field.total(np.ascontiguousarray(lin[:, ::size])).any()
    folded = [field.total(np.ascontiguousarray(quad[:, at::size])) for at in range(size)]
    assert not field.concat(folded).any()
    drawn = field.to_base(field.concat([prox, lin[:, 1:], quad[:, size:]]))
    assert repeats(drawn) == 0
    for row in drawn:
        buckets = np.bincount(row.astype(np.int64) * 16 // P, minlength=16)
        assert ((buckets - row.size / 16) ** 2 / (row.size / 16)).sum() < 45


def test_unused_slots_of_pads_and_all_masks_are_drawn(committed, statement):
    """Every row, also one of zeros, has its own masks."""
    masks = np.concatenate(committed._masks, axis=1)
    assert masks.shape == (statement.shape.queries, statement.shape.rows)
    assert len(np.unique(masks, axis=1).T) == masks.shape[1]
    assert (masks == 0).mean() < 1e-4


def test_salts_are_distinct(committed, statement):
    salts = [committed._salt(i) for i in range(statement.shape.columns)]
    assert len({*salts}) == len(salts) and {len(s) for s in salts} == {32}


# The link


@pytest.mark.parametrize(("largest", "width"), [(1, 2), (5, 4), (14, 4), (100, 8)])
def test_rejection_makes_answers_uniform(largest, width):
    """Over all masks of a toy width, each accepted answer comes up exactly once, whatever the secret sum is."""
    bounds = link.Bounds(largest, width)
    for secret in range(largest + 1):
        answers = [mask + secret for mask in range(1 << width) if bounds.holds(mask + secret)]
        assert answers == list(range(largest, 1 << width))


@pytest.mark.parametrize(
    ("h", "value", "coordinates"), [(83, 255, 30), (256, 255, 3072), (512, 255, 150528), (83, 9, 1)]
)
def test_bounds_of_the_link(h, value, coordinates):
    bounds = link.Bounds.of(h, value, coordinates)
    assert bounds.largest == h * (P - 1) * value and bounds.width % 8 == 0
    assert 5 * coordinates * 2 * bounds.largest / 2**bounds.width < 2**-9  # of a restart: both ends
    assert 2 * 2**bounds.width * P < ORDER  # no answer wraps in the group


def test_answers_cover_the_largest_and_smallest_sums(layout, key):
    """All gammas and pixels at their extremes stay within what `Bounds` calls the largest."""
    pixel, share = link.bounds(layout)
    h = layout.h
    worst = (np.full((5, h), P - 1, np.int64),) * 2
    extreme = replace(key, images=np.full_like(key.images, 255), shares=np.full_like(key.shares, 9))
    zero = link.Masks([[0] * 30] * 5, [0] * 5, [0] * 5, [0] * 5)
    found = link.answer(layout, extreme, zero, worst)
    assert found is not None  # S itself is in range ...
    assert {z for row in found.pixels for z in row} == {pixel.largest} and {*found.shares} == {share.largest}
    assert link.answer(layout, key, zero, worst) is None  # ... and everything below tells about the pixels


def test_masks_are_drawn_from_the_whole_range(layout):
    pixel, share = link.bounds(layout)
    masks = link.Masks.draw(layout, Random(1).randbytes)
    flat = [value for row in masks.pixels for value in row]
    assert len({*flat}) == len(flat) == 150 and all(0 <= value < 1 << pixel.width for value in flat)
    assert max(flat) > (1 << pixel.width) * 0.9 and min(flat) < (1 << pixel.width) * 0.1
    assert all(0 <= value < 1 << share.width for value in masks.shares)
    assert len({*masks.pixel_blindings, *masks.share_blindings}) == 10
    assert masks.residues().tolist() == [v % P for v in (*flat, *masks.shares)]

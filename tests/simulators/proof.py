"""Simulators: what the prover sends, made without a witness, for challenges that are known in advance.

One function per sub-protocol, and `proof` for the whole argument.  None is given a trigger, a share, a label or a
commitment's randomness.  The signature is asked from the owner: what she signs is public.

    elements   masked messages of sumchecks and lookup trees: uniform
    answers    the link: uniform answers, and the mask commitments that the group equations then force
    opening    the commitment: uniform columns and test polynomials subject to the two sums that are checked, the
               blinding words of the opened columns that the column checks then force, random hashes elsewhere
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from protocol import argument, field, group, layers, ligero, link, merkle, pedersen, reed_solomon
from protocol.argument import Statement
from protocol.encoding import Writer
from protocol.forks import forks
from protocol.group import ORDER
from protocol.keygen import VerificationKey
from protocol.layout import Layout
from protocol.link import Answer
from protocol.soundness import LINK_REPETITIONS
from protocol.transcript import Channel, FiatShamir, MaskedElements, Transcript
from tests.simulators.oracle import Oracle, Tape, on_tape, taped


def words(random: Random, *shape: int) -> Any:
    """Uniform elements of F, canonical."""
    rng = np.random.default_rng(random.getrandbits(128))
    return rng.integers(0, field.P, shape, dtype=np.uint32)


def elements(random: Random, count: int) -> Any:
    """Uniform elements of K: every message of a fork."""
    return field.from_base(words(random, field.DEGREE, count))


def answers(layout: Layout, vk: VerificationKey, gamma: Any, random: Random) -> tuple[list[bytes], Answer]:
    """The link's ten mask commitments and the answer to gamma."""
    pixel, share = link.bounds(layout)
    pixels = [
        [random.randrange(pixel.largest, 1 << pixel.width) for _ in range(int(np.prod(layout.network.shape)))]
        for _ in range(LINK_REPETITIONS)
    ]
    shares = [random.randrange(share.largest, 1 << share.width) for _ in range(LINK_REPETITIONS)]
    blindings = [random.randrange(ORDER) for _ in range(2 * LINK_REPETITIONS)]
    given = Answer(pixels, shares, blindings[:LINK_REPETITIONS], blindings[LINK_REPETITIONS:])
    hidden, points = vk.hidden.tolist(), []
    for j in range(LINK_REPETITIONS):
        opened = pedersen.commit(np.array(pixels[j], object), given.pixel_blindings[j])
        published = group.multiexp([vk.trigger_points[i] for i in hidden], [-int(g) % ORDER for g in gamma[0][j]])
        points.append(opened + published)
    for j in range(LINK_REPETITIONS):
        opened = pedersen.commit_share(shares[j], given.share_blindings[j])
        published = group.multiexp([vk.share_points[i] for i in hidden], [-int(g) % ORDER for g in gamma[1][j]])
        points.append(opened + published)
    return [group.encode(point) for point in points], given


def opening(shape: ligero.Shape, systems: Any, transcript: Transcript, random: Random) -> tuple[bytes, bytes]:
    """The root, and everything that the commitment sends after it."""
    size, k = shape.size, shape.degree
    test = ligero.combine(shape, systems, transcript.challenge("equations"))
    proximity, quadratic = ligero._test_challenges(shape, transcript)
    columns = transcript.challenge_indices("columns", shape.queries, shape.columns)
    p_prox, p_lin = elements(random, k), elements(random, size + k - 1)
    rest = field.total(np.ascontiguousarray(p_lin[:, size::size]))
    p_lin[:, :1] = field.sub(field.scale(test.target, pow(size, -1, field.P)), rest)
    quotient, p_quad = elements(random, 2 * k - 1 - size), field.zeros(2 * k - 1)
    p_quad[:, size:] = quotient
    p_quad[:, : quotient.shape[1]] = field.sub(p_quad[:, : quotient.shape[1]], quotient)
    polynomials = (p_prox, p_lin, p_quad)

    rows = words(random, shape.queries, shape.column_rows)
    points = reed_solomon.domain_points(columns, size, shape.rate_inverse)
    powers = reed_solomon.power_table(points, shape.blinding[2])
    committed = (
        field.combine(rows[:, : shape.rows], proximity),
        ligero._linear_at(shape, test, rows, points),
        ligero._quadratic_at(shape, quadratic, rows),
    )
    for i, (polynomial, value) in enumerate(zip(polynomials, committed, strict=True)):
        blinding = field.sub(field.combine(powers[:, : polynomial.shape[1]], polynomial), value)
        first = shape.rows + field.DEGREE * i
        rows[:, first : first + field.DEGREE] = field.to_base(blinding).T
    salts = [random.randbytes(merkle.SALT_BYTES) for _ in columns]
    leaves = [random.randbytes(merkle.HASH_BYTES) for _ in range(shape.columns)]
    for column, salt, row in zip(columns, salts, rows, strict=True):
        leaves[column] = merkle.leaf(salt, row.astype("<u4").tobytes())
    tree = merkle.Tree(b"".join(leaves))
    out = b"".join(field.to_bytes(polynomial) for polynomial in polynomials)
    return tree.root, out + rows.astype("<u4").tobytes() + b"".join(salts) + b"".join(tree.open(columns))


def proof(
    statement: Statement, sign: Callable[[bytes], bytes], tape: Tape, random: Random, channel: Channel | None = None
) -> tuple[bytes, Oracle]:
    """A proof of any statement, true or not, and the oracle under which it is valid.

    sign: the owner's signature on a digest.  channel: the prover's end, where a verifier hands out coins.
    """
    layout, transcript = statement.layout, taped(tape)
    alpha, beta = transcript.challenge("alpha"), transcript.challenge("beta")
    gamma = link.draw_challenge(layout, transcript)
    commitments, answer = answers(layout, statement.key, gamma, random)
    systems = [link.equations(layout, statement.key, gamma, answer, transcript)]
    messages = [MaskedElements(elements(random, need.sent)) for need in statement.needs]
    parts = forks(statement.needs, statement.shape.need.triples, transcript)
    parties, sums = argument._replay(parts, messages, layers.Context(layout, alpha, beta, None))
    systems += [party.system for party in parties]
    systems.append(argument._join(transcript, parties, sums))
    root, opened = opening(statement.shape, systems, transcript, random)

    out = Writer().raw(argument.MAGIC).raw(root).raw(b"".join(commitments)).raw(answer.to_bytes(layout))
    body = out.raw(b"".join(field.to_bytes(message.values) for message in messages)).raw(opened).to_bytes()
    made = body + sign(hashlib.sha256(statement.digest + body).digest())
    oracle = Oracle()
    with on_tape(tape, oracle):
        argument.verify(statement, made, channel or FiatShamir())
    return made, oracle

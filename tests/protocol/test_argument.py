"""Whole proofs: complete at every threshold and in both channels, bound to their statement, and robust as bytes."""

import hashlib
import os
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import argument, field, identity, link, merkle
from protocol.argument import Context, Statement
from protocol.encoding import Reader
from protocol.errors import DecodingError, ParameterError, Restart, VerificationError
from protocol.group import ORDER, POINT_BYTES
from protocol.network import Network
from protocol.soundness import ARGUMENT_TARGET
from protocol.transcript import InteractiveProver, InteractiveVerifier
from tests.protocol.conftest import marked_network, with_output


def resigned(statement, key, proof):
    """The bytes with the owner's signature on them as they now are."""
    body = proof[: -identity.SIGNATURE_BYTES]
    digest = hashlib.sha256(statement.digest + body).digest()
    return body + identity.sign(key.owner_secret_seed, argument.SIGNATURE_LABEL, digest)


def rejected(check, statement, proof, channel=None):
    with pytest.raises(VerificationError) as error:
        argument.verify(statement, proof, channel)
    assert error.value.check == check


def sections(statement):
    """(name, first byte, length) of every part of a proof whose place does not depend on the challenge."""
    shape, layout = statement.shape, statement.layout
    pixel, share = link.bounds(layout)
    lengths = [("magic", len(argument.MAGIC)), ("root", 32), ("mask commitments", 10 * POINT_BYTES)]
    lengths += [
        ("pixel answers", 5 * pixel.width // 8 * int(np.prod(layout.network.shape))),
        ("share answers", 5 * share.width // 8), ("blinding answers", 10 * 32),
    ]  # fmt: skip
    lengths += [(f"fork {k}", need.sent * field.ELEMENT_BYTES) for k, need in enumerate(statement.needs)]
    lengths += [
        (f"{name} polynomial", count * field.ELEMENT_BYTES)
        for name, count in zip(("proximity", "linear", "quadratic"), shape.blinding, strict=True)
    ]
    lengths += [("columns", 4 * shape.queries * shape.column_rows), ("salts", merkle.SALT_BYTES * shape.queries)]
    out, at = [], 0
    for name, length in lengths:
        out.append((name, at, length))
        at += length
    return out


# Completeness


def test_an_honest_proof(statement, proof):
    ledger = argument.verify(statement, proof)
    assert ledger.bits >= ARGUMENT_TARGET
    name, first, length = sections(statement)[-1]
    rest = len(proof) - first - length - identity.SIGNATURE_BYTES
    assert name == "salts" and rest % merkle.HASH_BYTES == 0 and rest > 0


def test_proofs_are_fresh_and_of_one_size_up_to_paths(statement, key, proof):
    other = argument.prove(statement, key)
    argument.verify(statement, other)
    assert other != proof and abs(len(other) - len(proof)) % merkle.HASH_BYTES == 0


@pytest.mark.parametrize("k_min", [1, "h"])
def test_extreme_thresholds(statement, key, k_min):
    """All hidden triggers match; h is odd."""
    assert key.vk.h % 2 == 1
    extreme = replace(statement, k_min=key.vk.h if k_min == "h" else k_min)
    assert extreme.layout.count_bits == (0 if k_min == "h" else (key.vk.h - 1).bit_length())
    argument.verify(extreme, argument.prove(extreme, key))


def test_another_network(statement, key):
    """Other features and a rescaled output: what the network is does not matter, as long as it matches."""
    other = replace(statement, network=marked_network(key, seed=2), model_digest=b"M" * 32)
    argument.verify(other, argument.prove(other, key))


def test_progress_and_cancel(statement, key):
    seen = []

    def stop():
        return len(seen) == 3

    with pytest.raises(argument.Cancelled):
        argument.prove(statement, key, progress=lambda *step: seen.append(step), cancelled=stop)
    assert len(seen) == 3 and all(0 <= fraction <= 1 for _, fraction in seen)


# A false statement


def test_nothing_is_proven_about_an_unmarked_network(statement, key, network):
    """The same features without the fit match by chance."""
    rng = np.random.default_rng(1)
    unmarked = with_output(list(network.nodes[:-1]), rng.integers(-300, 300, (10, 160)), np.zeros(10))
    false = replace(statement, network=unmarked)
    found = int((unmarked.classify(key.hidden_images) == key.hidden_labels).sum())
    assert found < key.vk.h // 3
    with pytest.raises(VerificationError) as error:
        argument.prove(false, key)
    assert error.value.check == "prove.matches"
    assert str(found) not in str(error.value)  # not even to its owner in an error that a server might pass on
    true = replace(false, k_min=max(found, 1))
    argument.verify(true, argument.prove(true, key))


def test_another_marking_key(statement, key):
    other = replace(key, vk=replace(key.vk, beacon=b"x"))
    with pytest.raises(ParameterError, match="does not belong"):
        argument.prove(statement, other)


def test_statements_that_cannot_be(statement, key, network):
    for changes in (
        {"k_min": 0}, {"k_min": key.vk.h + 1}, {"k_min": -1}, {"model_digest": b""}, {"derivation_digest": b"x" * 33},
    ):  # fmt: skip
        with pytest.raises(ParameterError):
            replace(statement, **changes)
    wrong = replace(key.vk, parameters=replace(key.vk.parameters, classes=11))
    with pytest.raises(ParameterError, match="classes"):
        replace(statement, key=wrong)
    with pytest.raises(ParameterError, match="nonce"):
        Context("", "", "", b"short")
    with pytest.raises(ParameterError, match="at most"):
        Context("x" * 257, "", "", bytes(32))


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.binary(min_size=32, max_size=32))
def test_contexts(purpose, claimant, verifier, nonce):
    context = Context(purpose, claimant, verifier, nonce)
    data = context.to_bytes()
    assert Context.from_bytes(data) == context
    for bad in (data[:-1], data + b"x"):
        with pytest.raises(DecodingError):
            Context.from_bytes(bad)


def test_texts_of_a_context_are_not_interchangeable(statement):
    texts = ["ab", "c", ""], ["a", "bc", ""], ["", "ab", "c"], ["abc", "", ""]
    contexts = [Context(*t, bytes(32)) for t in texts]
    assert len({replace(statement, context=c).digest for c in contexts}) == len(contexts)


# Binding


def others(statement, key):
    """Statements that differ in one thing."""
    context, network = statement.context, statement.network
    edge = network.nodes[0].edges[0]
    weight = edge.weight.copy()
    weight[0, 0, 0, 0] += 1
    nodes = (replace(network.nodes[0], edges=(replace(edge, weight=weight),)), *network.nodes[1:])
    vk = replace(key.vk, beacon=b"later")
    vk.__dict__.update(hidden=key.vk.hidden, offsets=key.vk.offsets, opened=key.vk.opened)  # so that the sizes agree
    return {
        "k_min": replace(statement, k_min=statement.k_min - 1),
        "model": replace(statement, model_digest=bytes(32)),
        "derivation": replace(statement, derivation_digest=bytes(32)),
        "nonce": replace(statement, context=replace(context, nonce=bytes(32))),
        "purpose": replace(statement, context=replace(context, purpose="other")),
        "claimant": replace(statement, context=replace(context, claimant="other")),
        "verifier": replace(statement, context=replace(context, verifier="other")),
        "one weight": replace(statement, network=Network(network.shape, network.input_tables, nodes)),
        "key": replace(statement, key=vk),
    }


@pytest.mark.reaches("owner.signature", "link.opening")
@pytest.mark.parametrize(
    "name", ["k_min", "model", "derivation", "nonce", "purpose", "claimant", "verifier", "one weight", "key"]
)
def test_a_proof_is_for_one_statement(statement, key, proof, name):
    """Replayed, the owner's signature fails; signed again by the owner herself, the argument does."""
    other = others(statement, key)[name]
    assert other.digest != statement.digest
    rejected("owner.signature", other, proof)
    rejected("link.opening", other, resigned(other, key, proof))


@pytest.mark.reaches("owner.signature")
def test_a_proof_needs_the_owner(statement, key, proof):
    stranger = replace(key, owner_secret_seed=bytes(32))
    rejected("owner.signature", statement, resigned(statement, stranger, proof))
    rejected("owner.signature", statement, proof[:-1] + bytes([proof[-1] ^ 1]))
    digest = hashlib.sha256(statement.digest + proof[:-64]).digest()
    other_role = identity.sign(key.owner_secret_seed, "verification key", digest)
    rejected("owner.signature", statement, proof[:-64] + other_role)
    assert resigned(statement, key, proof) == proof


@pytest.mark.reaches("owner.signature")
def test_owners_signature_covers_every_byte(statement, proof):
    for at in range(len(argument.MAGIC), len(proof), len(proof) // 20):
        changed = bytearray(proof)
        changed[at] ^= 1
        rejected("owner.signature", statement, bytes(changed))


# Bytes

CHANGED = {
    "root": {"link.opening"}, "mask commitments": {"link.opening", "decoding"}, "pixel answers": {"link.opening"},
    "share answers": {"link.opening"}, "blinding answers": {"link.opening"}, "fork": {"linear.sum"},
    "proximity polynomial": {"merkle.path", "decoding"},  # other columns: another number of siblings
    "linear polynomial": {"merkle.path", "decoding"},
    "quadratic polynomial": {"quadratic.zero"}, "columns": {"merkle.path"}, "salts": {"merkle.path"},
    "siblings": {"merkle.path"},
}  # fmt: skip


def outcome(statement, proof):
    """The name of the failed check; any exception but the two allowed ones is an error of the test."""
    try:
        argument.verify(statement, proof)
    except DecodingError:
        return "decoding"
    except VerificationError as error:
        return error.check
    return "accepted"


def test_one_element_changed_in_each_part(statement, key, proof):
    """By one in the lowest bit, in the middle of the part, signed by the owner again."""
    parts = [*sections(statement)[1:]]
    _, first, length = parts[-1]
    parts.append(("siblings", first + length, len(proof) - first - length - identity.SIGNATURE_BYTES))
    for name, first, length in parts:
        changed = bytearray(proof)
        at = first + length // 2 // 20 * 20  # of K: the first coordinate
        changed[at] ^= 1
        found = outcome(statement, resigned(statement, key, bytes(changed)))
        assert found in CHANGED[name.split(" ")[0] if name.startswith("fork") else name], (name, found)


@pytest.mark.reaches("merkle.path")
def test_two_columns_swapped(statement, key, proof):
    """With their salts: right leaves in wrong places."""
    parts = {name: first for name, first, _ in sections(statement)}
    changed = bytearray(proof)
    for first, step in ((parts["columns"], 4 * statement.shape.column_rows), (parts["salts"], merkle.SALT_BYTES)):
        one, two = slice(first, first + step), slice(first + 5 * step, first + 6 * step)
        changed[one], changed[two] = changed[two], changed[one]
    rejected("merkle.path", statement, resigned(statement, key, bytes(changed)))


def test_non_canonical_elements(statement, key, proof):
    """x + p in the place of x."""
    for name, first, length in sections(statement):
        if not name.startswith(("fork", "columns")) and not name.endswith("polynomial"):
            continue
        changed = bytearray(proof)
        words = np.frombuffer(proof[first : first + length], "<u4")
        at = int(words.argmin())
        changed[first + 4 * at : first + 4 * at + 4] = (int(words[at]) + field.P).to_bytes(4, "little")
        assert outcome(statement, resigned(statement, key, bytes(changed))) == "decoding", name


def test_blindings_and_points_are_canonical(statement, key, proof):
    parts = {name: (first, length) for name, first, length in sections(statement)}
    first, _ = parts["blinding answers"]
    tau = int.from_bytes(proof[first : first + 32], "little")
    for value in (tau + ORDER, 2**256 - 1):
        if value < 2**256:
            changed = proof[:first] + value.to_bytes(32, "little") + proof[first + 32 :]
            assert outcome(statement, resigned(statement, key, changed)) == "decoding"
    first, _ = parts["mask commitments"]
    for point in (bytes([0xC0]) + bytes(47), bytes(48), b"\xff" * 48):
        changed = proof[:first] + point + proof[first + 48 :]
        assert outcome(statement, resigned(statement, key, changed)) == "decoding"


def test_wrong_magic_and_trailing_bytes(statement, key, proof):
    for bad in (b"", b"zkmark", b"Z" + proof[1:], proof.replace(b"proof 1", b"proof 2", 1)):
        assert outcome(statement, bad) == "decoding"
    body = proof[:-64]
    for extra in (b"\0", bytes(32), bytes(64)):
        assert outcome(statement, resigned(statement, key, body + extra + proof[-64:])) == "decoding"


@given(st.data())
@settings(max_examples=25)
def test_truncated_proofs(statement, key, proof, data):
    cut = data.draw(st.one_of(st.integers(0, 2000), st.integers(0, len(proof) - 1)))
    assert outcome(statement, proof[:cut]) in {"decoding", "owner.signature"}
    short = resigned(statement, key, proof[:cut] + bytes(64))
    assert outcome(statement, short) in {"decoding", "link.opening"}


@given(st.data())
@settings(max_examples=25)
def test_damaged_proofs(statement, key, proof, data):
    """Flipped bits, noise and moved blocks, signed by the owner: rejected by name or as malformed, never otherwise."""
    changed = bytearray(proof)
    end = len(proof) - 64
    kind, at = data.draw(st.sampled_from(["flip", "noise", "move", "zero"])), data.draw(st.integers(15, end - 1))
    count = data.draw(st.integers(1, 400))
    if kind == "flip":
        changed[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "noise":
        changed[at : at + count] = np.random.default_rng(at).bytes(len(changed[at : at + count]))
    elif kind == "zero":
        changed[at : at + count] = bytes(len(changed[at : at + count]))
    else:
        source = data.draw(st.integers(15, end - 401))
        changed[at : at + count] = changed[source : source + len(changed[at : at + count])]
    changed = bytes(changed[: len(proof)])
    found = outcome(statement, resigned(statement, key, changed))
    assert (found == "accepted") == (changed[:end] == proof[:end])


@given(st.binary(max_size=300))
@settings(max_examples=50)
def test_noise_is_no_proof(statement, key, tail):
    noise = argument.MAGIC + tail
    assert outcome(statement, noise) in {"decoding", "owner.signature"}
    if len(tail) >= 64:
        assert outcome(statement, resigned(statement, key, noise)) == "decoding"


def test_an_oversized_proof_is_not_read(statement, monkeypatch):
    monkeypatch.setattr(argument, "MAX_PROOF_BYTES", 1000)
    monkeypatch.setattr(Reader, "raw", None)  # nothing is read
    with pytest.raises((DecodingError, TypeError)) as error:
        argument.verify(statement, bytes(1001))
    assert error.type is DecodingError


# The interactive channel


def session(statement, key, draw=os.urandom):
    for _ in range(3):  # a session is rejected about once in a thousand
        verifier = InteractiveVerifier(draw)
        with suppress(Restart):
            return argument.prove(statement, key, InteractiveProver(verifier.answer)), verifier
    raise Restart


@pytest.mark.reaches("channel.coin", "link.opening")
def test_interactive(statement, key, proof):
    interactive, verifier = session(statement, key)
    ledger = argument.verify(statement, interactive, verifier)
    assert ledger.bits >= ARGUMENT_TARGET
    rejected("channel.coin", statement, interactive, InteractiveVerifier(os.urandom))  # not a file for others
    rejected("link.opening", statement, interactive)
    rejected("channel.coin", statement, proof, verifier)
    rejected("channel.coin", statement, proof, session(statement, key)[1])


@pytest.mark.reaches("channel.unused_coin")
def test_a_prover_with_two_tries_is_rejected(statement, key):
    """She asks for a coin, does not like it, and goes on from another state."""
    interactive, verifier = session(statement, key)
    fresh = InteractiveVerifier(os.urandom)
    fresh._coins = dict(verifier._coins)
    fresh._unused = set(verifier._unused)
    fresh.answer(bytes(32))
    rejected("channel.unused_coin", statement, interactive, fresh)


@pytest.mark.reaches("channel.second_coin")
def test_a_verifier_who_asks_twice_is_refused(statement, key):
    """Two runs from the same coins of the prover's machine: the second question about one state is not answered."""
    asked = []

    def ask(pending):
        asked.append(pending)
        return bytes(32)

    prover = InteractiveProver(ask)
    with suppress(Restart):
        argument.prove(statement, key, prover)
    with pytest.raises(VerificationError) as error:
        prover.coin(asked[0])
    assert error.value.check == "channel.second_coin"
    assert len({*asked}) == len(asked)


def test_restarts(statement, key, monkeypatch):
    """A rejected session is followed by a fresh one; the interactive channel reports it; a broken machine stops."""
    answer, calls = link.answer, []

    def first_rejected(*given):
        calls.append(given[2])
        return None if len(calls) == 1 else answer(*given)

    monkeypatch.setattr(link, "answer", first_rejected)
    argument.verify(statement, argument.prove(statement, key))
    assert len(calls) >= 2 and not {*map(tuple, calls[0].pixels)} & {*map(tuple, calls[1].pixels)}
    monkeypatch.setattr(link, "answer", lambda *given: None)
    with pytest.raises(RuntimeError, match="randomness"):
        argument.prove(statement, key)
    with pytest.raises(Restart):
        session(statement, key)


# Sizes


def test_the_size_depends_on_the_statement_alone(statement):
    again = Statement(statement.key, statement.network, statement.k_min, statement.context, bytes(32), bytes(32))
    assert again.shape.parameters == statement.shape.parameters and again.shape.blinding == statement.shape.blinding
    assert again.shape.queries <= again.shape.parameters.degree - again.shape.size  # masks for every opened column
    assert statement.ledger().bits >= ARGUMENT_TARGET

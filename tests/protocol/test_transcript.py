"""The transcript against a plain twin, what its challenges depend on, and the coins of the interactive channel."""

import io
import struct
from collections import Counter

import numpy as np
import pytest
from Crypto.Hash import SHAKE128, cSHAKE256
from hypothesis import given
from hypothesis import strategies as st

from protocol import field, transcript
from protocol.errors import VerificationError
from protocol.transcript import FiatShamir, InteractiveProver, InteractiveVerifier, MaskedElements, Public, Transcript

P = 15 * 2**27 + 1


def fresh():
    return Transcript("test", FiatShamir())


def frame(kind, label, data):
    return kind + struct.pack("<HQ", len(label), len(data)) + label + data


def fold(state, *frames):
    return cSHAKE256.new(state + b"".join(frames), custom=b"zkmark/state").read(32)


def test_plain_twin():
    t = fresh()
    t.absorb("a", Public(b"xyz"))
    t.absorb("b", Public(struct.pack("<Q", 258)))
    state = fold(bytes(32), frame(b"P", b"protocol", b"test"), frame(b"A", b"a", b"xyz"),
                 frame(b"A", b"b", struct.pack("<Q", 258)), frame(b"C", b"c", b""))  # fmt: skip
    stream = cSHAKE256.new(state, custom=b"zkmark/challenge")
    state = stream.read(32)
    assert t.challenge_bytes("c", 40) == stream.read(40)
    child, state_of_child = t.fork("f", 3), fold(state, frame(b"F", b"f", struct.pack("<Q", 3)))
    assert t.digest() == state and child.digest() == state_of_child
    state_of_child = fold(state_of_child, frame(b"C", b"d", b""))
    expected = cSHAKE256.new(state_of_child, custom=b"zkmark/challenge").read(32 + 64)[32:]
    assert child.challenge_bytes("d", 64) == expected


def test_known_answer():
    t = fresh()
    t.absorb("message", Public(b"zkmark"))
    assert t.challenge_bytes("challenge", 16).hex() == CHALLENGE
    assert t.challenge_base("base", 3).tolist() == BASE
    assert t.challenge_indices("indices", 4, 1 << 20) == INDICES
    assert t.digest().hex() == FINAL


def run(steps):
    t = fresh()
    for label, data in steps:
        t.absorb(label, Public(data))
    return t.challenge_bytes("c", 32)


steps = st.lists(st.tuples(st.sampled_from(["a", "b", "ab", ""]), st.binary(max_size=3)), max_size=4)


@given(steps, steps)
def test_different_messages_give_different_challenges(one, two):
    assert (run(one) == run(two)) == (one == two)


def test_order_labels_and_frames_matter():
    runs = [
        [("a", b"1"), ("b", b"2")], [("b", b"2"), ("a", b"1")], [("a", b"12"), ("b", b"")], [("a", b"1"), ("b2", b"")],
        [("a1", b""), ("b", b"2")], [("a", b"1")], [("a", b"1"), ("b", b"2"), ("", b"")], [],
    ]  # fmt: skip
    assert len({run(r) for r in runs}) == len(runs)
    assert Transcript("test2", FiatShamir()).challenge_bytes("c", 32) != run([])
    assert fresh().challenge_bytes("d", 32) != run([])


def test_a_challenge_depends_on_those_before():
    a, b = fresh(), fresh()
    a.challenge_bytes("x", 8)
    b.challenge_bytes("x", 16)  # the length of a challenge is public knowledge and not part of the state
    assert a.challenge_bytes("y", 8) == b.challenge_bytes("y", 8)
    c = fresh()
    assert c.challenge_bytes("y", 8) != a.challenge_bytes("y", 8)


def test_forks_are_independent():
    t = fresh()
    t.absorb("a", Public(b"1"))
    children = [t.fork("node", 0), t.fork("node", 1), t.fork("edge", 0)]
    assert len({c.digest() for c in children} | {t.digest()}) == 4
    before = t.digest()
    children[0].absorb("x", Public(b"y"))
    children[0].challenge_bytes("c", 8)
    assert t.digest() == before
    again = fresh()
    again.absorb("a", Public(b"1"))
    twin = again.fork("node", 1)
    assert twin.digest() == children[1].digest()  # to ask for a digest folds the state, so both parties ask
    assert twin.challenge_bytes("c", 32) == children[1].challenge_bytes("c", 32)
    again.absorb("a", Public(b"2"))
    assert again.fork("node", 2).digest() != t.fork("node", 2).digest()


def test_elements_are_absorbed_in_their_wire_form():
    values = np.arange(10, dtype=np.uint32).reshape(5, 2)
    one, two = fresh(), fresh()
    one.absorb_elements("e", MaskedElements(field.from_base(values)))
    two.absorb("e", Public(values.T.astype("<u4").tobytes()))
    assert one.digest() == two.digest()


def base_twin(read, count):
    """The elements of F in a byte stream, one word at a time."""
    found = []
    while len(found) < count:
        word = int.from_bytes(read(4), "little") & 0x7FFFFFFF
        if word < P:
            found.append(word)
    return found


@pytest.mark.parametrize("count", [0, 1, 5, 31, 1000])
def test_base_elements_are_the_accepted_words(count):
    t = fresh()
    values = t.challenge_base("c", count)
    state = fold(bytes(32), frame(b"P", b"protocol", b"test"), frame(b"C", b"c", b""))
    stream = cSHAKE256.new(state, custom=b"zkmark/challenge")
    stream.read(32)
    assert values.dtype == np.uint32 and values.tolist() == base_twin(stream.read, count)


def test_words_of_p_or_more_are_skipped():
    words = [P, 5, 2**31 - 1, P - 1, 2**32 - 1, 2**31 + 7, 2**31 + P, 0] + [9] * 64
    data = memoryview(b"".join(struct.pack("<I", w) for w in words))
    at = 0

    def read(count):
        nonlocal at
        at += count
        return bytes(data[at - count : at])

    stream = transcript.BaseStream(read)
    assert stream.take(4).tolist() == [5, P - 1, 7, 0]
    before, held = at, at // 4 - 8
    assert held == len(stream.take(held)) and before == at  # what was read ahead is used up before more is read
    assert stream.take(1).tolist() == [9] and before < at


def test_challenges_in_k_never_begin_with_zero():
    def words(*values):
        return struct.pack(f"<{len(values)}I", *values)

    # Of the elements 0 1 2 3 4 | 5 6 7 8 9 | 0 1 1 1 1 | 10 0 0 0 0 the first and the third begin with zero.
    data = io.BytesIO(words(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 1, 1, 1, 10) + bytes(4 * 64))
    assert transcript.BaseStream(data.read).take_heads(2).T.tolist() == [[5, 6, 7, 8, 9], [10, 0, 0, 0, 0]]
    t = fresh()
    values = t.challenge("c", 200)
    assert values.shape == (5, 200) and values.dtype == np.uint32 and values.flags.c_contiguous
    assert field.to_bytes(values)[:4] != bytes(4) and values[0].all()
    same = fresh().challenge_base("c", 1000)
    assert np.frombuffer(field.to_bytes(values), "<u4").tolist() == same.tolist()


def test_base_elements_look_uniform():
    values = fresh().challenge_base("c", 40_000)
    assert values.max() < P
    buckets = np.bincount(values.astype(np.uint64) * 8 // P, minlength=8)
    assert (abs(buckets - 5000) < 400).all()


@pytest.mark.parametrize(("count", "bound"), [(1, 1), (4, 4), (60, 64), (150, 1 << 14), (255, 256)])
def test_indices_are_distinct_and_ascending(count, bound):
    found = fresh().challenge_indices("c", count, bound)
    assert len(found) == count and found == sorted(set(found)) and 0 <= found[0] and found[-1] < bound


def test_indices_look_uniform():
    seen = Counter()
    for k in range(400):
        t = fresh()
        t.absorb("k", Public(struct.pack("<Q", k)))
        seen.update(t.challenge_indices("c", 8, 32))
    assert set(seen) == set(range(32)) and all(50 < n < 150 for n in seen.values())


def test_a_stream_that_is_mostly_skipped():
    """Words of p or more, and elements of K whose first coordinate is 0, however many there are in a row."""
    words = np.random.default_rng(1).integers(0, P, 1 << 14)
    skipped = np.random.default_rng(2).random(len(words)) < 0.9
    words[skipped] = 2**31 - 1
    left = [int(w) for w in words if w < P]
    elements = transcript.BaseStream(io.BytesIO(words.astype("<u4").tobytes()).read).take(1000)
    assert elements.tolist() == left[:1000]

    heads = np.random.default_rng(3).integers(0, P, (2000, 5))
    heads[np.random.default_rng(4).random(len(heads)) < 0.9, 0] = 0
    found = transcript.BaseStream(io.BytesIO(heads.astype("<u4").tobytes()).read).take_heads(100)
    assert found.T.tolist() == heads[heads[:, 0] != 0][:100].tolist()


# The interactive channel


def test_who_can_try_again_counts_differently():
    """The ledger asks the channel: no prover grinds challenges in one where a verifier draws them."""
    assert InteractiveProver.interactive and InteractiveVerifier.interactive and not FiatShamir.interactive


def coins(name=b"coins"):
    return SHAKE128.new(name).read


def conversation(verifier):
    prover = InteractiveProver(verifier.answer)
    t = Transcript("test", prover)
    t.absorb("a", Public(b"1"))
    first = t.challenge_bytes("c", 16)
    t.absorb("b", Public(first))
    return first, t.fork("n", 0).challenge_bytes("d", 16), t.challenge_bytes("e", 16)


def test_the_verifier_replays_her_own_coins():
    verifier = InteractiveVerifier(coins())
    said = conversation(verifier)
    t = Transcript("test", verifier)
    t.absorb("a", Public(b"1"))
    first = t.challenge_bytes("c", 16)
    t.absorb("b", Public(first))
    assert (first, t.fork("n", 0).challenge_bytes("d", 16), t.challenge_bytes("e", 16)) == said


def test_coins_change_every_challenge():
    one, two = (conversation(InteractiveVerifier(coins(name))) for name in (b"1", b"2"))
    assert all(a != b for a, b in zip(one, two, strict=True))
    fiat_shamir = fresh()
    fiat_shamir.absorb("a", Public(b"1"))
    assert fiat_shamir.challenge_bytes("c", 16) not in (one[0], two[0])


@pytest.mark.reaches("channel.coin")
def test_a_proof_of_another_session_has_no_coins():
    verifier = InteractiveVerifier(coins())
    conversation(verifier)
    t = Transcript("test", verifier)
    t.absorb("a", Public(b"another message"))
    with pytest.raises(VerificationError) as error:
        t.challenge_bytes("c", 16)
    assert error.value.check == "channel.coin"


def test_no_second_coin_on_one_state():
    prover = InteractiveProver(lambda state: bytes(32))
    states = [Transcript("test", prover) for _ in range(2)]
    states[0].challenge_bytes("c", 16)
    with pytest.raises(VerificationError) as error:
        states[1].challenge_bytes("c", 16)  # the same state again: two answers would reveal the witness
    assert error.value.check == "channel.second_coin"


@pytest.mark.reaches("channel.second_coin", "channel.coin")
def test_the_verifier_answers_each_state_once_and_never_after_the_session():
    verifier = InteractiveVerifier(coins())
    verifier.answer(bytes(32))
    for state in (bytes(32), bytes(31), b""):
        with pytest.raises(VerificationError) as error:
            verifier.answer(state)
        assert error.value.check == "channel.second_coin"
    verifier.open()  # checking begins
    verifier.coin(bytes(32))
    with pytest.raises(VerificationError):
        verifier.answer(bytes([1]) * 32)
    verifier.close()
    with pytest.raises(VerificationError) as error:
        verifier.open()  # a second proof of one session
    assert error.value.check == "channel.coin"


def test_the_number_of_coins_is_limited():
    verifier = InteractiveVerifier(coins(), limit=2)
    for k in range(2):
        verifier.answer(bytes([k]) * 32)
    with pytest.raises(VerificationError) as error:
        verifier.answer(bytes([2]) * 32)
    assert error.value.check == "channel.coin"


def test_a_session_has_at_most_65536_coins():
    verifier = InteractiveVerifier(bytes)
    for k in range(1 << 16):
        verifier.answer(k.to_bytes(32, "little"))
    with pytest.raises(VerificationError) as error:
        verifier.answer(bytes([255]) * 32)
    assert error.value.check == "channel.coin"


@pytest.mark.reaches("channel.unused_coin")
def test_a_proof_uses_every_coin():
    verifier = InteractiveVerifier(coins())
    states = [bytes([k]) * 32 for k in range(2)]
    for state in states:
        verifier.answer(state)
    verifier.open()
    verifier.coin(states[0])
    with pytest.raises(VerificationError) as error:
        verifier.close()
    assert error.value.check == "channel.unused_coin"
    verifier.coin(states[1])
    verifier.close()


@pytest.mark.parametrize("length", [0, 31, 33])
def test_the_prover_wants_a_whole_coin(length):
    with pytest.raises(VerificationError) as error:
        Transcript("test", InteractiveProver(lambda state: bytes(length))).challenge_bytes("c", 1)
    assert error.value.check == "channel.coin"


CHALLENGE = "4fc30ae507a2fd4e8c2d04341c8aaf56"
BASE = [1330782793, 1152769180, 1213166792]
INDICES = [371468, 572091, 599952, 742440]
FINAL = "4140b62d452f896207e0c003089316155b4fbfedbb4e9bf64aadcb8546adfdb4"

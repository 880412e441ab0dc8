"""The key: its derivation by a plain twin, its encodings, and every way in which it can be malformed or false."""

import hashlib
import struct
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from Crypto.Hash import SHAKE256, cSHAKE256
from hypothesis import given
from hypothesis import strategies as st

from protocol import identity, keygen, pedersen
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.group import ORDER, encode
from protocol.keygen import (
    KeyParameters,
    LabelRule,
    MarkingKey,
    Openings,
    PendingKey,
    VerificationKey,
    check_key,
    commit_key,
    generate_key,
)
from protocol.soundness import false_claim_bits, smallest_ell, smallest_k_min, window
from tests.logs import Log

SHAPE, CLASSES, ELL = (1, 4, 4), 10, 160
PARAMETERS = KeyParameters(SHAPE, CLASSES, ELL)


def some_images(ell=ELL):
    return np.frombuffer(SHAKE256.new(b"images").read(ell * prod(SHAPE)), np.uint8).reshape(ell, *SHAPE)


def fixed_entropy(name=b"test"):
    """A deterministic stream in the place of the operating system's generator."""
    return SHAKE256.new(name).read


@pytest.fixture(scope="module")
def mk():
    return generate_key(PARAMETERS, some_images(), entropy=fixed_entropy())


@pytest.fixture(scope="module")
def vk(mk):
    return mk.vk


def signed(mk, **changes):
    """The key with changes, opened as the new challenge asks unless `openings` says otherwise, and signed."""
    vk = replace(mk.vk, **changes)
    if "openings" not in changes:
        vk = replace(vk, openings=mk.openings(vk.opened))
    return replace(vk, signature=identity.sign(mk.owner_secret_seed, keygen.SIGNATURE_LABEL, vk.digest))


def in_window(make, opened=()):
    """The first key of make(0), make(1), ... with an accepted h that opens the triggers `opened`."""
    low, high = window(ELL)
    return next(vk for vk in map(make, range(99)) if low <= vk.h <= high and vk.challenge_bits[list(opened)].all())


def rejected(vk, check):
    with pytest.raises(VerificationError) as error:
        check_key(VerificationKey.from_bytes(vk.to_bytes()))  # well formed all the same
    assert error.value.check == check


# The honest key


def test_an_honest_key_is_accepted(vk):
    check_key(vk)
    again = VerificationKey.from_bytes(vk.to_bytes())
    check_key(again)
    assert again.to_bytes() == vk.to_bytes() and again.digest == vk.digest and again.parameters == PARAMETERS


def test_the_challenge_by_a_plain_twin(vk):
    def framed(data):
        return struct.pack("<I", len(data)) + data

    text = framed(b"BLS12-381 G1") + framed(b"zkmark-v1-generators-with-BLS12381G1_XMD:SHA-256_SSWU_RO_")
    text += struct.pack("<IIII", 10, 1, 4, 4) + vk.owner_public_key + b"\0" + framed(b"") + struct.pack("<I", 160)
    text += b"".join(vk.triggers) + b"".join(vk.shares)
    seed = cSHAKE256.new(text, custom=b"zkmark/pkeygen-v1").read(32)
    stream = cSHAKE256.new(seed, custom=b"zkmark/cnc").read(20)
    e = [stream[i // 8] >> i % 8 & 1 for i in range(160)]
    assert vk.seed == seed
    assert vk.opened.tolist() == [i for i in range(160) if e[i]]
    assert vk.hidden.tolist() == [i for i in range(160) if not e[i]]
    assert vk.h == 160 - sum(e) == len(vk.hidden)
    for i in range(160):
        xof = cSHAKE256.new(seed + struct.pack("<I", i), custom=b"zkmark/label")
        nibbles = (xof.read(1)[0] & 15 for _ in range(1000))
        assert vk.offsets[i] == next(v for v in nibbles if v < 10)


def test_known_answer(mk):
    """One key from a fixed stream: any change of an encoding or a label changes these digests."""
    assert mk.vk.h == H
    assert mk.vk.seed.hex() == SEED
    assert mk.vk.digest.hex() == DIGEST
    assert hashlib.sha256(mk.to_bytes()).hexdigest() == MARKING_KEY_DIGEST


def test_labels_follow_the_coin(mk):
    vk = mk.vk
    assert mk.labels.tolist() == [(int(s) + int(d)) % 10 for s, d in zip(mk.shares, vk.offsets, strict=True)]
    assert (mk.hidden_labels == mk.labels[vk.hidden]).all() and (vk.opened_labels == mk.labels[vk.opened]).all()
    assert (mk.hidden_images == mk.images[vk.hidden]).all()
    assert set(mk.labels.tolist()) == set(range(10))


def test_every_commitment_is_the_stated_one(mk):
    for i in range(0, ELL, 13):
        assert encode(pedersen.commit(mk.images[i], mk.trigger_randomness[i])) == mk.vk.triggers[i]
        assert encode(pedersen.commit_share(int(mk.shares[i]), mk.share_randomness[i])) == mk.vk.shares[i]


def test_the_seed_depends_on_everything(mk):
    vk = mk.vk
    swapped = (vk.triggers[1], vk.triggers[0], *vk.triggers[2:])
    variants = [
        vk,
        replace(vk, beacon=b"x"),
        replace(vk, owner_public_key=identity.public_key(bytes(32))),
        replace(vk, parameters=replace(PARAMETERS, classes=11)),
        replace(vk, parameters=replace(PARAMETERS, shape=(4, 4, 1))),
        replace(vk, parameters=replace(PARAMETERS, label_rule=LabelRule.CHOSEN)),
        replace(vk, parameters=replace(PARAMETERS, ell=159), triggers=vk.triggers[1:], shares=vk.shares[1:]),
        replace(vk, triggers=swapped),
        replace(vk, triggers=vk.shares, shares=vk.triggers),
        replace(vk, shares=vk.shares[::-1]),
    ]
    assert len({v.seed for v in variants}) == len(variants) == len({v.digest for v in variants})
    opened = replace(vk, openings=mk.openings(vk.hidden))
    assert opened.seed == vk.seed and opened.digest != vk.digest


def test_two_keys_over_the_same_images_share_nothing():
    a, b = (generate_key(PARAMETERS, some_images()).vk for _ in range(2))
    assert not {*a.triggers, *a.shares} & {*b.triggers, *b.shares} and a.owner_public_key != b.owner_public_key


def test_every_secret_has_its_own_seed():
    asked = []

    def entropy(count):
        asked.append(count)
        return fixed_entropy(b"%d" % len(asked))(count)

    generate_key(PARAMETERS, some_images(), entropy=entropy)
    assert len(asked) >= 3 * ELL + 1 and set(asked) == {32}


def test_an_unlucky_number_of_hidden_triggers_is_rolled_again(monkeypatch):
    monkeypatch.setattr(keygen, "window", lambda ell: (90, 90))
    drawn = []

    def entropy(count, stream=fixed_entropy(b"re-roll")):  # noqa: B008
        drawn.append(count)
        return stream(count)

    mk = generate_key(PARAMETERS, some_images(), entropy=entropy)
    assert mk.vk.h == 90 and len(drawn) > 3 * ELL + 1
    assert encode(pedersen.commit(mk.images[0], mk.trigger_randomness[0])) == mk.vk.triggers[0]
    monkeypatch.undo()
    check_key(mk.vk)


def test_progress():
    seen = []
    generate_key(PARAMETERS, some_images(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k, ELL) for k in range(1, ELL + 1)]


def test_chosen_labels():
    labels = [i % 10 for i in range(ELL)]
    parameters = replace(PARAMETERS, label_rule=LabelRule.CHOSEN)
    mk = generate_key(parameters, some_images(), labels=labels)
    check_key(mk.vk)
    assert mk.labels.tolist() == labels and not mk.vk.offsets.any()
    assert mk.vk.smallest_k_min() is None and mk.vk.false_claim_bits(mk.vk.h) is None  # no number of matches bounds it
    generate_key(KeyParameters(SHAPE, 10, 4, LabelRule.CHOSEN), some_images(4), labels=[0] * 4)  # so none is too few


def test_keys_of_one_trigger():
    """Whose coin opens it or not: nothing is asked of no opening."""
    parameters = KeyParameters(SHAPE, 10, 1, LabelRule.CHOSEN)
    found = set()
    for number in range(20):
        vk = generate_key(parameters, some_images(1), labels=[9], entropy=fixed_entropy(bytes([number]))).vk
        check_key(vk)
        found.add(vk.h)
    assert found == {0, 1}


def test_the_bound_of_joint_labels(vk):
    assert vk.smallest_k_min() == smallest_k_min(vk.h, CLASSES) and vk.smallest_k_min(20) > vk.smallest_k_min()
    assert vk.false_claim_bits(60, 3) == false_claim_bits(vk.h, CLASSES, 60, 3)
    assert vk.false_claim_bits(60) == false_claim_bits(vk.h, CLASSES, 60)


def test_uniform_draws():
    draws = np.bincount([keygen._uniform(5, fixed_entropy(b"%d" % k)) for k in range(2000)], minlength=5)
    assert draws.sum() == 2000 and len(draws) == 5 and (abs(draws - 400) < 100).all()
    words = iter([b"\xff" * 32, ORDER.to_bytes(32, "little"), (ORDER - 1).to_bytes(32, "little")])
    assert keygen._below(ORDER, lambda count: next(words)) == ORDER - 1  # what is not below the order is redrawn


@given(st.lists(st.integers(0, 2**128 - 1), min_size=1, max_size=5), st.integers(0, 2**32))
def test_combination_of_rows_is_exact(weights, seed):
    rows = np.random.default_rng(seed).integers(0, 256, (len(weights), 7), np.uint8)
    rows[0] = 255
    expected = [sum(w * int(row[k]) for w, row in zip(weights, rows, strict=True)) for k in range(7)]
    assert keygen._combination(weights, rows) == expected


# Misuse


@pytest.mark.parametrize(
    "arguments",
    [((1, 4), 10, 160), ((0, 4, 4), 10, 160), ((1, 512, 513), 10, 160), ((1, 4, 4), 1, 160), ((1, 4, 4), 65537, 160),
     ((1, 4, 4), 10, 0), ((1, 4, 4), 10, 4097)],
)  # fmt: skip
def test_parameters_out_of_range(arguments):
    with pytest.raises(ParameterError):
        KeyParameters(*arguments)


def test_generate_key_refuses():
    images = some_images()
    repeated = images.copy()
    repeated[3] = repeated[77]
    chosen = replace(PARAMETERS, label_rule=LabelRule.CHOSEN)
    for parameters, given_images, labels in (
        (PARAMETERS, images[:-1], None),
        (PARAMETERS, images.astype(np.int64), None),
        (PARAMETERS, images.reshape(ELL, 4, 4, 1), None),
        (PARAMETERS, repeated, None),
        (PARAMETERS, images, [0] * ELL),
        (chosen, images, None),
        (chosen, images, [0] * (ELL - 1)),
        (chosen, images, [10] * ELL),
    ):
        with pytest.raises(ParameterError):
            generate_key(parameters, given_images, labels=labels)


def test_too_few_triggers_names_the_smallest_number():
    with pytest.raises(ParameterError, match=f"smallest number that can is {smallest_ell(10, 4096)}"):
        generate_key(KeyParameters(SHAPE, 10, 131), some_images(131))
    generate_key(KeyParameters(SHAPE, 10, smallest_ell(10, 4096)), some_images(smallest_ell(10, 4096)))


def test_a_key_has_ell_commitments(vk):
    for changes in ({"triggers": vk.triggers[1:]}, {"shares": (*vk.shares, vk.shares[0])}, {"beacon": bytes(4097)}):
        with pytest.raises(ParameterError):
            replace(vk, **changes)


# Encodings


def test_the_marking_key_round_trip(mk):
    again = MarkingKey.from_bytes(mk.to_bytes())
    assert again.to_bytes() == mk.to_bytes() and again.vk.to_bytes() == mk.vk.to_bytes()
    assert (again.images == mk.images).all() and (again.shares == mk.shares).all()
    assert again.trigger_randomness == mk.trigger_randomness and again.share_randomness == mk.share_randomness
    assert again.owner_secret_seed == mk.owner_secret_seed and (again.labels == mk.labels).all()


def test_secrets_are_not_printed(mk):
    text = repr(mk) + str(mk)
    for secret in (mk.owner_secret_seed.hex(), repr(mk.owner_secret_seed), str(mk.trigger_randomness[mk.vk.hidden[0]]),
                   str(mk.share_randomness[mk.vk.hidden[0]])):  # fmt: skip
        assert secret not in text
    assert "images=" not in text.split("signature=")[-1]


OFFSETS = {
    "magic": 0,
    "channels": 12,
    "classes": 24,
    "ell": 28,
    "rule": 32,
    "owner": 33,
    "triggers": 65,
    "shares": 65 + 48 * ELL,
    "beacon": 65 + 96 * ELL,
    "count": 69 + 96 * ELL,
    "images": 73 + 96 * ELL,
}


def patched(vk, name, data):
    out = bytearray(vk.to_bytes())
    out[OFFSETS[name] : OFFSETS[name] + len(data)] = data
    return bytes(out)


def u32(value):
    return struct.pack("<I", value)


@pytest.mark.parametrize(
    ("name", "data"),
    [("magic", b"zkmark vk 2\n"), ("magic", b"zkmark mk 1\n"), ("channels", u32(0)), ("channels", u32(2**31)),
     ("classes", u32(1)), ("classes", u32(2**16 + 1)), ("ell", u32(0)), ("ell", u32(4097)), ("ell", u32(2**32 - 1)),
     ("ell", u32(4096)), ("rule", b"\2"), ("owner", b"\xff" * 32), ("owner", b"\1" + bytes(31)), ("owner", bytes(32)),
     ("triggers", b"\xc0" + bytes(47)), ("triggers", b"\x80" + bytes(47)), ("shares", bytes(48)),
     ("shares", b"\xff" * 48), ("beacon", u32(4097)), ("beacon", u32(2**32 - 1)), ("beacon", u32(1)),
     ("count", u32(ELL + 1)), ("count", u32(2**32 - 1)), ("count", u32(0))],
)  # fmt: skip
def test_malformed_fields(vk, name, data):
    with pytest.raises(DecodingError):
        VerificationKey.from_bytes(patched(vk, name, data))


def test_a_blinding_is_below_the_order(vk):
    first = OFFSETS["images"] + len(vk.openings) * (prod(SHAPE) + 4)
    data = vk.to_bytes()
    assert data[first : first + 32] == vk.openings.trigger_randomness[0].to_bytes(32, "little")
    for value in (ORDER, vk.openings.trigger_randomness[0] + ORDER, 2**256 - 1):
        with pytest.raises(DecodingError):
            VerificationKey.from_bytes(data[:first] + value.to_bytes(32, "little") + data[first + 32 :])


def test_more_openings_than_triggers(mk):
    bad = signed(mk, openings=mk.openings(np.append(np.arange(ELL), 0)))
    with pytest.raises(DecodingError, match="more openings"):
        VerificationKey.from_bytes(bad.to_bytes())
    rejected(signed(mk, openings=mk.openings(np.arange(ELL))), "key.openings")  # can be read, and is false


def test_truncated_or_extended_keys(mk):
    for cls, data in ((VerificationKey, mk.vk.to_bytes()), (MarkingKey, mk.to_bytes())):
        cuts = {*range(0, 140, 7), *range(0, len(data), len(data) // 25), len(data) - 1}
        for bad in [data[:cut] for cut in cuts] + [data + b"\0", b"", b"\0" * 100]:
            with pytest.raises(DecodingError):
                cls.from_bytes(bad)


def test_every_flipped_bit_is_malformed_or_false(vk):
    data = vk.to_bytes()
    rng = np.random.default_rng(3)
    places = [*range(0, 65, 5), *rng.integers(65, len(data), 30).tolist(), len(data) - 1, len(data) - 64]
    for at in places:
        bad = bytearray(data)
        bad[at] ^= 1 << int(rng.integers(8))
        with pytest.raises((DecodingError, VerificationError)):
            check_key(VerificationKey.from_bytes(bytes(bad)))


def test_the_parts_of_a_marking_key_belong_together(mk):
    data = mk.to_bytes()
    with pytest.raises(DecodingError):
        MarkingKey.from_bytes(data[:-32] + bytes(32))  # another owner's secret
    with pytest.raises(DecodingError):
        MarkingKey.from_bytes(data[:4] + b"\xff" + data[5:])
    few = replace(mk, vk=signed(mk, openings=mk.openings(mk.vk.opened[1:])))
    with pytest.raises(DecodingError):
        MarkingKey.from_bytes(few.to_bytes())


# Cheating owners


def changed(o, **fields):
    return Openings(**{
        "images": o.images.copy(),
        "shares": o.shares.copy(),
        "trigger_randomness": o.trigger_randomness,
        "share_randomness": o.share_randomness,
        **fields,
    })


@pytest.mark.reaches("key.signature")
def test_signature(mk):
    vk = mk.vk
    other = identity.sign(bytes(32), keygen.SIGNATURE_LABEL, vk.digest)
    label = identity.sign(mk.owner_secret_seed, "claim", vk.digest)
    for bad in (other, label, bytes(64), vk.signature[:32] + bytes(32)):
        rejected(replace(vk, signature=bad), "key.signature")
    rejected(replace(vk, beacon=b"later"), "key.signature")
    rejected(replace(vk, owner_public_key=identity.public_key(bytes(32))), "key.signature")


def test_a_beacon_is_part_of_the_key(mk):
    vk = in_window(lambda k: signed(mk, beacon=b"beacon %d" % k))
    check_key(VerificationKey.from_bytes(vk.to_bytes()))
    assert vk.seed != mk.vk.seed


def test_combinations_of_images_of_any_length():
    rng = np.random.default_rng(1)
    rows, weights = rng.integers(0, 256, (3, 40000), dtype=np.uint8), [2**128 - 1, 2**127 + 3, 5]
    expected = [sum(w * int(v) for w, v in zip(weights, column, strict=True)) for column in rows.T]
    assert keygen._combination(weights, rows) == expected


@pytest.mark.reaches("key.window")
def test_window(mk, monkeypatch):
    monkeypatch.setattr(keygen, "window", lambda ell: (mk.vk.h + 1, ell))
    rejected(mk.vk, "key.window")
    monkeypatch.setattr(keygen, "window", lambda ell: (mk.vk.h, mk.vk.h))
    check_key(mk.vk)
    monkeypatch.setattr(keygen, "window", lambda ell: (0, mk.vk.h - 1))
    rejected(mk.vk, "key.window")


@pytest.mark.reaches("key.openings")
def test_wrong_opened_set(mk):
    opened, hidden = mk.vk.opened.copy(), mk.vk.hidden
    rejected(signed(mk, openings=mk.openings(opened[1:])), "key.openings")
    rejected(signed(mk, openings=mk.openings(np.append(opened, hidden[0]))), "key.openings")
    rejected(signed(mk, openings=mk.openings(opened[::-1])), "key.openings")
    rejected(signed(mk, openings=mk.openings(np.sort(np.append(opened[1:], hidden[0])))), "key.openings")
    rejected(signed(mk, openings=mk.openings(opened[:0])), "key.openings")


@pytest.mark.reaches("key.openings")
def test_a_false_opening(mk):
    o = mk.vk.openings
    pixel, share = o.images.copy(), o.shares.copy()
    pixel[5, 0, 1, 2] ^= 1
    share[7] = (share[7] + 1) % CLASSES  # another label than the coin gave
    r = (o.trigger_randomness[0] + 1, *o.trigger_randomness[1:])
    for fields in ({"images": pixel}, {"shares": share}, {"trigger_randomness": r},
                   {"share_randomness": o.share_randomness[::-1]}):  # fmt: skip
        rejected(signed(mk, openings=changed(o, **fields)), "key.openings")


@pytest.mark.reaches("key.openings")
def test_errors_that_cancel_need_the_weights(mk):
    o = mk.vk.openings
    pixels, shares, r = o.images.astype(np.int64), o.shares.copy(), list(o.trigger_randomness)
    a, b = next((a, b) for a, b in ((0, 1), (2, 3), (4, 5)) if pixels[a, 0, 0, 0] < 255 and pixels[b, 0, 0, 0] > 0)
    pixels[a, 0, 0, 0] += 1
    pixels[b, 0, 0, 0] -= 1
    low, high = int(shares.argmin()), int(shares.argmax())
    shares[low] += 1
    shares[high] -= 1
    r[0], r[1] = (r[0] + 1) % ORDER, (r[1] - 1) % ORDER
    for fields in ({"images": pixels.astype(np.uint8)}, {"shares": shares}, {"trigger_randomness": tuple(r)}):
        bad = signed(mk, openings=changed(o, **fields))
        rejected(bad, "key.openings")
        check_key(bad, entropy=lambda count: b"\1" + bytes(count - 1))  # equal weights would accept it


@pytest.mark.reaches("key.range")
def test_a_share_out_of_range(mk):
    shares = mk.shares.copy()
    target = int(mk.vk.opened[0])
    shares[target] += CLASSES  # the same label, another share: committed, so only the range check sees it

    def make(k):
        r = (*mk.share_randomness[:target], mk.share_randomness[target] + k, *mk.share_randomness[target + 1 :])
        cheat = replace(mk, shares=shares, share_randomness=r)
        commitment = encode(pedersen.commit_share(int(shares[target]), r[target]))
        points = (*mk.vk.shares[:target], commitment, *mk.vk.shares[target + 1 :])
        return signed(cheat, shares=points)

    rejected(in_window(make, [target]), "key.range")


@pytest.mark.reaches("key.duplicates")
def test_duplicates(mk):
    vk = mk.vk
    repeated = in_window(lambda k: signed(mk, triggers=(vk.triggers[k + 1], *vk.triggers[1:])))
    rejected(repeated, "key.duplicates")
    repeated = in_window(lambda k: signed(mk, shares=(vk.shares[k + 1], *vk.shares[1:])))
    rejected(repeated, "key.duplicates")
    images = mk.images.copy()
    images[1:4] = images[0]  # fresh blindings: only the opened images give them away
    monkey = pytest.MonkeyPatch()
    with monkey.context() as m:
        m.setattr(keygen, "_has_duplicates", lambda found: False)
        cheats = (generate_key(PARAMETERS, images).vk for _ in range(99))
        cheat = next(c for c in cheats if c.challenge_bits[:4].sum() >= 2)
    rejected(cheat, "key.duplicates")


@pytest.mark.reaches("key.openings")
def test_swapped_share_commitments(mk):
    """The owner swaps shares after the coin to get better labels: the coin falls anew."""
    vk = mk.vk
    a, b = vk.opened[:2].tolist()
    shares = list(vk.shares)
    shares[a], shares[b] = shares[b], shares[a]
    swapped = replace(vk, shares=tuple(shares))
    assert (swapped.offsets != vk.offsets).any() and (swapped.challenge_bits != vk.challenge_bits).any()
    with pytest.raises(VerificationError):
        check_key(signed(mk, shares=tuple(shares), openings=vk.openings))
    rejected(in_window(lambda k: signed(mk, shares=tuple(shares), beacon=b"%d" % k), [a]), "key.openings")


def test_chosen_labels_do_not_pass_for_the_coin(mk):
    """The declared rule is in the seed: a key with chosen labels cannot be relabelled as one with the coin."""
    chosen = generate_key(replace(PARAMETERS, label_rule=LabelRule.CHOSEN), some_images(), labels=[3] * ELL)
    relabelled = signed(chosen, parameters=PARAMETERS)
    assert relabelled.seed != chosen.vk.seed and relabelled.digest != chosen.vk.digest
    labels = (chosen.shares + relabelled.offsets) % CLASSES
    assert len(set(labels.tolist())) == CLASSES


def test_the_rule_of_a_key_cannot_be_changed(mk):
    """Neither way, with or without a new signature: what was opened is what the other rule's coin asks for by luck."""
    chosen = generate_key(replace(PARAMETERS, label_rule=LabelRule.CHOSEN), some_images(), labels=[3] * ELL)
    for key, rule in ((chosen, LabelRule.JOINT_COIN), (mk, LabelRule.CHOSEN)):
        rejected(VerificationKey.from_bytes(patched(key.vk, "rule", bytes([rule]))), "key.signature")
        other = signed(key, parameters=replace(PARAMETERS, label_rule=rule), openings=key.vk.openings)
        assert (other.challenge_bits != key.vk.challenge_bits).any()
        with pytest.raises(VerificationError) as error:
            check_key(other)
        assert error.value.check in ("key.openings", "key.window")


# Anchored keys


SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def pending():
    return commit_key(PARAMETERS, some_images(), entropy=fixed_entropy(b"pending"))


def entries(pending):
    return [pending.digest if n == 5 else hashlib.sha256(bytes([n])).digest() for n in range(12)]


@pytest.fixture(scope="module")
def log(pending):
    """With other entries before and after that of the pending key, which is number 5."""
    return Log(SECRET, entries(pending))


@pytest.fixture(scope="module")
def anchored(pending, log):
    """An anchored key, at the first checkpoint whose coin is inside the window."""
    return next(key for size in range(6, 13) if (key := pending.draw(log.anchor(5, size).to_bytes())))


def again(key, beacon):
    """The owner with another beacon: opened as its coin asks, and signed."""
    return signed(key, beacon=beacon if isinstance(beacon, bytes) else beacon.to_bytes())


def test_an_anchored_key_is_accepted(anchored, log):
    vk = VerificationKey.from_bytes(anchored.vk.to_bytes())
    check_key(vk)
    assert vk.anchor.log == log.key and vk.anchor.index == 5 and vk.seed == anchored.vk.seed
    assert anchored.labels.tolist() == ((anchored.shares + vk.offsets) % CLASSES).tolist()
    assert MarkingKey.from_bytes(anchored.to_bytes()).vk.anchor == vk.anchor


def test_the_digest_that_is_logged_by_a_plain_twin(pending):
    def framed(data):
        return struct.pack("<I", len(data)) + data

    vk = pending.secrets.vk
    text = framed(b"BLS12-381 G1") + framed(b"zkmark-v1-generators-with-BLS12381G1_XMD:SHA-256_SSWU_RO_")
    text += struct.pack("<IIII", 10, 1, 4, 4) + vk.owner_public_key + b"\0" + struct.pack("<I", 160)
    text += b"".join(vk.triggers) + b"".join(vk.shares)
    assert pending.digest == cSHAKE256.new(text, custom=b"zkmark/commitments").read(32)
    assert pending.draw() is None or pending.draw().vk.commitments_digest == pending.digest


def test_the_coin_is_the_logs(pending, log):
    """A coin for each checkpoint, and none that the owner could have computed before the log signed."""
    seeds = {size: replace(pending.secrets.vk, beacon=log.anchor(5, size).to_bytes()).seed for size in range(6, 13)}
    assert len(set(seeds.values())) == 7
    twin = Log(SECRET[::-1], entries(pending))  # the same entries and roots: all that she can foresee
    foreseen = log.anchor(5), twin.anchor(5)
    assert foreseen[0].root == foreseen[1].root and foreseen[0].path == foreseen[1].path
    assert replace(pending.secrets.vk, beacon=foreseen[1].to_bytes()).seed != seeds[12]


@pytest.mark.reaches("log.inclusion", "log.signature")
def test_no_other_coin_without_another_anchor(anchored, log):
    """Everything that an owner can vary after the log spoke: her commitments, the parts of the anchor."""
    key, anchor = anchored, anchored.vk.anchor
    fresh = PendingKey(key).blinded_anew(fixed_entropy(b"grinding")).secrets
    points = (fresh.vk.triggers[0], *key.vk.triggers[1:])
    randomness = (fresh.trigger_randomness[0], *key.trigger_randomness[1:])
    rejected(signed(replace(key, trigger_randomness=randomness), triggers=points), "log.inclusion")
    rejected(signed(key, shares=key.vk.shares[::-1]), "log.inclusion")
    rejected(signed(key, parameters=replace(PARAMETERS, classes=11)), "log.inclusion")
    rejected(signed(key, parameters=replace(PARAMETERS, label_rule=LabelRule.CHOSEN)), "log.inclusion")
    for change in ({"unix_time": anchor.unix_time + 1}, {"index": anchor.index - 1}, {"path": anchor.path[::-1]},
                   {"path": ()}, {"path": (*anchor.path, bytes(32))}):  # fmt: skip
        rejected(again(key, replace(anchor, **change)), "log.inclusion")
    signature = anchor.signature[:32] + bytes(32)
    for change in ({"root": bytes(32)}, {"size": anchor.size + 1}, {"signature": signature}):
        rejected(again(key, replace(anchor, **change)), "log.signature")


@pytest.mark.reaches("log.signature")
def test_a_malleated_signature_is_none(anchored):
    """S + L signs the same in sloppy verifiers, and would be another coin."""
    order = 2**252 + 27742317777372353535851937790883648493
    anchor = anchored.vk.anchor
    s = (int.from_bytes(anchor.signature[32:], "little") + order).to_bytes(32, "little")
    rejected(again(anchored, replace(anchor, signature=anchor.signature[:32] + s)), "log.signature")


@pytest.mark.reaches("log.inclusion")
def test_a_replayed_anchor(anchored, mk):
    """That of one key does not anchor another, also if both have one owner."""
    cheat = replace(mk, owner_secret_seed=anchored.owner_secret_seed,
                    vk=replace(mk.vk, owner_public_key=anchored.vk.owner_public_key))  # fmt: skip
    rejected(again(cheat, anchored.vk.anchor), "log.inclusion")


@pytest.mark.reaches("log.inclusion")
def test_a_checkpoint_before_the_entry(anchored, log):
    """It cannot hold the entry, whatever path comes with it."""
    earlier = log.anchor(4, 5)
    with pytest.raises(DecodingError):
        VerificationKey.from_bytes(again(anchored, replace(earlier, index=5)).to_bytes())
    rejected(again(anchored, earlier), "log.inclusion")


def test_a_stripped_anchor(anchored):
    """Without it the coin falls otherwise: what was opened is not what the new coin asks for."""
    bare = signed(anchored, beacon=b"", openings=anchored.vk.openings)
    assert bare.anchor is None and (bare.challenge_bits != anchored.vk.challenge_bits).any()
    with pytest.raises(VerificationError) as error:
        check_key(bare)
    assert error.value.check in ("key.openings", "key.window")


@pytest.mark.reaches("log.window")
def test_an_anchor_of_long_ago(pending, log):
    """Its checkpoint counts for a number of entries, so that there are not as many coins as checkpoints."""
    late = Log(SECRET, [pending.digest, *(n.to_bytes(32, "little") for n in range(4096))])
    for size, fine in ((4096, True), (4097, False)):
        anchor = late.anchor(0, size)
        vk = replace(pending.secrets.vk, beacon=anchor.to_bytes())
        if fine:
            vk.anchor.check(vk.commitments_digest)
        else:
            rejected(signed(pending.secrets, beacon=vk.beacon), "log.window")


def test_malformed_anchors(anchored):
    beacon, old = anchored.vk.beacon, anchored.vk.anchor.log.name.encode()
    # \U0001fae8 is a character since Unicode 15: what it is must not depend on the reader's Python.
    names = (name.encode() for name in ("", "a b", "a+b", "\u00e9", "\U0001fae8", "x" * 257))
    renamed = [beacon.replace(u32(len(old)) + old, u32(len(name)) + name) for name in names]
    for bad in (beacon[:-1], beacon + b"\0", beacon[:16], beacon[:16] + b"\xff" * 40, beacon[:40], *renamed):
        with pytest.raises(DecodingError):
            VerificationKey.from_bytes(with_beacon(anchored, bad))


def with_beacon(key, beacon):
    """The bytes of the key with other bytes in the place of its beacon."""
    data, at = key.vk.to_bytes(), OFFSETS["beacon"]
    return data[:at] + u32(len(beacon)) + beacon + data[at + 4 + len(key.vk.beacon) :]


# Pending keys


def test_a_pending_key_round_trip(pending):
    same = PendingKey.from_bytes(pending.to_bytes())
    assert same.to_bytes() == pending.to_bytes() and same.digest == pending.digest
    assert same.parameters == PARAMETERS
    ours, theirs = (p.blinded_anew(fixed_entropy()).finish(fixed_entropy()) for p in (same, pending))
    assert ours.to_bytes() == theirs.to_bytes() and ours.owner_secret_seed == pending.secrets.owner_secret_seed
    check_key(ours.vk)


def test_a_pending_key_prints_no_secret(pending):
    text, secrets = repr(pending) + str(pending), pending.secrets
    assert str(secrets.trigger_randomness[0]) not in text and secrets.owner_secret_seed.hex() not in text


def test_malformed_pending_keys(pending, mk):
    data = pending.to_bytes()
    for bad in (b"", data[:-1], data + b"\0", data[:-32] + bytes(32), mk.to_bytes(),
                *(data[:cut] for cut in range(0, len(data), len(data) // 20))):  # fmt: skip
        with pytest.raises(DecodingError):
            PendingKey.from_bytes(bad)
    fallen = PendingKey(mk)  # its coin has fallen: it must not be drawn again
    with pytest.raises(DecodingError):
        PendingKey.from_bytes(fallen.to_bytes())


def test_other_blindings_make_another_digest(pending):
    fresh = pending.blinded_anew()
    assert fresh.digest != pending.digest and fresh.secrets.vk.triggers[1:] == pending.secrets.vk.triggers[1:]
    first = encode(pedersen.commit(fresh.secrets.images[0], fresh.secrets.trigger_randomness[0]))
    assert fresh.secrets.vk.triggers[0] == first


# Signatures


def test_ed25519_is_rfc_8032():
    # RFC 8032, section 7.1, test 1 gives the key pair.
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert identity.public_key(secret) == public
    signature = identity.sign(secret, "claim", bytes(32))
    identity.check_signature(public, "claim", bytes(32), signature)
    for label, digest, owner in (("clai", bytes(32), public), ("claim", bytes([1]) + bytes(31), public),
                                 ("claim", bytes(32), identity.public_key(bytes(32)))):  # fmt: skip
        with pytest.raises(VerificationError):
            identity.check_signature(owner, label, digest, signature)
    order = 2**252 + 27742317777372353535851937790883648493
    malleable = signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    for bad in (b"", signature[:-1], signature + b"\0", malleable):
        with pytest.raises(VerificationError):
            identity.check_signature(public, "claim", bytes(32), bad)


def test_only_digests_are_signed():
    for digest in (b"", b"a message that somebody else chose", bytes(31)):
        with pytest.raises(ParameterError):
            identity.sign(bytes(32), "claim", digest)
    with pytest.raises(ParameterError):
        identity.sign(bytes(31), "claim", bytes(32))


H = 72
SEED = "5468002d7fb19f61b3ccbede961027d31c3e282ce2d18f020fcd64b6303d11c4"
DIGEST = "81ddfc2b2e5e3b83fa8eb44b645c1439483c70044dd98f89f2bb30fc03202c94"
MARKING_KEY_DIGEST = "5c16100564c088b0826ab1d64975f54fafd6a4e858ebb2b8d518b5f1628307c5"

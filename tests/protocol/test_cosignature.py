"""BLS signatures against another implementation, and the signatures of a log's witnesses."""

from __future__ import annotations

import base64
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from py_arkworks_bls12381 import G1Point, Scalar
from py_ecc.bls import G2ProofOfPossession as Reference

from protocol import bls, group, identity
from protocol.cosignature import ALGORITHM, MAX_WITNESSES, Cosignature, WitnessKey, cosign, signed_bytes
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.log import Checkpoint, LogKey

SEEDS = [bytes([n]) * 32 for n in range(1, 5)]
LOG = LogKey("log.example/keys", identity.public_key(bytes(32)))
CHECKPOINT = Checkpoint(LOG.name, 9, bytes(range(32)))
KEYS = [WitnessKey.of(f"witness.example/{n}", seed) for n, seed in enumerate(SEEDS)]
PUBLIC = "a695ad325dfc7e1191fbc9f186f58eff42a634029731b18380ff89bf42c464a42cb8ca55b200f051f57f1e1893c68759"
SIGNATURE = (
    "8481edfbe0dc5d48d4deea3a0216f0703109df31e74424c15c9f2b548fdb4cc755f33634329ec7a56025a12f5dcbac4d"
    "0de86c873347b4debcfdcf87060278412d2d10cf38260cc8679a2f7fd8a54c2c4c8c4f01dc6c68d89c8116c22e8ec784"
)
INFINITY_1, INFINITY_2 = b"\xc0" + bytes(47), b"\xc0" + bytes(95)


def cosigned(*numbers: int) -> Cosignature:
    return Cosignature.join({KEYS[n].public: cosign(SEEDS[n], LOG, CHECKPOINT) for n in numbers})


def test_keys_and_signatures_are_those_of_another_implementation():
    """py_ecc, in pure Python: keys, signatures, proofs of possession and sums, byte for byte."""
    for seed in SEEDS[:2]:
        secret = Reference.KeyGen(seed)
        assert bls.secret_key(seed) == secret
        assert bls.public_key(seed) == Reference.SkToPk(secret)
    assert bls.prove_possession(SEEDS[0]) == Reference.PopProve(Reference.KeyGen(SEEDS[0]))
    message = signed_bytes(LOG, CHECKPOINT)
    signatures = [Reference.Sign(Reference.KeyGen(seed), message) for seed in SEEDS[:2]]
    assert [bls.sign(seed, message) for seed in SEEDS[:2]] == signatures
    joined = Reference.Aggregate(signatures)
    assert bls.aggregate(signatures) == joined
    publics = [KEYS[0].public, KEYS[1].public]
    assert bls.is_signed(publics, message, joined)
    assert Reference.FastAggregateVerify(publics, message, joined)


def test_a_known_answer():
    """Frozen: what the reference said once, for those who do not have it."""
    assert bls.public_key(bytes(32)).hex() == PUBLIC
    assert bls.sign(bytes(32), b"zkmark").hex() == SIGNATURE


def test_what_is_signed():
    assert signed_bytes(LOG, CHECKPOINT) == f"zkmark witness 1\n{LOG.to_text()}\n{CHECKPOINT.text()}".encode()


def test_witnesses_sign_together():
    for numbers in ((0,), (1, 3), (3, 1, 0), (0, 1, 2, 3)):
        found = cosigned(*numbers)
        assert list(found.witnesses) == sorted(KEYS[n].public for n in numbers)
        found.check(LOG, CHECKPOINT, KEYS)


@pytest.mark.reaches("log.cosignature")
def test_only_the_witnesses_sign():
    good = cosigned(0, 1)
    two = sorted(KEYS[n].public for n in (0, 2))
    for bad, log, checkpoint, known in (
        (good, LOG, replace(CHECKPOINT, size=10), KEYS), (good, LOG, replace(CHECKPOINT, root=bytes(32)), KEYS),
        (good, LogKey(LOG.name, identity.public_key(SEEDS[0])), CHECKPOINT, KEYS),  # another log of that name
        (replace(good, witnesses=good.witnesses[:1]), LOG, CHECKPOINT, KEYS),
        (replace(good, witnesses=tuple(two)), LOG, CHECKPOINT, KEYS),
        (replace(good, signature=cosigned(0).signature), LOG, CHECKPOINT, KEYS),
        (good, LOG, CHECKPOINT, KEYS[:1]), (good, LOG, CHECKPOINT, []),
    ):  # fmt: skip
        with pytest.raises(VerificationError) as caught:
            bad.check(log, checkpoint, known)
        assert caught.value.check == "log.cosignature"


def test_lists_that_are_none():
    good = cosigned(0, 1)
    for witnesses in ((), good.witnesses[::-1], good.witnesses[:1] * 2, (bytes(48),) * (MAX_WITNESSES + 1)):
        with pytest.raises(DecodingError):
            replace(good, witnesses=witnesses).check(LOG, CHECKPOINT, KEYS)


# --- keys that are made up


def rogue() -> tuple[bytes, bytes]:
    """A key that cancels that of witness 0, and a signature "of both" that only its maker made."""
    secret = 1234567
    mine = G1Point() * Scalar.from_le_bytes(secret.to_bytes(32, "little"))
    public = group.encode(mine + -group.decode(KEYS[0].public))
    point = bls.G2Point.hash_to_curve(signed_bytes(LOG, CHECKPOINT), bls.SIGN)
    return public, bytes((point * Scalar.from_le_bytes(secret.to_bytes(32, "little"))).to_compressed_bytes())


@pytest.mark.reaches("log.cosignature")
def test_a_rogue_key_signs_for_others_where_possession_is_not_shown():
    """The equation alone holds: it is the proof of possession that keeps such a key out."""
    public, signature = rogue()
    publics = sorted([public, KEYS[0].public])
    assert bls.is_signed(publics, signed_bytes(LOG, CHECKPOINT), signature)
    forged = Cosignature(tuple(publics), signature)
    with pytest.raises(VerificationError) as caught:
        forged.check(LOG, CHECKPOINT, KEYS)
    assert caught.value.check == "log.cosignature"
    for possession in (KEYS[0].possession, KEYS[1].possession, signature):
        with pytest.raises(DecodingError, match="possess"):
            WitnessKey.from_text(WitnessKey("rogue", public, possession).to_text())


def test_possession_is_another_statement_than_a_signature():
    """A witness who can be made to sign a text that looks like a key shows possession of nothing."""
    signed = bls.sign(SEEDS[0], KEYS[0].public)
    with pytest.raises(DecodingError, match="possess"):
        WitnessKey.from_text(replace(KEYS[0], possession=signed).to_text())
    assert not bls.is_signed([KEYS[0].public], KEYS[0].public, KEYS[0].possession)


def test_keys_that_add_up_to_nothing_sign_nothing():
    """Somebody has both secrets, so that possession is shown; the sum of the keys is infinity."""
    public = KEYS[0].public
    opposite = bytes([public[0] ^ 0x20]) + public[1:]
    group.decode(opposite)
    assert not bls.is_signed([public, opposite], b"anything", cosigned(1).signature)
    with pytest.raises(DecodingError):
        bls.is_signed([public, opposite], b"anything", INFINITY_2)


def test_infinity_is_neither_a_key_nor_a_signature(monkeypatch: pytest.MonkeyPatch):
    """Each of the two is refused by itself: together they would hold under every message."""
    public, infinity = KEYS[0].public, bls.G2Point.identity()
    opposite = bytes([public[0] ^ 0x20]) + public[1:]
    monkeypatch.setattr(bls, "_signature", lambda data: infinity)
    assert not bls.is_signed([public, opposite], b"anything", INFINITY_2)


def test_a_signature_has_one_encoding_whatever_the_library_takes(monkeypatch: pytest.MonkeyPatch):
    """Bytes that are read as a point without being what the point is written as are malformed."""
    good = cosigned(0).signature
    point = bls.G2Point.from_compressed_bytes(good)

    class Lenient:
        identity = bls.G2Point.identity
        hash_to_curve = bls.G2Point.hash_to_curve

        @staticmethod
        def from_compressed_bytes(data: bytes) -> bls.G2Point:
            return point

    monkeypatch.setattr(bls, "G2Point", Lenient)
    message = signed_bytes(LOG, CHECKPOINT)
    assert bls.is_signed([KEYS[0].public], message, good)
    for other in (good + b"\0", good[:-1], bytes([good[0] ^ 0x80]) + good[1:]):
        with pytest.raises(DecodingError):
            bls.is_signed([KEYS[0].public], message, other)


def outside(count: int) -> bytes:
    """A point of the curve that is not in the group, in 48 or 96 bytes."""
    kind = {48: G1Point, 96: bls.G2Point}[count]
    for x in range(1, 99):
        data = b"\x80" + bytes(count - 2) + bytes([x])
        with suppress(ValueError):
            if not kind.from_compressed_bytes_unchecked(data).is_in_subgroup():
                return data
    raise AssertionError


def test_points_of_no_group():
    message = signed_bytes(LOG, CHECKPOINT)
    for public in (INFINITY_1, bytes(48), b"\xff" * 48, KEYS[0].public[:-1], outside(48)):
        with pytest.raises(DecodingError):
            bls.is_signed([public], message, cosigned(0).signature)
        with pytest.raises(DecodingError):
            bls.is_possessed(public, KEYS[0].possession)
    for signature in (INFINITY_2, bytes(96), b"\xff" * 96, b"", cosigned(0).signature[:-1], outside(96)):
        with pytest.raises(DecodingError):
            bls.is_signed([KEYS[0].public], message, signature)
        with pytest.raises(DecodingError):
            bls.aggregate([signature])
        with pytest.raises(DecodingError):
            replace(cosigned(0), signature=signature).check(LOG, CHECKPOINT, KEYS)
    assert not Reference.KeyValidate(outside(48))


@given(st.binary(min_size=96, max_size=96))
def test_random_signatures_prove_nothing(signature):
    with pytest.raises((DecodingError, VerificationError)):
        Cosignature((KEYS[0].public,), signature).check(LOG, CHECKPOINT, KEYS)


# --- keys as text


def test_keys_as_text():
    for key in KEYS:
        assert WitnessKey.from_text(key.to_text()) == key
    key = KEYS[0]
    name, number, value = key.to_text().split("+", 2)
    infinity = WitnessKey(name, INFINITY_1, key.possession).to_text()
    for bad in (
        "", "a", f"{name}+{value}", f"{name}+00000000+{value}", f"x{key.to_text()}", f"{key.to_text()} ",
        f"+{number}+{value}", f"{name}+{number}+{value[:-4]}", infinity, replace(key, public=b"").to_text(),
        replace(key, possession=key.possession + b"\0").to_text(), LOG.to_text(),
        WitnessKey("two words", key.public, key.possession).to_text(),
    ):  # fmt: skip
        with pytest.raises(DecodingError):
            WitnessKey.from_text(bad)
    with pytest.raises(ParameterError):
        WitnessKey.of("two words", SEEDS[0])
    assert base64.b64decode(value) == ALGORITHM + key.public + key.possession

"""KeyGen and PKeyGen: committed triggers, labels by a joint coin, half of them opened (SPEC section 4).

    seed = cSHAKE256(all commitments and everything else that is public)
    e    = ell bits of XOF(seed, "cnc")        e_i = 1: trigger i is opened;  e_i = 0: it stays hidden, h of them
    d_i  = uniform below |L| from XOF(seed, "label", i)
    L_i  = (s_i + d_i) mod |L|                 the label of trigger i; s_i is the owner's committed share

The owner commits before the coin d falls, so that a model which does not depend on d matches each label with
probability 1 / |L|, whatever the images are (Adi et al., USENIX Security 2018, PKeyGen; the coin answers the false
claims of Liu et al., USENIX Security 2024).  Hashing again and again may find her a better coin; she cannot do that
with an anchor in the seed, which says that a log took the commitments before anybody could know it (`protocol.anchor`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt
from Crypto.Hash import cSHAKE256

from protocol import identity, pedersen
from protocol.anchor import MAGIC as ANCHOR_MAGIC
from protocol.anchor import MAX_ANCHOR_BYTES, Anchor
from protocol.encoding import Reader, Writer
from protocol.errors import ParameterError, VerificationError
from protocol.group import ORDER, POINT_BYTES, Point, decode, encode, multiply
from protocol.soundness import FALSE_CLAIM_TARGET, false_claim_bits, smallest_ell, smallest_k_min, window

MAX_ELL = 4096
MAX_PIXELS = pedersen.MAX_GENERATORS  # channels * height * width
MAX_CLASSES = 1 << 16
MAX_BEACON_BYTES = MAX_ANCHOR_BYTES
MAX_KEY_BYTES = 1 << 30  # of an encoded key; what reads a file or a stream stops here
SIGNATURE_LABEL = "verification key"

Images = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Entropy = Callable[[int], bytes]


class LabelRule(IntEnum):
    """How labels come about: two types of keys.  CHOSEN (d_i = 0: by the owner) has no bound on false claims.

    The rule is hashed into the seed: a key of one type is never one of the other, whatever bytes are changed.
    """

    JOINT_COIN = 0
    CHOSEN = 1


@dataclass(frozen=True)
class KeyParameters:
    """shape: (channels, height, width) of a trigger; ell triggers in all.  Raises ParameterError out of range."""

    shape: tuple[int, int, int]
    classes: int
    ell: int
    label_rule: LabelRule = LabelRule.JOINT_COIN

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1 or prod(self.shape) > MAX_PIXELS:
            raise ParameterError(f"a trigger has three dimensions and at most {MAX_PIXELS} values")
        if not 2 <= self.classes <= MAX_CLASSES:
            raise ParameterError(f"the number of classes is 2 to {MAX_CLASSES}")
        if not 1 <= self.ell <= MAX_ELL:
            raise ParameterError(f"the number of triggers is 1 to {MAX_ELL}")


@dataclass(frozen=True, eq=False)
class Openings:
    """What opens m commitments: images uint8 [m, C, H, W], shares int64 [m], blindings below the group order."""

    images: Images
    shares: Ints
    trigger_randomness: tuple[int, ...]
    share_randomness: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.images)

    def write(self, out: Writer) -> None:
        out.raw(self.images.tobytes()).raw(self.shares.astype("<u4").tobytes())
        for r in (*self.trigger_randomness, *self.share_randomness):
            out.raw(r.to_bytes(32, "little"))

    @staticmethod
    def read(r: Reader, count: int, parameters: KeyParameters) -> Openings:
        images = r.array("u1", count * prod(parameters.shape)).reshape(count, *parameters.shape)
        shares = r.array("<u4", count).astype(np.int64)
        randomness = [int.from_bytes(r.raw(32), "little") for _ in range(2 * count)]
        if max(randomness, default=0) >= ORDER:
            raise r.fail("a blinding is not below the group order")
        return Openings(images, shares, tuple(randomness[:count]), tuple(randomness[count:]))


@dataclass(frozen=True, eq=False)
class VerificationKey:
    """vk: what everybody holds.  Being well formed says little: `check_key` decides."""

    parameters: KeyParameters
    owner_public_key: bytes  # Ed25519, 32 bytes
    triggers: tuple[bytes, ...]  # ell encoded points c_t
    shares: tuple[bytes, ...]  # ell encoded points c_L
    beacon: bytes  # an encoded anchor; anything else makes the coin no better than nothing does
    openings: Openings  # of the opened triggers, in ascending order
    signature: bytes  # the owner's, on `digest`

    def __post_init__(self) -> None:
        if len(self.triggers) != self.parameters.ell or len(self.shares) != self.parameters.ell:
            raise ParameterError("a key commits to ell triggers and ell shares")
        if len(self.beacon) > MAX_BEACON_BYTES:
            raise ParameterError(f"the beacon has at most {MAX_BEACON_BYTES} bytes")

    def to_bytes(self) -> bytes:
        return self._signed_bytes() + self.signature

    def _signed_bytes(self) -> bytes:
        p = self.parameters
        out = Writer().raw(b"zkmark vk 1\n")
        for n in (*p.shape, p.classes, p.ell):
            out.u32(n)
        out.u8(p.label_rule).raw(self.owner_public_key)
        out.raw(b"".join(self.triggers)).raw(b"".join(self.shares))
        out.blob(self.beacon).u32(len(self.openings))
        self.openings.write(out)
        return out.to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> VerificationKey:
        """The key encoded by `to_bytes`.  Raises DecodingError, also for bytes that are no points of the group."""
        r = Reader(data, "verification key")
        r.magic(b"zkmark vk 1\n")
        shape, classes, ell, rule = (r.u32(), r.u32(), r.u32()), r.u32(), r.u32(), r.u8()
        try:
            parameters = KeyParameters(shape, classes, ell, LabelRule(rule))
        except ValueError as error:  # ParameterError is one
            raise r.fail(str(error)) from None
        owner = r.raw(identity.PUBLIC_KEY_BYTES)
        identity.check_public_key(owner)
        triggers, shares = (tuple(r.raw(POINT_BYTES) for _ in range(ell)) for _ in range(2))
        beacon, opened = r.blob(MAX_BEACON_BYTES), r.u32()
        if opened > ell:
            raise r.fail("more openings than triggers")
        openings = Openings.read(r, opened, parameters)
        key = VerificationKey(parameters, owner, triggers, shares, beacon, openings, r.raw(identity.SIGNATURE_BYTES))
        r.done()
        _ = key.trigger_points, key.share_points, key.anchor  # raise DecodingError
        return key

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the encoding without the signature, which signs it: one key has one digest."""
        return hashlib.sha256(self._signed_bytes()).digest()

    @cached_property
    def trigger_points(self) -> list[Point]:
        return [decode(c) for c in self.triggers]

    @cached_property
    def share_points(self) -> list[Point]:
        return [decode(c) for c in self.shares]

    @cached_property
    def anchor(self) -> Anchor | None:
        """What the beacon says about a log, if it is an anchor; `check_key` checks it."""
        return Anchor.from_bytes(self.beacon) if self.beacon.startswith(ANCHOR_MAGIC) else None

    @cached_property
    def commitments_digest(self) -> bytes:
        """32 bytes for a log: everything the owner chose before the coin fell."""
        commitments = self._parameter_bytes() + self._commitment_bytes()
        return cSHAKE256.new(commitments, custom=b"zkmark/commitments").read(32)

    @cached_property
    def seed(self) -> bytes:
        """32 bytes that depend on everything the owner could choose, and on the beacon."""
        everything = self._parameter_bytes() + Writer().blob(self.beacon).to_bytes() + self._commitment_bytes()
        return cSHAKE256.new(everything, custom=b"zkmark/pkeygen-v1").read(32)

    def _parameter_bytes(self) -> bytes:
        p = self.parameters
        out = Writer().text("BLS12-381 G1").blob(pedersen.DOMAIN).u32(p.classes)
        for n in p.shape:
            out.u32(n)
        return out.raw(self.owner_public_key).u8(p.label_rule).to_bytes()

    def _commitment_bytes(self) -> bytes:
        return Writer().u32(self.parameters.ell).raw(b"".join(self.triggers)).raw(b"".join(self.shares)).to_bytes()

    @cached_property
    def challenge_bits(self) -> npt.NDArray[np.bool_]:
        """e: bool [ell], True where the trigger is opened.  Bit i is bit i mod 8 of byte i // 8 of the stream."""
        stream = cSHAKE256.new(self.seed, custom=b"zkmark/cnc").read(-(-self.parameters.ell // 8))
        bits = np.unpackbits(np.frombuffer(stream, np.uint8), bitorder="little")
        return bits[: self.parameters.ell].astype(np.bool_)

    @cached_property
    def offsets(self) -> Ints:
        """d: int64 [ell], the coin's part of each label."""
        p = self.parameters
        if p.label_rule is LabelRule.CHOSEN:
            return np.zeros(p.ell, np.int64)
        xofs = (cSHAKE256.new(self.seed + i.to_bytes(4, "little"), custom=b"zkmark/label") for i in range(p.ell))
        return np.array([_below(p.classes, xof.read) for xof in xofs], np.int64)

    @cached_property
    def hidden(self) -> Ints:
        """[h] indices of the hidden triggers, ascending."""
        return np.flatnonzero(~self.challenge_bits)

    @cached_property
    def opened(self) -> Ints:
        """[ell - h] indices of the opened triggers, ascending."""
        return np.flatnonzero(self.challenge_bits)

    @property
    def h(self) -> int:
        """Number of hidden triggers."""
        return len(self.hidden)

    def false_claim_bits(self, k_min: int, freedom_bits: float = 0) -> float | None:
        """`soundness.false_claim_bits` of a claim of k_min matches; None for CHOSEN labels: `soundness.NO_BOUND`."""
        if self.parameters.label_rule is LabelRule.CHOSEN:
            return None
        return false_claim_bits(self.h, self.parameters.classes, k_min, freedom_bits)

    def smallest_k_min(self, freedom_bits: float = 0) -> int | None:
        """The smallest k_min with FALSE_CLAIM_TARGET false-claim bits, None if there is none."""
        if self.parameters.label_rule is LabelRule.CHOSEN:
            return None
        return smallest_k_min(self.h, self.parameters.classes, FALSE_CLAIM_TARGET, freedom_bits)

    @property
    def opened_labels(self) -> Ints:
        """[ell - h] labels of the opened triggers."""
        return (self.openings.shares + self.offsets[self.opened]) % self.parameters.classes


@dataclass(frozen=True, eq=False)
class MarkingKey:
    """mk: the owner's secrets for all ell triggers.  Nothing of it but `vk` is ever printed or sent."""

    vk: VerificationKey
    images: Images = field(repr=False)  # uint8 [ell, C, H, W]
    shares: Ints = field(repr=False)  # int64 [ell]
    trigger_randomness: tuple[int, ...] = field(repr=False)
    share_randomness: tuple[int, ...] = field(repr=False)
    owner_secret_seed: bytes = field(repr=False)  # Ed25519, 32 bytes

    @cached_property
    def labels(self) -> Ints:
        """int64 [ell]: what the marked model shall answer."""
        return (self.shares + self.vk.offsets) % self.vk.parameters.classes

    @property
    def hidden_images(self) -> Images:
        return self.images[self.vk.hidden]

    @property
    def hidden_labels(self) -> Ints:
        return self.labels[self.vk.hidden]

    def openings(self, indices: Ints) -> Openings:
        """What opens the commitments `indices`."""
        chosen = indices.tolist()
        return Openings(
            self.images[indices],
            self.shares[indices],
            tuple(self.trigger_randomness[i] for i in chosen),
            tuple(self.share_randomness[i] for i in chosen),
        )

    def to_bytes(self) -> bytes:
        """The key in the clear: vk, then what it does not open, then the owner's secret."""
        out = Writer().raw(b"zkmark mk 1\n").blob(self.vk.to_bytes())
        self.openings(self.vk.hidden).write(out)
        return out.raw(self.owner_secret_seed).to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> MarkingKey:
        """The key encoded by `to_bytes`.  Raises DecodingError."""
        r = Reader(data, "marking key")
        r.magic(b"zkmark mk 1\n")
        vk = VerificationKey.from_bytes(r.blob(MAX_KEY_BYTES))
        hidden = Openings.read(r, vk.h, vk.parameters)
        owner_secret_seed = r.raw(identity.SECRET_SEED_BYTES)
        r.done()
        if len(vk.openings) != len(vk.opened) or identity.public_key(owner_secret_seed) != vk.owner_public_key:
            raise r.fail("the public and the secret part do not belong together")
        order = np.argsort(np.concatenate([vk.opened, vk.hidden]))
        trigger_randomness = (*vk.openings.trigger_randomness, *hidden.trigger_randomness)
        share_randomness = (*vk.openings.share_randomness, *hidden.share_randomness)
        return MarkingKey(
            vk,
            np.concatenate([vk.openings.images, hidden.images])[order],
            np.concatenate([vk.openings.shares, hidden.shares])[order],
            tuple(trigger_randomness[i] for i in order),
            tuple(share_randomness[i] for i in order),
            owner_secret_seed,
        )


@dataclass(frozen=True, eq=False)
class PendingKey:
    """A key whose coin has not fallen: every secret, and commitments that a log may take.

    Only one key may be made of it.  Two coins open two halves, which together are three quarters of the triggers.
    """

    secrets: MarkingKey = field(repr=False)  # its vk is not opened, and nobody sees it

    @property
    def parameters(self) -> KeyParameters:
        return self.secrets.vk.parameters

    @property
    def digest(self) -> bytes:
        """What a log is asked to take (`protocol.anchor`)."""
        return self.secrets.vk.commitments_digest

    def draw(self, beacon: bytes = b"") -> MarkingKey | None:
        """The key with the coin that `beacon` (the bytes of an anchor) gives; None if its h is outside the window."""
        vk, secrets = replace(self.secrets.vk, beacon=beacon), self.secrets
        low, high = window(vk.parameters.ell)
        if not low <= vk.h <= high:
            return None
        vk = replace(vk, openings=secrets.openings(vk.opened))
        vk = replace(vk, signature=identity.sign(secrets.owner_secret_seed, SIGNATURE_LABEL, vk.digest))
        return replace(secrets, vk=vk)

    def blinded_anew(self, entropy: Entropy = os.urandom) -> PendingKey:
        """The same with another blinding of the first trigger, and so another digest and another coin.

        The owner decides on it by public values only, so the new blinding hides as well as the old one did.
        """
        old, vk, fresh = self.secrets.trigger_randomness, self.secrets.vk, _uniform(ORDER, entropy)
        point = vk.trigger_points[0] + multiply(pedersen.GENERATORS.blinding, fresh - old[0])
        vk = replace(vk, triggers=(encode(point), *vk.triggers[1:]))
        return PendingKey(replace(self.secrets, vk=vk, trigger_randomness=(fresh, *old[1:])))

    def finish(self, entropy: Entropy = os.urandom) -> MarkingKey:
        """The key without an anchor, blinded anew until its h is inside the window."""
        pending = self
        while (key := pending.draw()) is None:
            pending = pending.blinded_anew(entropy)
        return key

    def to_bytes(self) -> bytes:
        """Everything in the clear."""
        secrets = self.secrets
        out = Writer().raw(b"zkmark pending key 1\n").blob(secrets.vk.to_bytes())
        secrets.openings(np.arange(self.parameters.ell)).write(out)
        return out.raw(secrets.owner_secret_seed).to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> PendingKey:
        """The pending key encoded by `to_bytes`.  Raises DecodingError."""
        r = Reader(data, "pending key")
        r.magic(b"zkmark pending key 1\n")
        vk = VerificationKey.from_bytes(r.blob(MAX_KEY_BYTES))
        o = Openings.read(r, vk.parameters.ell, vk.parameters)
        owner_secret_seed = r.raw(identity.SECRET_SEED_BYTES)
        r.done()
        if len(vk.openings) or vk.beacon or identity.public_key(owner_secret_seed) != vk.owner_public_key:
            raise r.fail("the coin has fallen, or the public and the secret part do not belong together")
        return PendingKey(
            MarkingKey(vk, o.images, o.shares, o.trigger_randomness, o.share_randomness, owner_secret_seed)
        )


def generate_key(
    parameters: KeyParameters,
    images: Images,
    *,
    labels: Sequence[int] | None = None,
    entropy: Entropy = os.urandom,
    progress: Callable[[int, int], None] | None = None,
) -> MarkingKey:
    """A new key without an anchor.  Arguments and errors are those of `commit_key`."""
    return commit_key(parameters, images, labels=labels, entropy=entropy, progress=progress).finish(entropy)


def commit_key(
    parameters: KeyParameters,
    images: Images,
    *,
    labels: Sequence[int] | None = None,
    entropy: Entropy = os.urandom,
    progress: Callable[[int, int], None] | None = None,
) -> PendingKey:
    """Commitments to images uint8 [ell, C, H, W] and to shares; `progress(done, ell)` while they are made.

    `labels` are given for LabelRule.CHOSEN only.  Every share and blinding is drawn from an own 256-bit seed: what is
    opened says nothing about the generator of what is not.
    Raises ParameterError for images of another shape, duplicates, or too few triggers for the false-claim target.
    """
    classes, ell = parameters.classes, parameters.ell
    if images.dtype != np.uint8 or images.shape != (ell, *parameters.shape):
        raise ParameterError(f"images must be uint8 {(ell, *parameters.shape)}, not {images.dtype} {images.shape}")
    if _has_duplicates(images):
        raise ParameterError("two triggers are the same image")
    chosen = parameters.label_rule is LabelRule.CHOSEN
    if chosen != (labels is not None) or (labels is not None and len(labels) != ell):
        raise ParameterError("one label per trigger is given if, and only if, the labels are chosen by the owner")
    if labels is not None and not all(0 <= label < classes for label in labels):
        raise ParameterError(f"a label is not below {classes}")
    if not chosen and smallest_k_min(window(ell)[0], classes) is None:
        raise ParameterError(
            f"{ell} triggers cannot give {FALSE_CLAIM_TARGET} false-claim bits with {classes} classes; "
            f"the smallest number that can is {smallest_ell(classes, limit=MAX_ELL)}"
        )
    shares = [_uniform(classes, entropy) for _ in range(ell)] if labels is None else [int(label) for label in labels]
    trigger_randomness, share_randomness = ([_uniform(ORDER, entropy) for _ in range(ell)] for _ in range(2))
    points = pedersen.commit_images(images, trigger_randomness, progress)
    owner_secret_seed = entropy(identity.SECRET_SEED_BYTES)
    vk = VerificationKey(
        parameters,
        identity.public_key(owner_secret_seed),
        tuple(map(encode, points)),
        tuple(encode(pedersen.commit_share(s, r)) for s, r in zip(shares, share_randomness, strict=True)),
        b"",
        Openings(images[:0], np.zeros(0, np.int64), (), ()),
        bytes(identity.SIGNATURE_BYTES),
    )
    return PendingKey(
        MarkingKey(
            vk, images, np.array(shares, np.int64), tuple(trigger_randomness), tuple(share_randomness),
            owner_secret_seed,
        )
    )  # fmt: skip


def check_key(vk: VerificationKey, *, entropy: Entropy = os.urandom) -> None:
    """Check everything that a verification key shows.

    Statement: the owner committed to `ell` triggers and shares before e and d fell, and opened those with e_i = 1.
    Checks: key.signature, those of an anchor (log.signature, log.inclusion, log.window) if there is one, key.window,
    key.range, key.duplicates, key.openings; VerificationError names the failed one.
    Soundness error: 2^-128 for the openings, whose weights are drawn here; soundness.hidden_bad for what stays hidden.
    Left to the caller: whether the opened images and labels look right, when the key was published, the label rule,
    whether the log of the anchor is one that she trusts.
    """
    identity.check_signature(vk.owner_public_key, SIGNATURE_LABEL, vk.digest, vk.signature, "key.signature")
    if vk.anchor is not None:
        vk.anchor.check(vk.commitments_digest)
    low, high = window(vk.parameters.ell)
    if not low <= vk.h <= high:
        raise VerificationError("key.window", f"{vk.h} triggers are hidden, {low} to {high} are accepted")
    opened, o = vk.opened.tolist(), vk.openings
    if len(o) != len(opened):
        raise VerificationError("key.openings", f"{len(o)} triggers are opened, the challenge asks for {len(opened)}")
    if ((o.shares < 0) | (o.shares >= vk.parameters.classes)).any():
        raise VerificationError("key.range", "an opened share is not below the number of classes")
    if _has_duplicates(o.images) or len({*vk.triggers, *vk.shares}) != 2 * vk.parameters.ell:
        raise VerificationError("key.duplicates", "two opened images or two commitments are the same")
    weights = [int.from_bytes(entropy(16), "little") for _ in range(2 * len(o))]
    ours, theirs = weights[: len(o)], weights[len(o) :]
    points = [vk.trigger_points[i] for i in opened] + [vk.share_points[i] for i in opened]
    values = _combination(ours, o.images.reshape(len(o), prod(vk.parameters.shape)))
    randomness = sum(w * r for w, r in zip(weights, (*o.trigger_randomness, *o.share_randomness), strict=True))
    share = sum(w * s for w, s in zip(theirs, o.shares.tolist(), strict=True))
    if not pedersen.opens(points, weights, values, randomness, share):
        raise VerificationError("key.openings", "an opened trigger or share is not the committed one")


def _combination(weights: list[int], rows: Images) -> list[int]:
    """sum_i weights[i] * rows[i] for 128-bit weights and rows uint8 [m, n]; float64 is exact on 16-bit limbs."""
    limbs = np.array([[w >> shift & 0xFFFF for w in weights] for shift in range(0, 128, 16)], np.float64)
    total: list[int] = []
    for at in range(0, rows.shape[1], 1 << 14):
        sums = (limbs @ rows[:, at : at + (1 << 14)].astype(np.float64)).T.astype(np.int64).tolist()
        total += [sum(s << 16 * k for k, s in enumerate(column)) for column in sums]
    return total


def _has_duplicates(images: Images) -> bool:
    return len({hashlib.sha256(image.tobytes()).digest() for image in images}) != len(images)


def _uniform(bound: int, entropy: Entropy) -> int:
    """A uniform integer below `bound`, from an own 256-bit seed."""
    return _below(bound, cSHAKE256.new(entropy(32), custom=b"zkmark/uniform").read)


def _below(bound: int, read: Callable[[int], bytes]) -> int:
    """A uniform integer below `bound` by rejection: the low bits of little-endian words that are just wide enough."""
    width = (bound - 1).bit_length()
    while True:
        value = int.from_bytes(read((width + 7) // 8), "little") & ((1 << width) - 1)
        if value < bound:
            return value

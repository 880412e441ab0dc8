"""keys.json: keys of both label rules, with and without an anchor; true, false, malformed.

They are small: 12 triggers of two pixels, three classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from protocol import identity
from protocol.anchor import Anchor
from protocol.errors import DecodingError, VerificationError
from protocol.keygen import (
    SIGNATURE_LABEL,
    KeyParameters,
    LabelRule,
    MarkingKey,
    PendingKey,
    VerificationKey,
    check_key,
    commit_key,
)
from protocol.log import LogKey
from tests.logs import TIME, Log
from tests.vectors.common import HERE, as_list, stream

FILE = "keys.json"
SHAPE, CLASSES, ELL = (1, 1, 2), 3, 12
SECRET = hashlib.sha256(b"zkmark test log").digest()
LOG = Log(SECRET).key


def committed(name: str, rule: LabelRule) -> PendingKey:
    """A small key whose coin has not fallen; so few triggers are not allowed under the joint coin, but well formed."""
    images = np.frombuffer(stream("images", "key")(2 * ELL), np.uint8).reshape(ELL, *SHAPE)
    parameters = KeyParameters(SHAPE, CLASSES, ELL, LabelRule.CHOSEN)
    labels = [k % CLASSES for k in range(ELL)]
    secrets = commit_key(parameters, images, labels=labels, entropy=stream(name, "key")).secrets
    return PendingKey(replace(secrets, vk=replace(secrets.vk, parameters=replace(parameters, label_rule=rule))))


def anchored(pending: PendingKey) -> MarkingKey:
    """The key at the first checkpoint whose coin is inside the window; its commitments are entry 2."""
    digests = [bytes([n]) * 32 for n in range(2)] + [pending.digest] + [bytes([n]) * 32 for n in range(2, 30)]
    log = Log(SECRET, digests)
    keys = (pending.draw(log.anchor(2, size).to_bytes()) for size in range(5, 30))
    return next(key for key in keys if key is not None)


def signed(key: MarkingKey, **changes: Any) -> bytes:
    """The key with changes, signed again; what it opens stays as it is."""
    vk = replace(key.vk, **changes)
    return replace(vk, signature=identity.sign(key.owner_secret_seed, SIGNATURE_LABEL, vk.digest)).to_bytes()


def keys() -> Iterator[tuple[str, bytes]]:
    """(what it is, bytes)"""
    pending = {rule: committed(rule.name, rule) for rule in LabelRule}
    bare = {rule: key.finish(stream("finish", "key")) for rule, key in pending.items()}
    logged = {rule: anchored(key) for rule, key in pending.items()}
    for rule in LabelRule:
        yield rule.name.lower().replace("_", " "), bare[rule].vk.to_bytes()
        yield f"{rule.name.lower().replace('_', ' ')}, anchored", logged[rule].vk.to_bytes()
    for rule in LabelRule:
        other, parameters = LabelRule(1 - rule), bare[rule].vk.parameters
        data = bytearray(bare[rule].vk.to_bytes())
        data[32] = other
        yield f"rule {rule} shown as {other}", bytes(data)
        yield f"rule {rule} shown as {other}, signed", signed(
            bare[rule], parameters=replace(parameters, label_rule=other)
        )
    data[32] = 2
    yield "rule 2", bytes(data)
    joint, beacon = logged[LabelRule.JOINT_COIN], logged[LabelRule.JOINT_COIN].vk.beacon
    found = Anchor.from_bytes(beacon)
    yield "another beacon", signed(joint, beacon=b"no anchor")
    yield "anchor stripped", signed(joint, beacon=b"")
    yield "anchor of another key", signed(joint, beacon=logged[LabelRule.CHOSEN].vk.beacon)
    yield "another key with its anchor", signed(bare[LabelRule.JOINT_COIN], beacon=logged[LabelRule.CHOSEN].vk.beacon)
    yield "anchor of another log", signed(joint, beacon=replace(found, log=LogKey("b.example", LOG.public)).to_bytes())
    yield "another root", signed(joint, beacon=replace(found, root=bytes(32)).to_bytes())
    yield "another index", signed(joint, beacon=replace(found, index=3).to_bytes())
    yield "another time", signed(joint, beacon=replace(found, unix_time=TIME + 1).to_bytes())
    yield "path too short", signed(joint, beacon=replace(found, path=found.path[:-1]).to_bytes())
    yield "path too long", signed(joint, beacon=replace(found, path=(*found.path, bytes(32))).to_bytes())
    many = [joint.vk.commitments_digest, *(n.to_bytes(32, "little") for n in range(4096))]
    yield "checkpoint too late", signed(joint, beacon=Log(SECRET, many).anchor(0, 4097).to_bytes())
    yield "checkpoint before the entry", signed(joint, beacon=replace(found, index=found.size).to_bytes())
    yield "anchor cut short", signed(joint, beacon=beacon[:-1])
    yield "anchor and more", signed(joint, beacon=beacon + b"\0")


def outcome(data: bytes) -> str:
    """`true`, `malformed`, or the name of the failed check."""
    try:
        check_key(VerificationKey.from_bytes(data))
    except VerificationError as error:
        return error.check
    except DecodingError:
        return "malformed"
    return "true"


def values(data: bytes) -> dict[str, Any]:
    """What a verifier computes from a true key."""
    key = VerificationKey.from_bytes(data)
    return {
        "vk_digest": key.digest.hex(),
        "commitments_digest": key.commitments_digest.hex(),
        "key_seed": key.seed.hex(),
        "coin_bits": "".join(str(int(bit)) for bit in key.challenge_bits),
        "offsets": key.offsets.tolist(),
        "hidden": key.hidden.tolist(),
    }


def cases() -> list[dict[str, Any]]:
    """True keys as they are; the others as a true one with other bytes between `prefix` and the last `suffix` bytes."""
    found: list[dict[str, Any]] = []
    bases: dict[str, bytes] = {}
    for name, data in keys():
        case: dict[str, Any] = {"name": name, "outcome": outcome(data)}
        if case["outcome"] == "true":
            bases[name] = data
            case |= {"bytes": data.hex(), **values(data)}
        else:
            case |= min((difference(data, other) | {"base": base} for base, other in bases.items()),
                        key=lambda change: len(change["bytes"]))  # fmt: skip
        found.append(case)
    return found


def difference(data: bytes, base: bytes) -> dict[str, Any]:
    prefix = _common(data, base)
    suffix = _common(data[prefix:][::-1], base[prefix:][::-1])
    return {"prefix": prefix, "suffix": suffix, "bytes": data[prefix : len(data) - suffix].hex()}


def _common(a: bytes, b: bytes) -> int:
    """The length of the longest common prefix."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def load() -> list[tuple[dict[str, Any], bytes]]:
    """The cases of keys.json with the bytes of their keys."""
    read = json.loads((HERE / FILE).read_text())
    bases = {case["name"]: bytes.fromhex(case["bytes"]) for case in read if "base" not in case}
    return [(case, bases.get(case["name"]) or _changed(bases[case["base"]], case)) for case in read]


def _changed(base: bytes, case: dict[str, Any]) -> bytes:
    return base[: case["prefix"]] + bytes.fromhex(case["bytes"]) + base[len(base) - case["suffix"] :]


def files() -> dict[str, bytes]:
    """All files of this part, by name."""
    return {FILE: as_list(cases())}

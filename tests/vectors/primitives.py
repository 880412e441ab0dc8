"""primitives.json: known answers of every primitive."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocol import field as f
from protocol import group, identity, log, lookup, merkle, pedersen, reed_solomon
from protocol.cosignature import WitnessKey, cosign
from protocol.multilinear import eq_tensor, real
from protocol.network import Window
from protocol.pads import Need, Party
from protocol.transcript import FiatShamir, Masked, Transcript
from tests.vectors.common import as_object, stream

FILE = "primitives.json"


def elements(name: str, count: int) -> Any:
    """Elements of K from a stream, each coordinate reduced from 8 bytes."""
    words = np.frombuffer(stream(name)(40 * count), "<u8").reshape(count, 5) % f.P
    return f.from_base(np.ascontiguousarray(words.T.astype(np.uint32)))


def transcript() -> dict[str, Any]:
    """Frames, challenges of every kind, a fork, a join."""
    t = Transcript("test vectors", FiatShamir())
    out: dict[str, Any] = {"start": t.digest().hex()}
    t.absorb("bytes", Masked(b"xyz"))
    t.absorb("bytes", Masked(b""))
    out["absorbed"] = t.digest().hex()
    out["elements"] = f.to_bytes(t.challenge("elements", 2)).hex()
    out["base"] = t.challenge_base("base", 3).tolist()
    out["indices"] = t.challenge_indices("indices", 5, 16)
    forks = [t.fork("node", index) for index in (0, 1)]
    out["forks"] = [fork.digest().hex() for fork in forks]
    for fork in forks:
        t.absorb("fork", Masked(fork.digest()))
    out["joined"] = t.digest().hex()
    return out


def tree() -> dict[str, Any]:
    """A lookup tree over 3 x 2 fractions, its sumchecks included; all pads are 0, so that what is sent is the value."""
    shape, order, leaves = (3, 2), (1, 0), elements("leaves", 12)
    p, q = np.ascontiguousarray(leaves[:, :6]), np.ascontiguousarray(leaves[:, 6:])
    need, t = lookup.tree_need(shape, order), Transcript("test vectors", FiatShamir())
    party = Party(t, need, Need(), need.triples, pads=f.zeros(3 * need.triples + need.free))
    end = lookup.fractional_tree(party, shape, order, lookup.TreeWitness(p, q, shape, order))
    return {
        "axes": list(shape), "order": list(order), "numerators": f.to_bytes(p).hex(),
        "denominators": f.to_bytes(q).hex(), "sent": f.to_bytes(party.finish().values).hex(),
        "point": [f.to_bytes(part).hex() for part in end.point], "sum": f.to_bytes(end.total.sent).hex(),
        "digest": t.digest().hex(),
    }  # fmt: skip


def cosignature() -> dict[str, Any]:
    """What a witness signs."""
    seed, key = stream("witness")(32), log.LogKey("log.example/keys", identity.public_key(stream("log")(32)))
    witness, checkpoint = WitnessKey.of("witness.example", seed), log.Checkpoint(key.name, 9, stream("root")(32))
    return {
        "seed": seed.hex(), "public_key": witness.public.hex(), "text": witness.to_text(), "log_key": key.to_text(),
        "checkpoint": checkpoint.text(), "signature": cosign(seed, key, checkpoint).hex(),
    }  # fmt: skip


def consistency() -> dict[str, Any]:
    """A log of seven entries shows that it continues the one of three."""
    nodes: dict[tuple[int, int], bytes] = {}

    def read(level: int, index: int) -> bytes:
        return nodes[level, index]

    for size in range(7):
        for level, index, value in log.appended(read, size, log.leaf_hash(bytes([size]))):
            nodes[level, index] = value
    old, new = log.root_hash(read, 3), log.root_hash(read, 7)
    path = [value.hex() for value in log.consistency_path(read, 3, 7)]
    return {"entries": [f"{k:02x}" for k in range(7)], "old_size": 3, "old_root": old.hex(), "root": new.hex(),
            "path": path}  # fmt: skip


def primitives() -> dict[str, Any]:
    a, b = elements("a", 1), elements("b", 1)
    point = [elements("rows", 2), elements("columns", 1)]
    pixels, r = list(stream("pixels")(6)), int.from_bytes(stream("blinding")(31), "little")
    seed, digest = stream("seed")(32), stream("digest")(32)
    values = np.frombuffer(stream("values")(64), "<u8").astype(object) % f.P
    masks = np.frombuffer(stream("masks")(16), "<u8").astype(object) % f.P
    rows, rate = (np.array(part, np.uint32)[:, None] for part in (values, masks)), 8
    leaves = [merkle.leaf(bytes([k]) * 32, bytes([k, k])) for k in range(8)]
    hashes, window = merkle.Tree(b"".join(leaves)), Window(3, 2, 1, 1, 2)
    entries = [log.leaf_hash(bytes([k])) for k in range(3)]
    return {
        "field": {"a": f.to_bytes(a).hex(), "b": f.to_bytes(b).hex(), "product": f.to_bytes(f.mul(a, b)).hex(),
                  "inverse": f.to_bytes(f.inverse(a)).hex()},
        "extension": {"axes": [3, 2], "point": [f.to_bytes(part).hex() for part in point],
                      "eq": f.to_bytes(eq_tensor(point, (3, 2))).hex(), "real": f.to_bytes(real(point, (3, 2))).hex()},
        "window": {"window": [3, 2, 1, 1, 2], "length": 7, "taps": window.taps(7).tolist()},
        "commitments": {
            "pixels": pixels, "blinding": r, "trigger": group.encode(pedersen.commit(np.array(pixels), r)).hex(),
            "share": 7, "share_commitment": group.encode(pedersen.commit_share(7, r)).hex()},
        "signature": {"seed": seed.hex(), "public_key": identity.public_key(seed).hex(), "label": "proof",
                      "digest": digest.hex(), "signature": identity.sign(seed, "proof", digest).hex()},
        "transcript": transcript(),
        "tree": tree(),
        "cosignature": cosignature(),
        "row": {"values": values.tolist(), "masks": masks.tolist(), "rate_inverse": rate,
                "word": reed_solomon.encode(*rows, rate)[:, 0].tolist()},
        "merkle": {"leaves": [leaf.hex() for leaf in leaves], "root": hashes.root.hex(), "opened": [1, 6],
                   "siblings": [s.hex() for s in hashes.open([1, 6])]},
        "log": {"entries": ["00", "01", "02"], "leaves": [leaf.hex() for leaf in entries],
                "root": log.node_hash(log.node_hash(entries[0], entries[1]), entries[2]).hex()},
        "consistency": consistency(),
    }  # fmt: skip


def files() -> dict[str, bytes]:
    """All files of this part, by name."""
    return {FILE: as_object(primitives())}

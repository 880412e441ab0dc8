"""The frozen statement and proof, and vectors.json with what a verification computes and how altered proofs fail.

SPEC.md has the digests of the three files of bytes.  The key is a test key: vectors.json has its owner's secret.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from protocol import argument, identity, ligero, link, merkle
from protocol import field as f
from protocol.argument import Context, Statement
from protocol.claim import Claim, statement_digests
from protocol.errors import DecodingError, VerificationError
from protocol.keygen import KeyParameters, MarkingKey, VerificationKey, generate_key
from protocol.network import Edge, Network, Node, Product, Table, Window
from protocol.transcript import Transcript
from tests.vectors.common import HERE, as_object, stream

SHAPE, CLASSES, ELL, FEATURES = (1, 4, 4), 10, 160, 128
ONE = Window(1)


# --- the statement --------------------------------------------------------------------------------------------------


def network(head: np.ndarray) -> Network:
    """Padding, groups, a scaled shortcut, strides, a pool that resamples, shift 0, two edges, two tables, a product."""
    rng = np.random.default_rng(1)
    relu = Table(10, np.clip(np.arange(-512, 512), 0, 255).astype(np.int64))
    wide = Table(11, np.clip(np.arange(-1024, 1024), 0, 700).astype(np.int64))
    same, half = Window(3, 1, 1, 1), Window(2, 2)
    first = Node((Edge(0, rng.integers(-15, 16, (12, 1, 3, 3)), same, same),), rng.integers(-500, 500, 12), 6, relu)
    second = Node(
        (
            Edge(1, rng.integers(-8, 9, (12, 3, 3, 3)), same, same, 4),
            Edge(1, np.full((12, 1, 1, 1), 64), ONE, ONE, 12),
        ),
        rng.integers(-500, 500, 12), 7, relu,
    )  # fmt: skip
    difference = np.zeros((12, 1, 1, 2), np.int64)
    difference[..., 0], difference[..., 1] = 1, -1
    third = Node((Edge(2, difference, ONE, half, 12),), np.zeros(12, np.int64), 0, relu)
    gate = Node((Edge(2, rng.integers(-9, 10, (12, 12, 4, 4)), Window(4), Window(4)),), np.full(12, 9000), 9, relu)
    gated = Node((), np.zeros(12, np.int64), 7, relu, product=Product(2, 4))
    finer = Window(3, 4, 2, -4, 1, 3)  # reads inputs 0 0 0 and 0 1 1
    last = Node(
        (
            Edge(5, rng.integers(-12, 13, (FEATURES, 12, 2, 2)), Window(2), Window(2), 1, (finer, half)),
            Edge(3, rng.integers(-12, 13, (FEATURES, 3, 4, 2)), Window(4), Window(2), 4),
        ),
        rng.integers(-2000, 2000, FEATURES), 10, wide,
    )  # fmt: skip
    output = Node((Edge(6, head[:, :, None, None], ONE, ONE),), np.zeros(CLASSES, np.int64))
    return Network(SHAPE, np.arange(256)[None] - 128, (first, second, third, gate, gated, last, output))


def statement_and_key() -> tuple[Statement, MarkingKey]:
    images = np.frombuffer(stream("images")(ELL * 16), np.uint8).reshape(ELL, *SHAPE)
    key = generate_key(KeyParameters(SHAPE, CLASSES, ELL), images, entropy=stream("key"))
    blank = network(np.zeros((CLASSES, FEATURES), np.int64))
    z = blank.forward(key.hidden_images).outputs[-1].reshape(FEATURES, -1).T.astype(float)
    wanted = np.eye(CLASSES)[key.hidden_labels] * 2 - 1
    wanted[:3] *= -1  # three triggers that do not match
    head = np.linalg.solve(z.T @ z + 100 * np.eye(FEATURES), z.T @ wanted).T
    model = network(np.round(head / np.abs(head).max() * 1000).astype(np.int64))
    matches = int((model.classify(key.hidden_images) == key.hidden_labels).sum())
    context = Context("test vectors", "claimant", "verifier", bytes(range(32)))
    digests = (hashlib.sha256(name).digest() for name in (b"model file", b"derivation"))
    return Statement(key.vk, model, matches - 5, context, *digests), key


# --- what a verification computes -----------------------------------------------------------------------------------


@dataclass
class Record:
    """Events ("A:root", "C:alpha", ...) of all transcripts by name; what the main one drew and absorbed."""

    events: dict[str, list[str]] = field(default_factory=dict)
    drawn: dict[str, list[Any]] = field(default_factory=dict)
    absorbed: dict[str, list[bytes]] = field(default_factory=dict)
    tests: list[tuple[int, ligero.LinearTest]] = field(default_factory=list)  # (number of equations, test)


@contextmanager
def recording() -> Iterator[Record]:
    """Watch all transcripts, and the linear test."""
    record, names = Record(), {}
    made, forked, absorb, framed = Transcript.__init__, Transcript.fork, Transcript.absorb, Transcript._stream
    draws = {name: getattr(Transcript, name) for name in ("challenge", "challenge_base", "challenge_indices")}
    combine = ligero.combine

    def init(self: Transcript, *args: Any) -> None:
        made(self, *args)
        names[self] = "main"
        record.events["main"] = ["P:protocol"]

    def fork(self: Transcript, label: str, index: int) -> Transcript:
        child = forked(self, label, index)
        names[child] = f"{label} {index}"
        record.events[names[child]] = [f"F:{label}"]
        return child

    def note_absorb(self: Transcript, label: str, data: bytes) -> None:
        record.events[names[self]].append(f"A:{label}")
        if names[self] == "main":
            record.absorbed.setdefault(label, []).append(bytes(data))
        absorb(self, label, data)

    def note_stream(self: Transcript, label: str) -> Any:
        record.events[names[self]].append(f"C:{label}")
        return framed(self, label)

    def drawing(original: Any) -> Any:
        def draw(self: Transcript, label: str, *args: Any) -> Any:
            value = original(self, label, *args)
            if names[self] == "main":
                record.drawn.setdefault(label, []).append(value)
            return value

        return draw

    def note_combine(shape: ligero.Shape, systems: Any, challenge: Any) -> ligero.LinearTest:
        test = combine(shape, systems, challenge)
        record.tests.append((sum(len(system.forms) for system in systems), test))
        return test

    replaced = {"__init__": init, "fork": fork, "absorb": note_absorb, "_stream": note_stream}
    with (
        mock.patch.multiple(Transcript, **replaced, **{name: drawing(value) for name, value in draws.items()}),
        mock.patch.object(ligero, "combine", note_combine),
    ):
        yield record


def proof_fields(statement: Statement, columns: list[int]) -> dict[str, list[int]]:
    """Name to [offset, length] of every field of a proof (SPEC.md section 11)."""
    shape = statement.shape
    n, k, t = shape.columns, shape.degree, shape.queries
    pixel, share = link.bounds(statement.layout)
    d = 16
    lengths = {
        "magic": 15,
        "root": 32,
        "link.commitments": 10 * 48,
        "link.answer": 5 * (d * pixel.width // 8 + share.width // 8 + 64),
        "messages": 20 * sum(need.sent for need in statement.needs),
        "proximity.polynomial": 20 * k,
        "linear.polynomial": 20 * (shape.size + k - 1),
        "quadratic.polynomial": 20 * (2 * k - 1),
        "columns": 4 * t * (shape.rows + 15),
        "salts": 32 * t,
        "siblings": 32 * merkle.sibling_count(columns, n),
        "signature": 64,
    }
    out, at = {}, 0
    for name, length in lengths.items():
        out[name] = [at, length]
        at += length
    return out


def intermediate(statement: Statement, proof: bytes) -> dict[str, Any]:
    """All intermediate values of vectors.json, from a verification of the proof."""
    with recording() as record:
        argument.verify(statement, proof)
    key, layout, shape, drawn = statement.key, statement.layout, statement.shape, record.drawn
    (equations, test), (columns,) = record.tests[0], drawn["columns"]
    pixel, share = link.bounds(layout)
    return {
        "vk_digest": key.digest.hex(),
        "network_digest": statement.network.digest.hex(),
        "statement_digest": statement.digest.hex(),
        "key_seed": key.seed.hex(),
        "coin_bits": "".join(str(int(bit)) for bit in key.challenge_bits),
        "offsets": key.offsets.tolist(),
        "hidden": key.hidden.tolist(),
        "parameters": [shape.parameters.log2_row, shape.parameters.log2_rate_inverse, shape.queries],
        "sizes": {
            "depth": layout.depth, "rows": shape.rows, "triples": shape.need.triples, "free pads": shape.need.free,
            "table rows": layout.tables.size, "lookups": layout.lookups, "equations": equations,
        },
        "link_bounds": {"pixels": [pixel.largest, pixel.width], "shares": [share.largest, share.width]},
        "alpha": f.to_bytes(drawn["alpha"][0]).hex(),
        "beta": f.to_bytes(drawn["beta"][0]).hex(),
        "gamma_digest": hashlib.sha256(drawn["link"][0].astype("<u4").tobytes()).hexdigest(),
        "link_point": [f.to_bytes(part).hex() for part in drawn["link.point"]],
        "fork_digests": [digest.hex() for digest in record.absorbed["fork"]],
        "eta": f.to_bytes(drawn["equations"][0]).hex(),
        "target": f.to_bytes(test.target).hex(),
        "columns": columns,
        "fields": proof_fields(statement, columns),
    }  # fmt: skip


# --- altered proofs -------------------------------------------------------------------------------------------------


def altered(statement: Statement, secret: bytes, proof: bytes, change: dict[str, Any]) -> bytes:
    """The proof cut to a length, or with other bytes at an offset; signed anew where the change says so."""
    data = bytearray(proof)
    if "length" in change:
        del data[change["length"] :]
    else:
        new = bytes.fromhex(change["bytes"])
        data[change["offset"] : change["offset"] + len(new)] = new
    if change["signed"]:
        digest = hashlib.sha256(statement.digest + data[:-64]).digest()
        data[-64:] = identity.sign(secret, argument.SIGNATURE_LABEL, digest)
    return bytes(data)


def outcome(statement: Statement, proof: bytes) -> str:
    """`true`, `malformed`, or the name of the failed check."""
    try:
        argument.verify(statement, proof)
    except VerificationError as error:
        return error.check
    except DecodingError:
        return "malformed"
    return "true"


def changes(proof: bytes, fields: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Changes of every field."""

    def change(name: str, at: int, new: bytes, signed: bool = True) -> dict[str, Any]:
        return {"field": name, "offset": fields[name][0] + at, "bytes": new.hex(), "signed": signed}

    def flipped(name: str, at: int, signed: bool = True) -> dict[str, Any]:
        return change(name, at, bytes([proof[fields[name][0] + at] ^ 1]), signed)

    out = [flipped(name, length // 40 * 20, name != "signature") for name, (_, length) in fields.items()]
    out += [flipped("root", 0, False), flipped("linear.polynomial", 0), flipped("messages", 0)]
    out.append(change("link.answer", 0, bytes(8)))
    out += [change(name, 0, b"\xff" * 4) for name in ("messages", "linear.polynomial", "columns")]
    out.append(change("link.commitments", 0, b"\xc0" + bytes(47)))  # infinity
    end = len(proof)
    return [*out, *({"field": "signature", "length": end - cut, "signed": signed}
                    for cut, signed in ((1, False), (32, True), (end - 15, True), (end, False)))]  # fmt: skip


# --- files ----------------------------------------------------------------------------------------------------------


def load() -> tuple[Statement, bytes, dict[str, Any]]:
    """The frozen statement, its proof, and vectors.json."""
    claim = Claim.from_bytes((HERE / "claim.proof").read_bytes())
    statement = Statement(
        VerificationKey.from_bytes((HERE / "key.vk").read_bytes()),
        Network.from_bytes((HERE / "model.network").read_bytes()),
        claim.k_min, claim.context, claim.digests[1], claim.digests[3],
    )  # fmt: skip
    return statement, claim.proof, json.loads((HERE / "vectors.json").read_text())


def frozen_proof(statement: Statement, key: MarkingKey) -> bytes:
    with mock.patch.object(os, "urandom", stream("prover")):
        return argument.prove(statement, key)


def binary(statement: Statement, proof: bytes) -> dict[str, bytes]:
    """The three files that hold bytes of the protocol, by name."""
    claim = Claim(statement.k_min, statement.context, statement_digests(statement), proof)
    return {
        "key.vk": statement.key.to_bytes(),
        "model.network": statement.network.to_bytes(),
        "claim.proof": claim.to_bytes(),
    }


def files() -> dict[str, bytes]:
    """All files of this part, by name."""
    statement, key = statement_and_key()
    proof = frozen_proof(statement, key)
    values = intermediate(statement, proof)
    cases = []
    for change in changes(proof, values["fields"]):
        found = outcome(statement, altered(statement, key.owner_secret_seed, proof, change))
        cases.append({**change, "outcome": found})
    values = {"owner_secret_seed": key.owner_secret_seed.hex(), **values, "altered": cases}
    return binary(statement, proof) | {"vectors.json": as_object(values)}

"""Proofs and keys with their outcomes: made once by the code as it is, judged again by every mutant.

All are about the frozen statement of tests/vectors, the smallest network with every kind of node, but for one honest
proof of another statement, whose axes are no powers of two and whose k_min is h.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from protocol import argument, identity, keygen
from protocol.argument import Context, Statement
from protocol.claim import Claim, statement_digests
from protocol.errors import DecodingError, VerificationError
from protocol.keygen import KeyParameters, MarkingKey, VerificationKey, check_key, generate_key
from protocol.network import Network

# --- made by the code as it is --------------------------------------------------------------------


def build(folder: Path) -> None:
    """Write the corpus into an empty folder."""
    from tests.vectors import proof as source

    statement, key = source.statement_and_key()
    frozen, proof, vectors = source.load()
    if frozen.digest != statement.digest:
        raise RuntimeError("the frozen vectors are not those of this code")
    odd, odd_key = _odd()
    good = {"frozen": (frozen, proof), "odd": (odd, argument.prove(odd, odd_key))}
    facts = {}
    for name, (stated, proven) in good.items():
        claim = Claim(stated.k_min, stated.context, statement_digests(stated), proven)
        (folder / f"{name}.vk").write_bytes(stated.key.to_bytes())
        (folder / f"{name}.network").write_bytes(stated.network.to_bytes())
        (folder / f"{name}.claim").write_bytes(claim.to_bytes())
        facts[name] = _facts(stated)
    cases, seen = [], Counter[str]()
    for change in vectors["altered"]:
        seen[change["outcome"]] += 1
        if change["outcome"] == "malformed" or seen[change["outcome"]] == 1:
            cases.append((source.altered(frozen, key.owner_secret_seed, proof, change), change["outcome"]))
    for lies, check in _cheats(statement, key):
        with ExitStack() as stack:
            for lie in lies:
                stack.enter_context(lie)
            cases.append((argument.prove(statement, key), check))
    keys = list(_keys(key))
    for kind, made in (("proof", cases), ("key", keys)):
        for number, (data, _) in enumerate(made):
            (folder / f"{number}.{kind}").write_bytes(data)
    outcomes = {"facts": facts, "proof": [check for _, check in cases], "key": [check for _, check in keys]}
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


def _odd() -> tuple[Statement, MarkingKey]:
    from tests.protocol import conftest as small

    random = Random(small.SEED).randbytes
    images = np.frombuffer(random(small.ELL * 30), np.uint8).reshape(small.ELL, *small.SHAPE)
    key = generate_key(KeyParameters(small.SHAPE, small.CLASSES, small.ELL), images, entropy=random)
    context = Context("", "né", "x" * 256, bytes(range(32)))
    return Statement(key.vk, small.marked_network(key), key.vk.h, context, b"m" * 32, b"d" * 32), key


def _cheats(statement: Statement, key: MarkingKey) -> Iterator[tuple[list[AbstractContextManager[Any]], str]]:
    """(faults of the prover, the check that names them)"""
    from tests.adversary import faults

    def entry(name: str) -> AbstractContextManager[Any]:
        return faults.committed(lambda layout, values: faults.shifted(layout, values, name, 0))  # type: ignore[no-any-return]

    def answer(**changes: Any) -> AbstractContextManager[Any]:
        return faults.answers(lambda given: replace(  # type: ignore[no-any-return]
            given, **{name: change(list(getattr(given, name))) for name, change in changes.items()}))

    def bumped(values: list[Any]) -> list[Any]:
        first = [values[0][0] + 1, *values[0][1:]] if isinstance(values[0], list) else values[0] + 1
        return [first, *values[1:]]

    size = statement.shape.size
    yield [entry("count")], "quadratic.zero"
    yield [entry("z1"), faults.stubborn()], "linear.columns"
    yield [faults.codewords(3)], "proximity.columns"
    yield [faults.polynomial("proximity", faults.bumped((0, 1)))], "proximity.columns"
    yield [faults.polynomial("linear", faults.bumped((1, 1)))], "linear.columns"
    yield [faults.polynomial("linear", faults.bumped((0, 1)))], "linear.sum"
    yield [faults.polynomial("quadratic", faults.bumped((0, 1), (size, -1)))], "quadratic.columns"
    for name in ("pixels", "shares", "pixel_blindings", "share_blindings"):
        yield [answer(**{name: bumped})], "link.opening"
    for name in ("pixels", "shares"):
        yield [faults.small_mask(name)], "link.range"


def _keys(key: MarkingKey) -> Iterator[tuple[bytes, str]]:
    """(encoded key, outcome)"""

    def signed(**changes: Any) -> bytes:
        vk = replace(key.vk, **changes)
        vk = replace(vk, openings=changes.get("openings", key.openings(vk.opened)))
        return replace(vk, signature=identity.sign(key.owner_secret_seed, keygen.SIGNATURE_LABEL, vk.digest)).to_bytes()

    o = key.vk.openings
    image, share = o.images.copy(), o.shares.copy()
    image[3, 0, 1, 2] ^= 1
    share[5] = (share[5] + 1) % key.vk.parameters.classes
    yield key.vk.to_bytes(), "true"
    yield replace(key.vk, signature=bytes(64)).to_bytes(), "key.signature"
    yield signed(openings=key.openings(key.vk.opened[1:])), "key.openings"
    yield signed(openings=replace(o, images=image)), "key.openings"
    yield signed(openings=replace(o, shares=share)), "key.openings"
    for name in ("trigger_randomness", "share_randomness"):
        values = getattr(o, name)
        yield signed(openings=replace(o, **{name: (values[0] ^ 1, *values[1:])})), "key.openings"
    out_of_range = o.shares.copy()
    out_of_range[0] = key.vk.parameters.classes
    yield signed(openings=replace(o, shares=out_of_range)), "key.range"
    twice = o.images.copy()
    twice[1] = twice[0]
    yield signed(openings=replace(o, images=twice)), "key.duplicates"


# --- judged by a mutant ---------------------------------------------------------------------------


def honest(folder: Path, step: Callable[[], object] = lambda: None) -> None:
    """Proofs that hold.  Raises AssertionError, or whatever a mutant raises; `step()` comes before every case."""
    for name, facts in _outcomes(folder)["facts"].items():
        step()
        statement, digests, proof = _statement(folder, name)
        assert statement_digests(statement) == digests and _facts(statement) == facts
        assert argument.verify(statement, proof).bits == statement.ledger().bits


def keys(folder: Path, step: Callable[[], object] = lambda: None) -> None:
    """Keys, each with the name of its failed check.  Raises as `honest` does."""
    for number, expected in enumerate(_outcomes(folder)["key"]):
        step()
        assert _outcome(_check_key, (folder / f"{number}.key").read_bytes()) == expected


def cheats(folder: Path, step: Callable[[], object] = lambda: None) -> None:
    """Proofs, each with the name of its failed check.  Raises as `honest` does."""
    statement = _statement(folder, "frozen")[0]
    for number, expected in enumerate(_outcomes(folder)["proof"]):
        step()
        data = (folder / f"{number}.proof").read_bytes()
        assert _outcome(lambda data: argument.verify(statement, data), data) == expected


def _outcomes(folder: Path) -> Any:
    return json.loads((folder / "outcomes.json").read_text())


def _statement(folder: Path, name: str) -> tuple[Statement, tuple[bytes, ...], bytes]:
    """(the statement, the digests that it has to have, its proof)"""
    claim = Claim.from_bytes((folder / f"{name}.claim").read_bytes())
    key = VerificationKey.from_bytes((folder / f"{name}.vk").read_bytes())
    network = Network.from_bytes((folder / f"{name}.network").read_bytes())
    digests = claim.digests
    return Statement(key, network, claim.k_min, claim.context, digests[1], digests[3]), digests, claim.proof


def _check_key(data: bytes) -> None:
    check_key(VerificationKey.from_bytes(data))


def _outcome(judge: Any, data: bytes) -> str:
    try:
        judge(data)
    except VerificationError as error:
        return error.check
    except DecodingError:
        return "malformed"
    return "true"


def _facts(statement: Statement) -> Any:
    """What follows from a statement, as it comes back from JSON."""
    key, shape = statement.key, statement.shape
    return json.loads(json.dumps({
        "digest": statement.digest.hex(), "seed": key.seed.hex(), "bits": key.challenge_bits.tolist(),
        "offsets": key.offsets.tolist(), "labels": sha256(key.opened_labels.tobytes()).hexdigest(),
        "ledgers": [[*map(str, ledger.terms), *ledger.assumptions, str(ledger.total)]
                    for ledger in (statement.ledger(), statement.ledger(interactive=True))],
        "shape": [shape.rows, shape.column_rows, shape.columns, shape.pad_count, statement.layout.lookups],
        "arrays": statement.layout.arrays,
    }))  # fmt: skip

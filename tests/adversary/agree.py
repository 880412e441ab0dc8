"""Two verifiers, one verdict: `python -m tests.adversary.agree` (`make agree`) asks both about many proofs.

For random small networks of every kind of node over 1 x 4 x 4 images the real prover makes an honest proof; it is then
altered in every field and signed anew by a cheating owner, cut, moved to other statements and keys, or made by a
cheating prover in the first place.  The package and the plain verifier, which was written from SPEC.md alone, have to
name the same outcome: `true`, `malformed`, or the check that fails.

The plain verifier hashes all opened columns and does the arithmetic of the first two.  Of the first base it does that
of all, for the honest proof and for one of a row that is no codeword in a tenth of the columns only.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np

from protocol import argument, field, identity, keygen
from protocol.anchor import Anchor
from protocol.argument import Context, Statement
from protocol.claim import Claim, compare, statement_digests
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.keygen import KeyParameters, LabelRule, MarkingKey, VerificationKey, check_key, commit_key
from protocol.network import Network
from protocol.soundness import window
from protocol.transcript import Channel
from tests.adversary import faults, networks
from tests.protocol import plain_verifier as plain
from tests.vectors import keys as key_vectors
from tests.vectors import proof as proof_vectors

REPORT = Path("benchmarks/results/agreement.json")
COLUMNS = 2  # of the opened columns, so many meet the plain verifier's column tests, where all would take too long
PROTOCOL = Path(argument.__file__).parent


@dataclass(frozen=True)
class Files:
    """What a verifier is given."""

    vk: bytes
    network: bytes
    claim: bytes


def package(files: Files, channel: Channel | None = None) -> str:
    """The verdict of the package on everything."""
    try:
        key, network = VerificationKey.from_bytes(files.vk), Network.from_bytes(files.network)
        claim = Claim.from_bytes(files.claim)
        check_key(key)
        statement = Statement(key, network, claim.k_min, claim.context, claim.digests[1], claim.digests[3])
        compare(claim, statement)
        argument.verify(statement, claim.proof, channel)
    except VerificationError as error:
        return error.check
    except (DecodingError, ParameterError):
        return "malformed"
    return "true"


def second(files: Files, coins: dict[bytes, bytes] | None = None, columns: int | None = COLUMNS) -> str:
    """The verdict of the plain verifier.  coins: of a session, in the interactive channel; columns: None for all."""
    try:
        plain.verify(files.vk, files.network, files.claim, columns, coins)
    except plain.Failed as error:
        return str(error.args[0])
    return "true"


def both(statement: Statement, proof: bytes) -> tuple[str, str]:
    """The verdicts of the package and of the plain verifier."""
    files = Base(statement, None, proof, frozenset()).files()
    return package(files), second(files)


# Statements


@dataclass(frozen=True)
class Base:
    """A true statement with its proof, and the kinds of its nodes and its key."""

    statement: Statement
    key: MarkingKey | None  # not needed to look at the proof
    proof: bytes
    kinds: frozenset[str]

    @staticmethod
    def make(seed: int) -> Base:
        random, rng = Random(seed), np.random.default_rng(seed)
        classes, ell = random.randint(2, 10), random.choice([10, 16, 24])
        images = rng.integers(0, 256, (ell, *networks.SHAPE), dtype=np.uint8)
        rule = random.choice(list(LabelRule))
        labels = [random.randrange(classes) for _ in range(ell)] if rule is LabelRule.CHOSEN else None
        with mock.patch.object(keygen, "smallest_k_min", lambda *_: 1):  # keys this small bound no false claim
            parameters = KeyParameters(networks.SHAPE, classes, ell, rule)
            pending = commit_key(parameters, images, labels=labels, entropy=random.randbytes)
        logged = random.random() < 0.5
        key = key_vectors.anchored(pending) if logged else pending.finish(random.randbytes)
        while True:
            network, kinds = networks.random_network(rng, classes)
            matches = int((network.classify(key.hidden_images) == key.hidden_labels).sum())
            if matches:
                break
        context = Context("agreement", f"claimant {seed}", "verifier", random.randbytes(32))
        statement = Statement(
            key.vk, network, random.randint(1, matches), context, random.randbytes(32), random.randbytes(32))
        kinds |= {"anchored" if logged else "not anchored", rule.name.lower()}
        return Base(statement, key, argument.prove(statement, key), frozenset(kinds))

    def files(self, proof: bytes | None = None, **claim: Any) -> Files:
        """The files, with another proof or other fields of the claim."""
        statement = self.statement
        made = Claim(statement.k_min, statement.context, statement_digests(statement), proof or self.proof)
        return Files(statement.key.to_bytes(), statement.network.to_bytes(), replace(made, **claim).to_bytes())

    def signed(self, body: bytes) -> bytes:
        digest = hashlib.sha256(self.statement.digest + body).digest()
        return body + identity.sign(self.key.owner_secret_seed, argument.SIGNATURE_LABEL, digest)


# Alterations


@dataclass(frozen=True)
class Cut:
    """A context of these bytes."""

    data: bytes

    def to_bytes(self) -> bytes:
        return self.data


Case = tuple[str, Files]


def flipped(data: bytes, at: int, random: Random) -> bytes:
    return data[:at] + bytes([data[at] ^ random.randint(1, 255)]) + data[at + 1 :]


def damaged(base: Base, random: Random) -> Iterator[Case]:
    """One byte of each field changed, a number that is not canonical, lengths; signed anew where it says so."""
    with proof_vectors.recording() as record:
        argument.verify(base.statement, base.proof)
    body = base.proof[: -identity.SIGNATURE_BYTES]
    for name, (at, length) in proof_vectors.proof_fields(base.statement, record.drawn["columns"][0]).items():
        words = name in ("messages", "columns") or name.endswith("polynomial")
        place = at + (random.randrange(length // 4) * 4 if words else random.randrange(length))  # canonical, mostly
        if name == "signature":
            yield name, base.files(flipped(base.proof, place, random))
            continue
        yield name, base.files(base.signed(flipped(body, place, random)))
        if name in ("messages", "linear.polynomial", "columns"):
            place = at + random.randrange(length // 4) * 4
            yield f"{name}, not canonical", base.files(base.signed(body[:place] + b"\xff" * 4 + body[place + 4 :]))
    yield "not signed", base.files(flipped(base.proof, random.randrange(len(body)), random))
    yield "cut", base.files(base.signed(body[: random.randrange(len(body))]))
    yield "longer", base.files(base.signed(body + bytes(random.randint(1, 40))))


def moved(base: Base, random: Random) -> Iterator[Case]:
    """The proof in other statements."""
    statement, files = base.statement, base.files()
    other = replace(statement.context, **{random.choice(["purpose", "claimant", "verifier"]): "another"})
    yield "context", base.files(context=random.choice([other, replace(statement.context, nonce=random.randbytes(32))]))
    yield "k_min", base.files(k_min=statement.k_min + random.choice([-1, 1]))
    which, digests = random.randrange(4), list(statement_digests(statement))
    digests[which] = random.randbytes(32)
    yield f"digest {which}", base.files(digests=tuple(digests))
    yield "model cut", replace(files, network=files.network[: random.randrange(len(files.network))])
    edge = (last := statement.network.nodes[-1]).edges[0]
    weight = edge.weight.copy()
    weight.reshape(-1)[random.randrange(weight.size)] ^= 1
    network = replace(statement.network, nodes=(*statement.network.nodes[:-1],
                                                replace(last, edges=(replace(edge, weight=weight),))))  # fmt: skip
    yield "model", replace(files, network=network.to_bytes())
    changed = replace(statement, network=network)
    digests = statement_digests(changed)
    yield "model and its digest", replace(base.files(digests=digests), network=network.to_bytes())
    for number in range(3):
        data = networks.broken(random, statement.network)
        digests = list(statement_digests(statement))
        digests[2] = hashlib.sha256(data).digest()
        yield f"no model, {number}", replace(base.files(digests=tuple(digests)), network=data)
    yield "nonce cut", base.files(context=Cut(statement.context.to_bytes()[:-1]))


def keys(base: Base, random: Random) -> Iterator[Case]:
    """Other keys, signed anew by their owner where it says so; the claim is about them."""
    vk, secret = base.key.vk, base.key.owner_secret_seed
    data, opened = vk.to_bytes(), vk.openings

    def sign(**changes: Any) -> Files:
        made = replace(vk, **changes)
        made = replace(made, signature=identity.sign(secret, keygen.SIGNATURE_LABEL, made.digest))
        digests = (made.digest, *statement_digests(base.statement)[1:])
        return replace(base.files(digests=digests), vk=made.to_bytes())

    def beacons(wanted: Callable[[VerificationKey], bool], **changes: Any) -> Files:
        """The first of other coins that is as wanted; the anchor is lost."""
        found = (changes | {"beacon": random.randbytes(4)} for _ in itertools.count())
        return sign(**next(one for one in found if wanted(replace(vk, **one))))

    low, high = window(vk.parameters.ell)
    yield "key, one byte", replace(base.files(), vk=flipped(data, random.randrange(len(data)), random))
    yield "key cut", replace(base.files(), vk=data[: random.randrange(len(data))])
    yield "no owner", sign(owner_public_key=random.choice([b"\2" + bytes(31), b"\1" + bytes(31)]))
    yield "another coin", sign(beacon=random.randbytes(3))
    yield "too many or too few hidden", beacons(lambda k: not low <= k.h <= high)
    yield "a commitment twice", beacons(
        lambda k: low <= k.h <= high and len(k.opened) == len(opened), shares=(vk.shares[1], *vk.shares[1:]))
    shares = opened.shares.copy()
    shares[random.randrange(len(shares))] += random.choice([1, vk.parameters.classes])
    yield "a share", sign(openings=replace(opened, shares=shares))
    images = opened.images.copy()
    images.reshape(-1)[random.randrange(images.size)] ^= 1
    yield "an image", sign(openings=replace(opened, images=images))
    swapped = list(vk.shares)
    swapped[0], swapped[1] = swapped[1], swapped[0]
    yield "shares in another order", sign(shares=tuple(swapped))
    anchor = vk.anchor or Anchor(key_vectors.LOG, 2, 1, (bytes(32),) * 3, 7, bytes(32), bytes(64))
    yield "another anchor", sign(beacon=replace(anchor, **random.choice([
        {"root": bytes(32)}, {"unix_time": 1}, {"index": 0}, {"path": anchor.path[1:]}, {"size": anchor.size - 1},
    ])).to_bytes())  # fmt: skip


def lies(base: Base, random: Random) -> list[tuple[str, list[AbstractContextManager[Any]]]]:
    """What cheating provers do."""
    layout, size = base.statement.layout, base.statement.shape.size

    def shift(name: str) -> AbstractContextManager[Any]:
        sizes = {n: int(np.prod(s)) for n, (_, s) in layout.columns.items()} | dict(layout.arrays)
        index = random.randrange(sizes[name] * (layout.h if name in layout.columns else 1))
        return faults.committed(
            lambda layout, values: faults.shifted(layout, values, name, index, random.randrange(1, field.P)))

    def answer(answer: Any) -> Any:
        at = random.randrange(5)
        return replace(answer, shares=[z + (j == at) for j, z in enumerate(answer.shares)])

    column, array = random.choice(list(layout.columns)), random.choice([n for n, size in layout.arrays.items() if size])
    polynomial, at = random.choice(["proximity", "linear", "quadratic"]), random.randrange(size)
    label = random.choice(["root.q", "root.p", "root.s", "round", "layer.ends", "edges"])
    return [
        (f"column {column[0]}", [shift(column)]),
        ("array", [shift(array)]),
        ("hidden by other polynomials", [shift(column), faults.stubborn()]),
        (f"message {label}", [faults.message(label, 0)]),
        ("link", [faults.answers(answer)]),
        ("small mask", [faults.small_mask(random.choice(["pixels", "shares"]))]),
        (f"polynomial {polynomial}", [faults.polynomial(polynomial, faults.bumped((at, 1)))]),
        ("linear polynomial, twice", [faults.polynomial("linear", faults.bumped((at, 1), (at + size, -1)))]),
        ("quadratic polynomial, twice", [faults.polynomial("quadratic", faults.bumped((at, 1), (at + size, -1)))]),
        ("no codeword", [faults.codewords(random.randrange(layout.h))]),
        ("masked sum", [faults.masked_sum(random.randrange(1, field.P))]),
        ("zero roots", [faults.zero_roots()]),
        ("fold", [faults.fold(random.randrange(12))]),
        ("neighbors of the columns", [faults.neighbors()]),
    ]  # fmt: skip


def forged(base: Base, random: Random, count: int) -> Iterator[Case]:
    for name, contexts in random.sample(lies(base, random), count):
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            proof = argument.prove(base.statement, base.key)
        yield f"prover: {name}", base.files(proof)


# The run


def cases(base: Base, random: Random) -> Iterator[Case]:
    """The honest proof, and some of what can be made of it: 23 proofs."""
    yield "honest", base.files()
    for part, count in ((damaged, 8), (moved, 6), (keys, 6)):
        yield from random.sample(list(part(base, random)), count)
    yield from forged(base, random, 2)


def few_columns(base: Base, random: Random) -> Files:
    """A proof whose lie is in a tenth of the columns."""
    with faults.codewords(random.randrange(base.statement.layout.h), 0.1):
        return base.files(argument.prove(base.statement, base.key))


def all_columns(base: Base, random: Random) -> Iterator[dict[str, str]]:
    """The verdicts about an honest proof, and about one that a verifier of two columns may miss."""
    for name, files in (("honest", base.files()), ("no codeword in few columns", few_columns(base, random))):
        yield {"case": name, "package": package(files), "plain": second(files, columns=None),
               f"plain, {COLUMNS} columns": second(files)}  # fmt: skip


def sources() -> str:
    """SHA-256 over the names and bytes of the package's sources."""
    found = hashlib.sha256()
    for path in sorted(PROTOCOL.rglob("*.py")):
        found.update(plain.blob(str(path.relative_to(PROTOCOL)).encode()) + plain.blob(path.read_bytes()))
    return found.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", type=int, default=50, help="honest proofs")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    kinds: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    differ: list[dict[str, Any]] = []
    whole: list[dict[str, str]] = []
    digest, started = sources(), time.process_time()
    for seed in range(arguments.first, arguments.first + arguments.bases):
        base = Base.make(seed)
        kinds.update(base.kinds)
        for number, (name, files) in enumerate(cases(base, Random(-1 - seed))):
            verdicts = package(files), second(files)
            outcomes[verdicts[0]] += 1
            if verdicts[0] != verdicts[1] or (number == 0) != (verdicts[0] == "true"):
                differ.append({"base": seed, "case": name, "package": verdicts[0], "plain": verdicts[1]})
                print(differ[-1], flush=True)
        if seed == arguments.first:
            whole = list(all_columns(base, Random(seed)))
            differ += [{"base": seed, **one} for one in whole if one["package"] != one["plain"]]
        done = seed + 1 - arguments.first
        print(f"{done} bases, {outcomes.total()} proofs, {len(differ)} differences", flush=True)
        found = {
            "protocol": argument.VERSION, "sources": digest, "bases": done, "proofs": outcomes.total(),
            "differences": differ, "outcomes": dict(sorted(outcomes.items())), "all columns": whole,
            "bases of kind": dict(sorted(kinds.items())), "cpu_seconds": round(time.process_time() - started),
        }  # fmt: skip
        arguments.report.write_text(json.dumps(found, indent=1) + "\n")
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main())

"""PVerify: the zero-knowledge argument, end to end (SPEC sections 1 and 6 to 9).

Statement: the prover knows openings of the hidden commitments of vk such that the public network classifies at least
k_min of the hidden triggers to their labels.  Order of the messages, the same code for both parties where they share
it:

    statement -> root, link commitments -> alpha, beta, gamma -> z, tau -> forks (one per node, one for the tables)
    -> digests of all forks -> equations -> test polynomials -> columns
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
from Crypto.Hash import SHAKE256

from protocol import field, identity, kernels, layers, ligero, link, lookup, witness
from protocol.encoding import Reader, Writer
from protocol.errors import ParameterError, Restart, VerificationError
from protocol.field import Vector
from protocol.forks import Engine, Fork, Shared, forks
from protocol.group import POINT_BYTES
from protocol.keygen import MarkingKey, VerificationKey
from protocol.layers import Context as NodeContext
from protocol.layout import Layout
from protocol.matrix import Shape
from protocol.multilinear import lg
from protocol.network import Forward, Network
from protocol.pads import Form, Need, Party, System, Wire
from protocol.soundness import LINK_REPETITIONS, SESSIONS, Counts, Ledger, argument_ledger, choose_parameters
from protocol.transcript import Channel, FiatShamir, MaskedElements, Messages, Public, Transcript

VERSION = "zkmark argument 1"
MAGIC = b"zkmark proof 1\n"
MAX_PROOF_BYTES = 1 << 30
MAX_TEXT_BYTES = 256
NONCE_BYTES = 32
SIGNATURE_LABEL = "proof"

_PROCESS_BYTES = 256 << 20  # the interpreter, its libraries and the kernels
_TREE_BYTES = 85  # per leaf of the largest tree: its leaves, the layers above, and the tables of the first round

Progress = Callable[[str, float], None]



class Cancelled(Exception):
    """The caller of `prove` asked it to stop."""


@dataclass(frozen=True)
class Context:
    """Who is convinced of what, and the verifier's nonce, drawn after the model was fixed."""

    purpose: str
    claimant: str
    verifier: str
    nonce: bytes

    def __post_init__(self) -> None:
        if len(self.nonce) != NONCE_BYTES:
            raise ParameterError(f"a nonce has {NONCE_BYTES} bytes")
        if any(len(text.encode()) > MAX_TEXT_BYTES for text in (self.purpose, self.claimant, self.verifier)):
            raise ParameterError(f"purpose, claimant and verifier have at most {MAX_TEXT_BYTES} bytes")

    def to_bytes(self) -> bytes:
        return Writer().text(self.purpose).text(self.claimant).text(self.verifier).raw(self.nonce).to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> Context:
        r = Reader(data, "context")
        context = Context(r.text(MAX_TEXT_BYTES), r.text(MAX_TEXT_BYTES), r.text(MAX_TEXT_BYTES), r.raw(NONCE_BYTES))
        r.done()
        return context


@dataclass(frozen=True, eq=False)
class Statement:
    """What is claimed.  Raises ParameterError where no proof of it can exist.

    model_digest: SHA-256 of the file that the network was derived from; derivation_digest: of the derivation's options.
    """

    key: VerificationKey
    network: Network
    k_min: int
    context: Context
    model_digest: bytes
    derivation_digest: bytes

    def __post_init__(self) -> None:
        parameters = self.key.parameters
        if (self.network.shape, self.network.classes) != (parameters.shape, parameters.classes):
            raise ParameterError("the network's input shape or classes are not those of the key")
        if not 1 <= self.k_min <= self.key.h:
            raise ParameterError(f"k_min must be 1 to {self.key.h}")
        if len(self.model_digest) != 32 or len(self.derivation_digest) != 32:
            raise ParameterError("a digest has 32 bytes")
        if self.layout.lookups + self.layout.tables.size >= field.P:
            raise ParameterError("too many lookups for this field")

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of everything that the proof is bound to."""
        out = Writer().text(VERSION).raw(self.key.digest).raw(self.network.digest).u32(self.k_min).u32(self.key.h)
        out.raw(self.model_digest).raw(self.derivation_digest).blob(self.context.to_bytes())
        return hashlib.sha256(out.to_bytes()).digest()

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.network, self.key.h, self.k_min)

    @cached_property
    def shape(self) -> Shape:
        """The committed matrix, with the parameters of the smallest proof: a function of the statement alone."""
        layout, need = self.layout, sum(self.needs, Need())
        counts = self._counts

        def rows(log2_row: int) -> int:
            size = 1 << log2_row
            arrays = sum(-(-length // size) for length in layout.arrays.values())
            pads = 3 * -(-need.triples // size) + -(-need.free // size)
            return layout.h * -(-layout.depth // size) + arrays + field.DEGREE * pads

        return Shape(layout, need, choose_parameters(counts, rows))

    @cached_property
    def memory_bytes(self) -> int:
        """Estimate of what the prover's process needs at its peak, in bytes: the witness and its largest node."""
        layout, shapes = self.layout, self.network.shapes
        entries = [prod(shape) * layout.h for shape in shapes]
        witness = 4 * layout.depth * layout.h + 12 * sum(entries[1:])
        evaluation = 24 * max(entries)
        tree = _TREE_BYTES * max(prod(layers.tree_shape(layout, index)[0]) for index in range(self.forks))
        block = max(ligero.BLOCK_BYTES, 4 * self.shape.columns * max(layout.h, self.shape.array_total))
        kept = min(ligero.KEPT_BYTES, 4 * self.shape.columns * self.shape.column_rows)
        codeword = 2 * min(block, 4 * self.shape.columns * self.shape.column_rows) + 400 * self.shape.columns
        return (_PROCESS_BYTES + witness + kept + max(evaluation, tree, codeword)) * 11 // 10

    @property
    def forks(self) -> int:
        """One per graph node, the input first, and one for the tables."""
        return len(self.network.nodes) + 2

    @cached_property
    def needs(self) -> list[Need]:
        return [layers.need(self.layout, index) for index in range(self.forks)]

    @cached_property
    def _counts(self) -> Counts:
        """What the ledger counts; `rows` is filled in for each row length."""
        layout, network = self.layout, self.network
        depths = tuple(
            len(lookup.variables(*layers.tree_shape(layout, index))) for index in range(self.forks)
        )
        edges = [edge for node in network.nodes for edge in node.edges]
        rounds = sum(lg(n) for edge in edges for n in network.shapes[edge.source])
        products = [k for k, node in enumerate(network.nodes, 1) if node.product]
        rounds += sum(lg(n) for k in products for n in (*network.shapes[k], layout.h))
        equations = sum(3 * depth + 5 for depth in depths) + len(edges) + 3 * len(products) + len(network.nodes) + 16
        output = 6 * (lg(network.classes) + lg(layout.h))
        plain = sum(depth for depth, node in zip(depths[1:], network.nodes[:-1], strict=False) if not node.shift)
        pixels = prod(1 << lg(n) for n in network.shape)
        return Counts(
            layout.lookups, layout.tables.size, depths, rounds, output + plain, equations, 1, 0, pixels)

    def ledger(self, interactive: bool = False) -> Ledger:
        """The error terms of this statement's argument."""
        return argument_ledger(replace(self._counts, rows=self.shape.rows), self.shape.parameters, interactive)


def _open_transcript(statement: Statement, channel: Channel) -> Transcript:
    channel.open()
    transcript = Transcript(VERSION, channel)
    transcript.absorb("statement", Public(statement.digest))
    transcript.absorb("vk", Public(statement.key.digest))
    transcript.absorb("owner", Public(statement.key.owner_public_key))
    transcript.absorb("network", Public(statement.network.digest))
    transcript.absorb("context", Public(statement.context.to_bytes()))
    return transcript


def _replay(
    parts: Sequence[Fork], messages: Sequence[MaskedElements], context: NodeContext
) -> tuple[list[Party], list[Wire]]:
    """The verifier's side of all forks, and the sums of their trees."""
    parties = [fork.party(messages=given) for fork, given in zip(parts, messages, strict=True)]
    sums = [layers.run(party, context, index) for index, party in enumerate(parties)]
    for party in parties:
        party.finish()
    return parties, sums


def _join(transcript: Transcript, parties: list[Party], sums: list[Wire]) -> System:
    """Absorb all forks; the sums of the lookup trees add up to the tables'."""
    for party in parties:
        transcript.absorb("fork", Public(party.transcript.digest()))
    balance = Form()
    for wire in sums[:-1]:
        balance.add(wire, field.ONE)
    balance.add(sums[-1], field.neg(field.ONE))
    system = System()
    system.append(balance)
    return system


# --- the prover -----------------------------------------------------------------------------------


def prove(
    statement: Statement, marking_key: MarkingKey, channel: Channel | None = None, *,
    progress: Progress | None = None, cancelled: Callable[[], bool] | None = None, engine: Engine | None = None,
    device: str = "cpu",
) -> bytes:
    """The proof of a true statement, on the device of that name (`protocol.kernels.on`).

    `engine` proves the forks elsewhere, in the Fiat-Shamir channel only.

    Raises VerificationError("prove.matches") when fewer than k_min hidden triggers match, without saying how many;
    ParameterError when the marking key is another key's, or where memory runs out; Cancelled; Restart, only in the
    interactive channel.
    """
    if marking_key.vk.digest != statement.key.digest:
        raise ParameterError("the marking key does not belong to this verification key")
    channel = channel or FiatShamir()
    if engine is not None and channel.interactive:
        raise ParameterError("forks that are proven elsewhere cannot ask the verifier for coins")

    def report(phase: str, fraction: float) -> None:
        if cancelled is not None and cancelled():
            raise Cancelled
        if progress is not None:
            progress(phase, fraction)

    with kernels.on(device).bounded():
        return _prove(statement, marking_key, channel, report, engine, device)


def _prove(
    statement: Statement, key: MarkingKey, channel: Channel, report: Progress, engine: Engine | None, device: str
) -> bytes:
    report("evaluate", 0.0)
    forward = statement.network.forward(np.ascontiguousarray(key.hidden_images), device)
    if int(witness.matches(forward, key.hidden_labels).sum()) < statement.k_min:
        raise VerificationError("prove.matches", "this network does not match enough of the key's triggers")
    for _ in range(SESSIONS):
        try:
            body = _session(statement, key, forward, channel, report, engine, device)
        except Restart:
            if channel.interactive:
                raise
            continue
        digest = hashlib.sha256(statement.digest + body).digest()
        return body + identity.sign(key.owner_secret_seed, SIGNATURE_LABEL, digest)
    raise RuntimeError(f"{SESSIONS} sessions were all rejected: the randomness of this machine is broken")


def _session(
    statement: Statement, key: MarkingKey, forward: Forward, channel: Channel, report: Progress, engine: Engine | None,
    device: str,
) -> bytes:
    """One attempt, with fresh randomness."""
    layout, shape = statement.layout, statement.shape
    seed = SHAKE256.new(b"zkmark/prover\0" + os.urandom(64) + key.to_bytes() + statement.digest).read(64)
    expander = ligero.Expander(seed[:32])
    masks = link.Masks.draw(layout, ligero.Expander(seed[32:]).bytes)
    values = witness.build(layout, forward, key.hidden_labels, masks.residues())
    pads = _draw_pads(statement, expander)
    report("commit", 0.05)
    committed = ligero.Committed(shape, values.images, values.arrays, pads, expander)
    link_commitments = masks.message()

    transcript = _open_transcript(statement, channel)
    out = Messages()
    out.send(committed.root)
    out.send(link_commitments)
    transcript.absorb("root", committed.root)
    transcript.absorb("link.commitments", link_commitments)
    alpha, beta = transcript.challenge("alpha"), transcript.challenge("beta")
    gamma = link.draw_challenge(layout, transcript)
    answer = link.answer(layout, key, masks, gamma)
    if answer is None:
        raise Restart
    out.send(answer.to_bytes(layout))
    transcript.absorb("link.answer", answer.to_bytes(layout))
    systems = [link.equations(layout, key.vk, gamma, answer, transcript)]

    parts = forks(statement.needs, shape.need.triples, transcript)
    if engine is None:
        parties = [fork.party(pads=pads) for fork in parts]
        context, sums = NodeContext(layout, alpha, beta, values, device), []
        weight = [layers.work(layout, index) for index in range(statement.forks)]
        for index, party in enumerate(parties):
            report("nodes", 0.25 + 0.6 * sum(weight[:index]) / sum(weight))
            sums.append(layers.run(party, context, index))
            out.send_elements(party.finish())
    else:
        tasks = [(fork, values.part(layout, fork.index)) for fork in parts]
        shared = Shared(layout, alpha, beta, pads, device)
        found = engine(shared, tasks, lambda share: report("nodes", 0.25 + 0.6 * share))
        for fork in parts:
            out.send_elements(found[fork.index])
        parties, sums = _replay(parts, [found[fork.index] for fork in parts], NodeContext(layout, alpha, beta, None))
    systems += [party.system for party in parties]
    systems.append(_join(transcript, parties, sums))
    report("open", 0.85)
    ligero.prove(committed, systems, transcript, out, lambda fraction: report("open", 0.85 + 0.15 * fraction))
    report("done", 1.0)
    return MAGIC + out.to_bytes()


def _draw_pads(statement: Statement, expander: ligero.Expander) -> Vector:
    """Uniform pads; those of triples that copy others, and all product pads, are set accordingly."""
    need = statement.shape.need
    pads, t = expander.vector(statement.shape.pad_count), need.triples
    first = 0
    for index, part in enumerate(statement.needs):
        for copy, x, y in lookup.copied_triples(*layers.tree_shape(statement.layout, index)):
            pads[:, first + copy] = pads[:, t + first + x]
            pads[:, t + first + copy] = pads[:, t + first + y]
        first += part.triples
    pads[:, 2 * t : 3 * t] = field.mul(pads[:, :t], pads[:, t : 2 * t])
    return pads


# --- the verifier ---------------------------------------------------------------------------------


def verify(
    statement: Statement, proof: bytes, channel: Channel | None = None, *,
    entropy: Callable[[int], bytes] = os.urandom,
) -> Ledger:
    """Check a proof of `statement`; returns the ledger of its soundness errors.

    Checks, in this order: owner.signature, link.range, link.opening, quadratic.zero, linear.sum, merkle.path,
    proximity.columns, linear.columns, quadratic.columns, channel.* in the interactive channel.
    Raises DecodingError for bytes that are no proof for a statement of this size, VerificationError otherwise.
    Left to the caller: that vk passes `keygen.check_key`, that the network is the suspect's, and the policy (k_min).
    """
    channel = channel or FiatShamir()
    layout, shape = statement.layout, statement.shape
    ledger = statement.ledger(channel.interactive)
    if len(proof) > MAX_PROOF_BYTES:
        raise Reader(b"", "proof").fail("too large")
    reader = Reader(proof, "proof")
    reader.magic(MAGIC)
    if reader.remaining < identity.SIGNATURE_BYTES:
        raise reader.fail("truncated")
    body, signature = proof[: -identity.SIGNATURE_BYTES], proof[-identity.SIGNATURE_BYTES :]
    identity.check_signature(
        statement.key.owner_public_key, SIGNATURE_LABEL, hashlib.sha256(statement.digest + body).digest(), signature,
        "owner.signature",
    )
    root = Public(reader.raw(32))
    link_commitments = [reader.raw(POINT_BYTES) for _ in range(2 * LINK_REPETITIONS)]
    answer_bytes = Public(reader.raw(link.answer_bytes(layout)))
    messages = [MaskedElements(field.from_bytes(reader.raw(need.sent * field.ELEMENT_BYTES)))
                for need in statement.needs]  # fmt: skip

    transcript = _open_transcript(statement, channel)
    transcript.absorb("root", root)
    transcript.absorb("link.commitments", Public(b"".join(link_commitments)))
    alpha, beta = transcript.challenge("alpha"), transcript.challenge("beta")
    gamma = link.draw_challenge(layout, transcript)
    answer = link.Answer.read(Reader(answer_bytes, "proof"), layout)
    transcript.absorb("link.answer", answer_bytes)
    with ThreadPoolExecutor(1) as pool:
        # In the group and elsewhere at once.  Its checks are the first all the same: their error replaces another.
        opened = pool.submit(link.check_group, layout, statement.key, link_commitments, gamma, answer, entropy)
        try:
            systems = [link.equations(layout, statement.key, gamma, answer, transcript)]
            context = NodeContext(layout, alpha, beta, None)
            parts = forks(statement.needs, shape.need.triples, transcript)
            parties, sums = _replay(parts, messages, context)
            systems += [party.system for party in parties]
            systems.append(_join(transcript, parties, sums))
            ligero.verify(shape, root, systems, transcript, reader)
        finally:
            opened.result()
    reader.raw(identity.SIGNATURE_BYTES)
    reader.done()
    channel.close()
    return ledger

"""What strangers can send, as fuzz targets: bytes in, and one of the package's own errors out, or nothing.

A target fails by any other exception, by a value that does not encode back to the bytes it came from, by a proof or key
that is accepted although it was changed, by more than SECONDS of time or BYTES of memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from google.protobuf.message import DecodeError

from ml.inputs import image_folder, labeled_images, read_derivation
from ml.quantise import Derivation, derive
from protocol import argument, field, identity, link
from protocol.anchor import Anchor
from protocol.argument import Context
from protocol.claim import Claim
from protocol.cosignature import WitnessKey, cosign
from protocol.errors import DecodingError, ParameterError
from protocol.group import POINT_BYTES
from protocol.history import last_seen
from protocol.keygen import MarkingKey, Openings, PendingKey, VerificationKey, check_key
from protocol.log import (
    Checkpoint,
    Entry,
    EntryKind,
    LogKey,
    leaf_hash,
    node_hash,
    open_checkpoint,
    sign_checkpoint,
)
from protocol.network import Network
from protocol.timestamp import check_timestamp, query
from prover import keys
from prover.board import anchor
from prover.witness import Witness
from tests.fuzz.base import (
    ALLOWED,
    LOG,
    LOG_SEED,
    ROOT,
    SECRET,
    WITNESS,
    Failure,
    Target,
    models,
    mutated,
    mutated_model,
    pictures,
    world,
)
from tests.fuzz.service import (
    answers,
    answers_about_a_job,
    call_board,
    call_service,
    calls,
    collect_claim,
    collect_job,
    mutated_frames,
    requests,
)
from tests.service.test_timestamp import DATA, DIGEST, Authority
from verifier.batch import read_list
from verifier.board import Board, find
from verifier.review import Judgment, Review, sign_review
from zkmark.v1 import zkmark_pb2 as pb


def decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    """Decodes, and encodes again."""

    def run(data: bytes) -> None:
        if decode(data).to_bytes() != data:
            raise Failure("decoded bytes encode to others")

    return run


def check_verification_key(data: bytes) -> None:
    key = VerificationKey.from_bytes(data)
    if key.to_bytes() != data:
        raise Failure("decoded bytes encode to others")
    check_key(key)
    if data not in verification_keys():
        raise Failure("a changed key was accepted")


@cache
def verification_keys() -> tuple[bytes, ...]:
    """That of the frozen statement, and the true ones of keys.json: both label rules, with and without an anchor."""
    frozen = json.loads((ROOT / "tests" / "vectors" / "keys.json").read_text())
    true = (bytes.fromhex(case["bytes"]) for case in frozen if case["outcome"] == "true")
    return (world()[0].key.to_bytes(), *true)


def pending_key() -> bytes:
    """The frozen marking key as it was before its coin fell."""
    key = world()[1]
    blank = Openings(key.images[:0], key.shares[:0], (), ())
    return PendingKey(replace(key, vk=replace(key.vk, openings=blank, signature=bytes(64)))).to_bytes()


def signed(body: bytes) -> bytes:
    statement, key, _ = world()
    digest = hashlib.sha256(statement.digest + body).digest()
    return body + identity.sign(key.owner_secret_seed, argument.SIGNATURE_LABEL, digest)


def verify_signed(data: bytes) -> None:
    """The body of a proof, signed by a cheating owner."""
    statement, _, proof = world()
    argument.verify(statement, signed(data))
    if data != proof[: -identity.SIGNATURE_BYTES]:
        raise Failure("a changed proof was accepted")


def verify_words(data: bytes) -> None:
    """The same with all messages, polynomials and columns made canonical, so that the arithmetic is reached."""
    statement = world()[0]
    shape, needs = statement.shape, statement.needs
    start = len(argument.MAGIC) + 32 + 10 * POINT_BYTES + link.answer_bytes(statement.layout)
    count = 5 * (sum(need.sent for need in needs) + sum(shape.blinding)) + shape.queries * shape.column_rows
    words = np.frombuffer(data[start : start + min(4 * count, (len(data) - start) // 4 * 4)], "<u4")
    verify_signed(data[:start] + (words % field.P).astype("<u4").tobytes() + data[start + 4 * len(words) :])


def verify_unsigned(data: bytes) -> None:
    argument.verify(world()[0], data)
    if data != world()[2]:
        raise Failure("a changed proof was accepted")


def derive_model(data: bytes) -> None:
    network = derive(data).network
    if Network.from_bytes(network.to_bytes()).digest != network.digest:
        raise Failure("a derived network does not encode")
    network.forward(np.zeros((1, *network.shape), np.uint8))


ANCHOR = Anchor(LOG, 5, 1, (bytes(32),) * 3, 9, bytes(32), bytes(64))
NOTE = sign_checkpoint(LOG_SEED, Checkpoint(LOG.name, 9, bytes(range(32))))
LOG_ENTRIES = (Entry(EntryKind.KEY, bytes(32), bytes(32), 1).to_bytes(),
               Entry(EntryKind.COMMITMENTS, bytes(32), b"", 1).to_bytes())  # fmt: skip


def read_note(data: bytes) -> None:
    """A signed checkpoint.  Lines of others may stand beside the log's, and nothing else may change."""
    text = utf8(data)
    if open_checkpoint(text, LOG) != open_checkpoint(NOTE, LOG):
        raise Failure("a changed checkpoint was accepted")


def read_witness_key(data: bytes) -> None:
    if WitnessKey.from_text(utf8(data)).to_text() != utf8(data):
        raise Failure("a key of a witness has two texts")


def read_log_key(data: bytes) -> None:
    text = utf8(data)
    if LogKey.from_text(text).to_text() != text:
        raise Failure("decoded text encodes to another")


@cache
def receipt() -> pb.Receipt:
    """Of the frozen key, the first of two entries, with a witness."""
    vk = world()[0].key
    entry = Entry(EntryKind.KEY, vk.digest, vk.owner_public_key, 1).to_bytes()
    leaves = leaf_hash(entry), leaf_hash(LOG_ENTRIES[1])
    checkpoint = Checkpoint(LOG.name, 2, node_hash(*leaves))
    note = sign_checkpoint(LOG_SEED, checkpoint)
    signed_note = pb.SignedCheckpoint(note=note, consistency=[leaves[1]])  # from the first entry on
    witnessed = pb.Witnessed(note=note, path=[leaves[1]], witnesses=[WITNESS.public],
                             signature=cosign(LOG_SEED, LOG, checkpoint))  # fmt: skip
    return pb.Receipt(entry=entry, index=0, path=[leaves[1]], checkpoint=signed_note, witnessed=witnessed)


def first() -> Checkpoint:
    """Of that log, when it had one entry: what is remembered."""
    vk = world()[0].key
    entry = Entry(EntryKind.KEY, vk.digest, vk.owner_public_key, 1)
    return Checkpoint(LOG.name, 1, leaf_hash(entry.to_bytes()))


def sign_offer(data: bytes) -> None:
    """What a lying board offers to a witness who remembers the first checkpoint."""
    try:
        answer = pb.SignedCheckpoint.FromString(data)
    except DecodeError:
        raise DecodingError("not an offer") from None
    board = SimpleNamespace(Offer=lambda *_, **__: answer, AddCosignature=lambda *_, **__: None)
    asked = mock.patch("prover.witness.ask", lambda target, call, *_: call(board))
    with tempfile.TemporaryDirectory() as folder, asked:
        (seen := Path(folder, "seen")).write_text(sign_checkpoint(LOG_SEED, first()))
        signed = Witness(WITNESS.public, LOG_SEED, seen).sign_next("", LOG)
        if signed not in (first(), open_checkpoint(receipt().checkpoint.note, LOG)) or last_seen(seen, LOG) != signed:
            raise Failure("another history was signed")


def anchored() -> pb.Receipt:
    """What an honest board says about the commitments of bytes(32)."""
    entry = Entry(EntryKind.COMMITMENTS, bytes(32), b"", 1).to_bytes()
    leaves = leaf_hash(entry), leaf_hash(LOG_ENTRIES[1])
    note = sign_checkpoint(LOG_SEED, Checkpoint(LOG.name, 2, node_hash(*leaves)))
    return pb.Receipt(entry=entry, index=0, path=[leaves[1]], checkpoint=pb.SignedCheckpoint(note=note))


def read_anchor(data: bytes) -> None:
    """What a lying board says about commitments."""

    def found(answer: pb.Receipt) -> Anchor:
        with mock.patch("prover.board.ask", lambda *_: answer):
            return anchor("", LOG, bytes(32))

    try:
        answer = pb.Receipt.FromString(data)
    except DecodeError:
        raise DecodingError("not a receipt") from None
    if found(answer) != found(anchored()):
        raise Failure("a changed anchor was accepted")


def read_receipt(data: bytes) -> None:
    """What a lying board says about a key."""
    try:
        answer = pb.Receipt.FromString(data)
    except DecodeError:
        raise DecodingError("not a receipt") from None
    asked = Board("", LOG, (WITNESS,), 1)
    with tempfile.TemporaryDirectory() as folder, mock.patch("verifier.board._ask", lambda *_: answer):
        (seen := Path(folder, "seen")).write_text(sign_checkpoint(LOG_SEED, first()))
        found = find(asked, world()[0].key, seen)
    if found.entry.to_bytes() != receipt().entry:
        raise Failure("a changed receipt was accepted")


@cache
def authority() -> Authority:
    return Authority.make(Path(tempfile.mkdtemp()) / "authority")


@cache
def stamped() -> bytes:
    return authority().answer(query(DATA).request)


def read_timestamp(data: bytes) -> None:
    if check_timestamp(data, authority().roots, DIGEST) != check_timestamp(stamped(), authority().roots, DIGEST):
        raise Failure("a changed time-stamp was accepted")


CASES = (b'owner = "00"\n[[case]]\nvk = "a.vk"\nmodel = "b.onnx"\nproof = "c.proof"\nname = "first"\n'
         b'[[case]]\nvk = "a.vk"\nmodel = "d.onnx"\nwithout_fidelity = true\n',
         b"name,vk,model,nonce\nx,a.vk,b.onnx," + b"00" * 32 + b"\ny,a.vk,c.onnx,\n")  # fmt: skip


def read_cases(data: bytes) -> None:
    """A list of cases, in both of its forms."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("list.toml", "list.csv"):
            Path(folder, name).write_bytes(data)
            with contextlib.suppress(DecodingError, ParameterError):
                read_list(Path(folder, name))


def utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise DecodingError("not UTF-8") from None


def read_review(data: bytes) -> None:
    review = Review.from_bytes(data)
    if review.to_bytes() != data:
        raise Failure("decoded bytes encode to others")
    review.check(world()[0].key)
    if data != reviewed():
        raise Failure("a changed review was accepted")


@cache
def reviewed() -> bytes:
    key = world()[0].key
    return sign_review(LOG_SEED, key, (Judgment.WRONG, Judgment.NO_OBJECT) * (len(key.opened) // 2)
                       + (Judgment.WRONG,) * (len(key.opened) % 2)).to_bytes()  # fmt: skip


def open_owner_file(data: bytes) -> None:
    keys._open(data, SECRET)


def read_images(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "image").write_bytes(data)
        image_folder(folder, (1, 4, 4))


def read_label_table(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("0.png", "1.png"):
            Path(folder, name).write_bytes(pictures()[0])
        Path(folder, "labels.csv").write_bytes(data)
        with contextlib.suppress(OSError):  # another name in the table, or one that is too long
            labeled_images(Path(folder, "labels.csv"), folder, (1, 4, 4))


def read_preprocessing(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        read_derivation(None, Path(file.name), (1, 4, 4))


@cache
def targets() -> dict[str, Target]:
    """All targets by name."""
    statement, key, proof = world()
    body = proof[: -identity.SIGNATURE_BYTES]
    claim = Claim(statement.k_min, statement.context, (bytes(32),) * 4, b"proof").to_bytes()
    derivations = (Derivation().to_bytes(), Derivation(bytes(32), ((0.5, 1.0),), (3, 1), 18).to_bytes())
    log2_n, keys.LOG2_N = keys.LOG2_N, keys.LOG2_N_RANGE.start
    sealed = keys._seal(key, keys.Approvals(64, {bytes(32): 70}), SECRET)
    keys.LOG2_N = log2_n
    several = [
        Target("context", decoder(Context.from_bytes), (statement.context.to_bytes(),), mutated, examples=300),
        Target("claim", decoder(Claim.from_bytes), (claim,), mutated, examples=300),
        Target("derivation", decoder(Derivation.from_bytes), derivations, mutated, examples=300),
        Target("network", decoder(Network.from_bytes), (statement.network.to_bytes(),), mutated, examples=150),
        Target("key", check_verification_key, verification_keys(), mutated, examples=60),
        Target("pending-key", decoder(PendingKey.from_bytes), (pending_key(),), mutated, examples=60),
        Target("marking-key", decoder(MarkingKey.from_bytes), (key.to_bytes(),), mutated, examples=60),
        Target("review", read_review, (reviewed(),), mutated, examples=100),
        Target("log-entry", decoder(Entry.from_bytes), LOG_ENTRIES, mutated),
        Target("anchor", decoder(Anchor.from_bytes), (ANCHOR.to_bytes(),), mutated),
        Target("log-note", read_note, (NOTE.encode(),), mutated, examples=200),
        Target("log-key", read_log_key, (LOG.to_text().encode(),), mutated, examples=200),
        Target("witness-key", read_witness_key, (WITNESS.to_text().encode(),), mutated, examples=200),
        Target("anchor-answer", read_anchor, (anchored().SerializeToString(),), mutated, examples=100),
        Target("offer", sign_offer, (receipt().checkpoint.SerializeToString(),), mutated, examples=100),
        Target("receipt", read_receipt, (receipt().SerializeToString(),), mutated, examples=60),
        Target("timestamp", read_timestamp, (stamped(),), mutated, examples=100),
        Target("cases", read_cases, CASES, mutated, examples=200),
        Target("owner-file", open_owner_file, (sealed,), mutated, examples=30),
        Target("proof", verify_unsigned, (proof,), mutated, examples=40),
        Target("signed-proof", verify_signed, (body,), mutated, examples=100),
        Target("proof-words", verify_words, (body,), mutated, examples=100),
        Target("model", derive_model, models(), mutated_model, examples=400),
        Target("images", read_images, pictures(), mutated, examples=150),
        Target("label-table", read_label_table, (b"file,label\n1.png,3\n0.png,0\n",), mutated, examples=200),
        Target("preprocessing", read_preprocessing,
               (b'{"scale": [0.5], "shift": [-1e3], "outputs": [2, 0]}', b"{}"), mutated, examples=200),
        Target("service", call_service, requests(), mutated_frames(), examples=150),
        Target("board", call_board, calls(), mutated_frames(1), examples=100),
        Target("client", collect_claim, answers(), mutated_frames(), (*ALLOWED, ConnectionError), examples=80),
        Target("client-job", collect_job, answers_about_a_job(), mutated_frames(), (*ALLOWED, ConnectionError),
               examples=40),
    ]  # fmt: skip
    return {target.name: target for target in several}

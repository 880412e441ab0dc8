"""What strangers can send, as fuzz targets: bytes in, and one of the package's own errors out, or nothing.

A target fails by any other exception, by a value that does not encode back to the bytes it came from, by a proof or key
that is accepted although it was changed, by more than SECONDS of time or BYTES of memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import io
import json
import resource
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import grpc
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from PIL import Image

from ml.inputs import image_folder, labeled_images, read_derivation
from ml.onnx_reader import SUPPORTED
from ml.quantise import Derivation, derive
from protocol import argument, field, identity, link
from protocol.anchor import Anchor
from protocol.argument import Context, Statement
from protocol.claim import Claim
from protocol.cosignature import WitnessKey, cosign
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.group import POINT_BYTES
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
from prover import board, keys
from prover.jobs import Prover
from prover.log import open_log
from prover.server import Limits, Server
from tests.service.conftest import memorize, two_layers
from tests.service.test_timestamp import DATA, DIGEST, Authority
from verifier.batch import read_list
from verifier.board import Board, find
from verifier.check import Subject
from verifier.client import Remote
from verifier.interactive import obtain_interactively
from verifier.review import Judgment, Review, sign_review
from zkmark.v1 import zkmark_pb2 as pb

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).with_name("corpus")
SECRET = b"a passphrase"
ALLOWED = (DecodingError, VerificationError, ParameterError)
SECONDS, BYTES = 30.0, 1 << 30  # of one input; of the processor, since the machine may be busy


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class Failure(AssertionError):
    """A target misbehaved."""


@dataclass(frozen=True)
class Target:
    """run raises one of `allowed`, or returns; seeds are good inputs; mutate makes bad ones of them."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    mutate: Callable[[Random, tuple[bytes, ...]], bytes]
    allowed: tuple[type[Exception], ...] = ALLOWED
    examples: int = 100  # in a bounded run

    def __call__(self, data: bytes) -> bool:
        """Whether the input was taken.  Raises Failure."""
        started, before, taken = time.process_time(), peak(), True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)  # numpy's, of arithmetic that nobody foresaw
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of a header; the size is compared
                self.run(data)
        except self.allowed:
            taken = False
        except Failure:
            raise
        except BaseException as error:
            raise Failure(f"{self.name}: {error!r}") from error
        if time.process_time() - started > SECONDS:
            raise Failure(f"{self.name}: {time.process_time() - started:.0f} s")
        if peak() - before > BYTES:
            raise Failure(f"{self.name}: {(peak() - before) >> 20} MiB")
        return taken

    def corpus(self) -> list[bytes]:
        """Inputs that once were of interest."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).glob("*"))]


# Mutation

NUMBERS = (0, 1, 2, 127, 255, 256, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, field.P, field.P - 1, 1 << 62,
           (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip


def mutated(random: Random, seeds: tuple[bytes, ...]) -> bytes:
    """A seed with one to five changes: bits, bytes, integers of 4 or 8 bytes, spans cut, doubled, moved, spliced."""
    data = bytearray(random.choice(seeds))
    for _ in range(random.randint(1, 5)):
        at, span = random.randint(0, len(data)), random.randint(1, 64)
        kind = random.randint(0, 7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random.randint(0, 7)
        elif kind == 1:
            data[at : at + 1] = bytes([random.randint(0, 255)])
        elif kind in (2, 3):
            width = 4 if kind == 2 else 8
            data[at : at + width] = (random.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
        elif kind == 4:
            del data[at : at + span]
        elif kind == 5:
            data[at:at] = data[at : at + span]
        elif kind == 6:
            other = random.choice(seeds)
            data[at:] = other[random.randint(0, len(other)) :]
        else:
            data[at:at] = bytes(random.randint(0, 255) for _ in range(span % 9))
    return bytes(data)


def mutated_model(random: Random, seeds: tuple[bytes, ...]) -> bytes:
    """An ONNX model with one to three changes of its graph; now and then of its bytes."""
    if random.randint(0, 3) == 0:
        return mutated(random, seeds)
    try:
        model = onnx.ModelProto.FromString(random.choice(seeds))
    except DecodeError:
        return mutated(random, seeds)
    graph = model.graph
    for _ in range(random.randint(1, 3)):
        names = [name for node in graph.node for name in (*node.input, *node.output)] or [""]
        node = random.choice(graph.node) if graph.node else graph.node.add()
        kind = random.randint(0, 11)
        if kind == 0:
            node.op_type = random.choice([*sorted(SUPPORTED), "If", "Loop", "Cast", "", "MatMul\0"])
        elif kind == 1 and node.input:
            node.input[random.randint(0, len(node.input) - 1)] = random.choice([*names, "nowhere", ""])
        elif kind == 2:
            graph.node.add().CopyFrom(node)
        elif kind == 3 and graph.node:
            del graph.node[random.randint(0, len(graph.node) - 1)]
        elif kind == 4:
            numbers = [random.choice([*NUMBERS[:-2], -1]) for _ in range(random.randint(0, 4))]
            name = random.choice(["axis", "axes", "kernel_shape", "pads", "strides", "dilations", "group", "transB",
                                  "alpha", "value", "auto_pad", "ceil_mode", "keepdims", "body"])  # fmt: skip
            value: Any = random.choice([numbers, 1.5, float("nan"), "SAME_UPPER", 0, graph])
            with contextlib.suppress(ValueError, TypeError):
                node.attribute.append(onnx.helper.make_attribute(name, value))
        elif kind in (5, 6, 7) and graph.initializer:
            tensor = random.choice(graph.initializer)
            if kind == 5 and tensor.dims:
                tensor.dims[random.randint(0, len(tensor.dims) - 1)] = random.choice([*NUMBERS[:-2], -1])
            elif kind == 6:
                raw = bytearray(tensor.raw_data)
                value = random.choice([np.nan, np.inf, 1e38, -1e38, 1e-42, 0.0])
                at = random.randint(0, max(len(raw) - 4, 0)) // 4 * 4
                raw[at : at + 4] = np.float32(value).tobytes()
                tensor.raw_data = bytes(raw[: len(raw) - random.choice([0, 0, 1, 4])])
            else:
                tensor.data_type = random.randint(0, 24)
        elif kind == 8 and graph.input:
            dims = graph.input[0].type.tensor_type.shape.dim
            if dims:
                random.choice(dims).dim_value = random.choice([*NUMBERS[:-2], -1])
        elif kind == 9 and model.opset_import:
            model.opset_import[0].version = random.choice([1, 12, 13, 17, 22, 99])
        elif kind == 10 and graph.initializer:
            tensor = random.choice(graph.initializer)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", "/etc/hostname"
        elif graph.node:
            order = list(graph.node)
            random.shuffle(order)
            del graph.node[:]
            graph.node.extend(order)
    return bytes(model.SerializeToString())


# Good inputs


@cache
def world() -> tuple[Statement, MarkingKey, bytes]:
    """The frozen statement, its marking key, and the frozen proof."""
    path = ROOT / "tests" / "vectors" / "generate.py"
    spec = importlib.util.spec_from_file_location("vectors_generate", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    statement, key = module.statement_and_key()
    frozen, proof, _ = module.load()
    if frozen.digest != statement.digest:
        raise RuntimeError("the vectors are of another statement")
    return frozen, key, proof


@cache
def models() -> tuple[bytes, ...]:
    """ONNX: two dense layers; convolution, batch normalization, pools and a shortcut."""
    key = world()[1]
    rng = np.random.default_rng(1)
    constants = {
        "w": rng.normal(size=(4, 1, 3, 3)), "scale": np.ones(4), "shift": np.zeros(4), "mean": np.zeros(4),
        "variance": np.ones(4), "head": rng.normal(size=(10, 4)), "bias": np.zeros(10),
    }  # fmt: skip
    make = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            make("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1]),
            make("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["n"]),
            make("Relu", ["n"], ["r"]), make("Sigmoid", ["r"], ["s"]), make("Mul", ["r", "s"], ["m"]),
            make("Add", ["m", "r"], ["a"]), make("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            make("GlobalAveragePool", ["p"], ["g"]), make("Flatten", ["g"], ["f"]),
            make("Gemm", ["f", "head", "bias"], ["logits"], transB=1),
        ],
        "small", [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 1, 4, 4])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 10])],
        [onnx.numpy_helper.from_array(a.astype(np.float32), name) for name, a in constants.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    return two_layers(*memorize(key.hidden_images, key.hidden_labels, 1)), bytes(model.SerializeToString())


def pictures() -> tuple[bytes, ...]:
    out = []
    for kind in ("PNG", "BMP", "PPM", "GIF", "JPEG"):
        file = io.BytesIO()
        Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) * 16).save(file, kind)
        out.append(file.getvalue())
    return tuple(out)


# Targets


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


LOG_SEED = bytes(range(32))
WITNESS = WitnessKey.of("witness.example", LOG_SEED)
LOG = LogKey("log.example/keys", identity.public_key(LOG_SEED))
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
    signed_note = pb.SignedCheckpoint(note=note)
    witnessed = pb.Witnessed(note=note, path=[leaves[1]], witnesses=[WITNESS.public],
                             signature=cosign(LOG_SEED, LOG, checkpoint))  # fmt: skip
    return pb.Receipt(entry=entry, index=0, path=[leaves[1]], checkpoint=signed_note, witnessed=witnessed)


def read_receipt(data: bytes) -> None:
    """What a lying board says about a key."""
    try:
        answer = pb.Receipt.FromString(data)
    except DecodeError:
        raise DecodingError("not a receipt") from None
    asked = Board("", LOG, (WITNESS,), 1)
    with tempfile.TemporaryDirectory() as folder, mock.patch("verifier.board._ask", lambda *_: answer):
        found = find(asked, world()[0].key, Path(folder, "seen"))
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


# The service, by raw bytes: messages are framed by two bytes of length


def frames(data: bytes) -> list[bytes]:
    out, at = [], 0
    while at + 2 <= len(data) and len(out) < 20:
        size = int.from_bytes(data[at : at + 2], "little")
        out.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return out


def framed(messages: list[bytes]) -> bytes:
    return b"".join(len(m).to_bytes(2, "little") + m for m in messages)


ALIVE: list[Any] = []  # servers stop when they are collected


def serving(make: Callable[[], Any]) -> str:
    """HOST:PORT of a server in a thread, for as long as the process lives."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def start() -> int:
        running = make()
        await running.start()
        ALIVE.append(running)
        return int(running.port)

    return f"127.0.0.1:{asyncio.run_coroutine_threadsafe(start(), loop).result(30)}"


@cache
def server() -> str:
    """HOST:PORT of a real prover."""
    folder = Path(tempfile.mkdtemp())
    with contextlib.ExitStack() as stack:
        log2_n, keys.LOG2_N = keys.LOG2_N, keys.LOG2_N_RANGE.start
        stack.callback(setattr, keys, "LOG2_N", log2_n)
        keys.save_marking_key(folder / "owner.mk", world()[1], SECRET)
    prover = Prover(folder / "owner.mk", SECRET)
    limits = Limits(message_s=2.0, upload_s=5.0, coins_s=2.0, proof_s=20.0, per_minute=1e9, burst=10**9)
    return serving(lambda: Server(prover, "127.0.0.1:0", limits))


def requests() -> tuple[bytes, ...]:
    key, (model, small) = world()[1], models()

    def one(model: bytes, interactive: bool) -> bytes:
        header = pb.ProveHeader(
            vk_digest=key.vk.digest, context=Context("", "", "", bytes(32)).to_bytes(),
            derivation=Derivation().to_bytes(), model_size=len(model), model_sha256=hashlib.sha256(model).digest(),
        )  # fmt: skip
        chunks = [pb.ProveRequest(model_chunk=model[at : at + 30000]) for at in range(0, len(model), 30000)]
        messages = [pb.ProveRequest(header=header), *chunks, *([pb.ProveRequest(coin=bytes(32))] * interactive)]
        return framed([message.SerializeToString() for message in messages])

    return one(small, False), one(small, True), one(model, False)


REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND,
}  # fmt: skip


def call_service(data: bytes) -> None:
    """The messages as an interactive session, as a job, and each as a request about a job."""
    sent = frames(data)
    with grpc.insecure_channel(server()) as channel:
        service = "/zkmark.v1.Prover/"
        calls = [
            lambda: list(channel.stream_stream(f"{service}Prove")(iter(sent), timeout=15)),
            lambda: channel.stream_unary(f"{service}Submit")(iter(sent), timeout=15),
            *(partial(channel.unary_unary(f"{service}Cancel"), message, timeout=15) for message in sent[:2]),
            *(lambda m=m, k=k: list(channel.unary_stream(service + k)(m, timeout=15))
              for m in sent[:2] for k in ("Follow", "Download")),
        ]  # fmt: skip
        for call in calls:
            try:
                call()
            except grpc.RpcError as error:
                if error.code() not in REFUSALS:
                    raise Failure(f"service: {error.code()} {error.details()}") from None
        data = b"".join(
            channel.unary_stream("/zkmark.v1.Prover/Key", lambda m: m, lambda m: pb.KeyChunk.FromString(m).data)(
                b"", timeout=15))  # it still serves
        if data != world()[1].vk.to_bytes():
            raise Failure("service: it sends another key")


@cache
def board_server() -> str:
    """HOST:PORT of a real board."""
    folder = Path(tempfile.mkdtemp())
    access = board.Access(writes_per_minute=1e9, witnesses=(WITNESS,))
    return serving(lambda: board.Server(open_log(folder / "board", LOG.name), "127.0.0.1:0", access))


BOARD = ("Publish", "Find", "Checkpoint", "Anchor", "Offer", "AddCosignature")


def calls() -> tuple[bytes, ...]:
    """A byte that names the method, then its requests."""
    vk = world()[0].key
    chunks = [pb.KeyChunk(data=part).SerializeToString() for part in (vk.to_bytes()[:9000], vk.to_bytes()[9000:])]
    find = pb.FindRequest(vk_digest=vk.digest, old_size=1, witnesses=[WITNESS.public], threshold=1)
    last, anchor = pb.CheckpointRequest(old_size=1), pb.AnchorRequest(digest=vk.digest)
    signed = pb.CosignatureRequest(size=1, witness=WITNESS.public, signature=WITNESS.possession)
    others = [find, last, anchor, last, signed]
    return b"\0" + framed(chunks), *(bytes([n + 1]) + framed([o.SerializeToString()]) for n, o in enumerate(others))


def call_board(data: bytes) -> None:
    method, messages = BOARD[(data or b"\0")[0] % len(BOARD)], frames(data[1:])
    with grpc.insecure_channel(board_server()) as channel:
        call: Any = channel.stream_unary if method == "Publish" else channel.unary_unary
        given = iter(messages) if method == "Publish" else (messages or [b""])[0]
        try:
            call(f"/zkmark.v1.Board/{method}", lambda m: m, lambda m: m)(given, timeout=15)
        except grpc.RpcError as error:
            if error.code() not in REFUSALS | {grpc.StatusCode.NOT_FOUND}:
                raise Failure(f"board: {error.code()} {error.details()}") from None


ANSWER: list[list[bytes]] = [[]]


@cache
def lying_server() -> str:
    """A prover that says ANSWER."""

    def prove(messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        yield from ANSWER[0]

    handler = grpc.stream_stream_rpc_method_handler(prove, lambda m: m, lambda m: m)
    running = grpc.server(ThreadPoolExecutor(4))
    running.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("zkmark.v1.Prover", {"Prove": handler}),))
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    ALIVE.append(running)
    return f"127.0.0.1:{port}"


def answers() -> tuple[bytes, ...]:
    data = b"claim"
    events = [
        pb.ProveEvent(queued=pb.Queued(ahead=1)), pb.ProveEvent(progress=pb.Progress(phase="x", fraction=0.5)),
        pb.ProveEvent(pending=bytes(range(32))),
        pb.ProveEvent(claim=pb.ClaimHeader(size=len(data), sha256=hashlib.sha256(data).digest())),
        pb.ProveEvent(claim_chunk=data), pb.ProveEvent(done=pb.Done()),
    ]  # fmt: skip
    plain = [event for event in events if not event.pending]
    return tuple(framed([event.SerializeToString() for event in some]) for some in (events, plain))


def collect_claim(data: bytes) -> None:
    ANSWER[0] = frames(data)
    subject = Subject(world()[0].key, b"model", Context("", "", "", bytes(32)))
    obtain_interactively(Remote(lying_server()), subject, timeout_s=15)


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
        Target("service", call_service, requests(), mutated, examples=150),
        Target("board", call_board, calls(), mutated, examples=100),
        Target("client", collect_claim, answers(), mutated, (*ALLOWED, ConnectionError), examples=80),
    ]  # fmt: skip
    return {target.name: target for target in several}

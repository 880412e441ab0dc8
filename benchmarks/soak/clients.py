"""What clients of the job service ask for, and a small owner whom they ask."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import onnx
from onnx import numpy_helper

from benchmarks.soak.servers import SECRET, WAIT_S
from ml.quantise import Derivation
from protocol.argument import Context
from zkmark.v1 import zkmark_pb2 as pb
from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

CHUNK = 1 << 20


@dataclass(frozen=True)
class World:
    """A folder with owner.mk, in which the network of `model` is approved.  vk_digest: of its key, 32 bytes."""

    folder: Path
    vk_digest: bytes
    model: bytes


def small_world(folder: Path) -> World:
    """An owner of a key for images of 12 x 12 and a small network."""
    from benchmarks.model import memorize
    from ml.triggers import abstract_images
    from protocol.keygen import KeyParameters, generate_key
    from prover import keys
    from prover.jobs import approve, subject

    keys.LOG2_N = keys.LOG2_N_RANGE.start  # a server that starts a thousand times spends little on the secret
    shape = (1, 12, 12)
    key = generate_key(KeyParameters(shape, 10, 160), abstract_images(160, shape))
    model = memorize(key, "mlp", 0.25)
    keys.save_marking_key(folder / "owner.mk", key, SECRET)
    approve(folder / "owner.mk", SECRET, subject(model, Derivation(), None, key.vk))
    return World(folder, key.vk.digest, model)


@dataclass(frozen=True)
class Kind:
    """A kind of model, and how a job about it ends."""

    make: Callable[[], bytes]
    ends: int
    share: float = 1.0


def kinds(model: bytes, fake: bool) -> list[Kind]:
    """The approved network in a file that the server knows, and in a new one; another network; and what is none.

    One that pretends to prove looks at no model.
    """
    known = Kind(lambda: model, pb.Job.DONE, 4)
    if fake:
        return [known]
    other = _other(model)
    return [
        known,
        Kind(lambda: _anew(model), pb.Job.DONE),
        Kind(lambda: other, pb.Job.FAILED),
        Kind(lambda: os.urandom(100), pb.Job.FAILED),
    ]


def _anew(model: bytes) -> bytes:
    """The same network, in a file that nobody has seen."""
    made = onnx.load_model_from_string(model)
    made.doc_string = os.urandom(16).hex()
    return bytes(made.SerializeToString())


def _other(model: bytes) -> bytes:
    """A network that nobody approved."""
    made = onnx.load_model_from_string(model)
    weight = next(tensor for tensor in made.graph.initializer if len(tensor.dims) == 2)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), weight.name))
    return bytes(made.SerializeToString())


class Asker:
    """One client: makes headers, and runs calls that wait for a server."""

    def __init__(self, world: World, target: str) -> None:
        self._world = world
        self.channel = grpc.insecure_channel(
            target, [("grpc.max_reconnect_backoff_ms", 100), ("grpc.use_local_subchannel_pool", 1)]
        )
        self.stub = pb_grpc.ProverStub(self.channel)

    def header(self, model: bytes | None = None) -> pb.ProveHeader:
        """For `model`, by default the approved one, and a nonce of its own."""
        model = self._world.model if model is None else model
        return pb.ProveHeader(
            vk_digest=self._world.vk_digest, context=Context("soak", "", "", os.urandom(32)).to_bytes(),
            derivation=Derivation().to_bytes(), model_size=len(model), model_sha256=hashlib.sha256(model).digest(),
        )  # fmt: skip

    def submit(self, header: pb.ProveHeader, model: bytes | None = None, pause_s: float = 0.0) -> pb.Job:
        """pause_s: in the middle of the model."""
        model = self._world.model if model is None else model
        return self.stub.Submit(_messages(header, model, pause_s), timeout=WAIT_S, wait_for_ready=True)

    def end(self, name: bytes) -> pb.Job:
        *_, last = self.stub.Follow(pb.JobRequest(id=name), timeout=WAIT_S, wait_for_ready=True)
        return last

    def cancel(self, name: bytes) -> pb.Job:
        return self.stub.Cancel(pb.JobRequest(id=name), timeout=WAIT_S, wait_for_ready=True)

    def download(self, name: bytes) -> bytes:
        request = pb.DownloadRequest(id=name)
        return b"".join(chunk.data for chunk in self.stub.Download(request, timeout=WAIT_S, wait_for_ready=True))

    def key_ms(self, count: int = 50) -> float:
        """Milliseconds of a small call, the median of some."""
        times = []
        for _ in range(count):
            began = time.perf_counter()
            b"".join(chunk.data for chunk in self.stub.Key(pb.KeyRequest(), timeout=WAIT_S))
            times.append(time.perf_counter() - began)
        return round(sorted(times)[count // 2] * 1000, 2)


def _messages(header: pb.ProveHeader, model: bytes, pause_s: float) -> Iterator[pb.SubmitRequest]:
    yield pb.SubmitRequest(header=header)
    size = min(CHUNK, -(-len(model) // 2))
    for at in range(0, len(model), size):
        if at:
            time.sleep(pause_s)
        yield pb.SubmitRequest(model_chunk=model[at : at + size])

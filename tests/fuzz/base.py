"""What a fuzz target is, how good inputs become bad ones, and the good inputs that many targets share."""

from __future__ import annotations

import contextlib
import io
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from PIL import Image

from ml.onnx_reader import SUPPORTED
from protocol import field, identity
from protocol.argument import Statement
from protocol.cosignature import WitnessKey
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.keygen import MarkingKey
from protocol.log import (
    LogKey,
)
from tests.service.conftest import memorize, two_layers
from tests.vectors.proof import load, statement_and_key

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).with_name("corpus")
SECRET = b"a passphrase"
ALLOWED = (DecodingError, VerificationError, ParameterError)
SECONDS, BYTES = 30.0, 1 << 30  # of one input; of the processor, since the machine may be busy


def peak() -> int:
    """The most memory that this process has held since `forget_peak`, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def forget_peak() -> None:
    """Count from what the process holds now: what one input took may be less than what an earlier one did."""
    with contextlib.suppress(OSError):  # on Linux; elsewhere only what exceeds all inputs before is seen
        Path("/proc/self/clear_refs").write_text("5")


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
        forget_peak()
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
        return _changed_model(random, onnx.ModelProto.FromString(random.choice(seeds)))
    except (DecodeError, UnicodeDecodeError):  # no model, or with names that are no text
        return mutated(random, seeds)


def _changed_model(random: Random, model: onnx.ModelProto) -> bytes:
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
    statement, key = statement_and_key()
    frozen, proof, _ = load()
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


LOG_SEED = bytes(range(32))
WITNESS = WitnessKey.of("witness.example", LOG_SEED)
LOG = LogKey("log.example/keys", identity.public_key(LOG_SEED))

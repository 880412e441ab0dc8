"""ONNX bytes -> the integer network that a proof is about.  Owner and verifier run this and must find the same bits.

bytes -> `onnx_reader` (strict graph) -> `lowering` (the same network in real numbers) -> `calibration` (images, unless
the verifier has its own) -> `integers` (scales and weights).  Needs numpy and onnx, not torch; onnxruntime only for
`fidelity`, which enters no digest and no proof.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from math import log2
from threading import Lock

import numpy as np
import numpy.typing as npt

from ml.calibration import noise_count, noise_images
from ml.integers import memory_bytes, to_integers
from ml.lowering import lower
from ml.onnx_reader import needed_only, read_model
from ml.real_network import RealNetwork, select_outputs
from ml.resampling import METHODS, resample, resizing
from protocol.encoding import Reader, Writer
from protocol.errors import DecodingError, ParameterError
from protocol.network import MAX_DIMENSION, Network

TABLE_BITS = 16
# Real images show up to 2 times the range of noise, in few channels 10 times.  More costs deep networks precision:
# `python -m benchmarks fidelity` sweeps it on ResNet-20.
HEADROOM = {"noise": 4, "images": 2}
DEFAULT_MIN_AGREEMENT = 0.98
MAX_CALIBRATION_IMAGES = 1024
NOISE_WORK = 1 << 34  # multiplications of one pass over the noise
NOISE_ACTIVATIONS = 1 << 25  # kept of it
FEWEST_IMAGES = 4  # whatever they cost
MEMORY_LIMIT = 3 << 29  # bytes, unless the caller has another: ResNet-50 takes 1 GiB
KEPT = 2  # networks that `derive_once` remembers
COPIES = 3  # of the file: the caller's, the parsed one, the one as arrays

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Derivation:
    """Everything that the integer network depends on besides the model file; part of the statement.

    calibration: empty for SHAKE noise, else the SHA-256 of the verifier's calibration images (`images_digest`).
    preprocess: (scale, shift) per channel, applied to pixels 0..255 before the model; empty for none.
    outputs: the logits of the model that are the classes 0, 1, ... of the key; empty for all in order.
    resize: (method of `resampling.METHODS`, rows, columns): images of so many pixels are resized to those that the
    model takes, before the preprocessing or after it, which is the same; None where the model takes them as they are.
    table_bits: least width b of the activation tables, 12..20; `integers` takes wider ones where a network needs them.
    """

    calibration: bytes = b""
    preprocess: tuple[tuple[float, float], ...] = ()
    outputs: tuple[int, ...] = ()
    table_bits: int = TABLE_BITS
    resize: tuple[str, int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.calibration) not in (0, 32):
            raise ParameterError("derivation: the calibration digest has 32 bytes")
        if not all(np.isfinite(v) and abs(v) < 2.0**32 for pair in self.preprocess for v in pair):
            raise ParameterError("derivation: preprocessing out of range")
        if len(set(self.outputs)) != len(self.outputs) or not all(0 <= n < 1 << 16 for n in self.outputs):
            raise ParameterError("derivation: output map must name distinct logits")
        if not 12 <= self.table_bits <= 20:
            raise ParameterError("derivation: table_bits must be 12 .. 20")
        if self.resize is not None and (
            self.resize[0] not in METHODS or not all(1 <= n <= MAX_DIMENSION for n in self.resize[1:])
        ):
            raise ParameterError(f"derivation: a resize is one of {', '.join(METHODS)}, up to {MAX_DIMENSION} pixels")

    @property
    def headroom(self) -> int:
        return HEADROOM["images" if self.calibration else "noise"]

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.to_bytes()).digest()

    def freedom_bits(self, logits: int) -> float:
        """F of the false-claim bound: log2 of the number of derivations of this form that a claimant could have named.

        logits: outputs of the model.  The default derivation has 0.  Calibration images are the verifier's own and
        count 1 bit (used or not); a preprocessing counts all bits of its numbers.
        """
        bits = 1.0 if self.calibration else 0.0
        bits += 128.0 * len(self.preprocess)
        bits += sum(log2(max(logits - k, 1)) for k in range(len(self.outputs)))
        bits += log2(len(METHODS)) if self.resize else 0.0  # the sizes are those of the key and of the model
        return bits + (log2(9) if self.table_bits != TABLE_BITS else 0.0)

    def to_bytes(self) -> bytes:
        out = Writer().raw(b"zkmark derivation 1\n").blob(self.calibration).u32(len(self.preprocess))
        out.raw(np.array(self.preprocess, "<f8").tobytes()).u32(len(self.outputs))
        out.raw(np.array(self.outputs, "<u4").tobytes()).u8(self.table_bits)
        method, rows, columns = self.resize or ("", 0, 0)
        return out.u8(METHODS.index(method) + 1 if method else 0).u32(rows).u32(columns).to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> Derivation:
        """Raises DecodingError."""
        r = Reader(data, "derivation")
        r.magic(b"zkmark derivation 1\n")
        calibration = r.blob(32)
        pairs = r.array("<f8", 2 * r.u32()).reshape(-1, 2).tolist()
        outputs, table_bits = r.array("<u4", r.u32()).tolist(), r.u8()
        method, rows, columns = r.u8(), r.u32(), r.u32()
        if method > len(METHODS) or (not method and (rows or columns)):
            raise r.fail("unknown resize")
        resize = (METHODS[method - 1], rows, columns) if method else None
        try:
            derivation = Derivation(calibration, tuple((a, b) for a, b in pairs), tuple(outputs), table_bits, resize)
        except ParameterError as error:
            raise r.fail(str(error)) from None
        r.done()
        return derivation


DEFAULT = Derivation()


@dataclass(frozen=True)
class Derived:
    """The network and what a report says about it.  max_z: the largest |z| of each requant node."""

    network: Network
    freedom_bits: float
    max_z: tuple[int, ...]


@dataclass(frozen=True)
class Fidelity:
    """agreement: share of `count` images that the integer and the float model give the same class.

    constant: the integer network gives all of them one class.
    """

    count: int
    agreement: float
    constant: bool


def images_digest(images: Images) -> bytes:
    """SHA-256 of the shape and bytes of calibration images u8 [n, C, H, W], in order."""
    shape = b"".join(n.to_bytes(4, "little") for n in images.shape)
    return hashlib.sha256(b"zkmark calibration images 1\n" + shape + np.ascontiguousarray(images).tobytes()).digest()


def derive(
    model_bytes: bytes,
    derivation: Derivation = DEFAULT,
    calibration_images: Images | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Derived:
    """The integer network of ONNX bytes, the same on every machine.

    calibration_images: uint8 [n, C, H, W], exactly when the derivation names their digest.  memory_limit: bytes, which
    are estimated before they are taken.  Raises DecodingError for malformed bytes; ParameterError, naming the operator
    or node, for a model outside the protocol or the limit.
    """
    graph = read_model(model_bytes)
    logits, real = graph.classes, lower(graph, derivation.preprocess, derivation.resize)
    del graph  # its weights
    if derivation.outputs:
        real = select_outputs(real, derivation.outputs)
    if (calibration_images is not None) != bool(derivation.calibration):
        raise ParameterError("calibration images are needed exactly when the derivation names their digest")
    if calibration_images is None:
        images = noise_images(real.shape, _noise_count(real))
    else:
        images = calibration_images
        if images.dtype != np.uint8 or images.shape[1:] != real.shape:
            raise ParameterError(f"calibration images must be uint8 [n, {', '.join(map(str, real.shape))}]")
        if not 1 <= len(images) <= MAX_CALIBRATION_IMAGES or images_digest(images) != derivation.calibration:
            raise ParameterError(f"not the 1 .. {MAX_CALIBRATION_IMAGES} calibration images that the derivation names")
    need = COPIES * len(model_bytes) + memory_bytes(real, len(images))
    if need > memory_limit:
        raise ParameterError(
            f"reading this model needs about {need / 2**30:.1f} GiB, over the limit of {memory_limit / 2**30:.1f} GiB: "
            f"it has {real.weights / 1e6:.0f} million weights and {real.activations / 1e6:.0f} million activations per "
            "image; fewer channels or smaller images help"
        )
    network, max_z = to_integers(real, images, derivation.table_bits, derivation.headroom)
    return Derived(network, derivation.freedom_bits(logits), max_z)


_kept: OrderedDict[tuple[bytes, bytes], Derived] = OrderedDict()
_keeping = Lock()


def derive_once(
    model_bytes: bytes, derivation: Derivation = DEFAULT, calibration_images: Images | None = None
) -> Derived:
    """`derive`, which finds the last networks of this process again by the digests of model and derivation."""
    if derivation.calibration:
        return derive(model_bytes, derivation, calibration_images)
    key = hashlib.sha256(model_bytes).digest(), derivation.digest
    with _keeping:
        derived = _kept.get(key) or derive(model_bytes, derivation, calibration_images)
        _kept[key] = derived
        _kept.move_to_end(key)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return derived


def _noise_count(real: RealNetwork) -> int:
    """As many images as the shape deserves, but fewer for networks that take long, or much memory."""
    affordable = min(NOISE_WORK // max(real.work, 1), NOISE_ACTIVATIONS // real.activations)
    return min(noise_count(real.shape), max(affordable, FEWEST_IMAGES))


def fidelity(model_bytes: bytes, network: Network, images: Images, derivation: Derivation = DEFAULT) -> Fidelity:
    """Compare the network with onnxruntime on images uint8 [n, C, H, W].  Raises as `float_classes` does."""
    real = float_classes(model_bytes, images, derivation)
    integer = network.classify(images)
    return Fidelity(len(images), float((real == integer).mean()), len(set(integer.tolist())) == 1)


def float_classes(model_bytes: bytes, images: Images, derivation: Derivation = DEFAULT) -> npt.NDArray[np.int64]:
    """[n] class of each image u8 [n, C, H, W] by onnxruntime.  It enters no digest and no proof.

    Raises DecodingError or ParameterError for a model that `derive` would refuse, or no fitting images.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ParameterError("the float model needs onnxruntime: install the extra `fidelity`") from None
    graph = read_model(model_bytes)
    # Nothing reaches the runtime that is not whitelisted and of bounded size.
    shape = lower(graph, derivation.preprocess, derivation.resize).shape
    if len(images) == 0 or images.dtype != np.uint8 or images.shape[1:] != shape:
        raise ParameterError(f"images must be uint8 [n, {', '.join(map(str, shape))}], n > 0")
    if derivation.outputs and max(derivation.outputs) >= graph.classes:
        raise ParameterError(f"output map names logit {max(derivation.outputs)} of {graph.classes}")
    pairs = np.array(derivation.preprocess or ((1.0, 0.0),) * graph.shape[0])
    scale, shift = pairs[:, 0, None, None], pairs[:, 1, None, None]
    pixels: Iterable[npt.NDArray[np.float64]] = (image.astype(np.float64) for image in images)
    if derivation.resize is not None:
        windows = resizing(derivation.resize, graph.shape)
        pixels = (resample(image, windows) for image in pixels)
    inputs = ((image * scale + shift).astype(np.float32)[None] for image in pixels)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # What the operators mean: a fusion of a padding into a maximum, for example, gives other numbers.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(needed_only(model_bytes), options, providers=["CPUExecutionProvider"])
        logits = np.concatenate([session.run(None, {graph.input: x})[0] for x in inputs])
    except Exception as error:  # the runtime raises many kinds, none of them ours
        raise DecodingError(f"ONNX model: onnxruntime refuses it ({type(error).__name__})") from None
    if logits.shape != (len(images), graph.classes):
        raise DecodingError(f"ONNX model: onnxruntime finds logits {list(logits.shape[1:])}, not {graph.classes}")
    chosen = logits[:, list(derivation.outputs)] if derivation.outputs else logits
    classes: npt.NDArray[np.int64] = chosen.argmax(axis=1).astype(np.int64)
    return classes

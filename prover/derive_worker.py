"""Derivation of a stranger's model in a process of its own, which may be killed: `derive_apart`.

Reading a hostile ONNX file can take long and much memory, and cannot be interrupted.  So a child reads it, with its own
limits on memory and time and without the owner's secrets; it dies with its parent.  What it answers is as untrusted as
the file: the network is decoded like any stranger's.

    request  (stdin, which stays open)  length | derivation | path of the model | path of calibration images
    answer   (stdout, a file)           kind | text of an error, or freedom bits and the network
"""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from protocol.encoding import Reader, Writer
from protocol.errors import DecodingError, ParameterError

MAX_REQUEST_BYTES = 1 << 20
MAX_NETWORK_BYTES = 1 << 30
MAX_TEXT = 1000
MAX_MODEL_BYTES = 2 << 30
NETWORK, MALFORMED, MISUSE = range(3)
BROKEN = 3  # exit status of a child that cannot even begin
TOO_MUCH = "reading this model takes too much time or memory"


@dataclass(frozen=True)
class DeriveLimits:
    """memory: bytes of address space of the child."""

    seconds: float = 120.0
    memory: int = 6 << 30


def derive_apart(
    model: Path, derivation: bytes, calibration: Path | None, limits: DeriveLimits, cancelled: Callable[[], bool]
) -> tuple[bytes, float]:
    """The encoded integer network of the ONNX file at `model`, not decoded yet, and the freedom bits of the derivation.

    derivation: canonical bytes.  calibration: .npy file of the images that it names.  Raises DecodingError and
    ParameterError as `ml.quantise.derive` does, ParameterError over the limits, InterruptedError if `cancelled`.
    """
    request = Writer().blob(derivation).blob(os.fsencode(model.resolve()))
    request.blob(b"" if calibration is None else os.fsencode(calibration.resolve())).u32(limits.memory >> 20)
    data = request.u32(int(limits.seconds) + 1).to_bytes()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZKMARK_")}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    with tempfile.TemporaryFile(dir=model.parent) as answer:
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "prover.derive_worker"], stdin=subprocess.PIPE, stdout=answer,
            bufsize=0, stderr=subprocess.DEVNULL, env=environment,
            cwd="/", start_new_session=True,
        ) as child:  # fmt: skip
            try:
                if child.stdin is None:
                    raise RuntimeError("a pipe was asked for")
                with suppress(BrokenPipeError):  # it has died already
                    left = memoryview(struct.pack("<I", len(data)) + data)
                    while left:
                        left = left[child.stdin.write(left) :]
                ends = time.monotonic() + limits.seconds
                while child.poll() is None:
                    if cancelled():
                        raise InterruptedError
                    if time.monotonic() > ends:
                        raise ParameterError(TOO_MUCH)
                    with suppress(subprocess.TimeoutExpired):
                        child.wait(0.02)
            finally:
                child.kill()
        answer.seek(0)
        data = answer.read(MAX_NETWORK_BYTES + 1)
    if child.returncode == BROKEN:
        raise RuntimeError("the process that reads models cannot run")
    return _answer(data if child.returncode == 0 else b"")


def _answer(data: bytes) -> tuple[bytes, float]:
    if not data or len(data) > MAX_NETWORK_BYTES:
        raise ParameterError(TOO_MUCH)
    if data[0] == NETWORK:
        (freedom,) = struct.unpack_from("<d", data, 1)
        return data[9:], freedom
    text = data[1 : 1 + MAX_TEXT].decode("utf-8", "replace")
    raise DecodingError(text) if data[0] == MALFORMED else ParameterError(text)


def _limit(kind: int, value: int) -> None:
    """At most `value`, and not more than there was."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _derive(derivation: bytes, model: Path, calibration: Path | None) -> bytes:
    import numpy as np

    from ml.quantise import Derivation, derive

    try:
        images = None if calibration is None else np.load(calibration, allow_pickle=False)
        with open(model, "rb") as file:
            derived = derive(file.read(MAX_MODEL_BYTES), Derivation.from_bytes(derivation), images)
        return bytes([NETWORK]) + struct.pack("<d", derived.freedom_bits) + derived.network.to_bytes()
    except DecodingError as error:
        return bytes([MALFORMED]) + str(error).encode()
    except ParameterError as error:
        return bytes([MISUSE]) + str(error).encode()
    except MemoryError:
        return bytes([MISUSE]) + TOO_MUCH.encode()


def main() -> None:
    """The child."""
    (size,) = struct.unpack("<I", sys.stdin.buffer.read(4))
    r = Reader(sys.stdin.buffer.read(min(size, MAX_REQUEST_BYTES)), "request")
    derivation, model = r.blob(MAX_REQUEST_BYTES), Path(os.fsdecode(r.blob(MAX_REQUEST_BYTES)))
    calibration = r.blob(MAX_REQUEST_BYTES)
    memory, seconds = r.u32(), r.u32()
    r.done()
    try:
        import ml.quantise  # noqa: F401  (before the limits: a failure here is not the model's)
    except BaseException:
        os._exit(BROKEN)
    _limit(resource.RLIMIT_AS, memory << 20)
    _limit(resource.RLIMIT_CPU, seconds * (os.cpu_count() or 1))
    _limit(resource.RLIMIT_FSIZE, MAX_NETWORK_BYTES)
    _limit(resource.RLIMIT_CORE, 0)

    def orphaned() -> None:
        os.read(0, 1)  # returns when the parent is gone
        os._exit(1)

    threading.Thread(target=orphaned, daemon=True).start()
    answer = _derive(derivation, model, Path(os.fsdecode(calibration)) if calibration else None)
    with open(1, "wb", closefd=False) as out:
        out.write(answer)
    os._exit(0)


if __name__ == "__main__":
    main()

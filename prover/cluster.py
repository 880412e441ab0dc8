"""Forks proven by the workers of a Ray cluster (docs.ray.io): other processes of this machine, or other machines.

The proof is the one that this process would make: transcript and messages do not depend on where a fork is proven.  A
worker that is lost costs the forks it held, which go to another.  What workers receive is as secret as the marking
key, and Ray's own connections need its TLS settings (RAY_USE_TLS): the cluster must be the owner's.
"""

from __future__ import annotations

import ctypes
import hashlib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import protocol
from protocol import heap, layers
from protocol.errors import ParameterError
from protocol.forks import Engine, Fork, Shared
from protocol.kernels import cpu
from protocol.layers import Part
from protocol.transcript import MaskedElements

AHEAD = 2  # forks per worker that are sent before one is asked for: no worker waits, and memory stays bounded
RETRIES = 8  # workers that one fork may lose
POLL_S = 0.5  # between looks at whether the caller cancels

Array = npt.NDArray[np.uint32]
Packed = tuple[bytes, list[npt.NDArray[np.uint8]]]  # pickled, its arrays apart: the workers of a machine share them


@cache
def version() -> str:
    """Digest of the source of the protocol and of this file: workers with another one would make proofs that nobody
    accepts, or not understand what they are sent."""
    folder, digest = Path(protocol.__path__[0]), hashlib.sha256(Path(__file__).read_bytes() + b"\0")
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def prove_fork(expected: str, threads: int, packed: Packed, task: bytes, *arrays: Array) -> MaskedElements:
    """In a worker: the messages of one fork.

    packed: what the forks share; task: the fork, pickled, and where its arrays belong in its part of the witness.
    Raises ParameterError in a worker with another version, which could not read either.
    """
    if version() != expected:
        raise ParameterError("a worker of the cluster runs another version of zkmark")
    cpu.THREADS = threads
    heap.keep()
    # From the driver of this cluster, as all that Ray brings, which pickles it as well: never from a stranger.
    shared: Shared = pickle.loads(packed[0], buffers=packed[1])
    fork, keys = pickle.loads(task)
    part = Part({}, {}, {})
    for (kind, key), array in zip(keys, arrays, strict=True):
        getattr(part, kind)[key] = _writable(array)
    shared = replace(
        shared, alpha=_writable(shared.alpha), beta=_writable(shared.beta), pads=_writable(shared.pads))
    return shared.prove(fork, part)


def _packed(shared: Shared) -> Packed:
    import ray

    buffers: list[pickle.PickleBuffer] = []
    dumps: Any = ray.cloudpickle.dumps
    data: bytes = dumps(shared, protocol=5, buffer_callback=buffers.append)
    return data, [np.asarray(buffer.raw()) for buffer in buffers]


def _writable(array: Array) -> Array:
    """The same memory, not marked as read-only, as what Ray shares is: kernels are compiled for arrays that are not
    marked, and none of them writes to what it is given to read."""
    memory = (ctypes.c_uint32 * array.size).from_address(array.ctypes.data)
    memory.owner = array  # type: ignore[attr-defined]  # for as long as it is used
    return np.ctypeslib.as_array(memory).reshape(array.shape)


def _place(array: Array) -> tuple[int, int]:
    return array.ctypes.data, array.size


def ray_engine(address: str | None = None, *, workers: int | None = None, threads: int = 1) -> Engine:
    """An engine on the Ray cluster at `address` (HOST:PORT or "auto"), or on one of this machine's own.

    workers: of a cluster of our own (default: one per core); threads: cores that each fork uses.
    Raises ParameterError if Ray is not installed or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError:
        raise ParameterError("--engine ray needs the package ray: pip install 'zkmark[ray]'") from None
    if not ray.is_initialized():
        own: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ParameterError(f"no Ray cluster: {error}") from None
    task: Any = ray.remote(num_cpus=threads, max_retries=RETRIES)(prove_fork)

    def engine(
        shared: Shared, forks: Sequence[tuple[Fork, Part]], report: Callable[[float], None]
    ) -> dict[int, MaskedElements]:
        work = {fork.index: layers.work(shared.layout, fork.index) for fork, _ in forks}
        waiting = sorted(forks, key=lambda one: work[one[0].index])  # the largest last, to be popped first
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        most = AHEAD * max(1, int(resources.get("CPU", 1)) // threads)
        # A device is one worker's at a time; what a cluster has none of, no worker waits for.
        gpus = int(shared.device != "cpu" and resources.get("GPU", 0) >= 1)
        shared = shared if gpus else replace(shared, device="cpu")  # whatever there is where the driver runs
        on, kept, done = task.options(num_gpus=gpus), ray.put(_packed(shared)), 0
        stored: dict[tuple[int, int], Any] = {}  # what several forks read is sent once; `forks` keeps the places taken
        running: dict[Any, int] = {}
        found: dict[int, MaskedElements] = {}
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    fork, part = waiting.pop()
                    arrays = {(kind, key): a for kind, named in vars(part).items() for key, a in named.items()}
                    for array in arrays.values():
                        if _place(array) not in stored:
                            stored[_place(array)] = ray.put(array)
                    there = [stored[_place(array)] for array in arrays.values()]
                    sent = pickle.dumps((fork, [*arrays]))
                    running[on.remote(version(), threads, kept, sent, *there)] = fork.index
                report(done / sum(work.values()))
                ready, _ = ray.wait(list(running), timeout=POLL_S)
                for reference in ready:
                    index = running.pop(reference)
                    found[index] = MaskedElements(np.array(ray.get(reference).values))
                    done += work[index]
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise ConnectionError(f"the Ray cluster failed: {type(error).__name__}") from None
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
        return found

    return engine

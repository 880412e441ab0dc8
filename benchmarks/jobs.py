"""The two benchmark jobs, stage by stage; each stage runs in a process of its own, so that its peak memory is its own.

The keys are fixed by published seeds so that h = 256: they are for measuring and nobody's property.  Their triggers are
uniform noise, and the networks learn the hidden ones and nothing else, because the cost of the argument depends on the
architecture and not on what the weights are; fidelity is therefore timed here but not reported.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from Crypto.Hash import SHAKE256

from ml.quantise import DEFAULT, derive, fidelity
from protocol.argument import Context, Statement, prove, verify
from protocol.keygen import KeyParameters, MarkingKey, generate_key
from protocol.soundness import smallest_k_min

BUILD = Path("build/benchmarks")
RUNS = 3
CLASSES = 10
ELL = 512
HIDDEN = 256
FIDELITY_IMAGES = 200
CONTEXT = Context(purpose="benchmark", claimant="", verifier="", nonce=bytes(32))

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One architecture on images of one shape; `seed` numbers the key whose challenge hides exactly HIDDEN triggers."""

    name: str
    architecture: str
    shape: tuple[int, int, int]
    seed: int

    def path(self, suffix: str) -> Path:
        return BUILD / f"{self.name}-{self.seed}.{suffix}"


JOBS = {
    job.name: job
    for job in (
        Job("lenet-28x28", "lenet", (1, 28, 28), 40),
        Job("cnn-32x32", "cnn", (3, 32, 32), 36),
    )
}


def fixed_entropy(label: str) -> Callable[[int], bytes]:
    """A stand-in for os.urandom that gives everyone the same bytes."""
    return SHAKE256.new(f"zkmark/benchmark/{label}".encode()).read


def noise(label: str, count: int, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Images [count, *shape] of uniform pixels, the same on every machine and in every version."""
    return np.frombuffer(fixed_entropy(label)(count * prod(shape)), np.uint8).reshape(count, *shape)


def repeated(work: Callable[[], object]) -> float:
    """The median of RUNS runs, in seconds."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


class Phases:
    """A progress callback that adds up the seconds between the first reports of successive phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._current = ""
        self._since = time.perf_counter()

    def __call__(self, phase: str, fraction: float) -> None:
        now = time.perf_counter()
        if self._current:
            self.seconds[self._current] += now - self._since
        self._current, self._since = phase, now


def make_key(job: Job) -> MarkingKey:
    label = f"{job.name}/{job.seed}"
    parameters = KeyParameters(shape=job.shape, classes=CLASSES, ell=ELL)
    return generate_key(parameters, noise(f"{label}/triggers", ELL, job.shape), entropy=fixed_entropy(f"{label}/key"))


def keygen(job: Job) -> Result:
    """Make the key, the same one every time."""
    key = make_key(job)  # from here on the generators are cached
    if key.vk.h != HIDDEN:
        raise RuntimeError(f"the key of {job.name} hides {key.vk.h} triggers; choose another seed")
    BUILD.mkdir(parents=True, exist_ok=True)
    job.path("key").write_bytes(key.to_bytes())
    return {"seconds": {"keygen": repeated(lambda: make_key(job))}, "vk_bytes": len(key.vk.to_bytes())}


def train(job: Job) -> Result:
    """The network that knows the hidden triggers; not timed, and kept between runs."""
    if not job.path("onnx").exists():
        from benchmarks.model import memorize  # the only stage that needs torch

        key = MarkingKey.from_bytes(job.path("key").read_bytes())
        job.path("onnx").write_bytes(memorize(key, job.architecture))
    return {}


def derivation(job: Job) -> Result:
    """ONNX to integer network, and its agreement with the float model on FIDELITY_IMAGES images."""
    model = job.path("onnx").read_bytes()
    images = noise(f"{job.name}/fidelity", FIDELITY_IMAGES, job.shape)
    network = derive(model).network
    return {
        "seconds": {
            "derive": repeated(lambda: derive(model)),
            "fidelity": repeated(lambda: fidelity(model, network, images)),
        },
        "network_digest": network.digest.hex(),
    }


def statement_of(job: Job, key: MarkingKey) -> Statement:
    model = job.path("onnx").read_bytes()
    derived = derive(model)
    k_min = smallest_k_min(HIDDEN, CLASSES, freedom_bits=derived.freedom_bits)
    if k_min is None:
        raise RuntimeError("no k_min meets the target")
    return Statement(key.vk, derived.network, k_min, CONTEXT, hashlib.sha256(model).digest(), DEFAULT.digest)


def proving(job: Job) -> Result:
    """Prove RUNS times, after one run that warms caches up; the phases are those of the last run."""
    key = MarkingKey.from_bytes(job.path("key").read_bytes())
    statement = statement_of(job, key)
    proof = prove(statement, key)
    job.path("proof").write_bytes(proof)
    seconds = repeated(lambda: prove(statement, key))
    phases = Phases()
    prove(statement, key, progress=phases)
    phases("", 1.0)
    return {
        "seconds": {"prove": seconds},
        "phases": dict(phases.seconds),
        "proof_bytes": len(proof),
        "k_min": statement.k_min,
    }


def verifying(job: Job) -> Result:
    """Verify RUNS times in process, after one run that warms caches up."""
    key = MarkingKey.from_bytes(job.path("key").read_bytes())
    statement = statement_of(job, key)
    proof = job.path("proof").read_bytes()
    ledger = verify(statement, proof)
    return {"seconds": {"verify": repeated(lambda: verify(statement, proof))}, "argument_bits": ledger.bits}


def first_use(job: Job) -> Result:
    """Prove and verify once: what a first command does when there are no compiled kernels yet."""
    key = MarkingKey.from_bytes(job.path("key").read_bytes())
    statement = statement_of(job, key)
    verify(statement, prove(statement, key))
    return {}


STAGES: dict[str, Callable[[Job], Result]] = {
    "keygen": keygen,
    "train": train,
    "derive": derivation,
    "prove": proving,
    "verify": verifying,
    "first-use": first_use,
}

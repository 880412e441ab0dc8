"""Benchmark jobs, stage by stage; each stage runs in a process of its own, so that its peak memory is its own.

The keys come from published seeds and are nobody's property; a beacon is counted up until exactly half of the triggers
are hidden.  The networks have random weights and know the hidden triggers and nothing else: the cost of the argument
depends on the architecture and not on what the weights are.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from Crypto.Hash import SHAKE256

from benchmarks.phases import Profile
from ml.quantise import DEFAULT, derive, fidelity
from ml.triggers import abstract_images
from protocol import identity, kernels
from protocol.argument import Context, Statement, prove, verify
from protocol.keygen import SIGNATURE_LABEL, KeyParameters, MarkingKey, generate_key
from protocol.network import Network
from protocol.soundness import smallest_k_min
from protocol.warm_up import warm_up

BUILD = Path("build/benchmarks")
FIDELITY_IMAGES = 20
CONTEXT = Context(purpose="benchmark", claimant="", verifier="", nonce=bytes(32))

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One architecture on images of one shape, with a key of `ell` triggers of which half are hidden."""

    name: str
    architecture: str
    shape: tuple[int, int, int]
    classes: int = 10
    ell: int = 512
    width: float = 1.0

    @property
    def h(self) -> int:
        return self.ell // 2

    @property
    def key_name(self) -> str:
        """Of the key, which jobs of the same sizes share."""
        return "x".join(map(str, self.shape)) + f"-{self.classes}-{self.ell}"

    def path(self, suffix: str) -> Path:
        return BUILD / f"{self.key_name if suffix == 'key' else self.name}.{suffix}"


SMALL = (Job("lenet-28x28", "lenet", (1, 28, 28)), Job("cnn-32x32", "cnn", (3, 32, 32)))
LARGE = (
    Job("vgg16-32x32", "vgg16", (3, 32, 32)),
    Job("resnet18-32x32", "resnet18", (3, 32, 32)),
    Job("mobilenetv2-32x32", "mobilenetv2", (3, 32, 32)),
    Job("resnet18-224x224", "resnet18", (3, 224, 224), classes=1000, ell=64),
)
# What a device is for; two of them are measured on the processor, too.
DEVICE = (
    SMALL[0],
    LARGE[1],
    Job("resnet18-224x224-64", "resnet18", (3, 224, 224), classes=1000, ell=128),
    Job("resnet50-224x224-64", "resnet50", (3, 224, 224), classes=1000, ell=128),
)
# A hundred classes, because ten need more than 128 triggers.
BY_TRIGGERS = tuple(
    Job(f"resnet18-quarter-{ell // 2}", "resnet18", (3, 32, 32), 100, ell, 1 / 4) for ell in (128, 256, 512, 1024)
)
BY_ACTIVATIONS = tuple(
    Job(f"resnet18-{name}-64", "resnet18", (3, 32, 32), 100, 128, width)
    for name, width in (("eighth", 1 / 8), ("quarter", 1 / 4), ("half", 1 / 2), ("whole", 1.0))
)
JOBS = {job.name: job for job in (*SMALL, *LARGE, *DEVICE, *BY_TRIGGERS, *BY_ACTIVATIONS)}


def fixed_entropy(label: str) -> Callable[[int], bytes]:
    """A stand-in for os.urandom that gives everyone the same bytes."""
    return SHAKE256.new(f"zkmark/benchmark/{label}".encode()).read


def repeated(work: Callable[[], object], runs: int) -> float:
    """The median of some runs, in seconds."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def make_key(job: Job, images: npt.NDArray[np.uint8]) -> MarkingKey:
    """The key over these images, the same one every time."""
    parameters = KeyParameters(job.shape, job.classes, job.ell)
    key = generate_key(parameters, images, entropy=fixed_entropy(f"{job.key_name}/key"))
    vks = (replace(key.vk, beacon=number.to_bytes(4, "big")) for number in count())
    vk = next(vk for vk in vks if vk.h == job.h)
    vk = replace(vk, openings=replace(key, vk=vk).openings(vk.opened))
    return replace(key, vk=replace(vk, signature=identity.sign(key.owner_secret_seed, SIGNATURE_LABEL, vk.digest)))


def load_key(job: Job) -> MarkingKey:
    return MarkingKey.from_bytes(job.path("key").read_bytes())


def keygen(job: Job, runs: int) -> Result:
    """Make the key."""
    images = abstract_images(job.ell, job.shape, fixed_entropy(f"{job.key_name}/triggers"))
    key = make_key(job, images)  # from here on the generators are cached
    BUILD.mkdir(parents=True, exist_ok=True)
    job.path("key").write_bytes(key.to_bytes())
    return {"seconds": {"keygen": repeated(lambda: make_key(job, images), runs)}, "vk_bytes": len(key.vk.to_bytes())}


def fit(job: Job, runs: int) -> Result:
    """The network that knows the hidden triggers; not timed."""
    from benchmarks.model import memorize  # the only stage that needs torch

    job.path("onnx").write_bytes(memorize(load_key(job), job.architecture, job.width))
    return {}


def derivation(job: Job, runs: int) -> Result:
    """ONNX to integer network, and its agreement with the float model on a few hidden triggers."""
    model = job.path("onnx").read_bytes()
    seconds = repeated(lambda: job.path("network").write_bytes(derive(model).network.to_bytes()), runs)
    network = Network.from_bytes(job.path("network").read_bytes())
    images = load_key(job).hidden_images[:FIDELITY_IMAGES]
    start = time.perf_counter()
    agreement = fidelity(model, network, images).agreement
    return {
        "seconds": {
            "derive": seconds,
            "fidelity_per_image": (time.perf_counter() - start) / FIDELITY_IMAGES,
        },
        "agreement": agreement,
        "weights": sum(edge.weight.size for node in network.nodes for edge in node.edges),
        "multiply_adds_per_image": sum(
            edge.weight[0].size * prod(shape)
            for node, shape in zip(network.nodes, network.shapes[1:], strict=True)
            for edge in node.edges
        ),
        "activations_per_image": network.activations,
        "network_digest": network.digest.hex(),
    }


def statement_of(job: Job, key: MarkingKey) -> Statement:
    network = Network.from_bytes(job.path("network").read_bytes())
    k_min = smallest_k_min(job.h, job.classes, freedom_bits=DEFAULT.freedom_bits(job.classes))
    if k_min is None:
        raise RuntimeError("no k_min meets the target")
    model_digest = hashlib.sha256(job.path("onnx").read_bytes()).digest()
    return Statement(key.vk, network, k_min, CONTEXT, model_digest, DEFAULT.digest)


def proving(job: Job, runs: int) -> Result:
    """Prove, with compiled kernels."""
    key = load_key(job)
    statement = statement_of(job, key)
    warm_up(print)
    seconds = repeated(lambda: job.path("proof").write_bytes(prove(statement, key)), runs)
    return {
        "seconds": {"prove": seconds},
        "proof_bytes": job.path("proof").stat().st_size,
        "k_min": statement.k_min,
        "estimated_memory_bytes": statement.memory_bytes,
    }


def proving_on_device(job: Job, runs: int) -> Result:
    """Prove on the GPU once its kernels are compiled, too, then under the profiler; verify on the host.

    All in one process, which has compiled what it needs.  Memory is the most that torch took of the device.
    """
    import torch

    key = load_key(job)
    statement = statement_of(job, key)
    warm_up(print)
    prove(statement, key, device="cuda")
    seconds = repeated(lambda: job.path("proof").write_bytes(prove(statement, key, device="cuda")), runs)
    memory, proof = torch.cuda.max_memory_reserved(), job.path("proof").read_bytes()
    ledger = verify(statement, proof)
    with Profile(kernels.on("cuda")) as phases:
        prove(statement, key, device="cuda")
    return {
        "seconds": {"prove": seconds, "verify": repeated(lambda: verify(statement, proof), runs)},
        "proof_bytes": len(proof),
        "k_min": statement.k_min,
        "argument_bits": ledger.bits,
        "device": torch.cuda.get_device_name(),
        "device_memory_bytes": memory,
        "phases": phases.result(),
    }


def profile(job: Job, runs: int) -> Result:
    """Prove once under the profiler, which the other stages go without."""
    key = load_key(job)
    statement = statement_of(job, key)
    warm_up(print)
    with Profile() as phases:
        prove(statement, key)
    return {"phases": phases.result()}


def verifying(job: Job, runs: int) -> Result:
    """Verify in process, after one run that warms caches up."""
    statement = statement_of(job, load_key(job))
    proof = job.path("proof").read_bytes()
    ledger = verify(statement, proof)
    return {"seconds": {"verify": repeated(lambda: verify(statement, proof), runs)}, "argument_bits": ledger.bits}


def device_rates(job: Job, runs: int) -> Result:
    """How fast the GPU is, whatever the job."""
    import torch

    from benchmarks.device import rates

    return {"device": torch.cuda.get_device_name(), **rates(kernels.on("cuda"))}


def marking(job: Job, runs: int) -> Result:
    """One step of marking the job's network on the GPU."""
    import torch

    from benchmarks.marking import measure

    return {"device": torch.cuda.get_device_name(), **measure(job, runs)}


def first_use(job: Job, runs: int) -> Result:
    """Compile or load the kernels: what a first command does before its work."""
    return {"seconds": {"warm_up": repeated(lambda: warm_up(print), 1)}}


STAGES: dict[str, Callable[[Job, int], Result]] = {
    "keygen": keygen,
    "fit": fit,
    "derive": derivation,
    "prove": proving,
    "prove-device": proving_on_device,
    "profile": profile,
    "verify": verifying,
    "device-rates": device_rates,
    "marking": marking,
    "first-use": first_use,
}

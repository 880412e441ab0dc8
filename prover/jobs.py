"""What the prover decides, without gRPC: which networks it answers for, and the claims about them.

A refused network and one that cannot be proven get the same answer.  Both are found out at the same place, by looking
up the approvals after the model has been derived: whether enough triggers match was computed when the owner approved,
so that the time of a refusal depends on the client's model alone.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ml.quantise import MEMORY_LIMIT, Derivation, derive, images_digest
from protocol import kernels, layers
from protocol.argument import Cancelled as Stopped
from protocol.argument import Context, Statement, prove, verify
from protocol.claim import Claim, statement_digests
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.forks import Engine
from protocol.keygen import LabelRule, MarkingKey, VerificationKey
from protocol.network import Network
from protocol.soundness import FALSE_CLAIM_TARGET, false_claim_bits
from protocol.transcript import Channel, FiatShamir
from prover.derive_worker import DeriveLimits, derive_apart
from prover.keys import Approvals, load_owner, record_approval, write_file
from prover.requests import Networks
from prover.state import State

Images = npt.NDArray[np.uint8]
Report = Callable[[str, float], None]
Cancelled = Callable[[], bool]

log = logging.getLogger("zkmark.prover")

REFUSAL = "no proof is made for this model"
# Leaves of the largest lookup tree up to which "auto" means the host, as for LeNet with 256 hidden triggers (2^21):
# there the rounds that the host does in any case decide, and a device hardly helps.  An estimate, not measured.
AUTO_LEAVES = 1 << 22


class Refused(Exception):
    """No proof is made, and the client does not learn why.  network_digest: 32 bytes, for the owner."""

    def __init__(self, network_digest: bytes) -> None:
        super().__init__(REFUSAL)
        self.network_digest = network_digest


@dataclass(frozen=True)
class Subject:
    """A suspect model as both sides see it: the digest of its file and the network that was derived from it."""

    network: Network
    model_digest: bytes
    derivation_digest: bytes
    freedom_bits: float

    def statement(self, key: VerificationKey, k_min: int, context: Context) -> Statement:
        """The claim that it carries the mark of `key`.  Raises ParameterError where no proof of it can exist."""
        return Statement(key, self.network, k_min, context, self.model_digest, self.derivation_digest)


def subject(
    model: bytes,
    derivation: Derivation,
    calibration: Images | None,
    key: VerificationKey,
    memory_limit: int = MEMORY_LIMIT,
) -> Subject:
    """Derive the integer network of an ONNX model that is to be claimed under `key`.

    Raises DecodingError, or ParameterError, also if that is estimated to take over `memory_limit` bytes.
    """
    derived = derive(model, derivation, calibration, memory_limit)
    check_shape(derived.network, key)
    return Subject(derived.network, hashlib.sha256(model).digest(), derivation.digest, derived.freedom_bits)


def check_shape(network: Network, key: VerificationKey) -> None:
    """Raises ParameterError for a network of other images or classes than the key's."""
    if network.shape != key.parameters.shape or network.classes != key.parameters.classes:
        raise ParameterError(
            f"the model classifies {network.shape} into {network.classes} classes, "
            f"the key is for {key.parameters.shape} and {key.parameters.classes}"
        )


def approve(path: Path, secret: bytes, about: Subject, k_min: int | None = None) -> Approvals:
    """Record in the owner's file that `about` may be proven, with this k_min (default: the smallest for 128 bits).

    Raises VerificationError `prove.matches` if too few hidden triggers match, which also spends one of the budget:
    whoever watches what the server answers learns that, too.  Raises ParameterError over the budget, or for a second
    k_min.
    """
    key, approvals = load_owner(path, secret)
    k_min = choose_k_min(key.vk, approvals, about, k_min)
    matches = _matches(about.network, key)
    approvals = record_approval(path, secret, about.network.digest, k_min if matches >= k_min else 0)
    if matches < k_min:
        raise VerificationError("prove.matches", f"fewer than {k_min} of the {key.vk.h} hidden triggers match")
    return approvals


def _matches(network: Network, key: MarkingKey) -> int:
    """The hidden triggers that match, as the host computes it."""
    return int((network.classify(key.hidden_images) == key.hidden_labels).sum())


def choose_k_min(key: VerificationKey, approvals: Approvals, about: Subject, k_min: int | None = None) -> int:
    """The one that is named, or was approved, or is the default.  Raises ParameterError if it is not 1 to h."""
    k_min = k_min or approvals.k_min.get(about.network.digest) or default_k_min(key, about.freedom_bits)
    if not 1 <= k_min <= key.h:
        raise ParameterError(f"k_min must be 1 to {key.h}")
    return k_min


def default_k_min(key: VerificationKey, freedom_bits: float) -> int:
    """The smallest k_min whose false-claim bound has FALSE_CLAIM_TARGET.  Raises ParameterError if there is none."""
    if key.parameters.label_rule is LabelRule.CHOSEN:
        raise ParameterError("no k_min bounds false claims under a key with chosen labels: name one (--k-min)")
    k_min = key.smallest_k_min(freedom_bits)
    if k_min is None:
        raise ParameterError(
            f"no k_min <= {key.h} reaches {FALSE_CLAIM_TARGET} bits with {freedom_bits:g} bits of freedom"
        )
    return k_min


def below_default(key: VerificationKey, freedom_bits: float, k_min: int) -> str:
    """What a claim with this k_min falls short of, in words; nothing if it does not, or if there is no bound at all."""
    if key.parameters.label_rule is LabelRule.CHOSEN:
        return ""
    bits = false_claim_bits(key.h, key.parameters.classes, k_min, freedom_bits)
    if bits >= FALSE_CLAIM_TARGET:
        return ""
    return f"the {FALSE_CLAIM_TARGET} bits of the false-claim bound, at {max(bits, 0.0):.1f}"


@dataclass(frozen=True)
class Resources:
    """What a proof may use.

    memory: bytes, None for what the machine and the device have; device: a name of `protocol.kernels.on`, where "auto"
    is the host for what has no tree over AUTO_LEAVES; engine: where forks are proven, None for this process; check:
    verify what was not all computed by this process's own cores before it is given out.  An interactive proof is always
    made in this process, and its verifier checks it.
    """

    memory: int | None = None
    device: str = "cpu"
    engine: Engine | None = None
    check: bool = True


def find_device(statement: Statement, use: Resources) -> str:
    """The name of the device that the proof would be made on, before anything is done for good.

    Raises ParameterError if it is not there, or if the proof is estimated to take more memory than is allowed or there.
    The estimate has to fit the device and the host: what of it lies where is not estimated.
    """
    leaves = max(prod(layers.tree_shape(statement.layout, index)[0]) for index in range(statement.forks))
    device = kernels.on("cpu" if use.device == "auto" and leaves <= AUTO_LEAVES else use.device)
    limit = min(kernels.cpu.memory(), device.memory())
    limit = limit if use.memory is None else min(use.memory, limit)
    if statement.memory_bytes > limit:
        need, most = statement.memory_bytes / 2**30, limit / 2**30
        raise ParameterError(
            f"proving this network needs about {need:.1f} GiB, over the limit of {most:.1f} GiB; a smaller network or "
            "a key with fewer triggers needs less"
        )
    return "cpu" if device is kernels.cpu else "cuda"


def make_claim(
    key: MarkingKey,
    about: Subject,
    k_min: int,
    context: Context,
    channel: Channel | None = None,
    *,
    resources: Resources | None = None,
    progress: Report | None = None,
    cancelled: Cancelled | None = None,
) -> Claim:
    """Prove that at least `k_min` hidden triggers match.

    Raises as `protocol.argument.prove` does, ParameterError if that is estimated to take more memory, and RuntimeError
    if a device or a worker computed wrongly.
    """
    statement = about.statement(key.vk, k_min, context)
    use, channel = resources or Resources(), channel or FiatShamir()
    device = find_device(statement, use)
    engine = None if channel.interactive else use.engine
    try:
        proof = prove(statement, key, channel, progress=progress, cancelled=cancelled, engine=engine, device=device)
    except VerificationError as error:
        wrong = error.check == "prove.matches" and device != "cpu"  # a device does not say alone that a claim is false
        if wrong and _matches(about.network, key) >= k_min:
            raise RuntimeError("the device computed wrongly: on the host, enough triggers match") from None
        raise
    if use.check and not channel.interactive and (engine is not None or device != "cpu"):
        try:
            verify(statement, proof)
        except (DecodingError, VerificationError) as error:
            raise RuntimeError(f"a device or a worker computed wrongly: the proof fails {error}") from None
    return Claim(k_min, context, statement_digests(statement), proof)


class Prover:
    """One owner's file, opened for answering.  `claim` is called by one worker at a time."""

    def __init__(
        self,
        path: Path,
        secret: bytes,
        *,
        state: Path | None = None,
        claimant: str = "",
        calibration: Images | None = None,
        resources: Resources | None = None,
        derive_limits: DeriveLimits | None = None,
    ) -> None:
        """state: the folder of `prover.state`, `state_folder(path)` by default."""
        self._path, self._secret = path, secret
        self._claimant, self._resources = claimant, resources
        self._calibration_digest = b"" if calibration is None else images_digest(calibration)
        self._derive_limits = derive_limits or DeriveLimits()
        self._version = self._stat()
        self._key, self._approvals = load_owner(path, secret)
        self.state = State(state or state_folder(path))
        self.networks = Networks(self.state)
        self._images = self.state.folder / "calibration.npy"
        if calibration is not None:
            write_file(self._images, npy(calibration))

    @property
    def vk(self) -> VerificationKey:
        return self._key.vk

    def check_header(self, vk_digest: bytes, context: Context, derivation: Derivation) -> None:
        """What can be refused with a reason before a model is uploaded.  Raises ParameterError."""
        if derivation.calibration not in (b"", self._calibration_digest):
            raise ParameterError("this prover does not hold the calibration images that the derivation names")
        if vk_digest != self.vk.digest:
            raise ParameterError("this prover holds another key")
        if context.claimant != self._claimant:
            raise ParameterError("this prover makes no proofs for that claimant")  # a relayed challenge ends here

    def claim(
        self,
        model: Path,
        model_sha256: bytes,
        derivation: Derivation,
        context: Context,
        channel: Channel,
        *,
        progress: Report | None = None,
        cancelled: Cancelled | None = None,
    ) -> bytes:
        """The canonical bytes of a claim about the file at `model`, with the k_min that the owner approved.

        A file that was seen before is not derived again.  Raises DecodingError or ParameterError for an unusable model,
        Refused, or what cancels a proof.
        """
        digest, network = self.networks.digest(model_sha256, derivation.digest), None
        if digest is None:
            network = self._derive(model, derivation, progress, cancelled)
            digest = network.digest
            self.networks.remember(model_sha256, derivation.digest, digest)
        k_min = self._current_approvals().k_min.get(digest, 0)
        if not k_min:
            raise Refused(digest)
        kept = self.networks.load(digest)
        network = kept or network or self._derive(model, derivation, progress, cancelled)
        if kept is None:
            self.networks.keep(network)
        about = Subject(network, model_sha256, derivation.digest, 0.0)  # what its k_min allows was asked at approval
        try:
            claim = make_claim(
                self._key, about, k_min, context, channel,
                resources=self._resources, progress=progress, cancelled=cancelled,
            )  # fmt: skip
        except ParameterError as error:  # over the memory limit
            log.warning("an approved model cannot be proven here: %s", error)
            raise Refused(digest) from None
        except VerificationError as error:
            if error.check == "prove.matches":  # cannot happen for what `approve` recorded; a client may not tell
                raise Refused(digest) from None
            raise
        return claim.to_bytes()

    def _derive(
        self, model: Path, derivation: Derivation, progress: Report | None, cancelled: Cancelled | None
    ) -> Network:
        if progress is not None:
            progress("derive", 0.0)
        images = self._images if derivation.calibration else None
        try:
            data, _ = derive_apart(model, derivation.to_bytes(), images, self._derive_limits, cancelled or _never)
        except InterruptedError:
            raise Stopped from None
        network = Network.from_bytes(data)
        check_shape(network, self.vk)
        return network

    def _stat(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_ino, status.st_mtime_ns

    def _current_approvals(self) -> Approvals:
        """The approvals on disk: what the owner approves while the server runs counts at once."""
        version = self._stat()
        if version != self._version:
            try:
                key, approvals = load_owner(self._path, self._secret)
            except (DecodingError, ParameterError):
                raise RuntimeError("the owner's file cannot be read any more") from None  # not the client's fault
            if key.vk.digest != self.vk.digest:
                raise RuntimeError("the owner's file now holds another key; start the server again")
            self._version, self._approvals = version, approvals
        return self._approvals


def state_folder(path: Path) -> Path:
    """Where the state of a server is by default: beside its marking key."""
    return path.resolve().with_suffix(".state")


def npy(images: Images) -> bytes:
    """The images as a .npy file."""
    file = io.BytesIO()
    np.save(file, images, allow_pickle=False)
    return file.getvalue()


def _never() -> bool:
    return False

"""A witness of a board: she signs a checkpoint only if it continues the last one that she signed.

What she signed last is in a file, on disk before the signature leaves.  Two processes never share that file, and who
loses it makes a new witness: an empty file would let her sign another history.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from protocol.cosignature import cosign
from protocol.history import alone, last_seen, see
from protocol.log import Checkpoint, LogKey, open_checkpoint
from prover.board import ask
from zkmark.connect import Tls
from zkmark.v1 import zkmark_pb2 as pb

SECRET_MAGIC = "zkmark witness key 1"
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Witness:
    """seed: her secret.  state: the file of the last checkpoint that she signed."""

    public: bytes
    seed: bytes = field(repr=False)
    state: Path

    def sign_next(self, target: str, log: LogKey, *, tls: Tls | None = None, token: str = "") -> Checkpoint:
        """Ask the board for the checkpoint that it offers, sign it, and give it the signature; what was signed.

        Raises VerificationError `log.*` if the log contradicts what she signed last, with the evidence beside her file;
        ConnectionError if the board cannot be reached or offers another one by now, ParameterError if she is no witness
        of it, DecodingError for a malformed answer.
        """
        with alone(self.state):
            old = last_seen(self.state, log)
            request = pb.CheckpointRequest(old_size=old.size)
            answer = ask(target, lambda board: board.Offer(request, timeout=TIMEOUT_S), tls, token)
            new = open_checkpoint(answer.note, log)
            see(self.state, old, new, answer.note, answer.consistency)
            signature = cosign(self.seed, log, new)
        given = pb.CosignatureRequest(size=new.size, witness=self.public, signature=signature)
        ask(target, lambda board: board.AddCosignature(given, timeout=TIMEOUT_S), tls, token)
        return new

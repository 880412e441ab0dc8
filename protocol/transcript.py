"""The Fiat-Shamir transcript and its two channels (SPEC section 6).

The state is a 32-byte string.  Absorbed data are labelled and length-framed; a challenge hashes the state with all
frames since the last one, so that nothing can be absorbed twice or in two ways:

    pending = cSHAKE256(state | frames..., "zkmark/state")          32 bytes: commits to everything said so far
    stream  = cSHAKE256(pending | coin, "zkmark/challenge")         first 32 bytes: the new state; the rest: the
    challenge

`coin` is empty in the Fiat-Shamir channel.  In the interactive channel it is 32 fresh bytes of the verifier, who sees
`pending` before she draws them.  A fork starts from a labelled, numbered copy of the state; forks do not see each
other, and a join absorbs their digests in order.

Nothing that depends on the witness leaves the prover as it is, and the types say so: what is sent is `Masked` or
`MaskedElements`, what is absorbed is that or `Public`, and anything else is a TypeError, for mypy, too.  These types
are given in a few places only, where a mask is added or where all is public; SECURITY.md lists them, a test compares.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from Crypto.Hash import cSHAKE256

from protocol import field
from protocol.errors import VerificationError

DIGEST_BYTES = 32
COIN_BYTES = 32


class Public(bytes):
    """A function of the statement and of what was sent."""


class Masked(bytes):
    """A message of the prover: distributed as if there were no witness."""


@dataclass(frozen=True, eq=False)
class MaskedElements:
    """The same, of K [5, n].  What is computed from `values` is no message any more."""

    values: field.Vector


class Messages:
    """The prover's messages, in the order of the proof."""

    def __init__(self) -> None:
        self._parts: list[Masked] = []

    def send(self, message: Masked) -> None:
        if not isinstance(message, Masked):
            raise TypeError("only what is masked is sent")
        self._parts.append(message)

    def send_elements(self, message: MaskedElements) -> None:
        self.send(_wire(message))

    def to_bytes(self) -> bytes:
        return b"".join(self._parts)


def _wire(elements: MaskedElements) -> Masked:
    if not isinstance(elements, MaskedElements):
        raise TypeError("only what is masked is sent")
    return Masked(field.to_bytes(elements.values))


class Channel(Protocol):
    """Where challenges get their freshness from."""

    interactive: bool

    def open(self) -> None:
        """A transcript begins."""
        ...

    def coin(self, pending: bytes) -> bytes:
        """The coin for the transcript that hashes to `pending`: empty or COIN_BYTES bytes."""
        ...

    def close(self) -> None:
        """The transcript has ended."""
        ...


class FiatShamir:
    """The non-interactive channel: a proof is a file that anyone can check again."""

    interactive = False

    def open(self) -> None:
        pass

    def coin(self, pending: bytes) -> bytes:
        return b""

    def close(self) -> None:
        pass


class InteractiveProver:
    """The prover's end of the interactive channel.

    `ask` sends 32 bytes to the verifier and returns her coin.  No state is ever answered twice: a prover who answered
    two coins from one committed state would reveal its witness.
    """

    interactive = True

    def __init__(self, ask: Callable[[bytes], bytes]) -> None:
        self._ask = ask
        self._asked: set[bytes] = set()

    def open(self) -> None:
        pass

    def coin(self, pending: bytes) -> bytes:
        if pending in self._asked:
            raise VerificationError("channel.second_coin", "a second coin was asked for one committed state")
        self._asked.add(pending)
        coin = self._ask(pending)
        if len(coin) != COIN_BYTES:
            raise VerificationError("channel.coin", "the verifier's coin is not 32 bytes")
        return coin

    def close(self) -> None:
        pass


class InteractiveVerifier:
    """The verifier's end: draws one coin per state during the session, and replays them when she checks the proof."""

    interactive = True

    def __init__(self, draw: Callable[[int], bytes], limit: int = 1 << 16) -> None:
        self._draw = draw
        self._limit = limit
        self._coins: dict[bytes, bytes] = {}
        self._unused: set[bytes] = set()
        self._checking = False

    def answer(self, pending: bytes) -> bytes:
        """Called for each state that the prover commits to, while the session lasts."""
        if self._checking or len(pending) != DIGEST_BYTES or pending in self._coins:
            raise VerificationError("channel.second_coin", "a coin is drawn once per state and never after the session")
        if len(self._coins) >= self._limit:
            raise VerificationError("channel.coin", "too many challenges in one session")
        self._coins[pending] = self._draw(COIN_BYTES)
        self._unused.add(pending)
        return self._coins[pending]

    def open(self) -> None:
        """Called by `verify`, after the session, once: more proofs of one session would be more tries."""
        if self._checking:
            raise VerificationError("channel.coin", "the coins of a session serve one check")
        self._checking = True

    def coin(self, pending: bytes) -> bytes:
        """Called by `verify`: only states that were answered have a coin."""
        self._unused.discard(pending)
        try:
            return self._coins[pending]
        except KeyError:
            raise VerificationError("channel.coin", "the proof is not the one of this session") from None

    def close(self) -> None:
        """Called at the end of `verify`: every coin was used, so that the prover had one try at each challenge."""
        if self._unused:
            raise VerificationError("channel.unused_coin", "the prover asked for coins that the proof does not use")


def _frame(kind: bytes, label: str, data: bytes) -> bytes:
    name = label.encode()
    return kind + struct.pack("<HQ", len(name), len(data)) + name + data


class Transcript:
    """One party's view of the messages; see the module text.  Labels are part of SPEC.md."""

    def __init__(self, protocol: str, channel: Channel) -> None:
        self._channel = channel
        self._state = bytes(DIGEST_BYTES)
        self._frames = [_frame(b"P", "protocol", protocol.encode())]

    def absorb(self, label: str, data: Masked | Public) -> None:
        """Absorb one message."""
        if not isinstance(data, Masked | Public):
            raise TypeError("only what is masked or public is absorbed")
        self._frames.append(_frame(b"A", label, data))

    def absorb_elements(self, label: str, elements: MaskedElements) -> None:
        """Absorb field elements [5, n] of K in their wire form."""
        self.absorb(label, _wire(elements))

    def _pending(self) -> bytes:
        """Fold the frames into the state and return it."""
        if self._frames:
            hasher = cSHAKE256.new(self._state, custom=b"zkmark/state")
            for frame in self._frames:
                hasher.update(frame)
            self._state, self._frames = hasher.read(DIGEST_BYTES), []
        return self._state

    def digest(self) -> bytes:
        """32 bytes that commit to everything absorbed so far."""
        return self._pending()

    def fork(self, label: str, index: int) -> Transcript:
        """An independent transcript that starts from all that was said so far."""
        child = Transcript.__new__(Transcript)
        child._channel = self._channel
        child._state = self._pending()
        child._frames = [_frame(b"F", label, struct.pack("<Q", index))]
        return child

    def _stream(self, label: str) -> Callable[[int], bytes]:
        self._frames.append(_frame(b"C", label, b""))
        pending = self._pending()
        xof = cSHAKE256.new(pending + self._channel.coin(pending), custom=b"zkmark/challenge")
        self._state = xof.read(DIGEST_BYTES)
        return xof.read

    def challenge_bytes(self, label: str, count: int) -> bytes:
        return self._stream(label)(count)

    def challenge_base(self, label: str, count: int) -> npt.NDArray[np.uint32]:
        """[count] uniform elements of F, canonical."""
        return BaseStream(self._stream(label)).take(count)

    def challenge(self, label: str, count: int = 1) -> npt.NDArray[np.uint32]:
        """[5, count] uniform elements of K whose first coordinate is not zero, Montgomery form (`field`).

        (A zero first coordinate is redrawn: round checks divide by challenges.)
        """
        return field.from_base(BaseStream(self._stream(label)).take_heads(count))

    def challenge_indices(self, label: str, count: int, bound: int) -> list[int]:
        """`count` distinct integers below `bound` (a power of two), uniform, in ascending order."""
        read, found = self._stream(label), set[int]()
        while len(found) < count:
            block = np.frombuffer(read(4 * count), "<u4") & (bound - 1)
            for value in block.tolist():
                if len(found) < count:
                    found.add(value)
        return sorted(found)


def _bytes_for(count: int) -> int:
    """To read for so many elements: mostly enough in one go, as one word in 16 is skipped."""
    return 4 * max(32, count * 9 // 8)


class BaseStream:
    """Uniform elements of F from a byte stream: little-endian words cut to 31 bits, in order; p or more is skipped."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._held = np.zeros(0, np.uint32)

    def take(self, count: int) -> npt.NDArray[np.uint32]:
        """[count] the next elements, canonical."""
        while len(self._held) < count:
            words = np.frombuffer(self._read(_bytes_for(count - len(self._held))), "<u4") & np.uint32(0x7FFFFFFF)
            self._held = np.concatenate([self._held, words[words < field.P]])
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def take_heads(self, count: int) -> npt.NDArray[np.uint32]:
        """[5, count] the next elements of K, canonical; those whose first coordinate is 0 are skipped."""
        found = np.zeros((0, field.DEGREE), np.uint32)
        while len(found) < count:
            values = self.take(field.DEGREE * (count - len(found))).reshape(-1, field.DEGREE)
            found = np.concatenate([found, values[values[:, 0] != 0]])
        return np.ascontiguousarray(found.T)

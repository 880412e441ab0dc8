"""Challenges that are known in advance, and a random oracle that gives them.

A `Tape` holds the honest verifier's coin tosses: one stream for every challenge of every fork.  `Taped` transcripts
read it.  With an `Oracle`, they also program cSHAKE256 at each point (pending | coin) that they meet, so that the
ordinary transcript, which hashes, draws the same challenges as long as the oracle is in force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from Crypto.Hash import SHAKE256

from protocol import argument, transcript
from protocol.transcript import DIGEST_BYTES, Channel, FiatShamir, Transcript

CHALLENGE = b"zkmark/challenge"


class Tape:
    """All coin tosses of an honest verifier, drawn from a seed before the first message."""

    def __init__(self, seed: int) -> None:
        self._seed = seed.to_bytes(8, "little")

    def stream(self, path: tuple[int, ...], number: int) -> Any:
        """The stream of challenge `number` in the fork that `path` leads to."""
        return SHAKE256.new(b"tape" + self._seed + bytes(path) + b"/" + number.to_bytes(4, "little"))


class Oracle:
    """cSHAKE256 of the challenges, programmed in some points; `in_force` makes transcripts use it."""

    def __init__(self) -> None:
        self.points: dict[bytes, Callable[[], Any]] = {}

    def program(self, point: bytes, stream: Callable[[], Any]) -> None:
        if point in self.points:
            raise RuntimeError("the oracle was asked there before")
        self.points[point] = stream

    @contextmanager
    def in_force(self) -> Iterator[None]:
        real = transcript.cSHAKE256

        def new(data: bytes, custom: bytes) -> Any:
            if custom == CHALLENGE and data in self.points:
                return self.points[data]()
            return real.new(data, custom=custom)

        with mock.patch.object(transcript, "cSHAKE256", SimpleNamespace(new=new)):
            yield


class Taped(Transcript):
    """A transcript whose challenges are those of the tape, whatever was absorbed."""

    def __init__(self, protocol: str, channel: Channel, tape: Tape, oracle: Oracle | None = None) -> None:
        super().__init__(protocol, channel)
        self._tape, self._oracle, self._path, self._count = tape, oracle, (), 0

    def fork(self, label: str, index: int) -> Taped:
        child = super().fork(label, index)
        child.__class__ = Taped
        child._tape, child._oracle, child._path, child._count = self._tape, self._oracle, (*self._path, index), 0
        return child  # type: ignore[return-value]

    def _stream(self, label: str) -> Callable[[int], bytes]:
        self._frames.append(transcript._frame(b"C", label, b""))
        pending, path, number = self._pending(), self._path, self._count
        self._count += 1
        if self._oracle is not None:
            coin = self._channel.coin(pending)
            self._oracle.program(pending + coin, lambda: self._tape.stream(path, number))
        stream = self._tape.stream(path, number)
        self._state = stream.read(DIGEST_BYTES)
        return stream.read


def taped(tape: Tape) -> Taped:
    """The main transcript of a proof in which nothing is hashed but the tape."""
    return Taped(argument.VERSION, FiatShamir(), tape)


def on_tape(tape: Tape, oracle: Oracle | None = None) -> Any:
    """Provers and verifiers draw the tape's challenges, and program the oracle where they do."""
    return mock.patch.object(argument, "Transcript", lambda protocol, channel: Taped(protocol, channel, tape, oracle))

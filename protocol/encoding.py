"""Strict byte reader and writer.  Every object has exactly one accepted encoding.

Integers are little-endian and unsigned.  A reader never allocates from a length that it has not capped, and `done`
rejects trailing bytes.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import DecodingError


class Writer:
    """Collects the canonical encoding of one object."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def u8(self, value: int) -> Writer:
        return self.raw(struct.pack("<B", value))

    def u16(self, value: int) -> Writer:
        return self.raw(struct.pack("<H", value))

    def u32(self, value: int) -> Writer:
        return self.raw(struct.pack("<I", value))

    def u64(self, value: int) -> Writer:
        return self.raw(struct.pack("<Q", value))

    def i64(self, value: int) -> Writer:
        return self.raw(struct.pack("<q", value))

    def raw(self, data: bytes) -> Writer:
        """Append bytes whose length the reader knows."""
        self._parts.append(bytes(data))
        return self

    def blob(self, data: bytes) -> Writer:
        """Append a u32 length and the bytes."""
        return self.u32(len(data)).raw(data)

    def text(self, value: str) -> Writer:
        return self.blob(value.encode("utf-8"))

    def to_bytes(self) -> bytes:
        return b"".join(self._parts)


class Reader:
    """Reads one object; every method raises DecodingError rather than any other exception."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._what = what

    @property
    def remaining(self) -> int:
        return len(self._data) - self._at

    def fail(self, reason: str) -> DecodingError:
        """The error to raise for this object: `raise reader.fail("...")`."""
        return DecodingError(f"{self._what}: {reason}")

    def raw(self, count: int) -> bytes:
        if count < 0 or count > self.remaining:
            raise self.fail(f"truncated at byte {self._at}")
        out = bytes(self._data[self._at : self._at + count])
        self._at += count
        return out

    def _unpack(self, fmt: str) -> int:
        value: int = struct.unpack(fmt, self.raw(struct.calcsize(fmt)))[0]
        return value

    def u8(self) -> int:
        return self._unpack("<B")

    def u16(self) -> int:
        return self._unpack("<H")

    def u32(self) -> int:
        return self._unpack("<I")

    def u64(self) -> int:
        return self._unpack("<Q")

    def i64(self) -> int:
        return self._unpack("<q")

    def blob(self, cap: int) -> bytes:
        """A u32 length of at most `cap`, then the bytes."""
        length = self.u32()
        if length > cap:
            raise self.fail(f"length {length} over the cap {cap}")
        return self.raw(length)

    def text(self, cap: int) -> str:
        try:
            return self.blob(cap).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("text is not UTF-8") from None

    def magic(self, expected: bytes) -> None:
        """A fixed tag that names the kind and the version of the object."""
        if self.raw(len(expected)) != expected:
            raise self.fail("wrong kind of file or unsupported version")

    def array(self, dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
        """`count` little-endian numbers of `dtype` (for example "<u4")."""
        kind = np.dtype(dtype)
        return np.frombuffer(self.raw(count * kind.itemsize), dtype=kind).copy()

    def done(self) -> None:
        if self.remaining:
            raise self.fail(f"{self.remaining} trailing bytes")

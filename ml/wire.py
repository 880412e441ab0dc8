"""What a protobuf file holds, counted before it is parsed: a parser makes an object of every two bytes it is told to.

Only the wire format is read (protobuf.dev/programming-guides/encoding), along the fields that hold messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from protocol.errors import DecodingError, ParameterError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

MAX_FIELDS = 1 << 19  # of all messages; exporters write some 40 for an operator
MAX_DEPTH = 16  # of messages within messages
MAX_PACKED = 1 << 22  # bytes of packed integers, which a parser may make eight times as large

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MALFORMED = "ONNX model: not an ONNX file, or truncated"


def check_counts(data: bytes) -> None:
    """Of a ModelProto.  Raises DecodingError for what is no message, ParameterError for too many or too deep ones."""
    import onnx

    root: Descriptor = onnx.ModelProto.DESCRIPTOR  # type: ignore[assignment]
    fields = packed = 0
    rules: dict[str, Mapping[int, Descriptor | None]] = {}
    waiting = [(0, len(data), root, 1)]
    while waiting:
        at, end, kind, depth = waiting.pop()
        if kind.full_name not in rules:
            rules[kind.full_name] = _lengthy(kind)
        known = rules[kind.full_name]
        while at < end:
            fields += 1
            if fields > MAX_FIELDS:
                raise ParameterError(f"ONNX model: over {MAX_FIELDS} fields; keep large tensors as raw data")
            tag, at = _varint(data, at, end)
            wire = tag & 7
            if wire == VARINT:
                _, at = _varint(data, at, end)
            elif wire == BYTES:
                length, at = _varint(data, at, end)
                number = tag >> 3
                inner = known.get(number)
                if inner is not None and length:
                    if depth == MAX_DEPTH:
                        raise ParameterError(f"ONNX model: messages are nested more than {MAX_DEPTH} deep")
                    waiting.append((at, at + length, inner, depth + 1))
                elif number in known:
                    packed += length
                at += length
            elif wire in (FIXED32, FIXED64):
                at += 4 if wire == FIXED32 else 8
            else:  # groups, which ONNX has none of
                raise DecodingError(MALFORMED)
            if at > end:
                raise DecodingError(MALFORMED)
        if packed > MAX_PACKED:
            raise ParameterError(f"ONNX model: over {MAX_PACKED} bytes of packed integers; keep tensors as raw data")


def _lengthy(kind: Descriptor) -> dict[int, Descriptor | None]:
    """By number: the fields whose bytes are a message, and with None those whose bytes are packed integers."""
    from google.protobuf.descriptor import FieldDescriptor

    cpp = FieldDescriptor
    integers = cpp.CPPTYPE_INT32, cpp.CPPTYPE_INT64, cpp.CPPTYPE_UINT32, cpp.CPPTYPE_UINT64
    return {f.number: f.message_type for f in kind.fields if f.message_type is not None or f.cpp_type in integers}


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise DecodingError(MALFORMED)

"""The reader accepts exactly what the writer makes, and raises DecodingError for everything else."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.encoding import Reader, Writer
from protocol.errors import DecodingError

NUMBERS = {"u8": (0, 2**8 - 1), "u16": (0, 2**16 - 1), "u32": (0, 2**32 - 1), "u64": (0, 2**64 - 1),
           "i64": (-(2**63), 2**63 - 1)}  # fmt: skip
numbers = st.one_of([st.tuples(st.just(kind), st.integers(*ends)) for kind, ends in NUMBERS.items()])
fields = st.lists(st.one_of(
    numbers,
    st.tuples(st.just("blob"), st.binary(max_size=20)),
    st.tuples(st.just("text"), st.text(max_size=20)),
), max_size=8)  # fmt: skip


def write(items):
    out = Writer()
    for kind, value in items:
        getattr(out, kind)(value)
    return out.to_bytes()


def read(data, kinds):
    r = Reader(data, "test")
    values = [getattr(r, kind)(80) if kind in ("blob", "text") else getattr(r, kind)() for kind in kinds]
    r.done()
    return values


@given(fields)
def test_round_trip(items):
    assert read(write(items), [kind for kind, _ in items]) == [value for _, value in items]


@given(fields, st.data())
def test_truncation_and_trailing_bytes(items, data):
    encoded, kinds = write(items), [kind for kind, _ in items]
    with pytest.raises(DecodingError, match="trailing"):
        read(encoded + b"\0", kinds)
    if encoded:
        cut = data.draw(st.integers(0, len(encoded) - 1))
        with pytest.raises(DecodingError, match="truncated"):
            read(encoded[:cut], kinds)


@given(st.binary(max_size=60), st.lists(st.sampled_from([*NUMBERS, "blob", "text"]), max_size=6))
def test_any_bytes_decode_to_one_value_or_not_at_all(data, kinds):
    try:
        values = read(data, kinds)
    except DecodingError:
        return
    assert write(zip(kinds, values, strict=True)) == data


def test_known_bytes():
    data = Writer().u8(1).u16(2).u32(3).u64(4).i64(-1).blob(b"xy").text("é").raw(b"z").to_bytes()
    assert data == struct.pack("<BHIQq", 1, 2, 3, 4, -1) + b"\2\0\0\0xy" + b"\2\0\0\0\xc3\xa9" + b"z"


@pytest.mark.parametrize(("kind", "value"), [("u8", 256), ("u8", -1), ("u16", 2**16), ("u32", 2**32), ("u64", -1)])
def test_the_writer_refuses_what_does_not_fit(kind, value):
    with pytest.raises(struct.error):
        getattr(Writer(), kind)(value)


def test_a_cap_comes_before_the_bytes():
    assert Reader(b"\3\0\0\0abc", "test").blob(3) == b"abc"
    for kind in ("blob", "text"):
        with pytest.raises(DecodingError, match="over the cap 2"):
            getattr(Reader(b"\3\0\0\0abc", "test"), kind)(2)


def test_lengths_allocate_nothing():
    tracemalloc.start()
    for call in (lambda r: r.blob(2**32), lambda r: r.raw(2**40), lambda r: r.array("<u4", 2**40), lambda r: r.raw(-1)):
        with pytest.raises(DecodingError):
            call(Reader(b"\xff" * 8, "test"))
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@pytest.mark.parametrize("data", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xc3"])
def test_text_is_strict_utf8(data):
    with pytest.raises(DecodingError, match="UTF-8"):
        Reader(Writer().blob(data).to_bytes(), "test").text(10)


def test_magic():
    Reader(b"kind 1\nrest", "test").magic(b"kind 1\n")
    for data in (b"kind 2\n", b"kind 1", b""):
        with pytest.raises(DecodingError):
            Reader(data, "test").magic(b"kind 1\n")


def test_array():
    values = np.array([1, 2**32 - 1, 7], "<u4")
    r = Reader(values.tobytes() + b"\5", "test")
    found = r.array("<u4", 3)
    found[0] = 9  # a copy that can be written to
    assert found.tolist() == [9, 2**32 - 1, 7] and r.remaining == 1 and r.u8() == 5
    with pytest.raises(DecodingError):
        Reader(values.tobytes()[:-1], "test").array("<u4", 3)
    assert Reader(b"", "test").array("<i8", 0).shape == (0,)


def test_errors_name_the_object():
    with pytest.raises(DecodingError, match=r"^some kind of file: truncated at byte 1$"):
        r = Reader(b"ab", "some kind of file")
        r.u8()
        r.u32()

"""The bytes of a claim."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.argument import Context
from protocol.claim import MAGIC, Claim
from protocol.errors import DecodingError

texts = st.text(max_size=60)
digests = st.binary(min_size=32, max_size=32)
claims = st.builds(
    Claim,
    k_min=st.integers(0, 2**32 - 1),
    context=st.builds(Context, texts, texts, texts, digests),
    digests=st.tuples(digests, digests, digests, digests),
    proof=st.binary(max_size=300),
)


@given(claims)
def test_round_trip(claim):
    assert Claim.from_bytes(claim.to_bytes()) == claim


@given(claims, st.data())
def test_one_encoding_only(claim, data):
    """Whatever decodes, encodes to the same bytes; every proper prefix and every longer string is malformed."""
    encoded = claim.to_bytes()
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(DecodingError):
        Claim.from_bytes(encoded[:cut])
    with pytest.raises(DecodingError):
        Claim.from_bytes(encoded + b"\0")
    changed = bytearray(encoded)
    changed[cut] ^= data.draw(st.integers(1, 255))
    try:
        other = Claim.from_bytes(bytes(changed))
    except DecodingError:
        return
    assert other != claim and other.to_bytes() == bytes(changed)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_malformed_or_canonical(data):
    for candidate in (data, MAGIC + data):
        try:
            claim = Claim.from_bytes(candidate)
        except DecodingError:
            continue
        assert claim.to_bytes() == candidate

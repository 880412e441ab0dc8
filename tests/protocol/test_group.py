"""BLS12-381 G1: published vectors, the independent implementation py_ecc, and encodings that must not decode."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py_ecc.bls.hash_to_curve import hash_to_G1
from py_ecc.bls.point_compression import compress_G1, decompress_G1
from py_ecc.optimized_bls12_381 import G1, add, b, curve_order, field_modulus, is_on_curve, multiply, normalize
from py_ecc.optimized_bls12_381 import Z1 as INFINITY

from protocol import group
from protocol.errors import DecodingError, ParameterError

GENERATOR = bytes.fromhex(
    "97f1d3a73197d7942695638c4fa9ac0fc3688c4f9774b905a14e3a3f171bac586c55e83ff97a1aeffb3af00adb22c6bb"
)
# RFC 9380, appendix J.9.1: x and y of hash_to_curve(message).
RFC_DOMAIN = b"QUUX-V01-CS02-with-BLS12381G1_XMD:SHA-256_SSWU_RO_"
RFC_VECTORS = {
    b"": (
        "052926add2207b76ca4fa57a8734416c8dc95e24501772c814278700eed6d1e4e8cf62d9c09db0fac349612b759e79a1",
        "08ba738453bfed09cb546dbb0783dbb3a5f1f566ed67bb6be0e8c67e2e81a4cc68ee29813bb7994998f3eae0c9c6a265",
    ),
    b"abc": (
        "03567bc5ef9c690c2ab2ecdf6a96ef1c139cc0b2f284dca0a9a7943388a49a3aee664ba5379a7655d3c68900be2f6903",
        "0b9c15f3fe6e5cf4211f346271d7b01c8f3b28be689c8429c85b67af215533311f0b8dfaaa154fa6b88176c229f2885d",
    ),
}


def oracle(points, scalars):
    """The multi-exponentiation by py_ecc, on compressed points."""
    total = INFINITY
    for data, scalar in zip(points, scalars, strict=True):
        total = add(total, multiply(decompress_G1(int.from_bytes(data, "big")), scalar % curve_order))
    return compress_G1(total).to_bytes(48, "big")


def random_points(count):
    return [group.hash_to_curve(b"%d" % i, b"test") for i in range(count)]


def test_order_and_generator():
    assert group.ORDER == curve_order
    assert compress_G1(G1).to_bytes(48, "big") == GENERATOR == group.encode(group.decode(GENERATOR))
    g = group.decode(GENERATOR)
    assert group.multiexp([g, g], [group.ORDER - 1, 1]) == group.identity()


@pytest.mark.parametrize("message", RFC_VECTORS)
def test_hash_to_curve_is_rfc_9380(message):
    x, y = RFC_VECTORS[message]
    assert group.hash_to_curve(message, RFC_DOMAIN).to_xy_bytes_be().hex() == x + y


def test_hash_to_curve_equals_the_second_implementation():
    from hashlib import sha256

    for message in (b"", b"zkmark", bytes(100)):
        expected = compress_G1(hash_to_G1(message, b"a domain", sha256)).to_bytes(48, "big")
        assert group.encode(group.hash_to_curve(message, b"a domain")) == expected


@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(st.integers(-300, 300), st.integers(0, 2**80), st.integers(-(2**260), 2**260)), max_size=6))
def test_multiexp_equals_the_second_implementation(scalars):
    points = random_points(len(scalars))
    assert group.encode(group.multiexp(points, scalars)) == oracle(map(group.encode, points), scalars)


def test_multiexp_takes_numpy_integers_and_repeated_points():
    (point,) = random_points(1)
    scalars = np.array([3, 4, 250], np.uint8)
    assert group.multiexp([point] * 3, scalars) == group.multiexp([point], [257])
    assert group.multiexp([point] * 3, scalars) == group.sum_points([point] * 257)


def test_multiexp_of_many_points_equals_its_parts():
    points = random_points(300)
    scalars = [pow(3, k, group.ORDER) >> (k % 250) for k in range(300)]
    parts = [group.multiexp(points[k : k + 7], scalars[k : k + 7]) for k in range(0, 300, 7)]
    assert group.multiexp(points, scalars) == group.sum_points(parts)
    assert group.multiexp([], []) == group.identity() == group.sum_points([])


@pytest.mark.parametrize(("points", "scalars"), [(2, 1), (1, 2), (0, 1), (1, 0)])
def test_multiexp_refuses_unequal_lengths(points, scalars):
    with pytest.raises(ParameterError):
        group.multiexp(random_points(points), range(scalars))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, curve_order - 1))
def test_encoding_round_trip(scalar):
    data = compress_G1(multiply(G1, scalar)).to_bytes(48, "big")
    assert group.encode(group.decode(data)) == data


def outside_the_subgroup():
    """Encoding of a point that satisfies the curve equation only."""
    x = 1
    while True:
        y = pow(x**3 + b.n, (field_modulus + 1) // 4, field_modulus)
        if (y * y - x**3 - b.n) % field_modulus == 0:
            point = (type(G1[0])(x), type(G1[0])(y), type(G1[0])(1))
            if normalize(multiply(point, curve_order))[0] != 0 and is_on_curve(point, b):
                return compress_G1(point).to_bytes(48, "big")
        x += 1


def off_the_curve():
    x = next(x for x in range(1, 99) if pow(x**3 + 4, (field_modulus - 1) // 2, field_modulus) != 1)
    return (x | 1 << 383).to_bytes(48, "big")


def with_x_over_the_modulus():
    """The encoding of a subgroup point with x + modulus in the place of x."""
    for k in range(1, 100):
        point = multiply(G1, k)
        if normalize(point)[0].n + field_modulus < 1 << 381:
            return (compress_G1(point) + field_modulus).to_bytes(48, "big")
    raise AssertionError("no small x among the multiples of the generator")


BAD_POINTS = {
    "empty": b"",
    "short": GENERATOR[:-1],
    "long": GENERATOR + b"\0",
    "uncompressed flag": bytes([GENERATOR[0] & 0x7F]) + GENERATOR[1:],
    "infinity": b"\xc0" + bytes(47),
    "infinity with sign": b"\xe0" + bytes(47),
    "infinity with junk": b"\xc0" + bytes(46) + b"\1",
    "infinity flag on a point": bytes([GENERATOR[0] | 0x40]) + GENERATOR[1:],
    "x + modulus": with_x_over_the_modulus(),
    "x = modulus": (field_modulus | 1 << 383).to_bytes(48, "big"),
    "all ones": b"\xff" * 48,
    "all zero": bytes(48),
    "order 3": b"\x80" + bytes(47),
    "outside the subgroup": outside_the_subgroup(),
    "off the curve": off_the_curve(),
}


@pytest.mark.parametrize("name", BAD_POINTS)
def test_decode_refuses(name):
    with pytest.raises(DecodingError):
        group.decode(BAD_POINTS[name])


def test_a_point_has_one_encoding_whatever_the_library_takes(monkeypatch):
    """Bytes that are read as a point without being what the point is written as are malformed."""
    point = group.decode(GENERATOR)
    lenient = SimpleNamespace(from_compressed_bytes=lambda data: point, identity=group.Point.identity)
    monkeypatch.setattr(group, "Point", lenient)
    assert group.decode(GENERATOR) == point
    for other in (GENERATOR + b"\0", GENERATOR[:-1], bytes([GENERATOR[0] ^ 0x80]) + GENERATOR[1:]):
        with pytest.raises(DecodingError):
            group.decode(other)


def test_a_bit_flip_gives_an_error_or_another_point():
    for bit in range(384):
        data = (int.from_bytes(GENERATOR, "big") ^ 1 << bit).to_bytes(48, "big")
        try:
            assert group.encode(group.decode(data)) == data != GENERATOR
        except DecodingError:
            pass

"""Generators against the second implementation and their pinned digests; commitments; a cache not to be believed."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py_ecc.bls.hash_to_curve import hash_to_G1
from py_ecc.bls.point_compression import compress_G1
from py_ecc.optimized_bls12_381 import Z1, add, multiply

from protocol import cache, pedersen
from protocol.errors import ParameterError
from protocol.group import ORDER, encode, identity, sum_points
from protocol.group import multiply as times
from protocol.pedersen import GENERATORS, Generators

SPEC = Path(__file__).parents[2] / "protocol" / "SPEC.md"


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZKMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def oracle_generator(message):
    return hash_to_G1(message, b"zkmark-v1-generators-with-BLS12381G1_XMD:SHA-256_SSWU_RO_", hashlib.sha256)


def compressed(point):
    return compress_G1(point).to_bytes(48, "big")


def test_generators_equal_the_second_implementation():
    for k in (0, 1, 1023):
        assert encode(GENERATORS.points(1024)[k]) == compressed(oracle_generator(b"pixel" + k.to_bytes(4, "little")))
    assert encode(GENERATORS.share) == compressed(oracle_generator(b"share"))
    assert encode(GENERATORS.blinding) == compressed(oracle_generator(b"blinding"))


def test_prefix_digests_are_pinned():
    assert [*pedersen.PREFIX_DIGESTS] == [1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18]
    for size, digest in pedersen.PREFIX_DIGESTS.items():
        assert f"| {size} | `{digest}` |" in SPEC.read_text()
    fresh = b"".join(pedersen.generator(k).to_xy_bytes_be() for k in range(1024))
    assert hashlib.sha256(fresh).hexdigest() == pedersen.PREFIX_DIGESTS[1024]


def test_generators_are_distinct():
    points = [*GENERATORS.points(1024), GENERATORS.share, GENERATORS.blinding, identity()]
    assert len({encode(p) for p in points}) == len(points)


def test_the_cache_is_used_and_extended(empty_cache, monkeypatch):
    first = Generators().points(5)
    assert (empty_cache / "generators-1024").stat().st_size == 1024 * 96
    assert [p.name for p in empty_cache.iterdir()] == ["generators-1024"]  # no temporary file is left
    monkeypatch.setattr(pedersen, "generator", None)  # a second computation would fail
    assert Generators().points(5) == first
    assert Generators().points(1024)[:5] == first


def test_the_longest_stored_prefix_is_taken(empty_cache, monkeypatch):
    """Only what lacks is computed; as many points as are asked for, up to the largest prefix."""
    computed, generator = [], pedersen.generator
    first = [generator(k) for k in range(8)]

    def recorded(k):
        computed.append(k)
        return generator(k)

    monkeypatch.setattr(pedersen, "generator", recorded)
    monkeypatch.setattr(pedersen, "MAX_GENERATORS", 8)
    digests = {n: hashlib.sha256(b"".join(p.to_xy_bytes_be() for p in first[:n])).hexdigest() for n in (4, 8)}
    monkeypatch.setattr(pedersen, "PREFIX_DIGESTS", digests)
    for count, missing in ((3, [0, 1, 2, 3]), (4, []), (5, [4, 5, 6, 7]), (8, []), (0, []), (4, [])):
        assert Generators().points(count) == first[:count] and computed == missing
        computed.clear()
    with pytest.raises(ParameterError):
        Generators().points(9)
    assert sorted(p.name for p in empty_cache.iterdir()) == ["generators-4", "generators-8"]
    assert len(pedersen._prefix(4)) == 4 * 96
    kept = Generators()
    monkeypatch.setattr(pedersen.cache, "store", None)  # what is stored is not stored again
    assert kept.points(4) == first[:4]
    monkeypatch.setattr(pedersen, "_prefix", None)  # what is held is not read again
    assert kept.points(4) == first[:4] and kept.points(3) == first[:3]


@pytest.mark.parametrize("damage", ["swapped", "truncated", "junk"])
def test_a_damaged_cache_is_not_believed(empty_cache, damage):
    good = Generators().points(3)
    path = empty_cache / "generators-1024"
    data = path.read_bytes()
    path.write_bytes({
        "swapped": data[96:192] + data[:96] + data[192:],  # valid points in another order
        "truncated": data[:-96],
        "junk": bytes(len(data)),
    }[damage])
    assert Generators().points(3) == good
    assert path.read_bytes() == data


def test_an_unusable_cache_folder_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ZKMARK_CACHE", str(tmp_path / "file"))
    assert cache.load("x", 0, "") is None
    cache.store("x", b"data")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_failed_write_leaves_nothing_behind(empty_cache):
    (empty_cache / "x").mkdir(parents=True)  # cannot be replaced by a file
    cache.store("x", b"data")
    assert [p.name for p in empty_cache.iterdir()] == ["x"]


def test_a_library_that_computes_other_points_is_refused(empty_cache, monkeypatch):
    monkeypatch.setattr(pedersen, "generator", lambda k: GENERATORS.share)
    with pytest.raises(RuntimeError):
        Generators().points(1)


@pytest.mark.parametrize("count", [-1, pedersen.MAX_GENERATORS + 1])
def test_the_number_of_generators_is_capped(count):
    with pytest.raises(ParameterError):
        GENERATORS.points(count)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=4), st.integers(0, ORDER - 1))
def test_commit_equals_the_second_implementation(values, randomness):
    total = multiply(oracle_generator(b"blinding"), randomness) if randomness else Z1
    for k, value in enumerate(values):
        total = add(total, multiply(oracle_generator(b"pixel" + k.to_bytes(4, "little")), value))
    assert encode(pedersen.commit(np.array(values, np.uint8), randomness)) == compressed(total)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**40), 2**40), st.integers(-(2**40), 2**40)), min_size=1, max_size=9),
       st.integers(0, ORDER), st.integers(0, ORDER))
def test_commitments_add_up(pairs, r, s):
    a, b = np.array(pairs, np.int64).T
    assert pedersen.commit(a, r) + pedersen.commit(b, s) == pedersen.commit(a + b, r + s)


def test_commit_share_is_apart_from_pixels():
    assert pedersen.commit_share(3, 5) == times(GENERATORS.share, 3) + times(GENERATORS.blinding, 5)
    assert pedersen.commit_share(3, 5) != pedersen.commit(np.array([3]), 5)


def test_commit_images():
    images = np.random.default_rng(1).integers(0, 256, (5, 3, 4, 4), np.uint8)
    seen = []
    points = pedersen.commit_images(images, range(5), lambda done, total: seen.append((done, total)))
    assert points == [pedersen.commit(image, r) for r, image in enumerate(images)]
    assert seen == [(k, 5) for k in range(1, 6)]
    assert pedersen.commit_images(images[:0], []) == []
    with pytest.raises(ParameterError):
        pedersen.commit_images(images, range(4))


def test_opens():
    rng = np.random.default_rng(2)
    images, weights = rng.integers(0, 256, (4, 6), np.uint8), [2**127 + 1, 5, 0, 2**100]
    points = pedersen.commit_images(images, range(10, 14))
    share = pedersen.commit_share(7, 99)
    values = [sum(w * int(image[k]) for w, image in zip(weights, images, strict=True)) for k in range(6)]
    blinding = sum(w * r for w, r in zip(weights, range(10, 14), strict=True))
    assert pedersen.opens(points, weights, values, blinding)
    assert pedersen.opens([*points, share], [*weights, 3], values, blinding + 3 * 99, 3 * 7)
    assert not pedersen.opens(points, weights, [values[0] + 1, *values[1:]], blinding)
    assert not pedersen.opens(points, weights, values, blinding + 1)
    assert not pedersen.opens(points, weights, values, blinding, 1)
    assert not pedersen.opens(points[::-1], weights, values, blinding)
    assert sum_points(points) == pedersen.commit(images.astype(int).sum(axis=0), sum(range(10, 14)))

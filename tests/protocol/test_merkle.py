"""The tree against plain hashing, and openings that are not those of the root."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import merkle
from protocol.errors import VerificationError

trees = st.integers(0, 5).flatmap(
    lambda depth: st.tuples(st.just(1 << depth), st.sets(st.integers(0, (1 << depth) - 1), min_size=1))
)


def leaf_digests(count):
    return [merkle.leaf(bytes([i]) * 32, b"column %d" % i) for i in range(count)]


def rejected(*arguments):
    with pytest.raises(VerificationError) as error:
        merkle.verify(*arguments)
    assert error.value.check == "merkle.path"


def test_hashes():
    assert merkle.leaf(b"s" * 32, b"data") == sha256(b"\0" + b"s" * 32 + b"data").digest()
    a, b, c, d = leaf_digests(4)
    left, right = (sha256(b"\1" + x + y).digest() for x, y in ((a, b), (c, d)))
    assert merkle.Tree(a + b + c + d).root == sha256(b"\1" + left + right).digest()


@given(trees)
def test_openings(tree):
    count, indices = tree
    digests = leaf_digests(count)
    built = merkle.Tree(b"".join(digests))
    siblings = built.open(sorted(indices))
    assert len(siblings) == merkle.sibling_count(sorted(indices), count)
    opened = {i: digests[i] for i in indices}
    merkle.verify(built.root, count, opened, siblings)
    rejected(sha256(built.root).digest(), count, opened, siblings)
    rejected(built.root, count, opened, [*siblings, bytes(32)])
    for i in indices:
        rejected(built.root, count, opened | {i: bytes(32)}, siblings)
    for k in range(len(siblings)):
        rejected(built.root, count, opened, [*siblings[:k], bytes(32), *siblings[k + 1 :]])
        rejected(built.root, count, opened, siblings[:k] + siblings[k + 1 :])
        if len({*siblings}) == len(siblings) > 1:
            rejected(built.root, count, opened, siblings[1:] + siblings[:1])


def test_swapped_leaves():
    digests = leaf_digests(8)
    built = merkle.Tree(b"".join(digests))
    rejected(built.root, 8, {2: digests[5], 5: digests[2]}, built.open([2, 5]))


def test_a_node_is_not_a_leaf():
    """The children of a node cannot be passed off as a salted column, nor the node as a leaf of a smaller tree."""
    digests = leaf_digests(4)
    built = merkle.Tree(b"".join(digests))
    left, right = built.levels[1][:32], built.levels[1][32:]
    assert merkle.leaf(digests[0], digests[1]) != left
    rejected(built.root, 4, {0: left}, [right])


def test_every_salt_counts():
    assert merkle.leaf(b"a" * 32, b"x") != merkle.leaf(b"b" * 32, b"x")

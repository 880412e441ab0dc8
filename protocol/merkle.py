"""A Merkle tree over the columns of the encoded matrix (SPEC section 8): SHA-256, hiding leaves.

    leaf = SHA-256(0x00 | salt (32 bytes) | column),  node = SHA-256(0x01 | left | right)

The number of leaves is a power of two.  An opening of several leaves carries each needed sibling once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from types import ModuleType

import numpy as np
import numpy.typing as npt

from protocol.errors import VerificationError
from protocol.kernels import cpu

SALT_BYTES = 32
HASH_BYTES = 32
_FEW = 512  # nodes of a level that the host hashes while a device would only be launched


def prefixes(salts: bytes) -> npt.NDArray[np.uint8]:
    """uint8 [leaves, 33]: what stands before each column in its leaf."""
    return _tagged(0, salts, SALT_BYTES)


def _tagged(tag: int, data: bytes, width: int) -> npt.NDArray[np.uint8]:
    """Rows of so many bytes, behind a byte that says what they are."""
    return np.pad(np.frombuffer(data, np.uint8).reshape(-1, width), ((0, 0), (1, 0)), constant_values=tag)


def leaf(salt: bytes, column: bytes) -> bytes:
    return sha256(b"\x00" + salt + column).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


class Tree:
    """All levels over the given leaf digests, which stand one after the other, hashed by these kernels."""

    def __init__(self, leaves: bytes, kernels: ModuleType = cpu) -> None:
        self.levels = [leaves]
        while len(leaves) > HASH_BYTES:
            pairs = _tagged(1, leaves, 2 * HASH_BYTES)
            leaves = (kernels if len(pairs) >= _FEW else cpu).Leaves(pairs).digests()
            self.levels.append(leaves)

    @property
    def root(self) -> bytes:
        return self.levels[-1]

    def open(self, indices: Sequence[int]) -> list[bytes]:
        """The siblings that a verifier of these distinct leaves lacks, level by level, in ascending order."""
        out, known = [], sorted(indices)
        for level in self.levels[:-1]:
            have = set(known)
            out += [level[HASH_BYTES * i : HASH_BYTES * (i + 1)] for i in (k ^ 1 for k in known) if i not in have]
            known = sorted({i >> 1 for i in known})
        return out


def sibling_count(indices: Sequence[int], leaves: int) -> int:
    """How many siblings `Tree.open` gives: a verifier knows it before she reads the proof."""
    count, known = 0, set(indices)
    while leaves > 1:
        count += sum(i ^ 1 not in known for i in known)
        known, leaves = {i >> 1 for i in known}, leaves >> 1
    return count


def verify(root: bytes, leaves: int, opened: dict[int, bytes], siblings: Sequence[bytes]) -> None:
    """Statement: the leaf digests `opened` (index to digest) are leaves of the tree with this root.

    Raises VerificationError("merkle.path").
    """
    rest = iter(siblings)
    take: Callable[[], bytes] = rest.__next__
    try:
        while leaves > 1:
            parents = {}
            for i in sorted(opened):
                if i >> 1 not in parents:
                    other = opened[i ^ 1] if i ^ 1 in opened else take()
                    parents[i >> 1] = _node(opened[i], other) if i % 2 == 0 else _node(other, opened[i])
            opened, leaves = parents, leaves >> 1
    except StopIteration:
        raise VerificationError("merkle.path", "too few siblings") from None
    if next(rest, None) is not None or opened != {0: root}:
        raise VerificationError("merkle.path", "opened columns do not hash to the committed root")

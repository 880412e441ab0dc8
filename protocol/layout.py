"""What the prover commits to, by name (SPEC section 5).

Columns are per image: the pixels ``x``, the input table's output ``z0``, and ``u<k>``, ``z<k>`` of requant node k.  One
image's columns lie one after the other in a vector of `depth` entries.

Arrays are not per image (class-major, image fastest where they have both indices):

    o       one-hot label of every image [classes, h]         g     logits                    og = o * g
    m       1 where the image is counted as a match, repeated for every class [classes, h]
    d       margin difference g_label - g - 1 + o             v = m * d, its limbs v0 + 2^15 v1
    count   bits of (sum of m) - k_min                        uses  multiplicity of every table row
    mask    residues of the link's masks, pixels then shares

`PRODUCTS` are the entrywise products that the commitment proves between whole arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt

from protocol import field
from protocol.network import MARGIN_BITS, Network
from protocol.soundness import LINK_REPETITIONS

LIMB_BITS = MARGIN_BITS // 2
PRODUCTS = (("o", "o", "o"), ("m", "m", "m"), ("count", "count", "count"), ("o", "g", "og"), ("m", "d", "v"))


@dataclass(frozen=True)
class LookupTable:
    """Rows (first[i], second[i]) under one tag; second is 0 in a one-column table.  int64 arrays."""

    tag: int
    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]


class Tables:
    """All lookup tables of a network in their normative order, and where each starts among the rows.

    Tags count from 1: the activation tables in order of first use, the ranges [0, 2^s) by ascending s, and the input
    table of each channel.
    """

    def __init__(self, network: Network) -> None:
        self.rows: list[LookupTable] = []
        self._start: dict[object, int] = {}
        self._tag: dict[object, int] = {}
        for table in network.tables():
            half = 1 << (table.bits - 1)
            self._append(table.digest, np.arange(-half, half), table.values)
        for width in sorted({n.shift for n in network.nodes if n.shift} | {LIMB_BITS}):
            self._append(width, np.arange(1 << width), np.zeros(1 << width, np.int64))
        for c, values in enumerate(network.input_tables):
            self._append(("channel", c), np.arange(256), values)

    def _append(self, key: object, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> None:
        self._start[key] = self.size
        self._tag[key] = len(self.rows) + 1
        self.rows.append(LookupTable(self._tag[key], first.astype(np.int64), second.astype(np.int64)))

    @property
    def size(self) -> int:
        return sum(len(t.first) for t in self.rows)

    @cached_property
    def residues(self) -> npt.NDArray[np.uint32]:
        """uint32 [3, size]: every row's tag, first and second column in F."""
        tags = np.concatenate([np.full(len(t.first), t.tag) for t in self.rows])
        columns = [np.concatenate([getattr(t, name) for t in self.rows]) for name in ("first", "second")]
        return field.residues(np.stack([tags, *columns]))

    def start(self, key: object) -> int:
        return self._start[key]

    def tag(self, key: object) -> int:
        """key: an activation table's digest, a range's width in bits, or ("channel", c)."""
        return self._tag[key]


@dataclass(frozen=True)
class Layout:
    """Names, shapes and sizes of everything committed for h images and a threshold k_min."""

    network: Network
    h: int
    k_min: int

    @cached_property
    def tables(self) -> Tables:
        return Tables(self.network)

    @cached_property
    def columns(self) -> dict[str, tuple[int, tuple[int, int, int]]]:
        """Name to (offset in an image's vector, [C, H, W])."""
        shapes = self.network.shapes
        named = [("x", shapes[0]), ("z0", shapes[0])]
        for k in range(1, len(shapes) - 1):
            named += [(f"u{k}", shapes[k]), (f"z{k}", shapes[k])]
        out, offset = {}, 0
        for name, shape in named:
            out[name] = (offset, shape)
            offset += prod(shape)
        return out

    @cached_property
    def depth(self) -> int:
        """Committed entries per image."""
        return sum(prod(shape) for _, shape in self.columns.values())

    @property
    def count_bits(self) -> int:
        return (self.h - self.k_min).bit_length()

    @cached_property
    def arrays(self) -> dict[str, int]:
        """Name to length."""
        per_class = self.network.classes * self.h
        out = dict.fromkeys(("o", "g", "og", "m", "d", "v", "v0", "v1"), per_class)
        pixels = prod(self.network.shape)
        return out | {"count": self.count_bits, "uses": self.tables.size, "mask": LINK_REPETITIONS * (pixels + 1)}

    @cached_property
    def lookups(self) -> int:
        """Leaves of all trees but the table's."""
        shapes = self.network.shapes
        per_image = prod(shapes[0]) + 2 * self.network.classes + sum(
            prod(shapes[k]) * (2 if node.shift else 1) for k, node in enumerate(self.network.nodes[:-1], 1)
        )
        return per_image * self.h

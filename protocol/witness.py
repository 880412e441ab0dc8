"""The prover's witness: every committed value, from one exact evaluation of the network (SPEC section 5)."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol import field, kernels
from protocol.layers import Witness
from protocol.layout import LIMB_BITS, Layout
from protocol.network import Forward, strict_argmax

Ints = npt.NDArray[np.int64]


def matches(forward: Forward, labels: Ints) -> npt.NDArray[np.bool_]:
    """[h] whether the strict unique argmax of each image is its label."""
    return np.asarray(strict_argmax(forward.logits) == labels)


def build(layout: Layout, forward: Forward, labels: Ints, masks: Ints) -> Witness:
    """All columns and arrays.  labels int64 [h]; masks: the link's residues (layout array ``mask``).

    At least layout.k_min images must match.
    """
    h, classes = layout.h, layout.network.classes
    k = kernels.of(forward.outputs[0])
    parts = [k.to_device(forward.pixels.astype(np.int32)), forward.outputs[0]]
    for u, z in zip(forward.units, forward.outputs[1:], strict=True):
        parts += [u, z]
    images, at = k.words(layout.depth, h), 0
    for part in parts:
        flat = part.reshape(-1)
        rows = len(flat) // h
        k.parallel(partial(k.residues, flat, images[at : at + rows].reshape(-1)), len(flat), len(flat))
        at += rows
    g = forward.logits
    matched = matches(forward, labels)
    o = (np.arange(classes)[:, None] == labels[None, :]).astype(np.int64)
    m = np.broadcast_to(matched.astype(np.int64), (classes, h))
    d = (o * g).sum(axis=0)[None, :] - g - 1 + o
    v = m * d
    count = int(matched.sum()) - layout.k_min
    arrays = {
        "o": o, "g": g, "og": o * g, "m": m, "d": d, "v": v,
        "v0": v & ((1 << LIMB_BITS) - 1), "v1": v >> LIMB_BITS,
        "count": (count >> np.arange(layout.count_bits)) & 1,
        "uses": _uses(layout, forward, v), "mask": masks,
    }
    return Witness(
        images,
        {name: field.residues(np.ascontiguousarray(a)).reshape(-1) for name, a in arrays.items()},
        tuple(k.as_words(r).reshape(-1, h) for r in forward.remainders),
    )


def _uses(layout: Layout, forward: Forward, v: Ints) -> Ints:
    """Multiplicity of every table row."""
    tables = layout.tables
    uses = np.zeros(tables.size, np.int64)

    def count(key: object, values: Any, rows: int, offset: int = 0) -> None:
        start, k = tables.start(key), kernels.of(values)
        flat = values.reshape(-1)
        uses[start : start + rows] += sum(
            k.parallel(partial(k.histogram, flat, offset, rows), len(flat), len(flat)), np.zeros(rows, np.int64))

    for node, u, rem in zip(layout.network.nodes, forward.units, forward.remainders, strict=False):
        if node.table is not None:
            count(node.table.digest, u, 1 << node.table.bits, 1 << (node.table.bits - 1))
        if node.shift:
            count(node.shift, rem, 1 << node.shift)
    for limb in (v & ((1 << LIMB_BITS) - 1), v >> LIMB_BITS):
        count(LIMB_BITS, limb.astype(np.int32), 1 << LIMB_BITS)
    for c in range(prod(layout.network.shape[:1])):
        count(("channel", c), forward.pixels[c].astype(np.int32), 256)
    return uses

"""The coins of an owner who tries again: which items of a key are opened, by the package's own function of real keys.

Her commitments stay as they are and the beacon, which nobody signs, is another number each time: a try costs one hash
of the key and no new commitments, the cheapest way to grind.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cache
from math import comb
from random import Random
from typing import Any

import numpy as np

from protocol import soundness
from protocol.keygen import KeyParameters, LabelRule, PendingKey, commit_key


@cache
def commitments(ell: int) -> PendingKey:
    """Of ell items, images of two pixels, before the coin falls.  Chosen labels: keys of any size are made."""
    images = np.arange(ell, dtype=np.uint16).astype(">u2").view(np.uint8).reshape(ell, 1, 1, 2)
    parameters = KeyParameters((1, 1, 2), 2, ell, LabelRule.CHOSEN)
    return commit_key(parameters, images, labels=[0] * ell, entropy=Random(ell).randbytes)


def coins(ell: int, count: int, first: int = 0) -> Any:
    """bool [count, ell]: which items are opened in her tries number first, first + 1, ..."""
    vk, out = commitments(ell).secrets.vk, np.empty((count, ell), np.bool_)
    for k in range(count):
        out[k] = replace(vk, beacon=(first + k).to_bytes(8, "little")).challenge_bits
    return out


def accepted(opened: Any, bad: int) -> Any:
    """bool [count]: keys in which the first `bad` items stay hidden, and the number of hidden ones is accepted."""
    low, high = soundness.window(opened.shape[1])
    hidden = opened.shape[1] - opened.sum(axis=1)
    return ~opened[:, :bad].any(axis=1) & (low <= hidden) & (hidden <= high)


def exactly(ell: int, bad: int) -> Fraction:
    """The probability of `accepted`."""
    low, high = soundness.window(ell)
    return Fraction(sum(comb(ell - bad, h - bad) for h in range(max(low, bad), high + 1)), 2**ell)

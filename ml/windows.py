"""Windows over windows: what pads, crops, pools and the taps of a maximum compose to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ml.real_network import Ints, RealEdge, Windows
from protocol.network import Window


def has_pads(windows: Windows) -> bool:
    return any(w.pad_before or w.pad_after for w in windows)


def cropped(edge: RealEdge) -> bool:
    return min(edge.rows.pad_before, edge.rows.pad_after, edge.columns.pad_before, edge.columns.pad_after) < 0


def runs(counts: Ints) -> list[tuple[int, int]]:
    """(first, end) of each run of equal counts."""
    ends = [*(np.flatnonzero(np.diff(counts)) + 1).tolist(), len(counts)]
    return [*zip([0, *ends[:-1]], ends, strict=True)]


def inner_outputs(window: Window, before: int, after: int) -> Window:
    """The window without its first and last outputs, so many of them."""
    first, last = window.pad_before - window.stride * before, window.pad_after - window.stride * after
    return replace(window, pad_before=first, pad_after=last)


def behind(edge: RealEdge, windows: Windows) -> Windows:
    """Windows over a plain, perhaps padded edge as windows over its source."""
    first, second = (
        replace(w, pad_before=w.pad_before + inner.pad_before, pad_after=w.pad_after + inner.pad_after)
        for w, inner in zip(windows, (edge.rows, edge.columns), strict=True)
    )
    return first, second


def some_taps(window: Window, first: int, count: int) -> Window:
    """The window of taps first .. first + count - 1 only, at the same outputs."""
    d = window.dilation
    before = window.pad_before - d * first
    after = window.pad_after - d * (window.kernel - first - count)
    return Window(count, window.stride, before, after, d)


def along(axis: int, window: Window, rows: Window, columns: Window) -> Windows:
    return (window, columns) if axis == 0 else (rows, window)


def unit_edge(channels: int, source: int, rows: Window, columns: Window) -> RealEdge:
    return RealEdge(source, np.ones((channels, 1, 1, 1)), rows, columns, channels)


def difference_edge(channels: int, axis: int, source: int, rows: Window, columns: Window) -> RealEdge:
    """First tap minus second tap along an axis."""
    weight = np.array([1.0, -1.0]).reshape((1, 1, 2, 1) if axis == 0 else (1, 1, 1, 2))
    return RealEdge(source, np.repeat(weight, channels, axis=0), rows, columns, channels)

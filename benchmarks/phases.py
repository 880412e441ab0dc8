"""Where a proof's time goes: seconds by phase, and what its kernels multiply and move.

The profiler replaces functions of `protocol` by wrappers while it is open.  A phase is the innermost wrapped call of
the main thread; the kernels, which run on several threads while the main one waits, count for that phase.  On a device
a phase lasts until the device is done with what was launched in it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from math import prod
from threading import Lock, local
from types import ModuleType, TracebackType
from typing import Any
from unittest.mock import patch

import protocol.layers
import protocol.ligero
import protocol.reed_solomon
import protocol.witness
from protocol.kernels import cpu
from protocol.lookup import TreeWitness
from protocol.network import Network
from protocol.sumcheck import Sums

REST = "rest"


def _phases(k: ModuleType) -> tuple[tuple[Any, str, str, tuple[str, ...]], ...]:
    """(owner, function, phase, phases within which it counts as theirs) of a proof with these kernels."""
    return (
        (Network, "forward", "evaluate", ()),
        (protocol.witness, "build", "evaluate", ()),
        (protocol.ligero.Committed, "__init__", "commit: rest", ()),
        (protocol.reed_solomon, "encode", "commit: encode", ("open",)),
        (k.Leaves, "update", "commit: hash", ("open",)),  # what is not hidden behind the encoding
        (k.Leaves, "digests", "commit: hash", ("open",)),
        (protocol.layers, "run", "trees: build", ()),
        (TreeWitness, "open_layer", "trees: build", ()),
        (Sums, "round", "trees: rounds", ("affine",)),
        (Sums, "bind", "trees: fold", ("affine",)),
        (protocol.layers, "affine", "affine", ()),
        (protocol.ligero, "prove", "open", ()),
    )


ORDER = [*dict.fromkeys(phase for _, _, phase, _ in _phases(cpu)), REST]


def synchronize(k: ModuleType) -> None:
    """Wait until a device has done what these kernels launched there."""
    if k is not cpu and k.device().type == "cuda":
        import torch

        torch.cuda.synchronize()


def _size(array: Any) -> int:
    """Entries of an array or a tensor."""
    return prod(array.shape)


def _butterflies(size: int) -> int:
    return size // 2 * (size.bit_length() - 1)


def _encode(values: Any, masks: Any, *rest: Any) -> tuple[int, int, int, int]:
    size, cosets, lanes = len(values), len(rest[2]), rest[-1] - rest[-2]
    products = (1 + cosets) * _butterflies(size) + cosets * (size + len(masks))
    return 0, lanes * products, 0, 4 * lanes * size * (1 + cosets)


def _transform(matrix: Any, *rest: Any) -> tuple[int, int, int, int]:
    size, lanes = len(matrix), rest[-1] - rest[-2]
    return 0, lanes * (_butterflies(size) + size), 0, 8 * lanes * size


def _depthwise(x: Any, weight: Any, rows: Any, columns: Any, out: Any, *rest: Any) -> tuple[int, int, int, int]:
    channels = rest[-1] - rest[-2]
    return 0, 0, 0, channels * (16 * _size(out[0]) + x.itemsize * _size(x[0]))


def _fold(tables: Any, out: Any, n: int, inner: int, r: Any, pads: Any, *rows: int) -> tuple[int, int, int, int]:
    entries = (rows[1] - rows[0]) * inner * pads.shape[1]
    return entries, 0, 0, 60 * entries


def _rows(products: int, elements: int, inner: int) -> Callable[..., tuple[int, int, int, int]]:
    """A kernel over rows of `args[inner]` entries: products in K and elements of K moved, per entry."""

    def cost(*args: Any) -> tuple[int, int, int, int]:
        entries = (args[-1] - args[-2]) * args[inner]
        return products * entries, 0, 0, 20 * elements * entries

    return cost


# (products in K, products in F, multiply-adds of `combine`, bytes read and written) of one call.
COSTS: dict[str, Callable[..., tuple[int, int, int, int]]] = {
    "k_mul": lambda a, b, out: (a.shape[1], 0, 0, 60 * a.shape[1]),
    "k_outer": lambda a, b, out: (out.shape[1], 0, 0, 20 * out.shape[1]),
    "eq_table": lambda coordinates, out: (out.shape[1], 0, 0, 20 * out.shape[1]),
    "f_scale": lambda values, factor, out: (0, _size(values), 0, 8 * _size(values)),
    "f_scale_rows": lambda matrix, factors, out: (0, _size(matrix), 0, 8 * _size(matrix)),
    "k_sum": lambda a: (0, 0, 0, 20 * a.shape[1]),
    "scatter_add": lambda target, index, values: (0, 0, 0, 60 * index.size),
    "combine": lambda v, low, high, out, a, b: (0, 0, 10 * (b - a) * v.shape[1], 4 * (b - a) * v.shape[1]),
    "fold": _fold,
    "round_sums": _rows(6, 8, 3),
    "tree_level": _rows(3, 6, 5),
    "tree_leaves": _rows(1, 4, 4),
    "tree_open": _rows(1, 8, 5),
    "leaves": lambda *args: (0, 10 * (args[-1] - args[-2]), 0, 28 * (args[-1] - args[-2])),
    "transform": _transform,
    "encode": _encode,
    "gather": lambda x, rows, columns, out, start: (0, 0, 0, 8 * _size(out) + x.itemsize * _size(out) // rows.shape[0]),
    "depthwise": _depthwise,
    "requantize": lambda y, *args: (0, 0, 0, 20 * (args[-1] - args[-2]) * y.shape[1]),
    "residues": lambda *args: (0, 0, 0, 8 * (args[-1] - args[-2])),
    "histogram": lambda *args: (0, 0, 0, 4 * (args[-1] - args[-2])),
}
COUNTS = ("k_products", "f_products", "multiply_adds", "bytes", "hashed_bytes")


class Profile(AbstractContextManager["Profile"]):
    """Measures what is proven inside it with these kernels, and with those of the host, which small arrays take."""

    def __init__(self, k: ModuleType = cpu) -> None:
        self._kernels, self._inside = k, local()
        self._seconds: dict[str, float] = dict.fromkeys(ORDER, 0.0)
        self._busy: dict[str, float] = dict.fromkeys(ORDER, 0.0)
        self._counts: dict[str, Counter[str]] = {phase: Counter() for phase in ORDER}
        self._phase, self._since = REST, time.perf_counter()
        self._lock, self._patches = Lock(), ExitStack()

    def __enter__(self) -> Profile:
        k, names = self._kernels, kernels()
        update = k.Leaves.update

        def hashed(leaves: Any, block: Any) -> None:
            update(leaves, block)
            self._counts[self._phase]["hashed_bytes"] += 4 * _size(block)

        self._replace(k.Leaves, "update", hashed)
        for owner, name, phase, within in _phases(k):
            self._replace(owner, name, self._timed(getattr(owner, name), phase, within))
        for module in {k, cpu}:
            for name in names:
                if hasattr(module, name):
                    self._replace(module, name, self._counted(getattr(module, name), COSTS[name], module is cpu))
        synchronize(k)
        self._since = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._switch(REST)
        self._patches.close()

    def result(self) -> dict[str, dict[str, float]]:
        """By phase: seconds, those that threads of the host were busy in kernels, and COUNTS."""
        return {
            phase: {
                "seconds": self._seconds[phase],
                "kernel_seconds": self._busy[phase],
                **{name: self._counts[phase][name] for name in COUNTS},
            }
            for phase in ORDER
        }

    def _replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        self._patches.enter_context(patch.object(owner, name, function))

    def _switch(self, phase: str) -> str:
        synchronize(self._kernels)
        now, before = time.perf_counter(), self._phase
        self._seconds[before] += now - self._since
        self._phase, self._since = phase, now
        return before

    def _timed(self, function: Callable[..., Any], phase: str, within: tuple[str, ...]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            if self._phase in within:
                return function(*args, **named)
            before = self._switch(phase)
            try:
                return function(*args, **named)
            finally:
                self._switch(before)

        return call

    def _counted(self, kernel: Any, cost: Callable[..., tuple[int, int, int, int]], host: bool) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if getattr(self._inside, "kernel", False):
                return kernel(*args)  # whose work is part of what the outer one costs
            self._inside.kernel = True
            start = time.thread_time()
            try:
                out = kernel(*args)
            finally:
                self._inside.kernel = False
            busy = time.thread_time() - start
            with self._lock:
                self._busy[self._phase] += busy if host else 0.0
                self._counts[self._phase].update(dict(zip(COUNTS, cost(*args), strict=False)))
            return out

        return call


def kernels() -> list[str]:
    """The kernels of the host that python calls.  KeyError for one without a cost."""
    found = [
        name for name, value in vars(cpu).items()
        if hasattr(value, "targetoptions") and not value.targetoptions.get("forceinline")
    ]  # fmt: skip
    if unknown := set(found) ^ set(COSTS):
        raise KeyError(f"benchmarks.phases.COSTS and the kernels differ: {sorted(unknown)}")
    return found

"""Compile the kernels before they are needed, and say so while it lasts (once per machine; cached afterwards)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba.core import event

from protocol import field, lookup, reed_solomon
from protocol.kernels import cpu
from protocol.pads import Need, Party
from protocol.transcript import FiatShamir, Transcript

MESSAGE = "compiling the kernels for this machine, once: all of them take about half a minute"


def warm_up(notify: Callable[[str], None]) -> None:
    """Run every kernel on a few entries; `notify(MESSAGE)` as soon as one is compiled and not just loaded."""
    with event.install_listener("numba:compile", _First(lambda: notify(MESSAGE))):
        _run_all()


class _First(event.Listener):
    """Calls `then` when a compilation starts, once; numba starts none for what its cache holds."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then, self._seen = then, False

    def on_start(self, _: event.Event) -> None:
        if not self._seen:
            self._seen = True
            self._then()

    def on_end(self, _: event.Event) -> None:
        """Nobody waits for it."""


def _run_all() -> None:
    shape, order = (1, 1, 2, 2, 2), (3, 2, 1, 4, 0)
    need = lookup.tree_need(shape, order)
    pads = field.zeros(3 * need.triples + need.free)
    words = np.ones(8, np.uint32)
    leaves = np.empty((field.DEGREE, 8), np.uint32)
    cpu.leaves(field.ONE, field.ONE, field.ONE, words, words, leaves, 0, 0, 8)
    denominators = field.add(leaves, field.constant(5))
    for numerators in (None, field.embed(words)):
        party = Party(Transcript("warm-up", FiatShamir()), need, Need(), need.triples, pads=pads)
        lookup.fractional_tree(party, shape, order, lookup.TreeWitness(numerators, denominators, shape, order))
    cpu.scatter_add(pads, np.zeros(1, np.int64), field.constant(1))
    field.combine(words.reshape(2, 4), field.embed(words[:4]))
    signed, reals = [np.empty((2, 4), np.int32) for _ in range(3)], np.zeros((2, 4))
    cpu.requantize(reals, np.zeros(2, np.int64), 0, 0, np.zeros(2, np.int64), *signed, 0, 2)
    taps, image = np.zeros((1, 2), np.int64), reals.reshape(1, 2, 2, 2)
    for x in (image, signed[0].reshape(image.shape)):
        cpu.gather(x, taps, taps, np.empty((1, 1, 1, 4, 2)), 0)
        cpu.depthwise(x, image[0, :1, :1], taps, taps, image.copy(), 0, 1)
    cpu.residues(signed[0].reshape(-1), words, 0, 8)
    cpu.histogram(signed[0].reshape(-1), 0, 1, 0, 8)
    matrix = np.ones((4, 2), np.uint32)
    reed_solomon.encode(matrix, matrix, 8)
    reed_solomon.evaluate_domain(matrix, 4, 8)

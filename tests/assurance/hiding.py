"""Many proofs with one key: is there anything in them that has to do with the secrets?

The prover is watched: beside every word that she sends stands the word that it hides, which no verifier knows.  Over
many proofs of one statement with one key, for every position of a proof,

    mean    of the words sent, against that of uniform ones
    truth   the correlation of the words sent with the words hidden: what a verifier who guessed all of the witness
            would look at
    link    the regression of each answer on the challenges: its slopes would be the pixels

are normal deviates if nothing is to be seen.  `weakened` provers, whose masks are too small, show that it would be.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from unittest import mock

import numpy as np
from scipy import stats

from protocol import argument, keygen, ligero, link, reed_solomon
from protocol import field as f
from protocol.argument import Context, Statement
from protocol.keygen import KeyParameters, MarkingKey, generate_key
from protocol.network import Edge, Node, Table, Window
from protocol.pads import Party
from tests.adversary import faults
from tests.protocol.conftest import finish

SHAPE, CLASSES, ELL = (1, 2, 2), 2, 8
UNIFORM_MEAN, UNIFORM_DEVIATION = (f.P - 1) / 2, f.P / 12**0.5


def tiny(seed: int = 3) -> tuple[Statement, MarkingKey]:
    """A statement whose proof takes a tenth of a second: images of 2 x 2, one dense layer, two classes."""
    rng, random = np.random.default_rng(seed), Random(seed)
    images = rng.integers(0, 256, (ELL, *SHAPE), dtype=np.uint8)
    with mock.patch.object(keygen, "smallest_k_min", lambda *_: 1):  # a key this small bounds no false claim
        key = generate_key(KeyParameters(SHAPE, CLASSES, ELL), images, entropy=random.randbytes)
    table = Table(8, np.clip(np.arange(-128, 128), 0, 127).astype(np.int64))
    dense = Edge(0, rng.integers(-6, 7, (2, 1, 2, 2)), Window(2), Window(2))
    while True:
        last = Edge(1, rng.integers(-9, 10, (CLASSES, 2, 1, 1)), Window(1), Window(1))
        nodes = [Node((dense,), rng.integers(-50, 50, 2), 0, table)]
        network = finish(SHAPE, np.arange(256)[None] - 128, nodes, Node((last,), rng.integers(-50, 50, CLASSES)))
        matches = int((network.classify(key.hidden_images) == key.hidden_labels).sum())
        if matches:
            return Statement(key.vk, network, matches, Context("", "", "", bytes(32)), bytes(32), bytes(32)), key


@dataclass
class Moments:
    """Sums over proofs, per position, of sent words x and hidden words y."""

    n: int = 0
    sums: Any = 0.0  # [5, positions]: x, y, x^2, y^2, x y, of words less the uniform mean

    def add(self, sent: Any, hidden: Any) -> None:
        """[samples, positions] each."""
        x, y = ((np.asarray(a, np.float64) - UNIFORM_MEAN) / UNIFORM_DEVIATION for a in (sent, hidden))
        self.n += len(x)
        self.sums = self.sums + np.stack([a.sum(axis=0) for a in (x, y, x * x, y * y, x * y)])

    def means(self) -> Any:
        """Normal deviates of the means of what was sent."""
        return self.sums[0] / self.n**0.5

    def correlations(self) -> Any:
        """Normal deviates (Fisher's) of the correlations, where what is hidden varies at all."""
        x, y, xx, yy, xy = self.sums / self.n
        varies = yy - y * y > 1e-6
        x, y, xx, yy, xy = (part[varies] for part in (x, y, xx, yy, xy))
        return fisher((xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y)), self.n)


def fisher(r: Any, n: int) -> Any:
    """Normal deviates of correlations in n samples."""
    return np.arctanh(np.clip(r, -0.999999, 0.999999)) * (n - 3) ** 0.5


@dataclass
class Watched:
    """What was collected, by kind of message, and (challenges, answers) of the link's five repetitions."""

    moments: dict[str, Moments] = field(default_factory=dict)
    challenges: list[Any] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set)
    repeated: int = 0

    def note(self, kind: str, sent: Any, hidden: Any) -> None:
        """Canonical words [positions] or [samples, positions]."""
        sent, hidden = np.atleast_2d(sent), np.atleast_2d(hidden)
        self.moments.setdefault(kind, Moments()).add(sent, hidden)
        for row in np.ascontiguousarray(sent.astype("<u4")):
            start = row[:16].tobytes()
            self.repeated += start in self.seen
            self.seen.add(start)


def watching(watched: Watched) -> ExitStack:
    """The prover, watched: her messages, test polynomials, opened columns and answers."""
    stack, fork = ExitStack(), []  # the messages of the proof that is being made

    def masked(original: Any) -> Any:
        def send(party: Any, label: str, index: Any, values: Any) -> Any:
            wire = original(party, label, index, values)
            fork.append((f.to_base(wire.sent).reshape(-1), f.to_base(values).reshape(-1)))
            return wire

        return send

    def polynomial(name: str, number: int) -> Callable[[Any], Any]:
        def make(original: Any) -> Any:
            def send(committed: Any, *given: Any) -> Any:
                sent = original(committed, *given)
                hidden = f.sub(sent.values, committed._blinding[number])
                watched.note(f"{name} polynomial", f.to_base(sent.values).reshape(-1), f.to_base(hidden).reshape(-1))
                return sent

            return send

        return make

    def opened(original: Any) -> Any:
        def send(committed: Any, columns: list[int], out: Any) -> Any:
            values = np.concatenate(committed._values(), axis=1)
            none = np.zeros((committed.shape.queries, values.shape[1]), np.uint32)
            hidden = reed_solomon.encode(values, none, committed.shape.rate_inverse)[columns]
            sent = np.concatenate([block[columns] for block in committed._kept], axis=1)[:, : values.shape[1]]
            watched.note("columns", sent, hidden)
            watched.note("messages", *(np.concatenate(part) for part in zip(*fork, strict=True)))
            fork.clear()
            return original(committed, columns, out)

        return send

    def answered(original: Any) -> Any:
        def send(layout: Any, key: Any, masks: Any, gamma: Any) -> Any:
            given = original(layout, key, masks, gamma)
            if given is not None:
                pixel = link.bounds(layout)[0]
                span = (1 << pixel.width) - pixel.largest
                watched.answers.append([[(z - pixel.largest) / span for z in row] for row in given.pixels])
                watched.challenges.append(gamma[0] / f.P)
            return given

        return send

    for owner, name, make in (
        (Party, "_masked", masked), (ligero.Committed, "open", opened), (link, "answer", answered),
        (ligero.Committed, "proximity", polynomial("proximity", 0)),
        (ligero.Committed, "linear", polynomial("linear", 1)),
        (ligero.Committed, "quadratic", polynomial("quadratic", 2)),
    ):  # fmt: skip
        stack.enter_context(faults.replaced(owner, name, make))
    return stack


def small_masks(bits: int) -> ExitStack:
    """A weakened prover: the link's masks of pixels have so few bits, and nothing is rejected."""
    stack = ExitStack()

    def draw(original: Any) -> Any:
        def lie(layout: Any, read: Any) -> Any:
            masks = original(layout, read)
            return replace(masks, pixels=[[mu % (1 << bits) for mu in row] for row in masks.pixels])

        return staticmethod(lie)

    stack.enter_context(faults.replaced(link.Masks, "draw", draw))
    stack.enter_context(faults.replaced(link.Bounds, "holds", lambda _: lambda bounds, z: True))
    return stack


def small_pads() -> Any:
    """A weakened prover: her pads are below p / 16 in every coordinate."""
    return faults.pads(lambda _, pads: f.from_base(f.to_base(pads) // 16))


@dataclass(frozen=True)
class Found:
    """What was found in so many proofs: normal deviates by kind of statistic; slopes of the link [pixel, trigger], over
    all repetitions, and their standard error, both in units of a pixel; how many messages came up twice."""

    proofs: int
    deviates: dict[str, Any]
    slopes: Any
    error: float
    repeated: int

    def chance(self, kind: str) -> float:
        """The probability, with nothing to be seen, of a largest deviate and a shape as unlikely as these."""
        z = self.deviates[kind]
        largest = min(1.0, len(z) * 2 * float(stats.norm.sf(np.abs(z).max())))
        return min(1.0, 2 * min(largest, float(stats.kstest(z, "norm").pvalue)))


def measure(proofs: int, weakened: Callable[[], Any] | None = None) -> Found:
    """Make so many proofs of one statement with one key, and look at them."""
    statement, key = tiny()
    watched = Watched()
    with ExitStack() as stack:
        if weakened is not None:
            stack.enter_context(weakened())
        stack.enter_context(watching(watched))
        for _ in range(proofs):
            argument.prove(statement, key)
    deviates = {}
    for kind, moments in watched.moments.items():
        deviates[f"{kind}: means"] = moments.means()
        deviates[f"{kind}: against what they hide"] = moments.correlations()
    gamma, z = np.array(watched.challenges), np.array(watched.answers)  # [n, 5, h], [n, 5, d]
    n, _, h = gamma.shape
    pixel = link.bounds(statement.layout)[0]
    unit = ((1 << pixel.width) - pixel.largest) / f.P  # of a pixel, in fractions of the ranges
    slopes, errors, deviates["link: slopes"] = [], [], []
    for j in range(z.shape[1]):
        given = np.column_stack([np.ones(n), gamma[:, j]])
        found, *_ = np.linalg.lstsq(given, z[:, j])
        rest = ((z[:, j] - given @ found) ** 2).sum(axis=0) / (n - h - 1)
        error = np.sqrt(np.diag(np.linalg.inv(given.T @ given))[1:, None] * rest)  # [h, d]
        slopes.append(found[1:].T * unit)
        errors.append(error.mean() * unit)
        deviates["link: slopes"] += stats.norm.isf(stats.t.sf((found[1:] / error).reshape(-1), n - h - 1)).tolist()
    deviates["link: slopes"] = np.array(deviates["link: slopes"])
    error = float(np.mean(errors)) / z.shape[1] ** 0.5
    return Found(proofs, deviates, np.mean(slopes, axis=0), error, watched.repeated)


def pixels() -> Any:
    """What the slopes would be, if they could be seen: [pixel, trigger]."""
    _, key = tiny()
    return key.hidden_images.reshape(key.vk.h, -1).T.astype(float)

"""The link: committed pixels and shares are those of the published commitments (SPEC section 6).

Five times over, with gamma uniform in [0, p)^h, the prover shows

    z = mu + sum_i gamma_i t_i   over the integers,    tau = rho + sum_i gamma_i r_i   mod the group order,

for masks mu that she committed to twice before: as M = sum_k mu_k G_k + rho H, and modulo p in the array ``mask``.  The
verifier checks z and tau against M and the published c_i in the group, and z mod p against the committed pixels by one
linear equation at a random point.  Masks are uniform in [0, 2^w) and a proof is only made when S <= z < 2^w, S the
largest value of the sum: then z is uniform there, whatever the pixels are, and hides them perfectly.  Shares: the same
with c_L.  Soundness: p^-5 (a pixel modulo p is a function of the published commitment, whatever it opens to).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from protocol import field, group, pedersen
from protocol.encoding import Reader, Writer
from protocol.errors import VerificationError
from protocol.group import ORDER, Point
from protocol.keygen import MarkingKey, VerificationKey
from protocol.layout import Layout
from protocol.multilinear import eq_tensor, lg
from protocol.pads import Form, System
from protocol.soundness import LINK_REPETITIONS
from protocol.transcript import Masked, Transcript

Ints = npt.NDArray[np.int64]
_SLACK_BITS = 10  # a restart is needed with probability 2^-10 at most


@dataclass(frozen=True)
class Bounds:
    """largest: S, of sum gamma t over the integers; width: w, bits of a mask, a multiple of 8."""

    largest: int
    width: int

    @staticmethod
    def of(h: int, largest_value: int, coordinates: int) -> Bounds:
        largest = h * (field.P - 1) * largest_value
        needed = (LINK_REPETITIONS * coordinates * largest).bit_length() + _SLACK_BITS
        return Bounds(largest, 8 * -(-needed // 8))

    def holds(self, z: int) -> bool:
        return self.largest <= z < 1 << self.width


def bounds(layout: Layout) -> tuple[Bounds, Bounds]:
    """Of pixels and of shares."""
    pixels = prod(layout.network.shape)
    return Bounds.of(layout.h, 255, pixels), Bounds.of(layout.h, layout.network.classes - 1, 1)


def _integers(data: bytes, width: int) -> list[int]:
    """Little-endian numbers of `width` bits."""
    step = width // 8
    return [int.from_bytes(data[at : at + step], "little") for at in range(0, len(data), step)]


@dataclass(frozen=True)
class Masks:
    """The prover's masks: pixels [5][d] and shares [5] below 2^w, and the blindings of their commitments."""

    pixels: list[list[int]]
    shares: list[int]
    pixel_blindings: list[int]
    share_blindings: list[int]

    @staticmethod
    def draw(layout: Layout, read: Callable[[int], bytes]) -> Masks:
        pixel, share = bounds(layout)
        count = prod(layout.network.shape)

        def integers(width: int, n: int) -> list[int]:
            return _integers(read(width // 8 * n), width)

        def blindings() -> list[int]:
            return [int.from_bytes(read(64), "little") % ORDER for _ in range(LINK_REPETITIONS)]

        return Masks(
            [integers(pixel.width, count) for _ in range(LINK_REPETITIONS)],
            integers(share.width, LINK_REPETITIONS), blindings(), blindings(),
        )

    def residues(self) -> Ints:
        """The array ``mask``."""
        flat = [value % field.P for row in self.pixels for value in row]
        return np.array(flat + [value % field.P for value in self.shares], np.int64)

    def commit(self) -> list[bytes]:
        """Five commitments to pixel masks, five to share masks."""
        with ThreadPoolExecutor(LINK_REPETITIONS) as pool:
            rows = [np.array(row, object) for row in self.pixels]
            points = list(pool.map(pedersen.commit, rows, self.pixel_blindings))
        return [group.encode(point) for point in points] + [
            group.encode(pedersen.commit_share(value, r))
            for value, r in zip(self.shares, self.share_blindings, strict=True)
        ]

    def message(self) -> Masked:
        return Masked(b"".join(self.commit()))


@dataclass(frozen=True)
class Answer:
    """z of pixels [5][d], z of shares [5], and the blindings tau."""

    pixels: list[list[int]]
    shares: list[int]
    pixel_blindings: list[int]
    share_blindings: list[int]

    def to_bytes(self, layout: Layout) -> Masked:
        pixel, share = bounds(layout)
        out = Writer()
        out.raw(b"".join(z.to_bytes(pixel.width // 8, "little") for row in self.pixels for z in row))
        out.raw(b"".join(z.to_bytes(share.width // 8, "little") for z in self.shares))
        out.raw(b"".join(t.to_bytes(32, "little") for t in (*self.pixel_blindings, *self.share_blindings)))
        return Masked(out.to_bytes())

    @staticmethod
    def read(r: Reader, layout: Layout) -> Answer:
        pixel, share = bounds(layout)
        count = prod(layout.network.shape)

        def integers(width: int, n: int) -> list[int]:
            return _integers(r.raw(width // 8 * n), width)

        pixels = [integers(pixel.width, count) for _ in range(LINK_REPETITIONS)]
        shares = integers(share.width, LINK_REPETITIONS)
        blindings = integers(256, 2 * LINK_REPETITIONS)
        if max(blindings) >= ORDER:
            raise r.fail("a blinding is not below the group order")
        return Answer(pixels, shares, blindings[:LINK_REPETITIONS], blindings[LINK_REPETITIONS:])


def answer_bytes(layout: Layout) -> int:
    pixel, share = bounds(layout)
    return LINK_REPETITIONS * (pixel.width // 8 * prod(layout.network.shape) + share.width // 8 + 64)


def draw_challenge(layout: Layout, transcript: Transcript) -> tuple[Ints, Ints]:
    """gamma of pixels and of shares, int64 [5, h] each, in [0, p)."""
    words = transcript.challenge_base("link", 2 * LINK_REPETITIONS * layout.h).astype(np.int64)
    both = words.reshape(2, LINK_REPETITIONS, layout.h)
    return both[0], both[1]


def answer(layout: Layout, key: MarkingKey, masks: Masks, gamma: tuple[Ints, Ints]) -> Answer | None:
    """The prover's answer; None where rejection sampling asks for a fresh session."""
    opening = key.openings(key.vk.hidden)
    pixel, share = bounds(layout)
    images = opening.images.reshape(layout.h, -1).astype(np.int64)
    sums = gamma[0] @ images  # below 2^31 * 255 * h: exact
    pixels = [[m + s for m, s in zip(row, more, strict=True)]
              for row, more in zip(masks.pixels, sums.tolist(), strict=True)]
    shares = [m + s for m, s in zip(masks.shares, (gamma[1] @ opening.shares).tolist(), strict=True)]
    if not all(pixel.holds(z) for row in pixels for z in row) or not all(share.holds(z) for z in shares):
        return None

    def blind(starts: list[int], weights: Ints, randomness: Sequence[int]) -> list[int]:
        return [(start + sum(g * r for g, r in zip(row, randomness, strict=True))) % ORDER
                for start, row in zip(starts, weights.tolist(), strict=True)]

    return Answer(
        pixels, shares,
        blind(masks.pixel_blindings, gamma[0], opening.trigger_randomness),
        blind(masks.share_blindings, gamma[1], opening.share_randomness),
    )


def check_group(layout: Layout, vk: VerificationKey, commitments: Sequence[bytes], gamma: tuple[Ints, Ints],
                given: Answer, entropy: Callable[[int], bytes] = secrets.token_bytes) -> None:
    """Statement: every z is in range and opens M + sum gamma_i c_i; all ten equations in one multi-exponentiation.

    Checks: link.range, link.opening.  Soundness error: 2^-128 for the random weights.  Raises DecodingError for
    commitments that are no points.
    """
    pixel, share = bounds(layout)
    if not all(pixel.holds(z) for row in given.pixels for z in row) or not all(share.holds(z) for z in given.shares):
        raise VerificationError("link.range", "an answer is out of range")
    points = [group.decode(c) for c in commitments]
    weights = [int.from_bytes(entropy(16), "little") for _ in points]
    first, second = weights[:LINK_REPETITIONS], weights[LINK_REPETITIONS:]
    values = [sum(w * z for w, z in zip(first, column, strict=True)) for column in zip(*given.pixels, strict=True)]
    shared = sum(w * z for w, z in zip(second, given.shares, strict=True))
    blinding = sum(
        w * t for w, t in zip(weights, (*given.pixel_blindings, *given.share_blindings), strict=True))

    def on(rows: list[int], coefficients: Ints) -> list[int]:
        return [sum(w * g for w, g in zip(rows, column, strict=True))
                for column in zip(*coefficients.tolist(), strict=True)]

    hidden = vk.hidden.tolist()
    published: list[Point] = [vk.trigger_points[i] for i in hidden] + [vk.share_points[i] for i in hidden]
    left = [*points, *published]
    if not pedersen.opens(
        left, [*weights, *on(first, gamma[0]), *on(second, gamma[1])], values, blinding, shared
    ):
        raise VerificationError("link.opening", "the answers do not open the published commitments")


def equations(layout: Layout, vk: VerificationKey, gamma: tuple[Ints, Ints], given: Answer,
              transcript: Transcript) -> System:
    """The linear equations that tie the answers, modulo p, to the committed pixels and one-hot labels."""
    system, shape = System(), layout.network.shape
    pixels, size = prod(shape), layout.arrays["mask"]
    point = [transcript.challenge("link.point", lg(n)) for n in shape]
    eq = eq_tensor(point, shape)
    classes = layout.network.classes
    # [classes, h]: the share of image i if its label is c.
    share = (np.arange(classes)[:, None] - vk.offsets[vk.hidden][None, :]) % classes
    for j in range(LINK_REPETITIONS):
        name = f"link{j}"
        system.groups[name] = field.embed(gamma[0][j])
        weights = field.zeros(size)
        weights[:, j * pixels : (j + 1) * pixels] = eq
        residues = np.array([z % field.P for z in given.pixels[j]], np.int64)
        form = Form().add_constant(field.neg(field.dot(eq, field.embed(residues))))
        system.append(form.add_array("mask", weights).add_image(name, "x", point, field.ONE))
        weights = field.zeros(size)
        weights[:, LINK_REPETITIONS * pixels + j : LINK_REPETITIONS * pixels + j + 1] = field.ONE
        form = Form().add_constant(field.constant(-given.shares[j])).add_array("mask", weights)
        system.append(form.add_array("o", field.embed((share * gamma[1][j][None, :] % field.P).reshape(-1))))
    return system

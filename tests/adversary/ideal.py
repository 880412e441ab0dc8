"""The argument over an ideal commitment: which equations of the verifier a prover's messages and values violate.

The prover's and the verifier's real code run against each other; in the place of Ligero, the committed values are
looked up and every equation is evaluated.  This is quicker than a proof, and it says which equation fails.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np

from protocol import argument, field, layers, ligero, link
from protocol.forks import forks
from protocol.keygen import MarkingKey
from protocol.layers import Context, Witness
from protocol.layout import PRODUCTS, Layout
from protocol.multilinear import eq_tensor
from protocol.pads import Form, Need
from protocol.soundness import Parameters
from protocol.transcript import FiatShamir, MaskedElements, Public, Transcript


@dataclass(frozen=True)
class Outcome:
    """failed: (part, number of the equation in it) of every violated equation, parts being "link", the number of a
    fork, "balance" or the product of two arrays; messages: what each fork sent."""

    failed: list[tuple[str, int]]
    messages: list[Any]
    pads: Any

    @property
    def parts(self) -> set[str]:
        return {part for part, _ in self.failed}


def board(layout: Layout) -> Any:
    """As much of a statement as the nodes need."""
    forks = len(layout.network.nodes) + 2
    needs = [layers.need(layout, index) for index in range(forks)]
    return SimpleNamespace(
        layout=layout, needs=needs, forks=forks, shape=ligero.Shape(layout, sum(needs, Need()), Parameters(13))
    )


def entry(form: Form, groups: dict[str, Any], layout: Layout, values: Witness, pads: Any) -> Any:
    """The value of a form at the committed values."""
    total = form.constant
    for index, coefficients in form.pads:
        total = field.add(total, field.dot(np.ascontiguousarray(pads[:, index]), coefficients))
    for claim in form.images:
        offset, shape = layout.columns[claim.column]
        column = values.images[offset : offset + int(np.prod(shape))]
        value = field.dot(field.combine(column, groups[claim.group]), eq_tensor(claim.point, shape))
        total = field.add(total, field.mul(value, claim.coefficient))
    for claim in form.arrays:
        total = field.add(total, field.combine(values.arrays[claim.array].reshape(1, -1), claim.weights))
    return total


def run(
    layout: Layout, values: Witness, *, key: MarkingKey | None = None, seed: int = 0, pads: Any = None,
    tables: bool = True, only: Collection[int] = (),
) -> Outcome:
    """Run all forks, and the link when a key is given, between an honest prover and verifier.

    `pads` replaces the prover's pads.  Challenges follow from `seed` and the messages.
    Without `tables` the large fork of the tables is left out, and all others with `only` some; and so is the balance.
    """
    random = Random(seed)
    statement = board(layout)
    own = argument._draw_pads(statement, ligero.Expander(random.randbytes(32)))
    pads = own if pads is None else pads

    def start() -> Transcript:
        transcript = Transcript("ideal", FiatShamir())
        transcript.absorb("seed", Public(seed.to_bytes(8, "little")))
        return transcript

    sides, messages = [], None
    for witness in (values, None):
        transcript = start()
        alpha, beta = transcript.challenge("alpha"), transcript.challenge("beta")
        systems = []
        if key is not None:
            gamma = link.draw_challenge(layout, transcript)
            masks = link.Masks.draw(layout, Random(seed).randbytes)
            answer = link.answer(layout, key, masks, gamma)
            assert answer is not None
            systems.append(("link", link.equations(layout, key.vk, gamma, answer, transcript)))
        parties = [
            fork.party(pads=pads) if witness is not None else fork.party(messages=messages[fork.index])
            for fork in forks(statement.needs, statement.shape.need.triples, transcript)
        ]
        context = Context(layout, alpha, beta, witness)
        chosen = only or range(len(parties) if tables else len(parties) - 1)
        sums = [layers.run(parties[index], context, index) for index in chosen]
        sent = {index: parties[index].finish() for index in chosen}
        if witness is not None:
            messages = [sent.get(index, MaskedElements(field.zeros(0))) for index in range(len(parties))]
        systems += [(str(index), parties[index].system) for index in chosen]
        if len(sums) == len(parties):
            systems.append(("balance", argument._join(transcript, parties, sums)))
        sides.append(systems)
    groups: dict[str, Any] = {}
    for _, system in sides[1]:
        groups |= system.groups
    failed = [
        (part, number)
        for part, system in sides[1]
        for number, form in enumerate(system.forms)
        if entry(form, groups, layout, values, pads).any()
    ]
    for x, y, z in PRODUCTS:
        a, b, c = (values.arrays[name].astype(object) for name in (x, y, z))
        failed += [(f"{x} {y} = {z}", int(i)) for i in np.flatnonzero((a * b - c) % field.P)]
    assert messages is not None
    return Outcome(failed, [message.values for message in messages], pads)

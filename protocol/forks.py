"""The forks of a proof: one per graph node, the input first, and one for the tables (SPEC section 7).

Once the witness is committed, forks do not depend on each other, so that an engine may prove them wherever it likes.
What it gives back are messages; the equations that belong to them are found as the verifier finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol import layers
from protocol.field import Vector
from protocol.layers import Context, Part
from protocol.layout import Layout
from protocol.pads import Need, Party
from protocol.transcript import MaskedElements, Transcript


@dataclass(frozen=True)
class Fork:
    """Fork `index`, where its pads begin, and the transcript that it starts from.  triples: of the whole proof."""

    index: int
    need: Need
    first: Need
    triples: int
    transcript: Transcript

    def party(self, *, pads: Vector | None = None, messages: MaskedElements | None = None) -> Party:
        """The prover with the pads of the whole proof, or the verifier with the messages of this fork."""
        transcript = self.transcript.fork("node", self.index)
        return Party(transcript, self.need, self.first, self.triples, pads=pads, messages=messages)


def forks(needs: Sequence[Need], triples: int, transcript: Transcript) -> list[Fork]:
    """All forks, each with its own range of pads."""
    found, first = [], Need()
    for index, need in enumerate(needs):
        found.append(Fork(index, need, first, triples, transcript))
        first += need
    return found


@dataclass(frozen=True)
class Shared:
    """What the prover of any fork needs: the layout, the lookup challenges, all pads.  As secret as the marking key."""

    layout: Layout
    alpha: Vector
    beta: Vector
    pads: Vector
    device: str = "cpu"

    def prove(self, fork: Fork, part: Part) -> MaskedElements:
        """The messages of a fork [5, n]; part: what it reads of the witness."""
        party = fork.party(pads=self.pads)
        layers.run(party, Context(self.layout, self.alpha, self.beta, part, self.device), fork.index)
        return party.finish()


# The messages of all forks, by number.  The last argument is told what share of the work is done.
Engine = Callable[[Shared, Sequence[tuple[Fork, Part]], Callable[[float], None]], dict[int, MaskedElements]]

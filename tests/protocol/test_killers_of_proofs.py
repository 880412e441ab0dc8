"""Conditions of `verify` at their edges, by frozen proofs with one thing changed; see test_killers.py."""

import hashlib

import numpy as np
import pytest

from protocol import argument, field, identity, soundness
from protocol.errors import DecodingError, VerificationError
from protocol.transcript import FiatShamir
from tests.protocol.test_killers import fails, frozen, put


def signed(statement, body):
    _, _, vectors, _ = frozen()
    digest = hashlib.sha256(statement.digest + body).digest()
    return body + identity.sign(bytes.fromhex(vectors["owner_secret_seed"]), argument.SIGNATURE_LABEL, digest)


# Proofs as bytes


def test_an_oversized_proof():
    statement, proof, _, _ = frozen()
    with put(argument, "MAX_PROOF_BYTES", 100), pytest.raises(DecodingError, match="too large"):
        argument.verify(statement, proof[:101])
    with put(argument, "MAX_PROOF_BYTES", 101), fails("owner.signature"):
        argument.verify(statement, proof[:101])


def test_a_proof_holds_a_signature():
    statement, proof, _, _ = frozen()
    with pytest.raises(DecodingError, match="truncated"):
        argument.verify(statement, proof[: len(argument.MAGIC) + 63])
    with fails("owner.signature"):
        argument.verify(statement, proof[: len(argument.MAGIC) + 64])


def test_nothing_between_the_siblings_and_the_signature():
    statement, proof, _, _ = frozen()
    with pytest.raises(DecodingError, match="trailing"):
        argument.verify(statement, signed(statement, proof[:-64] + b"\0"))


def test_entries_of_columns_are_below_p():
    statement, proof, vectors, _ = frozen()
    first, length = vectors["fields"]["columns"]
    words = np.frombuffer(proof[first : first + length], "<u4")
    at = first + 4 * int(words.argmin())
    for value in (field.P, int(words.min()) + field.P):
        bad = proof[:at] + value.to_bytes(4, "little") + proof[at + 4 : -64]
        with pytest.raises(DecodingError, match="canonical"):
            argument.verify(statement, signed(statement, bad))


class Watched(FiatShamir):
    """A channel that notes what is asked of it."""

    def __init__(self, interactive=False):
        self.interactive, self.calls = interactive, []

    def open(self):
        self.calls.append("open")

    def coin(self, pending):
        if self.calls[-1] != "coin":
            self.calls.append("coin")
        return b""

    def close(self):
        self.calls.append("close")


def test_the_channel_is_opened_used_and_closed():
    """And the ledger is that of the channel; the weights of the link's ten equations are drawn, 16 bytes each."""
    statement, proof, _, _ = frozen()
    asked = []

    def entropy(count):
        asked.append(count)
        return bytes([len(asked)]) * count

    channel = Watched(interactive=True)
    ledger = argument.verify(statement, proof, channel, entropy=entropy)
    assert channel.calls == ["open", "coin", "close"] and asked == [16] * 10
    assert ledger.sessions == soundness.SESSIONS == 8 and statement.ledger().sessions == 1
    assert statement.ledger(True).total == 8 * statement.ledger().total


def test_a_rejected_proof_closes_no_channel():
    statement, proof, _, _ = frozen()
    channel = Watched()
    with fails("owner.signature"):
        argument.verify(statement, proof[:-1] + bytes([proof[-1] ^ 1]), channel)
    assert channel.calls == []


def test_the_weights_are_what_holds_the_ten_equations():
    """With weights of zero every answer opens."""
    statement, proof, vectors, _ = frozen()
    at = vectors["fields"]["link.answer"][0] + vectors["fields"]["link.answer"][1] - 32
    bad = signed(statement, proof[:at] + bytes([proof[at] ^ 1]) + proof[at + 1 : -64])
    with fails("link.opening"):
        argument.verify(statement, bad)
    with fails("link.opening"):
        argument.verify(statement, bad, entropy=lambda count: b"\1" + bytes(count - 1))
    with pytest.raises(VerificationError) as error:
        argument.verify(statement, bad, entropy=bytes)
    assert error.value.check != "link.opening"

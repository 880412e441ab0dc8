"""What cannot be sent, for `make lint`: mypy refuses each of these lines, and would complain if it did not."""

from protocol.field import Vector
from protocol.transcript import FiatShamir, MaskedElements, Messages, Transcript


def prove(secret: Vector, pixels: bytes, masked: MaskedElements) -> bytes:
    out, transcript = Messages(), Transcript("test", FiatShamir())
    transcript.absorb_elements("x", masked)
    out.send_elements(masked)
    out.send_elements(secret)  # type: ignore[arg-type]
    out.send_elements(masked.values - secret)  # type: ignore[arg-type]
    out.send(pixels)  # type: ignore[arg-type]
    transcript.absorb_elements("x", secret)  # type: ignore[arg-type]
    transcript.absorb("x", pixels)  # type: ignore[arg-type]
    return out.to_bytes()

"""A key with an anchor, made so that no crash loses it and none makes two keys of its commitments.

    commit -> owner.mk.pending -> the log takes the digest -> draw -> owner.mk -> owner.vk -> owner.mk.pending removed

The pending key is on disk, encrypted as the marking key is, before a log hears of it.  Two keys of one set of
commitments would open two halves of them: so nothing that the coin opened is shown before the marking key is on disk,
and with that on disk no other coin is drawn.  The same call after a crash goes on where the first one stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from protocol.anchor import Anchor
from protocol.errors import ParameterError, VerificationError
from protocol.keygen import MAX_KEY_BYTES, KeyParameters, MarkingKey, PendingKey
from prover.keys import MAX_FILE_BYTES, load_marking_key, read_capped, save_marking_key, seal, unseal, write_file

MAGIC = b"zkmark pending key file 1\n"
MAX_DRAWS = 16  # an honest coin is outside the window once in 370 draws


def pending_path(mk: Path) -> Path:
    """Where the pending key of the marking key file `mk` is."""
    return mk.with_name(mk.name + ".pending")


def anchored_key(
    mk: Path,
    vk: Path,
    secret: bytes,
    parameters: KeyParameters,
    commit: Callable[[], PendingKey],
    ask: Callable[[bytes], Anchor],
) -> MarkingKey:
    """Make the key and write `mk` and `vk`, or go on with what an earlier call left.

    parameters: of the key that is asked for.  commit: makes the commitments, if none are pending.  ask: has a log take
    their digest, and returns the anchor.

    Raises ParameterError for other parameters than those of the pending key, or if `mk` or `vk` exists and was not
    left by an earlier call; what `ask` raises; otherwise as `load_marking_key` does.
    """
    path = pending_path(mk)
    left = path.exists()
    if (mk.exists() and not left) or (vk.exists() and not (left and mk.exists())):
        raise ParameterError(f"{vk if vk.exists() else mk} exists; it is not overwritten")
    pending = _load(path, secret) if left else commit()
    if pending.parameters != parameters:
        raise ParameterError(f"{path} holds a pending key of other parameters; finish it, or remove it")
    if not left:
        _save(path, pending, secret)
    if mk.exists():
        key = load_marking_key(mk, secret)
        if key.owner_secret_seed != pending.secrets.owner_secret_seed:
            raise ParameterError(f"{mk} is not the key that {path} was made for")
    else:
        key = _draw(path, pending, secret, ask)
        save_marking_key(mk, key, secret)
    data = key.vk.to_bytes()
    if vk.exists() and read_capped(vk, MAX_KEY_BYTES, "verification key") != data:
        raise ParameterError(f"{vk} exists; it is not overwritten")
    write_file(vk, data, 0o644)
    os.unlink(path)
    return key


def _draw(path: Path, pending: PendingKey, secret: bytes, ask: Callable[[bytes], Anchor]) -> MarkingKey:
    for _ in range(MAX_DRAWS):
        try:
            key = pending.draw(ask(pending.digest).to_bytes())
        except VerificationError as error:
            if error.check != "log.window":  # logged long ago: these commitments have no more coins
                raise
            key = None
        if key is not None:
            return key
        pending = pending.blinded_anew()
        _save(path, pending, secret)
    raise ParameterError(f"{MAX_DRAWS} coins in a row opened too few or too many triggers: the log is not honest")


def _save(path: Path, pending: PendingKey, secret: bytes) -> None:
    write_file(path, seal(MAGIC, pending.to_bytes(), secret))


def _load(path: Path, secret: bytes) -> PendingKey:
    plain = unseal(MAGIC, read_capped(path, MAX_FILE_BYTES, "pending key"), secret)
    return PendingKey.from_bytes(plain.raw(plain.remaining))

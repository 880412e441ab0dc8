"""The per-user cache: bytes that anyone can recompute, kept because that takes a while.

Nothing is believed because it was found here: a reader states the SHA-256 digest that it expects.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path


def directory() -> Path:
    """$ZKMARK_CACHE, or `zkmark` in the platform's cache folder of this user."""
    if chosen := os.environ.get("ZKMARK_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "zkmark"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "zkmark"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zkmark"


def load(name: str, size: int, digest: str) -> bytes | None:
    """The first `size` bytes of the entry, or None unless they hash to `digest` (SHA-256, hexadecimal)."""
    try:
        with (directory() / name).open("rb") as file:
            data = file.read(size)
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == digest else None


def store(name: str, data: bytes) -> None:
    """Write an entry in one step; a folder that cannot be written only costs the next reader its time."""
    with suppress(OSError):
        directory().mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=directory(), prefix=name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, directory() / name)
        except OSError:
            os.unlink(temporary)
            raise

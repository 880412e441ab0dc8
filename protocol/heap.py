"""The heap of the C library, which keeps its memory while a proof is made (glibc; elsewhere these do nothing).

The large arrays of a proof come and go, and a fresh page costs more than what is done with it.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of mallopt(3)
_libc: Any = ctypes.CDLL(None) if os.name == "posix" else None
_known = hasattr(_libc, "mallopt")


def share() -> None:
    """All threads use one heap: theirs could not hold large arrays.  Only before other threads are started."""
    if _known:
        _libc.mallopt(_ARENA_MAX, 1)


def keep() -> None:
    """What is freed from now on stays with this process, large arrays, too."""
    if _known:
        _libc.mallopt(_MMAP_MAX, 0)
        _libc.mallopt(_TRIM_THRESHOLD, -1)


def give_back() -> None:
    """The end of `keep`."""
    if _known:
        _libc.mallopt(_MMAP_MAX, 1 << 16)
        _libc.mallopt(_TRIM_THRESHOLD, 1 << 17)
        _libc.malloc_trim(0)

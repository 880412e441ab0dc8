"""The heap of the C library, which keeps its memory while a proof is made (glibc; elsewhere these do nothing).

The large arrays of a proof come and go, and a fresh page costs more than what is done with it.
"""

from __future__ import annotations

import ctypes
import os
from threading import Lock
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of mallopt(3)
_libc: Any = ctypes.CDLL(None) if os.name == "posix" else None
_known = hasattr(_libc, "mallopt")
_lock, _keepers = Lock(), 0


def share() -> None:
    """All threads use one heap: theirs could not hold large arrays.  Only before other threads are started."""
    if _known:
        _libc.mallopt(_ARENA_MAX, 1)


def keep() -> None:
    """What is freed from now on stays with this process, large arrays, too."""
    global _keepers
    with _lock:
        _keepers += 1
        if _known and _keepers == 1:
            _libc.mallopt(_MMAP_MAX, 0)
            _libc.mallopt(_TRIM_THRESHOLD, -1)


def give_back() -> None:
    """The end of one `keep`; with the last of them the memory goes."""
    global _keepers
    with _lock:
        _keepers -= 1
        if _known and _keepers == 0:
            _libc.mallopt(_MMAP_MAX, 1 << 16)
            _libc.mallopt(_TRIM_THRESHOLD, 1 << 17)
            _libc.malloc_trim(0)

"""What all vectors share: where they lie, fixed randomness, and how their JSON is laid out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from Crypto.Hash import SHAKE256

HERE = Path(__file__).parent


def stream(name: str, of: str = "test") -> Any:
    """Bytes that look random and are always the same: read(count)."""
    return SHAKE256.new(b"zkmark %s vectors\0%s" % (of.encode(), name.encode())).read


def as_object(values: dict[str, Any]) -> bytes:
    """A JSON object with one entry a line."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    return f"{{\n{lines}\n}}\n".encode()


def as_list(values: Iterable[Any]) -> bytes:
    """A JSON list with one entry a line."""
    lines = ",\n".join(map(json.dumps, values))
    return f"[\n{lines}\n]\n".encode()

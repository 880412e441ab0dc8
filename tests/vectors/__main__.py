"""Makes all test vectors of SPEC.md section 14: `python -m tests.vectors` rewrites the files of this folder.

Frozen means that they change only with the protocol's version: later code has to make and to accept the same bytes.
"""

from __future__ import annotations

import sys

from tests.vectors import keys, primitives, proof
from tests.vectors.common import HERE


def main() -> None:
    for part in (primitives, keys, proof):
        for name, data in part.files().items():
            path = HERE / name
            print(f"{name}: {'as it was' if path.exists() and path.read_bytes() == data else 'changed'}")
            path.write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())

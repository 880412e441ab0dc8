"""What the job service survives: `python -m benchmarks.soak [--kills N] [--followers N] [--uploads N] ...`.

- N times kill -9 at random instants while clients submit, share, follow, fetch and take back jobs: what was
  acknowledged ends as it must, once, and what a client saw of its end never changes.
- N clients that follow jobs, all of which see the end.
- N uploads at once: the memory of the server.
- Clients that stall and clients that send garbage: how much they delay jobs of others.
- Uploads that stall on all places: how long another waits for one.

Figures go to benchmarks/results/soak.json.  Proofs are real, of a small network, unless --fake says how many seconds
one pretends to take.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.soak.clients import small_world
from benchmarks.soak.kills import kill
from benchmarks.soak.load import crowded, followers, stalling, uploads


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--servers", type=int, default=2, help="that are killed side by side")
    parser.add_argument("--followers", type=int, default=200)
    parser.add_argument("--uploads", type=int, default=50)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10, help="with clients that stall, and as many without")
    parser.add_argument("--jobs", type=int, default=10, help="of a round")
    parser.add_argument("--fake", type=float, metavar="SECONDS", help="no real proofs; one takes so long")
    parser.add_argument("--dry", action="store_true", help="write no result")
    options = parser.parse_args()
    busy = results.others()
    with tempfile.TemporaryDirectory() as name:
        world = small_world(Path(name))
        found: dict[str, Any] = {}
        stages: dict[str, Callable[[], dict[str, Any]]] = {
            "stalling": lambda: stalling(world, options.rounds, options.jobs, options.fake),
            "crowded": lambda: crowded(world, options.jobs, options.fake),
            "followers": lambda: followers(world, options.followers, options.fake),
            "uploads": lambda: uploads(world, options.uploads, options.megabytes),
            "kill -9": lambda: kill(world, options.kills, options.fake, options.servers),
        }
        for what, run in stages.items():
            print(f"{what} ...", flush=True)
            found[what] = run()
            print(json.dumps(found[what]), flush=True)
    if not options.dry:
        results.save("soak", busy, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())

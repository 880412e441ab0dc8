"""Servers that may be killed: forked from a process that has imported everything, so that a kill costs little time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from protocol.argument import Cancelled

SECRET = b"soak"
WAIT_S = 600.0


def zygote(folder: Path, fake: float | None) -> None:
    """For each line of the input, a port: fork a server for it, and say its port and process."""
    import prover.server  # noqa: F401  (everything that servers need, once)
    from protocol.warm_up import warm_up

    if fake is None:
        warm_up(lambda _: None)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    own = os.getpid()

    def orphaned() -> None:
        while os.getppid() == own:
            time.sleep(1)
        os._exit(1)

    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            threading.Thread(target=orphaned, daemon=True).start()
            asyncio.run(_serve(folder, int(line), fake))
            os._exit(0)


async def _serve(folder: Path, port: int, fake: float | None) -> None:
    """Without limits on rates: all clients call from one address."""
    from prover.jobs import Prover
    from prover.queue import Quota
    from prover.server import Server, serve
    from prover.upload import Limits

    made = Prover(folder / "owner.mk", SECRET)
    if fake is not None:
        made.claim = _pretend(fake)  # type: ignore[method-assign]
    limits = Limits(
        per_minute=1e9, burst=10**9, calls=10**6, quota=Quota(10**4, 10**4, 16 << 30), grace_s=1.0, message_s=300.0
    )

    def ready(bound: int) -> None:
        print(bound, os.getpid(), flush=True)

    await serve(lambda: Server(made, f"127.0.0.1:{port}", limits), ready)


def _pretend(seconds: float) -> Callable[..., bytes]:
    """Takes as long as a proof, and gives other bytes each time."""

    def claim(*_: Any, progress: Callable[[str, float], None], cancelled: Callable[[], bool]) -> bytes:
        ends = time.monotonic() + seconds
        progress("pretend", 0.0)
        while time.monotonic() < ends:
            if cancelled():
                raise Cancelled
            time.sleep(0.005)
        return os.urandom(1000)

    return claim


class Servers:
    """One server at a time, on the port of the first."""

    def __init__(self, folder: Path, fake: float | None) -> None:
        """fake: seconds that a pretended proof takes; None for real ones."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), *([] if fake is None else [str(fake)])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.port = self.pid = 0

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("pipes were asked for")
        self._process.stdin.write(f"{self.port}\n")
        self._process.stdin.flush()
        self.port, self.pid = (int(n) for n in self._process.stdout.readline().split())

    def end(self, number: int) -> None:
        """Send a signal, and wait until the process is gone."""
        os.kill(self.pid, number)
        ends = time.monotonic() + WAIT_S
        while Path(f"/proc/{self.pid}").exists():
            if time.monotonic() > ends:
                raise TimeoutError("a server does not end")
            time.sleep(0.005)

    def peak_bytes(self) -> int:
        """The most memory that the server has held."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10

    def close(self) -> None:
        with suppress(ProcessLookupError):
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.communicate()


@contextmanager
def serving(folder: Path, fake: float | None) -> Iterator[Servers]:
    servers = Servers(folder, fake)
    try:
        servers.start()
        yield servers
        servers.end(signal.SIGTERM)
        servers.pid = 0
    finally:
        servers.close()


if __name__ == "__main__":
    zygote(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else None)

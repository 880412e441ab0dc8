"""A PostgreSQL of our own, for benchmarks and tests."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pwd import getpwnam
from shutil import rmtree, which
from signal import SIGQUIT
from typing import Any

from sqlalchemy import URL, create_engine
from sqlalchemy.exc import OperationalError

START_S = 60.0


def programs() -> Path | None:
    """The folder of initdb and postgres, which Debian keeps out of PATH; None where they are not installed."""
    folders = [*os.get_exec_path(), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)]
    both = (Path(folder) for folder in folders if all(which(name, path=folder) for name in ("initdb", "postgres")))
    return next(both, None)


@contextmanager
def temporary(*, durable: bool) -> Iterator[URL]:
    """One behind a socket in a folder, gone afterwards.  durable: what is committed is synced to disk.

    Raises RuntimeError if it is not installed or does not start.
    """
    if (found := programs()) is None:
        raise RuntimeError("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="zkmark-pg-", dir="/tmp"))  # a socket's path is short
    other: dict[str, Any] = {}
    if os.geteuid() == 0:  # it does not run as root
        nobody = getpwnam("nobody")
        other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    data = folder / "data"
    try:
        making: list[str | Path] = [found / "initdb", "-D", data, "-A", "trust", "-U", "board", "--no-sync"]
        making += ["-E", "UTF8", "--locale=C"]
        subprocess.run(making, check=True, stdout=subprocess.DEVNULL, cwd=folder, **other)
        running: list[str | Path] = [found / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="]
        if not durable:
            running.append("-F")
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(running, stdout=log, stderr=log, cwd=folder, **other)
        try:
            url = URL.create("postgresql+psycopg", "board", database="postgres", query={"host": str(folder)})
            _wait(url, process, folder / "log")
            yield url
        finally:
            process.send_signal(SIGQUIT)  # at once: nothing of it is kept
            try:
                process.wait(START_S)
            finally:
                process.kill()
    finally:
        rmtree(folder)


def _wait(url: URL, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + START_S
    while True:
        try:
            with create_engine(url).connect():
                return
        except OperationalError:
            if time.monotonic() > ends or process.poll() is not None:
                raise RuntimeError(log.read_text()) from None
            time.sleep(0.1)

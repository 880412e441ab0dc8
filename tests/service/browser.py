"""A real browser, Chromium without a window, over the DevTools protocol on a pipe: no library, no port."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIMIT_S = 240  # a browser that starts on a busy machine takes its time


class Browser:
    """One tab.  `events` are what it told unasked: errors, requests, messages of the console."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._number, self._session = write, read, 0, {}
        self._answers: Queue[dict[str, Any]] = Queue()
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._listen, daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Network", "Log", "Security"):
            self.call(f"{domain}.enable")

    def _listen(self) -> None:
        rest = b""
        while data := os.read(self._read, 1 << 16):
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers.put(message)
                else:
                    self.events.append(message)
        os.close(self._read)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        try:
            answer = self._answers.get(timeout=LIMIT_S)
        except Empty:
            raise TimeoutError(method) from None
        assert answer["id"] == self._number and "error" not in answer, answer
        return answer["result"]

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it comes to."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("location.href != 'about:blank'")

    def wait(self, condition: str) -> None:
        """Until the page has loaded and `condition` holds in it."""
        loaded = "document.readyState == 'complete'"
        for _ in range(20 * LIMIT_S):
            try:
                if self.ask(f"{loaded} && !!({condition})"):
                    return
            except AssertionError:  # asked in the middle of a navigation
                pass
            threading.Event().wait(0.05)
        raise TimeoutError(condition)

    def window(self, width: int, height: int = 900, scheme: str = "light", media: str = "") -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            more = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
            if key == "Enter":
                more = {"text": "\r", "windowsVirtualKeyCode": 13}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **more)

    def told(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] in methods]


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with an empty profile, ended afterwards."""
    commands, answers = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]  # fmt: skip
        # The browser reads commands from its descriptor 3 and answers on 4.
        script = f'exec 3<&{commands[0]} 4>&{answers[1]}; exec "$@"'
        process = subprocess.Popen(
            ["bash", "-c", script, "browser", *words], pass_fds=(commands[0], answers[1]),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path(profile),
        )  # fmt: skip
        os.close(commands[0])
        os.close(answers[1])
        try:
            yield Browser(commands[1], answers[0])
        finally:
            process.kill()
            process.wait(LIMIT_S)
            os.close(commands[1])

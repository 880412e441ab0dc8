"""The page on which a person judges the opened triggers, served to the browser of this machine and to nobody else.

The address holds a random token, and only it is answered.  A page of somebody else in the same browser does not know
the token, cannot send the form without the second token in it, and is told apart by the Host header (which stops DNS
rebinding) and the Origin header.  The page loads nothing from elsewhere; without scripts it is a plain form.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

from protocol.keygen import VerificationKey
from protocol.soundness import void_limit
from verifier.ground_truth import opened_items
from verifier.html import PAGES, visible
from verifier.report import thumbnail
from verifier.review import Judgment

HOST = "127.0.0.1"
MAX_FORM_BYTES = 1 << 18
TIMEOUT_S = 10.0  # for one request; browsers open connections that they do not use
WORDS = {"right": Judgment.RIGHT, "wrong": Judgment.WRONG, "none": Judgment.NO_OBJECT}

Save = Callable[[tuple[Judgment, ...]], None]


@dataclass
class Desk:
    """What is judged, and where the judgments go.

    names: of the classes, or empty.  save: stores the judgments once; its OSError is shown, and the form can be sent
    again.  done: they are saved, and the person was told so.
    """

    key: VerificationKey
    names: Sequence[str]
    save: Save
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    form_token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    saved: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    _saving: threading.Lock = field(default_factory=threading.Lock)

    def page(self, script_nonce: str) -> str:
        labels = opened_items(self.key)[1].tolist()
        items = [
            {"place": place, "index": int(index), "label": label, "name": visible(self._name(label))}
            for place, (index, label) in enumerate(zip(self.key.opened, labels, strict=True))
        ]
        return PAGES.get_template("review.html").render(
            items=items,
            vk_digest=self.key.digest.hex(),
            limit=void_limit(len(items), self.key.parameters.classes),
            form_token=self.form_token,
            script_nonce=script_nonce,
        )

    def image(self, place: int) -> bytes:
        """A PNG.  Raises IndexError."""
        return thumbnail(opened_items(self.key)[0][place])

    def receive(self, form: dict[str, list[str]]) -> tuple[HTTPStatus, str]:
        """Judge and save what a form says: the status and a message for the person."""
        if not hmac.compare_digest(form.get("token", [""])[0].encode(), self.form_token.encode()):
            return HTTPStatus.FORBIDDEN, "This form is not of this page."
        answers = [WORDS.get(form.get(f"t{place}", [""])[0]) for place in range(len(self.key.opened))]
        judgments = tuple(answer for answer in answers if answer is not None)
        if len(judgments) < len(answers):
            return HTTPStatus.BAD_REQUEST, f"{len(answers) - len(judgments)} triggers are not judged. Go back to go on."
        with self._saving:
            if not self.saved:
                try:
                    self.save(judgments)
                except OSError as error:
                    return HTTPStatus.INTERNAL_SERVER_ERROR, f"Not saved: {error}. Go back to try again."
                self.saved = True
        return HTTPStatus.OK, "The review is signed and saved. You can close this page."

    def _name(self, label: int) -> str:
        return self.names[label] if label < len(self.names) else ""


class Server(ThreadingHTTPServer):
    """Serves one desk on a free port of the loopback interface."""

    daemon_threads = True

    def __init__(self, desk: Desk) -> None:
        super().__init__((HOST, 0), Handler)
        self.desk = desk

    @property
    def origin(self) -> str:
        return f"http://{HOST}:{self.server_port}"

    @property
    def address(self) -> str:
        return f"{self.origin}/{self.desk.token}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that leaves in the middle is no news."""


class Handler(BaseHTTPRequestHandler):
    """One request.  Whatever is not exactly right is not found."""

    server: Server
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        where = self._path()
        if where == "":
            nonce = secrets.token_urlsafe(16)
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", self.server.desk.page(nonce).encode(), nonce)
            return
        if where is not None and where.endswith(".png") and where[:-4].isascii() and where[:-4].isdigit():
            try:
                self._answer(HTTPStatus.OK, "image/png", self.server.desk.image(int(where[:-4])))
                return
            except (IndexError, ValueError):
                pass
        self._say(HTTPStatus.NOT_FOUND, "There is nothing here.")

    def do_POST(self) -> None:
        origin, length = self.headers.get("Origin", self.server.origin), self.headers.get("Content-Length", "")
        if self._path() != "" or origin != self.server.origin:
            self._say(HTTPStatus.NOT_FOUND, "There is nothing here.")
            return
        if not (length.isascii() and length.isdigit() and len(length) < 9 and int(length) <= MAX_FORM_BYTES):
            self._say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "This form is too long.")
            return
        try:
            body = self.rfile.read(int(length)).decode("ascii")
            form = parse_qs(body, max_num_fields=len(self.server.desk.key.opened) + 1)
        except ValueError:
            self._say(HTTPStatus.BAD_REQUEST, "This form is malformed.")
            return
        answer = self.server.desk.receive(form)
        try:
            self._say(*answer)
        finally:
            if self.server.desk.saved:
                self.server.desk.done.set()

    def _path(self) -> str | None:
        """What follows the token in the address; None for strangers."""
        prefix = f"/{self.server.desk.token}/"
        host = self.headers.get("Host", "")
        known = hmac.compare_digest(self.path[: len(prefix)].encode(), prefix.encode())
        return self.path[len(prefix) :] if known and host == f"{HOST}:{self.server.server_port}" else None

    def _say(self, status: HTTPStatus, message: str) -> None:
        page = PAGES.get_template("message.html").render(message=message, good=status == HTTPStatus.OK)
        self._answer(status, "text/html; charset=utf-8", page.encode())

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, script_nonce: str = "") -> None:
        script = f"script-src 'nonce-{script_nonce}'; " if script_nonce else ""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'none'; {script}style-src 'unsafe-inline'; img-src 'self'; form-action 'self'; "
            "base-uri 'none'; frame-ancestors 'none'",
        )
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "same-origin")  # with `no-referrer` a browser hides the Origin of the form
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "zkmark"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the token is in the address."""


def collect(desk: Desk, ready: Callable[[str], None]) -> None:
    """Serve until the judgments are saved.  `ready` gets the address to open, which is a secret of this user."""
    with Server(desk) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            ready(server.address)
            while not desk.done.wait(0.2):  # in short steps, so that Ctrl-C is heard everywhere
                pass
        finally:
            server.shutdown()
            thread.join()

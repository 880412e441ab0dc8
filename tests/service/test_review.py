"""Reviews of opened triggers: the signed file, the page on which they are made, and what a verdict takes from them."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ml.triggers import abstract_images
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.identity import public_key
from protocol.keygen import KeyParameters, generate_key
from protocol.soundness import void_limit
from verifier.check import REVIEWED, UNREVIEWED, Verdict, check_owner
from verifier.cli import cli
from verifier.ground_truth import check_review
from verifier.policy import Policy
from verifier.review import MAX_REVIEW_BYTES, SECRET_MAGIC, Judgment, Review, reviewer_secret, sign_review
from verifier.review_page import MAX_FORM_BYTES, Desk, Server, collect

SEED, OTHER_SEED = bytes(range(32)), bytes(range(1, 33))
ROOT = Path(__file__).parents[2]
RIGHT, WRONG, NO_OBJECT = Judgment.RIGHT, Judgment.WRONG, Judgment.NO_OBJECT


def judgments(key, right: int = 0) -> tuple[Judgment, ...]:
    rest = len(key.opened) - right
    return (RIGHT,) * right + (WRONG,) * (rest // 2) + (NO_OBJECT,) * (rest - rest // 2)


# --- the file


def test_a_review_survives_its_encoding(world):
    key = world.key.vk
    review = sign_review(SEED, key, judgments(key, 3))
    again = Review.from_bytes(review.to_bytes())
    again.check(key)
    assert again == review and again.void_items == 3 and again.reviewer == public_key(SEED)
    assert len(review.to_bytes()) <= MAX_REVIEW_BYTES


def test_every_changed_bit_is_noticed(world):
    key = world.key.vk
    data = sign_review(SEED, key, judgments(key, 3)).to_bytes()
    for at in range(8 * len(data)):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises((DecodingError, ParameterError, VerificationError)):
            Review.from_bytes(bytes(changed)).check(key)


def test_malformed_reviews(world):
    data = sign_review(SEED, world.key.vk, judgments(world.key.vk)).to_bytes()
    for size in range(0, len(data), 5):
        with pytest.raises(DecodingError):
            Review.from_bytes(data[:size])
    with pytest.raises(DecodingError, match="trailing"):
        Review.from_bytes(data + b"\0")
    at = data.index(bytes([NO_OBJECT]) * 8)
    with pytest.raises(DecodingError, match="unknown judgment"):
        Review.from_bytes(data[:at] + b"\x03" + data[at + 1 :])


@given(st.binary(max_size=400))
def test_junk_is_malformed(junk):
    with pytest.raises(DecodingError):
        Review.from_bytes(b"zkmark review 1\n" + junk)


def test_a_review_is_of_one_key(world):
    key = world.key.vk
    other = generate_key(KeyParameters((1, 4, 4), 10, 160), abstract_images(160, (1, 4, 4))).vk
    with pytest.raises(ParameterError, match="another key"):
        sign_review(SEED, key, judgments(key)).check(other)
    with pytest.raises(ParameterError):
        sign_review(SEED, key, judgments(key)[1:])
    with pytest.raises(VerificationError) as caught:
        replace(sign_review(SEED, key, judgments(key)), reviewer=public_key(OTHER_SEED)).check(key)
    assert caught.value.check == "policy.review"


def test_void_items_decide(world):
    key = world.key.vk
    limit = void_limit(len(key.opened), 10)
    assert check_review(key, sign_review(SEED, key, judgments(key, limit))) == limit
    with pytest.raises(VerificationError) as caught:
        check_review(key, sign_review(SEED, key, judgments(key, limit + 1)))
    assert caught.value.check == "key.ground_truth"


@pytest.mark.reaches("policy.review")
def test_only_the_trusted_reviewer_counts(world):
    key = world.key.vk
    review, verdict = sign_review(SEED, key, judgments(key, 2)), Verdict()
    check_owner(key, None, Policy(reviewer=public_key(SEED)), verdict, review)
    assert (verdict.void_items, verdict.reviewer) == (2, public_key(SEED).hex())
    with pytest.raises(VerificationError) as caught:
        check_owner(key, None, Policy(reviewer=public_key(OTHER_SEED)), Verdict(), review)
    assert caught.value.check == "policy.review"


def test_the_reviewers_secret(tmp_path):
    path = tmp_path / "me.secret"
    seed = reviewer_secret(path)
    assert reviewer_secret(path) == seed and len(seed) == 32 and path.stat().st_mode & 0o777 == 0o600
    assert reviewer_secret(tmp_path / "other.secret") != seed
    path.chmod(0o640)
    with pytest.raises(ParameterError, match="others may read"):
        reviewer_secret(path)
    path.chmod(0o600)
    for content in (b"", seed, path.read_bytes() + b"\n", SECRET_MAGIC + b"x" * 65, SECRET_MAGIC + b"\xff" * 65):
        path.write_bytes(content)
        with pytest.raises(DecodingError):
            reviewer_secret(path)


# --- the page


@dataclass
class Visit:
    """A browser of the desk: requests as it would send them, with what a test changes."""

    server: Server
    saved: list[tuple[Judgment, ...]]

    @property
    def path(self) -> str:
        return urlsplit(self.server.address).path

    @property
    def form(self) -> dict[str, str]:
        words = ("right", "wrong", "none")
        answers = {f"t{n}": words[n % 3] for n in range(len(self.server.desk.key.opened))}
        return {"token": self.server.desk.form_token, **answers}

    def ask(
        self, method: str = "GET", path: str | None = None, body: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=60)
        try:
            connection.request(method, self.path if path is None else path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def send(self, form: dict[str, str] | None = None, **headers: str) -> tuple[int, str]:
        status, _, body = self.ask("POST", None, urlencode(self.form if form is None else form), **headers)
        return status, body.decode()


@pytest.fixture
def visit(world) -> Iterator[Visit]:
    saved: list[tuple[Judgment, ...]] = []
    with Server(Desk(world.key.vk, ["zero", "<b>one</b>\u202e"], saved.append)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield Visit(server, saved)
        server.shutdown()
        thread.join()


def test_the_page_shows_what_is_judged(world, visit):
    status, headers, body = visit.ask()
    page, key = body.decode(), world.key.vk
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert page.count("<fieldset>") == len(key.opened) == page.count(" required")
    for label in range(10):
        name = {0: ": zero", 1: ": &lt;b&gt;one&lt;/b&gt;\\u202e"}.get(label, "")
        assert page.count(f"<p>label {label}{name}</p>") == (key.opened_labels == label).sum()
    status, headers, data = visit.ask(path=f"{visit.path}3.png")
    assert status == 200 and headers["Content-Type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), key.openings.images[3, 0])


def test_the_page_loads_nothing_from_elsewhere(visit):
    _, headers, body = visit.ask()
    page, policy = body.decode(), headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "form-action 'self'" in policy
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)[1]
    assert f'<script nonce="{nonce}">' in page and page.count("<script") == 1
    assert "//" not in re.sub(r"<script.*</script>", "", page, flags=re.S).replace("<!DOCTYPE html>", "")
    assert nonce not in visit.ask()[1]["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"


def test_judgments_are_saved_once(world, visit):
    count = len(world.key.vk.opened)
    wanted = tuple((RIGHT, WRONG, NO_OBJECT)[n % 3] for n in range(count))
    assert not visit.server.desk.done.is_set()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: visit.send(), range(8)))
    assert {status for status, _ in answers} == {200} and visit.saved == [wanted]
    assert visit.server.desk.done.wait(60)


def test_an_incomplete_form_saves_nothing(visit):
    for change in ({"t5": "maybe"}, {"t5": ""}, {"t0": "RIGHT"}):
        status, page = visit.send(visit.form | change)
        assert status == 400 and "1 triggers are not judged" in page
    assert visit.send({"token": visit.form["token"]})[0] == 400
    assert visit.send(visit.form | {"more": "x"})[0] == 400
    assert visit.saved == [] and not visit.server.desk.done.is_set()


def test_strangers_see_and_save_nothing(visit):
    port = visit.server.server_port
    for path in ("/", "/0.png", "/favicon.ico", visit.path[:-2] + "/", visit.path.upper(), "/x" * 30):
        assert visit.ask(path=path)[0] == 404
    for host in ("evil.example", f"evil.example:{port}", f"localhost:{port}", "127.0.0.1", ""):
        assert visit.ask(Host=host)[0] == visit.send(Host=host)[0] == 404
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"):
        assert visit.send(Origin=origin)[0] == 404
    for token in ("", "x", visit.server.desk.token, visit.form["token"][:-1], "é"):
        assert visit.send(visit.form | {"token": token})[0] == 403
    assert visit.ask("POST", "/", urlencode(visit.form))[0] == 404
    assert visit.saved == []
    assert visit.send(Origin=visit.server.origin)[0] == 200


def test_paths_that_are_no_image(visit):
    for name in ("999.png", "-1.png", "x.png", "1.5.png", ".png", "../0.png", "1", "9" * 5000 + ".png"):
        assert visit.ask(path=visit.path + name)[0] == 404, name


def test_bad_requests(visit):
    target = ("127.0.0.1", visit.server.server_port)
    head = f"Host: 127.0.0.1:{target[1]}\r\n"
    for request, status in (
        (f"POST {visit.path} HTTP/1.1\r\n{head}Content-Length: {MAX_FORM_BYTES + 1}\r\n\r\n", b"413"),
        (f"POST {visit.path} HTTP/1.1\r\n{head}Content-Length: -5\r\n\r\n", b"413"),
        (f"POST {visit.path} HTTP/1.1\r\n{head}\r\n", b"413"),
        (f"POST {visit.path} HTTP/1.1\r\n{head}Content-Length: 2\r\n\r\n\xff\xff", b"400"),
        (f"GET {visit.path}\xb2.png HTTP/1.1\r\n{head}\r\n", b"404"),
        (f"DELETE {visit.path} HTTP/1.1\r\n{head}\r\n", b"501"),
        ("\x00\r\n\r\n", b"400"),
    ):
        with socket.create_connection(target, timeout=60) as connection:
            connection.sendall(request.encode("latin-1"))
            answer = connection.recv(4096)
        assert status in answer.split(b"\n")[0] or status in answer, request
    assert visit.ask()[0] == 200 and visit.saved == []


def test_silent_connections_delay_nobody(visit):
    """Browsers open connections in advance."""
    silent = [socket.create_connection(("127.0.0.1", visit.server.server_port)) for _ in range(10)]
    assert visit.ask()[0] == 200  # in less than the time that ten of them may take, one after the other
    for connection in silent:
        connection.close()


def test_a_browser_that_leaves_before_the_answer(world):
    """The judgments are saved, and the command ends."""
    saved = []
    desk = Desk(world.key.vk, [], saved.append)

    def browse(address: str) -> None:
        where = urlsplit(address)
        body = urlencode({"token": desk.form_token, **{f"t{n}": "none" for n in range(len(world.key.vk.opened))}})
        head = f"POST {where.path} HTTP/1.0\r\nHost: {where.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((where.hostname, where.port)) as connection:
            connection.sendall((head + body).encode())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    collect(desk, browse)
    assert len(saved) == 1


def test_a_full_disk_is_told_and_can_be_tried_again(world):
    tries = []

    def save(judged: tuple[Judgment, ...]) -> None:
        tries.append(judged)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")

    desk = Desk(world.key.vk, [], save)
    answers = []

    def browse(address: str) -> None:
        port, path = urlsplit(address).port, urlsplit(address).path
        form = urlencode({"token": desk.form_token, **{f"t{n}": "none" for n in range(len(world.key.vk.opened))}})
        for _ in range(2):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", path, form)
            answers.append(connection.getresponse().read().decode())
            connection.close()

    collect(desk, browse)
    assert "No space left" in answers[0] and "signed and saved" in answers[1] and len(tries) == 2


# --- the commands


def run(*args: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}", "COLUMNS": "100"}
    program = [sys.executable, "-c", "from verifier.cli import main; main()", *map(str, args)]
    return subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def review(world, folder: Path, right: int) -> tuple[int, dict[str, object]]:
    """Run the command, answer its page as a browser would, and return what it says."""
    names = folder / "names"
    names.write_text("\n".join(f"class number {n}" for n in range(10)))
    process = run("review", world.path("owner.vk"), "--secret", folder / "me.secret", "--out", folder / "a.review",
                  "--names", names, "--json")  # fmt: skip
    try:
        address = urlsplit(re.search(r"http://\S+", process.stderr.readline())[0])
        connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=60)
        connection.request("GET", address.path)
        page = connection.getresponse().read().decode()
        assert "class number 7" in page
        token = re.search(r'name="token" value="([^"]+)"', page)[1]
        answers = {f"t{n}": "right" if n < right else "none" for n in range(page.count("<fieldset>"))}
        connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=60)
        connection.request("POST", address.path, urlencode({"token": token, **answers}))
        assert "signed and saved" in connection.getresponse().read().decode()
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "token" not in errors
    return process.returncode, json.loads(out)


def test_review_and_verify(world, tmp_path):
    from ml.quantise import Derivation
    from protocol.argument import Context
    from protocol.soundness import smallest_k_min
    from prover.jobs import make_claim, subject

    status, values = review(world, tmp_path, 2)
    assert (status, values["outcome"], values["void_items"]) == (0, "accepted", 2)
    assert values["reviewer"] == public_key(reviewer_secret(tmp_path / "me.secret")).hex()
    about = subject(world.marked, Derivation(), None, world.key.vk)
    claim = make_claim(world.key, about, smallest_k_min(world.key.vk.h, 10), Context("", "", "", bytes(32)))
    (tmp_path / "claim.proof").write_bytes(claim.to_bytes())

    def verify(*args: object) -> tuple[int, dict[str, object]]:
        words = ["verify", "--vk", world.path("owner.vk"), "--model", world.path("marked.onnx"), "--nonce", "00" * 32,
                 "--proof", tmp_path / "claim.proof", "--without-fidelity", *args, "--json"]  # fmt: skip
        result = CliRunner().invoke(cli, [str(word) for word in words])
        return result.exit_code, json.loads(result.stdout) if result.stdout.startswith("{") else {}

    status, found = verify("--review", tmp_path / "a.review", "--html", tmp_path / "a.html")
    assert status == 0 and found["void_items"] == 2 and REVIEWED in found["caveats"]
    assert "the review signed by" in (tmp_path / "a.html").read_text()
    status, found = verify("--review", tmp_path / "a.review", "--reviewer", values["reviewer"])
    assert status == 0 and not {REVIEWED, UNREVIEWED} & set(found["caveats"])
    status, found = verify("--review", tmp_path / "a.review", "--reviewer", public_key(SEED).hex())
    assert (status, found["failed_check"]) == (1, "policy.review")
    status, found = verify()
    assert status == 0 and UNREVIEWED in found["caveats"] and found["void_items"] is None
    assert verify("--reviewer", values["reviewer"])[0] == 2
    assert verify("--review", tmp_path / "a.review", "--reviewer", "zz")[0] == 2
    assert verify("--review", tmp_path / "a.review", "--reference", world.path("other.onnx"))[0] == 2
    assert verify("--review", tmp_path / "claim.proof")[0] == 2


def test_too_many_void_triggers(world, tmp_path):
    limit = void_limit(len(world.key.vk.opened), 10)
    status, values = review(world, tmp_path, limit + 1)
    assert (status, values["failed_check"]) == (1, "key.ground_truth") and (tmp_path / "a.review").exists()


def test_misuse_of_review(world, tmp_path):
    out = tmp_path / "a.review"

    def status(vk: object, *args: object) -> int:
        words = ["review", vk, "--secret", tmp_path / "me.secret", "--out", out, *args]
        return CliRunner().invoke(cli, [str(word) for word in words]).exit_code

    assert status(world.path("marked.onnx")) == 2
    changed = bytearray((world.folder / "owner.vk").read_bytes())
    changed[-1] ^= 1
    (tmp_path / "false.vk").write_bytes(changed)
    assert status(tmp_path / "false.vk") == 1
    (tmp_path / "names").write_bytes(b"\xff\xfe\xfd")
    assert status(world.path("owner.vk"), "--names", tmp_path / "names") == 2
    out.write_bytes(b"mine")
    assert status(world.path("owner.vk")) == 2 and out.read_bytes() == b"mine"

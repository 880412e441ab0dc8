"""Time-stamps of keys by an authority of our own, which OpenSSL plays."""

from __future__ import annotations

import hashlib
import json
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.timestamp import MAX_RESPONSE_BYTES, check_timestamp, query
from prover.cli import cli as prover_cli
from prover.timestamp import ask_authority
from verifier.check import check_key
from verifier.cli import cli as verifier_cli
from verifier.html import _events

CONFIGURATION = """
[req]
distinguished_name = dn
prompt = no
[dn]
CN = somebody
[root]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
[stamps]
extendedKeyUsage = critical, timeStamping
keyUsage = critical, digitalSignature
[signs]
keyUsage = critical, digitalSignature
[authority]
serial = {folder}/serial
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256, sha512, sha512-256
ess_cert_id_alg = sha256
"""
DATA = b"a key without its signature"
DIGEST = hashlib.sha256(DATA).digest()


@dataclass(frozen=True)
class Authority:
    """A root and a time-stamp authority below it, in a folder."""

    folder: Path

    @staticmethod
    def make(folder: Path, extensions: str = "stamps", name: str = "the authority", number: int = 7) -> Authority:
        folder.mkdir()
        (folder / "conf").write_text(CONFIGURATION.format(folder=folder))
        (folder / "serial").write_text("01\n")
        made = Authority(folder)
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "conf"]
        made.run("req", "-x509", *key, "-keyout", "root.key", "-out", "root.pem", "-extensions", "root",
                 "-subj", "/CN=root", "-days", "30")  # fmt: skip
        made.run("req", "-new", *key, "-keyout", "tsa.key", "-out", "tsa.csr", "-subj", f"/CN={name}")
        made.run("x509", "-req", "-in", "tsa.csr", "-CA", "root.pem", "-CAkey", "root.key", "-set_serial", f"{number}",
                 "-out", "tsa.pem", "-days", "30", "-extfile", "conf", "-extensions", extensions)  # fmt: skip
        return made

    def run(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

    @property
    def roots(self) -> bytes:
        return (self.folder / "root.pem").read_bytes()

    def answer(self, request: bytes, more: bytes = b"") -> bytes:
        """more: certificates (PEM) that are sent beside that of the signer."""
        (self.folder / "query").write_bytes(request)
        (self.folder / "more").write_bytes(more)
        self.run("ts", "-reply", "-config", "conf", "-section", "authority", "-queryfile", "query",
                 "-signer", "tsa.pem", "-inkey", "tsa.key", "-out", "reply",
                 *(("-chain", "more") if more else ()))  # fmt: skip
        return (self.folder / "reply").read_bytes()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tsa") / "tsa")


@pytest.fixture(scope="module")
def response(authority: Authority) -> bytes:
    return authority.answer(query(DATA).request)


@contextmanager
def over_http(answer, status: int = 200) -> Iterator[str]:
    """The URL of a server that answers a request with what `answer` makes of it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/stamp"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_time_stamp(authority, response):
    found = check_timestamp(response, authority.roots, DIGEST)
    assert found.authority == "CN=the authority"
    assert found.time.tzinfo == UTC and abs(datetime.now(UTC) - found.time) < timedelta(hours=1)


def test_openssl_reads_it_too(authority, response):
    (authority.folder / "kept").write_bytes(response)
    words = ("ts", "-verify", "-digest", DIGEST.hex(), "-in", "kept", "-CAfile", "root.pem")
    authority.run(*words)
    with pytest.raises(subprocess.CalledProcessError):
        authority.run(*words[:3], bytes(32).hex(), *words[4:])


@pytest.mark.reaches("timestamp.digest", "timestamp.signature")
def test_stamps_that_do_not_convince(authority, response, tmp_path):
    """Another digest, root, nonce, altered bytes, an answer without a token, and a signer who may not stamp."""
    other, signer = Authority.make(tmp_path / "other"), Authority.make(tmp_path / "signer", "signs")
    with pytest.raises(VerificationError) as caught:
        check_timestamp(response, authority.roots, bytes(32))
    assert caught.value.check == "timestamp.digest"
    altered = bytearray(response)
    altered[-5] ^= 1
    for data, roots, nonce in (
        (response, other.roots, None), (response, authority.roots, 1), (bytes(altered), authority.roots, None),
    ):  # fmt: skip
        with pytest.raises(VerificationError) as caught:
            check_timestamp(data, roots, DIGEST, nonce)
        assert caught.value.check == "timestamp.signature"
    with pytest.raises(subprocess.CalledProcessError):  # OpenSSL itself refuses to stamp with it
        signer.answer(query(DATA).request)
    wide = check_timestamp(response, other.roots + authority.roots, DIGEST)
    assert wide == check_timestamp(response, authority.roots, DIGEST)


def der(tag: int, content: bytes) -> bytes:
    """One value in DER."""
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag]) + (bytes([len(content)]) if len(content) < 128 else bytes([0x80 | len(size)]) + size) + content


def parts(data: bytes) -> tuple[int, list[bytes]]:
    """The tag of a value in DER, and the values in it."""

    def end(start: int) -> tuple[int, int]:
        size, at = data[start + 1], start + 2
        if size & 0x80:
            at += size & 0x7F
            size = int.from_bytes(data[start + 2 : at], "big")
        return at, at + size

    at, last = end(0)
    found = []
    while at < last:
        found.append(data[at : end(at)[1]])
        at = end(at)[1]
    return data[0], found


def with_certificate(data: bytes, more: bytes, path: tuple[int, ...] = (1, 1, 0, 3)) -> bytes:
    """The response with one more certificate beside the signer's, which no signature covers."""
    tag, inside = parts(data)
    if path:
        inside[path[0]] = with_certificate(inside[path[0]], more, path[1:])
    return der(tag, b"".join(inside if path else [*inside, more]))


@pytest.mark.parametrize("version", [2, 3, 9])
def test_a_strange_certificate_in_a_token(authority, response, version):
    """Anybody can add one: the stamp is refused, or says the same."""
    certificate = ssl.PEM_cert_to_DER_cert((authority.folder / "tsa.pem").read_text())
    certificate = certificate.replace(b"\x02\x01\x07", b"\x02\x01\x09", 1)  # another number
    certificate = certificate.replace(b"\xa0\x03\x02\x01\x02", bytes([0xA0, 3, 2, 1, version]), 1)
    data = with_certificate(response, certificate)
    if version == 2:
        assert check_timestamp(data, authority.roots, DIGEST) == check_timestamp(response, authority.roots, DIGEST)
        return
    with pytest.raises(VerificationError) as caught:
        check_timestamp(data, authority.roots, DIGEST)
    assert caught.value.check == "timestamp.signature"


@pytest.mark.reaches("timestamp.digest")
def test_a_stamp_of_another_hash(authority):
    """The same 32 bytes, said to be of another function."""
    words = ("ts", "-query", "-digest", DIGEST.hex(), "-cert", "-out", "other")
    for function, same in (("-sha256", True), ("-sha512-256", False)):
        authority.run(*words, function)
        answer = authority.answer((authority.folder / "other").read_bytes())
        if same:
            assert check_timestamp(answer, authority.roots, DIGEST).authority == "CN=the authority"
            continue
        with pytest.raises(VerificationError) as caught:
            check_timestamp(answer, authority.roots, DIGEST)
        assert caught.value.check == "timestamp.digest"


@pytest.mark.reaches("timestamp.signature")
def test_the_authority_is_the_one_that_signed(authority, tmp_path):
    """Others' certificates may be sent along, but none that has the issuer and the number of the signer's."""
    request, alike = query(DATA).request, {}
    for number in (7, 8):
        other = Authority.make(tmp_path / f"{number}", name="a greater authority", number=number)
        alike[number] = authority.answer(request, (other.folder / "tsa.pem").read_bytes())
        assert b"a greater authority" in alike[number]
    assert check_timestamp(alike[8], authority.roots, DIGEST).authority == "CN=the authority"
    with pytest.raises(VerificationError) as caught:
        check_timestamp(alike[7], authority.roots, DIGEST)
    assert caught.value.check == "timestamp.signature"


def test_malformed_stamps(authority, response):
    for data in (b"", b"junk", response[:-1], response + b"\0", bytes(MAX_RESPONSE_BYTES + 1), b"\x30\x03\x02\x01\x02"):
        with pytest.raises(DecodingError):
            check_timestamp(data, authority.roots, DIGEST)
    for roots in (b"", b"junk", authority.roots[:-40]):
        with pytest.raises(DecodingError):
            check_timestamp(response, roots, DIGEST)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.data())
def test_altered_stamps_say_nothing_else(authority, response, data):
    """Whatever is altered: malformed, refused, or the same time of the same authority."""
    altered = bytearray(response)
    for _ in range(data.draw(st.integers(1, 3))):
        at, count = data.draw(st.integers(0, len(altered) - 1)), data.draw(st.integers(0, 3))
        altered[at : at + count] = data.draw(st.binary(max_size=3))
    try:
        found = check_timestamp(bytes(altered), authority.roots, DIGEST)
    except (DecodingError, VerificationError):
        return
    assert found == check_timestamp(response, authority.roots, DIGEST)


def test_an_authority_is_asked(world, authority):
    with over_http(authority.answer) as url:
        response, found = ask_authority(url, world.key.vk, authority.roots)
    assert found == check_timestamp(response, authority.roots, world.key.vk.digest)
    replayed = authority.answer(query(world.key.vk.to_bytes()[:-64]).request)
    with over_http(lambda _: replayed) as url, pytest.raises(VerificationError) as caught:
        ask_authority(url, world.key.vk, authority.roots)  # the nonce is another one
    assert caught.value.check == "timestamp.signature"
    with over_http(lambda _: bytes(MAX_RESPONSE_BYTES + 1)) as url, pytest.raises(ConnectionError):
        ask_authority(url, world.key.vk, authority.roots)
    for status in (302, 404, 500):
        with over_http(authority.answer, status) as url, pytest.raises(ConnectionError, match=str(status)):
            ask_authority(url, world.key.vk, authority.roots)
    for bad in ("", "junk", "ftp://x", "file:///etc/passwd", "http://x:port", "http://[", "http://a b/"):
        with pytest.raises((ParameterError, ConnectionError)):
            ask_authority(bad, world.key.vk, authority.roots)
    with pytest.raises(ConnectionError):
        ask_authority("http://127.0.0.1:1/", world.key.vk, authority.roots)


def run(cli: object, *args: object) -> tuple[int, dict[str, object]]:
    result = CliRunner().invoke(cli, [*(str(arg) for arg in args), "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_the_commands(world, authority, tmp_path):
    vk = tmp_path / "owner.vk"
    vk.write_bytes(world.key.vk.to_bytes())
    roots = authority.folder / "root.pem"
    with over_http(authority.answer) as url:
        words = ["timestamp", "--vk", vk, "--tsa", url, "--tsa-roots", roots]
        status, values = run(prover_cli, *words)
        assert status == 0 and values["authority"] == "CN=the authority"
        assert run(prover_cli, *words)[0] == 2  # it is there
    stamp = tmp_path / "owner.vk.tsr"
    asked = ["--timestamp", stamp, "--tsa-roots", roots]
    status, values = run(verifier_cli, "key", vk, *asked)
    assert status == 0 and values["stamped"]["authority"] == "CN=the authority"
    text = CliRunner().invoke(verifier_cli, ["key", str(vk), *map(str, asked)]).output
    assert "CN=the authority" in text and str(values["stamped"]["time"]) in text
    stamp.write_bytes(authority.answer(query(DATA).request))
    status, values = run(verifier_cli, "key", vk, *asked)
    assert (status, values["failed_check"], values["stamped"]) == (1, "timestamp.digest", None)
    other = Authority.make(tmp_path / "other")
    status, values = run(verifier_cli, "key", vk, "--timestamp", stamp, "--tsa-roots", other.folder / "root.pem")
    assert (status, values["failed_check"]) == (1, "timestamp.digest")
    stamp.write_bytes(authority.answer(query(world.key.vk.to_bytes()[:-64]).request))
    status, values = run(verifier_cli, "key", vk, "--timestamp", stamp, "--tsa-roots", other.folder / "root.pem")
    assert (status, values["failed_check"]) == (1, "timestamp.signature")
    assert CliRunner().invoke(verifier_cli, ["key", str(vk), "--timestamp", str(stamp)]).exit_code == 2


def test_the_page_has_it_in_the_time_line(world):
    stamped = {"time": "2026-01-02 03:04:05 UTC", "authority": "CN=<b>the authority</b>"}
    verdict = check_key(world.key.vk, stamp=lambda key: stamped)
    assert verdict.accepted and verdict.stamped == stamped
    (event,) = _events(verdict)
    assert (event.time, event.what, event.source) == (stamped["time"], "Key time-stamped", stamped["authority"])

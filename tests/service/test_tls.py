"""The commands over TLS: whom they believe, and whom a server answers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from verifier import client
from verifier.cli import cli

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}"}
TOKEN = "a-token-of-thirty-two-characters"


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def papers(tmp_path_factory) -> Path:
    """ca.pem, server.pem and client.pem by it, with their keys, other.pem by nobody, token and tokens."""
    folder = tmp_path_factory.mktemp("papers")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for name in ("ca", "other"):
        made = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        openssl(folder, "req", "-x509", *new, *made, "-days", "2", "-subj", f"/CN={name}")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for number, name in enumerate(("server", "client"), 1):
        openssl(folder, "req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", str(number), "-days", "2", "-extfile", "names"]
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "tokens").write_text(f"ada:{hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    return folder


@contextmanager
def serving(world, mk: Path, *args: object) -> Iterator[str]:
    words = [
        sys.executable, "-c", "from prover.cli import main; main()", "serve", "--mk", mk, "--vk",
        world.path("owner.vk"), *world.secret_options(), "--listen", "127.0.0.1:0", *args,
    ]  # fmt: skip
    process = subprocess.Popen([str(word) for word in words], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()


def verify(world, address: str, *args: object) -> Result:
    words = [
        "verify", "--vk", world.path("owner.vk"), "--model", world.path("marked.onnx"), "--prover", address,
        "--without-fidelity", "--json", *args,
    ]  # fmt: skip
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_a_server_with_certificates_and_tokens(world, approved_file, papers, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "FIRST_DELAY_S", 0.001)
    server = ["--tls-cert", papers / "server.pem", "--tls-key", papers / "server.key"]
    access = ["--client-ca", papers / "ca.pem", "--tokens", papers / "tokens"]
    ca, token = ["--tls-ca", papers / "ca.pem"], ["--token-file", papers / "token"]
    me = ["--tls-cert", papers / "client.pem", "--tls-key", papers / "client.key"]
    with serving(world, approved_file, *server, *access) as address:
        result = verify(world, address, *ca, *me, *token)
        assert result.exit_code == 0, result.output
        refused = verify(world, address, *ca, *me)
        assert refused.exit_code == 2 and "unauthenticated" in json.loads(refused.stdout)["error"]
        strangers = (
            [*ca, *token, "--tls-cert", papers / "other.pem", "--tls-key", papers / "other.key"],
            ["--tls-ca", papers / "other.pem", *me, *token],
            token,
        )
        for stranger in strangers:
            result = verify(world, address, *stranger)
            assert result.exit_code == 2 and json.loads(result.stdout)["outcome"] == "unavailable", stranger
        (tmp_path / "cases.csv").write_text(
            f"vk,model,prover,without_fidelity\n{world.path('owner.vk')},{world.path('marked.onnx')},{address},true\n"
        )
        words = ["batch", tmp_path / "cases.csv", "--results", tmp_path / "results", *ca, *me, *token]
        result = CliRunner().invoke(cli, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        assert {path.name for path in (tmp_path / "results").iterdir()} == {"1.json", "1.nonce", "1.claim"}


def test_papers_that_are_none(world, papers, tmp_path):
    """They are misuse of this computer, before anybody is called."""
    (tmp_path / "junk").write_text("junk\n")
    (tmp_path / "empty").write_text("")
    for args in (
        ["--tls-ca", tmp_path / "junk"],
        ["--tls-cert", papers / "client.pem"],
        ["--tls-cert", papers / "client.pem", "--tls-key", papers / "server.key"],
        ["--token-file", tmp_path / "empty"],
    ):
        assert verify(world, "192.0.2.1:1", *args).exit_code == 2, args

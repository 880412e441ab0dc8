"""Looking after a server: requests, doctor, backup, tokens, metrics, logs, derivation apart."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ml.quantise import Derivation, derive, images_digest
from protocol.argument import Context
from protocol.errors import DecodingError, ParameterError, VerificationError
from prover import derive_worker, doctor, requests
from prover.cli import cli
from prover.derive_worker import TOO_MUCH, DeriveLimits, derive_apart
from prover.jobs import Prover, approve, npy, state_folder, subject
from prover.keys import back_up, load_owner, restore_backup
from prover.requests import Requests, likeness
from prover.state import State
from prover.telemetry import JsonLines, Metrics, serve_metrics
from tests.service.serving import PLAIN, SECRET, WAIT_S, calling, ended, header, running, submit, wait_until
from tests.service.test_access import Pair, issue
from zkmark.v1 import zkmark_pb2 as pb


def run(*arguments: object) -> tuple[int, dict]:
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout.splitlines()[0]) if result.stdout else {}


@pytest.fixture
def secret_options(world) -> list[str]:
    return world.secret_options()


# --- requests


def ask(prover: Prover, world, *models: bytes) -> None:
    """A client asks about models, and all are refused."""
    with running(prover) as target, calling(target) as stub:
        for model in models:
            message = header(world, model, context=Context("a trial", "", "Eve\x1b[2J", os.urandom(32)).to_bytes())
            assert ended(stub, submit(stub, message, model)).state == pb.Job.FAILED


def test_requests_from_the_question_to_the_answer(world, owner_file, secret_options):
    """Listed, compared with what is approved, approved; then the same client gets its claim."""
    network = subject(world.marked, PLAIN, None, world.key.vk).network
    prover = Prover(owner_file, SECRET)
    ask(prover, world, world.other, world.other, world.marked)
    mk = ["--mk", owner_file]
    code, found = run("requests", "list", *mk)
    request, second = found["requests"]
    assert second["network_digest"] == network.digest.hex() and second["times"] == 1
    assert code == 0 and request["times"] == 2 and request["client"] == "address 127.0.0.1"
    assert request["model_digest"] == hashlib.sha256(world.other).hexdigest() and request["verifier"] == "Eve\x1b[2J"
    text = CliRunner().invoke(cli, ["requests", "list", "--mk", str(owner_file)]).stdout
    assert "Eve" in text and "\x1b" not in text
    assert run("requests", "show", 1, *mk)[1]["known"] == []
    for number in (3, 2**63, 10**30):
        assert run("requests", "show", number, *mk)[0] == 2
    code, found = run("requests", "approve", 2, *mk, *secret_options)
    assert code == 0 and found["budget_left"] == 63 and found["network_digest"] == network.digest.hex()
    (known,) = run("requests", "show", 1, *mk)[1]["known"]
    assert known["network_digest"] == network.digest.hex() and known["same_structure"] and 0 < known["equal"] < 1
    code, found = run("requests", "approve", 1, *mk, *secret_options)  # in vain: it does not carry the mark
    assert (code, found["failed_check"]) == (1, "prove.matches")
    assert run("requests", "list", *mk)[1] == {"requests": []}
    with running(prover) as target, calling(target) as stub:
        assert ended(stub, submit(stub, header(world, world.marked), world.marked)).state == pb.Job.DONE


def test_a_dismissed_request_does_not_come_back(world, owner_file):
    prover, mk = Prover(owner_file, SECRET), ["--mk", owner_file]
    ask(prover, world, world.other)
    assert run("requests", "dismiss", 1, *mk)[0] == 0
    assert not list((prover.state.folder / "requests").iterdir())
    ask(prover, world, world.other)
    assert run("requests", "list", *mk)[1] == {"requests": []}
    (request,) = run("requests", "list", "--all", *mk)[1]["requests"]
    assert request["dismissed"] and request["times"] == 2
    assert run("requests", "show", 1, *mk)[0] == run("requests", "show", 7, *mk)[0] == 2


def test_commands_make_no_folder(owner_file):
    assert run("requests", "list", "--mk", owner_file)[0] == 2
    assert not state_folder(owner_file).exists()


def test_requests_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "MAX_REQUESTS", 3)
    monkeypatch.setattr(requests, "MAX_PER_CLIENT", 2)
    monkeypatch.setattr(requests, "MAX_BYTES", 10)
    found, (model, large) = Requests(State(tmp_path / "state")), (tmp_path / "model", tmp_path / "large")
    model.write_bytes(b"1234")
    large.write_bytes(bytes(11))

    def record(client: str, path: Path, name: bytes) -> bool:
        asked = Context("", "", "", bytes(32))
        return found.record(path, hashlib.sha256(name).digest(), b"", bytes(32), client, asked)

    assert not record("me", large, b"0")
    assert [record("me", model, name) for name in (b"1", b"2", b"3", b"1")] == [True, True, False, True]
    assert not record("you", model, b"4")  # of bytes
    monkeypatch.setattr(requests, "MAX_BYTES", 100)
    assert [record("you", model, name) for name in (b"4", b"5")] == [True, False]
    assert [request.times for request in found.all()] == [2, 1, 1]
    found.dismiss(found.all()[0])
    assert record("you", model, b"5")
    (tmp_path / "state" / "requests" / ("0" * 64)).write_bytes(b"left by a crash")
    found.sweep()
    assert len(list((tmp_path / "state" / "requests").iterdir())) == 3


def test_likeness(world):
    one = subject(world.marked, PLAIN, None, world.key.vk).network
    copy = subject(world.copy, PLAIN, None, world.key.vk).network
    assert (likeness(one, copy).structure, likeness(one, copy).equal) == (True, 1.0)
    other = subject(world.other, PLAIN, None, world.key.vk).network
    assert likeness(one, other).structure and likeness(one, other).equal < 1
    smaller = derive(world.marked, Derivation(outputs=tuple(range(9)))).network
    assert not likeness(one, smaller).structure and likeness(one, smaller).equal == 0.0


# --- derivation apart


def apart(path: Path, limits: DeriveLimits | None = None, cancelled=lambda: False, **changes) -> tuple[bytes, float]:
    derivation = Derivation(**changes)
    return derive_apart(path, derivation.to_bytes(), None, limits or DeriveLimits(), cancelled)


def test_a_child_derives_the_same_network(world, tmp_path):
    data, freedom = apart(Path(world.path("marked.onnx")))
    assert data == derive(world.marked).network.to_bytes() and freedom == 0.0
    images = np.ascontiguousarray(world.key.images[:20])
    derivation = Derivation(calibration=images_digest(images))
    (tmp_path / "images.npy").write_bytes(npy(images))
    data, freedom = derive_apart(
        Path(world.path("marked.onnx")), derivation.to_bytes(), tmp_path / "images.npy", DeriveLimits(), lambda: False
    )
    assert data == derive(world.marked, derivation, images).network.to_bytes() and freedom == 1.0


def test_a_child_has_no_secret_and_no_time_and_no_memory(world, tmp_path, monkeypatch):
    """What it fails with is the same for all models, and says nothing of this machine."""
    monkeypatch.chdir(world.folder)
    path = Path("marked.onnx")
    monkeypatch.setenv("ZKMARK_PASSPHRASE", SECRET.decode())
    real, seen = subprocess.Popen, []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: seen.append(k["env"]) or real(*a, **k))
    assert apart(path)
    assert SECRET.decode() not in str(seen[0]) and not any(name.startswith("ZKMARK_") for name in seen[0])
    for limits in (DeriveLimits(seconds=0.0), DeriveLimits(memory=1 << 20)):
        with pytest.raises(ParameterError, match=TOO_MUCH):
            apart(path, limits)
    with pytest.raises(InterruptedError):
        apart(path, cancelled=lambda: True)
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(DecodingError):
        apart(tmp_path / "junk")
    with pytest.raises(ParameterError, match="output"):
        apart(path, outputs=(99,))
    with pytest.raises(ParameterError, match=TOO_MUCH):
        apart(tmp_path / "gone")
    monkeypatch.setattr(derive_worker.sys, "executable", "/bin/false")
    with pytest.raises(ParameterError, match=TOO_MUCH):
        apart(path)


def test_a_child_dies_with_its_parent():
    """It waits for nothing but its request, which never comes."""
    child = subprocess.Popen([sys.executable, "-m", "prover.derive_worker"], stdin=subprocess.PIPE)
    child.stdin.close()
    assert child.wait(WAIT_S) != 0


# --- metrics and logs


def test_metrics(world, approved_file, monkeypatch):
    """Jobs by state and causes are counted; a refused model looks like an unprovable one."""
    prover, measured = Prover(approved_file, SECRET), Metrics()
    port, stop = serve_metrics(measured, "127.0.0.1:0")

    def lines() -> set[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as answer:
            return set(answer.read().decode().splitlines())

    with running(prover, metrics=measured) as target, calling(target) as stub:
        assert 'zkmark_jobs{state="done"} 0.0' in lines()
        ended(stub, submit(stub, header(world, world.marked), world.marked))
        ended(stub, submit(stub, header(world, world.other), world.other))
        with pytest.raises(VerificationError):
            approve(approved_file, SECRET, subject(world.other, PLAIN, None, world.key.vk))
        ended(stub, submit(stub, header(world, world.other), world.other))
        wait_until(lambda: "zkmark_job_seconds_count 3.0" in lines())  # counted after the end
        found = lines()
    stop()
    for line in (
        'zkmark_jobs{state="done"} 1.0', 'zkmark_jobs{state="failed"} 2.0', 'zkmark_refused_total{cause="refused"} 2.0',
        f"zkmark_received_bytes_total {float(2 * len(world.other) + len(world.marked))}",
    ):  # fmt: skip
        assert line in found, found
    with pytest.raises(ParameterError):
        serve_metrics(measured, "nowhere")


def test_json_lines(caplog):
    record = logging.LogRecord("zkmark.prover", logging.INFO, "", 0, "job %s", ("ended",), None)
    record.fields = {"job": "ab", "client": "x\n{"}
    line = JsonLines().format(record)
    found = json.loads(line)
    assert "\n" not in line
    assert (found["message"], found["level"], found["job"], found["client"]) == ("job ended", "info", "ab", "x\n{")


# --- doctor, backup, tokens


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_doctor(world, owner_file, tmp_path, secret_options, monkeypatch):
    pair: Pair = issue(tmp_path, "server")
    prover = Prover(owner_file, SECRET)
    approve(owner_file, SECRET, about := subject(world.marked, PLAIN, None, world.key.vk))
    prover.networks.keep(about.network)
    os.chmod(world.path("passphrase"), 0o600)
    monkeypatch.setattr(doctor, "FREE_BYTES", 1)
    monkeypatch.setattr(doctor, "CERTIFICATE_DAYS", 1)
    arguments = ["--mk", owner_file, "--vk", world.path("owner.vk"), *secret_options]
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ada:{'0' * 64}\n")
    tls = ["--tls-cert", pair.certificate, "--tls-key", pair.key, "--client-ca", pair.certificate, "--tokens", tokens]
    code, found = run("doctor", *arguments, *tls, "--listen", free_address())
    assert code == 0 and found["done"], found
    assert {finding["what"] for finding in found["findings"]} >= {
        "marking key", "verification key", "kernels", "port", "address", "clock", "disk", "memory", "certificate",
        "tokens",
    }  # fmt: skip

    def wrong(*changed: object) -> set[str]:
        code, found = run("doctor", *arguments, *changed)
        assert (code == 1) == (not found["done"])
        return {finding["what"] for finding in found["findings"] if not finding["well"]}

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert wrong("--listen", f"127.0.0.1:{taken.getsockname()[1]}") == {"port"}
    assert wrong("--listen", "127.0.0.1:70000") == {"port"}
    assert wrong("--listen", free_address(), "--memory-limit", 0.001) == {"memory"}
    other = issue(tmp_path, "other")
    for papers in (["--tls-key", pair.key], ["--tls-cert", pair.certificate, "--tls-key", other.key],
                   [*tls, "--client-ca", tokens]):  # fmt: skip
        assert wrong("--listen", free_address(), *papers) == {"certificate"}
    tokens.write_text("ada")
    assert wrong("--listen", free_address(), *tls) == {"tokens"}
    monkeypatch.setattr(doctor, "CERTIFICATE_DAYS", 14)
    monkeypatch.setattr(doctor, "FREE_BYTES", 1 << 60)
    owner_file.chmod(0o644)
    pair.key.chmod(0o640)
    monkeypatch.setattr(doctor.time, "time", lambda: 1.0)
    assert wrong("--listen", "nowhere", *tls) == {
        "port", "disk", "clock", "tokens", f"mode of {owner_file.name}", "mode of server.key"
    }  # fmt: skip


def test_doctor_with_the_wrong_secret(owner_file, tmp_path):
    (tmp_path / "wrong").write_bytes(b"wrong")
    code, found = run("doctor", "--mk", owner_file, "--passphrase-file", tmp_path / "wrong", "--listen", free_address())
    assert code == 1 and "marking key" in {f["what"] for f in found["findings"] if not f["well"]}


def test_doctor_and_an_address_that_others_reach(owner_file, tmp_path, secret_options):
    """As `serve` takes it: over TLS, or in the clear where that is said."""
    pair = issue(tmp_path, "server")
    tls = ["--tls-cert", pair.certificate, "--tls-key", pair.key]
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port = probe.getsockname()[1]
    for listen, words, well, said in (
        (f"127.0.0.1:{port}", [], True, "this machine only"), (f"0.0.0.0:{port}", [], False, "--insecure"),
        (f"0.0.0.0:{port}", tls, True, "over TLS"), (f"0.0.0.0:{port}", ["--insecure"], True, "without TLS as you say"),
    ):  # fmt: skip
        code, found = run("doctor", "--mk", owner_file, *secret_options, "--listen", listen, *words)
        address = next(finding for finding in found["findings"] if finding["what"] == "address")
        assert address["well"] == well and said in address["found"], address
        assert well or code == 1


def test_backup_and_restore(world, owner_file, tmp_path, secret_options):
    copy, mk = tmp_path / "backup", ["--mk", owner_file]
    assert run("backup", *mk, "--out", copy, *secret_options)[0] == 0
    assert copy.stat().st_mode & 0o777 == 0o600 and copy.read_bytes() == owner_file.read_bytes()
    assert run("backup", *mk, "--out", copy, *secret_options)[0] == 2  # nothing is overwritten
    gone = tmp_path / "gone" / "file"
    for words in (["backup", *mk, "--out", gone], ["restore", "--mk", gone, "--backup", copy]):
        code, found = run(*words, *secret_options)
        assert code == 2 and "gone is not a folder" in found["error"]
    approve(owner_file, SECRET, subject(world.marked, PLAIN, None, world.key.vk))
    present = owner_file.read_bytes()
    code, found = run("restore", *mk, "--backup", copy, *secret_options)
    assert code == 2 and "older" in found["error"] and owner_file.read_bytes() == present
    newer = tmp_path / "newer"
    assert len(back_up(owner_file, newer, SECRET).k_min) == 1
    assert run("restore", *mk, "--backup", newer, *secret_options)[0] == 0
    owner_file.write_bytes(b"damaged")
    assert run("restore", *mk, "--backup", newer, *secret_options)[0] == 2  # what it lacks cannot be told
    assert run("restore", *mk, "--backup", newer, "--force", *secret_options)[0] == 0
    assert len(load_owner(owner_file, SECRET)[1].k_min) == 1
    owner_file.unlink()
    assert run("restore", *mk, "--backup", copy, *secret_options)[0] == 0  # a lost file, and the best that there is
    assert run("restore", *mk, "--backup", newer, *secret_options)[0] == 0


def test_another_secret(world, owner_file, tmp_path, secret_options):
    approve(owner_file, SECRET, subject(world.marked, PLAIN, None, world.key.vk))
    key, approvals = load_owner(owner_file, SECRET)
    (tmp_path / "new").write_bytes(os.urandom(32))
    rekey = ["rekey", "--mk", owner_file, "--new-key-file", tmp_path / "new"]
    assert run(*rekey, "--key-file", tmp_path / "new")[0] == 2  # not the present one, and not another one
    assert run("rekey", "--mk", owner_file, *secret_options, "--new-passphrase-file", world.path("passphrase"))[0] == 2
    before = owner_file.read_bytes()
    assert run(*rekey, *secret_options)[0] == 0 and owner_file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ParameterError, match="wrong passphrase"):
        load_owner(owner_file, SECRET)
    found, kept = load_owner(owner_file, (tmp_path / "new").read_bytes())
    assert found.to_bytes() == key.to_bytes() and kept == approvals and approvals.k_min
    assert len(before) == owner_file.stat().st_size and before != owner_file.read_bytes()


def test_a_backup_of_another_key(owner_file, tmp_path):
    from ml.triggers import abstract_images
    from protocol.keygen import KeyParameters, generate_key
    from prover.keys import save_marking_key

    other = tmp_path / "other.mk"
    save_marking_key(other, generate_key(KeyParameters((1, 4, 4), 10, 160), abstract_images(160, (1, 4, 4))), SECRET)
    with pytest.raises(ParameterError, match="another key"):
        restore_backup(other, owner_file, SECRET)
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(DecodingError):
        restore_backup(tmp_path / "junk", owner_file, SECRET, force=True)


def test_token(tmp_path):
    from prover.access import Tokens

    code, found = run("token", "alice")
    (tmp_path / "tokens").write_text(found["line"] + "\n")
    assert code == 0 and Tokens(tmp_path / "tokens").name(found["token"]) == "alice"
    assert run("token", "no name")[0] == 2


# --- the command itself


def test_serve_as_a_process(world, approved_file, tmp_path, secret_options):
    """Variables of the environment, TLS, metrics, JSON lines; SIGTERM ends it."""
    from zkmark.connect import connect, read_tls

    pair = issue(tmp_path, "server")
    environment = {
        **os.environ, "ZKMARK_PROVER_SERVE_LISTEN": "127.0.0.1:0", "ZKMARK_PROVER_SERVE_LOG_JSON": "1",
        "ZKMARK_PROVER_SERVE_TLS_CERT": str(pair.certificate), "ZKMARK_PROVER_SERVE_TLS_KEY": str(pair.key),
        "ZKMARK_PROVER_SERVE_METRICS": "127.0.0.1:0",
    }  # fmt: skip
    command = [
        sys.executable, "-c", "from prover.cli import main; main()", "serve", "--mk", str(approved_file),
        "--vk", world.path("owner.vk"), *secret_options, "--json",
    ]  # fmt: skip
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
        try:
            found = json.loads(process.stdout.readline())
            with connect(found["listening"], read_tls(pair.certificate)) as channel:
                from zkmark.v1 import zkmark_pb2_grpc as pb_grpc

                stub = pb_grpc.ProverStub(channel)
                job = submit(stub, header(world, world.marked), world.marked)
                assert ended(stub, job).state == pb.Job.DONE
            port = int(found["listening"].rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), WAIT_S) as stranger:
                stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")  # where a handshake is expected
                while stranger.recv(1000):
                    pass
            with urllib.request.urlopen(f"http://127.0.0.1:{found['metrics_port']}", timeout=WAIT_S) as answer:
                assert b'zkmark_jobs{state="done"} 1.0' in answer.read()
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
            process.communicate()
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {"job submitted", "job ended"} <= {event["message"] for event in events}
    assert SECRET.decode() not in (tmp_path / "log").read_text()

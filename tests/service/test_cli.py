"""The two commands as a user runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from Crypto.Hash import SHAKE256

from ml import cli as ml
from ml.cli import cli as ml_cli
from protocol import kernels, soundness
from protocol.keygen import VerificationKey
from protocol.soundness import bits
from prover import options as prover_options
from prover import server
from prover.cli import cli as prover_cli
from prover.jobs import state_folder
from prover.keys import load_owner
from tests.service.conftest import memorize, two_layers
from verifier import options as verifier_options
from verifier.cli import cli as verifier_cli

NONCE = "ab" * 32
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}", "COLUMNS": "100"}
PASSPHRASE = b"correct horse battery staple\n"  # as in conftest.py


def prover(*args: object) -> Result:
    return CliRunner().invoke(prover_cli, [str(a) for a in args])


def verifier(*args: object) -> Result:
    return CliRunner().invoke(verifier_cli, [str(a) for a in args])


def command(program: str, *args: object) -> list[str]:
    return [sys.executable, "-c", f"from {program}.cli import main; main()", *(str(a) for a in args)]


@pytest.fixture(scope="module")
def shop(world, tmp_path_factory) -> Path:
    """owner/: all of it, the marked network proven; stranger/: what is public."""
    folder = tmp_path_factory.mktemp("shop")
    owner, stranger = folder / "owner", folder / "stranger"
    owner.mkdir()
    stranger.mkdir()
    for name in ("owner.mk", "owner.vk", "passphrase", "marked.onnx", "other.onnx"):
        (owner / name).write_bytes((world.folder / name).read_bytes())
    result = prover(
        "prove", "--mk", owner / "owner.mk", "--vk", owner / "owner.vk", "--passphrase-file", owner / "passphrase",
        "--model", owner / "marked.onnx", "--nonce", NONCE, "--claimant", "the owner", "--purpose", "a test",
        "--out", owner / "claim.proof", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for name in ("owner.vk", "marked.onnx", "other.onnx", "claim.proof"):
        (stranger / name).write_bytes((owner / name).read_bytes())
    return folder


def verify(shop: Path, *args: object, model: str = "marked.onnx", proof: Path | None = None) -> Result:
    stranger = shop / "stranger"
    return verifier(
        "verify", "--vk", stranger / "owner.vk", "--model", stranger / model, "--nonce", NONCE,
        "--proof", proof or stranger / "claim.proof", "--claimant", "the owner", "--purpose", "a test",
        "--without-fidelity", *args,
    )  # fmt: skip


def test_keygen(tmp_path, monkeypatch):
    monkeypatch.setenv("ZKMARK_PASSPHRASE", "a passphrase")
    where = ["--mk", tmp_path / "a.mk", "--vk", tmp_path / "a.vk"]
    result = prover("keygen", "--shape", "1,4,4", "--classes", 10, "--ell", 160, *where, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    key = VerificationKey.from_bytes((tmp_path / "a.vk").read_bytes())
    assert values["vk_digest"] == key.digest.hex() and values["h"] == key.h
    before = (tmp_path / "a.mk").read_bytes()
    again = prover("keygen", "--shape", "1,4,4", "--classes", 10, "--ell", 160, *where)
    assert again.exit_code == 2 and "not overwritten" in again.output
    assert (tmp_path / "a.mk").read_bytes() == before
    checked = verifier("key", tmp_path / "a.vk", "--json")
    assert checked.exit_code == 0 and json.loads(checked.stdout)["h"] == key.h


def test_keygen_with_the_owners_own_images(world, write_images, tmp_path, monkeypatch):
    monkeypatch.setenv("ZKMARK_PASSPHRASE", "a passphrase")
    folder = write_images(world.key.images, "triggers")
    files = ["--mk", tmp_path / "a.mk", "--vk", tmp_path / "a.vk"]
    options = ["--shape", "1,4,4", "--classes", 10, "--triggers", folder]
    assert prover("keygen", *options, "--ell", 200, *files).exit_code == 2  # too few images
    assert prover("keygen", *options, "--ell", 160, *files).exit_code == 0
    key = VerificationKey.from_bytes((tmp_path / "a.vk").read_bytes())
    assert (key.openings.images == world.key.images[key.opened]).all()


def test_a_key_with_chosen_labels_from_end_to_end(shop, write_images, tmp_path, monkeypatch):
    """The owner names k_min; the verifier has to accept the rule, and reads why there is no bound."""
    monkeypatch.setenv("ZKMARK_PASSPHRASE", "a passphrase")
    images = np.frombuffer(SHAKE256.new(b"frontier").read(40 * 16), np.uint8).reshape(40, 1, 4, 4)
    labels = [n % 3 for n in range(40)]
    folder, table = write_images(images, "triggers"), tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{n:04}.png,{label}\n" for n, label in enumerate(labels)))
    mk, vk, model, proof = (tmp_path / name for name in ("a.mk", "a.vk", "m.onnx", "a.proof"))
    options = ["--shape", "1,4,4", "--classes", 10, "--mk", mk, "--vk", vk, "--chosen-labels", table]
    assert "--triggers" in prover("keygen", *options).output
    assert prover("keygen", *options, "--triggers", folder, "--ell", 40).exit_code == 2
    made = prover("keygen", *options, "--triggers", folder, "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["label_rule"] == "chosen" and json.loads(made.stdout)["ell"] == 40
    key = VerificationKey.from_bytes(vk.read_bytes())
    assert key.opened_labels.tolist() == [labels[n] for n in key.opened]

    model.write_bytes(two_layers(*memorize(images[key.hidden], np.array(labels)[key.hidden], 1)))
    claim = ["--mk", mk, "--vk", vk, "--model", model, "--nonce", NONCE, "--out", proof]
    refused = prover("prove", *claim)
    assert refused.exit_code == 2 and "--k-min" in refused.output
    assert prover("prove", *claim, "--k-min", key.h - 2).exit_code == 0
    checked = ["verify", "--vk", vk, "--model", model, "--nonce", NONCE, "--proof", proof, "--without-fidelity"]
    for result in (verifier("key", vk, "--json"), verifier(*checked, "--json")):
        assert result.exit_code == 1 and json.loads(result.stdout)["failed_check"] == "policy.chosen_labels"
    assert verifier("key", vk, "--accept-chosen-labels").exit_code == 0
    page = tmp_path / "page.html"
    result = verifier(*checked, "--accept-chosen-labels", "--html", page)
    assert result.exit_code == 0, result.output
    p_value = bits(soundness.p_value(key.h, key.h - 2, Fraction(1, 2)))
    assert "no bound: the owner chose" in result.output and f"2^-{p_value:.1f}" in result.output
    words = page.read_text()
    assert "Why false accusations are not bounded" in words and f"−{p_value:.1f}" in words and "<svg" not in words
    assert "--accept-chosen-labels" in words  # to check it again
    quarter = verifier(*checked, "--accept-chosen-labels", "--null-probability", "1/4", "--json")
    assert json.loads(quarter.stdout)["p_value_bits"] > p_value and json.loads(quarter.stdout)["no_bound"]
    for bad in ("1/0", "2", "-1/2", "x", "1e-9", "3/2", "0/1"):
        assert verifier(*checked, "--accept-chosen-labels", "--null-probability", bad).exit_code == 2, bad


def test_plan():
    values = json.loads(prover("keygen", "--plan", "--shape", "1,28,28", "--classes", 10, "--json").stdout)
    assert values["h"] == [223, 256, 289] and values["k_min"] == [109, 118, 126]
    assert min(values["false_claim_bits"]) >= 128 and values["cut_and_choose_b"] == 119
    few = prover("keygen", "--plan", "--shape", "1,28,28", "--classes", 10, "--ell", 60)
    assert few.exit_code == 2 and "at least 132" in few.output


def test_results_are_checked_before_the_work(shop, tmp_path, monkeypatch):
    """No file is overwritten, no result is lost for a missing folder, mk and vk are two files."""
    monkeypatch.setenv("ZKMARK_PASSPHRASE", "a passphrase")
    keygen = ["keygen", "--shape", "1,4,4", "--classes", 10, "--ell", 160]
    same = prover(*keygen, "--mk", tmp_path / "a", "--vk", tmp_path / "." / "a")
    gone = prover(*keygen, "--mk", tmp_path / "a", "--vk", tmp_path / "gone" / "a.vk")
    assert same.exit_code == gone.exit_code == 2 and list(tmp_path.iterdir()) == []
    folder = shop / "owner"
    before = (folder / "owner.mk").read_bytes()
    result = prover(
        "prove", *owner(shop), "--vk", folder / "owner.vk", "--model", folder / "marked.onnx", "--nonce", NONCE,
        "--out", folder / "owner.mk",
    )  # fmt: skip
    assert result.exit_code == 2 and (folder / "owner.mk").read_bytes() == before


def test_calibration_and_preprocessing_on_both_sides(shop, world, write_images, tmp_path):
    images = write_images(world.key.images[:30], "calibration")
    preprocess = tmp_path / "preprocess.json"
    preprocess.write_text('{"outputs": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}')
    options = ["--calibration", images, "--preprocess", preprocess]
    folder, proof = shop / "owner", tmp_path / "claim.proof"
    result = prover(
        "prove", *owner(shop), "--vk", folder / "owner.vk", "--model", folder / "marked.onnx", "--nonce", NONCE,
        "--claimant", "the owner", "--purpose", "a test", "--out", proof, *options,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    values = json.loads(verify(shop, *options, "--json", proof=proof).stdout)
    assert values["accepted"] and values["freedom_bits"] > 20
    values = json.loads(verify(shop, "--json", proof=proof).stdout)
    assert values["failed_check"] in ("statement.network", "statement.derivation")


@pytest.mark.parametrize("shape", ["1,4", "1,4,x", "0,4,4", "1,4,4,4", "-1,4,4", "99999,9999,9999"])
def test_bad_shapes(shape):
    assert prover("keygen", "--plan", "--shape", shape, "--classes", 10).exit_code == 2


def test_key_and_sheet(shop, tmp_path):
    from PIL import Image

    result = verifier("key", shop / "stranger" / "owner.vk", "--sheet", tmp_path / "sheet.png")
    assert result.exit_code == 0 and "accepted" in result.output
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 500 and len(sheet.getcolors(1 << 20)) > 50
    before = (shop / "stranger" / "owner.vk").read_bytes()
    for path in (shop / "stranger" / "owner.vk", tmp_path / "gone" / "sheet.png"):
        assert verifier("key", shop / "stranger" / "owner.vk", "--sheet", path).exit_code == 2
    assert (shop / "stranger" / "owner.vk").read_bytes() == before


def test_a_false_and_a_malformed_key(shop, tmp_path):
    data = bytearray((shop / "stranger" / "owner.vk").read_bytes())
    bad = tmp_path / "bad.vk"
    bad.write_bytes(data[:-5])
    assert verifier("key", bad).exit_code == 2
    data[-1] ^= 1
    bad.write_bytes(data)
    result = verifier("key", bad, "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["failed_check"] == "key.signature"


def test_a_claim_is_accepted(shop):
    result = verify(shop, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["accepted"] and values["fidelity"] is None and values["context"]["nonce"] == NONCE
    for name in ("k_min", "h", "false_claim_bits", "argument_bits", "cut_and_choose_b", "proof_bytes", "seconds"):
        assert values[name], name
    assert "Not proven" in verify(shop).output


def test_the_verifier_runs_without_the_owners_files(shop):
    """In a process and a folder of its own."""
    arguments = command(
        "verifier", "verify", "--vk", "owner.vk", "--model", "marked.onnx", "--nonce", NONCE, "--proof", "claim.proof",
        "--claimant", "the owner", "--purpose", "a test", "--without-fidelity", "--json",
    )  # fmt: skip
    assert not list((shop / "stranger").glob("*.mk"))
    done = subprocess.run(arguments, cwd=shop / "stranger", env=ENVIRONMENT, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accepted"]


def test_fidelity_of_images(shop, world, write_images):
    stranger, folder = shop / "stranger", write_images(world.key.images, "images")
    result = verifier(
        "verify", "--vk", stranger / "owner.vk", "--model", stranger / "marked.onnx", "--nonce", NONCE, "--proof",
        stranger / "claim.proof", "--claimant", "the owner", "--purpose", "a test", "--images", folder, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["fidelity"]["agreement"] >= 0.98


def test_undecided(shop, world, write_images, monkeypatch):
    """Images on which the network is constant decide nothing."""
    folder = write_images(world.key.images[:1], "images")
    stranger = shop / "stranger"
    result = verifier(
        "verify", "--vk", stranger / "owner.vk", "--model", stranger / "marked.onnx", "--nonce", NONCE, "--proof",
        stranger / "claim.proof", "--claimant", "the owner", "--purpose", "a test", "--images", folder,
    )  # fmt: skip
    assert result.exit_code == 1 and result.stdout.startswith("undecided")
    assert result.stderr.splitlines() == ["derive ...", "fidelity ..."]


@pytest.mark.reaches("statement.nonce", "statement.purpose", "statement.claimant", "statement.verifier", "policy.k_min")
@pytest.mark.parametrize(
    ("args", "check"),
    [
        (["--nonce", "cd" * 32], "statement.nonce"),
        (["--purpose", "another"], "statement.purpose"),
        (["--claimant", "a thief"], "statement.claimant"),
        (["--verifier", "somebody"], "statement.verifier"),
        (["--min-bits", "400"], "policy.k_min"),
    ],
)
def test_rejections_name_the_check(shop, args, check):
    result = verify(shop, *args, "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["failed_check"] == check


def test_another_model_and_a_tampered_proof(shop, tmp_path):
    assert json.loads(verify(shop, "--json", model="other.onnx").stdout)["failed_check"] == "statement.model"
    data = bytearray((shop / "stranger" / "claim.proof").read_bytes())
    data[len(data) // 2] ^= 1
    tampered = tmp_path / "tampered.proof"
    tampered.write_bytes(data)
    result = verify(shop, proof=tampered)
    assert result.exit_code == 1 and re.match(r"rejected  \w+\.\w+", result.stdout)


def test_misuse_is_json_too(shop):
    result = verify(shop, "--nonce", "zz", "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["outcome"] == "misuse" and "64 hex" in result.stderr
    result = prover("keygen", "--shape", "1,4", "--classes", 10, "--json")
    assert result.exit_code == 2 and "--shape" in json.loads(result.stdout)["error"]


PROGRAMS = {
    "prover": (prover_cli, {"done": False, "failed_check": None}),
    "verifier": (verifier_cli, {"accepted": False, "outcome": "misuse"}),
    "ml": (ml_cli, {"done": False, "failed_check": None}),
}


@pytest.mark.parametrize(("program", "words", "said"), [
    ("prover", "keygen --shape 1,4,4 --classes 10 --plam", "No such option"),
    ("prover", "--plan", "No such option"),
    ("prover", "keygem", "No such command"),
    ("prover", "approve", "Missing option"),
    ("prover", "keygen --shape 1,4,4 --classes 1 --plan", "is not in the range"),
    ("prover", "keygen --shape 1,4 --classes 10 --plan", "--shape is"),
    ("prover", "requests shew", "No such command"),
    ("prover", "requests show --mk pyproject.toml", "Missing argument"),
    ("verifier", "key", "Missing argument"),
    ("verifier", "verify --vk gone", "does not exist"),
    ("verifier", "review pyproject.toml --secret s --out o --opn", "No such option"),
    ("verifier", "batch pyproject.toml --results . --min-bits nan", "not a number"),
    ("verifier", "kay", "No such command"),
    ("ml", "train --data nothing", "is not one of"),
    ("ml", "mark --data digits", "Missing option"),
    ("ml", "experiment --jobs 0", "is not in the range"),
    ("ml", "experiment --address x:1", "--address is"),
    ("ml", "trein", "No such command"),
])  # fmt: skip
def test_what_the_parser_refuses_is_json_too(program, words, said):
    """Once, on one line, in the shape of the program's other failures."""
    cli, shape = PROGRAMS[program]
    for given in (f"{words} --json", f"--json {words}"):  # the second is misuse by itself
        found = CliRunner().invoke(cli, given.split())
        assert found.exit_code == 2, found.output
        values = json.loads(found.stdout)
        error = values.pop("error")
        assert values == shape and error in found.stderr
        assert (said if given.startswith(words) else "No such option") in error
    assert CliRunner().invoke(cli, words.split()).stdout == ""


def test_a_variable_asks_for_json(monkeypatch):
    monkeypatch.setenv("ZKMARK_PROVER_KEYGEN_AS_JSON", "1")
    found = prover("keygen", "--shape", "1,4", "--classes", 10, "--plan")
    assert found.exit_code == 2 and "--shape" in json.loads(found.stdout)["error"]


def test_arguments_that_are_no_text(shop):
    result = verify(shop, "--purpose", "\udcff", "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["outcome"] == "misuse"


@pytest.mark.parametrize("name", ["owner.vk", "marked.onnx", "claim.proof"])
def test_truncated_files_are_malformed(shop, tmp_path, name):
    for part in (0, 3, 2):
        files = {n: shop / "stranger" / n for n in ("owner.vk", "marked.onnx", "claim.proof")}
        data = files[name].read_bytes()
        files[name] = tmp_path / name
        files[name].write_bytes(data[: len(data) * part // 4])
        result = verifier(
            "verify", "--vk", files["owner.vk"], "--model", files["marked.onnx"], "--proof", files["claim.proof"],
            "--nonce", NONCE, "--claimant", "the owner", "--purpose", "a test", "--without-fidelity", "--json",
        )  # fmt: skip
        assert result.exit_code == 2, (part, result.output)
        assert json.loads(result.stdout)["outcome"] == "malformed"
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--proof", "p"],
        ["--proof", "p", "--nonce", NONCE, "--prover", "x:1"],
        ["--proof", "p", "--nonce", NONCE],
        ["--proof", "p", "--nonce", NONCE, "--without-fidelity", "--images", "."],
        ["--proof", "p", "--nonce", NONCE, "--without-fidelity", "--interactive"],
        ["--proof", "p", "--nonce", "abc", "--without-fidelity"],
        ["--proof", "p", "--nonce", "zz" * 32, "--without-fidelity"],
        ["--proof", "p", "--without-fidelity"],
        ["--prover", "x:1"],
        ["--prover", "x:1", "--without-fidelity", "--min-bits", "-1"],
        ["--proof", "p", "--nonce", NONCE, "--without-fidelity", "--min-bits", "nan"],
        ["--prover", "x:1", "--without-fidelity", "--timeout", "inf"],
    ],
)
def test_misuse_of_verify(shop, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").write_bytes(b"")
    stranger = shop / "stranger"
    result = verifier("verify", "--vk", stranger / "owner.vk", "--model", stranger / "marked.onnx", *args)
    assert result.exit_code == 2


@pytest.mark.parametrize("number", ["nan", "inf", "1e300"])
@pytest.mark.parametrize("option", ["memory-limit", "deadline", "derive-memory", "rate", "max-disk", "keep-days"])
def test_numbers_that_are_none(shop, option, number):
    """Nothing is measured against them, and nothing overflows."""
    folder = shop / "owner"
    result = prover("serve", *owner(shop), "--vk", folder / "owner.vk", f"--{option}", number)
    assert result.exit_code == 2 and f"--{option}" in result.output


def test_no_minimum_is_met_by_accident(shop):
    """Every comparison with `nan` is false."""
    assert verify(shop, "--min-bits", "nan").exit_code == 2 and verify(shop, "--min-bits", 0).exit_code == 0


def test_a_model_cannot_write_on_the_terminal(shop, tmp_path):
    """Its names are quoted, on one line and without escape sequences."""
    import onnx

    model = onnx.load(shop / "stranger" / "marked.onnx")
    model.graph.node[0].op_type = "X\x1b[2J\naccepted"
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    nonce = ["--nonce", NONCE, "--proof", shop / "stranger" / "claim.proof", "--without-fidelity"]
    for result in (
        verifier("verify", "--vk", shop / "stranger" / "owner.vk", "--model", path, *nonce, "--json"),
        prover("approve", *owner(shop), "--model", path),
    ):
        assert result.exit_code == 2 and "accepted" in result.stderr
        assert len(result.stderr.splitlines()) == 1 and result.stderr[:-1].isprintable()


def owner(shop: Path) -> list[object]:
    folder = shop / "owner"
    return ["--mk", folder / "owner.mk", "--passphrase-file", folder / "passphrase"]


def test_approve(shop):
    folder = shop / "owner"
    result = prover("approve", *owner(shop), "--model", folder / "marked.onnx", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["budget_left"] >= 60  # `prove` had approved it
    second = prover("approve", *owner(shop), "--model", folder / "marked.onnx", "--k-min", 80)
    assert second.exit_code == 2 and "second k_min" in second.output


def test_a_k_min_that_is_named_is_said_to_be_for_good(world, owner_file, tmp_path, monkeypatch):
    """Before it is; one below the default is asked about, where somebody can answer."""
    fewest, model = world.key.vk.smallest_k_min(), ["--model", world.path("marked.onnx"), *world.secret_options()]
    nonce = ["--vk", world.path("owner.vk"), "--nonce", NONCE, "--out", tmp_path / "claim.proof"]
    sealed = owner_file.read_bytes()

    def approved(*words: object, answer: str | None = None, command: str = "approve") -> tuple[Result, dict]:
        """From a key that has approved nothing yet."""
        owner_file.write_bytes(sealed)
        monkeypatch.setattr(prover_options, "on_a_terminal", lambda: answer is not None)
        arguments = [str(word) for word in (command, "--mk", owner_file, *model, *words, "--json")]
        result = CliRunner().invoke(prover_cli, arguments, input=answer)
        return result, load_owner(owner_file, PASSPHRASE.strip())[1].k_min

    result, known = approved()
    assert list(known.values()) == [fewest] and "for good" not in result.stderr
    result, known = approved("--k-min", fewest, answer="")  # nothing to ask
    assert list(known.values()) == [fewest] and "for good" in result.stderr and "below" not in result.stderr
    result, known = approved("--k-min", fewest - 1)
    assert list(known.values()) == [fewest - 1] and "below the 128 bits" in result.stderr
    assert "Approve it?" not in result.stderr and json.loads(result.stdout)["done"]
    for words, command in (([], "approve"), (nonce, "prove")):
        for answer in ("n\n", ""):
            result, known = approved("--k-min", fewest - 1, *words, answer=answer, command=command)
            assert (result.exit_code, known) == (2, {}) and "Approve it?" in result.stderr
            assert json.loads(result.stdout)["error"] == "nothing was approved"
    assert not (tmp_path / "claim.proof").exists()
    for words, answer in (([], "y\n"), (["--yes"], "")):
        result, known = approved("--k-min", fewest - 1, *words, answer=answer)
        assert list(known.values()) == [fewest - 1] and ("Approve it?" in result.stderr) == (not words)
    again = prover("approve", "--mk", owner_file, *model, "--k-min", fewest - 1)
    assert again.exit_code == 0 and "for good" not in again.stderr  # it is already


@pytest.fixture
def _no_device(monkeypatch):
    """As where the extra is not installed."""
    monkeypatch.setitem(sys.modules, "protocol.kernels.cuda", None)
    monkeypatch.delattr(kernels, "cuda", raising=False)


@pytest.mark.parametrize("options, said", [
    (["--device", "cuda"], "no device to prove on"), (["--memory-limit", 0.2], "needs about"),
    (["--memory-limit", 0.2, "--k-min", 70], "needs about"), (["--k-min", 5000], "k_min must be"),
])  # fmt: skip
def test_what_cannot_be_proven_here_is_not_approved(options, said, world, owner_file, tmp_path, _no_device):
    """An approval is for good: what the machine lacks is found before."""
    sealed, out = owner_file.read_bytes(), tmp_path / "claim.proof"
    result = prover(
        "prove", "--mk", owner_file, "--vk", world.path("owner.vk"), "--model", world.path("marked.onnx"),
        *world.secret_options(), "--nonce", NONCE, "--out", out, *options,
    )  # fmt: skip
    assert result.exit_code == 2 and said in result.stderr and "for good" not in result.stderr
    assert owner_file.read_bytes() == sealed and not out.exists()


def test_no_server_for_a_device_that_is_not_there(world, owner_file, monkeypatch, _no_device):
    monkeypatch.setattr(server, "serve", lambda *_: pytest.fail("it serves"))
    result = prover("serve", "--mk", owner_file, "--vk", world.path("owner.vk"), *world.secret_options(),
                    "--listen", "127.0.0.1:0", "--device", "cuda")  # fmt: skip
    assert result.exit_code == 2 and "no device to prove on" in result.stderr
    assert not state_folder(owner_file).exists()


def test_no_proof_for_an_unmarked_model(shop, tmp_path):
    folder = shop / "owner"
    result = prover(
        "prove", *owner(shop), "--vk", folder / "owner.vk", "--model", folder / "other.onnx", "--nonce", NONCE,
        "--out", tmp_path / "false.proof", "--json",
    )  # fmt: skip
    assert result.exit_code == 1 and json.loads(result.stdout)["failed_check"] == "prove.matches"
    assert not (tmp_path / "false.proof").exists()


def test_k_min_one_too_high_for_anyone(shop, tmp_path):
    folder = shop / "owner"
    result = prover("approve", *owner(shop), "--model", folder / "other.onnx", "--k-min", 5000)
    assert result.exit_code == 2


def test_wrong_passphrase_and_mixed_keys(shop, world, tmp_path):
    from ml.triggers import abstract_images
    from protocol.keygen import KeyParameters, generate_key

    folder, wrong = shop / "owner", tmp_path / "wrong"
    wrong.write_text("wrong\n")
    mk = ["--mk", folder / "owner.mk", "--passphrase-file", wrong]
    result = prover("approve", *mk, "--model", folder / "other.onnx")
    assert result.exit_code == 2 and "wrong passphrase" in result.output
    other = tmp_path / "other.vk"
    other.write_bytes(generate_key(KeyParameters((1, 4, 4), 10, 160), abstract_images(160, (1, 4, 4))).vk.to_bytes())
    result = prover(
        "prove", *owner(shop), "--vk", other, "--model", folder / "marked.onnx", "--nonce", NONCE,
        "--out", tmp_path / "claim.proof",
    )  # fmt: skip
    assert result.exit_code == 2 and "belong together" in result.output


@contextmanager
def serving(shop: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    folder = shop / "owner"
    arguments = command(
        "prover", "serve", "--mk", folder / "owner.mk", "--vk", folder / "owner.vk", "--passphrase-file",
        folder / "passphrase", "--claimant", "the owner", "--listen", "127.0.0.1:0",
    )  # fmt: skip
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.wait(60)


def test_serve_verify_and_stop(shop):
    stranger = shop / "stranger"
    base = ["verify", "--vk", stranger / "owner.vk", "--without-fidelity", "--claimant", "the owner", "--json"]
    with serving(shop) as (process, address):
        for extra in ([], ["--interactive"]):
            result = verifier(*base, "--model", stranger / "marked.onnx", "--prover", address, *extra)
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout)["interactive"] == bool(extra)
        result = verifier(*base, "--model", stranger / "other.onnx", "--prover", address)
        assert result.exit_code == 1 and json.loads(result.stdout)["failed_check"] == "prover.refused"
        relayed = [a if a != "the owner" else "a thief" for a in base]
        assert verifier(*relayed, "--model", stranger / "marked.onnx", "--prover", address).exit_code == 2
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=60)
        assert process.returncode == 0
        assert PASSPHRASE.decode().strip() not in out + log
    with serving(shop) as (_, address):  # a restart remembers what was approved
        result = verifier(*base, "--model", stranger / "marked.onnx", "--prover", address)
        assert result.exit_code == 0, result.output


def test_nobody_listens(shop):
    stranger = shop / "stranger"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        result = verifier(
            "verify", "--vk", stranger / "owner.vk", "--model", stranger / "marked.onnx", "--prover", address,
            "--without-fidelity", "--json",
        )  # fmt: skip
    assert result.exit_code == 2 and json.loads(result.stdout)["outcome"] == "unavailable"


@pytest.mark.parametrize("program", ["prover", "verifier"])
def test_help_answers_at_once(program):
    """Nothing heavy is imported for it: that, and not a clock, is what is measured."""
    code = (
        f"import sys; from {program}.cli import cli; cli(['--help'], standalone_mode=False); "
        "print([m for m in ('torch', 'numba', 'onnx', 'numpy', 'grpc', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "[]" and "Commands:" in done.stdout


@pytest.mark.parametrize("program", ["prover", "verifier"])
def test_nothing_needs_torch(program):
    modules = {
        "prover": "prover.cli, prover.server, prover.plan, ml.triggers",
        "verifier": "verifier.cli, verifier.client, verifier.report",
    }
    code = f"import sys, {modules[program]}; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "False False", done.stderr


@pytest.mark.parametrize("outcome", [prover_options.outcome, verifier_options.outcome, ml.outcome])
def test_a_fault_is_no_verdict(outcome):
    """Python itself would end with 1, which says that a claim is false."""

    @click.command()
    @click.option("--number", type=int)
    @click.option("--json", "as_json", is_flag=True)
    @outcome
    def faulty(number: int | None, as_json: bool) -> None:
        if number is None:
            raise click.UsageError("a number is needed")
        raise ValueError("nobody foresaw this")

    found = CliRunner().invoke(faulty, ["--number", "3"])
    assert found.exit_code == 2 and "nobody foresaw this" in found.stderr and not found.stdout
    found = CliRunner().invoke(faulty, ["--number", "3", "--json"])
    assert found.exit_code == 2 and "nobody foresaw this" in json.loads(found.stdout)["error"]
    assert CliRunner().invoke(faulty, ["--help"]).exit_code == 0
    usage = CliRunner().invoke(faulty)
    assert usage.exit_code == 2 and "Traceback" not in usage.output

"""`zkmark-ml` as a user runs it, on the digits with a small key."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ml.cli import cli
from ml.export import random_onnx
from ml.triggers import abstract_images
from protocol.keygen import KeyParameters, MarkingKey, generate_key
from prover.keys import save_marking_key


@pytest.fixture(scope="module")
def key() -> MarkingKey:
    rng = np.random.default_rng(1)
    return generate_key(KeyParameters((1, 8, 8), 10, 160), abstract_images(160, (1, 8, 8), rng.bytes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, key: MarkingKey) -> Path:
    path = tmp_path_factory.mktemp("owner")
    (path / "passphrase").write_text("of the tests")
    save_marking_key(path / "owner.mk", key, b"of the tests")
    return path


def run(*words: object) -> tuple[int, dict, str]:
    result = CliRunner().invoke(cli, [*map(str, words), "--json"])
    lines = result.stdout.strip().splitlines()
    return result.exit_code, json.loads(lines[0]) if lines and lines[0][0] == "{" else {}, result.stderr


def test_mark_evaluate_and_pretrained(folder: Path, key: MarkingKey) -> None:
    secret = ("--mk", folder / "owner.mk", "--passphrase-file", folder / "passphrase")
    status, plain, _ = run("train", "--data", "digits", "--epochs", 12, "--out", folder / "plain.onnx")
    assert status == 0 and plain["done"] and plain["test_accuracy"] > 0.9 and plain["data"] == "scikit-learn"
    status, found, _ = run("evaluate", "--model", folder / "plain.onnx", "--data", "digits", *secret)
    assert status == 0 and not found["verdict"]["provable"] and found["accuracy"]["agreement"] > 0.98
    status, marked, error = run(
        "mark", "--data", "digits", "--mode", "pretrained", "--init", folder / "plain.onnx", "--epochs", 2,
        "--out", folder / "marked.onnx", *secret,
    )  # fmt: skip
    assert (status, error) == (0, "") and marked["trigger_accuracy"] == 1.0 and marked["h"] == key.vk.h
    status, found, _ = run("evaluate", "--model", folder / "marked.onnx", "--data", "digits", *secret)
    verdict = found["verdict"]
    assert status == 0 and verdict["provable"] and verdict["found"] and verdict["no_bound"] == ""
    assert [verdict[name] for name in ("count", "matches", "integer_matches")] == [key.vk.h] * 3
    assert verdict["k_min"] == key.vk.smallest_k_min()
    assert verdict["false_claim_bits"] == key.vk.false_claim_bits(key.vk.h) and verdict["certificate"] is None
    assert verdict["p_value_bits"] == pytest.approx(key.vk.h * np.log2(10)) and found["opened"]["integer"] < 30
    words = ["evaluate", "--model", folder / "marked.onnx", "--data", "digits", *secret]
    shown = CliRunner().invoke(cli, [str(word) for word in words])
    assert shown.stderr.splitlines() == ["359 test images ...", "triggers ..."] and "can be made" in shown.stdout
    for said in (f"p-value 2^-{verdict['p_value_bits']:.1f}", f"{verdict['false_claim_bits']:.1f} bits", "a fact",
                 f"{key.vk.h} of {key.vk.h} (float", f"it needs {verdict['k_min']} of"):  # fmt: skip
        assert said in shown.stdout, said


def test_failures_are_one_line_with_their_status(folder: Path) -> None:
    secret = ("--mk", folder / "owner.mk", "--passphrase-file", folder / "passphrase")
    out = ("--out", folder / "x.onnx")
    status, found, error = run("mark", "--data", "digits", "--epochs", 0, "--mode", "fromscratch", "--init",
                               folder / "passphrase", *out, *secret)  # fmt: skip
    assert status == 2 and "--init" in error and "--init" in found["error"]
    (folder / "bad.onnx").write_bytes(b"\x08\x07garbage")
    status, found, error = run("evaluate", "--model", folder / "bad.onnx", "--data", "digits")
    assert status == 2 and found["done"] is False and error.count("\n") == 1 and error.startswith("zkmark-ml: ONNX")
    (folder / "wrong").write_text("wrong")
    status, _, error = run("evaluate", "--model", folder / "bad.onnx", "--data", "digits", "--mk", folder / "owner.mk",
                           "--passphrase-file", folder / "wrong")  # fmt: skip
    assert status == 2 and error.count("\n") == 1
    status, _, error = run("train", "--data", "digits", "--arch", "lenet", "--epochs", 0, *out)
    assert status == 2 and "16 x 16" in error
    assert run("train", "--data", "nothing", *out)[0] == 2
    for option, value in (("--seed", 2**70), ("--seed", -1), ("--width", "nan"), ("--width", "1e300")):
        assert run("train", "--data", "digits", "--epochs", 0, option, value, *out)[0] == 2, (option, value)


def test_a_result_without_a_folder_is_no_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml.mark.train", None)  # not called
    for words in (["train"], ["mark", "--mk", folder / "owner.mk", "--passphrase-file", folder / "passphrase"]):
        status, _, error = run(*words, "--data", "digits", "--out", folder / "gone" / "x.onnx")
        assert status == 2 and "gone is not a folder" in error


@pytest.mark.parametrize("words", [["train", "--data", "digits"], ["experiment"]])
def test_what_is_not_installed_is_said(words: list[str], folder: Path) -> None:
    """In a process of its own: torch does not bear to be taken away."""
    code = "import sys; sys.modules['torch'] = None; from ml.cli import main; main()"
    command = [sys.executable, "-c", code, *words, "--out", str(folder / "x.onnx"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and json.loads(done.stdout)["done"] is False
    assert "torch is not installed" in done.stderr


def test_an_interrupt_is_no_verdict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ml.mark.train", interrupt)
    status, _, error = run("train", "--data", "digits", "--out", folder / "x.onnx")
    assert status == 130, error


def test_progress_without_a_terminal_is_a_line_per_tenth(folder: Path) -> None:
    words = ["train", "--data", "digits", "--arch", "mlp", "--epochs", "10", "--out", str(folder / "mlp.onnx")]
    result = CliRunner().invoke(cli, words)
    lines = result.stderr.splitlines()
    assert result.exit_code == 0 and 2 <= len(lines) <= 11 and "of the test images of digits" in result.stdout
    assert all(re.fullmatch(r"\d+% training: loss \d\.\d{3}, data \d+\.\d%", line) for line in lines)


def test_a_key_for_other_classes_or_images(folder: Path) -> None:
    secret = ("--mk", folder / "owner.mk", "--passphrase-file", folder / "passphrase")
    for name, shape, classes in (("classes", (1, 8, 8), 11), ("images", (1, 9, 8), 10)):
        (folder / f"{name}.onnx").write_bytes(random_onnx("mlp", shape, classes, width=0.02))
        status, _, error = run("evaluate", "--model", folder / f"{name}.onnx", "--data", "digits", *secret)
        assert status == 2 and error.count("\n") == 1 and f"{classes} classes of images {shape}" in error


def test_nothing_is_left_half_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was there stays, whatever happens while the new one is written."""
    out = folder / "old" / "model.onnx"
    out.parent.mkdir()
    out.write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("prover.keys.os.replace", refuse)
    status, found, error = run("train", "--data", "digits", "--arch", "mlp", "--epochs", 0, "--out", out)
    assert status == 2 and not found["done"] and "disk full" in error
    assert out.read_bytes() == b"old" and list(out.parent.iterdir()) == [out]


def test_a_mark_that_does_not_take_is_exit_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml.mark.LAST_PHASE_STEPS", 0)
    status, found, error = run("mark", "--data", "digits", "--epochs", 1, "--out", folder / "y.onnx", "--mk",
                               folder / "owner.mk", "--passphrase-file", folder / "passphrase")  # fmt: skip
    assert (status, found["done"], found["failed_check"]) == (1, False, "mark") and "mark: only" in error
    assert not (folder / "y.onnx").exists()


def test_help_needs_no_heavy_module() -> None:
    code = "import sys, ml.cli\nprint([m for m in ('torch', 'onnx', 'numba', 'numpy', 'sklearn') if m in sys.modules])"
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": ":".join(sys.path)})  # fmt: skip
    assert done.stdout.strip() == "[]" and time.monotonic() - begin < 20
    for command in ("train", "triggers", "mark", "evaluate"):
        assert CliRunner().invoke(cli, [command, "--help"]).exit_code == 0

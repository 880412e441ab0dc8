"""All schemes by command on a small network of the digits, up to a proof that a verifier takes or refuses."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from ml.cli import cli as ml
from ml.data import load
from ml.inputs import image_folder
from ml.options import own
from ml.schemes.images import unrelated
from ml.triggers import abstract_images
from protocol.keygen import KeyParameters, VerificationKey, generate_key
from protocol.soundness import bits, p_value
from prover.cli import cli as prover
from prover.keys import save_marking_key
from verifier.cli import cli as verifier

NETWORK = ("--arch", "mlp", "--width", 0.125)
DIGITS = ("--data", "digits")
NONCE = "5a" * 32


def call(program: object, *words: object) -> Result:
    return CliRunner().invoke(program, [str(word) for word in words])  # type: ignore[arg-type]


def done(program: object, *words: object, status: int = 0) -> dict:
    """What the command prints as JSON."""
    result = call(program, *words, "--json")
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a trained network and a passphrase."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("owner")
    (path / "passphrase").write_text("of the tests")
    done(ml, "train", *DIGITS, *NETWORK, "--epochs", 12, "--out", path / "plain.onnx")
    return path


def keygen(folder: Path, triggers: dict) -> tuple[Path, tuple[object, ...]]:
    """The key of a folder of triggers: vk, and the options for mk."""
    mk, vk = (Path(triggers["labels"]).with_name(name) for name in ("owner.mk", "owner.vk"))
    secret = ("--passphrase-file", folder / "passphrase")
    task = ("--shape", ",".join(map(str, triggers["shape"])), "--classes", triggers["classes"])
    chosen = ("--triggers", triggers["triggers"], "--chosen-labels", triggers["labels"])
    made = done(prover, "keygen", *task, *chosen, "--mk", mk, "--vk", vk, *secret)
    assert made["label_rule"] == "chosen" and made["ell"] == triggers["count"]
    return vk, ("--mk", mk, *secret)


def test_frontier_stitching_from_a_trained_network_to_a_verdict(folder: Path) -> None:
    plain, marked, claim = (folder / name for name in ("plain.onnx", "stitched.onnx", "stitched.proof"))
    making = ("triggers", "--scheme", "frontier", *DIGITS, "--model", plain, *NETWORK, "--epsilon", 0.1)
    made = done(ml, *making, "--count", 40, "--out", folder / "frontier")
    again = call(ml, *making, "--count", 40, "--out", folder / "frontier")
    assert again.exit_code == 2 and "frontier exists" in again.stderr
    vk, secret = keygen(folder, made)
    h = VerificationKey.from_bytes(vk.read_bytes()).h

    words = ("mark", "--scheme", "frontier", *secret, *DIGITS, *NETWORK, "--init", plain, "--out", marked)
    failed = done(ml, *words, "--epochs", 1, "--rate", 1e-9, status=1)
    assert failed["failed_check"] == "mark" and "not embedded after 1 epochs" in failed["error"]
    assert not marked.exists()
    told = done(ml, *words, "--rate", 0.01, "--rehearsal", 300, "--epochs", 300)
    assert told["trigger_accuracy"] == 1.0 and told["h"] == h and told["test_accuracy"] > 0.8

    judging = ("evaluate", *DIGITS, *secret, "--scheme", "frontier", "--model")
    before, after = (done(ml, *judging, model)["verdict"] for model in (plain, marked))
    assert before["matches"] < h == after["matches"] == after["count"] and after["found"]
    assert after["p_value_bits"] == h and after["false_claim_bits"] is after["k_min"] is None and not after["provable"]
    said = call(ml, *judging, marked).stdout
    k = next(k for k in range(h + 1) if p_value(h, k, Fraction(1, 2)) < Fraction(1, 20))
    assert "which is a belief" in said and "no bound on false claims: the owner chose" in said
    assert f"explicit --k-min; from {k} on the p-value is below 1/20" in said

    k_min = after["integer_matches"]
    proving = ("prove", *secret, "--vk", vk, "--nonce", NONCE, "--k-min", k_min, "--yes")
    assert k_min > before["integer_matches"]
    unmarked = done(prover, *proving, "--model", plain, "--out", folder / "false", status=1)
    assert unmarked["failed_check"] == "prove.matches"
    done(prover, *proving, "--model", marked, "--out", claim)
    checking = ("verify", "--vk", vk, "--model", marked, "--nonce", NONCE, "--proof", claim, "--without-fidelity")
    assert done(verifier, *checking, status=1)["failed_check"] == "policy.chosen_labels"
    verdict = done(verifier, *checking, "--accept-chosen-labels")
    assert verdict["accepted"] and verdict["null_probability"] == "1/2" and verdict["false_claim_bits"] is None
    assert verdict["p_value_bits"] == bits(p_value(h, k_min, Fraction(1, 2))) and verdict["no_bound"]



def test_a_certified_mark_from_scratch_to_a_verdict(folder: Path) -> None:
    """Under chosen labels: which null probability to believe is the verifier's word, and she has to give it."""
    marked, claim = folder / "certified.onnx", folder / "certified.proof"
    making = ("triggers", "--scheme", "certified", *DIGITS, "--label", 3, "--kind", "noise")
    made = done(ml, *making, "--count", 64, "--out", folder / "certified")
    vk, secret = keygen(folder, made)
    h = VerificationKey.from_bytes(vk.read_bytes()).h
    words = ("mark", "--scheme", "certified", *secret, *DIGITS, *NETWORK, "--sigma", 0.05, "--replays", 2, "--draws", 2)
    refused = done(ml, *words, "--warm-up", 2, "--epochs", 2, "--out", marked, status=2)
    assert "none is left for the mark" in refused["error"] and not marked.exists()
    lines = call(ml, *words, "--warm-up", 0, "--epochs", 2, "--out", marked).stderr.splitlines()
    look = r"\d+% training under noise: loss \d\.\d{3}, data \d+\.\d%, triggers \d+\.\d%"
    assert len(lines) >= 2 and all(re.fullmatch(look, line) for line in lines[:2])
    told = done(ml, *words, "--warm-up", 1, "--epochs", 10, "--out", marked)
    assert told["trigger_accuracy"] > 0.9 and told["test_accuracy"] > 0.85

    judging = ("evaluate", *DIGITS, *secret, "--model", marked)
    assert "say by which --scheme" in call(ml, *judging).stderr
    assert "needs --sigma" in call(ml, *judging, "--scheme", "certified", "--share", 0.7).stderr
    asking = (*judging, "--scheme", "certified", "--sigma", 0.05, "--samples", 60, "--share", 0.7, *NETWORK)
    after = done(ml, *asking)["verdict"]
    certificate = after["certificate"]
    assert after["matches"] > 0.9 * h and after["found"] and "one label" in after["no_bound"] and after["k_min"] is None
    assert certificate["accuracy"] >= 0.7 and certificate["radius"] > 0 and certificate["samples"] == 60
    assert "certificate: " in call(ml, *asking).stdout
    assert "another architecture" in call(ml, *asking, "--width", 1).stderr

    k_min = after["integer_matches"]
    done(prover, "prove", *secret, "--vk", vk, "--nonce", NONCE, "--k-min", k_min, "--yes", "--model", marked,
         "--out", claim)  # fmt: skip
    checking = ("verify", "--vk", vk, "--model", marked, "--nonce", NONCE, "--proof", claim, "--without-fidelity",
                "--accept-chosen-labels", "--null-probability")  # fmt: skip
    verdict = done(verifier, *checking, "3/4")
    assert verdict["accepted"] and verdict["null_probability"] == "3/4"
    assert verdict["p_value_bits"] == bits(p_value(h, k_min, Fraction(3, 4)))
    assert done(verifier, *checking, "99/100", status=1)["failed_check"] == "policy.k_min"


def test_triggers_of_another_task(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, rng = folder / "data" / "cifar10", np.random.default_rng(3)
    root.mkdir(parents=True)
    for file in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        record = rng.integers(0, 256, (10, 3073)).astype(np.uint8)
        record[:, 0] %= 10
        (root / file).write_bytes(record.tobytes())
    making = ("triggers", "--scheme", "certified", *DIGITS, "--kind", "unrelated", "--other", "cifar10", "--label", 4)
    monkeypatch.setenv("ZKMARK_DATA", str(root.parent))
    made = done(ml, *making, "--count", 40, "--out", folder / "unrelated")
    foreign = {image.tobytes() for image in unrelated(load("cifar10").train_x, (1, 8, 8))}
    images = image_folder(folder / "unrelated" / "images", (1, 8, 8))
    assert made["count"] == len(images) == 40 and {image.tobytes() for image in images} <= foreign
    assert {line.split(",")[1] for line in Path(made["labels"]).read_text().split()[1:]} == {"4"}
    assert "50 images for 51" in done(ml, *making, "--count", 51, "--out", folder / "more", status=2)["error"]
    monkeypatch.setenv("ZKMARK_DATA", str(folder / "nothing"))
    assert "no folder" in done(ml, *making, "--count", 40, "--out", folder / "more", status=2)["error"]
    assert not (folder / "more").exists()


def test_options_of_another_scheme_are_refused(folder: Path) -> None:
    plain, secret = folder / "plain.onnx", ("--passphrase-file", folder / "passphrase")
    mark = ("mark", *DIGITS, *secret, "--mk", plain, "--out", folder / "no.onnx")
    triggers = ("triggers", *DIGITS, "--out", folder / "no")
    evaluate = ("evaluate", *DIGITS, *secret, "--model", plain)
    for words, said in (
        ((*mark, "--sigma", 1), "--sigma belongs to --scheme certified"),
        ((*mark, "--scheme", "certified", "--rehearsal", 1), "--rehearsal belongs to --scheme frontier"),
        ((*mark, "--scheme", "frontier", "--mode", "pretrained"), "--mode belongs to --scheme backdoor"),
        ((*mark, "--scheme", "frontier"), "needs --init"),
        ((*mark, "--scheme", "certified", "--sigma", "nan"), "not a number"),
        ((*triggers, "--scheme", "frontier"), "needs --model"),
        ((*triggers, "--scheme", "frontier", "--label", 1), "--label belongs to --scheme certified"),
        ((*triggers, "--scheme", "certified", "--model", plain), "--model belongs to --scheme frontier"),
        ((*triggers, "--scheme", "certified", "--width", 1), "--width belongs to --scheme frontier"),
        ((*triggers, "--scheme", "frontier", "--other", "mnist"), "--other belongs to --scheme certified"),
        ((*triggers, "--scheme", "certified", "--other", "mnist"), "needs --other"),
        ((*triggers, "--scheme", "certified", "--kind", "unrelated"), "needs --other"),
        ((*triggers, "--scheme", "certified", "--kind", "unrelated", "--other", "digits"), "besides that of --data"),
        ((*triggers, "--scheme", "backdoor"), "backdoor"),
        ((*triggers, "--scheme", "certified", "--label", 10), "label 10 is not below 10"),
        ((*evaluate, "--scheme", "certified"), "--scheme belongs to --mk"),
        ((*evaluate, "--mk", plain, "--warm-up", 1), "--warm-up"),
        ((*evaluate, "--mk", plain, "--samples", 9), "--samples belongs to --scheme certified"),
    ):
        assert said in done(ml, *words, status=2)["error"], words
    assert not (folder / "no").exists() and not (folder / "no.onnx").exists()
    assert own("frontier", frontier={"rate": 0.1, "norm": None}, certified={"sigma": None}) == {"rate": 0.1}


def test_frontier_stitching_needs_labels_that_are_chosen(folder: Path) -> None:
    """Those of a coin are not the images' classes.  A certified mark can have them, and a bound with them."""
    rng = np.random.default_rng(1)
    key = generate_key(KeyParameters((1, 8, 8), 10, 160), abstract_images(160, (1, 8, 8), rng.bytes))
    save_marking_key(folder / "coin.mk", key, b"of the tests")
    judging = ("evaluate", *DIGITS, "--mk", folder / "coin.mk", "--passphrase-file", folder / "passphrase", "--model",
               folder / "plain.onnx", "--scheme")  # fmt: skip
    assert "keygen --chosen-labels" in done(ml, *judging, "frontier", status=2)["error"]
    verdict = done(ml, *judging, "certified")["verdict"]
    assert verdict["no_bound"] == "" and verdict["k_min"] == key.vk.smallest_k_min() and not verdict["provable"]

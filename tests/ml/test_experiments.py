"""The experiments: every section has its function, runs resume and say what they depend on."""

from __future__ import annotations

import json
import re
import threading
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from click.testing import CliRunner
from torch import nn

from ml.cli import cli
from ml.data import NAMES, load
from ml.experiments import run as runner
from ml.experiments import workers
from ml.experiments.certificates import _judge
from ml.experiments.lab import Budget, Lab, data_digest, described, load_first
from ml.experiments.run import EXPERIMENTS, SETTINGS, run, settings
from ml.models import ARCHITECTURES, UNPROVABLE, Normalized
from ml.schemes.certified import Certified, Smoothed
from ml.schemes.scheme import TriggerKey
from ml.verdict import Verdict
from protocol.errors import ParameterError

TINY = {"data": {"digits": ["cnn"]}, "train": 200, "test": 100, "batches": 5, "rate": 0.05, "augment": False,
        "attack_epochs": 1, "ell": 132, "seeds": [0]}  # fmt: skip


@pytest.fixture
def tiny() -> dict[str, Any]:
    return settings() | {"presets": {"tiny": TINY}}


def test_every_experiment_is_described_and_every_description_is_one() -> None:
    found = settings()
    assert set(found) == {"presets", *EXPERIMENTS}
    for name, section in found.items():
        if name != "presets":
            assert {"title", "paper", "note", "options"} <= set(section) <= {
                "title", "paper", "note", "options", "plot", "paper_values", "papers_by_arch", "reading", "presets",
                *found["presets"]}
            own = section.get("presets", list(found["presets"]))
            assert set(own) <= set(found["presets"]) and set(section) & set(found["presets"]) <= set(own)
            for preset in own:
                spent = found["presets"][preset]
                changes = section.get(preset, {})
                assert not set(section["options"]) & Budget.names()
                assert (section["options"] | changes).get("other", "") in {"", *NAMES}
                assert set(changes) <= set(section["options"]) | Budget.names()
                budget = Budget.of(spent | {key: value for key, value in changes.items() if key in Budget.names()})
                assert budget.ell >= 132 and set(budget.data) <= set(NAMES)
                assert {arch for several in budget.data.values() for arch in several} <= {*ARCHITECTURES, *UNPROVABLE}
    assert {"ci", "cpu", "gpu"} == set(found["presets"])
    with pytest.raises(ParameterError):
        Budget.of({"data": {}})
    assert tomllib.loads(SETTINGS.read_text()) == found


def test_runs_resume_and_record_what_they_depend_on(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def measure(lab: Lab, options: dict[str, Any]) -> list[dict[str, Any]]:
        if lab.seed == 2 and not seen.count("again"):
            raise KeyboardInterrupt
        seen.append(f"{lab.seed} {options['other']}")
        return [{"setting": "one", "test %": 0.5 + lab.seed / 100, "provable": True}]

    monkeypatch.setitem(runner.EXPERIMENTS, "adi-table-2", measure)
    tiny["presets"]["tiny"] = {**TINY, "seeds": [0, 1, 2]}
    with pytest.raises(KeyboardInterrupt):
        run(["adi-table-2"], "tiny", tmp_path, chosen=tiny)
    assert seen == ["0 fashion-mnist", "1 fashion-mnist"]
    seen.append("again")
    page = run(["adi-table-2"], "tiny", tmp_path, chosen=tiny)
    assert seen[3:] == ["2 fashion-mnist"]  # the first two seeds were there
    result = json.loads((tmp_path / "adi-table-2.json").read_text())
    assert list(result["rows"]["cnn"]) == ["0", "1", "2"] and set(result["versions"]) >= {
        "python", "torch", "numpy", "pillow", "zkmark"}
    assert result["data"]["sha256"] == data_digest(load_first(Budget.of(TINY))[0])
    assert set(result["seconds"]["cnn"]) == {"0", "1", "2"} and "cnn, seeds 0, 1, 2" in page.read_text()
    assert "| one | 51 ± 1 | yes |" in page.read_text() and "paper: trigger %" in page.read_text()

    seen.append("other options")
    tiny["adi-table-2"] = {**tiny["adi-table-2"], "options": {"other": "mnist"}}
    run(["adi-table-2"], "tiny", tmp_path, chosen=tiny)
    assert seen[5:] == ["0 mnist", "1 mnist", "2 mnist"]
    (tmp_path / "adi-table-2.json").write_text('{"rows": 3}')
    run(["adi-table-2"], "tiny", tmp_path, chosen=tiny)
    assert len(seen) == 11

    tiny["presets"]["tiny"] = {**TINY, "seeds": [1, 2, 3]}  # a seed more, and one less
    run(["adi-table-2"], "tiny", tmp_path, chosen=tiny)
    assert seen[11:] == ["3 mnist"] and "seeds 1, 2, 3" in page.read_text()


def test_rows_belong_to_the_second_data_set_that_was_there(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, with it, and with another of the same name."""
    monkeypatch.setattr("ml.experiments.lab.build", perceptron)
    names = ["adi-table-2", "bansal-table-1"]
    tiny["adi-table-2"]["tiny"] = {"other": "cifar10"}
    tiny["bansal-table-1"]["tiny"] = {**CERTIFIED, "triggers": ["unrelated"], "samples": 20}
    seen, shown = [], []
    for number, images in enumerate((None, 0, 9)):
        root = tmp_path / str(number)
        if images is not None:
            (root / "cifar10").mkdir(parents=True)
            rng = np.random.default_rng(images)
            for file in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
                record = rng.integers(0, 256, (50, 3073)).astype(np.uint8)
                record[:, 0] %= 10
                (root / "cifar10" / file).write_bytes(record.tobytes())
        monkeypatch.setenv("ZKMARK_DATA", str(root))
        said: list[str] = []
        for _ in range(2):
            page = run(names, "tiny", tmp_path, said.append, tiny).read_text()
        assert len(said) == 2  # measured anew, and not twice
        results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in names]
        seen.append([result["other"] for result in results])
        shown.append([result["rows"]["cnn"]["0"][0]["setting"] for result in results])
        assert f"Beside it: cifar10 ({seen[-1][0]['source']})." in page
    assert shown == [["to odd or even", "unrelated, but abstract"], *2 * [["to cifar10", "unrelated"]]]
    assert seen[0] == 2 * [{"name": "cifar10", "source": "not at hand"}]
    assert seen[1][0] == seen[1][1] == described(load("cifar10", tmp_path / "1"))
    assert seen[2][0]["sha256"] == described(load("cifar10", tmp_path / "2"))["sha256"] != seen[1][0]["sha256"]

    part = runner.Part("adi-table-2", {"other": "cifar10"}, Budget.of(TINY), described(load_first(Budget.of(TINY))[0]),
                       seen[1][0], "cnn", 0, tmp_path)  # fmt: skip
    with pytest.raises(ParameterError, match="not those that the run began with"):
        runner.measure(part)


def test_a_section_has_its_own_budget_and_architectures(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []

    def measure(lab: Lab, options: dict[str, Any]) -> list[dict[str, Any]]:
        seen.append((lab.arch, lab.seed, lab.budget.batches))
        return [{"setting": "25%", "test %": 0.5, "removed of 100": options["count"]}]

    monkeypatch.setitem(runner.EXPERIMENTS, "le-merrer-table-1", measure)
    monkeypatch.setitem(runner.EXPERIMENTS, "adi-table-1", measure)
    tiny["adi-table-1"] = {**tiny["adi-table-1"], "options": {"count": 1}}
    tiny["le-merrer-table-1"]["tiny"] = {"data": {"digits": ["mlp", "cleverhans-cnn"]}, "batches": 7, "count": 3}
    tiny["presets"]["tiny"] = {**TINY, "seeds": [0, 1]}
    text = run(["adi-table-1", "le-merrer-table-1"], "tiny", tmp_path, chosen=tiny).read_text()
    once = [("cnn", 5), ("mlp", 7), ("cleverhans-cnn", 7)]
    assert seen == [(arch, seed, batches) for seed in (0, 1) for arch, batches in once]  # all of one seed first
    assert "| mlp, 25% | 50 | 3 | 0.36 | 95.1 | rate 1.0 |" in text  # the paper's MLP
    assert "| cleverhans-cnn, 25% | 50 | 3 | 0.05 | 98.3 | rate 1.0 |" in text
    assert "mlp, seeds 0, 1; cleverhans-cnn, seeds 0, 1" in text


def test_other_processes_measure_the_same(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker suffices here: starting them is what takes long."""
    monkeypatch.setattr("ml.experiments.lab.SAY_EVERY", float("inf"))  # on a slow machine, too, only parts are told
    tiny["presets"]["tiny"] = {**TINY, "data": {"digits": ["mlp"]}, "batches": 20}
    options = {"count": 4, "epsilon": {"mlp": 0.1}, "rehearsal": 50, "embedding_rate": 0.02, "shares": [0.5]}
    tiny["le-merrer-table-2"] |= {"options": options}
    said: list[str] = []
    for folder, where in (("here", {}), ("processes", {"jobs": 2}), ("cluster", {"ray": True})):
        run(["le-merrer-table-2"], "tiny", tmp_path / folder, said.append, tiny, **where)  # type: ignore[arg-type]
    assert said == 3 * ["le-merrer-table-2, mlp, seed 0"]
    files = (tmp_path / folder / "le-merrer-table-2.json" for folder in ("here", "processes", "cluster"))
    rows = [json.loads(file.read_text())["rows"]["mlp"]["0"] for file in files]
    assert all([row["setting"] for row in found] == ["before marking", "a stranger's", "none", "50%"] for found in rows)
    assert all(found[1]["removed of 100"] == 0.0 for found in rows)
    for folder in ("processes", "cluster"):
        assert list((tmp_path / folder / "models").glob("frontier-mlp-0-*.npz"))


def _fail(part: str) -> str:
    raise {"ours": ParameterError, "theirs": KeyError}[part](part)


def test_errors_come_back_from_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    with workers.cluster(_fail, 1) as there:
        for part, kind in (("ours", ParameterError), ("theirs", KeyError)):
            with pytest.raises(kind, match=part):
                there(part)

    def nobody_answers(address: str, **_: object) -> None:  # as Ray does after some minutes
        raise ray.exceptions.RpcError(f"{address}: nobody answers")

    monkeypatch.setattr("ray.init", nobody_answers)
    with pytest.raises(ParameterError, match="no Ray cluster: board:1"), workers.cluster(_fail, 1, "board:1"):
        pass


def test_seeds_run_in_lanes(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds at once, and the experiments of one seed one after the other."""
    seen: list[str] = []
    meeting = threading.Barrier(2, timeout=60)

    def measure(part: runner.Part, say: object) -> runner.Measured:
        meeting.wait()  # returns only when both seeds are here
        seen.append(part.name)
        if part.name == "adi-table-2" and part.seed == 1:
            raise ParameterError("too few")
        return [{"setting": "one", "test %": 0.5}], 1.0

    monkeypatch.setattr(runner, "measure", measure)
    monkeypatch.setattr("ml.experiments.workers.ProcessPoolExecutor", lambda jobs, *_: ThreadPoolExecutor(jobs))
    tiny["presets"]["tiny"] = {**TINY, "seeds": [0, 1]}
    with pytest.raises(ParameterError, match="not done: adi-table-2, cnn, seed 1: too few"):
        run(["adi-table-1", "adi-table-2"], "tiny", tmp_path, None, tiny, jobs=2)
    assert seen == ["adi-table-1", "adi-table-1", "adi-table-2", "adi-table-2"]
    for name, seeds in (("adi-table-1", ["0", "1"]), ("adi-table-2", ["0"])):
        assert list(json.loads((tmp_path / f"{name}.json").read_text())["rows"]["cnn"]) == seeds


def test_one_failure_does_not_stop_the_others(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(lab: Lab, options: dict[str, Any]) -> list[dict[str, Any]]:
        raise ParameterError("too few adversaries")

    monkeypatch.setitem(runner.EXPERIMENTS, "adi-table-1", refuse)
    monkeypatch.setitem(runner.EXPERIMENTS, "adi-table-2", lambda lab, options: [{"setting": "one", "test %": 1.0}])
    with pytest.raises(ParameterError, match="adi-table-1, cnn, seed 0: too few adversaries"):
        run(["adi-table-1", "adi-table-2"], "tiny", tmp_path, chosen=tiny)
    assert not (tmp_path / "adi-table-1.json").exists() and "| one | 100 |" in (tmp_path / "results.md").read_text()


def test_a_preset_has_its_experiments(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but those of other presets, each with the pictures of its own architecture's triggers."""
    monkeypatch.setenv("ZKMARK_DATA", str(tmp_path / "nothing"))
    for name in EXPERIMENTS:
        monkeypatch.setitem(runner.EXPERIMENTS, name, lambda lab, options: [{"setting": "one", "test %": 1.0}])
        tiny[name]["plot"] = None
    for arch in ("cnn", "rnn"):
        (tmp_path / f"triggers-frontier-{arch}-digits.png").touch()
    tiny["le-merrer-recurrent"]["tiny"] = {"data": {"digits": ["rnn"]}}
    said: list[str] = []
    text = run([], "tiny", tmp_path, said.append, tiny).read_text()
    others = ("cifar10", "resnet18")
    assert [part.partition(",")[0] for part in said] == [n for n in EXPERIMENTS if not n.endswith(others)]
    pruning, after = text.partition("## Frontier stitching under compression")[::2]
    assert pruning.count("frontier-cnn-digits.png") == after.count("frontier-rnn-digits.png") == 1
    assert "frontier-rnn" not in pruning and "frontier-cnn" not in after


def test_misuse(tiny: dict[str, Any], tmp_path: Path) -> None:
    for names, preset, word in ((["adi"], "tiny", "adi-table-1"), ([], "huge", "unknown preset"),
                                (["bansal-table-1-cifar10"], "tiny", "has only the preset gpu")):  # fmt: skip
        with pytest.raises(ParameterError, match=word):
            run(names, preset, tmp_path, chosen=tiny)
    found = CliRunner().invoke(cli, ["experiment", "nothing", "--out", str(tmp_path / "new")])
    assert found.exit_code == 2 and "unknown experiment 'nothing'" in found.output
    assert not (tmp_path / "new").exists()
    found = CliRunner().invoke(cli, ["experiment", "adi-table-1", "--address", "127.0.0.1:1"])
    assert found.exit_code == 2 and "--engine ray" in found.output


def perceptron(arch: str, shape: tuple[int, int, int], classes: int, train_x: torch.Tensor) -> Normalized:
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, classes))
    return Normalized(body, torch.tensor([78.0]), torch.tensor([96.0]))


def test_real_experiments_on_few_digits(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too short to show anything but that all parts fit: the models, a stranger's key, the pictures."""
    monkeypatch.setattr("ml.experiments.lab.build", perceptron)  # much faster than a convolution
    names = ["compression", "curves", "frontier-key", "false-claim"]
    tiny["frontier-key"]["options"] |= {"count": 24, "epsilon": {"cnn": 0.1}, "embedding_rate": 0.02, "shares": []}
    tiny["frontier-key"]["tiny"] = {"train": 1200, "test": 0, "batches": 60}
    tiny["compression"]["options"] = {"prune": [0.5], "per_layer": [0.5], "svd": [0.5], "bits": [8]}
    tiny["false-claim"]["options"] = {"surrogates": 1, "count": 132, "epsilon": 0.4}
    tiny["false-claim"]["tiny"] = {"train": 264}
    said: list[str] = []
    text = run(names, "tiny", tmp_path, said.append, tiny).read_text()
    assert said == [f"{name}, cnn, seed 0" for name in names]
    rows = {r["setting"]: r for r in json.loads((tmp_path / "compression.json").read_text())["rows"]["cnn"]["0"]}
    assert rows["none"]["trigger %"] == 1.0 and rows["none"]["provable"] and rows["8 bits"]["provable"]
    assert all(r["proven"] == r["provable"] for r in rows.values()) and not rows["SVD 50%"]["proven"]
    rows = {r["setting"]: r for r in json.loads((tmp_path / "curves.json").read_text())["rows"]["cnn"]["0"]}
    assert all(r["proven"] == r["provable"] for r in rows.values()) and not rows["RTAL, epoch 1"]["proven"]
    rows = {r["setting"]: r for r in json.loads((tmp_path / "false-claim.json").read_text())["rows"]["cnn"]["0"]}
    assert rows["labels chosen"]["trigger %"] > rows["labels of the joint coin"]["trigger %"]
    assert rows["labels of the joint coin"]["proven"] is False
    rows = {r["setting"]: r for r in json.loads((tmp_path / "frontier-key.json").read_text())["rows"]["cnn"]["0"]}
    assert rows["none"]["integer %"] == 1.0 and rows["none"]["proven"] and not rows["before marking"]["proven"]
    for part in ("| 8 bits |", "| SVD 50% |", "| labels chosen |", "![How much compression", "| RTAL, epoch 1 |"):
        assert part in text
    made = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert {"results.md", "compression.png", "compression.json", "triggers-false-claim-digits.png"} <= made
    assert '<img src="triggers-false-claim-digits.png"' in text and "The tables took `tiny` 0" in text
    assert not [name for name in made if name.endswith(".new")] and len([n for n in made if n.endswith(".npz")]) == 6


FRONTIER = {"count": 24, "epsilon": {"cnn": 0.1}, "rehearsal": 50, "embedding_rate": 0.02}
CERTIFIED = {"count": 16, "replays": 2, "draws": 1, "warm_up": 0, "trigger_batch": 16, "epochs": 4, "drops": 0}
LONGER: dict[str, Any] = {"train": 1200, "test": 0, "batches": 60}  # until there are adversaries of both kinds
READ_BEHIND = ["RTLL", "RTLL, owner's last layer", "RTAL", "RTAL, owner's last layer"]
REMOVALS = ["fine-tuning", "hard labels", "soft labels"]
Cells = dict[str, dict[str, Any]]


@pytest.mark.parametrize(("name", "changes", "settings_there", "true"), [
    ("adi-table-1", {}, ["no mark", "from scratch", "pretrained"],
     lambda r: [row["proven"] for row in r.values()] == [False, True, True]),
    ("adi-figure-6", {}, [f"{mode}{attack}" for mode in ("from scratch", "pretrained")
                          for attack in ("", ", FTLL", ", FTAL", *(f", {how}" for how in READ_BEHIND))],
     lambda r: all((row["needed %"] is None) == name.endswith("last layer") == (row["proven"] == "not the suspect's")
                   for name, row in r.items()) and r["pretrained"]["proven"] is True
     and r["from scratch, RTLL"]["trigger %"] < r["from scratch, RTLL, owner's last layer"]["trigger %"] == 1.0),
    ("adi-figure-7", {}, ["no fine-tuning", "FTAL", *READ_BEHIND[2:]],
     lambda r: r["no fine-tuning"]["TS-NEW %"] == 1.0 > r["RTAL"]["TS-NEW %"]
     and all(row["proven"] == row["provable"] for row in r.values() if row["needed %"])),
    ("adi-table-2", {}, ["to odd or even"],
     lambda r: r["to odd or even"]["needed %"] is None and r["to odd or even"]["proven"] == "not the suspect's"),
    ("bansal-table-1", {**CERTIFIED, "triggers": ["content", "noise", "unrelated"], "samples": 40, "radii": [0.2, 0.4]},
     ["content", "noise", "unrelated, but abstract"],
     lambda r: all(row["at 0.4 σ %"] <= row["at 0.2 σ %"] <= row["median %"] and row["median %"] >
                   row["unmarked median %"] and row["certified radius"] > 0 and row["confidence %"] == 0.999
                   and row["proven"] is True for row in r.values())),
    ("bansal-table-2", {**CERTIFIED, "samples": 40, "rates": [0.001], "after": [1, 2]},
     [f"{name}, rate 0.001" for name in REMOVALS],
     lambda r: all(0 < row["after 1"] < row["after 2"] and (row["certified radius"] or 9) >= row["after 2"]
                   for row in r.values())),
    ("bansal-table-3", {**CERTIFIED, "samples": 40},
     ["none", *REMOVALS, "fine-tuning, slower", "hard labels, regularized", "soft labels, regularized"],
     lambda r: r["none"]["moved"] == 0 < r["fine-tuning, slower"]["moved"] < r["fine-tuning"]["moved"]
     and r["none"]["baseline %"] < r["none"]["black-box %"] and r["none"]["proven"]
     and r["none"]["certified radius"] > 0 and all((row["certified radius"] is not None) == (row["moved"] <=
     r["none"]["certified radius"]) for row in r.values())),
    ("le-merrer-table-1", {**FRONTIER, **LONGER, "shares": [0.25, 0.99]},
     ["before marking", "a stranger's", "none", "25%", "99%"],
     lambda r: r["none"]["removed of 100"] == 0 < r["99%"]["removed of 100"] and r["none"]["extracted"]
     and r["none"]["proven"] is True and r["99%"]["proven"] is False and r["99%"]["integer %"] < 1),
    ("le-merrer-table-3", {**FRONTIER, **LONGER, "adversaries": 100},
     ["before marking", "a stranger's", "none", "adversarial fine-tuning"],
     lambda r: r["none"]["removed of 100"] == 0 and r["none"]["proven"]),
    ("le-merrer-recurrent", {**FRONTIER, **LONGER, "data": {"digits": ["rnn"]}, "epsilon": {"rnn": 0.1},
                             "embedding_rate": 0.002, "shares": [0.25], "adversaries": 100},
     ["before marking", "a stranger's", "none", "25%", "adversarial fine-tuning"],
     lambda r: r["none"]["removed of 100"] == 0 and all(row["proven"] == "no integer form" for row in r.values())),
    ("le-merrer-figure-6", {**LONGER, "count": 24, "epsilons": [0.1, 0.9], "strangers": 1, "asked": ["cnn"]},
     ["asked of cnn, ε = 0.1", "asked of cnn, ε = 0.9"],
     lambda r: 0 <= r["asked of cnn, ε = 0.1"]["errors"] <= 24 and r["asked of cnn, ε = 0.9"]["no key"]
     and r["asked of cnn, ε = 0.1"]["proven %"] in (0, 1)),
    ("hitaj-ensemble", {"sizes": [2, 3]}, ["vote of 2", "vote of 3", "its weights"],
     lambda r: r["vote of 3"]["trigger %"] < r["its weights"]["trigger %"] == 1.0
     and r["vote of 3"]["proven"] == "no network" and r["vote of 3"]["provable"] is None
     and r["its weights"]["proven"] is True),
    ("hitaj-detector", {"images": 100, "epochs": 2}, ["service with detector", "its weights"],
     lambda r: r["service with detector"]["trigger %"] < 0.5 < r["service with detector"]["detector %"]
     and r["service with detector"]["proven"] == "no network" and r["its weights"]["proven"] is True),
])  # fmt: skip
def test_every_other_experiment_on_few_digits(
    name: str, changes: dict[str, Any], settings_there: list[str], true: Callable[[Cells], bool],
    tiny: dict[str, Any], digits_folder: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of the sizes at which what an experiment is about can be seen; without a second data set."""
    monkeypatch.setattr("ml.experiments.lab.build", perceptron)
    monkeypatch.setenv("ZKMARK_DATA", str(digits_folder))
    tiny[name]["tiny"] = changes
    text = run([name], "tiny", digits_folder, chosen=tiny).read_text()
    result = json.loads((digits_folder / f"{name}.json").read_text())
    (by_seed,) = result["rows"].values()
    rows = {row["setting"]: row for row in by_seed["0"]}
    assert list(rows) == settings_there and all(f"| {setting} |" in text for setting in rows)
    assert true(rows), rows


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all experiments, which share their models."""
    return tmp_path_factory.mktemp("digits")


def test_what_a_certificate_covers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters within its radius, under the same statistics of batch norm; and none where none is certified."""
    bare = Verdict("certified", 4, 4, 4, Fraction(1, 10), True, None, "", None, False)
    monkeypatch.setattr(Lab, "judge_of", lambda *_: lambda model: bare)
    data, (arch,) = load_first(Budget.of(TINY))
    lab, scheme = Lab(Budget.of(TINY), data, arch, 0, tmp_path), Certified()
    key, model = TriggerKey(data.test_x[:4], data.test_y[:4], 10), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))
    smoothed = Smoothed(np.ones(1000), 0.1)
    radius = smoothed.radius(0.5)
    for step, mean, certified, covered in ((0, 0, 1, True), (0.9, 0, 1, True), (1.1, 0, 1, False), (0, 1, 1, False),
                                           (0, 0, 0.4, False)):  # fmt: skip
        suspect = deepcopy(model)
        with torch.no_grad():
            next(suspect.parameters())[0] += step * radius
            next(suspect.buffers())[0] += mean
        found = _judge(lab, scheme, key, model, Smoothed(np.full(1000, float(certified)), 0.1))(suspect).certificate
        assert (found is not None) == covered and (not found or found.radius == radius > 0)


def test_models_come_back_from_their_files(tmp_path: Path) -> None:
    data, architectures = load_first(Budget.of(TINY))
    first, again = (Lab(Budget.of(TINY), data, architectures[0], 0, tmp_path) for _ in range(2))
    calls: list[int] = []
    for lab in (first, again):
        model = lab.model("plain", lambda m, p: calls.append(1))
        assert lab.test(model) == first.test(model) and calls == [1]
    first.model("plain", lambda m, p: calls.append(2), of="other options")
    assert calls == [1, 2] and len(first.owner.train_y) == len(first.thief.train_y) == 100
    assert not (first.owner.train_x[:, None] == first.thief.train_x[None, :5]).all((2, 3, 4)).any()


def test_trainings_tell_how_they_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = load_first(Budget.of(TINY))
    said: list[str] = []
    lab = Lab(Budget.of(TINY), data, "mlp", 0, tmp_path, say=said.append)
    lab.unmarked()
    assert said == []  # too short
    monkeypatch.setattr("ml.experiments.lab.SAY_EVERY", 0.0)
    for other in (lab, replace(lab, arch="rnn")):
        other.unmarked(1)
        assert re.fullmatch(rf"unmarked-1, {other.arch}, seed 0: 100% training: loss [0-9.]+, data [0-9.]+%", said[-1])
    lab.marked()
    assert re.fullmatch("marked-from-scratch, mlp, seed 0: .*: loss .*, data .*%, triggers .*%", said[-1])

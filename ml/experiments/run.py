"""Runs experiments part by part: one experiment, one architecture, one seed.  Each result is a JSON file with all that
it depends on; what is there already, made of the same settings, data and versions, is not made again."""

from __future__ import annotations

import json
import platform
import time
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

from ml.experiments import backdoors, certificates, evasions, frontiers, workers
from ml.experiments.lab import Budget, Lab, Row, Say, described, load_first, load_other, write
from ml.experiments.report import INTRODUCTION, cost, figure, markdown
from protocol.errors import ParameterError

SETTINGS = Path(__file__).parent.parent / "experiments.toml"
EXPERIMENTS: dict[str, Callable[[Lab, dict[str, Any]], list[Row]]] = {
    "adi-table-1": backdoors.embedding,
    "adi-table-1-resnet18": backdoors.embedding,
    "adi-figure-6": backdoors.fine_tuning,
    "adi-figure-7": backdoors.piracy,
    "adi-table-2": backdoors.transfer_learning,
    "compression": backdoors.compression,
    "curves": backdoors.curves,
    "bansal-table-1": certificates.certified_accuracy,
    "bansal-table-2": certificates.distances,
    "bansal-table-3": certificates.removal,
    "bansal-table-1-cifar10": certificates.certified_accuracy,
    "bansal-table-2-cifar10": certificates.distances,
    "bansal-table-3-cifar10": certificates.removal,
    "le-merrer-table-1": frontiers.pruning,
    "le-merrer-table-2": frontiers.svd,
    "le-merrer-table-3": frontiers.overwriting,
    "le-merrer-recurrent": frontiers.recurrent,
    "le-merrer-figure-6": frontiers.false_positives,
    "frontier-key": frontiers.public_key,
    "hitaj-ensemble": evasions.ensemble,
    "hitaj-detector": evasions.detector,
    "false-claim": evasions.false_claim,
}
SHEETS = {  # of whose triggers there are pictures; {arch}: of each architecture's own
    "adi-table-1": ("abstract",),
    "bansal-table-1": ("content", "noise", "unrelated"),
    "bansal-table-1-cifar10": ("content", "noise", "unrelated"),
    "le-merrer-table-1": ("frontier-{arch}",),
    "le-merrer-recurrent": ("frontier-{arch}",),
    "false-claim": ("false-claim",),
}
PACKAGES = ("numpy", "onnx", "pillow", "scikit-learn", "torch", "zkmark")

@dataclass(frozen=True)
class Part:
    """One architecture and one seed of an experiment.  data, other: as the result describes them."""

    name: str
    options: dict[str, Any]
    budget: Budget
    data: dict[str, Any]
    other: dict[str, Any] | None
    arch: str
    seed: int
    folder: Path


Measured = tuple[list[Row], float]  # and seconds
Measure = Callable[[Part], Measured]


def measure(part: Part, say: Say | None = None) -> Measured:
    """Raises ParameterError where the data or a model do not allow the experiment, or the data are others by now."""
    start = time.monotonic()
    data, other = load_first(part.budget)[0], load_other(part.options.get("other", ""))
    if (described(data), _other(part.options)) != (part.data, part.other):
        raise ParameterError("the data sets here are not those that the run began with")
    lab = Lab(part.budget, data, part.arch, part.seed, part.folder, other, say)
    rows = EXPERIMENTS[part.name](lab, part.options)
    return rows, round(time.monotonic() - start, 1)


def settings() -> dict[str, Any]:
    """The TOML file: `presets`, and a section per experiment."""
    found: dict[str, Any] = tomllib.loads(SETTINGS.read_text())
    return found


def run(
    names: Sequence[str], preset: str, folder: Path, progress: Say | None = None,
    chosen: dict[str, Any] | None = None, jobs: int = 1, ray: bool = False, address: str | None = None,
) -> Path:  # fmt: skip
    """Run the named experiments, or all of the preset, and write `folder`/results.md; returns its path.

    chosen: settings in place of the file's.  jobs: workers, each of which has one seed of one architecture at a time,
    whose trained models its experiments share; of a Ray cluster with `ray`, else processes.  progress: hears what is
    measured and how it goes; a function of a module, where others measure.  Raises ParameterError for
    names or presets that do not exist or do not go together, and at the end for experiments that the data or a model
    did not allow; the others are on the page then.
    """
    chosen = settings() if chosen is None else chosen
    if preset not in chosen["presets"]:
        raise ParameterError(f"unknown preset {preset!r}; known are {', '.join(chosen['presets'])}")
    names = list(names) or [name for name in EXPERIMENTS if preset in _presets(chosen, name)]
    for name in names:
        if name not in EXPERIMENTS:
            raise ParameterError(f"unknown experiment {name!r}; known are {', '.join(EXPERIMENTS)}")
        if preset not in _presets(chosen, name):
            raise ParameterError(f"{name} has only the preset {', '.join(_presets(chosen, name))}")
    results, parts = {}, []
    for name in names:
        results[name], new = _plan(name, chosen[name], preset, chosen["presets"][preset], folder)
        parts += new
    say = progress or (lambda _: None)
    failed, lock = [], Lock()

    def run_lane(lane: list[Part], measured: Measure) -> None:
        for part in lane:
            label = f"{part.name}, {part.arch}, seed {part.seed}"
            say(label)
            try:
                rows, seconds = measured(part)
            except ParameterError as error:
                failed.append(f"{label}: {error}")
                say(f"not done: {failed[-1]}")
                continue
            with lock:
                result = results[part.name]
                for kind, value in (("rows", rows), ("seconds", seconds)):
                    result[kind][part.arch][str(part.seed)] = value
                _save(result, folder)

    parts.sort(key=lambda part: part.seed)  # all tables with one seed before any with two
    lanes: dict[tuple[str, str, int], list[Part]] = {}
    for part in parts:
        lanes.setdefault((part.data["name"], part.arch, part.seed), []).append(part)
    work = partial(measure, say=progress)
    if jobs == 1 and not ray:
        run_lane(parts, work)
    else:
        start = workers.cluster(work, jobs, address) if ray else workers.processes(work, jobs)
        with start as measured, ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda lane: run_lane(lane, measured), lanes.values()))
    page = _summary(folder)
    if failed:
        raise ParameterError("not done: " + "; ".join(failed))
    return page


def _presets(chosen: dict[str, Any], name: str) -> list[str]:
    """Of an experiment: all, unless its section names some."""
    return list(chosen[name].get("presets", chosen["presets"]))


def _plan(
    name: str, section: dict[str, Any], preset: str, spent: dict[str, Any], folder: Path
) -> tuple[dict[str, Any], list[Part]]:
    """The result so far, and what is left to measure.  A section's changes for a preset are to options or budget."""
    changes = section.get(preset, {})
    budget = Budget.of(spent | {key: value for key, value in changes.items() if key in Budget.names()})
    options = section["options"] | {key: value for key, value in changes.items() if key not in Budget.names()}
    data, architectures = load_first(budget)
    result = {
        "name": name, "title": section["title"], "paper": section["paper"], "note": section["note"],
        "paper_values": section.get("paper_values", {}), "papers_by_arch": section.get("papers_by_arch", {}),
        "plot": section.get("plot"),
        "reading": section.get("reading", {}).get(preset, ""), "preset": preset,
        "budget": asdict(budget), "options": options,
        "data": described(data), "other": _other(options),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "rows": {}, "seconds": {},
    }  # fmt: skip
    old = _earlier(folder / f"{name}.json", result)
    parts = []
    for arch in architectures:
        kept = {seed: rows for seed, rows in old["rows"].get(arch, {}).items() if int(seed) in budget.seeds}
        result["rows"][arch], result["seconds"][arch] = kept, {seed: old["seconds"][arch][seed] for seed in kept}
        parts += [Part(name, options, budget, result["data"], result["other"], arch, seed, folder.resolve())
                  for seed in budget.seeds if str(seed) not in kept]  # fmt: skip
    if any(result["rows"].values()):
        _save(result, folder)  # with the texts of today
    return result, parts


def _other(options: dict[str, Any]) -> dict[str, Any] | None:
    """Of the second data set, which the option `other` names; rows made without it are others than rows with it."""
    name = options.get("other", "")
    found = load_other(name)
    return described(found) if found else {"name": name, "source": "not at hand"} if name else None


def _save(result: dict[str, Any], folder: Path) -> None:
    """The experiment's file and its picture, of what was measured so far."""
    measured = {kind: {arch: dict(sorted(by_seed.items(), key=lambda item: int(item[0])))
                       for arch, by_seed in result[kind].items() if by_seed} for kind in ("rows", "seconds")}
    result = result | measured
    path = folder / f"{result['name']}.json"
    write(path, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    if result["plot"]:
        figure(path.with_suffix(".png"), result)
    _summary(folder)


def _inputs(result: dict[str, Any]) -> str:
    """Digest of all that the rows of one architecture and seed depend on."""
    budget = {key: value for key, value in result["budget"].items() if key not in ("data", "seeds")}
    parts = budget, {key: result[key] for key in ("name", "options", "data", "other", "versions")}
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _earlier(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The rows and seconds of an earlier run with the same inputs, by architecture and seed."""
    try:
        old = json.loads(path.read_text())
        if _inputs(old) == _inputs(result):
            return {kind: {arch: dict(by_seed) for arch, by_seed in old[kind].items()} for kind in ("rows", "seconds")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no file, or not ours: it is made again
    return {"rows": {}, "seconds": {}}


def _summary(folder: Path) -> Path:
    """All results of the folder, in the order of EXPERIMENTS, as one page."""
    results = [json.loads(path.read_text()) for name in EXPERIMENTS if (path := folder / f"{name}.json").exists()]
    sections = [INTRODUCTION, *([cost(results)] if results else [])]
    for result in results:
        shown = dict.fromkeys(name.format(arch=arch) for name in SHEETS.get(result["name"], ())
                              for arch in sorted(result["rows"]))  # fmt: skip
        files = (f"triggers-{name}-{result['data']['name']}.png" for name in shown)
        sections.append(markdown(result, [file for file in files if (folder / file).exists()]))
    out = folder / "results.md"
    write(out, "\n".join(sections).encode())
    return out

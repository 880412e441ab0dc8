"""Runs experiments seed by seed.  Each result is a JSON file with everything that it depends on; what is there already,
made of the same settings, data and versions, is not made again."""

from __future__ import annotations

import json
import platform
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ml.experiments import backdoors, certificates, evasions, frontiers
from ml.experiments.lab import Budget, Lab, Row, data_digest, load_first, write
from ml.experiments.report import figure, markdown
from protocol.errors import ParameterError

SETTINGS = Path(__file__).parent.parent / "experiments.toml"
EXPERIMENTS: dict[str, Callable[[Lab, dict[str, Any]], list[Row]]] = {
    "adi-table-1": backdoors.embedding,
    "adi-figure-6": backdoors.fine_tuning,
    "adi-figure-7": backdoors.piracy,
    "adi-table-2": backdoors.transfer_learning,
    "compression": backdoors.compression,
    "bansal-table-1": certificates.certified_accuracy,
    "bansal-table-2": certificates.distances,
    "bansal-table-3": certificates.removal,
    "le-merrer-table-1": frontiers.pruning,
    "le-merrer-table-2": frontiers.svd,
    "le-merrer-table-3": frontiers.overwriting,
    "le-merrer-figure-6": frontiers.false_positives,
    "hitaj-ensemble": evasions.ensemble,
    "hitaj-detector": evasions.detector,
    "false-claim": evasions.false_claim,
}
PACKAGES = ("numpy", "onnx", "onnxruntime", "scikit-learn", "torch")

Progress = Callable[[str], None]


def settings() -> dict[str, Any]:
    """The TOML file: `presets`, and a section per experiment."""
    found: dict[str, Any] = tomllib.loads(SETTINGS.read_text())
    return found


def run(names: Sequence[str], preset: str, folder: Path, progress: Progress | None = None,
        chosen: dict[str, Any] | None = None) -> Path:  # fmt: skip
    """Run the named experiments, or all, and write `folder`/results.md; returns its path.

    chosen: settings in place of the file's.  Raises ParameterError for names or presets that do not exist, and at the
    end for experiments that the data or a model did not allow; the others are on the page then.
    """
    chosen = settings() if chosen is None else chosen
    if preset not in chosen["presets"]:
        raise ParameterError(f"unknown preset {preset!r}; known are {', '.join(chosen['presets'])}")
    names = list(names) or list(EXPERIMENTS)
    for name in names:
        if name not in EXPERIMENTS:
            raise ParameterError(f"unknown experiment {name!r}; known are {', '.join(EXPERIMENTS)}")
    torch.set_num_threads(1)
    budget = Budget.of(chosen["presets"][preset])
    data, arch = load_first(budget)
    about = {"name": data.name, "source": data.source, "sha256": data_digest(data), "train": len(data.train_y),
             "test": len(data.test_y), "arch": arch}  # fmt: skip
    versions = {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}
    labs = {seed: Lab(budget, data, arch, seed, folder) for seed in budget.seeds}
    failed = []
    for name in names:
        section = chosen[name]
        options = section["options"] | section.get(preset, {})
        result = {
            "name": name, "title": section["title"], "paper": section["paper"], "note": section["note"],
            "paper_values": section.get("paper_values", {}), "plot": section.get("plot"),
            "reading": section.get("reading", {}).get(preset, ""), "preset": preset,
            "budget": asdict(budget), "options": options, "data": about, "versions": versions, "rows": {},
            "seconds": {},
        }  # fmt: skip
        path = folder / f"{name}.json"
        old = _earlier(path, result)
        for seed, lab in labs.items():
            if str(seed) in old:
                result["rows"][str(seed)], result["seconds"][str(seed)] = old[str(seed)]
            else:
                if progress is not None:
                    progress(f"{name}, seed {seed}")
                start = time.monotonic()
                try:
                    result["rows"][str(seed)] = EXPERIMENTS[name](lab, options)
                except ParameterError as error:
                    failed.append(f"{name}, seed {seed}: {error}")
                    continue
                result["seconds"][str(seed)] = round(time.monotonic() - start, 1)
            write(path, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
        if result["plot"] and result["rows"]:
            figure(path.with_suffix(".png"), result)
    page = _summary(folder)
    if failed:
        raise ParameterError("not done: " + "; ".join(failed))
    return page


def _inputs(result: dict[str, Any]) -> str:
    """Digest of all that the rows depend on."""
    parts = {key: result[key] for key in ("name", "budget", "options", "data", "versions")}
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _earlier(path: Path, result: dict[str, Any]) -> dict[str, tuple[list[Row], float]]:
    """The seeds of an earlier run with the same inputs."""
    try:
        old = json.loads(path.read_text())
        if _inputs(old) == _inputs(json.loads(json.dumps(result))):
            return {seed: (rows, old["seconds"][seed]) for seed, rows in old["rows"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no file, or not ours: it is made again
    return {}


def _summary(folder: Path) -> Path:
    """All results of the folder, in the order of EXPERIMENTS, as one page."""
    sections = []
    for name in EXPERIMENTS:
        path = folder / f"{name}.json"
        if path.exists():
            sections.append(markdown(json.loads(path.read_text())))
    out = folder / "results.md"
    write(out, "\n".join(["# Watermarks and attacks, measured\n", *sections]).encode())
    return out

"""Another prover on the same network: EZKL (halo2 with KZG), one image per proof.

Private image, weights fixed in the circuit and so public, logits public.  Its own calibration chooses scales and the
size of the circuit (target "resources"); its reference string is made here, so that nothing is downloaded.  EZKL lives
in an environment of its own, `make bench-peers`; `python benchmarks/peers.py STAGE FOLDER` runs there, without zkmark.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.jobs import Job

PYTHON = Path("build/peers/bin/python")
TARGET = "resources"


def ezkl(job: Job, runs: int) -> dict[str, Any]:
    """Per stage seconds (medians) and peak memory, each stage in a fresh process; and the settings that EZKL chose."""
    from benchmarks.jobs import load_key

    if not PYTHON.exists():
        raise SystemExit(f"{PYTHON} is missing: run `make bench-peers`")
    folder = job.path("ezkl")
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(job.path("onnx").read_bytes())
    pixels = load_key(job).hidden_images[0].reshape(-1).astype(float).tolist()
    (folder / "input.json").write_text(json.dumps({"input_data": [pixels]}))
    merged: dict[str, Any] = {"seconds": {}, "peak_memory_bytes": {}}
    for stage in ("setup", "prove", "verify"):
        print(f"ezkl: {stage} ...", flush=True)
        command = [str(PYTHON), __file__, stage, str(folder), str(runs)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        merged["peak_memory_bytes"][stage] = result.pop("peak_memory")
        merged["seconds"] |= result.pop("seconds")
        merged |= result
    return merged


class _Timer:
    """Calls functions of EZKL, which return False or None where they fail, and keeps the median seconds."""

    def __init__(self) -> None:
        self.library = importlib.import_module("ezkl")
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, *args: object, runs: int = 1, **named: object) -> None:
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            if not getattr(self.library, name)(*args, **named):
                raise RuntimeError(f"ezkl.{name} failed")
            seconds.append(time.perf_counter() - start)
        self.seconds[name] = median(seconds)


def _stage(stage: str, folder: Path, runs: int) -> dict[str, Any]:
    timed = _Timer()
    result: dict[str, Any] = {}

    def path(name: str) -> str:
        return str(folder / name)

    if stage == "setup":
        arguments = timed.library.PyRunArgs()
        arguments.input_visibility, arguments.output_visibility = "private", "public"
        arguments.param_visibility = "fixed"
        timed("gen_settings", path("model.onnx"), path("settings.json"), py_run_args=arguments)
        timed("calibrate_settings", path("input.json"), path("model.onnx"), path("settings.json"), TARGET)
        settings = json.loads(Path(path("settings.json")).read_text())["run_args"]
        timed("compile_circuit", path("model.onnx"), path("circuit"), path("settings.json"))
        result = {"version": version("ezkl"), "target": TARGET, "settings": settings}
        reference = Path(path(f"kzg-{settings['logrows']}.srs"))
        if not reference.exists():  # minutes, and the same for every circuit of this size
            timed.library.gen_srs(str(reference), settings["logrows"])
        Path(path("kzg.srs")).unlink(missing_ok=True)
        Path(path("kzg.srs")).hardlink_to(reference)
        timed("setup", path("circuit"), path("vk"), path("pk"), path("kzg.srs"))
        result["vk_bytes"], result["pk_bytes"] = (Path(path(name)).stat().st_size for name in ("vk", "pk"))
    elif stage == "prove":
        timed("gen_witness", path("input.json"), path("circuit"), path("witness.json"), runs=runs)
        arguments = path("witness.json"), path("circuit"), path("pk"), path("proof.json"), path("kzg.srs")
        timed("prove", *arguments, runs=runs)
        proof = json.loads(Path(path("proof.json")).read_text())
        result["proof_bytes"] = len(bytes(proof["proof"]))
    else:
        timed("verify", path("proof.json"), path("settings.json"), path("vk"), path("kzg.srs"), runs=runs)
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return {**result, "seconds": timed.seconds, "peak_memory": peak}


if __name__ == "__main__":
    print(json.dumps(_stage(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))

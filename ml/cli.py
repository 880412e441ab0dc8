"""`zkmark-ml`: train, mark and evaluate networks.  Exit status 0 done, 1 the mark did not take, 2 misuse or bad files.

Heavy modules are imported when a command needs them, so that --help answers at once.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec

import click

from protocol.errors import DecodingError, ParameterError, VerificationError
from zkmark.terminal import FAILED, Number, Program, one_line, progress

if TYPE_CHECKING:
    from ml.data import Dataset
    from ml.mark import Look, Training
    from ml.models import Normalized
    from protocol.keygen import MarkingKey

P = ParamSpec("P")
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
DATA = click.Choice(["digits", "mnist", "fashion-mnist", "cifar10", "cifar10-jpeg75"])
ARCHITECTURES = [
    "cnn", "wide-cnn", "lenet", "vgg11", "vgg16", "resnet18", "preact-resnet18", "resnet20", "resnet50", "mobilenetv2",
    "mlp", "cleverhans-cnn",
]  # fmt: skip
BATCHES = 1200  # by default: two epochs of MNIST, eighty of the digits

data_option = click.option("--data", required=True, type=DATA, help="Data set; all but digits from ZKMARK_DATA.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def outcome(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the errors of a command into one line (or JSON) and the exit status."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ModuleNotFoundError as error:
            _fail(f"{error.name} is not installed: install the extra `ml`", None, kwargs)
        except (VerificationError, DecodingError, ParameterError, OSError, MemoryError, UnicodeError) as error:
            _fail(str(error), error.check if isinstance(error, VerificationError) else None, kwargs)
        except KeyboardInterrupt:
            sys.exit(130)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:  # of this program; Python would end with 1, which says that a mark did not take
            if kwargs.get("as_json"):
                click.echo(json.dumps({**FAILED, "error": repr(error)}))
            traceback.print_exc()
            sys.exit(2)

    return wrapper


def _fail(text: str, check: str | None, options: Mapping[str, object]) -> NoReturn:
    if options.get("as_json"):
        click.echo(json.dumps({**FAILED, "failed_check": check, "error": text}))
    click.echo(f"zkmark-ml: {one_line(text)}", err=True)
    sys.exit(2 if check is None else 1)


def training_options(command: Callable[P, None]) -> Callable[P, None]:
    for option in (
        json_option,
        click.option("--out", required=True, type=NEW_FILE, help="File for the ONNX model."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
        click.option(
            "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
            help="Of the initial weights and the order.",
        ),
        click.option("--epochs", type=click.IntRange(min=0), help=f"[default: as many as have {BATCHES} batches]"),
        click.option("--width", type=Number(), default=1.0, show_default=True, help="Factor of all hidden channels."),
        click.option("--arch", type=click.Choice(ARCHITECTURES), default="cnn", show_default=True),
        data_option,
    ):
        command = option(command)
    return command


def secret_options(command: Callable[P, None]) -> Callable[P, None]:
    command = click.option("--key-file", type=FILE, help="File of random bytes instead of a passphrase.")(command)
    return click.option("--passphrase-file", type=FILE, help="File whose first line is the passphrase.")(command)


@click.group(cls=Program, misuse=FAILED, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Train networks with and without a watermark, and evaluate them."""


@cli.command("train")
@training_options
@outcome
def train_command(
    data: str, arch: str, width: float, epochs: int | None, seed: int, device: str, out: Path, as_json: bool
) -> None:
    """Train a network without a mark."""
    from ml.export import export_onnx
    from ml.mark import train

    _check_folder(out)
    dataset, model, options = _prepare(data, arch, width, epochs, seed, device)
    with _progress(as_json) as report:
        trained = train(model, dataset, options, report)
    _write(out, export_onnx(model, dataset.shape))
    result = {"done": True, "data": dataset.source, "test_accuracy": trained.test_accuracy, "out": str(out)}
    _print(as_json, result, f"{out}: {trained.test_accuracy:.2%} of the test images of {data} ({dataset.source})")


@cli.command("mark")
@click.option("--mk", required=True, type=FILE, help="The marking key.")
@click.option("--mode", type=click.Choice(["fromscratch", "pretrained"]), default="fromscratch", show_default=True)
@click.option("--init", type=FILE, help="For pretrained: the trained network, ONNX of `train` [default: train one].")
@secret_options
@training_options
@outcome
def mark_command(
    mk: Path, mode: str, init: Path | None, passphrase_file: Path | None, key_file: Path | None,
    data: str, arch: str, width: float, epochs: int | None, seed: int, device: str, out: Path, as_json: bool,
) -> None:  # fmt: skip
    """Train a network that keeps the key's secret triggers, from scratch or from a trained network."""
    if init is not None and mode == "fromscratch":
        raise click.UsageError("--init belongs to --mode pretrained")
    _check_folder(out)
    key = _key(mk, passphrase_file, key_file)
    from ml.export import export_onnx, load_weights
    from ml.mark import mark, train

    dataset, model, options = _prepare(data, arch, width, epochs, seed, device)
    if key.vk.parameters.shape != dataset.shape or key.vk.parameters.classes != dataset.classes:
        raise ParameterError(f"the key is for images {key.vk.parameters.shape}, {data} has {dataset.shape}")
    with _progress(as_json) as report:
        if init is not None:
            load_weights(model, _read(init))
        elif mode == "pretrained":
            train(model, dataset, options, report)
        marked = mark(model, dataset, key.hidden_images, key.hidden_labels, options, report)
    kept = marked.trigger_accuracy or 0.0
    if kept < 0.9:
        raise VerificationError("mark", f"only {kept:.0%} of the triggers took; try more --epochs or another --arch")
    _write(out, export_onnx(model, dataset.shape))
    result = {
        "done": True, "data": dataset.source, "mode": mode, "test_accuracy": marked.test_accuracy,
        "trigger_accuracy": kept, "h": key.vk.h, "extra_steps": marked.extra_steps, "out": str(out),
    }  # fmt: skip
    accuracy = f"{marked.test_accuracy:.2%} of the test images of {data} ({dataset.source})"
    _print(as_json, result, f"{out}: {kept:.2%} of {key.vk.h} secret triggers, {accuracy}")


@cli.command("evaluate")
@click.option("--model", required=True, type=FILE, help="The network, ONNX.")
@data_option
@click.option("--mk", type=FILE, help="The marking key, to count the triggers that the model keeps.")
@secret_options
@json_option
@outcome
def evaluate_command(
    model: Path, data: str, mk: Path | None, passphrase_file: Path | None, key_file: Path | None, as_json: bool
) -> None:
    """Accuracy of a model and of its integer network, and the owner's private count of its triggers."""
    key = None if mk is None else _key(mk, passphrase_file, key_file)
    from ml.data import load
    from ml.evaluate import accuracy, verify_privately

    dataset, model_bytes = load(data), _read(model)
    with progress(as_json) as report:
        report(f"{len(dataset.test_x)} test images", 0.0)
        measured = accuracy(model_bytes, dataset.test_x, dataset.test_y)
        verdict = None
        if key is not None:
            report("triggers", 0.5)
            verdict = verify_privately(
                model_bytes, key.vk.parameters, key.images, key.labels, key.vk.hidden, key.vk.opened
            )
    result: dict[str, Any] = {"done": True, "data": dataset.source, "accuracy": asdict(measured)}
    lines = [
        f"{data} ({dataset.source}), {measured.count} test images: float {measured.real:.2%}, "
        f"integer {measured.integer:.2%}, the same class {measured.agreement:.2%}"
    ]
    if verdict is not None:
        result["triggers"] = asdict(verdict)
        for name, half in (("hidden", verdict.hidden), ("opened", verdict.opened)):
            lines.append(f"{name} triggers: {half.integer} of {half.count} (float {half.real})")
        if verdict.k_min is None:
            lines.append("no number of matches has a bound on false claims: a proof needs an explicit --k-min")
        else:
            proof = "can be made" if verdict.provable else "cannot be made"
            lines.append(f"a proof {proof}: it needs {verdict.k_min} of the hidden triggers")
    _print(as_json, result, "\n".join(lines))


@cli.command("experiment")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--preset", default="ci", show_default=True, help="ci: minutes; cpu: an hour; gpu: the papers' scale.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Seeds side by side.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="Where they run: on this machine, or in a Ray cluster that shares --out.")
@click.option("--address", metavar="HOST:PORT", help="A running Ray cluster [default: one of this machine].")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results [default: watermarks-PRESET].",
)  # fmt: skip
@json_option
@outcome
def experiment_command(
    names: tuple[str, ...], preset: str, jobs: int, engine: str, address: str | None, out: Path | None, as_json: bool
) -> None:
    """Measure the papers' tables and figures: the NAMEs given, or all.  Goes on where an earlier run stopped."""
    if address is not None and engine != "ray":
        raise click.UsageError("--address is of a Ray cluster: give --engine ray")
    from ml.experiments.run import run

    report = None if as_json else lambda what: click.echo(f"{what} ...", err=True)
    folder = out or Path(f"watermarks-{preset}")
    page = run(names, preset, folder, report, jobs=jobs, ray=engine == "ray", address=address)
    _print(as_json, {"done": True, "results": str(page)}, str(page))


def _prepare(
    data: str, arch: str, width: float, epochs: int | None, seed: int, device: str
) -> tuple[Dataset, Normalized, Training]:
    import torch

    from ml.data import load
    from ml.mark import Training
    from ml.models import build

    dataset = load(data)
    torch.manual_seed(seed)
    model = build(arch, dataset.shape, dataset.classes, torch.from_numpy(dataset.train_x), width)
    batch = Training.batch
    rounds = -(-BATCHES * batch // len(dataset.train_x)) if epochs is None else epochs
    return dataset, model, Training(epochs=rounds, seed=seed, device=device)


def _key(mk: Path, passphrase_file: Path | None, key_file: Path | None) -> MarkingKey:
    from prover.keys import load_marking_key, read_secret

    return load_marking_key(mk, read_secret(passphrase_file, key_file))


def _read(path: Path) -> bytes:
    from ml.onnx_reader import MAX_MODEL_BYTES
    from prover.keys import read_capped

    return read_capped(path, MAX_MODEL_BYTES, "model")


def _check_folder(out: Path) -> None:
    """Before any work: the result can be written at its end."""
    if not out.resolve().parent.is_dir():
        raise ParameterError(f"{out.parent} is not a folder")


def _write(path: Path, data: bytes) -> None:
    from prover.keys import write_file

    write_file(path, data, 0o644)


def _print(as_json: bool, result: dict[str, Any], text: str) -> None:
    click.echo(json.dumps(result) if as_json else text)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Look], None]]:
    """Where progress goes: a bar on a terminal, a line per phase and tenth of it elsewhere, nowhere when quiet."""
    if not quiet and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda look: bar.update(task, description=_described(look), completed=look.share)
        return
    seen: list[tuple[str, int]] = []

    def line(look: Look) -> None:
        tenth = (look.phase, int(10 * look.share))
        if not quiet and seen[-1:] != [tenth]:
            seen.append(tenth)
            click.echo(f"{look.share:.0%} {_described(look)}", err=True)

    yield line


def _described(look: Look) -> str:
    triggers = "" if look.triggers is None else f", triggers {look.triggers:.1%}"
    return f"{look.phase}: loss {look.loss:.3f}, data {look.data:.1%}{triggers}"


def main() -> None:
    """The console script."""
    cli()


if __name__ == "__main__":
    main()

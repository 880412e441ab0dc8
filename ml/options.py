"""What the commands of `zkmark-ml` share: options, exit status, progress, and the files that they read and write."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec

import click

from protocol.errors import DecodingError, ParameterError, VerificationError
from zkmark.terminal import FAILED, Number, one_line

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


def weights_options(scheme: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """How to read the weights of --model, which only that scheme does; None where they are not given."""

    def decorate(command: Callable[P, None]) -> Callable[P, None]:
        command = click.option("--width", type=Number(), help=f"Of {scheme}: of --model [default: 1].")(command)
        return click.option("--arch", type=click.Choice(ARCHITECTURES),
                            help=f"Of {scheme}: of --model [default: cnn].")(command)  # fmt: skip

    return decorate


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


def own(scheme: str, **options_of: Mapping[str, object]) -> dict[str, Any]:
    """The options of a scheme that are given.  Raises UsageError for one of another's.

    options_of: by scheme, each option with its value, None where it is not given.
    """
    for owner, options in options_of.items():
        for name, value in options.items():
            if value is not None and owner != scheme:
                raise click.UsageError(f"--{name.replace('_', '-')} belongs to --scheme {owner}")
    return {name: value for name, value in options_of.get(scheme, {}).items() if value is not None}


def prepare(
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


def load_network(
    data: str, model_bytes: bytes, arch: str | None, width: float | None
) -> tuple[Dataset, Normalized]:
    """The data, and a network with the weights of ONNX bytes of `train` or `mark`, on the device at hand."""
    from ml.descent import pick_device
    from ml.export import load_weights

    dataset, model, _ = prepare(data, arch or "cnn", 1.0 if width is None else width, 0, 0, "auto")
    load_weights(model, model_bytes)
    return dataset, model.to(pick_device("auto"))


def load_key(mk: Path, passphrase_file: Path | None, key_file: Path | None) -> MarkingKey:
    from prover.keys import load_marking_key, read_secret

    return load_marking_key(mk, read_secret(passphrase_file, key_file))


def read_model(path: Path) -> bytes:
    from ml.onnx_reader import MAX_MODEL_BYTES
    from prover.keys import read_capped

    return read_capped(path, MAX_MODEL_BYTES, "model")


def check_folder(out: Path) -> None:
    """Before any work: the result can be written at its end."""
    if not out.resolve().parent.is_dir():
        raise ParameterError(f"{out.parent} is not a folder")


def write_model(path: Path, data: bytes) -> None:
    from prover.keys import write_file

    write_file(path, data, 0o644)


def say(as_json: bool, result: dict[str, Any], text: str) -> None:
    click.echo(json.dumps(result) if as_json else text)


@contextmanager
def training_progress(quiet: bool) -> Iterator[Callable[[Look], None]]:
    """Where progress goes: a bar on a terminal, a line per phase and tenth of it elsewhere, nowhere when quiet."""
    if not quiet and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda look: bar.update(task, description=str(look), completed=look.share)
        return
    seen: list[tuple[str, int]] = []

    def line(look: Look) -> None:
        tenth = (look.phase, int(10 * look.share))
        if not quiet and seen[-1:] != [tenth]:
            seen.append(tenth)
            click.echo(f"{look.share:.0%} {look}", err=True)

    yield line

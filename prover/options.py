"""What the commands of `zkmark-prover` share: options, files, and how a command ends.  Light to import."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from protocol.errors import DecodingError, ParameterError, VerificationError
from zkmark.terminal import FAILED, Number, one_line

if TYPE_CHECKING:
    from protocol.keygen import VerificationKey
    from prover.jobs import Resources, Subject
    from prover.keys import Approvals

P = ParamSpec("P")
Command = TypeVar("Command", bound=Callable[..., Any])
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)


def outcome(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the errors of a command into one line (or JSON) and the exit status."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (VerificationError, DecodingError, ParameterError, OSError, MemoryError, UnicodeError) as error:
            if kwargs.get("as_json"):
                check = {"failed_check": error.check} if isinstance(error, VerificationError) else {}
                click.echo(json.dumps({**FAILED, **check, "error": str(error)}))
            click.echo(f"zkmark-prover: {one_line(str(error))}", err=True)
            sys.exit(1 if isinstance(error, VerificationError) else 2)
        except KeyboardInterrupt:
            sys.exit(130)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:  # of this program; Python would end with 1, which says that something is false
            if kwargs.get("as_json"):
                click.echo(json.dumps({**FAILED, "error": repr(error)}))
            traceback.print_exc()
            sys.exit(2)

    return wrapper


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


secret_options = options(
    click.option("--passphrase-file", type=FILE, help="File whose first line is the passphrase."),
    click.option("--key-file", type=FILE, help="File of random bytes instead of a passphrase."),
)
k_min_options = options(
    click.option("--k-min", type=click.IntRange(min=1),
                 help="Triggers to prove, for good: there is no second k_min for a network, nor a way back [default: "
                      "fewest for 128 bits]."),
    click.option("--yes", is_flag=True, help="Fix a --k-min below the default without asking."),
)  # fmt: skip
model_options = options(
    click.option("--model", required=True, type=FILE, help="The suspect's model, ONNX."),
    click.option("--calibration", type=FOLDER, help="Images to calibrate the integer network with, instead of noise."),
    click.option("--preprocess", type=FILE, help="JSON: scale, shift per channel, outputs that count, resize."),
    k_min_options,
)
memory_option = click.option(
    "--memory-limit", type=Number(min=0), metavar="GIB",
    help="Refuse a network that needs more to prove [default: what the machine has].",
)  # fmt: skip
resource_options = options(
    memory_option,
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True,
                 help="Where the network is evaluated and proven; cuda needs the extra of that name, auto takes it "
                      "for large networks, if it is there."),
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                 help="Prove the parts of a proof in this process or on a Ray cluster, which sees the secrets."),
    click.option("--address", metavar="HOST:PORT", help="A running Ray cluster [default: one of this machine]."),
    click.option("--self-check/--no-self-check", default=True, show_default=True,
                 help="Verify what a device or a cluster proved before it is given out."),
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def memory(limit: float | None) -> int:
    """Bytes: the limit in GiB, or what the machine has."""
    from protocol.kernels import cpu

    return cpu.memory() if limit is None else int(limit * 2**30)


def resources(limit: float | None, device: str, engine: str, address: str | None, check: bool) -> Resources:
    """What the options of `resource_options` allow.  Raises ParameterError for what is not there."""
    from protocol import kernels
    from prover.jobs import Resources

    kernels.on(device)
    most = None if limit is None else memory(limit)
    if engine == "local":
        if address is not None:
            raise click.UsageError("--address is of a Ray cluster: give --engine ray")
        return Resources(most, device, None, check)
    from prover.cluster import ray_engine

    return Resources(most, device, ray_engine(address), check)


def warm_up() -> None:
    """Have the kernels ready, and say why that takes long on first use."""
    from protocol.warm_up import warm_up

    warm_up(lambda text: click.echo(f"{text} ...", err=True))


def approve(mk: Path, secret: bytes, about: Subject, k_min: int | None, yes: bool) -> Approvals:
    """As `prover.jobs.approve`, after a word on what a k_min that the owner names fixes.

    One below the default is asked about first, on a terminal and unless `yes`.  Raises ParameterError if it is not
    wanted, and as that does.
    """
    from prover import jobs
    from prover.keys import load_owner

    key, approvals = load_owner(mk, secret)
    if k_min is not None and k_min <= key.vk.h and not approvals.k_min.get(about.network.digest):
        click.echo(f"k_min {k_min} is for good: this network can never be proven with another", err=True)
        if below := jobs.below_default(key.vk, about.freedom_bits, k_min):
            click.echo(f"it is below {below}: a verifier who asks for as much, as by default, rejects it", err=True)
            if not yes and on_a_terminal() and not _confirmed():
                raise ParameterError("nothing was approved")
    return jobs.approve(mk, secret, about, k_min)


def on_a_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _confirmed() -> bool:
    try:
        return click.confirm("Approve it?", err=True)
    except click.Abort:
        return False


def read_key(vk: Path) -> VerificationKey:
    """The verification key in a file.  Raises DecodingError, OSError."""
    from protocol.keygen import MAX_KEY_BYTES, VerificationKey

    return VerificationKey.from_bytes(read(vk, MAX_KEY_BYTES, "verification key"))


def check_pair(digest: bytes, vk: Path) -> None:
    """Raises ParameterError if a file does not hold the key of this digest."""
    if read_key(vk).digest != digest:
        raise ParameterError("the marking key and the verification key do not belong together")


def check_new(*paths: Path) -> None:
    """Before any work: files that can be written at its end, and that overwrite nothing."""
    for path in paths:
        if path.exists():
            raise ParameterError(f"{path} exists; it is not overwritten")
        check_folder(path)
    if len({path.resolve() for path in paths}) < len(paths):
        raise ParameterError("two results cannot go into one file")


def check_folder(path: Path) -> None:
    """Raises ParameterError unless a file can be in the folder of `path`."""
    if not path.resolve().parent.is_dir():
        raise ParameterError(f"{path.parent} is not a folder")


def read(path: Path, cap: int, what: str) -> bytes:
    from prover.keys import read_capped

    return read_capped(path, cap, what)


def say(as_json: bool, result: dict[str, Any], text: str) -> None:
    click.echo(json.dumps(result) if as_json else text)

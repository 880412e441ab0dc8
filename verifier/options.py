"""What the commands of `zkmark-verifier` share: options, files, and how a command ends.  Light to import."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from protocol.errors import DecodingError, ParameterError
from zkmark.terminal import Number, one_line

if TYPE_CHECKING:
    from protocol.keygen import VerificationKey
    from verifier.board import Board
    from verifier.case import Case
    from verifier.check import Publication
    from verifier.client import Remote
    from verifier.policy import Policy
    from zkmark.connect import Tls

P = ParamSpec("P")
Command = TypeVar("Command", bound=Callable[..., Any])
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
MISUSE: dict[str, object] = {"accepted": False, "outcome": "misuse"}
ERRORS = (DecodingError, ParameterError, OSError, MemoryError, UnicodeError)  # which end with status 2


def outcome(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the errors of a command into one line (or JSON) and the exit status."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ERRORS as error:
            if kwargs.get("as_json"):
                click.echo(json.dumps({"accepted": False, "outcome": kind(error), "error": str(error)}))
            click.echo(f"zkmark-verifier: {kind(error)}: {one_line(str(error))}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("zkmark-verifier: interrupted", err=True)
            sys.exit(130)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:  # of this program; Python would end with 1, which is a verdict
            if kwargs.get("as_json"):
                click.echo(json.dumps({"accepted": False, "outcome": kind(error), "error": repr(error)}))
            traceback.print_exc()
            sys.exit(2)

    return wrapper


def kind(error: BaseException) -> str:
    """The word for an error that is no verdict; a fault is one of this program."""
    if isinstance(error, DecodingError):
        return "malformed"
    if not isinstance(error, ERRORS):
        return "fault"
    return "unavailable" if isinstance(error, ConnectionError) else "misuse"


def tool_version() -> str:
    """Of this program."""
    try:
        return version("zkmark")
    except PackageNotFoundError:
        return "from source"


def options(*given: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order of --help."""

    def decorate(command: Command) -> Command:
        for option in reversed(given):
            command = option(command)
        return command

    return decorate


def grouped(build: Callable[..., Any], name: str, *given: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Options that reach the command as one argument `name`: what `build` makes of those that it has parameters for."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            values = {option: kwargs.pop(option) for option in signature(build).parameters}
            return command(*args, **kwargs, **{name: build(**values)})

        return options(*given)(wrapper)  # type: ignore[arg-type]

    return decorate


def _fraction(call: click.Context, option: click.Parameter, text: str | None) -> Fraction | None:
    """The value of an option such as 1/2 or 0.5."""
    if text is not None and not re.fullmatch("[0-9]{1,6}/[1-9][0-9]{0,5}|0?[.][0-9]{1,6}", text):
        raise click.BadParameter("a fraction, as 1/2 or 0.5", call, option)
    return None if text is None else Fraction(text)


def _policy(
    min_bits: float = 128.0, owner: str | None = None, reviewer: str | None = None,
    accept_chosen_labels: bool = False, null_probability: Fraction | None = None, anchor_logs: tuple[str, ...] = (),
) -> Policy:  # fmt: skip
    from protocol.log import LogKey
    from verifier.policy import NULL, Policy

    return Policy(
        min_bits,
        owner=None if owner is None else bytes32(owner, "--owner"),
        reviewer=None if reviewer is None else bytes32(reviewer, "--reviewer"),
        chosen_labels=accept_chosen_labels,
        null=NULL if null_probability is None else null_probability,
        anchor_logs=tuple(map(LogKey.from_text, anchor_logs)),
    )


def _key_policy(owner: str | None, accept_chosen_labels: bool, anchor_logs: tuple[str, ...]) -> Policy:
    return _policy(owner=owner, accept_chosen_labels=accept_chosen_labels, anchor_logs=anchor_logs)


_owner = click.option("--owner", metavar="HEX", help="Public key of the only owner whose keys count.")
_chosen_labels = click.option(
    "--accept-chosen-labels", is_flag=True,
    help="Accept a key whose owner chose the labels: nothing bounds false claims then.",
)  # fmt: skip
_anchor_log = click.option(
    "--anchor-log", "anchor_logs", multiple=True, metavar="TEXT",
    help="Public key of a log that must have taken the key's commitments before its coin fell; several: any of them.",
)  # fmt: skip
key_policy_options = grouped(_key_policy, "policy", _owner, _chosen_labels, _anchor_log)
policy_options = grouped(
    _policy, "policy", _owner,
    click.option("--reviewer", metavar="HEX", help="Public key of the one whose review you trust."),
    click.option("--min-bits", type=Number(min=0), default=128.0, show_default=True,
                 help="Bits of the false-claim bound that you ask for."),
    _chosen_labels,
    click.option("--null-probability", callback=_fraction, metavar="FRACTION",
                 help="With chosen labels: how likely you take a stranger to match a trigger.  1/2 is the belief of "
                      "frontier stitching; for a mark with one target class no probability is a fact [default: 1/2]."),
    _anchor_log,
)  # fmt: skip


@dataclass(frozen=True)
class Reach:
    """How servers are reached, and what finds out when a key was published or stamped, if the options ask for it."""

    tls: Tls | None
    token: str = field(repr=False)
    publication: Publication | None
    stamp: Publication | None

    def remote(self, target: str) -> Remote:
        from verifier.client import Remote

        return Remote(target, self.tls, self.token)


@dataclass(frozen=True)
class _Published:
    """Asks a board.  A batch knows by the fields whether it is asked as before."""

    board: Board
    seen: Path

    def __call__(self, key: VerificationKey) -> dict[str, str | int]:
        from verifier.board import find
        from verifier.check import unix_time_text

        receipt = find(self.board, key, self.seen)
        when = unix_time_text(receipt.entry.unix_time)
        threshold = self.board.threshold
        return {"log": self.board.log.to_text(), "index": receipt.index, "time": when, "witnesses": threshold}


@dataclass(frozen=True)
class _Stamped:
    """Reads a time-stamp.  A batch knows by the fields whether it is the same."""

    response: bytes
    roots: bytes

    def __call__(self, key: VerificationKey) -> dict[str, str | int]:
        from protocol.timestamp import check_timestamp
        from verifier.check import time_text
        from zkmark.terminal import printable

        found = check_timestamp(self.response, self.roots, key.digest)
        return {"time": time_text(found.time), "authority": printable(found.authority)}


def _reach(
    board: str | None, log_key: str | None, seen: Path | None, witness: tuple[str, ...], witnesses: int | None,
    timestamp: Path | None, tsa_roots: Path | None, tls: bool, tls_ca: Path | None, tls_cert: Path | None,
    tls_key: Path | None, token_file: Path | None,
) -> Reach:  # fmt: skip
    from zkmark.connect import read_tls, read_token

    secure = read_tls(tls_ca, tls_cert, tls_key) if tls or tls_ca or tls_cert or tls_key else None
    token = read_token(token_file) if token_file else ""
    return Reach(secure, token, _publication(board, log_key, seen, witness, witnesses, secure),
                 _stamp(timestamp, tsa_roots))  # fmt: skip


def _stamp(timestamp: Path | None, roots: Path | None) -> Publication | None:
    if timestamp is None and roots is None:
        return None
    if timestamp is None or roots is None:
        raise click.UsageError("--timestamp and --tsa-roots go together")
    from protocol.timestamp import MAX_RESPONSE_BYTES, MAX_ROOTS_BYTES

    response = read(timestamp, MAX_RESPONSE_BYTES, "time-stamp")
    authorities = read(roots, MAX_ROOTS_BYTES, "roots of time-stamps")

    return _Stamped(response, authorities)


def _publication(
    board: str | None, log_key: str | None, seen: Path | None, witness: tuple[str, ...], witnesses: int | None,
    tls: Tls | None,
) -> Publication | None:  # fmt: skip
    if board is None and log_key is None and seen is None and not witness and witnesses is None:
        return None
    if board is None or log_key is None or seen is None:
        raise click.UsageError("--board, --log-key and --seen go together")
    from protocol.cosignature import WitnessKey
    from protocol.log import LogKey
    from verifier.board import Board

    known = tuple(WitnessKey.from_text(text) for text in witness)
    where = Board(board, LogKey.from_text(log_key), known, len(known) if witnesses is None else witnesses, tls)
    return _Published(where, seen)


connection_options = grouped(
    _reach, "reach",
    click.option("--board", metavar="HOST:PORT", help="A board on which the key must have been published."),
    click.option("--log-key", metavar="TEXT", help="The public key of the board's log."),
    click.option("--seen", type=NEW_FILE, help="File of the last checkpoint that you saw of it; kept up to date."),
    click.option("--witness", multiple=True, metavar="TEXT",
                 help="Public key of a witness of the log whom you trust; may be repeated."),
    click.option("--witnesses", type=click.IntRange(min=1),
                 help="How many of them must have signed what the log shows [default: all]."),
    click.option("--timestamp", type=FILE, help="File of a time-stamp of the key (RFC 3161), made with `timestamp`."),
    click.option("--tsa-roots", type=FILE, help="PEM file of the time-stamp authorities that you trust."),
    click.option("--tls", is_flag=True, help="Speak TLS, and trust the authorities of this system."),
    click.option("--tls-ca", type=FILE, help="PEM file of the authorities to trust instead; implies --tls."),
    click.option("--tls-cert", type=FILE, help="PEM file of your certificate, for a server that asks for one."),
    click.option("--tls-key", type=FILE, help="PEM file of its key."),
    click.option("--token-file", type=FILE, help="File with the token that the prover gave you."),
)  # fmt: skip


def _case(
    vk: Path, model: Path, proof: Path | None, prover: str | None, nonce: str | None, purpose: str, claimant: str,
    verifier: str, calibration: Path | None, preprocess: Path | None, images: Path | None, without_fidelity: bool,
    reference: Path | None, review: Path | None,
) -> Case:  # fmt: skip
    from verifier.case import Case

    return Case(
        vk, model, proof, prover, None if nonce is None else bytes32(nonce, "--nonce"), purpose, claimant, verifier,
        calibration, preprocess, images, without_fidelity, reference, review,
    )  # fmt: skip


case_options = grouped(
    _case, "case",
    click.option("--vk", required=True, type=FILE, help="The owner's verification key."),
    click.option("--model", required=True, type=FILE, help="The suspect's model, ONNX, as the suspect gave it out."),
    click.option("--proof", type=FILE, help="A claim file, to check offline."),
    click.option("--prover", metavar="HOST:PORT", help="A prover server, to ask for a claim."),
    click.option("--nonce", metavar="HEX", help="32 bytes that you drew for this claim; with --prover new ones."),
    click.option("--purpose", default="", help="What the claim is for; part of the statement."),
    click.option("--claimant", default="", help="Who claims; part of the statement."),
    click.option("--verifier", default="", help="Who you are; part of the statement."),
    click.option("--calibration", type=FOLDER, help="Images to calibrate the integer network with, instead of noise."),
    click.option("--preprocess", type=FILE, help="JSON: scale, shift per channel, outputs that count, resize."),
    click.option("--images", type=FOLDER, help="Your images of the task (200 are enough), for the fidelity floor."),
    click.option("--without-fidelity", is_flag=True, help="Do not compare the integer network with the float model."),
    click.option("--reference", type=FILE, help="ONNX classifier that knows what natural triggers really show."),
    click.option("--review", type=FILE, help="Signed review of the opened triggers, made with `review`."),
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def bytes32(text: str, option: str) -> bytes:
    """32 bytes in hexadecimal.  Raises click.UsageError."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 32:
        raise click.UsageError(f"{option} is 64 hexadecimal digits")
    return value


def read(path: Path, cap: int, what: str) -> bytes:
    """A file of at most `cap` bytes.  Raises DecodingError for a longer one, OSError."""
    with open(path, "rb") as file:
        data = file.read(cap + 1)
    if len(data) > cap:
        raise DecodingError(f"{what}: more than {cap} bytes")
    return data


def check_new(*paths: Path | None) -> None:
    """Before any work: results that can be written at its end, and that overwrite nothing."""
    for path in paths:
        if path is not None and path.exists():
            raise ParameterError(f"{path} exists; it is not overwritten")
        if path is not None and not path.resolve().parent.is_dir():
            raise ParameterError(f"{path.parent} is not a folder")


def write_new(path: Path, data: bytes) -> None:
    """A file that was not there.  Raises OSError."""
    with open(path, "xb") as file:
        file.write(data)


def replace_file(path: Path, data: bytes) -> None:
    """All or nothing, also if the machine stops in the middle.  Raises OSError."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise

"""`zkmark-verifier`: check a key or a claim.  Exit status 0 accepted, 1 rejected or undecided, 2 malformed or misuse.

Heavy modules are imported when a command needs them, so that --help answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click

from protocol.errors import DecodingError, ParameterError, VerificationError

if TYPE_CHECKING:
    from protocol.keygen import VerificationKey
    from protocol.transcript import Channel
    from verifier.check import Obtain, Publication, Subject, Verdict

P = ParamSpec("P")
Command = TypeVar("Command", bound=Callable[..., Any])
Report = Callable[[str, float], None]
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
MAX_MODEL_BYTES = 256 << 20
MAX_PHASES = 32  # lines of progress
MAX_NAMES_BYTES = 1 << 20
MAX_UNIX_TIME = 253402300799  # the year 9999


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Check that a suspect's model carries an owner's secret watermark, without learning the watermark."""


def outcome(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the errors of a command into one line (or JSON) and the exit status."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (DecodingError, ParameterError, OSError, MemoryError, UnicodeError) as error:
            if kwargs.get("as_json"):
                kinds = {DecodingError: "malformed", OSError: "unavailable", ConnectionError: "unavailable"}
                result = {"accepted": False, "outcome": kinds.get(type(error), "misuse"), "error": str(error)}
                click.echo(json.dumps(result))
            click.echo(f"zkmark-verifier: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)

    return wrapper


def board_options(command: Command) -> Command:
    """The options that say on which board a key must have been published."""
    for option in (
        click.option("--seen", type=NEW_FILE, help="File of the last checkpoint that you saw of it; kept up to date."),
        click.option("--log-key", metavar="TEXT", help="The public key of the board's log."),
        click.option("--board", metavar="HOST:PORT", help="A board on which the key must have been published."),
    ):
        command = option(command)
    return command


@cli.command("key")
@click.argument("vk", type=FILE)
@click.option("--sheet", type=click.Path(dir_okay=False, path_type=Path), help="Write a PNG of the opened triggers.")
@click.option("--reference", type=FILE, help="ONNX classifier that knows what natural triggers really show.")
@board_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@outcome
def key_command(
    vk: Path, sheet: Path | None, reference: Path | None, board: str | None, log_key: str | None, seen: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Check a verification key, show what its owner opened, and when it was published."""
    from protocol.keygen import MAX_KEY_BYTES, VerificationKey
    from verifier.check import Verdict, check_owner
    from verifier.policy import Policy

    verdict, ask = Verdict(), _publication(board, log_key, seen)
    known = None if reference is None else _read(reference, MAX_MODEL_BYTES, "model")
    key = VerificationKey.from_bytes(_read(vk, MAX_KEY_BYTES, "verification key"))
    try:
        check_owner(key, known, Policy(), verdict)
        if ask is not None:
            verdict.published = ask(key)
        verdict.outcome = "accepted"
    except VerificationError as error:
        verdict.failed_check, verdict.message = error.check, str(error)
        _finish(verdict, as_json)
    from verifier.report import contact_sheet

    if sheet is not None:
        contact_sheet(key, sheet)
    _finish(verdict, as_json)


@cli.command("review")
@click.argument("vk", type=FILE)
@click.option("--secret", required=True, type=NEW_FILE, help="Your secret to sign with; made if there is none.")
@click.option("--out", required=True, type=NEW_FILE, help="New file for the review.")
@click.option("--names", type=FILE, help="Text file with the names of the classes, one a line.")
@click.option("--open", "show", is_flag=True, help="Open the page in your browser.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@outcome
def review_command(vk: Path, secret: Path, out: Path, names: Path | None, show: bool, as_json: bool) -> None:
    """Judge the opened triggers of a key, on a page in the browser of this machine, and sign what you found."""
    from protocol.keygen import MAX_KEY_BYTES, VerificationKey
    from verifier.check import Verdict, check_owner
    from verifier.ground_truth import check_review
    from verifier.policy import Policy
    from verifier.review import MAX_REVIEW_BYTES, Judgment, Review, reviewer_secret, sign_review
    from verifier.review_page import Desk, collect

    _check_new(out)
    key = VerificationKey.from_bytes(_read(vk, MAX_KEY_BYTES, "verification key"))
    lines = _read(names, MAX_NAMES_BYTES, "names").decode().splitlines() if names else []
    verdict, seed = Verdict(), reviewer_secret(secret)

    def save(judgments: tuple[Judgment, ...]) -> None:
        _write_new(out, sign_review(seed, key, judgments).to_bytes())

    def ready(address: str) -> None:
        click.echo(f"judge {len(key.opened)} triggers at {address}", err=True)
        if show:
            click.launch(address)

    try:
        check_owner(key, None, Policy(), verdict)
        collect(Desk(key, lines, save), ready)
        review = Review.from_bytes(_read(out, MAX_REVIEW_BYTES, "review"))
        verdict.reviewer, verdict.void_items = review.reviewer.hex(), check_review(key, review)
        verdict.outcome = "accepted"
    except VerificationError as error:
        verdict.failed_check, verdict.message = error.check, str(error)
    _finish(verdict, as_json)


@cli.command("verify")
@click.option("--vk", required=True, type=FILE, help="The owner's verification key.")
@click.option("--model", required=True, type=FILE, help="The suspect's model, ONNX, as you got it from the suspect.")
@click.option("--proof", type=FILE, help="A claim file, to check offline.")
@click.option("--prover", metavar="HOST:PORT", help="A prover server, to ask for a claim.")
@click.option("--interactive", is_flag=True, help="Draw the challenges while the prover proves (with --prover).")
@click.option("--nonce", metavar="HEX", help="32 bytes that you drew for this claim; with --prover new ones.")
@click.option("--purpose", default="", help="What the claim is for; part of the statement.")
@click.option("--claimant", default="", help="Who claims; part of the statement.")
@click.option("--verifier", default="", help="Who you are; part of the statement.")
@click.option("--calibration", type=FOLDER, help="Images to calibrate the integer network with, instead of noise.")
@click.option("--preprocess", type=FILE, help="JSON: scale, shift per channel, outputs of the model that count.")
@click.option("--images", type=FOLDER, help="Your images of the task (200 are enough), for the fidelity floor.")
@click.option("--without-fidelity", is_flag=True, help="Do not compare the integer network with the float model.")
@click.option("--reference", type=FILE, help="ONNX classifier that knows what natural triggers really show.")
@click.option("--review", type=FILE, help="Signed review of the opened triggers, made with `review`.")
@click.option("--reviewer", metavar="HEX", help="Public key of the one whose review you trust.")
@board_options
@click.option("--min-bits", type=click.FloatRange(min=0), default=128.0, show_default=True,
              help="Bits of the false-claim bound that you ask for.")  # fmt: skip
@click.option("--html", type=NEW_FILE, help="New file for the verdict as a page for people.")
@click.option("--save-claim", type=NEW_FILE, help="New file for the claim of the prover (--prover), to check it again.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.pass_context
@outcome
def verify_command(
    call: click.Context, /, vk: Path, model: Path, proof: Path | None, prover: str | None, interactive: bool,
    nonce: str | None, purpose: str, claimant: str, verifier: str, calibration: Path | None,
    preprocess: Path | None, images: Path | None, without_fidelity: bool, reference: Path | None, review: Path | None,
    reviewer: str | None, board: str | None, log_key: str | None, seen: Path | None, min_bits: float,
    html: Path | None, save_claim: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Check a claim about a model: from a file (--proof) or from a prover (--prover)."""
    if (proof is None) == (prover is None):
        raise click.UsageError("give one of --proof and --prover")
    if (images is None) != without_fidelity:
        raise click.UsageError("give one of --images and --without-fidelity")
    if proof is not None and (nonce is None or interactive):
        raise click.UsageError("--proof needs the --nonce that you gave the owner, and is not interactive")
    if save_claim is not None and (proof is not None or interactive):
        raise click.UsageError("--save-claim keeps what a prover sends, and an interactive claim convinces only once")
    if (review is None and reviewer is not None) or (review is not None and reference is not None):
        raise click.UsageError("--reviewer says whose --review counts; a --reference judges without one")
    _check_new(html, save_claim)
    fresh = os.urandom(32) if nonce is None else _bytes32(nonce, "--nonce")
    ask = _publication(board, log_key, seen)
    trusted = None if reviewer is None else _bytes32(reviewer, "--reviewer")

    from ml.inputs import image_folder, read_derivation
    from protocol.argument import Context
    from protocol.claim import MAX_CLAIM_BYTES
    from protocol.keygen import MAX_KEY_BYTES, VerificationKey
    from protocol.transcript import FiatShamir
    from verifier.check import Subject, check
    from verifier.policy import Policy
    from verifier.review import MAX_REVIEW_BYTES, Review

    policy = Policy(min_bits, reviewer=trusted)
    key = VerificationKey.from_bytes(_read(vk, MAX_KEY_BYTES, "verification key"))
    shape = key.parameters.shape
    derivation, calibration_images = read_derivation(calibration, preprocess, shape)
    subject = Subject(
        key=key,
        model=_read(model, MAX_MODEL_BYTES, "model"),
        context=Context(purpose, claimant, verifier, fresh),
        derivation=derivation,
        calibration=calibration_images,
        images=image_folder(images, shape) if images else None,
        reference=_read(reference, MAX_MODEL_BYTES, "model") if reference else None,
        review=Review.from_bytes(_read(review, MAX_REVIEW_BYTES, "review")) if review else None,
        publication=ask,
    )
    _warm_up()
    if proof is not None:
        claim = _read(proof, MAX_CLAIM_BYTES, "claim")
        verdict = check(subject, lambda key: (claim, FiatShamir()), policy)
    else:
        with _progress(as_json) as report:
            verdict = check(subject, _online(subject, str(prover), interactive, save_claim, report), policy)
    if html is not None:
        from datetime import UTC, datetime

        from verifier.html import verdict_page

        page = verdict_page(verdict, key, _evidence(call, verdict), datetime.now(UTC))
        _write_new(html, page.encode())
    _finish(verdict, as_json)


def _publication(board: str | None, log_key: str | None, seen: Path | None) -> Publication | None:
    """What finds out where and when a key was published, if the options ask for it."""
    if board is None and log_key is None and seen is None:
        return None
    if board is None or log_key is None or seen is None:
        raise click.UsageError("--board, --log-key and --seen go together")
    from datetime import UTC, datetime

    from protocol.log import LogKey
    from verifier.board import find

    log = LogKey.from_text(log_key)

    def ask(key: VerificationKey) -> dict[str, str | int]:
        receipt = find(board, log, key, seen)
        when = datetime.fromtimestamp(min(receipt.entry.unix_time, MAX_UNIX_TIME), UTC)
        return {"log": log_key, "index": receipt.index, "time": f"{when:%Y-%m-%d %H:%M:%S} UTC"}

    return ask


def _online(subject: Subject, target: str, interactive: bool, keep: Path | None, report: Report) -> Obtain:
    """How `check` gets a claim from the prover at `target`; the claim goes to the file `keep`, too."""
    from verifier.client import obtain_claim

    def obtain(key: VerificationKey) -> tuple[bytes, Channel]:
        claim, channel = obtain_claim(
            target, key, subject.model, subject.derivation, subject.context, interactive, progress=report
        )
        if keep is not None:
            _write_new(keep, claim)
        return claim, channel

    return obtain


def _evidence(call: click.Context, verdict: Verdict) -> list[tuple[str, str]]:
    """For the page: how to see again what it says, as pairs of what and the command."""
    from verifier.html import quote

    given = {**call.params, "html": None, "save_claim": None, "as_json": False, "nonce": verdict.context["nonce"]}
    how = "The whole claim. It is decided by exit status 0 (accepted) or 1, and by the words on the screen."
    if kept := call.params["save_claim"]:
        given |= {"proof": kept, "prover": None}
    elif call.params["prover"]:
        how = "The claim was not kept: this asks the prover for a new one, with a new nonce."
        given["nonce"] = None
    again = ["zkmark-verifier", "verify"]
    for option in call.command.params:
        value = given[str(option.name)]
        if value is True:
            again.append(option.opts[0])
        elif value not in (None, False, "", option.default):
            again += [option.opts[0], str(value)]

    def line(*words: object) -> str:
        return " ".join(quote(str(word)) for word in words)

    show_key = line("zkmark-verifier", "key", given["vk"], "--sheet", "sheet.png")
    found = [
        ("The key, its digest, and all opened triggers.", show_key),
        ("The digest of the model file.", line("sha256sum", given["model"])),
        (how, line(*again)),
    ]
    if verdict.false_claim_bits is not None:
        numbers = f"{verdict.h}, {verdict.classes}, {verdict.k_min}, {verdict.freedom_bits!r}"
        program = f"from protocol.soundness import false_claim_bits; print(false_claim_bits({numbers}))"
        found.append(("The chance of a false accusation, in bits.", line("python", "-c", program)))
    return found


def _warm_up() -> None:
    """Have the kernels ready, and say why that takes long on first use."""
    from protocol.warm_up import warm_up

    warm_up(lambda text: click.echo(f"{text} ...", err=True))


def _finish(verdict: Verdict, as_json: bool) -> NoReturn:
    """Print the verdict and exit with its status."""
    if as_json:
        click.echo(json.dumps(verdict.to_json(), indent=2))
    else:
        from rich.console import Console

        from verifier.report import print_verdict

        print_verdict(verdict, Console(highlight=False))
    sys.exit(0 if verdict.accepted else 1)


@contextmanager
def _progress(quiet: bool) -> Iterator[Report]:
    """Where progress goes: a bar on a terminal, a line per phase elsewhere, nowhere when quiet."""
    if not quiet and sys.stderr.isatty():
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda phase, fraction: bar.update(task, description=escape(phase), completed=fraction)
        return
    seen: list[str] = []

    def line(phase: str, fraction: float) -> None:
        if not quiet and phase not in seen and len(seen) < MAX_PHASES:
            seen.append(phase)
            click.echo(f"{phase} ...", err=True)

    yield line


def _read(path: Path, cap: int, what: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(cap + 1)
    if len(data) > cap:
        raise DecodingError(f"{what}: more than {cap} bytes")
    return data


def _check_new(*paths: Path | None) -> None:
    """Before any work: results that can be written at its end, and that overwrite nothing."""
    for path in paths:
        if path is not None and path.exists():
            raise ParameterError(f"{path} exists; it is not overwritten")
        if path is not None and not path.resolve().parent.is_dir():
            raise ParameterError(f"{path.parent} is not a folder")


def _write_new(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)


def _bytes32(text: str, option: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 32:
        raise click.UsageError(f"{option} is 64 hexadecimal digits")
    return value


def main() -> None:
    """The console script."""
    cli()

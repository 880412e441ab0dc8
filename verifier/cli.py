"""`zkmark-verifier`: check a key or a claim.

Exit status 0 accepted, 1 rejected or undecided, 2 malformed input, misuse, a server that is unavailable, or a fault.

Heavy modules are imported when a command needs them, so that --help answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from protocol.errors import ParameterError, VerificationError
from verifier.options import (
    FILE,
    MISUSE,
    NEW_FILE,
    Reach,
    case_options,
    check_new,
    connection_options,
    json_option,
    key_policy_options,
    outcome,
    policy_options,
    read,
    write_new,
)
from zkmark.terminal import Number, Program, Report, progress, quiet_grpc

if TYPE_CHECKING:
    from protocol.keygen import VerificationKey
    from protocol.transcript import Channel
    from verifier.case import Case
    from verifier.check import Obtain, Subject, Verdict
    from verifier.policy import Policy

MAX_NAMES_BYTES = 1 << 20
TABLE_WIDTH = 160  # columns, where no terminal says how many

_timeout = click.option("--timeout", type=Number(min=1), default=900.0, show_default=True,
                        help="Seconds to wait for the claim of a prover, with all tries.")  # fmt: skip


@click.group(cls=Program, misuse=MISUSE, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Check that a suspect's model carries an owner's secret watermark, without learning the watermark."""


@cli.command("key")
@outcome
@click.argument("vk", type=FILE)
@click.option("--sheet", type=NEW_FILE, help="New file for a picture (PNG) of the opened triggers with their labels.")
@click.option("--reference", type=FILE, help="ONNX classifier that knows what natural triggers really show.")
@key_policy_options
@connection_options
@json_option
def key_command(
    vk: Path, sheet: Path | None, reference: Path | None, policy: Policy, reach: Reach, as_json: bool
) -> None:
    """Check a verification key, show what its owner opened, and when it was published."""
    from protocol.keygen import MAX_KEY_BYTES, VerificationKey
    from verifier.case import MAX_MODEL_BYTES
    from verifier.check import check_key
    from verifier.report import contact_sheet

    check_new(sheet)
    known = None if reference is None else read(reference, MAX_MODEL_BYTES, "model")
    key = VerificationKey.from_bytes(read(vk, MAX_KEY_BYTES, "verification key"))
    verdict = check_key(key, policy, reference=known, publication=reach.publication, stamp=reach.stamp)
    if verdict.accepted and sheet is not None:
        shown = contact_sheet(key, sheet)
        if shown < len(key.opened):
            click.echo(f"{sheet} shows the first {shown} of {len(key.opened)} opened triggers", err=True)
    _finish(verdict, as_json)


@cli.command("review")
@click.argument("vk", type=FILE)
@click.option("--secret", required=True, type=NEW_FILE, help="Your secret to sign with; made if there is none.")
@click.option("--out", required=True, type=NEW_FILE, help="New file for the review.")
@click.option("--names", type=FILE, help="Text file with the names of the classes, one a line.")
@click.option("--open", "show", is_flag=True, help="Open the page in your browser.")
@json_option
@outcome
def review_command(vk: Path, secret: Path, out: Path, names: Path | None, show: bool, as_json: bool) -> None:
    """Judge the opened triggers of a key, on a page in the browser of this machine, and sign what you found."""
    from protocol.keygen import MAX_KEY_BYTES, VerificationKey
    from verifier.check import Verdict, check_owner
    from verifier.ground_truth import check_review
    from verifier.policy import Policy
    from verifier.review import MAX_REVIEW_BYTES, Judgment, Review, reviewer_secret, sign_review
    from verifier.review_page import Desk, collect

    check_new(out)
    key = VerificationKey.from_bytes(read(vk, MAX_KEY_BYTES, "verification key"))
    lines = read(names, MAX_NAMES_BYTES, "names").decode().splitlines() if names else []
    verdict, seed = Verdict(), reviewer_secret(secret)

    def save(judgments: tuple[Judgment, ...]) -> None:
        write_new(out, sign_review(seed, key, judgments).to_bytes())

    def ready(address: str) -> None:
        click.echo(f"judge {len(key.opened)} triggers at {address}", err=True)
        if show:
            click.launch(address)

    try:
        check_owner(key, None, Policy(), verdict)
        collect(Desk(key, lines, save), ready)
        review = Review.from_bytes(read(out, MAX_REVIEW_BYTES, "review"))
        verdict.reviewer, verdict.void_items = review.reviewer.hex(), check_review(key, review)
        verdict.outcome = "accepted"
    except VerificationError as error:
        verdict.failed_check, verdict.message = error.check, str(error)
    _finish(verdict, as_json)


@cli.command("verify")
@outcome
@case_options
@click.option("--interactive", is_flag=True, help="Draw the challenges while the prover proves (with --prover).")
@_timeout
@policy_options
@connection_options
@click.option("--html", type=NEW_FILE, help="New file for the verdict as a page for people.")
@click.option("--save-claim", type=NEW_FILE, help="New file for the claim of the prover (--prover), to check it again.")
@json_option
@click.pass_context
def verify_command(
    call: click.Context, /, case: Case, interactive: bool, timeout: float, policy: Policy, reach: Reach,
    html: Path | None, save_claim: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Check a claim about a model: from a file (--proof) or from a prover (--prover)."""
    if case.proof is not None and interactive:
        raise ParameterError("--proof is not interactive")
    if save_claim is not None and (case.proof is not None or interactive):
        raise ParameterError("--save-claim keeps what a prover sends, and an interactive claim convinces only once")
    if case.review is None and policy.reviewer is not None:
        raise ParameterError("--reviewer says whose --review counts")
    check_new(html, save_claim)

    from verifier.check import check

    subject = case.subject(case.nonce or os.urandom(32), reach.publication, reach.stamp)
    claim = case.claim()
    _warm_up()
    with progress(as_json) as report:
        if claim is not None:
            obtain = _offline(claim)
        elif interactive:
            obtain = _interactive(case, subject, reach, timeout, report)
        else:
            obtain = _online(case, subject, reach, timeout, save_claim, report)
        verdict = check(subject, obtain, policy, progress=report)
    if html is not None:
        from verifier.html import verdict_page

        page = verdict_page(verdict, subject.key, _evidence(call, verdict))
        write_new(html, page.encode())
    _finish(verdict, as_json)


@cli.command("batch")
@outcome
@click.argument("cases", type=FILE)
@click.option("--results", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="Folder for verdicts and claims; what it holds already is not done again.")  # fmt: skip
@_timeout
@policy_options
@connection_options
@click.option("--html", type=NEW_FILE, help="New file for the table as a page for people.")
@json_option
def batch_command(
    cases: Path, results: Path, timeout: float, policy: Policy, reach: Reach, html: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Check many claims: a list of cases in TOML or CSV, with the options of `verify` as words.

    Goes on after a case that fails.  Exit status 1 if any is rejected or undecided, else 2 if any could not be judged.
    """
    from verifier.batch import check_batch, read_list

    check_new(html)
    listed = read_list(cases)
    if reach.token and len({case.prover for case in listed.values()} - {None}) > 1:
        raise ParameterError("a token is for one prover, and others may not see it: make a list for each")
    _warm_up()
    found = []
    with progress(as_json or not sys.stderr.isatty()) as report:
        for result in check_batch(
            listed, results, policy, remote=reach.remote, publication=reach.publication, stamp=reach.stamp,
            progress=report, timeout_s=timeout,
        ):  # fmt: skip
            found.append(result)
            click.echo(f"{result.name}: {result.outcome}", err=True)
    if html is not None:
        from verifier.html import batch_page

        write_new(html, batch_page(found).encode())
    if as_json:
        click.echo(json.dumps([result.to_json() for result in found], indent=2))
    else:
        from rich.console import Console

        from verifier.report import print_batch

        print_batch(found, Console(highlight=False, width=None if sys.stdout.isatty() else TABLE_WIDTH))
    if any(result.verdict is not None and not result.verdict.accepted for result in found):
        sys.exit(1)
    sys.exit(2 if any(result.verdict is None for result in found) else 0)


def _offline(claim: bytes) -> Obtain:
    from protocol.transcript import FiatShamir

    return lambda _: (claim, FiatShamir())


def _online(case: Case, subject: Subject, reach: Reach, timeout: float, keep: Path | None, report: Report) -> Obtain:
    """How `check` gets a claim from the prover of the case as a job; the claim goes to the file `keep`, too."""
    from protocol.transcript import FiatShamir
    from verifier.client import obtain_claim

    def obtain(key: VerificationKey) -> tuple[bytes, Channel]:
        try:
            claim = obtain_claim(reach.remote(str(case.prover)), subject, progress=report, timeout_s=timeout)
        except ConnectionError as error:
            again = f"--nonce {subject.context.nonce.hex()}"
            raise ConnectionError(f"{error}; to go on with the same job, try again with {again}") from None
        if keep is not None:
            write_new(keep, claim)
        return claim, FiatShamir()

    return obtain


def _interactive(case: Case, subject: Subject, reach: Reach, timeout: float, report: Report) -> Obtain:
    """How `check` gets a claim from the prover of the case while it draws the coins."""
    from verifier.interactive import obtain_interactively

    remote = reach.remote(str(case.prover))
    return lambda _: obtain_interactively(remote, subject, progress=report, timeout_s=timeout)


def _evidence(call: click.Context, verdict: Verdict) -> list[tuple[str, str]]:
    """For the page: how to see again what it says, as pairs of what and the command."""
    from verifier.html import quote

    given = {**call.params, "html": None, "save_claim": None, "as_json": False, "nonce": verdict.context["nonce"]}
    how = "The whole claim. It is decided by exit status 0 (accepted) or 1, and by the words on the screen."
    if kept := call.params["save_claim"]:
        given |= {"proof": kept, "prover": None}
        unused = ("token_file", "timeout", *(() if given["board"] else ("tls", "tls_ca", "tls_cert", "tls_key")))
        given |= dict.fromkeys(unused)  # how the prover was reached: whoever checks again has no such files
    elif call.params["prover"]:
        how = "The claim was not kept: this asks the prover for a new one, with a new nonce."
        given["nonce"] = None
    again = ["zkmark-verifier", "verify"]
    for option in call.command.params:
        given_values = given[str(option.name)]
        for value in given_values if isinstance(given_values, tuple) else (given_values,):
            if value is True:
                again.append(option.opts[0])
            elif value not in (None, False, "", option.default):
                again += [option.opts[0], str(value)]

    def line(*words: object) -> str:
        return " ".join(quote(str(word)) for word in words)

    accept = ["--accept-chosen-labels"] if given["accept_chosen_labels"] else []
    show_key = line("zkmark-verifier", "key", given["vk"], "--sheet", "sheet.png", *accept)
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


def main() -> None:
    """The console script."""
    quiet_grpc()
    cli()


if __name__ == "__main__":
    main()

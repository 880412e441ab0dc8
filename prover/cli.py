"""`zkmark-prover`: the owner's commands.  Exit status 0 done, 1 no proof can be made, 2 malformed input or misuse.

Heavy modules are imported when a command needs them, so that --help answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prover.keeping import backup, rekey, restore
from prover.operations import doctor, requests, serve, token
from prover.options import (
    FILE,
    FOLDER,
    NEW_FILE,
    approve,
    check_new,
    check_pair,
    json_option,
    memory,
    model_options,
    outcome,
    read,
    resource_options,
    resources,
    say,
    secret_options,
    warm_up,
)
from prover.publication import board, connection, connection_options, publish, timestamp, witness
from zkmark.terminal import FAILED, Program, progress, quiet_grpc

if TYPE_CHECKING:
    from ml.quantise import Derivation
    from prover.jobs import Images

MAX_MODEL_BYTES = 256 << 20
ELL = 512


@click.group(
    cls=Program, misuse=FAILED,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "ZKMARK_PROVER"},
)  # fmt: skip
def cli() -> None:
    """Make a secret watermark key, and prove that a model carries the watermark without revealing it.

    Every option can be given as a variable, too: --listen of serve is ZKMARK_PROVER_SERVE_LISTEN.
    """


@cli.command("keygen")
@click.option("--shape", required=True, help="Channels, height, width of the images: 1,28,28.")
@click.option("--classes", required=True, type=click.IntRange(min=2), help="Number of classes.")
@click.option("--ell", type=click.IntRange(min=1),
              help="Number of triggers; half of them stay secret [default: 512].")  # fmt: skip
@click.option("--triggers", type=FOLDER,
              help="Your own trigger images, each hard to guess (128 bits), instead of abstract ones.")  # fmt: skip
@click.option("--chosen-labels", type=FILE, metavar="CSV",
              help="Choose the labels yourself: lines file,label for --triggers.  Nothing bounds false claims under "
                   "such a key, and a verifier has to accept it explicitly.")  # fmt: skip
@click.option("--mk", type=NEW_FILE, help="New file for the secret marking key.")
@click.option("--vk", type=NEW_FILE, help="New file for the public verification key.")
@click.option("--plan", is_flag=True, help="Only say what such a key would cost and prove.")
@click.option("--board", "target", metavar="HOST:PORT",
              help="A board whose log takes the commitments before the coin falls, so that nobody can search for a "
                   "lucky one.  After a crash, the same command goes on with what is pending.")  # fmt: skip
@click.option("--log-key", metavar="TEXT", help="The public key of the board's log.")
@connection_options
@secret_options
@json_option
@outcome
def keygen_command(
    shape: str, classes: int, ell: int | None, triggers: Path | None, chosen_labels: Path | None, mk: Path | None,
    vk: Path | None, plan: bool, target: str | None, log_key: str | None, tls: bool, tls_ca: Path | None,
    tls_cert: Path | None, tls_key: Path | None, token_file: Path | None, passphrase_file: Path | None,
    key_file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Make a key: trigger images, their commitments, and labels by a joint coin."""
    if chosen_labels is not None and (triggers is None or ell is not None or plan):
        raise click.UsageError("--chosen-labels names the images of --triggers: without --ell and --plan")
    if (target is None) != (log_key is None):
        raise click.UsageError("--board and --log-key go together")
    from prover.plan import plan_key

    dimensions = _shape(shape)
    if plan:
        found = plan_key(dimensions, classes, ell or ELL)
        say(as_json, found.to_json(), found.text())
        return
    if mk is None or vk is None:
        raise click.UsageError("give --mk and --vk, or --plan")
    from ml.inputs import labeled_images
    from ml.triggers import abstract_images, load_folder
    from protocol.keygen import KeyParameters, LabelRule, PendingKey, commit_key
    from protocol.log import LogKey
    from prover.keys import read_secret, save_marking_key, write_file
    from prover.pending import anchored_key, pending_path

    log = None if log_key is None else LogKey.from_text(log_key)
    if log is None or not pending_path(mk).exists():
        check_new(mk, vk, pending_path(mk))
    images, labels = labeled_images(chosen_labels, triggers, dimensions) if chosen_labels and triggers else (None, None)
    rule = LabelRule.JOINT_COIN if labels is None else LabelRule.CHOSEN
    parameters = KeyParameters(dimensions, classes, (ell or ELL) if labels is None else len(labels), rule)
    secret = read_secret(passphrase_file, key_file, confirm=True)
    with progress(as_json) as report:

        def commit() -> PendingKey:
            given = images
            if given is None:
                count = parameters.ell
                given = load_folder(triggers, dimensions, count) if triggers else abstract_images(count, dimensions)
            return commit_key(parameters, given, labels=labels, progress=lambda done, of: report("commit", done / of))

        if log is None or target is None:
            key = commit().finish()
            save_marking_key(mk, key, secret)
            write_file(vk, key.vk.to_bytes(), 0o644)
        else:
            from prover.board import anchor

            secure, token = connection(tls, tls_ca, tls_cert, tls_key, token_file)
            address, trusted = target, log
            key = anchored_key(
                mk, vk, secret, parameters, commit,
                lambda digest: anchor(address, trusted, digest, tls=secure, token=token),
            )  # fmt: skip
    result = {
        "done": True, "vk_digest": key.vk.digest.hex(), "owner": key.vk.owner_public_key.hex(), "ell": parameters.ell,
        "h": key.vk.h, "label_rule": rule.name.lower(), "anchored": key.vk.anchor is not None, "mk": str(mk),
        "vk": str(vk),
    }  # fmt: skip
    say(as_json, result, f"{parameters.ell} triggers, {key.vk.h} of them secret: {mk} (keep it), {vk} (publish it)")


@cli.command("approve")
@click.option("--mk", required=True, type=FILE, help="The marking key.")
@model_options
@secret_options
@json_option
@outcome
def approve_command(
    mk: Path, model: Path, calibration: Path | None, preprocess: Path | None, k_min: int | None, yes: bool,
    passphrase_file: Path | None, key_file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Allow a server of this key to prove claims about a model, with one k_min for ever.

    Spends one of the networks that a key may answer for in its life, also when no proof can be made.
    """
    from prover.jobs import state_folder, subject
    from prover.keys import load_owner, read_secret
    from prover.requests import Networks
    from prover.state import State

    secret = read_secret(passphrase_file, key_file)
    key = load_owner(mk, secret)[0].vk
    derivation, images = _derivation(calibration, preprocess, key.parameters.shape)
    about = subject(read(model, MAX_MODEL_BYTES, "model"), derivation, images, key)
    approvals = approve(mk, secret, about, k_min, yes)
    if state_folder(mk).is_dir():  # of a server that runs with this key, which need not derive it
        Networks(State(state_folder(mk))).keep(about.network)
    k_min, left = approvals.k_min[about.network.digest], approvals.budget - len(approvals.k_min)
    result = {
        "done": True, "network_digest": about.network.digest.hex(), "model_digest": about.model_digest.hex(),
        "k_min": k_min, "h": key.h, "budget_left": left,
    }  # fmt: skip
    say(as_json, result, f"approved with k_min {k_min} of {key.h}; {left} more networks can be approved")


@cli.command("prove")
@click.option("--mk", required=True, type=FILE, help="The marking key.")
@click.option("--vk", required=True, type=FILE, help="The verification key.")
@model_options
@click.option("--nonce", required=True, metavar="HEX", help="The 32 bytes that the verifier drew for this claim.")
@click.option("--purpose", default="", help="What the claim is for, as agreed with the verifier.")
@click.option("--claimant", default="", help="Who claims.")
@click.option("--verifier", default="", help="Whom the claim is for.")
@click.option("--out", required=True, type=NEW_FILE, help="New file for the claim.")
@resource_options
@secret_options
@json_option
@outcome
def prove_command(
    mk: Path, vk: Path, model: Path, calibration: Path | None, preprocess: Path | None, k_min: int | None, yes: bool,
    nonce: str, purpose: str, claimant: str, verifier: str, out: Path, memory_limit: float | None, device: str,
    engine: str, address: str | None, self_check: bool, passphrase_file: Path | None, key_file: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Write a claim about a model to a file.  Counts as an approval of the model, with one k_min for ever."""
    nonce_bytes = _nonce(nonce)
    check_new(out)
    from protocol.argument import Context
    from prover.jobs import choose_k_min, find_device, make_claim, subject
    from prover.keys import load_owner, read_secret, write_file

    context = Context(purpose, claimant, verifier, nonce_bytes)
    use = resources(memory_limit, device, engine, address, self_check)
    secret = read_secret(passphrase_file, key_file)
    key, approvals = load_owner(mk, secret)
    check_pair(key.vk.digest, vk)
    derivation, images = _derivation(calibration, preprocess, key.vk.parameters.shape)
    warm_up()
    with progress(as_json) as report:
        report("derive", 0.0)
        about = subject(read(model, MAX_MODEL_BYTES, "model"), derivation, images, key.vk, memory(memory_limit))
    # Before the approval, which is for good.
    find_device(about.statement(key.vk, choose_k_min(key.vk, approvals, about, k_min), context), use)
    k_min = approve(mk, secret, about, k_min, yes).k_min[about.network.digest]  # which may ask
    with progress(as_json) as report:
        claim = make_claim(key, about, k_min, context, resources=use, progress=report)
    data = claim.to_bytes()
    write_file(out, data, 0o644)
    result = {
        "done": True, "k_min": k_min, "h": key.vk.h, "proof_bytes": len(claim.proof), "out": str(out),
        "vk_digest": key.vk.digest.hex(), "model_digest": about.model_digest.hex(),
        "network_digest": about.network.digest.hex(),
    }  # fmt: skip
    say(as_json, result, f"at least {k_min} of {key.vk.h} secret triggers: {out}, {len(data):,} bytes")


def _derivation(
    calibration: Path | None, preprocess: Path | None, shape: tuple[int, int, int]
) -> tuple[Derivation, Images | None]:
    from ml.inputs import read_derivation

    return read_derivation(calibration, preprocess, shape)


def _shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(n) for n in text.split(","))
    except ValueError:
        raise click.UsageError("--shape is channels,height,width") from None
    if min(channels, height, width) < 1:
        raise click.UsageError("--shape has three positive numbers")
    return channels, height, width


def _nonce(text: str) -> bytes:
    try:
        nonce = bytes.fromhex(text)
    except ValueError:
        nonce = b""
    if len(nonce) != 32:
        raise click.UsageError("--nonce is 64 hexadecimal digits")
    return nonce


for command in (serve, requests, doctor, backup, restore, rekey, token, board, publish, timestamp, witness):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    quiet_grpc()
    cli()


if __name__ == "__main__":
    main()

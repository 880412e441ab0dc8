"""The commands of `zkmark-prover` that look after the file of the marking key: its copies and its secret."""

from __future__ import annotations

from pathlib import Path

import click

from prover.operations import mk_option
from prover.options import FILE, NEW_FILE, check_folder, check_new, json_option, outcome, say, secret_options


@click.command("backup")
@mk_option
@click.option("--out", required=True, type=NEW_FILE, help="New file; a copy of the encrypted marking key.")
@secret_options
@json_option
@outcome
def backup(mk: Path, out: Path, passphrase_file: Path | None, key_file: Path | None, as_json: bool) -> None:
    """Copy the marking key with its approvals, encrypted as it is, after trying that the secret opens it."""
    from prover.keys import back_up, read_secret

    check_new(out)
    approvals = back_up(mk, out, read_secret(passphrase_file, key_file))
    used = len(approvals.k_min)
    result = {"done": True, "out": str(out), "networks": used, "budget": approvals.budget}
    say(as_json, result, f"{out}: {used} of {approvals.budget} networks used.  Back up again after each approval")


@click.command("restore")
@click.option("--mk", required=True, type=NEW_FILE, help="The marking key to put back.")
@click.option("--backup", "source", required=True, type=FILE, help="The copy.")
@click.option("--force", is_flag=True, help="Also if the copy knows less than the file that is there.")
@secret_options
@json_option
@outcome
def restore(
    mk: Path, source: Path, force: bool, passphrase_file: Path | None, key_file: Path | None, as_json: bool
) -> None:
    """Put a backup of the marking key back.

    A copy that lacks approvals which the present file has, or answers that it remembers, is refused: with an older list
    a server would answer for more networks than the key's budget allows.
    """
    from prover.keys import read_secret, restore_backup

    check_folder(mk)
    approvals = restore_backup(source, mk, read_secret(passphrase_file, key_file), force)
    used = len(approvals.k_min)
    say(as_json, {"done": True, "mk": str(mk), "networks": used}, f"{mk}: {used} of {approvals.budget} networks used")


@click.command("rekey")
@mk_option
@secret_options
@click.option("--new-passphrase-file", type=FILE, help="File whose first line is the new passphrase [default: asks].")
@click.option("--new-key-file", type=FILE, help="File of random bytes instead of a passphrase.")
@json_option
@outcome
def rekey(
    mk: Path, passphrase_file: Path | None, key_file: Path | None, new_passphrase_file: Path | None,
    new_key_file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Encrypt the marking key with another secret.

    The key, its triggers and its approvals stay what they are.  Backups still open with the old secret alone: make new
    ones.  A server has to be started again, with the new one.
    """
    from prover.keys import change_secret, read_secret

    secret = read_secret(passphrase_file, key_file)
    change_secret(mk, secret, read_secret(new_passphrase_file, new_key_file, confirm=True))
    say(as_json, {"done": True}, f"{mk}: encrypted with the new secret.  Back up again")

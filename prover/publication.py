"""The commands of `zkmark-prover` about boards: board, publish, witness, timestamp."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prover.options import FILE, NEW_FILE, check_new, json_option, options, outcome, read, say
from zkmark.terminal import Number, printable

if TYPE_CHECKING:
    from zkmark.connect import Tls

FOLDER = click.Path(file_okay=False, path_type=Path)
board_option = click.option("--board", "target", required=True, metavar="HOST:PORT", help="The board.")
log_key_option = click.option("--log-key", required=True, metavar="TEXT", help="The public key of the board's log.")
connection_options = options(
    click.option("--tls", is_flag=True, help="Speak TLS, and trust the authorities of this system."),
    click.option("--tls-ca", type=FILE, help="PEM file of the authorities to trust instead; implies --tls."),
    click.option("--tls-cert", type=FILE, help="PEM file of your certificate, for a server that asks for one."),
    click.option("--tls-key", type=FILE, help="PEM file of its key."),
    click.option("--token-file", type=FILE, help="File with the token that the server gave you."),
)


def connection(
    tls: bool, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, token_file: Path | None
) -> tuple[Tls | None, str]:
    from zkmark.connect import read_tls, read_token

    secure = read_tls(tls_ca, tls_cert, tls_key) if tls or tls_ca or tls_cert or tls_key else None
    return secure, read_token(token_file) if token_file else ""


@click.command("board")
@click.option("--folder", required=True, type=FOLDER, help="Where the log's secret is; made if it does not exist.")
@click.option("--name", required=True, help="Name of the log, for ever: a host and a path, for example.")
@click.option("--database", default="", metavar="URL",
              help="postgresql+psycopg://USER@HOST/NAME, for several boards with one log [default: SQLite in the "
                   "folder].")  # fmt: skip
@click.option("--listen", default="127.0.0.1:50052", show_default=True, metavar="HOST:PORT",
              help="Port 0: any free one.")  # fmt: skip
@click.option("--tls-cert", type=FILE, help="PEM of the server's certificate and those above it.")
@click.option("--tls-key", type=FILE, help="PEM of its key.")
@click.option("--client-ca", type=FILE, help="PEM of the authorities whose clients may call; others may not.")
@click.option("--tokens", type=FILE, help="Lines NAME:SHA-256 of the tokens of those who may publish.")
@click.option("--insecure", is_flag=True, help="Listen without TLS where others can reach it.")
@click.option("--rate", type=Number(min=1), default=60, show_default=True,
              help="Entries of one client in a minute.")  # fmt: skip
@click.option("--witness", "witnesses", multiple=True, metavar="TEXT",
              help="Public key of a witness whose signatures are kept; may be repeated.")  # fmt: skip
@json_option
@outcome
def board(
    folder: Path, name: str, database: str, listen: str, tls_cert: Path | None, tls_key: Path | None,
    client_ca: Path | None, tokens: Path | None, insecure: bool, rate: float, witnesses: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Keep a public log of verification keys, which cannot take one back.  SIGTERM stops it gracefully."""
    import asyncio
    import logging

    from protocol.cosignature import WitnessKey
    from prover.access import Tokens, check_address, read_listening
    from prover.board import Access, Server, serve
    from prover.log import open_log

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    tls = read_listening(tls_cert, tls_key, client_ca)
    check_address(listen, tls, insecure)
    known = None if tokens is None else Tokens(tokens)
    access = Access(known, rate, tuple(WitnessKey.from_text(text) for text in witnesses))
    log = open_log(folder, name, database)

    def ready(port: int) -> None:
        address, key = f"{listen.rpartition(':')[0]}:{port}", log.key.to_text()
        say(as_json, {"listening": address, "log_key": key}, f"listening on {address}, log key {key}")
        sys.stdout.flush()

    asyncio.run(serve(lambda: Server(log, listen, access, tls), ready))


@click.command("publish")
@click.option("--vk", required=True, type=FILE, help="The verification key.")
@board_option
@log_key_option
@connection_options
@json_option
@outcome
def publish(
    vk: Path, target: str, log_key: str, tls: bool, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None,
    token_file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Publish a verification key on a board, and check that the log holds it."""
    from protocol.keygen import MAX_KEY_BYTES, VerificationKey
    from protocol.log import LogKey
    from prover.board import publish as publish_key

    data, log = read(vk, MAX_KEY_BYTES, "verification key"), LogKey.from_text(log_key)
    key = VerificationKey.from_bytes(data)
    secure, token = connection(tls, tls_ca, tls_cert, tls_key, token_file)
    receipt = publish_key(target, data, tls=secure, token=token)
    size = receipt.check(log, key.digest, key.owner_public_key).size
    result = {
        "done": True, "vk_digest": key.digest.hex(), "index": receipt.index, "size": size,
        "unix_time": receipt.entry.unix_time,
    }  # fmt: skip
    say(as_json, result, f"entry {receipt.index} of {size} in the log {log.name}")


@click.command("timestamp")
@click.option("--vk", required=True, type=FILE, help="The verification key.")
@click.option("--tsa", required=True, metavar="URL", help="A time-stamp authority (RFC 3161).")
@click.option("--tsa-roots", required=True, type=FILE, help="PEM file of the authorities above it.")
@click.option("--out", type=NEW_FILE, help="New file for its answer [default: that of the key with .tsr].")
@json_option
@outcome
def timestamp(vk: Path, tsa: str, tsa_roots: Path, out: Path | None, as_json: bool) -> None:
    """Have an authority say when it has seen a verification key, and keep what it says."""
    from protocol.keygen import MAX_KEY_BYTES, VerificationKey
    from protocol.timestamp import MAX_ROOTS_BYTES
    from prover.keys import write_file
    from prover.timestamp import ask_authority

    key = VerificationKey.from_bytes(read(vk, MAX_KEY_BYTES, "verification key"))
    out = out or vk.with_name(vk.name + ".tsr")
    check_new(out)
    response, found = ask_authority(tsa, key, read(tsa_roots, MAX_ROOTS_BYTES, "roots of time-stamps"))
    write_file(out, response, 0o644)
    result = {
        "done": True, "vk_digest": key.digest.hex(), "time": found.time.isoformat(), "authority": found.authority,
        "out": str(out),
    }  # fmt: skip
    say(as_json, result, f"{printable(found.authority)} has seen the key at {found.time:%Y-%m-%d %H:%M:%S} UTC: {out}")


@click.command("witness")
@click.option("--secret", required=True, type=NEW_FILE, help="Your secret to sign with; made if there is none.")
@click.option("--name", required=True, help="Your name: a host, for example.")
@click.option("--board", "target", metavar="HOST:PORT", help="The board to follow [default: only show your key].")
@click.option("--log-key", metavar="TEXT", help="The public key of the board's log.")
@click.option("--state", type=NEW_FILE, help="File of the last checkpoint that you signed; never lose it.")
@click.option("--every", type=Number(min=0.1), default=30, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Look once.")
@connection_options
@json_option
@outcome
def witness(
    secret: Path, name: str, target: str | None, log_key: str | None, state: Path | None, every: float, once: bool,
    tls: bool, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, token_file: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Follow a board, and sign what it shows as long as it takes nothing back.  Ends when it does."""
    import time

    from protocol.cosignature import WitnessKey
    from protocol.log import LogKey
    from prover.log import secret_seed
    from prover.witness import SECRET_MAGIC, Witness

    if len({option is None for option in (target, log_key, state)}) > 1:
        raise click.UsageError("--board, --log-key and --state go together")
    seed = secret_seed(secret, SECRET_MAGIC)
    key = WitnessKey.of(name, seed)
    say(as_json, {"witness_key": key.to_text()}, f"witness key {key.to_text()}")
    sys.stdout.flush()
    if target is None or log_key is None or state is None:
        return
    log, me = LogKey.from_text(log_key), Witness(key.public, seed, state)
    secure, token = connection(tls, tls_ca, tls_cert, tls_key, token_file)
    signed = -1
    while True:
        try:
            size = me.sign_next(target, log, tls=secure, token=token).size
            if size != signed:
                say(as_json, {"signed": size}, f"signed the checkpoint of {size} entries")
                sys.stdout.flush()
            signed = size
        except ConnectionError as error:
            if once:
                raise
            click.echo(f"zkmark-prover: {error}", err=True)
        if once:
            return
        time.sleep(every)

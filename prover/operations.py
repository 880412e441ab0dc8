"""The commands of `zkmark-prover` that run a server and look after it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from protocol.errors import DecodingError, ParameterError
from prover.options import (
    FILE,
    FOLDER,
    Command,
    approve,
    check_pair,
    json_option,
    k_min_options,
    memory,
    memory_option,
    options,
    outcome,
    read_key,
    resource_options,
    resources,
    say,
    secret_options,
    warm_up,
)
from zkmark.terminal import Number

if TYPE_CHECKING:
    from ml.quantise import Derivation
    from prover.requests import Request, Requests
    from prover.state import State

MAX_COUNT = 10**6
STATE = click.Path(file_okay=False, path_type=Path)
mk_option = click.option("--mk", required=True, type=FILE, help="The marking key.")
state_option = click.option("--state", type=STATE, help="Folder of jobs and requests [default: beside --mk].")
tls_options = options(
    click.option("--tls-cert", type=FILE, help="PEM of the server's certificate and those above it."),
    click.option("--tls-key", type=FILE, help="PEM of its key."),
)
insecure_option = click.option("--insecure", is_flag=True, help="Listen without TLS where others can reach it.")
client_options = options(
    click.option("--client-ca", type=FILE, help="PEM of the authorities whose clients may call; others may not."),
    click.option("--tokens", type=FILE, help="Lines NAME:SHA-256 of the tokens of clients who may call."),
)


def count(name: str, default: int, text: str) -> Callable[[Command], Command]:
    return click.option(name, type=click.IntRange(1, MAX_COUNT), default=default, show_default=True, help=text)


def amount(name: str, default: float, text: str) -> Callable[[Command], Command]:
    positive = Number(min=0, min_open=True)
    return click.option(name, type=positive, default=default, show_default=True, help=text)


@click.command("serve")
@mk_option
@click.option("--vk", required=True, type=FILE, help="The verification key.")
@state_option
@click.option("--listen", default="127.0.0.1:50051", show_default=True, metavar="HOST:PORT",
              help="Port 0: any free one.")  # fmt: skip
@tls_options
@client_options
@insecure_option
@click.option("--metrics", metavar="HOST:PORT", help="Answer Prometheus there.")
@click.option("--log-json", is_flag=True, help="Log JSON lines.")
@click.option("--claimant", default="", help="The only claimant that this server proves for.")
@click.option("--calibration", type=FOLDER, help="The calibration images that a verifier may name.")
@click.option("--max-upload", type=click.IntRange(min=1, max=2048), default=256, show_default=True,
              help="MiB of a model.")  # fmt: skip
@amount("--deadline", 600, "Seconds for one proof.")
@amount("--derive-deadline", 120, "Seconds to read one model.")
@amount("--derive-memory", 6, "GiB of address space to read one model.")
@count("--max-jobs", 256, "Jobs in the queue.")
@count("--max-client-jobs", 16, "Jobs in the queue of one client.")
@count("--max-client-calls", 64, "Calls of one client at once.")
@amount("--rate", 120, "Calls of one client in a minute.")
@amount("--max-disk", 4, "GiB of models that wait, and again of claims that are kept.")
@amount("--keep-days", 7, "Days for which the outcome of a job is kept.")
@resource_options
@secret_options
@json_option
@outcome
def serve(
    mk: Path, vk: Path, state: Path | None, listen: str, tls_cert: Path | None, tls_key: Path | None,
    client_ca: Path | None, tokens: Path | None, insecure: bool, metrics: str | None, log_json: bool, claimant: str,
    calibration: Path | None, max_upload: int, deadline: float, derive_deadline: float, derive_memory: float,
    max_jobs: int, max_client_jobs: int, max_client_calls: int, rate: float, max_disk: float, keep_days: float,
    memory_limit: float | None, device: str, engine: str, address: str | None, self_check: bool,
    passphrase_file: Path | None, key_file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Answer verifiers over gRPC, for approved models only.  SIGTERM stops it gracefully; jobs survive any end."""
    import asyncio

    from ml.inputs import image_folder
    from prover import server
    from prover.access import Tokens, check_address, read_listening
    from prover.derive_worker import DeriveLimits
    from prover.jobs import Prover
    from prover.keys import read_secret
    from prover.queue import Quota
    from prover.telemetry import Metrics, log_to_stderr, serve_metrics
    from prover.upload import Limits

    log_to_stderr(log_json)
    tls = read_listening(tls_cert, tls_key, client_ca)
    check_address(listen, tls, insecure)
    known = None if tokens is None else Tokens(tokens)
    secret = read_secret(passphrase_file, key_file)
    shape = read_key(vk).parameters.shape
    prover = Prover(
        mk, secret, state=state, claimant=claimant,
        resources=resources(memory_limit, device, engine, address, self_check),
        calibration=None if calibration is None else image_folder(calibration, shape),
        derive_limits=DeriveLimits(derive_deadline, int(derive_memory * 2**30)),
    )  # fmt: skip
    check_pair(prover.vk.digest, vk)
    limits = Limits(
        upload=max_upload << 20, proof_s=deadline, calls=max_client_calls, per_minute=rate, burst=max(int(rate / 2), 1),
        quota=Quota(max_jobs, max_client_jobs, int(max_disk * 2**30), keep_days * 86400),
    )  # fmt: skip
    warm_up()
    measured = Metrics()
    bound, stop = serve_metrics(measured, metrics) if metrics else (None, lambda: None)

    def ready(port: int) -> None:
        address = f"{listen.rpartition(':')[0]}:{port}"
        result = {"listening": address, "vk_digest": prover.vk.digest.hex(), "metrics_port": bound}
        say(as_json, result, f"listening on {address}")
        sys.stdout.flush()

    def make() -> server.Server:
        return server.Server(prover, listen, limits, tls=tls, tokens=known, insecure=insecure, metrics=measured)

    try:
        asyncio.run(server.serve(make, ready))
    finally:
        stop()


@click.group("requests")
def requests() -> None:
    """Models that clients asked about and you have not approved."""


@requests.command("list")
@mk_option
@state_option
@click.option("--all", "dismissed", is_flag=True, help="Those that were dismissed, too.")
@json_option
@outcome
def list_command(mk: Path, state: Path | None, dismissed: bool, as_json: bool) -> None:
    """Who asks about what."""
    found = [request for request in _requests(mk, state)[1].all() if dismissed or not request.dismissed]
    text = "\n".join(_line(request) for request in found) or "no requests"
    say(as_json, {"requests": [_facts(request) for request in found]}, text)


@requests.command("show")
@click.argument("number", type=int)
@mk_option
@state_option
@json_option
@outcome
def show_command(number: int, mk: Path, state: Path | None, as_json: bool) -> None:
    """One request, and how its network differs from those that you approved."""
    from prover.requests import Networks, likeness

    folder, found = _requests(mk, state)
    request = found.get(number)
    network = _derived(found.model(request), request, None, None)[0]
    known = [(other.digest.hex(), likeness(network, other)) for other in Networks(folder).kept()]
    known.sort(key=lambda item: (-item[1].structure, -item[1].equal))
    facts = _facts(request) | {
        "known": [{"network_digest": name, "same_structure": is_.structure, "equal": is_.equal} for name, is_ in known]
    }
    lines = [_line(request), f"file {found.model(request)}", f"network {request.network_digest.hex()}"]
    for name, is_ in known:
        word = f"same structure, {is_.equal:.1%} of its integers equal" if is_.structure else "another structure"
        lines.append(f"approved network {name[:16]}: {word}")
    say(as_json, facts, "\n".join(lines if known else [*lines, "no approved network is kept to compare it with"]))


@requests.command("approve")
@click.argument("number", type=int)
@mk_option
@state_option
@click.option("--calibration", type=FOLDER, help="The calibration images that the client names.")
@k_min_options
@secret_options
@json_option
@outcome
def approve_request(
    number: int, mk: Path, state: Path | None, calibration: Path | None, k_min: int | None, yes: bool,
    passphrase_file: Path | None, key_file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Allow the server to prove claims about the model of a request, with one k_min for ever.

    Spends one of the networks of the key.
    """
    from protocol.errors import VerificationError
    from prover.jobs import Subject
    from prover.keys import load_owner, read_secret
    from prover.requests import Networks

    folder, found = _requests(mk, state)
    request = found.get(number)
    secret = read_secret(passphrase_file, key_file)
    key = load_owner(mk, secret)[0].vk
    network, freedom = _derived(found.model(request), request, calibration, key.parameters.shape)
    about = Subject(network, request.model_sha256, _derivation(request).digest, freedom)
    try:
        approvals = approve(mk, secret, about, k_min, yes)
    except VerificationError:
        found.settle(request)  # it was tried, and is on record
        raise
    Networks(folder).keep(network)
    found.settle(request)
    chosen, left = approvals.k_min[network.digest], approvals.budget - len(approvals.k_min)
    result = {
        "done": True, "network_digest": network.digest.hex(), "model_digest": request.model_sha256.hex(),
        "k_min": chosen, "h": key.h, "budget_left": left,
    }  # fmt: skip
    say(as_json, result, f"approved with k_min {chosen} of {key.h}; {left} more networks can be approved")


@requests.command("dismiss")
@click.argument("number", type=int)
@mk_option
@state_option
@json_option
@outcome
def dismiss_command(number: int, mk: Path, state: Path | None, as_json: bool) -> None:
    """Forget a request and its file.  The client notices nothing, also when it asks again."""
    found = _requests(mk, state)[1]
    found.dismiss(found.get(number))
    say(as_json, {"done": True}, f"request {number} is dismissed")


@click.command("doctor")
@mk_option
@click.option("--vk", type=FILE, help="The verification key.")
@state_option
@click.option("--listen", default="127.0.0.1:50051", show_default=True, metavar="HOST:PORT",
              help="Where it will serve.")  # fmt: skip
@tls_options
@client_options
@insecure_option
@memory_option
@secret_options
@json_option
@outcome
def doctor(
    mk: Path, vk: Path | None, state: Path | None, listen: str, tls_cert: Path | None, tls_key: Path | None,
    client_ca: Path | None, tokens: Path | None, insecure: bool, memory_limit: float | None,
    passphrase_file: Path | None, key_file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Look whether a server can run: keys, modes of files, kernels, port, clock, disk, memory, certificate, tokens, and
    whether others can reach it without TLS.

    Give it what `serve` gets.  Changes nothing.  Ends with status 1 if something is wrong.
    """
    from prover.doctor import Papers, examine
    from prover.jobs import state_folder
    from prover.keys import read_secret

    secret = read_secret(passphrase_file, key_file)
    files = [path for path in (passphrase_file, key_file) if path is not None]
    papers = Papers(tls_cert, tls_key, client_ca, tokens)
    folder, most = state or state_folder(mk), memory(memory_limit)
    findings = examine(mk, vk, secret, folder, listen, papers, files, most, insecure)
    well = all(finding.well for finding in findings)
    result = {"done": well, "findings": [vars(finding) for finding in findings]}
    text = "\n".join(f"{'ok  ' if f.well else 'WRONG'} {f.what}: {f.found}" for f in findings)
    say(as_json, result, text)
    if not well:
        sys.exit(1)


@click.command("token")
@click.argument("name")
@json_option
@outcome
def token(name: str, as_json: bool) -> None:
    """Make a token for a client: the token for its --token-file, and the line for --tokens of the server."""
    import secrets

    from prover.access import LINE

    text = secrets.token_urlsafe(32)
    line = f"{name}:{hashlib.sha256(text.encode()).hexdigest()}"
    if not LINE.fullmatch(line):
        raise ParameterError("a name has 1 to 64 letters, digits or ._@-")
    say(as_json, {"token": text, "line": line}, f"secret, for the client: {text}\nline, for the server: {line}")


def _requests(mk: Path, state: Path | None) -> tuple[State, Requests]:
    """What is there; no folder is made by looking."""
    from prover.jobs import state_folder
    from prover.requests import Requests
    from prover.state import State

    folder = state or state_folder(mk)
    if not folder.is_dir():
        raise ParameterError(f"{folder} is no folder: no server has run with this key here (see --state)")
    found = State(folder)
    return found, Requests(found)


def _derivation(request: Request) -> Derivation:
    from ml.quantise import Derivation

    return Derivation.from_bytes(request.derivation)


def _derived(model: Path, request: Request, calibration: Path | None, shape: tuple[int, int, int] | None) -> Any:
    """(network, freedom bits) of a stranger's model, derived apart."""
    import tempfile

    from ml.inputs import image_folder
    from protocol.network import Network
    from prover.derive_worker import DeriveLimits, derive_apart
    from prover.jobs import npy

    with tempfile.TemporaryDirectory() as folder:
        images = None
        if calibration is not None and shape is not None:
            images = Path(folder, "calibration.npy")
            images.write_bytes(npy(image_folder(calibration, shape)))
        data, freedom = derive_apart(model, request.derivation, images, DeriveLimits(), lambda: False)
    network = Network.from_bytes(data)
    if network.digest != request.network_digest:
        raise DecodingError("the file of this request gives another network than the server saw")
    return network, freedom


def _facts(request: Request) -> dict[str, Any]:
    return {
        "number": request.number, "client": request.client, "claimant": request.claimant, "purpose": request.purpose,
        "verifier": request.verifier, "model_digest": request.model_sha256.hex(), "model_bytes": request.model_size,
        "network_digest": request.network_digest.hex(), "first": request.first, "last": request.last,
        "times": request.times, "dismissed": request.dismissed,
    }  # fmt: skip


def _line(request: Request) -> str:
    when = f"{datetime.fromtimestamp(request.last, UTC):%Y-%m-%d %H:%M} UTC"
    said = ", ".join(
        f"{what} {value!r}" for what, value in
        (("claimant", request.claimant), ("verifier", request.verifier), ("purpose", request.purpose)) if value
    )  # fmt: skip
    model = f"{request.model_size:,} bytes, SHA-256 {request.model_sha256.hex()[:16]}"
    line = f"{request.number}: {request.client!r}, {request.times} times, last {when}; {model}"
    return "; ".join([line, *([said] if said else []), *(["dismissed"] if request.dismissed else [])])

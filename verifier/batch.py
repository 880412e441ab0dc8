"""Many cases under one policy: a list of them, a folder of results, and after a stop only what is left.

In the folder of results a case NAME has NAME.json, its verdict, and if a prover is asked NAME.nonce and NAME.claim, so
that a later run goes on with the same job and the same claim.  Every file appears at once.  A result counts as long as
nothing that it depends on has changed, which `inputs`, a digest of all that, tells; a refusal is asked for again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from protocol.claim import MAX_CLAIM_BYTES
from protocol.errors import DecodingError, ParameterError
from protocol.keygen import VerificationKey
from protocol.transcript import Channel, FiatShamir
from verifier.case import Case
from verifier.check import Publication, Subject, Verdict, check
from verifier.client import TIMEOUT_S, Remote, obtain_claim
from verifier.options import ERRORS, kind, read, replace_file, tool_version
from verifier.policy import Policy
from zkmark.terminal import Report, printable

MAX_LIST_BYTES = 1 << 20
MAX_CASES = 10_000
MAX_RESULT_BYTES = 1 << 20
PASSING = {"prover.refused", "policy.published", "policy.witnesses"}  # what an owner or a board may mend meanwhile
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
FILES = {"vk", "model", "proof", "calibration", "preprocess", "images", "reference", "review"}
WORDS = {"prover", "purpose", "claimant", "verifier"}


@dataclass(frozen=True)
class Result:
    """outcome: of the verdict, or `malformed`, `misuse`, `unavailable`, `fault`; then there is an error, no verdict."""

    name: str
    outcome: str
    verdict: Verdict | None = None
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        if self.verdict is not None:
            return {"name": self.name, **self.verdict.to_json()}
        return {"name": self.name, "accepted": False, "outcome": self.outcome, "error": self.error}


def check_batch(
    cases: Mapping[str, Case],
    folder: Path,
    policy: Policy | None = None,
    *,
    remote: Callable[[str], Remote] = Remote,
    publication: Publication | None = None,
    stamp: Publication | None = None,
    progress: Report | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[Result]:
    """Judge `cases` by name, one after the other; none stops the others.  Results are kept in `folder`, and reused.

    remote: how the prover HOST:PORT of a case is reached.  publication, stamp: their `repr` says what they depend on.
    timeout_s: for the claim of each.  Raises OSError if the folder cannot be written.
    """
    folder.mkdir(exist_ok=True)
    for name, case in cases.items():
        try:
            desk = _Desk(name, case, folder, policy or Policy(), publication, stamp)
            verdict = desk.kept_verdict()
            if verdict is None:
                verdict = desk.judge(remote, progress, timeout_s)
        except Exception as error:
            text = str(error) if isinstance(error, ERRORS) else repr(error)
            yield Result(name, kind(error), None, printable(text))
            continue
        inputs = "" if verdict.failed_check in PASSING else desk.inputs
        desk.keep(".json", json.dumps({"inputs": inputs, **verdict.to_json()}, indent=2).encode())
        yield Result(name, verdict.outcome, verdict)


class _Desk:
    """One case and its files in the folder of results."""

    def __init__(
        self, name: str, case: Case, folder: Path, policy: Policy, publication: Publication | None,
        stamp: Publication | None,
    ) -> None:  # fmt: skip
        self._name, self._case, self._folder, self._policy = name, case, folder, policy
        self._publication, self._stamp = publication, stamp
        about = [[f.name, _content(getattr(case, f.name))] for f in fields(Case)]
        dated = [repr(publication), repr(stamp)]
        self.inputs = hashlib.sha256(json.dumps([tool_version(), about, repr(policy), dated]).encode()).hexdigest()

    def kept_verdict(self) -> Verdict | None:
        """The verdict of an earlier run, if it was about the same."""
        values = self._kept_values(".json")
        try:
            return Verdict.from_json(values) if values.get("inputs") == self.inputs else None
        except (KeyError, TypeError):
            return None

    def judge(self, remote: Callable[[str], Remote], progress: Report | None, timeout_s: float) -> Verdict:
        def report(phase: str, fraction: float) -> None:
            if progress is not None:
                progress(f"{self._name}: {phase}", fraction)

        report("check", 0.0)
        case = self._case
        subject = case.subject(case.nonce or self._nonce(), self._publication, self._stamp)
        claim = case.claim()

        def obtain(key: VerificationKey) -> tuple[bytes, Channel]:
            if claim is not None:
                return claim, FiatShamir()
            return self._obtain(subject, remote(str(case.prover)), report, timeout_s), FiatShamir()

        return check(subject, obtain, self._policy)

    def keep(self, suffix: str, data: bytes) -> None:
        replace_file(self._path(suffix), data)

    def _obtain(self, subject: Subject, prover: Remote, report: Report, timeout_s: float) -> bytes:
        """The claim of an earlier run about the same, or a new one."""
        asked = {"inputs": self.inputs, "nonce": subject.context.nonce.hex()}
        if self._kept_values(".nonce") == asked and self._path(".claim").exists():
            return read(self._path(".claim"), MAX_CLAIM_BYTES, "claim")
        self._path(".claim").unlink(missing_ok=True)
        self.keep(".nonce", json.dumps(asked).encode())
        claim = obtain_claim(prover, subject, progress=report, timeout_s=timeout_s)
        self.keep(".claim", claim)
        return claim

    def _nonce(self) -> bytes:
        """Drawn once for a case as it is now, so that a prover is not asked twice."""
        asked = self._kept_values(".nonce")
        if asked.get("inputs") == self.inputs and re.fullmatch("[0-9a-f]{64}", str(asked.get("nonce"))):
            return bytes.fromhex(str(asked["nonce"]))
        return os.urandom(32)

    def _kept_values(self, suffix: str) -> dict[str, Any]:
        """What a file of the folder says; nothing, if it is not there or not readable."""
        try:
            values = json.loads(read(self._path(suffix), MAX_RESULT_BYTES, "result"))
        except (OSError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._name}{suffix}"


def _content(value: object) -> object:
    """A value of a case for its digest: of files what they hold, not how they are called."""
    if isinstance(value, bytes):
        return value.hex()
    if not isinstance(value, Path):
        return value
    if value.is_dir():
        return [[file.name, _content(file)] for file in sorted(value.iterdir()) if file.is_file()]
    if value.exists() and not value.is_file():  # a device, which may never end
        raise ParameterError(f"{value} is not a file")
    with open(value, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_list(path: Path) -> dict[str, Case]:
    """The cases that a file lists, by name.

    TOML: a table [[case]] for each, with what is said above them as default.  CSV (the name ends with .csv): a row for
    each, its first row names the columns; an empty cell says nothing.  The words are the options of `zkmark-verifier
    verify`, with _ for -; `name` is what a case is called, its number if nothing.  Paths start at the list's folder.

    Raises DecodingError, ParameterError or OSError.
    """
    data = read(path, MAX_LIST_BYTES, "list of cases")
    try:
        rows = _rows_of_csv(data.decode()) if path.suffix.lower() == ".csv" else _rows_of_toml(data.decode())
    except (ValueError, RecursionError, csv.Error) as error:
        raise DecodingError(f"{path.name}: {printable(str(error))}") from None
    if not 1 <= len(rows) <= MAX_CASES:
        raise ParameterError(f"{path.name}: {len(rows)} cases, expected 1 to {MAX_CASES}")
    cases: dict[str, Case] = {}
    taken: set[str] = set()  # names of files: some folders do not tell a from A
    for number, row in enumerate(rows, 1):
        name = row.pop("name", str(number))
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise DecodingError(f"{path.name}: case {number}: a name has letters, digits, and . _ - inside")
        if name.lower() in taken:
            raise ParameterError(f"{path.name}: two cases are called {name}")
        taken.add(name.lower())
        try:
            cases[name] = _case(row, path.parent)
        except ParameterError as error:
            raise ParameterError(f"{path.name}: {name}: {error}") from None
    return cases


def _rows_of_csv(text: str) -> list[dict[str, Any]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    found = [{key: value for key, value in row.items() if value not in (None, "")} for row in rows]
    if any(None in row for row in found):
        raise ValueError("a row has more cells than the first one")
    for row in found:
        if "without_fidelity" in row:
            row["without_fidelity"] = {"true": True, "false": False}.get(row["without_fidelity"], "?")
    return found


def _rows_of_toml(text: str) -> list[dict[str, Any]]:
    values = tomllib.loads(text)
    rows = values.pop("case", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("the cases are tables [[case]]")
    return [{**values, **row} for row in rows]


def _case(row: dict[str, Any], folder: Path) -> Case:
    """Raises ParameterError."""
    values: dict[str, Any] = {}
    for key, value in row.items():
        if key == "without_fidelity" and isinstance(value, bool):
            values[key] = value
        elif not isinstance(value, str) or "\0" in value or key not in FILES | WORDS | {"nonce"}:
            raise ParameterError(f"{printable(str(key))} is not known, or not text")
        elif key == "nonce":
            if not re.fullmatch("[0-9a-fA-F]{64}", value):
                raise ParameterError("a nonce is 64 hexadecimal digits")
            values[key] = bytes.fromhex(value)
        else:
            values[key] = folder / value if key in FILES else value
    if not {"vk", "model"} <= values.keys():
        raise ParameterError("a case has a vk and a model")
    return Case(**values)

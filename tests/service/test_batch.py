"""Many cases at once: lists, verdicts that are kept, what is done again after a stop, and the table."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from ml.quantise import Derivation, Fidelity
from protocol.argument import Context
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.identity import public_key
from protocol.log import LogKey
from protocol.soundness import smallest_k_min
from prover.jobs import make_claim, subject
from verifier import batch
from verifier.batch import check_batch, read_list
from verifier.board import Board
from verifier.case import Case
from verifier.check import Subject, Verdict
from verifier.cli import cli
from verifier.options import _Published, _Stamped
from verifier.policy import Policy
from zkmark.connect import Tls

NONCE = "cd" * 32


@pytest.fixture(scope="module")
def shelf(world, tmp_path_factory) -> Path:
    """A folder with keys, models, one good claim and files that are none."""
    folder = tmp_path_factory.mktemp("shelf")
    for name in ("owner.vk", "marked.onnx", "other.onnx"):
        (folder / name).write_bytes((world.folder / name).read_bytes())
    (folder / "claim.proof").write_bytes(claim(world, Context("", "the owner", "", bytes.fromhex(NONCE))))
    (folder / "junk").write_bytes(b"junk")
    return folder


def claim(world, context: Context) -> bytes:
    about = subject(world.marked, Derivation(), None, world.key.vk)
    return make_claim(world.key, about, smallest_k_min(world.key.vk.h, 10), context).to_bytes()


LIST = f"""
vk = "owner.vk"
claimant = "the owner"
nonce = "{NONCE}"
proof = "claim.proof"
without_fidelity = true

[[case]]
name = "good"
model = "marked.onnx"

[[case]]
name = "bad"
model = "other.onnx"

[[case]]
model = "marked.onnx"
proof = "junk"

[[case]]
name = "gone"
model = "no such file"
"""


def run(path: Path, results: Path, *args: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in ("batch", path, "--results", results, *args)])


def test_every_case_has_its_outcome(shelf, tmp_path):
    (shelf / "list.toml").write_text(LIST)
    page = tmp_path / "table.html"
    result = run(shelf / "list.toml", tmp_path / "results", "--html", page, "--json")
    assert result.exit_code == 1
    found = {values["name"]: values for values in json.loads(result.stdout)}
    outcomes = {name: values["outcome"] for name, values in found.items()}
    assert outcomes == {"good": "accepted", "bad": "rejected", "3": "malformed", "gone": "misuse"}
    assert found["bad"]["failed_check"] == "statement.model" and found["good"]["false_claim_bits"] >= 128
    assert "junk" not in found["3"]["error"] and "no such file" in found["gone"]["error"]
    text = page.read_text()
    assert "1 of 4 claims accepted" in text and "statement.model" in text and "<script" not in text
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["bad.json", "good.json"]
    assert run(shelf / "list.toml", tmp_path / "results", "--html", page).exit_code == 2  # not overwritten


def test_csv_says_the_same(shelf, tmp_path):
    (shelf / "list.csv").write_text(
        "name,vk,model,proof,nonce,claimant,without_fidelity,images\n"
        f"good,owner.vk,marked.onnx,claim.proof,{NONCE},the owner,true,\n"
        f"a thief,owner.vk,marked.onnx,claim.proof,{NONCE},a thief,true,\n"
    )
    assert run(shelf / "list.csv", tmp_path / "results").exit_code == 2  # a name with a space
    (shelf / "list.csv").write_text((shelf / "list.csv").read_text().replace("\na thief", "\nthief"))
    result = run(shelf / "list.csv", tmp_path / "results")
    assert result.exit_code == 1
    assert re.search(r"good +accepted +\d+ of \d+ +2\^-\d+", result.stdout)
    assert re.search(r"thief +rejected .*statement.claimant", result.stdout) and "1 of 2 accepted" in result.stdout


def test_status_two_if_nothing_is_false(shelf, tmp_path):
    (shelf / "some.toml").write_text(LIST.replace('name = "bad"\nmodel = "other.onnx"', 'model = "marked.onnx"'))
    assert run(shelf / "some.toml", tmp_path / "results").exit_code == 2
    good = LIST.split("[[case]]")
    (shelf / "good.toml").write_text("[[case]]".join(good[:2]))
    assert run(shelf / "good.toml", tmp_path / "results").exit_code == 0


def case(shelf: Path, **changed: object) -> Case:
    values = {
        "vk": shelf / "owner.vk", "model": shelf / "marked.onnx", "proof": shelf / "claim.proof",
        "nonce": bytes.fromhex(NONCE), "claimant": "the owner", "without_fidelity": True,
    }  # fmt: skip
    return Case(**values | changed)


def test_what_is_done_is_not_done_again(shelf, tmp_path, monkeypatch):
    """Unless anything has changed that it depends on."""
    judged: list[str] = []
    check = batch.check

    def counted(*args: object) -> Verdict:
        judged.append("once")
        return check(*args)

    monkeypatch.setattr(batch, "check", counted)
    folder, mine = tmp_path / "results", tmp_path / "suspect.onnx"
    mine.write_bytes((shelf / "marked.onnx").read_bytes())
    cases = {"one": case(shelf, model=mine), "two": case(shelf, claimant="a thief")}
    first = list(check_batch(cases, folder))
    assert [result.outcome for result in first] == ["accepted", "rejected"] and len(judged) == 2
    assert list(check_batch(cases, folder)) == first and len(judged) == 2
    list(check_batch(cases, folder, Policy(min_bits=100)))
    assert len(judged) == 4
    mine.write_bytes((shelf / "other.onnx").read_bytes())
    assert [result.outcome for result in check_batch(cases, folder, Policy(min_bits=100))] == ["rejected", "rejected"]
    assert len(judged) == 5
    for junk in (b"", b"[]", b"{", b'{"inputs": 3}', (folder / "two.json").read_bytes()[:-40]):
        (folder / "two.json").write_bytes(junk)
        assert [result.outcome for result in check_batch({"two": cases["two"]}, folder)] == ["rejected"]
    assert len(judged) == 10


def test_a_verdict_is_of_the_boards_and_stamps_that_were_asked_for(shelf, tmp_path):
    """Another board, another number of witnesses, other roots: what was found before says nothing about them."""
    one, two = (LogKey(name, public_key(bytes(32))) for name in ("one", "two"))
    asked = [
        _Published(board, tmp_path / "seen")
        for board in (Board("a:1", one), Board("a:2", one), Board("a:1", two), Board("a:1", one, tls=Tls()))
    ]
    stamps = [_Stamped(response, roots) for response, roots in ((b"a", b"b"), (b"a", b"c"), (b"b", b"b"))]
    dated = [(publication, None) for publication in asked] + [(None, stamp) for stamp in stamps]
    inputs = {
        batch._Desk("a", case(shelf), tmp_path, Policy(), publication, stamp).inputs
        for publication, stamp in [*dated, (None, None)]
    }
    assert len(inputs) == len(dated) + 1
    again = batch._Desk("a", case(shelf), tmp_path, Policy(), _Published(Board("a:1", one), tmp_path / "seen"), None)
    assert again.inputs == batch._Desk("a", case(shelf), tmp_path, Policy(), asked[0], None).inputs


def test_a_device_is_no_file(shelf, tmp_path):
    (found,) = check_batch({"a": case(shelf, model=Path("/dev/zero"))}, tmp_path)
    assert found.outcome == "misuse" and "/dev/zero is not a file" in found.error


def test_a_token_is_shown_to_one_prover(shelf, tmp_path):
    (tmp_path / "token").write_text("a-token-of-thirty-two-characters")
    rows = [f"{shelf / 'owner.vk'},{shelf / 'marked.onnx'},127.0.0.1:{port},true" for port in (1, 1, 2)]
    (tmp_path / "list.csv").write_text("\n".join(["vk,model,prover,without_fidelity", *rows]))
    result = run(tmp_path / "list.csv", tmp_path / "results", "--token-file", tmp_path / "token", "--json")
    assert result.exit_code == 2 and "a token is for one prover" in json.loads(result.stdout)["error"]
    assert not (tmp_path / "results").exists()


def test_a_verdict_survives_its_file():
    verdict = Verdict("accepted", shape=(1, 4, 4), ledger=[("x", 1.5)], fidelity=Fidelity(9, 0.5, True))
    verdict.assumptions, verdict.context = ("a", "b"), {"nonce": NONCE}
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    assert Verdict.from_json(json.loads(json.dumps(Verdict().to_json()))) == Verdict()


def test_a_prover_is_asked_once(shelf, world, tmp_path, monkeypatch):
    """After a stop with the same nonce, so that the job goes on; its claim is kept; another model is another job."""
    asked: list[bytes] = []

    def stopped(prover: object, about: Subject, **_: object) -> bytes:
        asked.append(about.context.nonce)
        raise ConnectionError("unavailable")

    def answering(prover: object, about: Subject, **_: object) -> bytes:
        asked.append(about.context.nonce)
        return claim(world, about.context)

    folder = tmp_path / "results"
    online = case(shelf, proof=None, prover="127.0.0.1:1", nonce=None)
    monkeypatch.setattr(batch, "obtain_claim", stopped)
    (result,) = check_batch({"a": online}, folder)
    assert (result.outcome, result.verdict) == ("unavailable", None) and not (folder / "a.json").exists()
    monkeypatch.setattr(batch, "obtain_claim", answering)
    (result,) = check_batch({"a": online}, folder)
    assert result.outcome == "accepted" and asked[0] == asked[1]
    (folder / "a.json").unlink()  # as after a stop between the claim and the verdict
    (result,) = check_batch({"a": online}, folder)
    assert result.outcome == "accepted" and len(asked) == 2
    changed = case(shelf, proof=None, prover="127.0.0.1:1", nonce=None, model=shelf / "other.onnx")
    (result,) = check_batch({"a": changed}, folder)
    assert result.verdict.failed_check == "statement.model" and len(asked) == 3 and asked[2] != asked[1]


def test_a_fault_in_one_case_stops_no_other(shelf, tmp_path, monkeypatch):
    faults = [ZeroDivisionError("nobody foresaw this"), None]
    check = batch.check

    def faulty(*args: object) -> Verdict:
        if error := faults.pop(0):
            raise error
        return check(*args)

    monkeypatch.setattr(batch, "check", faulty)
    first, second = check_batch({"a": case(shelf), "b": case(shelf)}, tmp_path / "results")
    assert (first.outcome, first.verdict, second.outcome) == ("fault", None, "accepted")
    assert not (tmp_path / "results" / "a.json").exists()


@pytest.mark.parametrize("check", ["prover.refused", "policy.published", "policy.witnesses"])
def test_a_refusal_is_asked_for_again(shelf, world, tmp_path, monkeypatch, check):
    """The owner may have approved the model meanwhile, or published the key."""

    def refused(*_: object, **__: object) -> bytes:
        raise VerificationError(check, "no")

    online = case(shelf, proof=None, prover="127.0.0.1:1", nonce=None)
    monkeypatch.setattr(batch, "obtain_claim", refused)
    (result,) = check_batch({"a": online}, tmp_path)
    assert (result.outcome, result.verdict.failed_check) == ("rejected", check)
    assert json.loads((tmp_path / "a.json").read_text())["failed_check"] == check
    monkeypatch.setattr(batch, "obtain_claim", lambda prover, about, **_: claim(world, about.context))
    (result,) = check_batch({"a": online}, tmp_path)
    assert result.outcome == "accepted"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", ParameterError),
        ("x = ", DecodingError),
        ("case = 3", DecodingError),
        ("case = [3]", DecodingError),
        ('[[case]]\nvk = "a"', ParameterError),
        ('[[case]]\nvk = "a"\nmodel = "b"', ParameterError),
        ('[[case]]\nvk = "a"\nmodel = 3\nprover = "x:1"\nwithout_fidelity = true', ParameterError),
        ('[[case]]\nvk = "a"\nmodel = "b"\nprover = "x:1"\nwithout_fidelity = true\nsurprise = "x"', ParameterError),
        ('[[case]]\nvk = "a"\nmodel = "b"\nprover = "x:1"\nwithout_fidelity = true\nnonce = "x"', ParameterError),
        ('[[case]]\nname = "../a"\nvk = "a"\nmodel = "b"\nprover = "x:1"\nwithout_fidelity = true', DecodingError),
        (2 * '[[case]]\nname = "a"\nvk = "a"\nmodel = "b"\nprover = "x:1"\nwithout_fidelity = true\n', ParameterError),
        ('[[case]]\nvk = "a\\u0000"\nmodel = "b"\nprover = "x:1"\nwithout_fidelity = true', ParameterError),
        ("#" * (batch.MAX_LIST_BYTES + 1), DecodingError),
    ],
)
def test_lists_that_are_none(tmp_path, text, error):
    path = tmp_path / "list.toml"
    with pytest.raises(error):
        path.write_text(text)
        read_list(path)


@pytest.mark.parametrize(
    "text", ["", "vk,model\n", "vk,model\na,b,c\n", 'vk\n"', "vk,without_fidelity\na,maybe\n", "\0"]
)
def test_tables_that_are_none(tmp_path, text):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises((DecodingError, ParameterError)):
        read_list(path)


WORD = st.sampled_from(["name", "vk", "model", "prover", "proof", "nonce", "without_fidelity", "x", "", NONCE, "true"])


@given(st.binary(max_size=200) | st.lists(st.lists(WORD, max_size=6), max_size=4).map(lambda rows: csv_of(rows)))
def test_any_list_is_read_or_refused(data):
    """Nothing else happens, whatever a file holds."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("list.toml", "list.csv"):
            path = Path(folder, name)
            path.write_bytes(data)
            try:
                assert all(isinstance(one, Case) for one in read_list(path).values())
            except (DecodingError, ParameterError):
                pass


def csv_of(rows: list[list[str]]) -> bytes:
    return "\n".join(",".join(row) for row in rows).encode()


def test_bytes_that_are_no_text(tmp_path):
    for name in ("list.toml", "list.csv"):
        (tmp_path / name).write_bytes(b"\xff\xfe")
        with pytest.raises(DecodingError):
            read_list(tmp_path / name)

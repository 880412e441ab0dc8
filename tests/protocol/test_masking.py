"""What may be sent: the types say so, and are given where SECURITY.md says, and nowhere else."""

import ast
import re
from pathlib import Path

from mypy import api

ROOT = Path(__file__).parents[2]
TYPES = ("Masked", "MaskedElements", "Public")


def sites(source: str, module: str) -> set[str]:
    """The functions in which a value is given one of the types, as module.qualname."""
    found = set()

    def visit(node: ast.AST, path: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = path
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{path}.{child.name}"
            elif isinstance(child, ast.Call) and getattr(child.func, "id", getattr(child.func, "attr", "")) in TYPES:
                found.add(path)
            visit(child, inner)

    visit(ast.parse(source), module)
    return found


def test_types_are_given_where_security_md_says():
    text = (ROOT / "SECURITY.md").read_text()
    table = text.partition("### Every message")[2].partition("\n### ")[0]
    stated = {name for row in table.splitlines() if row.startswith("| ")
              for name in re.findall(r"`(protocol\.[\w.]+)`", row.split("|")[2])}  # fmt: skip
    given = set()
    for package in ("protocol", "prover", "verifier", "ml"):
        for path in (ROOT / package).rglob("*.py"):
            given |= sites(path.read_text(), ".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert stated == given


def test_nothing_goes_around_the_types():
    """No casts, no ignored errors and nothing untyped in the argument."""
    for name in ("argument", "layers", "ligero", "link", "lookup", "pads", "sumcheck", "transcript"):
        text = (ROOT / "protocol" / f"{name}.py").read_text()
        assert not re.search(r"type: ignore|(?<!\.)\bcast\(|\bAny\b", text), name


SENDING = """
from protocol.field import Vector
from protocol.transcript import FiatShamir, MaskedElements, Messages, Transcript

def prove(secret: Vector, pixels: bytes, masked: MaskedElements) -> None:
    out, transcript = Messages(), Transcript("test", FiatShamir())
    transcript.absorb_elements("x", masked)
    out.send_elements(masked)
    out.send_elements(secret)  # refused
    out.send_elements(masked - secret)  # refused
    out.send(pixels)  # refused
    transcript.absorb_elements("x", secret)  # refused
    transcript.absorb("x", pixels)  # refused
"""


def test_a_value_of_the_witness_cannot_be_sent(tmp_path, monkeypatch):
    """mypy refuses it, line by line, and nothing else."""
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    file = tmp_path / "sending.py"
    file.write_text(SENDING)
    out, errors, _ = api.run([
        "--config-file=", "--strict", "--follow-imports=silent", "--ignore-missing-imports", "--no-error-summary",
        "--cache-dir", str(tmp_path / "cache"), str(file)])  # fmt: skip
    found = {int(number) for number in re.findall(r"sending\.py:(\d+): error: .*\[arg-type\]", out)}
    assert found == {k for k, line in enumerate(SENDING.splitlines(), 1) if "refused" in line}, out + errors
    assert out.count("error:") == len(found)

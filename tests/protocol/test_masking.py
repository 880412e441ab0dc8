"""What may be sent: the types say so, and are given where SECURITY.md says, and nowhere else."""

import ast
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from protocol import field
from protocol.transcript import FiatShamir, Masked, MaskedElements, Messages, Public, Transcript

ROOT = Path(__file__).parents[2]
TYPES = ("Masked", "MaskedElements", "Public")
ONLY = "^only what is masked (is sent|or public is absorbed)$"


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
              for name in re.findall(r"`((?:protocol|prover)\.[\w.]+)`", row.split("|")[2])}  # fmt: skip
    given = set()
    for package in ("protocol", "prover", "verifier", "ml"):
        for path in (ROOT / package).rglob("*.py"):
            given |= sites(path.read_text(), ".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert stated == given


def test_nothing_else_is_sent():
    """Also where numpy says only `Any` to a type checker."""
    out, t = Messages(), Transcript("test", FiatShamir())
    secret, pixels = field.from_base(np.arange(10, dtype=np.uint32).reshape(5, 2)), np.zeros((1, 2, 2), np.uint8)
    masked = MaskedElements(secret)
    for bad in (secret, secret[0], secret[:, :1], masked.values, pixels[0], sum(pixels), None):
        for send in (out.send_elements, partial(t.absorb_elements, "x")):
            with pytest.raises(TypeError, match=ONLY):
                send(bad)
    for bad in (b"", pixels.tobytes(), Masked(b"12")[:1], secret[0], pixels.tolist(), masked, None):
        for send in (out.send, partial(t.absorb, "x")):
            with pytest.raises(TypeError, match=ONLY):
                send(bad)
    with pytest.raises(TypeError, match=ONLY):
        out.send(Public(b"1"))
    assert out.to_bytes() == b""


def test_nothing_goes_around_the_types():
    """No casts and no ignored errors in the argument, and nothing untyped where messages are made.

    That mypy refuses other messages is seen by `make lint` (tests/typing/sending.py).
    """
    makers = ("argument", "forks", "ligero", "link", "pads", "transcript")
    for name in (*makers, "layers", "lookup", "sumcheck"):
        text = (ROOT / "protocol" / f"{name}.py").read_text()
        assert not re.search(r"type: ignore|(?<!\.)\bcast\(", text), name
        assert name not in makers or not re.search(r"\bAny\b", text), name
    assert (ROOT / "tests" / "typing" / "sending.py").read_text().count("# type: ignore[arg-type]") == 5

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
    """The functions in which a value is given one of the types, as module.qualname.

    Every use of a type's name counts, but in an annotation or the brackets of another type, in `isinstance`, and where
    it is imported or defined.
    """
    found = set()

    def visit(node: ast.AST, path: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            path = f"{path}.{node.name}"
        if isinstance(node, ast.ImportFrom) and any(a.name in TYPES and a.asname for a in node.names):
            found.add(f"{path}: under another name")
        if getattr(node, "id", getattr(node, "attr", None)) in TYPES:
            found.add(path)
        types = {getattr(node, name, None) for name in ("annotation", "returns", "slice")}
        for child in ast.iter_child_nodes(node):
            if child not in types and getattr(getattr(child, "func", None), "id", "") != "isinstance":
                visit(child, path)

    visit(ast.parse(source), module)
    return found


@pytest.mark.parametrize("way", [
    "Masked(x)", "Masked.fromhex(x)", "map(Masked, x)", "t.Masked(x)", "type(x, (Masked,), {})", "y = Masked",
])  # fmt: skip
def test_every_way_to_give_a_type_is_seen(way):
    assert sites(f"def f(x):\n    {way}", "m") == {"m.f"}
    assert sites(f"class Other(Masked):\n    pass\ndef g(x):\n    {way}", "m") == {"m.Other", "m.g"}
    assert sites("from t import Masked as M", "m") and not sites("from t import Masked", "m")
    annotated = "E = Callable[[Masked], int]\ndef f(x: Masked) -> list[Masked]:\n    y: Masked = x"
    harmless = f"{annotated}\n    assert isinstance(y, Masked | Public)"
    assert not sites(harmless, "m")


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

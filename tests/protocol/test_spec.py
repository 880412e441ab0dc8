"""SPEC.md against the code: its tables are parsed, its grammar is matched, its frozen proof is verified again.

The frozen proof is checked twice: by the package, and by plain_verifier.py, which was written from the text alone.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import re
from dataclasses import replace
from functools import cache
from math import ceil
from pathlib import Path

import pytest

from protocol import argument, claim, pedersen, soundness
from protocol.errors import VerificationError
from protocol.layers import tree_shape
from protocol.layout import PRODUCTS
from protocol.lookup import variables
from protocol.multilinear import lg
from tests.protocol import plain_verifier as plain
from tests.vectors import keys as key_vectors
from tests.vectors import primitives as primitive_vectors
from tests.vectors import proof as proof_vectors

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"
SPEC = (ROOT / "protocol" / "SPEC.md").read_text()
PROTOCOL = sorted((ROOT / "protocol").rglob("*.py"))
OUTSIDE = [path for package in ("prover", "verifier", "ml") for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.fixture(scope="module")
def frozen():
    """(statement, proof, vectors)"""
    return proof_vectors.load()


@pytest.fixture(scope="module")
def record(frozen):
    statement, proof, _ = frozen
    with proof_vectors.recording() as found:
        argument.verify(statement, proof)
    return found


def tables(header: str) -> list[list[str]]:
    """The rows of all tables whose first header cell is `header`, cells without back quotes."""
    rows, inside = [], False
    for line in SPEC.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if inside:
            rows.append(cells)
        elif cells[0] == header:
            inside = True
    assert rows, header
    return [[cell.strip("`") for cell in row] for row in rows if not set(row[0]) <= set("-")]


def bare(cell: str) -> list[str]:
    """Every name in back quotes of a cell that lost its outer ones."""
    return [name for name in re.split(r"`[, ]*`?|, ", cell) if name]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


# --- numbers, tags, names ----------------------------------------------------------------------


@pytest.mark.parametrize("row", tables("constant"), ids=lambda row: row[0])
def test_constants(row):
    module, name = row[2].rsplit(".", 1)
    assert eval(row[1], {}) == getattr(importlib.import_module(module), name)


def test_numbers_in_the_text():
    assert eval(tables("constant")[0][1]) == 2013265921
    modulus = 2013265921
    assert (modulus - 2**30 - 1) // 2 == 469762048
    assert [soundness.smallest_k_min(256, 10, freedom_bits=bits) for bits in (0, 64, 176)] == [118, 138, 168]
    for freedom in (0.0, 0.01, 1.0, 21.791, 130.5):
        models = 1 << ceil(128 + 32 + freedom)
        enough = next(k for k in range(1, 257) if models * soundness.tail(256, 10, k) <= 1)
        assert soundness.smallest_k_min(256, 10, freedom_bits=freedom) == enough


def test_tags():
    stated = [tag.encode().decode("unicode_escape").encode() for tag, _ in tables("tag")]
    found = {
        node.value
        for path in PROTOCOL
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes) and node.value.startswith(b"zkmark")
    }
    assert sorted(stated) == sorted(found | {argument.VERSION.encode()})


def test_generators():
    stated = {int(count): digest for count, digest in tables("generators")}
    assert stated == pedersen.PREFIX_DIGESTS
    points = b"".join(pedersen.generator(k).to_xy_bytes_be() for k in range(1024))
    assert hashlib.sha256(points).hexdigest() == stated[1024]


def test_arrays_products_and_their_lengths(frozen):
    layout = frozen[0].layout
    rows = tables("array")
    assert [row[0] for row in rows] == list(layout.arrays)
    h, classes, d = layout.h, layout.network.classes, 16
    assert all(layout.arrays[name] == classes * h for name, length, _ in rows if length == "classes * h")
    assert layout.arrays["mask"] == 5 * (d + 1) and layout.arrays["count"] == (h - layout.k_min).bit_length()
    assert [tuple(row) for row in tables("x")] == list(PRODUCTS)


def test_ledger_terms(frozen):
    statement = frozen[0]
    ledger = statement.ledger()
    assert [row[0] for row in tables("term")] == [term.name for term in ledger.terms]
    assert ledger.bits >= 120


def test_queries():
    for rows, *stated in tables("log2 N"):
        first, _, last = rows.partition(" to ")
        for a in range(int(first), int(last or first) + 1):
            found = [soundness._queries(a, 3, target) for target in soundness.QUERY_TARGETS]
            fit = [2 * t - 1 <= 1 << a for t in found]  # p_quad has at most 3 N coefficients
            assert stated == [str(t) if fits else "none" for t, fits in zip(found, fit, strict=True)]


def test_code_refers_to_sections_that_exist():
    sections = {int(n) for n in re.findall(r"^## (\d+) ", SPEC, re.M)}
    assert sections == set(range(1, 15))
    for path in PROTOCOL:
        for found in re.findall(r"SPEC sections? (\d+)(?: (?:and|to) (\d+))?(?: to (\d+))?", path.read_text()):
            assert {int(n) for n in found if n} <= sections, path


# --- checks ------------------------------------------------------------------------------------


def checks(paths: list[Path]) -> set[str]:
    """The names of checks that are written out in calls."""
    out = set()
    for path in paths:
        for node in ast.walk(tree(path)):
            name = getattr(node, "func", None)
            if isinstance(node, ast.Call) and getattr(name, "id", getattr(name, "attr", "")) in (
                "VerificationError", "check_signature", "_check"
            ):  # fmt: skip
                for argument in [*node.args, *(k.value for k in node.keywords)]:
                    for part in ast.walk(argument):
                        value = getattr(part, "value", None)
                        if isinstance(value, str) and re.fullmatch(r"[a-z]+\.[a-z_]+", value):
                            out.add(value)
    return out


def test_checks_of_the_protocol():
    stated = {row[0] for row in tables("check")}
    outside = {"key.ground_truth", "prover.refused"} | {name for name in stated if name.startswith("policy.")}
    claimed = {name for name in stated if name.startswith("statement.")}
    assert checks(PROTOCOL) - claimed == stated - outside - claimed


def test_checks_outside_the_protocol():
    stated = {row[0] for row in tables("check")}
    found = checks(OUTSIDE)
    assert found <= stated
    assert {name for name in stated if name.startswith("policy.") or name == "key.ground_truth"} <= found


@pytest.mark.reaches(
    "statement.key", "statement.model", "statement.network", "statement.derivation", "statement.nonce",
    "statement.purpose", "statement.claimant", "statement.verifier", "statement.k_min",
)  # fmt: skip
def test_checks_of_a_claim(frozen):
    statement, proof, _ = frozen
    good = claim.Claim(statement.k_min, statement.context, claim.statement_digests(statement), proof)
    claim.compare(good, statement)
    wrong = []
    for k in range(4):
        digests = list(good.digests)
        digests[k] = bytes(32)
        wrong.append(replace(good, digests=tuple(digests)))
    for name in ("nonce", "purpose", "claimant", "verifier"):
        other = bytes(32) if name == "nonce" else "other"
        wrong.append(replace(good, context=replace(good.context, **{name: other})))
    wrong.append(replace(good, k_min=good.k_min - 1))
    found = []
    for bad in wrong:
        with pytest.raises(VerificationError) as raised:
            claim.compare(bad, statement)
        found.append(raised.value.check)
    assert found == [row[0] for row in tables("check") if row[0].startswith("statement.")]


# --- the transcript ----------------------------------------------------------------------------


def grammar() -> dict[str, str]:
    (text,) = re.findall(r"```transcript\n(.*?)```", SPEC, re.S)
    return {name: body for name, body in re.findall(r"^(\w+) += (.*(?:\n +.*)*)", text, re.M)}


def pattern(rule: str) -> str:
    """The rule as a regular expression over "A:label;" events."""
    out = ""
    for item in grammar()[rule].split():
        name, star = item.rstrip("*"), "*" if item.endswith("*") else ""
        out += f"(?:{re.escape(name) + ';' if ':' in name else pattern(name)}){star}"
    return out


def test_order_of_messages(frozen, record):
    last = len(frozen[0].network.nodes)
    rules = {"main": "main", "node 0": "input", f"node {last}": "output", f"node {last + 1}": "tables"}
    rules |= {f"node {k}": "requant" for k in range(1, last)}
    assert set(record.events) == set(rules)
    for name, rule in rules.items():
        assert re.fullmatch(pattern(rule), "".join(event + ";" for event in record.events[name])), name


def test_the_order_can_be_wrong(record):
    events = list(record.events["main"])
    at = events.index("A:root")
    events[at], events[at + 2] = events[at + 2], events[at]
    assert not re.fullmatch(pattern("main"), "".join(event + ";" for event in events))


def test_labels():
    stated = {row[0] for row in tables("label")}
    assert stated == {item.split(":")[1].rstrip("*") for body in grammar().values() for item in body.split()
                      if ":" in item}  # fmt: skip


def test_counts_of_messages(frozen, record):
    """Rounds of every tree and edge, forks, and the elements that they send."""
    statement, layout = frozen[0], frozen[0].layout
    assert record.events["main"].count("A:fork") == statement.forks
    for index, need in enumerate(statement.needs):
        m = len(variables(*tree_shape(layout, index)))
        node = statement.network.nodes[index - 1] if 0 < index < statement.forks - 1 else None
        edges = [] if node is None else [sum(lg(n) for n in statement.network.shapes[e.source]) for e in node.edges]
        events = record.events[f"node {index}"]
        tree_part, _, edge_part = "".join(event + ";" for event in events).partition("A:edges;")
        layers = tree_part.split("C:layer;")[1:]
        assert [layer.count("A:round;") for layer in layers] == list(range(m))
        if node is not None and node.product:
            product = [sum(lg(n) for n in (*statement.network.shapes[index], layout.h))]
        else:
            product = []
        assert edge_part.count("C:round;") == sum(edges) + sum(product)
        sums = sum(1 + 2 * rounds for rounds in edges + product)
        assert need.sent == m * m + 3 * m + 5 + sums + 2 * len(product)
        assert need.free == 1 + m * (m - 1) + sums
        assert (need.triples, need.copies) == (2 + 3 * m + len(product), m)


def test_the_ledger_counts_every_equation(frozen, record):
    statement = frozen[0]
    ((equations, _),) = record.tests
    assert equations <= statement._counts.equations
    depths = [len(variables(*tree_shape(statement.layout, k))) for k in range(statement.forks)]
    edges = sum(len(node.edges) for node in statement.network.nodes)
    products = sum(node.product is not None for node in statement.network.nodes)
    stated = sum(3 * m + 5 for m in depths) + edges + 3 * products + len(statement.network.nodes) + 16
    assert statement._counts.equations == stated


# --- the frozen proof --------------------------------------------------------------------------


def test_vectors_are_small():
    assert sum(path.stat().st_size for path in VECTORS.iterdir() if path.is_file() and path.suffix != ".py") < 580_000


def test_other_bytes_are_another_version():
    stated = {name: digest for version, name, digest in tables("version") if version == argument.VERSION}
    assert stated == {name: hashlib.sha256((VECTORS / name).read_bytes()).hexdigest() for name in stated}
    assert [*stated] == ["key.vk", "model.network", "claim.proof"]


@pytest.mark.parametrize(("part", "names"), [
    (proof_vectors, {"key.vk", "model.network", "claim.proof", "vectors.json"}),
    (key_vectors, {"keys.json"}),
    (primitive_vectors, {"primitives.json"}),
])  # fmt: skip
def test_the_frozen_files_are_made_as_they_were(part, names):
    """Every byte, of the proof too: the prover's randomness is fixed, down to what she reads ahead of it."""
    made = part.files()
    assert {name: (VECTORS / name).read_bytes() == data for name, data in made.items()} == dict.fromkeys(names, True)


def test_no_other_files_are_frozen():
    """One command makes them all."""
    made = {"key.vk", "model.network", "claim.proof", "vectors.json", "keys.json", "primitives.json"}
    assert {path.name for path in VECTORS.iterdir() if path.is_file() and path.suffix != ".py"} == made


def test_fields_of_a_proof(frozen):
    _, proof, vectors = frozen
    fields = vectors["fields"]
    stated = [row[0] for row in tables("field") if row[0] in fields]
    assert stated == list(fields)
    assert sum(fields["signature"]) == len(proof)


def test_frozen_values(frozen):
    statement, proof, vectors = frozen
    found = json.loads(json.dumps(proof_vectors.intermediate(statement, proof)))
    assert found == {name: vectors[name] for name in found}
    entries = [name for row in tables("entry") for name in bare(row[0])]
    assert entries == list(vectors)


@pytest.mark.parametrize("number", range(24))
def test_frozen_outcomes(frozen, number):
    statement, proof, vectors = frozen
    case = vectors["altered"][number]
    bad = proof_vectors.altered(statement, bytes.fromhex(vectors["owner_secret_seed"]), proof, case)
    assert bad != proof and proof_vectors.outcome(statement, bad) == case["outcome"] != "true"


def test_every_frozen_outcome_is_tested(frozen):
    assert len(frozen[2]["altered"]) == 24
    assert {case["field"] for case in frozen[2]["altered"]} == set(frozen[2]["fields"])


# --- the frozen keys -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frozen_keys():
    return key_vectors.load()


def test_frozen_keys(frozen_keys):
    """Both verifiers find the stated outcome of every key, and the same values of every true one."""
    assert {case["outcome"] for case, _ in frozen_keys} == {
        "true", "malformed", "key.signature", "key.openings", "log.signature", "log.inclusion", "log.window"
    }  # fmt: skip
    for case, data in frozen_keys:
        try:
            key, plainly = plain.Key(data), "true"
        except plain.Failed as failed:
            plainly = failed.args[0]
        assert key_vectors.outcome(data) == plainly == case["outcome"], case["name"]
        if plainly == "true":
            stated = {name: case[name] for name in key_vectors.values(data)}
            assert key_vectors.values(data) == stated and set(stated) == set(case) - {"name", "outcome", "bytes"}
            assert key.seed.hex() == case["key_seed"] and key.offsets == case["offsets"]
            assert key.commitments_digest.hex() == case["commitments_digest"] and key.hidden == case["hidden"]


# --- the plain verifier ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files():
    return plain.load(VECTORS)


def test_plain_verifier_accepts(frozen, files):
    found, vectors = plain.verify(**files), frozen[2]
    assert found == {name: vectors[name] for name in found}
    assert len(found) == len(vectors) - 3  # all but owner_secret_seed, fields, altered


def test_plain_verifier_rejects(frozen, files):
    statement, proof, vectors = frozen
    cases = vectors["altered"]
    wanted = [next(case for case in cases if case["outcome"] == check)
              for check in ("owner.signature", "link.range", "linear.sum")]  # fmt: skip
    for case in wanted:
        bad = proof_vectors.altered(statement, bytes.fromhex(vectors["owner_secret_seed"]), proof, case)
        bad = claim.Claim(statement.k_min, statement.context, claim.statement_digests(statement), bad)
        with pytest.raises(plain.Failed) as raised:
            plain.verify(**{**files, "claim_data": bad.to_bytes()})
        assert raised.value.args == (case["outcome"],)

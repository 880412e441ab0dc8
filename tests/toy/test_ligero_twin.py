"""The commitment's twin is the package's algorithm: value by value, at BabyBear and its extension of degree 5.

One small matrix with rows of every kind, 16 slots and 5 queries, with the coins of one seed.  The twin knows one field.
So it runs on the matrix in two ways: `folded`, a row of K (five of F in the package) being one row, as the linear and
the quadratic test see it, and `flat`, all rows being of F, as the proximity test does.

Not in the twin, and so not compared: salts and the Merkle tree (test_merkle.py, and the plain verifier); what a form
says about entries (here by `combine`, for one equation at a time, which test_ligero.py compares with all coefficients
written out); where challenges come from (test_transcript.py).
"""

from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest

from protocol import field, ligero
from protocol.encoding import Reader
from protocol.errors import VerificationError
from protocol.multilinear import lg
from protocol.pads import Form, Need, System
from protocol.transcript import FiatShamir, Messages, Transcript
from tests.adversary import faults, ideal
from tests.protocol.plain_verifier import K, zero
from tests.toy.ligero import Challenge, Claims, Code, Committed, answer, verify
from tests.toy.real import P, array, elements, vector, words

N, T, RATE = 16, 5, 8
COLUMNS = {"x": (0, (1, 2, 2)), "z": (4, (2, 3, 3))}  # 22 entries of an image: two chunks
ARRAYS = {"o": 6, "g": 6, "og": 6, "m": 6, "d": 6, "v": 6, "count": 2, "mask": 20}
LAYOUT = SimpleNamespace(h=3, depth=22, columns=COLUMNS, arrays=ARRAYS)
NEED = Need(free=18, triples=3)
# What `Parameters` does not allow: too few columns to be sound, enough to compare.
SHAPE = ligero.Shape(LAYOUT, NEED, SimpleNamespace(row=N, queries=T, log2_rate_inverse=3, domain=RATE * N))
SEED = b"s" * 32
POLYNOMIALS = ("proximity", "linear", "quadratic")
CHECKS = ("quadratic.zero", "linear.sum", "proximity.columns", "linear.columns", "quadratic.columns")


class Coset(Code):
    """The subgroup and the points of SPEC.md: column c N + j is 31 w_n^c w_N^j."""

    @property
    def subgroup(self):
        w = pow(31, (P - 1) // N, P)
        return [pow(w, j, P) for j in range(N)]

    @property
    def points(self):
        w = pow(31, (P - 1) // (RATE * N), P)
        return [31 * pow(w, c, P) * x % P for c in range(RATE) for x in self.subgroup]


CODE = Coset(P, N, T, RATE * N)


# What is committed


def random_k(rng, n):
    return field.from_base(rng.integers(0, P, (5, n), dtype=np.uint32))


def witness():
    """Images, arrays whose products hold, and pads whose triples do."""
    rng = np.random.default_rng(1)
    arrays = {name: rng.integers(0, P, length, dtype=np.uint32) for name, length in ARRAYS.items()}
    for name in ("o", "m", "count"):
        arrays[name] %= 2
    for x, y, z in (("o", "g", "og"), ("m", "d", "v")):
        arrays[z] = (arrays[x].astype(np.uint64) * arrays[y] % P).astype(np.uint32)
    pads = random_k(rng, SHAPE.pad_count)
    pads[:, 6:9] = field.mul(pads[:, :3], pads[:, 3:6])
    return SimpleNamespace(images=rng.integers(0, P, (22, 3), dtype=np.uint32), arrays=arrays), pads


def systems(values, pads):
    """True equations about columns, arrays and pads, in two systems."""
    rng, out = np.random.default_rng(2), []
    for part in ("a", "b"):
        system = System(groups={part: random_k(rng, 3)})
        for name, (_, dims) in COLUMNS.items():
            point = [random_k(rng, lg(n)) for n in dims]
            system.append(Form().add_image(part, name, point, random_k(rng, 1)))
        for name, length in ARRAYS.items():
            system.append(Form().add_array(name, random_k(rng, length)))
        mixed = Form().add_form(system.forms[1], random_k(rng, 1)).add_form(system.forms[-1], random_k(rng, 1))
        mixed.pads.append((rng.permutation(SHAPE.pad_count)[:12], random_k(rng, 12)))
        system.append(mixed)
        for form in system.forms:
            form.add_constant(field.neg(ideal.entry(form, system.groups, LAYOUT, values, pads)))
        out.append(system)
    return out


def in_rows(entries, nothing=0):
    """Lists of N, the last one filled up."""
    entries = [*entries, *[nothing] * (-len(entries) % N)]
    return [entries[at : at + N] for at in range(0, len(entries), N)]


def matrix(images, arrays, pads):
    """The rows of SPEC section 8; those of K are one row each.  images [depth][h], arrays by name, pads [pads] of K."""
    chunks = [in_rows(column) for column in zip(*images, strict=True)]
    rows = [chunk for part in zip(*chunks, strict=True) for chunk in part]
    rows += [row for name in ARRAYS for row in in_rows(arrays[name])]
    t = NEED.triples
    for part in (pads[:t], pads[t : 2 * t], pads[2 * t : 3 * t], pads[3 * t :]):
        rows += in_rows(part, zero)
    return rows


def flat(rows):
    """Every row of K as its five rows of F."""
    out = []
    for row in rows:
        out += [list(lane) for lane in zip(*(v.c for v in row), strict=True)] if isinstance(row[0], K) else [row]
    return out


def folded(lanes, like):
    """The other way: lanes of F to rows, those of K where `like` has them."""
    lanes, out = iter(lanes), []
    for row in like:
        if isinstance(row[0], K):
            out.append([K(*c) for c in zip(*(next(lanes) for _ in range(5)), strict=True)])
        else:
            out.append(next(lanes))
    return out


def coins(seed):
    """(masks of all rows of F [rows][t], free coefficients of the blinding polynomials), as the package draws them."""
    expander = ligero.Expander(seed)
    counts = [3, 3, SHAPE.array_total, 5 * SHAPE.pad_rows]
    masks = [lane for count in counts for lane in expander.base(T, count).T.tolist()]
    prox, lin, quad = (elements(expander.vector(count)) for count in SHAPE.blinding)
    return masks, (prox, lin[1:], quad[: len(quad) - N])


# The same on both sides


def prove(values, pads, parts):
    """(committed, test polynomials, opened columns as lists of words, the verdict about them) of the package."""
    committed = ligero.Committed(SHAPE, values.images, values.arrays, pads, ligero.Expander(SEED))
    out, transcript = Messages(), Transcript("twin", FiatShamir())
    ligero.prove(committed, parts, transcript, out)
    reader = Reader(out.to_bytes(), "proof")
    polynomials = [elements(field.from_bytes(reader.raw(20 * count))) for count in SHAPE.blinding]
    opened = reader.array("<u4", T * SHAPE.column_rows).reshape(T, -1).tolist()
    verdict, reader = "", Reader(out.to_bytes(), "proof")
    try:
        ligero.verify(SHAPE, committed.root, parts, Transcript("twin", FiatShamir()), reader)
    except VerificationError as error:
        verdict = error.check
    return committed, polynomials, opened, verdict


def challenges(polynomials):
    """(eta, proximity coefficients, quadratic coefficients, columns) of that transcript."""
    transcript = Transcript("twin", FiatShamir())
    eta = transcript.challenge("equations")
    proximity = transcript.challenge("proximity", SHAPE.rows)
    quadratic = transcript.challenge("quadratic", len(SHAPE.products()) + SHAPE.triple_rows)
    for name, polynomial in zip(POLYNOMIALS, polynomials, strict=True):
        transcript.absorb_elements(f"{name}.polynomial", ligero.MaskedElements(vector(polynomial)))
    columns = transcript.challenge_indices("columns", T, RATE * N)
    return elements(eta), elements(proximity), elements(quadratic), columns


def claims(parts, rows, first=1):
    """The twin's claims: coefficients of every slot, of every equation by itself; products of rows."""
    coefficients, right = [], []
    for system in parts:
        for form in system.forms:
            test = ligero.combine(SHAPE, [System([form], system.groups)], field.ONE)
            shared = [zero] * (SHAPE.chunks * N)
            for (_, chunk), slots in test.chunks.items():
                shared[chunk * N : (chunk + 1) * N] = elements(slots)
            ((_, weights),) = test.weights.items()
            images = [[weight * c for weight in elements(weights)] for c in shared]
            arrays = {name: elements(test.arrays.get(name, field.zeros(length))) for name, length in ARRAYS.items()}
            coefficients.append(matrix(images, arrays, elements(test.pads)))
            right += elements(test.target)
    flattened = [v for equation in coefficients for row in equation for v in row]
    image_rows, t = SHAPE.image_rows, SHAPE.triple_rows
    start = image_rows + SHAPE.array_total
    products = [(x + image_rows, y + image_rows, z + image_rows) for x, y, z in SHAPE.products()]
    products += [(start + r, start + t + r, start + 2 * t + r) for r in range(t)]
    return Claims(array(flattened, len(right), rows, N), array(right), tuple(products), first)


def twin(values, pads, parts, polynomials, lack=""):
    """[(committed, claims, challenge)] of the flat view and of the folded one.  lack: what is left out in the twin."""
    rows = matrix(values.images.tolist(), {n: a.tolist() for n, a in values.arrays.items()}, elements(pads))
    masks, free = coins(SEED)
    if lack == "row masks":
        masks = [[0] * T for _ in masks]
    free = tuple(array([0 * v for v in part] if lack == name else part, 1, -1)
                 for name, part in zip(POLYNOMIALS, free, strict=True))  # fmt: skip
    eta, proximity, quadratic, _ = challenges(polynomials)
    if lack == "a coefficient for each row":
        proximity = proximity[:1] * len(proximity)

    def made(rows, masks):
        return Committed.make(CODE, table(rows), table(masks), free)

    nothing = Claims(array([0] * (len(masks) * N), 1, len(masks), N), array([0]))
    about = claims(parts, len(rows), 0 if lack == "no constant weight" else 1)
    return [
        (made(flat(rows), masks), nothing, Challenge(array(eta), array(proximity, 1, -1), array([], 1, 0))),
        (made(rows, folded(masks, rows)), about,
         Challenge(array(eta), array([0] * len(rows), 1, -1), array(quadratic, 1, -1))),
    ]  # fmt: skip


def table(rows):
    """[1, rows, entries]: one run."""
    return array([v for row in rows for v in row], 1, len(rows), -1)


def said(both, columns):
    """What the twin would send, and all of its codewords."""
    (prox, _, _), (_, lin, quad) = (answer(*view) for view in both)
    every, again = ([words(column) for column in made.words[0].T.tolist()] for made, _, _ in both)
    assert every == again
    return {"columns": every, "opened": [every[i] for i in columns],
            **{name: p[0].tolist() for name, p in zip(POLYNOMIALS, (prox, lin, quad), strict=True)}}  # fmt: skip


def package_said(committed, polynomials, opened):
    out = Messages()
    committed.open(list(range(RATE * N)), out)
    every = np.frombuffer(out.to_bytes()[: 4 * RATE * N * SHAPE.column_rows], "<u4").reshape(RATE * N, -1).tolist()
    return {"columns": every, "opened": opened,
            **dict(zip(POLYNOMIALS, polynomials, strict=True))}  # fmt: skip


def differing(lack=""):
    """The messages in which the twin and the package differ."""
    values, pads = witness()
    parts = systems(values, pads)
    committed, polynomials, opened, verdict = prove(values, pads, parts)
    assert verdict == ""
    columns = challenges(polynomials)[3]
    ours = said(twin(values, pads, parts, polynomials, lack=lack), columns)
    theirs = package_said(committed, polynomials, opened)
    return {name for name in theirs if ours[name] != theirs[name]}


def test_every_codeword_and_every_message():
    """128 columns of 55 words, and the coefficients of the three test polynomials."""
    assert SHAPE.rows == 40 and SHAPE.chunks == 2 and len(CODE.points) == 128
    assert differing() == set()


@pytest.mark.parametrize(("lack", "where"), [
    ("row masks", {"columns", "opened", "proximity", "linear", "quadratic"}),
    ("proximity", {"columns", "opened", "proximity"}),
    ("linear", {"columns", "opened", "linear"}),
    ("quadratic", {"columns", "opened", "quadratic"}),
    ("a coefficient for each row", {"proximity"}),
    ("no constant weight", {"linear"}),
])  # fmt: skip
def test_another_algorithm_is_noticed(lack, where):
    """Masks or blinding left out, one coefficient for all rows, weights from eta^0 on."""
    assert differing(lack) == where


# The verifier


def lies():
    """(the check that fails, what is committed, what the equations are about, faults)"""
    values, pads = honest = witness()

    def changed(name, index):
        array = values.arrays[name].copy()
        array[index] ^= 1
        return SimpleNamespace(images=values.images, arrays=values.arrays | {name: array}), pads

    wrong = values, pads.copy()
    wrong[1][:, 8] = 7  # a product of pads
    bumped = faults.bumped((2, 1))
    yield "", honest, honest, []
    yield "quadratic.zero", changed("og", 3), changed("og", 3), []
    yield "quadratic.zero", wrong, wrong, []
    yield "linear.sum", changed("mask", 19), honest, []
    yield "linear.sum", honest, honest, [faults.masked_sum(-1)]
    yield "proximity.columns", honest, honest, [faults.codewords(2)]
    yield "proximity.columns", honest, honest, [faults.polynomial("proximity", bumped)]
    yield "linear.columns", honest, honest, [faults.polynomial("linear", bumped)]
    yield "linear.columns", changed("mask", 19), honest, [faults.stubborn()]
    yield "quadratic.columns", honest, honest, [faults.polynomial("quadratic", faults.bumped((2, 1), (2 + N, -1)))]
    yield "quadratic.columns", wrong, wrong, [faults.stubborn()]


@pytest.mark.parametrize("number", range(11))
def test_the_same_verdict(number):
    """Of the package's messages, honest or not, the twin says what the package's verifier does: the first check."""
    wanted, values, about, contexts = list(lies())[number]
    parts = systems(*about)
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        _, polynomials, opened, verdict = prove(*values, parts)
    given, columns = tuple(array(p, 1, -1) for p in polynomials), np.array([challenges(polynomials)[3]])
    large, small = (verify(CODE, claimed, challenge, given, columns, table(received(opened, made.rows.shape[1])))
                    for made, claimed, challenge in twin(*values, parts, polynomials))  # fmt: skip
    found = small | {"proximity.columns": large["proximity.columns"]}
    assert next((name for name in CHECKS if not found[name].all()), "") == verdict == wanted


def received(opened, rows):
    """Opened words [t][words] as rows [rows + 3][t]: the last ones are of K, pads among them in the folded view."""
    lanes = [list(lane) for lane in zip(*opened, strict=True)]
    wide = next(n for n in range(rows + 1) if n + (len(lanes) - n) // 5 == rows + 3)
    rest = (lanes[at : at + 5] for at in range(wide, len(lanes), 5))
    return lanes[:wide] + [[K(*c) for c in zip(*five, strict=True)] for five in rest]

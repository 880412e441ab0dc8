"""The frozen answers of the primitives, by the package and by the plain verifier's arithmetic."""

import base64
import hashlib
import json
from itertools import pairwise

import pytest
from py_ecc.bls import G2ProofOfPossession

from tests.protocol import plain_verifier as plain
from tests.vectors import primitives
from tests.vectors.common import HERE

VECTORS = json.loads((HERE / primitives.FILE).read_text())


def elements(data):
    return plain.elements(plain.Bytes(bytes.fromhex(data)), len(data) // 40)


def wire(values):
    return b"".join(v.to_bytes() for v in values).hex()


@pytest.mark.parametrize("name", VECTORS)
def test_the_package(name):
    assert json.loads(json.dumps(primitives.primitives()[name])) == VECTORS[name]


def test_field_and_extension():
    v = VECTORS["field"]
    (a,), (b,) = elements(v["a"]), elements(v["b"])
    assert wire([a * b]) == v["product"] and wire([a.inverse()]) == v["inverse"] and a * a.inverse() == plain.one
    v = VECTORS["extension"]
    point = [elements(part) for part in v["point"]]
    assert wire(plain.tensor(point, v["axes"])) == v["eq"] and wire([plain.real(point, v["axes"])]) == v["real"]


def test_window():
    v = VECTORS["window"]
    window = (*v["window"], 1) if len(v["window"]) == 5 else v["window"]
    for k, taps in enumerate(v["taps"]):
        assert dict(plain.read_at(window, v["length"], k)) == {p: i for p, i in enumerate(taps) if i >= 0}


def test_commitments_and_signature():
    v = VECTORS["commitments"]
    points = [*plain.pixel_generators(len(v["pixels"])), plain.BLINDING]
    assert bytes(plain.combination(points, [*v["pixels"], v["blinding"]]).to_compressed_bytes()).hex() == v["trigger"]
    share = plain.combination([plain.SHARE, plain.BLINDING], [v["share"], v["blinding"]])
    assert bytes(share.to_compressed_bytes()).hex() == v["share_commitment"]
    v = VECTORS["signature"]
    public, digest, signature = (bytes.fromhex(v[name]) for name in ("public_key", "digest", "signature"))
    key, message = plain.public_key(public), plain.labelled(v["label"], digest)
    plain.signed(key, message, signature, "signature")
    with pytest.raises(plain.Failed):
        plain.signed(key, message, signature[:-1] + b"\0", "signature")


def test_transcript():
    v, t = VECTORS["transcript"], plain.Transcript(first=(b"P", "protocol", b"test vectors"))
    assert t.digest().hex() == v["start"]
    t.absorb("bytes", b"xyz")
    t.absorb("bytes", b"")
    assert t.digest().hex() == v["absorbed"]
    assert wire(t.elements("elements", 2)) == v["elements"]
    assert t.base("base", 3) == v["base"]
    assert t.indices("indices", 5, 16) == v["indices"]
    forks = [t.fork(index).digest() for index in (0, 1)]
    assert [digest.hex() for digest in forks] == v["forks"]
    for digest in forks:
        t.absorb("fork", digest)
    assert t.digest().hex() == v["joined"]


def test_tree():
    """The plain verifier follows the same messages to the same point; with pads of 0 all equations are constants."""
    v, transcript = VECTORS["tree"], plain.Transcript(first=(b"P", "protocol", b"test vectors"))
    fork = plain.Fork(transcript, elements(v["sent"]), 11, 0, 33)  # 2 + 3 m triples for m = 3 variables
    point, numerator, denominator, total = fork.tree(v["axes"], v["order"])
    assert fork.at == len(fork.elements) and transcript.digest().hex() == v["digest"]
    assert [wire(part) for part in point] == v["point"] and wire([total.constant]) == v["sum"]
    assert len(fork.equations) == 12 and all(equation.constant == 0 for equation in fork.equations)
    weights = plain.tensor(point, v["axes"])
    leaves = [elements(v[name]) for name in ("numerators", "denominators")]
    at = [plain.total(w * leaf for w, leaf in zip(weights, part, strict=True)) for part in leaves]
    at[1] = at[1] + 1 - plain.total(weights)  # absent leaves are 0 / 1
    assert [numerator.constant.c, denominator.constant.c] == [value.c for value in at]
    fractions = plain.total(p * q.inverse() for p, q in zip(*leaves, strict=True))
    assert fractions == total.constant


def test_cosignature():
    v = VECTORS["cosignature"]
    signed = f"zkmark witness 1\n{v['log_key']}\n{v['checkpoint']}".encode()
    secret = G2ProofOfPossession.KeyGen(bytes.fromhex(v["seed"]))
    public, possession = G2ProofOfPossession.SkToPk(secret), G2ProofOfPossession.PopProve(secret)
    assert public.hex() == v["public_key"] and G2ProofOfPossession.Sign(secret, signed).hex() == v["signature"]
    value = b"\xffzkmark BLS12-381 witness 1\n" + public + possession
    number = hashlib.sha256(b"witness.example\n" + value).hexdigest()[:8]
    assert v["text"] == f"witness.example+{number}+{base64.b64encode(value).decode()}"


def test_row():
    """Values on the subgroup, masks times X^N - 1, at the points of section 8."""
    v, p = VECTORS["row"], plain.p
    size, n = len(v["values"]), len(v["values"]) * v["rate_inverse"]
    for c in range(n):
        x = 31 * pow(plain.root_of_unity(n), c // size, p) * pow(plain.root_of_unity(size), c % size, p) % p
        scale, w, word = (pow(x, size, p) - 1) * pow(size, -1, p), 1, 0
        for value in v["values"]:
            word += value * scale * w * pow(x - w, -1, p)
            w = w * plain.root_of_unity(size) % p
        word += (pow(x, size, p) - 1) * sum(mask * pow(x, i, p) for i, mask in enumerate(v["masks"]))
        assert word % p == v["word"][c]


def test_trees():
    def sha(tag, *parts):
        return hashlib.sha256(bytes([tag]) + b"".join(parts)).digest()

    v = VECTORS["merkle"]
    level = levels = [bytes.fromhex(leaf) for leaf in v["leaves"]]
    assert level[3] == sha(0, bytes([3]) * 32, bytes([3, 3]))
    levels = [level]
    while len(level) > 1:
        level = [sha(1, a, b) for k, (a, b) in enumerate(pairwise(level)) if k % 2 == 0]
        levels.append(level)
    assert level[0].hex() == v["root"]
    assert [levels[0][0], levels[0][7], levels[1][1], levels[1][2]] == [bytes.fromhex(s) for s in v["siblings"]]
    v = VECTORS["log"]
    leaves = [sha(0, bytes.fromhex(entry)) for entry in v["entries"]]
    assert [leaf.hex() for leaf in leaves] == v["leaves"]
    assert sha(1, sha(1, leaves[0], leaves[1]), leaves[2]).hex() == v["root"]
    v = VECTORS["consistency"]
    a, b, c, d, e, f, g = (sha(0, bytes.fromhex(entry)) for entry in v["entries"])
    ab, efg = sha(1, a, b), sha(1, sha(1, e, f), g)
    assert v["old_size"] == 3 and sha(1, ab, c).hex() == v["old_root"]
    assert sha(1, sha(1, ab, sha(1, c, d)), efg).hex() == v["root"]
    assert v["path"] == [part.hex() for part in (c, d, ab, efg)]

"""A verifier in Python integers, written from SPEC.md alone: the proof that the text is enough.

It shares no code with the package and is slow on purpose.  Section numbers are those of SPEC.md; section 3 is in
plain_network.py.  `verify` takes the bytes of the three frozen files and returns the intermediate values of
vectors.json; a failed check raises Failed.  Some things come from the libraries that the package has, too: points,
their sums and hash-to-curve, to be in time for a thousand proofs (test_group.py compares them with py_ecc and RFC
9380), Ed25519 (test_keygen.py with RFC 8032), cSHAKE256 and SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
from fractions import Fraction
from functools import cache
from itertools import pairwise, product
from math import comb, isqrt, prod
from typing import Any

from Crypto.Hash import cSHAKE256
from Crypto.Signature import eddsa
from py_arkworks_bls12381 import G1Point, Scalar

from tests.protocol.plain_network import Bytes, Failed, Network, p, positions, read_at, require

q = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
DOMAIN = b"zkmark-v1-generators-with-BLS12381G1_XMD:SHA-256_SSWU_RO_"


# --- 2: the fields -------------------------------------------------------------------------------


class K:
    """An element of F[x] / (x^5 - 2)."""

    __hash__ = None
    __slots__ = ("c",)

    def __init__(self, *c):
        self.c = c

    def __add__(self, o):
        (a, b, c, d, e), (f, g, h, i, j) = self.c, lift(o).c
        return K((a + f) % p, (b + g) % p, (c + h) % p, (d + i) % p, (e + j) % p)

    def __neg__(self):
        return K(*(-a % p for a in self.c))

    def __sub__(self, o):
        (a, b, c, d, e), (f, g, h, i, j) = self.c, lift(o).c
        return K((a - f) % p, (b - g) % p, (c - h) % p, (d - i) % p, (e - j) % p)

    def __rsub__(self, o):
        return lift(o) - self

    def __mul__(self, o):
        if isinstance(o, int):
            return K(*(a * o % p for a in self.c))
        (a, b, c, d, e), (f, g, h, i, j) = self.c, o.c
        return K(
            (a * f + 2 * (b * j + c * i + d * h + e * g)) % p,
            (a * g + b * f + 2 * (c * j + d * i + e * h)) % p,
            (a * h + b * g + c * f + 2 * (d * j + e * i)) % p,
            (a * i + b * h + c * g + d * f + 2 * e * j) % p,
            (a * j + b * i + c * h + d * g + e * f) % p,
        )

    __radd__, __rmul__ = __add__, __mul__

    def __pow__(self, n, _=None):
        if n < 0:
            return self.inverse() ** -n
        return (self * self) ** (n // 2) * (self if n & 1 else one) if n else one

    def __mod__(self, _):
        """It is reduced: the twins of tests/toy, which compute modulo p, take it for a number."""
        return self

    def inverse(self):
        """The product of the other four conjugates over the norm; x^p = 2^((p-1)/5) x."""
        if self == one:
            return self
        others, conjugate = one, self
        for _ in range(4):
            conjugate = K(*(a * pow(2, (p - 1) // 5 * j, p) % p for j, a in enumerate(conjugate.c)))
            others = others * conjugate
        return others * pow((self * others).c[0], -1, p)

    def __eq__(self, o):
        return self.c == lift(o).c

    def to_bytes(self):
        return b"".join(a.to_bytes(4, "little") for a in self.c)


def lift(v):
    return v if isinstance(v, K) else K(v % p, 0, 0, 0, 0)


zero, one = lift(0), lift(1)


def root_of_unity(m):
    return pow(31, (p - 1) // m, p)


def lg(n):
    return next(k for k in range(64) if 1 << k >= n)


def eq(x, n):
    """[eq(x, i) for i < n], lowest bit first."""
    out = [one]
    for c in x:
        high = [e * c for e in out]
        out = [e - f for e, f in zip(out, high, strict=True)] + high
    return out[:n]


def total(values):
    return sum(values, zero)


def real(point, shape):
    return prod((total(eq(x, n)) for x, n in zip(point, shape, strict=True)), start=one)


def tensor(point, shape):
    """eq over a tensor, row-major."""
    out = [one]
    for x, n in zip(point, shape, strict=True):
        table = eq(x, n)
        out = [a * b for a in out for b in table]
    return out


# --- reading -------------------------------------------------------------------------------------


def elements(r, n):
    data = r.raw(20 * n)
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    require(max(words, default=0) < p)
    return [K(*words[i : i + 5]) for i in range(0, len(words), 5)]


def u32(*values):
    return b"".join(v.to_bytes(4, "little") for v in values)


def blob(data):
    return u32(len(data)) + data


def sha(data):
    return hashlib.sha256(data).digest()


def shake(data, custom):
    return cSHAKE256.new(data, custom=custom.encode())


def point(data):
    try:
        decoded = G1Point.from_compressed_bytes(data)
    except ValueError:
        raise Failed("malformed") from None
    require(decoded != G1Point.identity() and bytes(decoded.to_compressed_bytes()) == data)
    return decoded


def combination(points, scalars):
    """The sum of scalar * point."""
    out = G1Point.identity()
    for a, s in zip(points, scalars, strict=True):
        out = out + a * Scalar.from_le_bytes((s % q).to_bytes(32, "little"))
    return out


@cache
def pixel_generators(n):
    return [G1Point.hash_to_curve(b"pixel" + u32(i), DOMAIN) for i in range(n)]


SHARE, BLINDING = (G1Point.hash_to_curve(m, DOMAIN) for m in (b"share", b"blinding"))


def public_key(data):
    """An Ed25519 key: a point whose order does not divide 8."""
    try:
        key = eddsa.import_public_key(data)
    except ValueError:
        raise Failed("malformed") from None
    require(not (key.pointQ * 8).is_point_at_infinity())
    return key


def signed(public, message, signature, check):
    try:
        eddsa.new(public, "rfc8032").verify(message, signature)
    except ValueError:
        raise Failed(check) from None


def labelled(label, digest):
    return b"zkmark signature 1\0" + label.encode() + b"\0" + digest


# --- 3 and 7: the network ------------------------------------------------------------------------


def tap_weights(window, pool, x, n, r):
    """A_k of section 7 for every tap k: sum over q of E_k(q) eq(r, q)."""
    at_input = eq(r, n)
    inner = at_input
    if pool is not None:
        inner = [zero] * positions(pool, n)
        for k in range(pool[0]):
            for a, i in read_at(pool, n, k):
                inner[a] = inner[a] + at_input[i]
    at_output = eq(x, positions(window, len(inner)))
    return [
        total(at_output[a] * inner[i] for a, i in read_at(window, len(inner), k)) for k in range(window[0])
    ]  # fmt: skip


def transposed(edge, rho, r, source, shape):
    """W'(r) of section 7."""
    o_count, cg, kh, kw = edge["axes"]
    pools = edge["windows"][2:] or (None, None)
    rows, columns = (tap_weights(edge["windows"][j], pools[j], rho[1 + j], source[1 + j], r[1 + j]) for j in (0, 1))
    taps = [a * b for a in rows for b in columns]
    at_out, at_in, out = eq(rho[0], o_count), eq(r[0], source[0]), zero
    for o in range(o_count):
        first = o // (o_count // edge["groups"]) * cg
        inner = [0] * 5
        for c in range(cg):
            base = (o * cg + c) * kh * kw
            part = [0] * 5
            for k, tap in enumerate(taps):
                w = edge["weight"][base + k]
                for j in range(5):
                    part[j] += w * tap.c[j]
            product_ = K(*(v % p for v in part)) * at_in[first + c]
            for j in range(5):
                inner[j] += product_.c[j]
        out = out + K(*(v % p for v in inner)) * at_out[o]
    return out


# --- 4: the key ----------------------------------------------------------------------------------


def below(bound, stream):
    width = (bound - 1).bit_length()
    while True:
        value = int.from_bytes(stream.read((width + 7) // 8), "little") & ((1 << width) - 1)
        if value < bound:
            return value


class Anchor:
    def __init__(self, data):
        r = Bytes(data)
        r.magic(b"zkmark anchor 1\n")
        self.name = r.text(1024)
        good = 0 < len(self.name) <= 256 and all("!" <= c <= "~" and c != "+" for c in self.name)
        self.public, self.index, self.seconds = public_key(r.raw(32)), r.int(8), r.int(8)
        length = r.int(1)
        require(good and length <= 64)
        self.path = [r.raw(32) for _ in range(length)]
        self.size, self.root, self.signature = r.int(8), r.raw(32), r.raw(64)
        r.done()
        require(self.index < self.size <= 1 << 62)

    def check(self, digest):
        text = f"{self.name}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"
        signed(self.public, text.encode(), self.signature, "log.signature")
        leaf = sha(b"\0zkmark log entry 2\n\1" + digest + self.seconds.to_bytes(8, "little"))
        path = list(self.path)
        require(root_of(leaf, self.index, self.size, path) == self.root and not path, "log.inclusion")
        require(self.size - self.index <= 4096, "log.window")


def root_of(leaf, index, size, path):
    """The root over `size` leaves by recursion from the top (RFC 9162, section 2.1.1); takes from the end of `path`."""
    if size == 1:
        return leaf
    split = 1 << (size - 1).bit_length() - 1
    require(bool(path), "log.inclusion")
    sibling = path.pop()
    if index < split:
        return sha(b"\1" + root_of(leaf, index, split, path) + sibling)
    return sha(b"\1" + sibling + root_of(leaf, index - split, size - split, path))


class Key:
    """A verification key, checked."""

    def __init__(self, data):
        r = Bytes(data)
        r.magic(b"zkmark vk 1\n")
        self.shape = tuple(r.int(4) for _ in range(3))
        self.classes, self.ell, rule = r.int(4), r.int(4), r.int(1)
        require(min(self.shape) >= 1 and prod(self.shape) <= 1 << 18)
        require(2 <= self.classes <= 1 << 16 and 1 <= self.ell <= 4096 and rule < 2)
        self.owner = r.raw(32)
        self.owner_key = public_key(self.owner)
        self.triggers, self.shares = ([r.raw(48) for _ in range(self.ell)] for _ in range(2))
        beacon, opened = r.blob(4096), r.count(self.ell)
        images = [r.raw(prod(self.shape)) for _ in range(opened)]
        shares = [r.int(4) for _ in range(opened)]
        blindings = [[r.int(32) for _ in range(opened)] for _ in range(2)]
        signature = r.raw(64)
        r.done()
        require(all(value < q for part in blindings for value in part))
        anchor = Anchor(beacon) if beacon.startswith(b"zkmark anchor 1\n") else None
        points = [[point(c) for c in part] for part in (self.triggers, self.shares)]
        self.digest = sha(data[:-64])
        signed(self.owner_key, labelled("verification key", self.digest), signature, "key.signature")
        parameters = blob(b"BLS12-381 G1") + blob(DOMAIN) + u32(self.classes, *self.shape) + self.owner + bytes([rule])
        commitments = u32(self.ell) + b"".join(self.triggers) + b"".join(self.shares)
        self.commitments_digest = shake(parameters + commitments, "zkmark/commitments").read(32)
        if anchor:
            anchor.check(self.commitments_digest)
        self.seed = shake(parameters + blob(beacon) + commitments, "zkmark/pkeygen-v1").read(32)
        stream = shake(self.seed, "zkmark/cnc").read(-(-self.ell // 8))
        self.bits = [stream[i // 8] >> i % 8 & 1 for i in range(self.ell)]
        self.offsets = [
            0 if rule else below(self.classes, shake(self.seed + u32(i), "zkmark/label")) for i in range(self.ell)
        ]
        self.hidden = [i for i, bit in enumerate(self.bits) if not bit]
        reach = isqrt(9 * self.ell // 4)
        require(abs(len(self.hidden) - self.ell // 2) <= reach, "key.window")
        shown = [i for i, bit in enumerate(self.bits) if bit]
        require(opened == len(shown), "key.openings")
        require(all(share < self.classes for share in shares), "key.range")
        require(len({*images}) == opened and len({*self.triggers, *self.shares}) == 2 * self.ell, "key.duplicates")
        for i, image, share, *rs in zip(shown, images, shares, *blindings, strict=True):  # one by one: plain
            for public, bases, values, blinding in (
                (points[0][i], pixel_generators(len(image)), image, rs[0]), (points[1][i], [SHARE], [share], rs[1])
            ):  # fmt: skip
                require(combination([*bases, BLINDING], [*values, blinding]) == public, "key.openings")


# --- 6: the transcript ---------------------------------------------------------------------------


class Coins:
    """Of a session: pending digest to coin."""

    def __init__(self, given):
        self.given, self.used = given, set()

    def take(self, pending):
        require(pending in self.given, "channel.coin")
        self.used.add(pending)
        return self.given[pending]


class Transcript:
    def __init__(self, state=bytes(32), first=(b"P", "protocol", b"zkmark argument 1"), coins=None):
        self.state, self.frames, self.coins = state, b"", coins
        self.frame(*first)

    def frame(self, kind, label, data):
        name = label.encode()
        self.frames += kind + len(name).to_bytes(2, "little") + len(data).to_bytes(8, "little") + name + data

    def absorb(self, label, data):
        self.frame(b"A", label, data)

    def digest(self):
        if self.frames:
            self.state, self.frames = shake(self.state + self.frames, "zkmark/state").read(32), b""
        return self.state

    def fork(self, index):
        return Transcript(self.digest(), (b"F", "node", index.to_bytes(8, "little")), self.coins)

    def stream(self, label):
        self.frame(b"C", label, b"")
        pending = self.digest()
        stream = shake(pending + (self.coins.take(pending) if self.coins else b""), "zkmark/challenge")
        self.state = stream.read(32)
        return stream

    def base(self, label, n):
        return base(self.stream(label), n)

    def elements(self, label, n):
        stream = self.stream(label)
        words = base(stream, 5 * n)
        out = [words[5 * i : 5 * i + 5] for i in range(n)]
        while bad := [i for i in range(n) if out[i][0] == 0]:
            words = base(stream, 5 * len(bad))
            for j, i in enumerate(bad):
                out[i] = words[5 * j : 5 * j + 5]
        return [K(*w) for w in out]

    def element(self, label):
        return self.elements(label, 1)[0]

    def indices(self, label, n, bound):
        stream, out = self.stream(label), set()
        while len(out) < n:
            out.add(int.from_bytes(stream.read(4), "little") % bound)
        return sorted(out)


def base(stream, n):
    out = []
    while len(out) < n:
        block = stream.read(4 * max(32, 9 * (n - len(out)) // 8))
        words = (int.from_bytes(block[i : i + 4], "little") & 0x7FFFFFFF for i in range(0, len(block), 4))
        out = (out + [w for w in words if w < p])[:n]
    return out


# --- 7: forms and forks --------------------------------------------------------------------------


class Form:
    """constant + pads {number: coefficient} + images [(group, column, point, coefficient)] + arrays [(name, list)]."""

    def __init__(self, constant=zero):
        self.constant, self.pads, self.images, self.arrays = constant, {}, [], []

    def add(self, other, factor=one):
        self.constant = self.constant + other.constant * factor
        for i, c in other.pads.items():
            self.pads[i] = self.pads.get(i, zero) + c * factor
        self.images += [(g, n, x, c * factor) for g, n, x, c in other.images]
        self.arrays += [(n, [w * factor for w in ws]) for n, ws in other.arrays]
        return self

    def const(self, value):
        self.constant = self.constant + value
        return self

    def image(self, group, column, x, coefficient):
        self.images.append((group, column, x, coefficient))
        return self

    def array(self, name, weights):
        self.arrays.append((name, weights))
        return self


def wire(number, sent):
    """A received value as a form."""
    out = Form(sent)
    out.pads = {number: one}
    return out


def times(x, y, product_pad):
    """The product of two wires whose pads' product is a pad."""
    ((i, _),), ((j, _),) = x.pads.items(), y.pads.items()
    out = Form(x.constant * y.constant)
    out.pads = {i: y.constant, j: x.constant, product_pad: one}
    return out


class Fork:
    """The messages of one fork, and its equations."""

    def __init__(self, transcript, elements, triples, first_triple, first_free):
        self.transcript, self.elements, self.at = transcript, elements, 0
        self.T, self.triple, self.free = triples, first_triple, first_free
        self.equations, self.batches = [], {}

    def receive(self, label, n):
        out = self.elements[self.at : self.at + n]
        self.at += n
        self.transcript.absorb(label, b"".join(v.to_bytes() for v in out))
        return out

    def wires(self, label, n):
        sent = self.receive(label, n)
        self.free += n
        return [wire(self.free - n + i, s) for i, s in enumerate(sent)]

    def factors(self, label, n):
        sent, first = self.receive(label, 2 * n), self.triple
        self.triple += n
        return (
            [wire(first + i, sent[i]) for i in range(n)],
            [wire(self.T + first + i, sent[n + i]) for i in range(n)],
            [2 * self.T + first + i for i in range(n)],
        )

    def sumcheck(self, claim, taus):
        """taus: (low, high) of each round.  Returns the last claim and the point."""
        rs = []
        for low, high in taus:
            h0, h2 = self.wires("round", 2)
            r = self.transcript.element("round")
            ratio = r * high.inverse()
            claim = Form().add(claim, ratio).add(h0, 1 - (low + high) * ratio).add(h2, r * r - r)
            rs.append(r)
        return claim, rs

    def tree(self, shape, order):
        """Returns the point per axis, P, Q and S."""
        variables = [axis for axis in order for _ in range(lg(shape[axis]))]
        m = len(variables)
        (wq,), (wi,), (qi,) = self.factors("root.q", 1)
        (wp,), (wi2,), (pi,) = self.factors("root.p", 1)
        (ws,) = self.wires("root.s", 1)
        self.equations += [
            Form().add(wi).add(wi2, lift(-1)),
            times(wq, wi, qi).const(lift(-1)),
            times(wp, wi2, pi).add(ws, lift(-1)),
        ]
        numerator, denominator, x = wp, wq, {}  # x: variable number to coordinate
        for level in reversed(range(m)):
            scale = self.transcript.element("layer")
            claim = Form().add(numerator).add(denominator, scale)
            names = range(level + 1, m)
            claim, rs = self.sumcheck(claim, [(1 - x[v], x[v]) for v in names])
            (p0, p1), (q1, q0), (p0q1, p1q0) = self.factors("layer.ends", 2)
            copy = self.triple
            self.triple += 1
            for original, number in ((q0, copy), (q1, self.T + copy)):
                form = Form()
                form.pads = {next(iter(original.pads)): one, number: lift(-1)}
                self.equations.append(form)
            claim.add(times(p0, q1, p0q1), lift(-1)).add(times(p1, q0, p1q0), lift(-1))
            self.equations.append(claim.add(times(q0, q1, 2 * self.T + copy), -scale))
            t = self.transcript.element("pair")
            numerator = Form().add(p0, 1 - t).add(p1, t)
            denominator = Form().add(q0, 1 - t).add(q1, t)
            x = {level: t, **dict(zip(names, rs, strict=True))}
        per_axis = [[x[v] for v in range(m) if variables[v] == axis] for axis in range(len(shape))]
        return per_axis, numerator, denominator, ws

    def affine(self, network, index, rho, h):
        node, shape = network.nodes[index - 1], network.shapes[index]
        sums = self.wires("edges", len(node["edges"]))
        for edge, s in zip(node["edges"], sums, strict=True):
            source = network.shapes[edge["source"]]
            claim, rs = self.sumcheck(s, [(one, one)] * sum(map(lg, source)))
            cuts = [0, lg(source[0]), lg(source[0]) + lg(source[1]), len(rs)]
            r = [rs[a:b] for a, b in pairwise(cuts)]
            factor = transposed(edge, rho, r, source, shape)
            self.equations.append(Form().add(claim).image(index, f"z{edge['source']}", r, -factor))
        bias = total(e * b for e, b in zip(eq(rho[0], shape[0]), node["bias"], strict=True))
        y = Form(bias * real(rho[1:], (*shape[1:], h)))
        for s in sums:
            y.add(s)
        return y.add(self.product(network, index, rho, h)) if node["product"] else y

    def product(self, network, index, rho, h):
        """T of section 7, with its own batch point."""
        left, right = network.nodes[index - 1]["product"]
        shape = (*network.shapes[left], h)
        (out,) = self.wires("product", 1)
        x = [v for axis in (2, 1, 0, 3) for v in rho[axis]]
        claim, rs = self.sumcheck(out, [(1 - v, v) for v in x])
        (a,), (b,), (ab,) = self.factors("product.ends", 1)
        taken, r = 0, {}
        for axis in (2, 1, 0, 3):
            r[axis], taken = rs[taken : taken + lg(shape[axis])], taken + lg(shape[axis])
        group = f"{index} product"
        self.batches[group] = eq(r[3], h)
        self.equations.append(Form().add(claim).add(times(a, b, ab), lift(-1)))
        self.equations.append(Form().add(a, lift(-1)).image(group, f"z{left}", [r[0], r[1], r[2]], one))
        spread = network.shapes[right] != network.shapes[left]
        factor = real([r[1], r[2]], shape[1:3]) if spread else one
        at = [r[0], [], []] if spread else [r[0], r[1], r[2]]
        self.equations.append(Form().add(b, lift(-1)).image(group, f"z{right}", at, factor))
        return out


# --- the whole -----------------------------------------------------------------------------------


def query(a, t):
    """Query error at rate 1/8."""
    n, k = 8 << a, (1 << a) + t
    agree = isqrt(242 * k * n // 100)
    return Fraction(comb(max(n - (n - k) // 2, agree), t), comb(n, t)), agree, n, k


def choose(rows, counts):
    """Section 9: (a, t) of the smallest cost.

    counts: lookups + table rows, layers, rounds, points, equations, variables of an image.
    """
    found = choose_for(124, rows, counts) or choose_for(128, rows, counts)
    require(found is not None)
    return found


def choose_for(bits, rows, counts):
    best = None
    size = (p - 1) * p**4
    for a in range(8, 19):
        t = next((t for t in range(1, min(255, 1 << (a - 1)) + 1) if query(a, t)[0] <= Fraction(1, 2**bits)), None)
        if t is None:
            continue
        error, agree, n, k = query(a, t)
        bound = Fraction(n * (agree + 3 - 2 * k), (agree + 1) ** 2 - n * (2 * k - 2))
        fractions, layers, rounds, points, equations, d = counts
        error += Fraction(2 * fractions + layers + 2 * rounds + points + 5 * d + (n - k) // 2, size)
        error += bound * Fraction(equations + 1, size) + Fraction(2, p**5) + Fraction(1, 2**128)
        error += Fraction(n, p**5) * Fraction(p, p - rows(a))
        if 8 * error > Fraction(1, 2**120):
            continue
        cost = 4 * t * rows(a) + 32 * t * (1 + n.bit_length() - t.bit_length()) + 20 * (4 * k + (1 << a))
        if best is None or cost < best[0]:
            best = cost, a, t
    return best and best[1:]


def verify(vk_data, network_data, claim_data, checked_columns=4, coins=None):
    """Check everything; the column tests at the first `checked_columns` of the opened columns only, to save time.

    checked_columns: None for all.  coins: those of the session, by pending digest, in the interactive channel.
    """
    key, net, out = Key(vk_data), Network(network_data), {}
    r = Bytes(claim_data)
    r.magic(b"zkmark claim 1\n")
    k_min, context = r.int(4), r.blob(2048)
    digests, proof = [r.raw(32) for _ in range(4)], r.blob(1 << 27)
    r.done()
    inner = Bytes(context)
    for _ in ("purpose", "claimant", "verifier"):
        inner.text(256)
    inner.raw(32)
    inner.done()
    classes, h, d, last = key.classes, len(key.hidden), prod(key.shape), len(net.nodes)
    require((net.shape, net.shapes[-1][0]) == (key.shape, classes) and 1 <= k_min <= h)
    statement = blob(b"zkmark argument 1") + key.digest + net.digest + u32(k_min, h) + digests[1] + digests[3]
    statement = sha(statement + blob(context))
    out |= {"vk_digest": key.digest.hex(), "network_digest": net.digest.hex(), "statement_digest": statement.hex()}
    out |= {"key_seed": key.seed.hex(), "coin_bits": "".join(map(str, key.bits)), "offsets": key.offsets}
    out |= {"hidden": key.hidden}

    # 5: columns, arrays, tables
    columns, depth = {}, 0
    names = [("x", 0), ("z0", 0)] + [(f"{letter}{k}", k) for k in range(1, last) for letter in "uz"]
    for name, k in names:
        columns[name] = depth, net.shapes[k]
        depth += prod(net.shapes[k])
    tables = [("table", i, [(u - (1 << b - 1), v) for u, v in enumerate(t)]) for i, (b, t) in enumerate(net.tables)]
    ranges = sorted({node["s"] for node in net.nodes if node["s"]} | {15})
    tables += [("range", s, [(i, 0) for i in range(1 << s)]) for s in ranges]
    tables += [("pixel", c, list(enumerate(t))) for c, t in enumerate(net.input_tables)]
    tag = {(kind, which): number for number, (kind, which, _) in enumerate(tables, 1)}
    rows_of_tables = [(number, *row) for number, (_, _, rows) in enumerate(tables, 1) for row in rows]
    sets = [1] + [2 if node["s"] else 1 for node in net.nodes[:-1]] + [2]
    lookups = h * (d + 2 * classes + sum(n * prod(s) for n, s in zip(sets[1:-1], net.shapes[1:-1], strict=True)))
    require(lookups + len(rows_of_tables) < p)
    require(digests[0] == key.digest, "statement.key")
    require(digests[2] == net.digest, "statement.network")
    arrays = dict.fromkeys(("o", "g", "og", "m", "d", "v", "v0", "v1"), classes * h)
    count_bits = (h - k_min).bit_length()
    arrays |= {"count": count_bits, "uses": len(rows_of_tables), "mask": 5 * (d + 1)}

    # 7: sizes of the forks; 9: parameters
    leaf = (3, 2, 1, 4, 0)
    trees = [((sets[k], *net.shapes[k], h), leaf) for k in range(last + 1)]
    trees.append(((-(-len(rows_of_tables) // 256), 256), (0, 1)))
    ms = [sum(map(lg, shape)) for shape, _ in trees]
    edges = [[e["source"] for e in node["edges"]] for node in net.nodes]
    rounds = [0] + [sum(lg(n) for e in es for n in net.shapes[e]) for es in edges] + [0]
    per_edge = [0] + [len(es) for es in edges] + [0]
    products = [0] + [int(node["product"] is not None) for node in net.nodes] + [0]
    for index, used in enumerate(products):
        rounds[index] += used * sum(map(lg, (*net.shapes[min(index, last)], h)))
    each = list(zip(ms, per_edge, products, rounds, strict=True))
    free = [1 + m * (m - 1) + e + u + 2 * r for m, e, u, r in each]
    triples = [2 + 3 * m + u for m, _, u, _ in each]
    sent = [m * m + 3 * m + 5 + e + 3 * u + 2 * r for m, e, u, r in each]
    T, f = sum(triples), sum(free)

    def rows_for(a):
        n = 1 << a
        rows = h * -(-depth // n) + sum(-(-length // n) for length in arrays.values())
        return rows + 5 * (3 * -(-T // n) + -(-f // n))

    equations = sum(3 * m + 5 for m in ms) + sum(per_edge) + 3 * sum(products) + last + 16
    layers = sum(2 * j + 2 for m in ms for j in range(m))
    points = 6 * (lg(classes) + lg(h)) + sum(m for m, node in zip(ms[1:last], net.nodes, strict=False) if not node["s"])
    variables = sum(map(lg, key.shape))
    a, t = choose(rows_for, (lookups + len(rows_of_tables), layers, sum(rounds), points, equations, variables))
    N, n, k, rows = 1 << a, 8 << a, (1 << a) + t, rows_for(a)
    out["parameters"] = [a, 3, t]

    # 11: the proof's first fields
    r = Bytes(proof)
    r.magic(b"zkmark proof 1\n")
    require(len(proof) >= 15 + 64)
    signed(key.owner_key, labelled("proof", sha(statement + proof[:-64])), proof[-64:], "owner.signature")
    root, commitments = r.raw(32), [r.raw(48) for _ in range(10)]
    largest = [h * (p - 1) * 255, h * (p - 1) * (classes - 1)]
    widths = [-(-((5 * c * s).bit_length() + 10) // 8) for c, s in zip((d, 1), largest, strict=True)]
    out["link_bounds"] = {"pixels": [largest[0], 8 * widths[0]], "shares": [largest[1], 8 * widths[1]]}
    answer = r.raw(5 * (d * widths[0] + widths[1] + 64))
    messages = [elements(r, count) for count in sent]

    # 6: transcript and link
    main = Transcript(coins=None if coins is None else Coins(coins))
    for label, data in (("statement", statement), ("vk", key.digest), ("owner", key.owner), ("network", net.digest),
                        ("context", context), ("root", root), ("link.commitments", b"".join(commitments))):  # fmt: skip
        main.absorb(label, data)
    alpha, beta = main.element("alpha"), main.element("beta")
    words = main.base("link", 10 * h)
    gamma = [[words[(b * 5 + j) * h : (b * 5 + j + 1) * h] for j in range(5)] for b in range(2)]
    main.absorb("link.answer", answer)
    link_point = [main.elements("link.point", lg(length)) for length in key.shape]
    out |= {"alpha": alpha.to_bytes().hex(), "beta": beta.to_bytes().hex(), "gamma_digest": sha(u32(*words)).hex()}
    out["link_point"] = [b"".join(x.to_bytes() for x in part).hex() for part in link_point]
    reader = Bytes(answer)
    z = [[reader.int(widths[0]) for _ in range(d)] for _ in range(5)]
    z_share = [reader.int(widths[1]) for _ in range(5)]
    taus = [reader.int(32) for _ in range(10)]
    require(max(taus) < q)
    require(min(map(min, z)) >= largest[0] and min(z_share) >= largest[1], "link.range")
    masks = [point(c) for c in commitments]
    published = [[point(source[i]) for i in key.hidden] for source in (key.triggers, key.shares)]
    for b, j in product(range(2), range(5)):  # one by one: plain
        opened = combination([*pixel_generators(d), BLINDING], [*z[j], taus[j]]) if b == 0 else combination(
            [SHARE, BLINDING], [z_share[j], taus[5 + j]])  # fmt: skip
        committed = masks[5 * b + j] + combination(published[b], gamma[b][j])
        require(opened == committed, "link.opening")
    weights, system = {f"link{j}": [lift(g) for g in gamma[0][j]] for j in range(5)}, []
    at_pixel = tensor(link_point, key.shape)
    for j in range(5):
        form = Form(-total(e * (v % p) for e, v in zip(at_pixel, z[j], strict=True)))
        form.array("mask", [zero] * (j * d) + at_pixel + [zero] * (arrays["mask"] - (j + 1) * d))
        system.append(form.image(f"link{j}", "x", link_point, one))
        form = Form(lift(-z_share[j])).array("mask", [lift(int(i == 5 * d + j)) for i in range(arrays["mask"])])
        hidden = list(zip(key.hidden, gamma[1][j], strict=True))
        system.append(form.array("o", [lift((c - key.offsets[i]) % classes * g) for c in range(classes)
                                       for i, g in hidden]))  # fmt: skip

    # 7: forks
    sums, forks, at_triple, at_free = [], [], 0, 3 * T
    for index, (shape, order) in enumerate(trees):
        fork = Fork(main.fork(index), messages[index], T, at_triple, at_free)
        at_triple, at_free = at_triple + triples[index], at_free + free[index]
        forks.append(fork)
        x, P, Q, S = fork.tree(shape, order)
        sums.append(S)
        push = fork.equations.append
        if index == last + 1:
            w = tensor(x, shape)[: len(rows_of_tables)]
            push(Form().add(P).array("uses", [-e for e in w]))
            ones = total(w)
            value = [dot(w, column) for column in zip(*rows_of_tables, strict=True)]
            Q = Form().add(Q).const(-(1 - ones) - beta * ones + value[0] + alpha * value[1] + alpha * alpha * value[2])
            push(Q)
            continue
        sigma, rho = (x[0][0] if x[0] else zero), x[1:]
        ones = real(rho, shape[1:])
        push(Form().add(P).const(-ones))
        weights[index] = eq(rho[3], h)
        if index == 0:
            tags = total(e * tag["pixel", c] for c, e in enumerate(eq(rho[0], shape[1]))) * real(rho[1:], shape[2:])
            form = Form().add(Q).const(-(1 - ones) - beta * ones + tags)
            push(form.image(0, "x", rho[:3], alpha).image(0, "z0", rho[:3], alpha * alpha))
        elif index < last:
            node = net.nodes[index - 1]
            s, off = node["s"], (1 << node["s"]) // 2 if node["s"] else 0
            y = fork.affine(net, index, rho, h)
            if s == 0:
                push(Form().add(y).image(index, f"u{index}", rho[:3], lift(-1)))
            lower, upper = beta - tag["table", node["table"]], beta - tag["range", s] if s else zero
            form = Form().add(Q).const(-(1 - ones) - ((1 - sigma) * lower + sigma * upper) * ones)
            form.image(index, f"u{index}", rho[:3], (1 - sigma) * alpha - sigma * alpha * (1 << s))
            form.image(index, f"z{index}", rho[:3], (1 - sigma) * alpha * alpha)
            push(form.add(y, sigma * alpha).const(sigma * alpha * off * ones))
        else:
            at = tensor((rho[0], rho[3]), (classes, h))
            form = Form().add(Q).const(-(1 - ones) - (beta - tag["range", 15]) * ones)
            form.array("v0", [alpha * (1 - sigma) * e for e in at])
            push(form.array("v1", [alpha * sigma * e for e in at]))
            rho = [fork.transcript.elements("class", lg(classes)), [], []]
            rho.append(fork.transcript.elements("image", lg(h)))
            at_class, at_image = eq(rho[0], classes), eq(rho[3], h)
            both = [c * i for c in at_class for i in at_image]
            real_c, real_h = total(at_class), total(at_image)
            weights[index] = at_image
            y = fork.affine(net, index, rho, h)
            push(Form().add(y).array("g", [-e for e in both]))
            push(Form(-real_h).array("o", at_image * classes))
            first = [real_c * e for e in at_image] + [zero] * (h * (classes - 1))
            push(Form().array("m", [e - v for e, v in zip(both, first, strict=True)]))
            form = Form(real_c * real_h).array("d", both).array("g", both).array("o", [-e for e in both])
            push(form.array("og", [-(real_c * e) for e in at_image] * classes))
            form = Form().array("v", both).array("v0", [-e for e in both])
            push(form.array("v1", [e * -(1 << 15) for e in both]))
            form = Form(lift(-k_min)).array("m", [one] * h + [zero] * (h * (classes - 1)))
            push(form.array("count", [lift(-(1 << j)) for j in range(count_bits)]))
    for fork in forks:
        require(fork.at == len(fork.elements), "messages.count")
        weights |= fork.batches
        main.absorb("fork", fork.transcript.digest())
        system += fork.equations
    out["fork_digests"] = [fork.transcript.digest().hex() for fork in forks]
    balance = Form()
    for S in sums[:-1]:
        balance.add(S)
    system.append(balance.add(sums[-1], lift(-1)))
    out["sizes"] = {"depth": depth, "rows": rows, "triples": T, "free pads": f, "table rows": len(rows_of_tables),
                    "lookups": lookups, "equations": len(system)}  # fmt: skip

    # 8: the linear system, row by row
    eta, target = main.element("equations"), zero
    factor = eta
    pads, chunks = [zero] * (3 * T + f), {}
    held = {name: [zero] * length for name, length in arrays.items()}
    for form in system:
        target = target - form.constant * factor
        for i, c in form.pads.items():
            pads[i] = pads[i] + c * factor
        for group, column, x, c in form.images:
            offset, shape = columns[column]
            for j, e in enumerate(tensor(x, shape), offset):
                table = chunks.setdefault((group, j // N), [zero] * N)
                table[j % N] = table[j % N] + e * c * factor
        for name, values in form.arrays:
            held[name] = [v + w * factor for v, w in zip(held[name], values, strict=True)]
        factor = factor * eta
    out |= {"eta": eta.to_bytes().hex(), "target": target.to_bytes().hex()}

    def cut(values):
        """A vector on whole rows."""
        return [(values[i : i + N] + [zero] * N)[:N] for i in range(0, len(values), N)]

    array_rows = {name: cut(values) for name, values in held.items()}
    pad_rows = [row for i in range(4) for row in cut(pads[i * T : (i + 1) * T] if i < 3 else pads[3 * T :])]
    triple_rows = -(-T // N)
    products = [(x, y, z, i) for x, y, z in (("o", "o", "o"), ("m", "m", "m"), ("count",) * 3, ("o", "g", "og"),
                                             ("m", "d", "v")) for i in range(len(array_rows[x]))]  # fmt: skip
    c_prox = main.elements("proximity", rows)
    c_quad = main.elements("quadratic", len(products) + triple_rows)
    p_prox, p_lin, p_quad = elements(r, k), elements(r, N + k - 1), elements(r, 2 * k - 1)
    for name, polynomial in (("proximity", p_prox), ("linear", p_lin), ("quadratic", p_quad)):
        main.absorb(f"{name}.polynomial", b"".join(c.to_bytes() for c in polynomial))
    require(all(total(p_quad[j::N]) == 0 for j in range(N)), "quadratic.zero")
    require(total(p_lin[::N]) * N == target, "linear.sum")
    opened = main.indices("columns", t, n)
    out["columns"] = opened
    words = {c: r.raw(4 * (rows + 15)) for c in opened}
    numbers = {c: [int.from_bytes(w[i : i + 4], "little") for i in range(0, len(w), 4)] for c, w in words.items()}
    require(max(map(max, numbers.values())) < p)
    level = {c: sha(b"\0" + r.raw(32) + words[c]) for c in opened}
    width = n
    while width > 1:
        parents = {}
        for c in sorted(level):
            if c // 2 not in parents:
                other = level[c ^ 1] if c ^ 1 in level else r.raw(32)
                parents[c // 2] = sha(b"\1" + (other + level[c] if c % 2 else level[c] + other))
        level, width = parents, width // 2
    require(level == {0: root}, "merkle.path")

    for c in opened[:checked_columns]:
        column = numbers[c]
        x = 31 * pow(root_of_unity(n), c // N, p) * pow(root_of_unity(N), c % N, p) % p
        b_prox, b_lin, b_quad = (K(*column[rows + 5 * i : rows + 5 * i + 5]) for i in range(3))
        expected = b_prox + total(e * v for e, v in zip(c_prox, column, strict=False))
        require(evaluate(p_prox, x) == expected, "proximity.columns")
        scale = (pow(x, N, p) - 1) * pow(N, -1, p)
        lagrange, w = [], 1
        for _ in range(N):
            lagrange.append(scale * w * pow(x - w, -1, p) % p)
            w = w * root_of_unity(N) % p
        found = b_lin
        for (group, chunk), values in chunks.items():
            images = column[chunk * h : (chunk + 1) * h]
            found = found + dot(values, lagrange) * total(
                e * v for e, v in zip(weights[group], images, strict=True))  # fmt: skip
        at = h * -(-depth // N)
        array_values = {}
        for name, values in array_rows.items():
            for i, row in enumerate(values):
                array_values[name, i] = column[at]
                found = found + dot(row, lagrange) * column[at]
                at += 1
        pad_values = [K(*column[i : i + 5]) for i in range(at, rows, 5)]
        for row, value in zip(pad_rows, pad_values, strict=True):
            found = found + dot(row, lagrange) * value
        require(evaluate(p_lin, x) == found, "linear.columns")
        found = b_quad
        for coefficient, (left, right, both, i) in zip(c_quad, products, strict=False):
            gap = array_values[left, i] * array_values[right, i] - array_values[both, i]
            found = found + coefficient * (gap % p)
        for i in range(triple_rows):
            left, right, both = (pad_values[i + j * triple_rows] for j in range(3))
            found = found + c_quad[len(products) + i] * (left * right - both)
        require(evaluate(p_quad, x) == found, "quadratic.columns")
    r.raw(64)
    r.done()
    require(coins is None or main.coins.used == {*coins}, "channel.unused_coin")
    return out


def evaluate(coefficients, x):
    out = zero
    for c in reversed(coefficients):
        out = out * x + c
    return out


def dot(values, integers):
    """The sum of value * integer."""
    return K(*(sum(v.c[j] * e for v, e in zip(values, integers, strict=True)) % p for j in range(5)))


def load(folder) -> dict[str, Any]:
    """The three files of a folder."""
    return {
        "vk_data": (folder / "key.vk").read_bytes(),
        "network_data": (folder / "model.network").read_bytes(),
        "claim_data": (folder / "claim.proof").read_bytes(),
    }

"""Section 3 of SPEC.md in Python integers: the integer network, its canonical encoding and its static bounds.

Part of plain_verifier.py, and like it written from the text alone.
"""

from __future__ import annotations

import hashlib
from itertools import product
from math import prod

p = 15 * 2**27 + 1
DIMENSION = 1 << 16  # of shapes, and in size of everything in a window
COUNT = 4096  # nodes, and edges of a node
TAPS = 1 << 22
LARGEST_LOGIT = (p - 2**30 - 1) // 2


class Failed(Exception):
    """A check does not hold; the argument is its name."""


def require(condition: bool, check: str = "malformed") -> None:
    if not condition:
        raise Failed(check)


class Bytes:
    """Reads integers and byte strings."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def raw(self, n):
        require(0 <= n <= len(self.data) - self.at)
        self.at += n
        return self.data[self.at - n : self.at]

    def int(self, n, signed=False):
        return int.from_bytes(self.raw(n), "little", signed=signed)

    def count(self, most):
        n = self.int(4)
        require(n <= most)
        return n

    def i64(self, n):
        data = self.raw(8 * n)
        return [int.from_bytes(data[i : i + 8], "little", signed=True) for i in range(0, 8 * n, 8)]

    def blob(self, most=1 << 32):
        return self.raw(self.count(most))

    def text(self, most):
        try:
            return self.blob(most).decode()
        except UnicodeDecodeError:
            raise Failed("malformed") from None

    def magic(self, tag):
        require(self.raw(len(tag)) == tag)

    def done(self):
        require(self.at == len(self.data))


class Network:
    """Fields as in the canonical encoding; shapes[k] of graph node k, ranges[k] of its channels: (least, largest)."""

    def __init__(self, data):
        r = Bytes(data)
        r.magic(b"zkmark network 1\n")
        self.digest = hashlib.sha256(data).digest()
        self.shape = tuple(r.int(4) for _ in range(3))
        require(all(0 < n <= DIMENSION for n in self.shape))
        self.input_tables = [r.i64(256) for _ in range(self.shape[0])]
        self.tables = []
        for _ in range(r.count(COUNT)):
            bits = r.int(1)
            require(1 <= bits <= 20)
            self.tables.append((bits, r.i64(1 << bits)))
        self.nodes, used = [], []
        for _ in range(r.count(COUNT)):
            node = {"s": r.int(1), "table": r.count(len(self.tables)) - 1}
            left, right = r.int(4), r.int(4)
            require((left == 0) == (right == 0))
            node["product"] = (left - 1, right - 1) if left else None
            node["bias"], node["edges"] = r.i64(r.count(DIMENSION)), []
            for _ in range(r.count(COUNT)):
                edge = {"source": r.int(4), "groups": r.int(4), "axes": [r.count(1 << 31) for _ in range(4)]}
                windows = r.int(1)
                require(windows in (2, 4) and min(edge["axes"]) > 0)
                edge["windows"] = [tuple(r.i64(6)) for _ in range(windows)]
                edge["weight"] = r.i64(prod(edge["axes"]))
                node["edges"].append(edge)
            self.nodes.append(node)
            used += [node["table"]] if node["table"] >= 0 else []
        r.done()
        distinct = {(bits, tuple(values)) for bits, values in self.tables}
        require(list(dict.fromkeys(used)) == list(range(len(self.tables))) and len(distinct) == len(self.tables))
        self.shapes = [self.shape]
        for number, node in enumerate(self.nodes, 1):
            self.shapes.append(self.shape_of(node, number))
        require(bool(self.nodes) and self.shapes[-1][0] >= 2 and self.shapes[-1][1:] == (1, 1))
        self.check_bounds()

    def shape_of(self, node, number):
        """The shape of a node whose sources have theirs."""
        last, found = number == len(self.nodes), set()
        require((node["table"] < 0) == last and node["s"] <= (0 if last else 24))
        if node["product"]:
            left, right = node["product"]
            require(not last and max(left, right) < number)
            found.add(self.shapes[left])
            require(self.shapes[right] in (self.shapes[left], (self.shapes[left][0], 1, 1)))
        for edge in node["edges"]:
            require(edge["source"] < number)
            c, *lengths = self.shapes[edge["source"]]
            lengths = slid(edge["windows"][2:], lengths)
            o, cg, *kernels = edge["axes"]
            require(edge["groups"] >= 1 and c == cg * edge["groups"] and o % edge["groups"] == 0)
            require(kernels == [window[0] for window in edge["windows"][:2]])
            found.add((o, *slid(edge["windows"][:2], lengths)))
        require(len(found) == 1 and max(found := found.pop()) <= DIMENSION and len(node["bias"]) == found[0])
        return found

    def check_bounds(self):
        """Every image has a witness, and equations modulo p hold over the integers."""
        require(all(small(table) for table in self.input_tables))
        ranges = self.ranges = [[(min(table), max(table)) for table in self.input_tables]]
        for node in self.nodes:
            require(small(node["bias"]) and all(small(edge["weight"]) for edge in node["edges"]))
            low, high, size = reach(node, ranges)
            require(max(size) < 1 << 52)
            if node["table"] < 0:
                require(max(-min(low), max(high)) <= LARGEST_LOGIT)
                return
            (bits, table), s = self.tables[node["table"]], node["s"]
            half, off = 1 << (bits + s - 1), offset(s)
            require(-half <= min(low) + off and max(high) + off <= half - 1)
            require(max(-min(low), max(high)) + half + off < p and small(table))
            middle = 1 << (bits - 1)
            reached = [table[(a + off >> s) + middle : (b + off >> s) + middle + 1]
                       for a, b in zip(low, high, strict=True)]  # fmt: skip
            ranges.append([(min(part), max(part)) for part in reached])


def small(values):
    return all(abs(v) < 1 << 30 for v in values)


def offset(s):
    return (1 << s) // 2 if s else 0


def reach(node, ranges):
    """Per output channel: (low, high) of y, and what bounds every partial sum."""
    low, high, size = list(node["bias"]), list(node["bias"]), [abs(b) for b in node["bias"]]
    for o in range(len(size)):
        if node["product"]:
            left, right = (ranges[source][o] for source in node["product"])
            ends = [a * b for a, b in product(left, right)]
            low[o], high[o] = low[o] + min(ends), high[o] + max(ends)
            size[o] += max(map(abs, left)) * max(map(abs, right))
        for edge in node["edges"]:
            outputs, cg, kh, kw = edge["axes"]
            first = o // (outputs // edge["groups"]) * cg
            area = prod(window[0] for window in edge["windows"][2:])
            pads = any(before > 0 or after > 0 for _, _, before, after, _, _ in edge["windows"])
            for c in range(cg):
                taps = edge["weight"][(o * cg + c) * kh * kw : (o * cg + c + 1) * kh * kw]
                up, down = sum(w for w in taps if w > 0), sum(w for w in taps if w < 0)
                least, most = ranges[edge["source"]][first + c]
                size[o] += area * (up - down) * max(abs(least), abs(most))
                if pads:
                    least, most = min(least, 0), max(most, 0)
                low[o] += area * (up * least + down * most)
                high[o] += area * (up * most + down * least)
    return low, high, size


def slid(windows, lengths):
    """The numbers of positions of usable windows; the lengths themselves without windows."""
    out = []
    for window, n in zip(windows, lengths, strict=False):
        kernel, stride, _, _, dilation, repeat = window
        require(min(kernel, stride, dilation, repeat) >= 1 and max(map(abs, window)) <= DIMENSION)
        out.append(positions(window, n))
        require(out[-1] >= 1 and kernel * max(n, out[-1]) <= TAPS)
    return out or list(lengths)


def positions(window, n):
    kernel, stride, before, after, dilation, repeat = window
    return (n * repeat + before + after - dilation * (kernel - 1) - 1) // stride + 1


def read_at(window, n, k):
    """[(position, input)] of tap k, inside the input."""
    _, stride, before, _, dilation, repeat = window
    pairs = ((a, stride * a + dilation * k - before) for a in range(positions(window, n)))
    if repeat > 1:
        return [(a, min(max(i // repeat, 0), n - 1)) for a, i in pairs]
    return [(a, i) for a, i in pairs if 0 <= i < n]

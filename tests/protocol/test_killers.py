"""Single conditions of the verifier at their edges: what mutants of the code survived (see tests/mutation).

No test takes an argument, and none makes a proof: `make mutate` calls them one by one for every mutant.
"""

import base64
import importlib
import io
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from Crypto.PublicKey import ECC
from Crypto.Signature import eddsa

from protocol import argument, field, identity, keygen, layers, link, log, soundness, timestamp
from protocol import network as network_module
from protocol.argument import Context, Statement
from protocol.claim import Claim, compare, statement_digests
from protocol.cosignature import Cosignature
from protocol.encoding import Reader, Writer
from protocol.errors import DecodingError, ParameterError, VerificationError
from protocol.group import ORDER
from protocol.keygen import KeyParameters
from protocol.layout import PRODUCTS, Layout
from protocol.link import Answer, Bounds
from protocol.log import (
    Checkpoint,
    LogKey,
    check_consistency,
    check_inclusion,
    leaf_hash,
    node_hash,
    open_checkpoint,
)
from protocol.matrix import Shape, combine
from protocol.multilinear import eq_tensor, lg
from protocol.network import Edge, Network, Node, Product, Table, Window, affine_bounds
from protocol.pads import Form, Need, Party, System, Wire
from protocol.soundness import Parameters
from protocol.transcript import FiatShamir, MaskedElements, Transcript
from tests.vectors import proof as proof_vectors

SPEC = Path(__file__).parents[2] / "protocol" / "SPEC.md"


@cache
def frozen():
    """(statement, proof, vectors, the module that made them)"""
    return (*proof_vectors.load(), proof_vectors)


@contextmanager
def fails(check):
    with pytest.raises(VerificationError) as error:
        yield
    assert error.value.check == check


@contextmanager
def put(owner, name, value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


# Numbers


def test_the_constants_are_those_of_the_text():
    table = SPEC.read_text().partition("| constant | value | code |\n|---|---|---|\n")[2].partition("\n\n")[0]
    lines = [line.replace("\\|", "").split("|")[1:-1] for line in table.splitlines()]
    rows = [[cell.strip().strip("`") for cell in line] for line in lines]
    assert len(rows) > 30
    for _, value, code in rows:
        module, name = code.rsplit(".", 1)
        assert getattr(importlib.import_module(module), name) == eval(value, {}), code


# Statements and contexts


def test_sizes_of_a_context():
    most = "x" * 256
    Context(most, most, most, bytes(32))
    for nonce in (bytes(31), bytes(33)):
        with pytest.raises(ParameterError):
            Context("", "", "", nonce)
    for texts in ((most + "x", "", ""), ("", most + "x", ""), ("", "", most + "x"), ("é" * 129, "", "")):
        with pytest.raises(ParameterError):
            Context(*texts, bytes(32))
    data = Context(most, "a", "b", bytes(32)).to_bytes()
    assert Context.from_bytes(data).purpose == most
    for bad in (data + b"\0", data[:-1]):
        with pytest.raises(DecodingError):
            Context.from_bytes(bad)
    assert (argument.MAX_PROOF_BYTES, argument.MAX_TEXT_BYTES, argument.NONCE_BYTES) == (1 << 30, 256, 32)


def test_what_no_statement_can_be():
    statement = frozen()[0]
    h = statement.key.h
    for k_min in (1, h):
        replace(statement, k_min=k_min)
    for changes in (
        {"k_min": 0}, {"k_min": h + 1}, {"model_digest": bytes(31)}, {"model_digest": bytes(33)},
        {"derivation_digest": bytes(31)}, {"derivation_digest": bytes(33)},
    ):  # fmt: skip
        with pytest.raises(ParameterError):
            replace(statement, **changes)
    for parameters in ({"classes": 11}, {"shape": (1, 2, 8)}):
        other = replace(statement.key, parameters=replace(statement.key.parameters, **parameters))
        other.__dict__["hidden"] = statement.key.hidden
        with pytest.raises(ParameterError, match="shape or classes"):
            replace(statement, key=other)


def test_lookups_do_not_wrap():
    """Fewer than p tuples are looked up and in tables together."""
    statement = frozen()[0]
    size = statement.layout.tables.size
    for lookups, fits in ((field.P - size - 1, True), (field.P - size, False)):
        with put(Layout, "lookups", lookups):
            if fits:
                replace(statement)
                continue
            with pytest.raises(ParameterError, match="too many"):
                replace(statement)


def test_rows_are_counted_for_every_length_as_they_are_laid_out():
    """The parameters are chosen by the rows that there will be; the ledger counts all of the statement."""
    statement, seen = replace(frozen()[0]), []

    def choose(counts, rows):
        seen.append((counts, rows))
        return soundness.choose_parameters(counts, rows)

    with put(argument, "choose_parameters", choose):
        shape = statement.shape
    ((counts, rows),) = seen
    for a in range(8, 15):
        parameters = object.__new__(Parameters)
        parameters.__dict__.update(log2_row=a, log2_rate_inverse=3, queries=150)
        assert rows(a) == Shape(shape.layout, shape.need, parameters).rows
    assert rows(shape.parameters.log2_row) == shape.rows
    assert counts == statement._counts
    layout, network = statement.layout, statement.network
    assert (counts.leaves, counts.table_rows, counts.rows) == (layout.lookups, layout.tables.size, 0)
    assert counts.link_coordinates == 16 and counts.triples == 1
    assert statement.forks == len(network.nodes) + 2 == len(statement.needs) == len(counts.trees)
    wide, fields = replace(statement), ("nodes", "shapes", "classes")
    wide.__dict__.update(layout=layout, network=SimpleNamespace(
        shape=(3, 5, 8), **{name: getattr(network, name) for name in fields}))
    assert wide._counts.link_coordinates == 4 * 8 * 8


def test_coordinates_of_points_count_nodes_without_a_shift():
    """Wherever they are: their u is compared with y at the tree's point."""
    table, out = Table(9, np.arange(-256, 256)), Window(1)

    def requant(source, shift):
        return Node((Edge(source, np.ones((1, 1, 1, 1), np.int64), out, out),), np.zeros(1, np.int64), shift, table)

    for shifts in ((0, 1), (1, 0), (0, 0), (1, 1)):
        nodes = [requant(k, shift) for k, shift in enumerate(shifts)]
        last = Node((Edge(2, np.ones((3, 1, 1, 1), np.int64), out, out),), np.zeros(3, np.int64))
        network = Network((1, 1, 1), np.arange(256)[None], (*nodes, last))
        statement = object.__new__(Statement)
        statement.__dict__.update(network=network, layout=Layout(network, 5, 2))
        depths = statement._counts.trees
        assert statement._counts.point_coordinates == 6 * (2 + 3) + sum(
            depth for depth, shift in zip(depths[1:], shifts, strict=False) if not shift)
        assert depths[:4] == (3, 3 + (shifts[0] > 0), 3 + (shifts[1] > 0), 1 + 2 + 3)


# The matrix, with rows so short that everything takes several


def short_rows():
    layout, need = frozen()[0].layout, Need(free=700, triples=300)
    parameters = object.__new__(Parameters)
    parameters.__dict__.update(log2_row=8, log2_rate_inverse=3, queries=9)
    return Shape(layout, need, parameters)


def test_products_are_between_the_same_slots():
    shape, found = short_rows(), set()
    for x, y, z in PRODUCTS:
        for entry in range(0, shape.layout.arrays[x], 7):
            found.add(tuple(shape.array_rows[name][0] + entry // shape.size for name in (x, y, z)))
    assert set(shape.products()) == found and len(shape.products()) == len(found) > 2 * len(PRODUCTS)
    ends = [first + rows for first, rows in shape.array_rows.values()]
    assert [first for first, _ in shape.array_rows.values()] == [0, *ends[:-1]] and ends[-1] == shape.array_total
    for name, length in shape.layout.arrays.items():
        assert shape.array_rows[name][1] == (length + 255) // 256
    assert shape.chunks == (shape.layout.depth + 255) // 256 > 2 and shape.triple_rows == 2 and shape.pad_rows == 9
    assert shape.rows == shape.chunks * shape.layout.h + ends[-1] + 5 * 9 == shape.column_rows - 15
    assert shape.blinding == (265, 520, 529) and shape.columns == 2048 and shape.pad_count == 1600
    slots = [*range(300), *range(512, 812), *range(1024, 1324), *range(1536, 2236)]
    assert shape.pad_slots().tolist() == slots


def test_the_linear_test_is_the_combination_of_all_forms():
    shape, rng = short_rows(), np.random.default_rng(7)
    layout, system = shape.layout, System()

    def random(count):
        return field.from_base(rng.integers(0, field.P, (5, count), dtype=np.uint32))

    images = rng.integers(0, field.P, (layout.depth, layout.h), dtype=np.uint32)
    arrays = {name: rng.integers(0, field.P, n, dtype=np.uint32) for name, n in layout.arrays.items()}
    pads, values = random(shape.pad_count), []
    system.groups["g"] = random(layout.h)
    for name, (first, dims) in layout.columns.items():
        point, factor, constant = [random(lg(n)) for n in dims], random(1), random(1)
        column = field.combine(images[first : first + int(np.prod(dims))], system.groups["g"])
        system.append(Form().add_image("g", name, point, factor).add_constant(constant))
        values.append((field.mul(factor, field.dot(column, eq_tensor(point, dims))), constant))
    for name, array in arrays.items():
        weights, index = random(len(array)), rng.integers(0, shape.pad_count, 3)
        form = Form().add_array(name, weights)
        form.pads.append((index, weights[:, :3]))
        system.append(form)
        values.append((field.add(field.dot(weights, field.embed(array)), field.dot(weights[:, :3], pads[:, index])),
                       field.ZERO))  # fmt: skip
    challenge = random(1)
    test = combine(shape, [system], challenge)
    power, wanted, target = field.ONE, field.ZERO, field.ZERO
    for value, constant in values:
        power = field.mul(power, challenge)
        wanted, target = field.add(wanted, field.mul(power, value)), field.sub(target, field.mul(power, constant))
    filled = np.zeros((shape.chunks * shape.size, layout.h), np.uint32)
    filled[: layout.depth] = images
    found = field.dot(test.pads, pads)
    for (group, chunk), coefficients in test.chunks.items():
        rows = filled[chunk * shape.size : (chunk + 1) * shape.size]
        found = field.add(found, field.dot(coefficients, field.combine(rows, test.weights[group])))
    for name, coefficients in test.arrays.items():
        found = field.add(found, field.dot(coefficients, field.embed(arrays[name])))
    assert field.equal(found, wanted) and field.equal(test.target, target)
    assert {chunk for _, chunk in test.chunks} == set(range(shape.chunks))


def test_values_are_added_at_their_positions():
    """One axis of a transposed window: several outputs may read one input, and the padding none."""
    rng = np.random.default_rng(5)
    for shape, positions, length, repeated in (
        ((5, 7), [3, -1, 0, 3, 3, 0, 4], 6, True), ((5, 3, 7), [3, -1, 0, 3, 3, 0, 4], 6, True),
        ((5, 4), [4, -1, 0, 2], 5, False), ((5, 3, 4), [4, -1, 0, 2], 5, False),
    ):  # fmt: skip
        values = rng.integers(0, field.P, shape, dtype=np.uint32)
        values[..., 3] = field.P - 1  # so that sums pass p
        found = layers._scattered(values, np.array(positions), length, repeated)
        wanted = np.zeros((*shape[:-1], length), np.int64)
        for k, at in enumerate(positions):
            if at >= 0:
                wanted[..., at] += values[..., k]
        assert found.dtype == np.uint32 and (found == wanted % field.P).all()


# Networks as bytes and their bounds


def encoded(*, shape=(1, 1, 1), tables=((9, None),), shift=0, which=1, left=0, right=0, bias=(0,), edges=1, source=0,
            groups=1, dims=(1, 1, 1, 1), windows=2, window=(1, 1, 0, 0, 1, 1), more=b""):  # fmt: skip
    """A network of one requant node and an output of two classes, every field of the first node as given."""
    out = Writer().raw(b"zkmark network 1\n")
    for n in shape:
        out.u32(n)
    out.raw((np.arange(256) % 16).astype("<i8").tobytes()).u32(len(tables))
    for bits, values in tables:
        out.u8(bits).raw((np.arange(-256, 256) if values is None else values).astype("<i8").tobytes())
    out.u32(2).u8(shift).u32(which).u32(left).u32(right).u32(len(bias)).raw(np.array(bias).astype("<i8").tobytes())
    out.u32(edges).u32(source).u32(groups)
    for n in dims:
        out.u32(n)
    out.u8(windows)
    for _ in range(windows):
        for n in window:
            out.i64(n)
    out.raw(np.ones(int(np.prod(dims)) if np.prod(dims) < 99 else 0).astype("<i8").tobytes())
    out.u8(0).u32(0).u32(0).u32(0).u32(2).raw(bytes(16)).u32(1).u32(1).u32(1)
    for n in (2, 1, 1, 1):
        out.u32(n)
    out.u8(2)
    for _ in range(2):
        for n in (1, 1, 0, 0, 1, 1):
            out.i64(n)
    return out.raw(np.ones(2).astype("<i8").tobytes()).raw(more).to_bytes()


def malformed(match, **fields):
    with pytest.raises(DecodingError, match=match):
        Network.from_bytes(encoded(**fields))


def test_fields_of_an_encoded_network_at_their_caps():
    data = encoded()
    assert Network.from_bytes(data).to_bytes() == data
    Network.from_bytes(encoded(left=1, right=1))
    for k in range(3):
        for n, why in ((0, "input shape"), ((1 << 16) + 1, "input shape"), (1 << 16, None)):
            shape = [1, 1, 1]
            shape[k] = n
            if why:
                malformed(why, shape=shape)
                continue
            with pytest.raises((DecodingError, ParameterError)) as error:
                Network.from_bytes(encoded(shape=shape))
            assert "input shape" not in str(error.value)
    none = np.zeros(0)
    for bits, why in ((0, "table width"), (21, "table width"), (20, "truncated")):
        malformed(why, tables=((bits, none),))
    with pytest.raises(ParameterError, match="leaves the table"):
        Network.from_bytes(encoded(tables=((1, np.zeros(2)),)))
    malformed("count 2 over the cap 1", which=2)
    for name, cap in (("left", 4096), ("right", 4096), ("edges", 4096)):
        malformed(f"count {cap + 1} over the cap {cap}", **{name: cap + 1})
        with pytest.raises((DecodingError, ParameterError)) as error:
            Network.from_bytes(encoded(**{name: cap}))
        assert "over the cap" not in str(error.value)
    malformed("over the cap 65536", bias=[0] * ((1 << 16) + 1))
    for k in range(4):
        dims = [1, 1, 1, 1]
        dims[k] = 0
        malformed("without entries", dims=dims)
        for n, why in (((1 << 31) + 1, "over the cap"), (1 << 31, "truncated")):
            dims[k] = n
            malformed(why, dims=dims)
    for count in (0, 1, 3, 5, 6):
        malformed("two or four windows", windows=count)
    for k in range(6):
        for n in ((1 << 16) + 1, -(1 << 16) - 1):
            window = [1, 1, 0, 0, 1, 1]
            window[k] = n
            malformed("a window of", window=window)
        for n in (1 << 16, -(1 << 16)):
            window[k] = n
            with suppress(ParameterError):  # by the bounds of a network, if at all
                Network.from_bytes(encoded(window=window))
    for fields in ({"left": 1}, {"right": 1}):  # a product has two factors
        malformed("canonical", **fields)
    malformed("trailing", more=b"\0")
    malformed("canonical", tables=((9, None), (9, np.arange(512))))


def test_windows_at_their_edges():
    def usable(length, *fields):
        window = Window(*fields)
        both = [network_module._usable(pair, lengths) for pair, lengths in (
            ((window, Window(1)), (length, 1)), ((Window(1), window), (1, length)))]  # fmt: skip
        assert both[0] == both[1]
        return both[0]

    top = 1 << 16
    assert network_module._usable(None, (0, 0))
    assert usable(1, 1) and usable(3, 3) and not usable(2, 3) and not usable(0, 1)
    assert usable(5, 3, 1, 0, 0, 2) and not usable(4, 3, 1, 0, 0, 2)
    for k in (0, 1, 4, 5):
        fields = [1, 1, 0, 0, 1, 1]
        for n in (0, -1, top + 1):
            fields[k] = n
            assert not usable(top + 1 if k == 0 else 9, *fields), (k, n)
    assert usable(64, 1, top) and usable(64, 1, 1, 0, 0, top) and usable(64, 1, 1, 0, 0, 1, top)
    assert usable(9, 1, 1, top, 0) and usable(9, 1, 1, 0, top)
    for padding in ((top + 1, 0), (0, top + 1), (-top - 1, 2 * top), (2 * top, -top - 1)):
        assert not usable(9, 1, 1, *padding)
    assert usable(2 * top, 1, 1, -top, 0) and usable(2 * top, 1, 1, 0, -top)
    taps = 1 << 22
    assert usable(taps, 1, top) and not usable(taps + 1, 1, top)  # inputs
    assert usable(top, 64, 1, 0, 63) and not usable(top, 65, 1, 0, 64)  # kernel times inputs
    assert usable(64, 1, 1, 0, 0, 1, top) and not usable(65, 1, 1, 0, 0, 1, top)  # outputs


def small(*, shape=(2, 1, 1), tables=None, bits=9, entries=None, shift=0, source=0, weight=(2, 2, 1, 1), rows=(1,),
          columns=(1,), pool=None, groups=1, bias=2, classes=2, last=(1, 1), out_source=1, out_shift=0, middle=True,
          out_table=None):  # fmt: skip
    """A network of one requant node, whose weights and table are zero, and an output."""
    table = Table(bits, np.zeros((1 << bits if bits >= 0 else 1) if entries is None else entries, np.int64))
    edge = Edge(source, np.zeros(weight, np.int64), Window(*rows), Window(*columns), groups, pool)
    node = Node((edge,), np.zeros(bias, np.int64), shift, table if middle else None)
    ends = [Window(n) if n < 99 else Window(1, n) for n in last]
    wide = Edge(out_source, np.zeros((classes, weight[0], ends[0].kernel, ends[1].kernel), np.int64), *ends)
    out = Node((wide,), np.zeros(classes, np.int64), out_shift, out_table)
    return Network(shape, np.zeros((shape[0], 256) if tables is None else tables, np.int64), (node, out))


def test_structure_at_its_edges():
    top = 1 << 16
    good = (
        {}, {"bits": 1}, {"bits": 20}, {"shift": 24, "bits": 5}, {"groups": 2, "weight": (2, 1, 1, 1)},
        {"weight": (top, 2, 1, 1), "bias": top}, {"rows": (1, 1, 1, 1), "last": (3, 1)}, {"classes": 3},
        {"rows": (1, 1, top // 2, top // 2 - 1), "last": (top, 1)},
        {"columns": (1, 1, top // 2, top // 2 - 1), "last": (1, top)},
    )  # fmt: skip
    for fields in good:
        small(**fields)
    assert small(rows=(1, 1, 1, 1), last=(3, 1)).shapes == ((2, 1, 1), (2, 3, 1), (2, 1, 1))
    for match, fields in (
        ("2.bits entries", {"bits": 0}), ("2.bits entries", {"bits": 21}), ("2.bits entries", {"entries": 511}),
        ("2.bits entries", {"entries": 513}), ("shift out", {"shift": 25, "bits": 3}), ("shift out", {"shift": -1}),
        ("shift out", {"out_shift": 1}), ("later node", {"source": -1}), ("later node", {"source": 1}),
        ("later node", {"out_source": 2}), ("does not fit", {"groups": 0}), ("does not fit", {"groups": 2}),
        ("does not fit", {"groups": 2, "weight": (3, 1, 1, 1), "bias": 3}), ("does not fit", {"weight": (2, 1, 1, 1)}),
        ("does not fit", {"weight": (2, 3, 1, 1)}), ("does not fit", {"weight": (2, 2, 2, 1)}),
        ("does not fit", {"weight": (2, 2, 1, 2)}), ("does not fit", {"groups": -1, "weight": (2, 2, 1, 1)}),
        ("disagree", {"weight": (top + 1, 2, 1, 1), "bias": top + 1}),
        ("disagree", {"weight": (0, 2, 1, 1), "bias": 0}),
        ("disagree", {"rows": (1, 1, top // 2, top // 2), "last": (top + 1, 1)}),
        ("disagree", {"columns": (1, 1, top // 2, top // 2), "last": (1, top + 1)}),
        ("bias must", {"bias": 1}), ("bias must", {"bias": 3}), ("bias must", {"bias": (2, 1)}),
        ("one logit", {"rows": (1, 1, 1, 1)}), ("one logit", {"columns": (1, 1, 1, 1)}),
        ("two classes", {"classes": 1}), ("only the last", {"middle": False}), ("last node", {"out_table": relu()}),
        ("input tables", {"tables": (1, 256)}), ("input tables", {"tables": (2, 255)}),
        ("a window", {"rows": (2,)}), ("a window", {"columns": (2,)}), ("a window", {"pool": (Window(2), Window(1))}),
        ("a window", {"pool": (Window(1), Window(2))}), ("a window", {"pool": (Window(1, 0), Window(1))}),
    ):  # fmt: skip
        with pytest.raises(ParameterError, match=match):
            small(**fields)
    for most, fits in ((2, True), (1, False)):
        with put(network_module, "MAX_NODES", most):
            if fits:
                small()
                continue
            with pytest.raises(ParameterError, match="more than"):
                small()
    with pytest.raises(ParameterError, match="last node"):
        Network((1, 1, 1), np.zeros((1, 256), np.int64), ())


def relu():
    return Table(9, np.zeros(512, np.int64))


def test_two_edges_into_one_node_agree():
    one, two = Window(1), Window(1, 1, 0, 1)

    def network(*windows):
        edges = tuple(Edge(0, np.zeros((1, 1, 1, 1), np.int64), rows, columns) for rows, columns in windows)
        height, width = windows[0][0].outputs(1), windows[0][1].outputs(1)
        out = Edge(1, np.zeros((2, 1, height, width), np.int64), Window(height), Window(width))
        nodes = Node(edges, np.zeros(1, np.int64), 0, relu()), Node((out,), np.zeros(2, np.int64))
        return Network((1, 1, 1), np.zeros((1, 256), np.int64), nodes)

    network((one, one), (one, one))
    network((two, one), (two, one))
    for windows in (((one, one), (two, one)), ((one, two), (one, one))):
        with pytest.raises(ParameterError, match="disagree"):
            network(*windows)


def test_outputs_and_taps_of_a_window():
    window = Window(3, 2, 1, 2, 2)
    assert window.outputs(7) == 3 and window.taps(7).tolist() == [[-1, 1, 3], [1, 3, 5], [3, 5, -1]]
    assert Window(2, 1, -1, 0).taps(4).tolist() == [[1, 2], [2, 3]]
    twice = Window(2, 3, 1, 0, 1, 2)  # over 0 0 1 1 2 2, the border repeated before
    assert twice.outputs(3) == 2 and twice.taps(3).tolist() == [[0, 1], [0, 1]]
    assert Window(1, 1, 0, 2, 1, 2).taps(2).tolist() == [[0, 0, 1, 1, 1, 1]]


def test_extremes_of_a_table():
    """Of any range of units, with and without whole blocks in between: one range alone, and many at once."""
    for cost in (0, 1 << 40):
        with put(network_module, "_RANGE", cost):
            extremes_of_a_table()


def extremes_of_a_table():
    for bits in (1, 9, 12):
        half, rng = 1 << (bits - 1), np.random.default_rng(bits)
        table = Table(bits, rng.integers(-(1 << 29), 1 << 29, 2 * half))
        ends = [-half, -half + 1, -1025, -1024, -1023, -1, 0, 1, 1023, 1024, half - 1024, half - 2, half - 1]
        pairs = [(a, b) for a in ends for b in ends if -half <= a <= b < half]
        low, high = table.extremes(*(np.array(column) for column in zip(*pairs, strict=True)))
        plain = [table.values[a + half : b + half + 1] for a, b in pairs]
        assert low.tolist() == [min(v) for v in plain] and high.tolist() == [max(v) for v in plain]
    peak = np.zeros(1 << 12, np.int64)  # one value that only a whole block, or only an end, holds
    for at in (0, 5, 1023, 1024, 1500, 3071, 3072, 4095):
        for value in (7, -7):
            peak[:] = 0
            peak[at] = value
            low, high = Table(12, peak.copy()).extremes(np.array([-2048, -2043, -1024]), np.array([2047, 1500, 1023]))
            inside = [0 <= at <= 4095, 5 <= at <= 3548, 1024 <= at <= 3071]
            assert low.tolist() == [min(value, 0) * i for i in inside]
            assert high.tolist() == [max(value, 0) * i for i in inside]


def plain_bounds(node, ranges):
    """(low, high, largest sum of sizes) per output channel, by Python integers and the definition."""
    out = []
    for o, bias in enumerate(node.bias.tolist()):
        low = high = bias
        size = abs(bias)
        if node.product:
            (a, b), (c, d) = ([int(end[o]) for end in ranges[k]] for k in (node.product.left, node.product.right))
            corners = [x * y for x in (a, b) for y in (c, d)]
            low, high, size = low + min(corners), high + max(corners), size + max(map(abs, corners))
        for edge in node.edges:
            windows = (edge.rows, edge.columns, *(edge.pool or ()))
            factor = edge.pool[0].kernel * edge.pool[1].kernel if edge.pool else 1
            lows, highs = ranges[edge.source]
            padded = any(w.pad_before > 0 or w.pad_after > 0 for w in windows)
            for i, c in enumerate(edge.channels[o].tolist()):
                a, b = int(lows[c]), int(highs[c])
                size += factor * sum(abs(w) for w in edge.weight[o, i].ravel().tolist()) * max(abs(a), abs(b))
                a, b = (min(a, 0), max(b, 0)) if padded else (a, b)
                for w in edge.weight[o, i].ravel().tolist():
                    low, high = low + factor * min(w * a, w * b), high + factor * max(w * a, w * b)
        out.append((low, high, size))
    return out


def test_bounds_are_those_of_the_definition():
    rng, one = np.random.default_rng(3), Window(1)
    for large in (1 << 5, 1 << 29):
        ends = [np.sort(rng.integers(-large, large, (2, 4)), axis=0) for _ in range(3)]
        ends.append(np.array([[3, 5, -9, 2], [7, 6, -2, 2]]))  # without zero
        ranges = [(e[0], e[1]) for e in ends]
        for groups, source, windows, pool in (
            (1, 0, (Window(2), one), None), (2, 1, (one, Window(3, 1, 0, 1)), None), (4, 2, (one, one), None),
            (2, 3, (Window(2, 1, 1), one), None), (1, 3, (one, one), (Window(3), Window(2))),
            (2, 3, (one, one), (Window(64, 1, 0, 1), Window(64))), (1, 3, (one, one), None),
        ):  # fmt: skip
            shape = (4, 4 // groups, windows[0].kernel, windows[1].kernel)
            edge = Edge(source, rng.integers(-large, large, shape), *windows, groups, pool)
            other = Edge(3, rng.integers(-large, large, (4, 4, 1, 1)), one, one)
            for edges, product in (((edge,), None), ((edge, other), Product(1, 2)), ((), Product(0, 3))):
                node = Node(edges, rng.integers(-large, large, 4), product=product)
                low, high = affine_bounds(node, ranges)
                plain = plain_bounds(node, ranges)
                assert [(int(a), int(b)) for a, b in zip(low, high, strict=True)] == [p[:2] for p in plain]
                most = max(p[2] for p in plain)
                assert abs(network_module._magnitude(node, ranges) - most) <= most * 2.0**-50


def test_bounds_beyond_64_bits():
    """Of one sign, by one long range, through a large pool, or only by the number of channels."""
    big, one, pool = 1 << 29, Window(1), (Window(64), Window(64))
    for channels, weight, (low, high), through in (
        (1, big, (-5, big), pool), (1, -big, (-5, big), pool), (1, big, (-big, 5), pool), (1, -big, (-big, 5), pool),
        (64, big, (big, big), None), (64, -big, (-big, -big), None), (1, 7, (-big, big), pool),
        (32, big, (0, big), None),
    ):  # fmt: skip
        ranges = [(np.full(channels, low), np.full(channels, high))]
        edge = Edge(0, np.full((2, channels, 1, 1), weight), one, one, 1, through)
        node = Node((edge,), np.array([1, -1]))
        found = affine_bounds(node, ranges)
        assert [(int(a), int(b)) for a, b in zip(*found, strict=True)] == [p[:2] for p in plain_bounds(node, ranges)]
    far, zero = 3 << 20, np.zeros(1, np.int64)
    for weights, low, high in (
        ([[[big, -big]]], [-far], [far]),  # only both of its terms together
        ([[[big]], [[1]]], [0, 0], [big, 1]), ([[[big]], [[1]]], [-big, 0], [0, 0]),  # by one of two channels
    ):  # fmt: skip
        weight, ranges = np.array([weights]), [(np.array(low), np.array(high))]
        node = Node((Edge(0, weight, one, Window(weight.shape[3]), 1, pool),), zero)
        found = affine_bounds(node, ranges)
        assert [(int(a), int(b)) for a, b in zip(*found, strict=True)] == [p[:2] for p in plain_bounds(node, ranges)]


def test_both_ends_of_the_pixels_count():
    """Of every channel: of what the input tables hold, not of what images show."""
    one, half = Window(1), 1 << 8

    def network(low, high, weight):
        tables = np.zeros((2, 256), np.int64)
        tables[1, 7], tables[1, 9] = low, high
        edge = Edge(0, np.array([[0, weight]]).reshape(1, 2, 1, 1), one, one)
        out = Node((Edge(1, np.ones((2, 1, 1, 1), np.int64), one, one),), np.zeros(2, np.int64))
        return Network((2, 1, 1), tables, (Node((edge,), np.zeros(1, np.int64), 0, relu()), out))

    for low, high, weight in ((-half, half - 1, 1), (1 - half, half, -1)):
        network(low, high, weight)
        for wrong in ((low - 1, high), (low, high + 1), (low - 1, 0), (0, high + 1)):
            with pytest.raises(ParameterError, match="leaves the table"):
                network(*wrong, weight)


def test_units_reach_as_far_as_their_sums():
    """What a table gives is counted over the units that y can reach: to the last one."""
    one = Window(1)

    def network(shift, peak, value, most):
        values = np.zeros(512, np.int64)
        values[peak + 256] = value
        weight, bias = np.ones((1, 1, 1, 1), np.int64), np.zeros(1, np.int64)
        first = Node((Edge(0, weight, one, one),), bias, shift, Table(9, values))
        second = Node((Edge(1, weight, one, one),), bias, 0, relu())
        out = Node((Edge(2, np.ones((2, 1, 1, 1), np.int64), one, one),), np.zeros(2, np.int64))
        return Network((1, 1, 1), np.clip(np.arange(256) - 128, -most, most)[None], (first, second, out))

    for shift, most, ends in ((0, 100, (-100, 100)), (2, 102, (-25, 26)), (2, 101, (-25, 25)), (3, 100, (-12, 13))):
        for peak in ends:
            for value in (256, -257):
                with pytest.raises(ParameterError, match="node 2"):
                    network(shift, peak, value, most)
                network(shift, peak + (1 if peak > 0 else -1), value, most)


def test_huge_values():
    for value, huge in (((1 << 30) - 1, False), (1 << 30, True), (1 - (1 << 30), False), (-(1 << 30), True)):
        assert network_module._huge(np.array([0, value])) == huge
    assert not network_module._huge(np.zeros(0, np.int64))


def test_sums_are_exact_below_two_to_the_52():
    one, table = Window(1), Table(9, np.zeros(512, np.int64))

    def network(bias):
        """y = -2^22 + bias, out of sums of 2^52 - 2^22 + |bias|."""
        weights = np.array([(1 << 29) - 1, -(1 << 29)]).reshape(1, 2, 1, 1)
        first = Node((Edge(0, weights, one, one),), np.array([bias]), 0, table)
        out = Node((Edge(1, np.ones((2, 1, 1, 1), np.int64), one, one),), np.zeros(2, np.int64))
        return Network((2, 1, 1), np.full((2, 256), 1 << 22), (first, out))

    network((1 << 22) - 1)
    with pytest.raises(ParameterError, match="not evaluated exactly"):
        network(1 << 22)


def test_a_product_has_factors_of_one_shape():
    one, three = Window(1), Window(3)
    table = Table(9, np.zeros(512, np.int64))

    def node(source, weight, window=one, product=None, **more):
        edges = () if weight is None else (Edge(source, np.ones(weight, np.int64), window, window),)
        return Node(edges, np.zeros(2, np.int64), 0, table, product=product, **more)

    def network(product, at_output=None):
        wide = node(0, (2, 1, 1, 1))
        point = node(0, (2, 1, 3, 3), three)
        out = Node((Edge(3, np.ones((2, 2, 3, 3), np.int64), three, three),), np.zeros(2, np.int64), product=at_output)
        return Network((1, 3, 3), np.arange(256)[None] % 2, (wide, point, node(0, None, product=product), out))

    network(Product(1, 1))
    assert network(Product(1, 2)).shapes[3] == (2, 3, 3)
    for factors in ((2, 1), (0, 1), (1, 0), (1, 3), (3, 1), (-1, 1), (1, -1)):
        with pytest.raises(ParameterError, match="product"):
            network(Product(*factors))
    with pytest.raises(ParameterError, match="not at the output"):
        network(Product(1, 1), Product(1, 1))


# The link


def test_bounds_of_answers():
    bounds = Bounds.of(3, 255, 16)
    assert bounds.largest == 3 * (field.P - 1) * 255
    assert bounds.width == 8 * -(-((5 * 16 * bounds.largest).bit_length() + 10) // 8)
    for z, held in ((bounds.largest - 1, False), (bounds.largest, True), ((1 << bounds.width) - 1, True),
                    (1 << bounds.width, False)):  # fmt: skip
        assert bounds.holds(z) == held
    statement, _, vectors, _ = frozen()
    found = [[b.largest, b.width] for b in link.bounds(statement.layout)]
    assert found == [vectors["link_bounds"]["pixels"], vectors["link_bounds"]["shares"]]
    # A width that is a multiple of 8 already stays.
    widths = {Bounds.of(h, 1, 1).width - (5 * h * (field.P - 1)).bit_length() - 10 for h in range(1, 1000)}
    assert widths <= set(range(8)) and 0 in widths


def test_the_bounds_of_the_link_for_every_number_of_triggers():
    for h in range(1, 1025):
        layout = SimpleNamespace(h=h, network=SimpleNamespace(shape=(3, 8, 8), classes=10))
        for found, value, coordinates in zip(link.bounds(layout), (255, 9), (192, 1), strict=True):
            largest = h * (15 * 2**27) * value
            bits = (5 * coordinates * largest).bit_length() + 10
            assert found == Bounds(largest, bits + -bits % 8)


def answer_bytes(layout, blinding):
    return bytes(link.answer_bytes(layout) - 32) + blinding.to_bytes(32, "little")


def test_blindings_of_answers_are_below_the_order():
    layout = frozen()[0].layout
    answer = Answer.read(Reader(answer_bytes(layout, ORDER - 1), "answer"), layout)
    assert answer.share_blindings[-1] == ORDER - 1 and len(answer.pixel_blindings) == 5
    for blinding in (ORDER, 2**256 - 1):
        with pytest.raises(DecodingError):
            Answer.read(Reader(answer_bytes(layout, blinding), "answer"), layout)


# Pads


def party(need, messages):
    transcript, given = Transcript("test", FiatShamir()), None if messages is None else MaskedElements(messages)
    return Party(transcript, need, Need(), need.triples, messages=given)


def test_a_party_takes_what_it_needs_and_no_more():
    one = field.embed(range(1, 9))
    good = party(Need(free=2, triples=1), one[:, :4])
    assert field.equal(good.exchange("a", 2).sent, one[:, :2])
    x, y, (product,) = good.exchange_factors("b", 1)
    assert (x.index.tolist(), y.index.tolist(), product) == ([0], [1], 2)
    assert field.equal(field.concat([x.sent, y.sent]), one[:, 2:4])
    good.finish()
    with fails("messages.count"):
        party(Need(free=2), one[:, :1]).exchange("a", 2)
    with fails("messages.count"):
        party(Need(free=2), None).exchange("a", 2)
    for need, use in (
        (Need(free=1), lambda p: p.exchange("a", 2)),
        (Need(free=3), lambda p: p.exchange_factors("a", 1)),
        (Need(triples=1), lambda p: p.exchange_factors("a", 2)),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="does not match"):
            use(party(need, one))
    for need in (Need(free=1), Need(triples=1), Need(free=1, triples=1)):
        with pytest.raises(RuntimeError, match="does not match"):
            party(need, one).finish()
    half = party(Need(free=1, triples=1), one)
    half.exchange("a", 1)
    with pytest.raises(RuntimeError, match="does not match"):
        half.finish()


def test_parts_have_pads_of_their_own():
    transcript = Transcript("test", FiatShamir())
    given = MaskedElements(field.embed(range(3)))
    second = Party(transcript, Need(free=1, triples=1), Need(free=4, triples=2), 7, messages=given)
    assert second.exchange("a", 1).index.tolist() == [3 * 7 + 4]
    x, y, (product,) = second.exchange_factors("b", 1)
    assert (x.index.tolist(), y.index.tolist(), product) == ([2], [7 + 2], 2 * 7 + 2)
    second.finish()
    total = Need(1, 2, 3) + Need(10, 20, 3)
    assert total == Need(11, 22, 6) and total.sent == 11 + 2 * 16


def test_forms():
    k = field.constant
    x, y = Wire(np.array([3]), k(5)), Wire(np.array([9]), k(7))
    both = Wire(np.array([3, 4]), field.embed([5, 6]))
    assert field.equal(Form().add(both, k(2)).constant, k(22)) and len(Form().add(both, k(2)).pads[0][1][0]) == 2
    assert field.equal(Form().add(both, field.embed([1, 10])).constant, k(65))
    form = Form().add_product(x, y, 11, k(2)).add_constant(k(-30))
    assert field.equal(form.constant, k(2 * 35 - 30))
    assert [(i.tolist(), int(field.to_base(c)[0, 0])) for i, c in form.pads] == [([3], 14), ([9], 10), ([11], 2)]
    other = Form().add_image("g", "c", [], k(3)).add_array("a", field.embed([1, 2])).add_form(form, k(10))
    twice = Form().add_form(other, k(2))
    assert field.equal(twice.constant, k(800)) and field.equal(twice.images[0].coefficient, k(6))
    assert field.equal(twice.arrays[0].weights, field.embed([2, 4]))
    assert field.equal(twice.pads[2][1], k(40))


# Keys


def test_edges_of_key_parameters():
    for shape, classes, ell in (((1, 1, 1), 2, 1), ((1, 512, 512), 1 << 16, 4096)):
        KeyParameters(shape, classes, ell)
    for arguments in (
        ((0, 4, 4), 10, 160), ((1, 4, 0), 10, 160), ((1, 4), 10, 160), ((1, 1, 4, 4), 10, 160),
        ((1, 1, (1 << 18) + 1), 10, 160),
        ((1, 4, 4), 1, 160), ((1, 4, 4), (1 << 16) + 1, 160), ((1, 4, 4), 10, 0), ((1, 4, 4), 10, 4097),
    ):  # fmt: skip
        with pytest.raises(ParameterError):
            KeyParameters(*arguments)


def test_draws_below_a_bound():
    """From the low bits that can hold the largest result, of as few bytes as have them, until it is small enough."""
    for bound, data, found, used in (
        (16, b"\x1f\x00", 15, 1), (17, b"\x3f\x30", 16, 2), (2, b"\xfe\x01", 0, 1), (256, b"\xff\x01", 255, 1),
        (257, b"\xff\xff\x01\x00", 1, 4), (10, b"\x0a\x1f\x29", 9, 3),
    ):  # fmt: skip
        stream = io.BytesIO(data)
        assert keygen._below(bound, stream.read) == found and stream.tell() == used


def test_false_claim_bits_of_every_threshold():
    for k_min in (1, 5):
        assert soundness.false_claim_bits(5, 10, k_min, 0, 0) == soundness.bits(soundness.tail(5, 10, k_min))
    for k_min in (0, 6):
        with pytest.raises(ParameterError):
            soundness.false_claim_bits(5, 10, k_min)


def test_a_beacon_has_a_cap():
    key = frozen()[0].key
    replace(key, beacon=bytes(keygen.MAX_BEACON_BYTES))
    with pytest.raises(ParameterError):
        replace(key, beacon=bytes(keygen.MAX_BEACON_BYTES + 1))


# Claims


def test_thresholds_of_keys_leave_no_freedom_unless_told():
    for h in range(50, 300):
        key = SimpleNamespace(parameters=KeyParameters((1, 1, 1), 10, 1), h=h)
        assert keygen.VerificationKey.smallest_k_min(key) == soundness.smallest_k_min(h, 10, 128, 0)


def test_claims_name_what_differs():
    statement, proof, _, _ = frozen()
    digests = statement_digests(statement)
    good = Claim(statement.k_min, statement.context, digests, proof)
    compare(good, statement)
    for k, name in enumerate(("key", "model", "network", "derivation")):
        with fails(f"statement.{name}"):
            compare(replace(good, digests=(*digests[:k], bytes(32), *digests[k + 1 :])), statement)
    for name, other in (("nonce", bytes(32)), ("purpose", "-"), ("claimant", "-"), ("verifier", "-")):
        with fails(f"statement.{name}"):
            compare(replace(good, context=replace(good.context, **{name: other})), statement)
    for k_min in (statement.k_min - 1, statement.k_min + 1):
        with fails("statement.k_min"):
            compare(replace(good, k_min=k_min), statement)
    data = good.to_bytes()
    assert Claim.from_bytes(data) == good
    for bad in (data + b"\0", data[:-1], b"x" + data[1:]):
        with pytest.raises(DecodingError):
            Claim.from_bytes(bad)


# Identities


def test_signatures_are_on_labelled_digests():
    seed = bytes(range(32))
    owner, digest = identity.public_key(seed), bytes(32)
    signature = identity.sign(seed, "label", digest)
    identity.check_signature(owner, "label", digest, signature)
    with fails("some.check"):
        identity.check_signature(owner, "labe", digest, signature, "some.check")
    with fails("signature"):
        identity.check_signature(owner, "label", bytes([1]) * 32, signature)
    for wrong in (bytes(31), bytes(33)):
        with pytest.raises(ParameterError):
            identity.sign(seed, "label", wrong)
    identity.check_text(owner, "text\n", identity.sign_text(seed, "text\n"))
    with fails("log.signature"):
        identity.check_text(owner, "texu\n", identity.sign_text(seed, "text\n"), "log.signature")
    with fails("signature"):
        identity.check_text(owner, "texu\n", identity.sign_text(seed, "text\n"))


def test_what_is_signed():
    """The bytes of SPEC section 2, for a verifier who has nothing of ours."""
    seed, digest = bytes(range(32)), bytes(range(100, 132))
    key = eddsa.import_public_key(identity.public_key(seed))
    message = b"zkmark signature 1" + b"\0" + b"proof" + b"\0" + digest
    eddsa.new(key, "rfc8032").verify(message, identity.sign(seed, "proof", digest))
    theirs = eddsa.new(ECC.construct(curve="Ed25519", seed=seed), "rfc8032").sign(message)
    identity.check_signature(identity.public_key(seed), "proof", digest, theirs)


def test_owners_of_small_order():
    """All points of order 1, 2, 4 and 8: everybody can sign for them."""
    for data in (
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    ):
        with pytest.raises(DecodingError):
            identity.check_public_key(bytes.fromhex(data))
    identity.check_public_key(identity.public_key(bytes(32)))


# The log


def test_checkpoints_at_their_edges():
    for size in (0, 1 << 62):
        Checkpoint("log", size, bytes(32))
    for size, root in ((-1, bytes(32)), ((1 << 62) + 1, bytes(32)), (1, bytes(31)), (1, bytes(33))):
        with pytest.raises(ParameterError):
            Checkpoint("log", size, root)
    for name in ("x" * 256, "x"):
        Checkpoint(name, 1, bytes(32))
    for name in ("x" * 257, "", "a b", "a+b", "a\tb", "a\x7f", "\u00e9", "a\u202eb", "\U0001fae8"):
        with pytest.raises(ParameterError):
            Checkpoint(name, 1, bytes(32))


def test_a_consistency_path_reaches_the_root_of_a_tree_of_that_size():
    """A root that joins the old one with something is that of four leaves, not of eight."""
    old, other = Checkpoint("log", 2, leaf_hash(b"old")), leaf_hash(b"new")
    root = node_hash(old.root, other)
    check_consistency(old, Checkpoint("log", 4, root), [other])
    check_consistency(old, Checkpoint("log", 3, root), [other])
    for size in (5, 7, 8, 16):
        with fails("log.consistency"):
            check_consistency(old, Checkpoint("log", size, root), [other])
    longer = node_hash(root, other)
    check_consistency(old, Checkpoint("log", 8, longer), [other, other])
    with fails("log.consistency"):
        check_consistency(old, Checkpoint("log", 4, longer), [other, other])
    at = [leaf_hash(bytes([n])) for n in range(4)]  # from the third of four leaves up, and one step too many
    deeper = Checkpoint("log", 3, node_hash(at[3], node_hash(at[2], at[0])))
    with fails("log.consistency"):
        check_consistency(
            deeper, Checkpoint("log", 4, node_hash(at[3], node_hash(at[2], node_hash(at[0], at[1])))), at)


def test_an_inclusion_path_reaches_the_root_of_a_tree_of_that_size():
    leaf, other = leaf_hash(b"leaf"), leaf_hash(b"other")
    root = node_hash(leaf, other)
    check_inclusion(leaf, 0, 2, [other], root)
    check_inclusion(other, 1, 2, [leaf], root)
    check_inclusion(leaf, 0, 1, [], leaf)
    for index, size in ((0, 3), (0, 4), (0, 1), (2, 2), (2, 4), (-1, 2), (0, (1 << 62) + 1), (0, 0)):
        with fails("log.inclusion"):
            check_inclusion(leaf, index, size, [other], root)
    with fails("log.inclusion"):
        check_inclusion(leaf, 0, 1, [other], node_hash(other, leaf))
    path, top = [other] * 62, leaf
    for sibling in path:
        top = node_hash(top, sibling)
    check_inclusion(leaf, 0, 1 << 62, path, top)
    with fails("log.inclusion"):  # a list that may be a path, and is none
        check_inclusion(leaf, 0, 2, [bytes(32)] * 64, root)
    for path in ([bytes(32)] * 65, [bytes(31)], [bytes(33)]):
        with pytest.raises(DecodingError):
            check_inclusion(leaf, 0, 2, path, root)


def test_notes_at_their_edges():
    seed = bytes(range(32))
    key = LogKey("log", identity.public_key(seed))

    def note(*lines, end="\n"):
        text = "\n".join(lines) + "\n"
        signature = base64.b64encode(key.hash + identity.sign_text(seed, text)).decode()
        return f"{text}\n— log {signature}{end}"

    root = base64.b64encode(bytes(32)).decode()
    good = ("log", "5", root)
    assert open_checkpoint(note(*good), key) == Checkpoint("log", 5, bytes(32))
    assert open_checkpoint(note(*good, "extension"), key).size == 5
    assert open_checkpoint(note("log", str(1 << 62), root), key).size == 1 << 62
    room = (1 << 16) - len(note(*good).encode()) - 1
    for last in ("x", "\u00e9", "\U0001fae8"):  # bytes count, and not characters
        many, rest = divmod(room, len(last.encode()))
        assert open_checkpoint(note(*good, "x" * rest + last * many), key).size == 5
        with pytest.raises(DecodingError):
            open_checkpoint(note(*good, "x" * (rest + 1) + last * many), key)
    for bad in (
        note(*good, end=""), note(*good, end="x"), note(*good, "", "extension"), note(*good, ""),
        note("log", "5"),
        note("", "5", root), note("log", "05", root), note("log", "+5", root), note("log", str((1 << 62) + 1), root),
        note("log", "5", base64.b64encode(bytes(31)).decode()), note("log", "5", base64.b64encode(bytes(33)).decode()),
        note("log", "5", root[:-1]), note("log", "5", ""), "log\n5\n" + root + "\n", note(*good)[:-2] + "\n",
        note(*good).replace("— log", "- log"), note(*good).replace("— log ", "— "), note(*good) + "— a+b AAAA\n",
    ):  # fmt: skip
        with pytest.raises(DecodingError):
            open_checkpoint(bad, key)
    with fails("log.signature"):
        open_checkpoint(note("gol", "5", root), key)
    with fails("log.signature"):
        open_checkpoint(note(*good).replace("— log", "— gol"), key)
    with fails("log.signature"):
        open_checkpoint(note(*good), LogKey("log", identity.public_key(bytes(32))))
    other = base64.b64encode(bytes(68)).decode()  # under the log's name, by a key that is not the log's
    body, line = note(*good).split("\n\n")
    assert open_checkpoint(f"{body}\n\n— log {other}\n{line}", key).size == 5
    named = base64.b64encode(key.hash + bytes(64)).decode()  # by the log's key, under another name
    for other in ("gol", "\u00e9", "\U0001fae8"):
        assert open_checkpoint(f"{body}\n\n— {other} {named}\n{line}", key).size == 5


def test_bytes_have_one_text_in_base64():
    assert log.unbase64("QQ==") == b"A"
    for other in ("QR==", "QQ", "QQ=", "QQ==\n", "Q Q==", "QQ==QQ=="):
        assert log.unbase64(other) is None


def test_keys_of_logs_at_their_edges():
    key = LogKey("log", identity.public_key(bytes(32)))
    text = key.to_text()
    assert LogKey.from_text(text) == key
    everybody_signs = LogKey("log", bytes(32)).to_text()
    number, value = text.split("+", 2)[1:]
    other_kind = base64.b64encode(b"\2" + key.public).decode()
    longer = base64.b64encode(b"\1" + key.public + b"\0").decode()
    for bad in (
        everybody_signs, f"log+{number}+{other_kind}", f"log+{number}+{longer}", f"log+{number[:-1]}0+{value}"[:-1],
        f"log+{number.upper()}x+{value}", f"gol+{number}+{value}", f"+{number}+{value}", f"log+{value}", "log", "",
        LogKey("", key.public).to_text(), LogKey("a b", key.public).to_text(),
    ):  # fmt: skip
        with pytest.raises(DecodingError):
            LogKey.from_text(bad)


# Witnesses and time-stamps


def test_as_many_witnesses_as_may_sign():
    key, checkpoint = LogKey("log", bytes(32)), Checkpoint("log", 1, bytes(32))
    keys = tuple(n.to_bytes(48, "big") for n in range(65))
    with fails("log.cosignature"):  # nobody knows them, and a list of them it is
        Cosignature(keys[:64], bytes(96)).check(key, checkpoint, ())
    for wrong in (keys, (), keys[1::-1], (keys[0], keys[0])):
        with pytest.raises(DecodingError):
            Cosignature(wrong, bytes(96)).check(key, checkpoint, ())


def test_sizes_of_a_timestamp():
    with put(timestamp, "MAX_RESPONSE_BYTES", 3), put(timestamp, "MAX_ROOTS_BYTES", 3):
        for response, roots, reason in ((b"1234", b"123", "too long"), (b"123", b"1234", "too long"),
                                        (b"123", b"123", "not certificates")):  # fmt: skip
            with pytest.raises(DecodingError, match=reason):
                timestamp.check_timestamp(response, roots, bytes(32))

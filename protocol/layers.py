"""One relation per node kind (SPEC section 7).  Every node has its own fork of the transcript.

Both parties run the same functions: the prover passes the committed values, the verifier passes None.  Points are per
axis (channel, row, column, image).  What a relation leaves open are claims about committed columns and arrays: they go
into the party's linear system, whose equations the commitment then proves.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol import field, kernels
from protocol.field import Vector
from protocol.layout import LIMB_BITS, Layout
from protocol.lookup import TreeEnd, TreeWitness, fractional_tree, tree_need, variables
from protocol.multilinear import Point, eq_table, eq_tensor, lg, real
from protocol.network import Edge, Node, P, Product, Window, rounding_offset
from protocol.pads import Form, Need, Party, Wire
from protocol.sumcheck import eq_sumcheck, of_product, product_sumcheck

_LEAF_ORDER = (3, 2, 1, 4, 0)  # fold columns, rows, channels, images, sets of a leaf tensor [set, C, H, W, h]
_PRODUCT_ORDER = (2, 1, 0, 3)  # the same without the sets
_TABLE_WIDTH = 256  # the table tree is a tensor [rows, 256]
_TABLE_ORDER = (0, 1)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Witness:
    """Everything committed: images uint32 [depth, h] and arrays uint32, canonical; remainders of each requant node.

    images and remainders lie where the network was evaluated.
    """

    images: Any
    arrays: dict[str, npt.NDArray[np.uint32]]
    remainders: tuple[Any, ...]

    def column(self, layout: Layout, name: str) -> Any:
        """The committed column [C H W, h]."""
        offset, shape = layout.columns[name]
        return self.images[offset : offset + prod(shape)]

    def part(self, layout: Layout, index: int) -> Part:
        """What fork `index` reads, on the host."""
        last = len(layout.network.nodes)
        if index > last:
            return Part({}, {"uses": self.arrays["uses"]}, {})
        columns, arrays, remainders = [f"u{index}", f"z{index}"] if 0 < index < last else [], {}, {}
        if index == 0:
            columns = ["x", "z0"]
        else:
            node = layout.network.nodes[index - 1]
            columns += [f"z{edge.source}" for edge in node.edges]
            columns += [f"z{k}" for k in (node.product.left, node.product.right)] if node.product else []
            if node.shift:
                remainders = {index - 1: kernels.to_host(self.remainders[index - 1])}
        if index == last:
            arrays = {name: self.arrays[name] for name in ("v0", "v1")}
        return Part({name: kernels.to_host(self.column(layout, name)) for name in columns}, arrays, remainders)


@dataclass(frozen=True)
class Part:
    """As much of a witness as one fork reads: columns [C H W, h] and arrays by name, remainders by number."""

    columns: dict[str, npt.NDArray[np.uint32]]
    arrays: dict[str, npt.NDArray[np.uint32]]
    remainders: dict[int, npt.NDArray[np.uint32]]

    def column(self, layout: Layout, name: str) -> npt.NDArray[np.uint32]:
        return self.columns[name]


@dataclass(frozen=True)
class Context:
    """What all nodes share: the layout, and the lookup challenges alpha and beta [5, 1]."""

    layout: Layout
    alpha: Vector
    beta: Vector
    witness: Witness | Part | None
    device: str = "cpu"

    def leaves(self, count: int) -> Any:
        """Leaves [5, count] of a tree, not set, on the prover's device if they are many."""
        return kernels.on(self.device if count >= kernels.SMALL else "cpu").empty(count)

    @property
    def h(self) -> int:
        return self.layout.h

    def column(self, name: str) -> Any:
        """Prover: the committed column [C H W, h]."""
        if self.witness is None:
            raise RuntimeError("the verifier has no columns")
        return self.witness.column(self.layout, name)


# --- what each node needs -------------------------------------------------------------------------


def _leaf_shape(context: Layout, node: int) -> Shape:
    """Leaf tensor of graph node `node`: two sets where there is a remainder, or the two limbs of the output."""
    network = context.network
    last = len(network.nodes)
    sets = 2 if node == last or (node and network.nodes[node - 1].shift) else 1
    return (sets, *network.shapes[node], context.h)


def _table_shape(layout: Layout) -> Shape:
    return (-(-layout.tables.size // _TABLE_WIDTH), _TABLE_WIDTH)


def tree_shape(layout: Layout, index: int) -> tuple[Shape, tuple[int, ...]]:
    """(leaf tensor, fold order) of fork `index`: the graph nodes in order, then the tables."""
    if index == len(layout.network.nodes) + 1:
        return _table_shape(layout), _TABLE_ORDER
    return _leaf_shape(layout, index), _LEAF_ORDER


def need(layout: Layout, index: int) -> Need:
    """Pads of fork `index`."""
    total = tree_need(*tree_shape(layout, index))
    if 0 < index <= len(layout.network.nodes):
        for edge in layout.network.nodes[index - 1].edges:
            total += Need(free=1 + 2 * sum(lg(n) for n in layout.network.shapes[edge.source]))
        if layout.network.nodes[index - 1].product:
            rounds = sum(lg(n) for n in (*layout.network.shapes[index], layout.h))
            total += Need(free=1 + 2 * rounds, triples=1)
    return total


def work(layout: Layout, index: int) -> int:
    """Leaves of fork `index`: what its time is proportional to."""
    return prod(tree_shape(layout, index)[0])


def run(party: Party, context: Context, index: int) -> Wire:
    """Run fork `index`; returns its tree's sum."""
    last = len(context.layout.network.nodes)
    if index == 0:
        return _input(party, context)
    if index < last:
        return _requant(party, context, index)
    return _output(party, context) if index == last else _tables(party, context)


# --- lookups --------------------------------------------------------------------------------------


def _leaves(context: Context, constant: Vector, first: Any, second: Any | None, out: Any, offset: int = 0) -> None:
    """out[:, offset:] = constant - alpha first - alpha^2 second."""
    k = kernels.of(out)
    alpha2 = field.ZERO if second is None else field.mul(context.alpha, context.alpha)
    v1, v2 = (kernels.to(k, column).reshape(-1) for column in (first, first if second is None else second))
    shifted = field.from_base(context.alpha), field.from_base(alpha2)  # one more factor 2^32, see the kernel
    k.parallel(lambda a, b: k.leaves(constant, *shifted, v1, v2, out, offset, a, b), len(v1), len(v1))


def _point(end: TreeEnd) -> tuple[Vector, tuple[Vector, ...]]:
    """(selector between the two sets, or 0 for a single set; point per axis C, H, W, image)."""
    selector = end.point[0] if end.point[0].shape[1] else field.ZERO
    return selector, end.point[1:]


def _group(party: Party, context: Context, name: str, batch: Vector) -> None:
    party.system.groups[name] = eq_table(batch, context.h)


def _is(form: Form, value: Vector) -> Form:
    """The form minus a constant."""
    return form.add_constant(field.neg(value))


def _input(party: Party, context: Context) -> Wire:
    """(x, z0) is a row of the channel's table: pixels are bytes, z0 is their image under normalization."""
    layout, shape = context.layout, _leaf_shape(context.layout, 0)
    channels = shape[1]
    tags = np.array([layout.tables.tag(("channel", c)) for c in range(channels)])
    witness = None
    if context.witness is not None:
        x, z0 = (context.column(name).reshape(channels, -1) for name in ("x", "z0"))
        denominators = context.leaves(prod(shape))
        for c in range(channels):
            base = field.sub(context.beta, field.constant(int(tags[c])))
            _leaves(context, base, x[c], z0[c], denominators, c * prod(shape[2:]))
        witness = TreeWitness(None, denominators, shape, _LEAF_ORDER)
        del denominators  # the tree drops every level once it is opened
    end = fractional_tree(party, shape, _LEAF_ORDER, witness)
    _, rho = _point(end)
    ones = real(rho, shape[1:])
    tag = field.mul(field.dot(eq_table(rho[0], channels), field.embed(tags)), real(rho[1:], shape[2:]))
    _group(party, context, "0", rho[3])
    party.system.append(_is(end.numerator, ones))
    form = _is(end.denominator, field.add(field.sub(field.ONE, ones), field.sub(field.mul(context.beta, ones), tag)))
    form.add_image("0", "x", rho[:3], context.alpha)
    form.add_image("0", "z0", rho[:3], field.mul(context.alpha, context.alpha))
    party.system.append(form)
    return end.total


def _requant(party: Party, context: Context, index: int) -> Wire:
    """(u, z) is a row of the activation table and y + off(s) - 2^s u is in [0, 2^s), y the node's affine map."""
    layout, shape = context.layout, _leaf_shape(context.layout, index)
    node = layout.network.nodes[index - 1]
    if node.table is None:
        raise RuntimeError("not a requant node")
    shift, tag = node.shift, layout.tables.tag(node.table.digest)
    base_a = field.sub(context.beta, field.constant(tag))
    base_b = field.sub(context.beta, field.constant(layout.tables.tag(shift))) if shift else field.ZERO
    witness = None
    if context.witness is not None:
        u, z = context.column(f"u{index}"), context.column(f"z{index}")
        denominators = context.leaves(prod(shape))
        _leaves(context, base_a, u, z, denominators)
        if shift:
            _leaves(context, base_b, context.witness.remainders[index - 1], None, denominators, prod(shape[1:]))
        witness = TreeWitness(None, denominators, shape, _LEAF_ORDER)
        del denominators  # as in `_input`
    end = fractional_tree(party, shape, _LEAF_ORDER, witness)
    selector, rho = _point(end)
    ones = real(rho, shape[1:])
    group = str(index)
    _group(party, context, group, rho[3])
    party.system.append(_is(end.numerator, ones))
    y = affine(party, context, index, group, rho)
    # Q = (1 - r_s) Q_A + r_s Q_B with Q_A = 1 - real + (beta - tag_A) real - alpha u - alpha^2 z,
    #     Q_B = 1 - real + (beta - tag_B) real - alpha rem,  rem = y + off(s) real - 2^s u.
    left, right = field.sub(field.ONE, selector), selector
    base = field.add(field.mul(left, base_a), field.mul(right, base_b))
    form = _is(end.denominator, field.add(field.sub(field.ONE, ones), field.mul(base, ones)))
    alpha_a, alpha_b = field.mul(left, context.alpha), field.mul(right, context.alpha)
    form.add_image(group, f"u{index}", rho[:3], field.sub(alpha_a, field.scale(alpha_b, 1 << shift)))
    form.add_image(group, f"z{index}", rho[:3], field.mul(left, field.mul(context.alpha, context.alpha)))
    if shift:
        form.add_form(y, alpha_b).add_constant(field.mul(field.scale(alpha_b, rounding_offset(shift)), ones))
    else:
        party.system.append(y.add_image(group, f"u{index}", rho[:3], field.neg(field.ONE)))
    party.system.append(form)
    return end.total


def _tables(party: Party, context: Context) -> Wire:
    """The table rows, each counted as often as its multiplicity says."""
    layout, shape = context.layout, _table_shape(context.layout)
    rows, size = layout.tables.residues, layout.tables.size
    witness = None
    if context.witness is not None:
        numerators, denominators = field.zeros(prod(shape)), np.empty((field.DEGREE, prod(shape)), np.uint32)
        numerators[:, :size] = field.embed(context.witness.arrays["uses"])
        plain = np.empty((field.DEGREE, size), np.uint32)
        _leaves(context, context.beta, rows[1], rows[2], plain)
        denominators[:, :size] = field.sub(plain, field.embed(rows[0]))
        denominators[:, size:] = field.ONE
        witness = TreeWitness(numerators, denominators, shape, _TABLE_ORDER)
    end = fractional_tree(party, shape, _TABLE_ORDER, witness)
    weights = np.ascontiguousarray(eq_tensor(end.point, shape)[:, :size])
    ones = field.total(weights)
    sums = field.combine(rows, weights)
    value = field.add(
        sums[:, :1],
        field.mul(context.alpha, field.add(sums[:, 1:2], field.mul(context.alpha, sums[:, 2:3]))),
    )
    party.system.append(end.numerator.add_array("uses", field.neg(weights)))
    expected = field.add(field.sub(field.ONE, ones), field.sub(field.mul(context.beta, ones), value))
    party.system.append(_is(end.denominator, expected))
    return end.total


# --- affine maps ----------------------------------------------------------------------------------


def affine(party: Party, context: Context, index: int, group: str, rho: Point) -> Form:
    """The form of y(rho) = bias(rho) + sum_e S_e [+ T] for graph node `index`; T is that of `_product`.

    S_e = sum over the source's channels, rows and columns of X W', X = sum_i eq(rho_image, i) x[i] and W' the
    transposed convolution of eq(rho_channel) eq(rho_row) eq(rho_column): one sumcheck per edge, whose length does not
    depend on h, ending in a claim about the source column at the same batch point.
    """
    network = context.layout.network
    node, shape = network.nodes[index - 1], network.shapes[index]
    tensors: list[tuple[Vector, Vector]] = []
    sums = None
    if context.witness is not None:
        weights = party.system.groups[group]
        for edge in node.edges:
            x = kernels.to_host(field.combine(context.column(f"z{edge.source}"), weights))
            tensors.append((x, transposed_weights(edge, rho, network.shapes[edge.source], shape)))
        sums = field.concat([field.dot(x, w) for x, w in tensors])
    wires = party.exchange("edges", len(node.edges), sums)
    for k, edge in enumerate(node.edges):
        source = network.shapes[edge.source]
        claim = Form().add(wires[k], field.ONE)
        form, point = product_sumcheck(party, source, claim, tensors[k] if tensors else None)
        factor = weight_at(edge, rho, point, source, shape)
        party.system.append(form.add_image(group, f"z{edge.source}", point, field.neg(factor)))
    out = Form().add_constant(_bias(node, rho, shape, context.h)).add(wires, field.ONE)
    return out.add(_product(party, context, index, node.product, rho), field.ONE) if node.product else out


def _product(party: Party, context: Context, index: int, product: Product, rho: Point) -> Wire:
    """T = sum of eq(rho, .) left right: one sumcheck over the whole tensor, images included, and one product of wires.

    It ends at a batch point of its own.  Where `right` has one value per channel, its tensor repeats that value on the
    real rows and columns.
    """
    network, h = context.layout.network, context.h
    shape = (*network.shapes[product.left], h)
    spread = network.shapes[product.right] != network.shapes[product.left]
    sums = value = None
    if context.witness is not None:
        left, right = (kernels.to_host(context.column(f"z{k}")) for k in (product.left, product.right))
        if spread:
            right = np.repeat(right.reshape(shape[0], 1, h), shape[1] * shape[2], axis=1)
        a, b = (field.embed(z.reshape(-1)) for z in (left, right))
        value = field.dot(field.mul(a, b), eq_tensor(rho, shape))
        sums = of_product(a, b, shape)
        del a, b  # they are in the tables, which shrink
    wire = party.exchange("product", 1, value)
    form, point = eq_sumcheck(party, variables(shape, _PRODUCT_ORDER), rho, Form().add(wire, field.ONE), sums)
    ends = sums.ends()[:2] if sums is not None else (None, None)
    x, y, (xy,) = party.exchange_factors("product.ends", 1, *ends)
    minus, group = field.neg(field.ONE), f"{index} product"
    _group(party, context, group, point[3])
    party.system.append(form.add_product(x, y, xy, minus))
    party.system.append(Form().add(x, minus).add_image(group, f"z{product.left}", point[:3], field.ONE))
    factor, at = field.ONE, list(point[:3])
    if spread:
        factor, at = real(point[1:3], shape[1:3]), [point[0], field.zeros(0), field.zeros(0)]
    party.system.append(Form().add(y, minus).add_image(group, f"z{product.right}", at, factor))
    return wire


def _bias(node: Node, rho: Point, shape: Shape, h: int) -> Vector:
    per_channel = field.dot(eq_table(rho[0], shape[0]), field.embed(node.bias))
    return field.mul(per_channel, real(rho[1:], (*shape[1:], h)))


def _axis_table(window: Window, point: Vector, outputs: int, length: int) -> Vector:
    """[5, kernel, length]: E_k(q) = sum over outputs p that read input q by tap k of eq(point, p)."""
    eq, taps = eq_table(point, outputs), window.taps(length)
    return np.stack([_scattered(eq, taps[k], length, window.repeat > 1) for k in range(window.kernel)], axis=1)


def _scattered(values: Vector, positions: npt.NDArray[np.int64], length: int, repeated: bool) -> Vector:
    """[..., length]: each of the values [..., n] added at its position, none at -1.

    repeated: whether two may have one position; sums of 2^16 residues stay below 2^64.
    """
    valid = positions >= 0
    if not repeated:
        table = np.zeros((*values.shape[:-1], length), np.uint32)
        table[..., positions[valid]] = values[..., valid]
        return table
    sums = np.zeros((length, *values.shape[:-1]), np.uint64)
    np.add.at(sums, positions[valid], np.moveaxis(values, -1, 0)[valid].astype(np.uint64))
    return np.ascontiguousarray(np.moveaxis(sums % P, 0, -1).astype(np.uint32))


def _axis_at(window: Window, pool: Window | None, rho: Vector, outputs: int, point: Vector, length: int) -> Vector:
    """[5, kernel] of E_k(point), the extensions of `_pooled_table`, of which no table is made."""
    eq = eq_table(point, length)
    if pool is not None:  # sums of 2^16 residues stay below 2^64
        read = field.concat([eq, field.ZERO])[:, pool.taps(length)]  # index -1 reads zero
        eq = np.ascontiguousarray((read.sum(axis=1, dtype=np.uint64) % P).astype(np.uint32))
    table = _axis_table(window, rho, outputs, eq.shape[1])
    return field.concat([field.dot(np.ascontiguousarray(table[:, k]), eq) for k in range(window.kernel)])


def _pooled_table(window: Window, pool: Window | None, point: Vector, outputs: int, length: int) -> Vector:
    """[5, kernel, length]: the same as `_axis_table`, of the inputs of the pool."""
    if pool is None:
        return _axis_table(window, point, outputs, length)
    table = _axis_table(window, point, outputs, pool.outputs(length))
    spread = np.zeros((field.DEGREE, window.kernel, length), np.uint32)
    for positions in pool.taps(length):
        spread = field.add(spread, _scattered(table, positions, length, pool.repeat > 1))
    return spread


def transposed_weights(edge: Edge, rho: Point, source: Shape, shape: Shape) -> Vector:
    """W'(c, q) = sum_{o, k} eq(rho_channel, o) w[o, c, k] E_k(q_row) E_k(q_column) as [5, C H W] of the source."""
    pools = edge.pool or (None, None)
    rows = _pooled_table(edge.rows, pools[0], rho[1], shape[1], source[1])
    columns = _pooled_table(edge.columns, pools[1], rho[2], shape[2], source[2])
    o, cg, kh, kw = edge.weight.shape
    eq = eq_table(rho[0], o)
    per_group = o // edge.groups
    weight = field.residues(edge.weight).reshape(edge.groups, per_group, cg * kh * kw)
    mixed = field.concat([
        field.combine(np.ascontiguousarray(weight[g].T), np.ascontiguousarray(eq[:, g * per_group : (g + 1) *
        per_group])) for g in range(edge.groups)
    ]).reshape(field.DEGREE, source[0], kh, kw)
    height, width = rows.shape[2], columns.shape[2]
    out = field.zeros(height * source[0] * width)
    for ky in range(kh):
        line = field.zeros(source[0] * width)
        for kx in range(kw):
            line = field.add(line, field.outer(mixed[:, :, ky, kx], columns[:, kx]))
        out = field.add(out, field.outer(rows[:, ky], line))
    cube = out.reshape(field.DEGREE, height, source[0], width).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(cube).reshape(field.DEGREE, -1)


def weight_at(edge: Edge, rho: Point, point: Point, source: Shape, shape: Shape) -> Vector:
    """W'(point) from the weights, without the tensor: O(weights + taps) for the verifier."""
    pools = edge.pool or (None, None)
    a_rows = _axis_at(edge.rows, pools[0], rho[1], shape[1], point[1], source[1])
    a_columns = _axis_at(edge.columns, pools[1], rho[2], shape[2], point[2], source[2])
    o, cg, kh, kw = edge.weight.shape
    eq_out, eq_in = eq_table(rho[0], o), eq_table(point[0], source[0])
    taps = field.outer(a_rows, a_columns)
    if edge.groups == 1:
        inner = field.combine(field.residues(edge.weight).reshape(o, cg * kh * kw), field.outer(eq_in, taps))
        return field.dot(inner, eq_out)
    # All groups at once: a depthwise convolution has as many as channels.
    inner = field.combine(field.residues(edge.weight).reshape(o * cg, kh * kw), taps)
    factors = field.mul(np.repeat(eq_out, cg, axis=1), np.ascontiguousarray(eq_in[:, edge.channels.reshape(-1)]))
    return field.dot(inner, factors)


# --- the output -----------------------------------------------------------------------------------


def _output(party: Party, context: Context) -> Wire:
    """Logits are right; o is one-hot; m is 0/1 and 1 only where the label's logit is strictly the largest; enough m.

    The products o o = o, m m = m, o g = og, m d = v and the count bits are proven by the commitment (layout.PRODUCTS).
    """
    layout, h = context.layout, context.h
    classes, index = layout.network.classes, len(layout.network.nodes)
    minus = field.neg(field.ONE)
    shape = _leaf_shape(layout, index)
    range_tag = field.sub(context.beta, field.constant(layout.tables.tag(LIMB_BITS)))
    witness = None
    if context.witness is not None:
        limbs = np.concatenate([context.witness.arrays["v0"], context.witness.arrays["v1"]])
        denominators = np.empty((field.DEGREE, len(limbs)), np.uint32)
        _leaves(context, range_tag, limbs, None, denominators)
        witness = TreeWitness(None, denominators, shape, _LEAF_ORDER)
    end = fractional_tree(party, shape, _LEAF_ORDER, witness)
    selector, at = _point(end)
    ones = real(at, shape[1:])
    weights = eq_tensor((at[0], at[3]), (classes, h))
    party.system.append(_is(end.numerator, ones))
    form = _is(end.denominator, field.add(field.sub(field.ONE, ones), field.mul(range_tag, ones)))
    form.add_array("v0", field.mul(weights, field.mul(context.alpha, field.sub(field.ONE, selector))))
    form.add_array("v1", field.mul(weights, field.mul(context.alpha, selector)))
    party.system.append(form)

    rho = (party.challenge("class", lg(classes)), field.zeros(0), field.zeros(0), party.challenge("image", lg(h)))
    eq_class, eq_image = eq_table(rho[0], classes), eq_table(rho[3], h)
    eq = field.outer(eq_class, eq_image)
    real_class, real_image = field.total(eq_class), field.total(eq_image)
    group = str(index)
    party.system.groups[group] = eq_image
    first_class = field.zeros(classes * h)
    first_class[:, :h] = eq_image
    each_class = np.tile(eq_image, classes)
    party.system.append(affine(party, context, index, group, rho).add_array("g", field.neg(eq)))
    party.system.append(_is(Form().add_array("o", each_class), real_image))
    party.system.append(Form().add_array("m", field.sub(eq, field.mul(first_class, real_class))))
    difference = Form().add_array("d", eq).add_array("g", eq).add_array("o", field.mul(eq, minus))
    difference.add_array("og", field.mul(each_class, field.neg(real_class)))
    party.system.append(difference.add_constant(field.mul(real_class, real_image)))
    parts = Form().add_array("v", eq).add_array("v0", field.mul(eq, minus))
    party.system.append(parts.add_array("v1", field.scale(eq, -(1 << LIMB_BITS))))
    indicator = field.zeros(classes * h)
    indicator[:, :h] = field.ONE
    count = Form().add_array("m", indicator).add_constant(field.constant(-layout.k_min))
    party.system.append(count.add_array("count", field.embed([-(1 << j) for j in range(layout.count_bits)])))
    return end.total

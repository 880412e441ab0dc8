"""Kernels and proofs on the device: by Triton's interpreter, or by a real one with TRITON_INTERPRET=0.

The interpreter shows that they compute the right thing, the compiler that a device could run them.
"""

import inspect
import os
import subprocess
import sys
import weakref

os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from protocol import argument, kernels
from protocol.argument import Cancelled, prove, verify
from protocol.errors import ParameterError
from protocol.kernels import cpu, cuda
from tests.adversary import agree
from tests.assurance.hiding import tiny
from tests.protocol import test_kernels
from tests.protocol.conftest import cases
from tests.protocol.test_forks import elsewhere

DIMS = [(1, 1, 1), (2, 5, 3), (1, 4, 7), (3, 2, 1), (1, 3, 300)]


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("check", ["fold", "round_sums", "leaves"])
def test_kernels_of_the_device(check, dims):
    getattr(test_kernels, f"check_{check}")(cuda, np.random.default_rng(dims), dims)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("ones", [False, True])
def test_trees_on_the_device(dims, ones):
    test_kernels.check_tree_levels(cuda, np.random.default_rng(dims), dims, ones)


@pytest.mark.parametrize("n", [1, 3, 17])
@pytest.mark.parametrize("check", ["products", "scale_and_sum", "counts"])
def test_vectors_on_the_device(check, n):
    getattr(test_kernels, f"check_{check}")(cuda, np.random.default_rng(n), n)


def test_extremes_on_the_device():
    test_kernels.check_products_of_the_extremes(cuda)
    test_kernels.check_largest_sums(cuda)


@pytest.mark.parametrize("rows, n", [(1, 1), (3, 9), (700, 3), (2, 700)])
def test_combine_on_the_device(rows, n):
    test_kernels.check_combine(cuda, np.random.default_rng(n), rows, n)


@pytest.mark.parametrize("size, masks, lanes", [(1, 1, 1), (2, 1, 33), (8, 8, 3), (16, 5, 40)])
def test_codes_on_the_device(size, masks, lanes):
    test_kernels.check_transform(cuda, size, lanes)
    test_kernels.check_encode(cuda, size, masks, lanes)


@pytest.mark.parametrize("dtype, window", test_kernels.TAPS)
def test_taps_on_the_device(dtype, window):
    test_kernels.check_taps(cuda, np.random.default_rng(1), dtype, window)


@pytest.mark.parametrize("shift", [0, 1, 7, 24])
def test_requantize_on_the_device(shift):
    test_kernels.check_requantize(cuda, np.random.default_rng(shift), shift)


@pytest.mark.parametrize("widths", [w for w in test_kernels.WIDTHS if sum(w) < 100])
def test_columns_on_the_device(widths):
    test_kernels.check_columns(cuda, np.random.default_rng(1), widths)


@given(cases())
@settings(max_examples=15)
def test_networks_on_the_device(case):
    """Every value, bit for bit."""
    here, there = case.network.forward(case.images), case.network.forward(case.images, "cuda")
    for name in ("outputs", "units", "remainders"):
        for a, b in zip(getattr(here, name), getattr(there, name), strict=True):
            assert (a == kernels.to_host(b).view(np.int32)).all()
    assert (here.logits == there.logits).all()


def offered(kernels):
    """Public functions of a module by name; not what only its own kernels call."""
    found = {name: getattr(f, "py_func", f) for name, f in vars(kernels).items()
             if not getattr(f, "targetoptions", {}).get("forceinline")}  # fmt: skip
    return {name: f for name, f in found.items()
            if inspect.isfunction(f) and f.__module__ == kernels.__name__ and not name.startswith("_")}  # fmt: skip


def test_the_devices_offer_the_same():
    """The same names with the same arguments, except what only the host does and where the device is."""
    ours, theirs = offered(cpu), offered(cuda)
    assert set(ours) - {"scatter_add", "eq_table"} == set(theirs) - {"device"}
    for name in {*ours, "Leaves"} - {"scatter_add", "eq_table"}:
        one, other = (inspect.signature(found.get(name, k.Leaves)) for found, k in ((ours, cpu), (theirs, cuda)))
        assert [*one.parameters] == [*other.parameters], name


class Leaves(cpu.Leaves):
    """The interpreter takes a second for each chunk of 64 bytes; see `test_columns_on_the_device`."""

    def update(self, block):
        super().update(kernels.to_host(block))


def test_a_proof_is_the_same_on_every_device(statement, key, monkeypatch):
    """Everything large begins on the device; trees end on the host."""
    monkeypatch.setattr(argument.os, "urandom", bytes)
    monkeypatch.setattr(kernels, "SMALL", 9000)
    if cuda.INTERPRETED:
        monkeypatch.setattr(cuda, "Leaves", Leaves)
    launched = []
    launch = cuda._launch
    monkeypatch.setattr(cuda, "_launch", lambda *given, **more: launched.append(given) or launch(*given, **more))
    proof = prove(statement, key, device="cuda")
    assert launched and proof == prove(statement, key)
    verify(statement, proof)


@pytest.fixture
def quick(monkeypatch):
    """Few launches, each of which keeps the interpreter busy: of the trees of `tiny`, only the largest leaves."""
    monkeypatch.setattr(kernels, "SMALL", 12)
    monkeypatch.setattr(cuda, "Leaves", Leaves)


@pytest.fixture
def left(monkeypatch):
    """Of each proof, when torch has to give back what it keeps: whether it made tensors, and how many are held yet."""
    made, found = [], []

    def watched(make):
        def wrapper(*given):
            tensor = make(*given)
            made.append(weakref.ref(tensor))
            return tensor

        return wrapper

    for name in ("words", "integers", "reals", "empty"):
        monkeypatch.setattr(cuda, name, watched(getattr(cuda, name)))
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: found.append((len(made) > 0, sum(one() is not None for one in made))))
    return found


@pytest.mark.parametrize("engine", [None, elsewhere])
def test_two_verifiers_accept_a_proof(engine, quick, left, monkeypatch):
    """Of the device, also where it proves forks that are sent to it: the bytes of every other prover."""
    statement, key = tiny()
    monkeypatch.setattr(argument.os, "urandom", bytes)
    proof = prove(statement, key, engine=engine, device="cuda")
    assert left == [(True, 0)]
    assert proof == prove(statement, key)
    assert agree.both(statement, proof) == ("true", "true")


def test_memory_that_runs_out(statement, key, monkeypatch):
    """Of the device or of the machine: an error that says so."""

    failures = [MemoryError(), torch.OutOfMemoryError()]

    def full(*shape):
        raise failures.pop()

    monkeypatch.setattr(cuda, "reals", full)
    for name in ("device", "machine"):
        with pytest.raises(ParameterError, match=f"{name} has too little memory"):
            prove(statement, key, device="cuda")
    assert cuda.memory() > 0


def test_a_proof_that_is_cancelled_leaves_no_memory_behind(statement, key, left):
    asked = []
    with pytest.raises(Cancelled):
        prove(statement, key, device="cuda", progress=lambda *now: asked.append(now), cancelled=lambda: len(asked) > 0)
    assert left == [(True, 0)]


def test_devices_that_are_not_there(statement, key, monkeypatch):
    def none():
        raise ParameterError("nothing here")

    monkeypatch.setattr(cuda, "device", none)
    assert kernels.on("auto") is cpu
    with pytest.raises(ParameterError, match="no device"):
        prove(statement, key, device="cuda")


def test_a_device_could_run_the_kernels(tmp_path):
    """All of them compile for one that need not be there, as does each with sizes of 1, which Triton takes as fixed."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, *ones in lines if not ones] == [
        "_k_mul", "_k_outer", "_f_scale", "_f_scale_rows", "_combine", "_fold", "_round_sums", "_tree_level",
        "_tree_level", "_tree_open", "_tree_open", "_leaves", "_butterflies", "_butterflies", "_cosets", "_gather",
        "_gather", "_depthwise", "_depthwise", "_sha256",
    ]  # fmt: skip
    for few in (["half"], ["step"], ["half", "step", "lanes", "entries"]):  # the first level, the last, one entry
        assert lines.count(["_butterflies", *few]) == 2
    assert ["_round_sums", "inner"] in lines


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from protocol.kernels import cuda

POINTERS = ("tables", "out", "given", "a", "b", "outer_weights", "inner_weights", "p", "q", "to_p", "to_q", "s",
            "matrix", "factors", "constant", "alpha", "alpha2", "first_column", "second_column",
            "values", "factor", "low", "high", "block", "roots", "masks", "shifts", "wraps", "held", "state",
            "constants")
for name, more in (
    ("_k_mul", {}), ("_k_outer", {}), ("_f_scale", {}), ("_f_scale_rows", {}),
    ("_combine", {"BLOCK": cuda.ROWS, "STEP": cuda.STEP}), ("_fold", {}), ("_round_sums", {}),
    ("_tree_level", {"ones": False}), ("_tree_level", {"ones": True}), ("_tree_open", {"ones": False}),
    ("_tree_open", {"ones": True}), ("_leaves", {}),
    ("_butterflies", {"TIME": False}), ("_butterflies", {"TIME": True}), ("_cosets", {"BITS": 13}),
    ("_gather", "*i32"), ("_gather", "*fp64"), ("_depthwise", "*i32"), ("_depthwise", "*fp64"), ("_sha256", {}),
):
    of_x = {}  # of the kernels that read a tensor of either kind
    if isinstance(more, str):
        of_x, more = {"x": more, "rows": "*i64", "columns": "*i64", "out": "*fp64", "weight": "*fp64"}, {}
    kernel = getattr(cuda, name)
    sizes = [a for a in kernel.arg_names if a not in (*of_x, *more, *POINTERS, "sums", "BLOCK")]
    for ones in ([], sizes, *([size] for size in sizes if size in ("half", "step", "inner"))):  # 1 in every proof
        fixed = {"BLOCK": 256, **more, **dict.fromkeys(ones, 1)}
        kinds = {a: of_x[a] if a in of_x else "constexpr" if a in fixed else "*i32" if a in POINTERS
                 else "*i64" if a == "sums" else "i32" for a in kernel.arg_names}
        constants = {(kernel.arg_names.index(a),): value for a, value in fixed.items()}
        made = triton.compile(ASTSource(kernel, kinds, constants), target=GPUTarget("cuda", 90, 32))
        assert made.asm["cubin"]
        print(name, *ones)
"""

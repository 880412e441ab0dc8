"""Kernels and proofs on the device: by Triton's interpreter, or by a real one with TRITON_INTERPRET=0.

The interpreter shows that they compute the right thing, the compiler that a device could run them.
"""

import os
import subprocess
import sys

os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest

from protocol import argument, kernels
from protocol.argument import prove, verify
from protocol.errors import ParameterError
from protocol.kernels import cpu, cuda
from tests.protocol import test_kernels

DIMS = [(1, 1, 1), (2, 5, 3), (1, 4, 7), (3, 2, 1), (1, 3, 300)]


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("check", ["fold", "round_sums", "leaves"])
def test_kernels_of_the_device(check, dims):
    getattr(test_kernels, f"check_{check}")(cuda, np.random.default_rng(dims), dims)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("ones", [False, True])
def test_trees_on_the_device(dims, ones):
    test_kernels.check_tree_levels(cuda, np.random.default_rng(dims), dims, ones)


def test_the_devices_offer_the_same():
    """Whatever `cuda` has, `cpu` has under the same name with the same arguments."""
    import inspect

    names = [name for name, f in vars(cuda).items() if inspect.isfunction(f) and f.__module__ == cuda.__name__]
    shared = [name for name in names if name not in ("device", "_launch")]
    assert len(shared) == 10
    for name in shared:
        ours = getattr(cpu, name)
        assert [*inspect.signature(getattr(ours, "py_func", ours)).parameters] == [
            *inspect.signature(getattr(cuda, name)).parameters
        ]


def test_a_proof_is_the_same_on_every_device(statement, key, monkeypatch):
    """Trees begin on the device and end on the host."""
    monkeypatch.setattr(argument.os, "urandom", bytes)
    monkeypatch.setattr(kernels, "SMALL", 9000)
    launched = []
    launch = cuda._launch
    monkeypatch.setattr(cuda, "_launch", lambda *given: launched.append(given) or launch(*given))
    proof = prove(statement, key, device="cuda")
    assert launched and proof == prove(statement, key)
    verify(statement, proof)


def test_devices_that_are_not_there(statement, key, monkeypatch):
    def none():
        raise ParameterError("nothing here")

    monkeypatch.setattr(cuda, "device", none)
    assert kernels.on("auto") is cpu
    with pytest.raises(ParameterError, match="no device"):
        prove(statement, key, device="cuda")


def test_a_device_could_run_the_kernels(tmp_path):
    """All of them compile for one that need not be there."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["_fold", "_round_sums", "_tree_level", "_tree_level", "_tree_open", "_tree_open",
                                   "_leaves"]  # fmt: skip


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from protocol.kernels import cuda

SIZES = ("n", "inner", "size", "rows", "entries")
for name, more in (
    ("_fold", {}), ("_round_sums", {}), ("_tree_level", {"ones": False}), ("_tree_level", {"ones": True}),
    ("_tree_open", {"ones": False}), ("_tree_open", {"ones": True}), ("_leaves", {}),
):
    kernel, fixed = getattr(cuda, name), {"BLOCK": 256, **more}
    kinds = {a: "constexpr" if a in fixed else "i32" if a in SIZES else "*i64" if a == "sums" else "*i32"
             for a in kernel.arg_names}
    constants = {(kernel.arg_names.index(a),): value for a, value in fixed.items()}
    made = triton.compile(ASTSource(kernel, kinds, constants), target=GPUTarget("cuda", 90, 32))
    assert made.asm["cubin"]
    print(name)
"""

"""Memory that is used again (glibc only)."""

import subprocess
import sys

import pytest

from protocol import heap

LARGE = 1 << 27
PROGRAM = f"""
import threading

from protocol import heap

heap.share()
import numpy as np


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) << 12


def use():
    np.ones({LARGE}, np.uint8)


def kept():
    use()
    return resident() - before > {LARGE} // 2


before = resident()
assert not kept()
heap.keep()
heap.keep()
assert kept()
heap.give_back()
assert kept()
heap.give_back()
assert resident() - before < {LARGE} // 4
heap.keep()
found = []
thread = threading.Thread(target=lambda: found.append(kept()))
thread.start()
thread.join()
assert found == [True]
"""


FAILING = f"""
from protocol import heap

heap.share()
import numpy as np

from protocol.errors import ParameterError
from protocol.kernels import cpu


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) << 12


def proof(error):
    large = np.ones({LARGE}, np.uint8)
    assert resident() - before > {LARGE} // 2
    raise error


before = resident()
for error in (MemoryError, KeyError):
    try:
        with cpu.bounded():
            proof(error)
    except (ParameterError, KeyError) as caught:
        assert isinstance(caught, ParameterError) == (error is MemoryError)
        assert resident() - before < {LARGE} // 4
    else:
        raise AssertionError
"""


@pytest.mark.skipif(not heap._known, reason="another C library")
def test_memory_stays_between_keep_and_give_back_in_threads_too():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


@pytest.mark.skipif(not heap._known, reason="another C library")
def test_a_proof_that_fails_gives_its_memory_back():
    subprocess.run([sys.executable, "-c", FAILING], check=True)

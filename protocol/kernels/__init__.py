"""The hot loops, a module per device with the same names: `cpu` is numba on arrays, `cuda` Triton on torch tensors."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from protocol.errors import ParameterError
from protocol.kernels import cpu

SMALL = 1 << 14  # elements of K below which a device would only wait for its launches: they stay with the host


def on(device: str) -> ModuleType:
    """The kernels for "cpu", "cuda", or "auto": the device if there is one.

    Raises ParameterError for a device that cannot be used here.
    """
    if device == "cpu":
        return cpu
    try:
        from protocol.kernels import cuda

        cuda.device()
    except (ImportError, ParameterError) as error:
        if device == "auto":
            return cpu
        raise ParameterError(f"no device to prove on: {error}") from None
    return cuda


def of(*arrays: Any) -> ModuleType:
    """The kernels of the device where arrays are; small ones may be on the host nevertheless."""
    for array in arrays:
        if not isinstance(array, np.ndarray):
            from protocol.kernels import cuda

            return cuda
    return cpu


def to(kernels: ModuleType, array: Any) -> Any:
    """An array where these kernels work."""
    return array if of(array) is kernels else kernels.to_device(to_host(array))


def to_host(array: Any) -> Any:
    """An array on the host, wherever it is."""
    return of(array).to_host(array)


def host_if_small(array: Any) -> Any:
    """Elements of K [5 tables, n], brought to the host if they are few."""
    return to_host(array) if array.shape[1] < SMALL else array

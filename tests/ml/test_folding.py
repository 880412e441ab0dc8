"""Constants that are folded are the same integers on every machine, or are refused."""

import numpy as np
import pytest

from ml.folding import fold
from ml.onnx_reader import Operator
from protocol.errors import ParameterError

LEAST, MOST = np.iinfo(np.int64).min, np.iinfo(np.int64).max
INT32, INT64, FLOAT = 6, 7, 1


def folded(kind: str, *operands: np.ndarray, **attributes: int) -> list[float]:
    return fold(Operator(kind, "f", ("a", "b")[: len(operands)], "c", attributes), list(operands)).tolist()


def test_quotients_are_exact_and_rounded_to_zero() -> None:
    """Not by way of float64, which has no 2^63 - 1, and of which a conversion of 2^63 depends on the processor."""
    a = np.array([MOST, MOST - 1, LEAST + 1, 7, -7, 7, -7, 0])
    b = np.array([1, 3, -1, 2, 2, -2, -2, 5])
    expected = [MOST, (MOST - 1) // 3, MOST, 3, -3, -3, 3, 0]
    assert folded("Div", a, b) == expected


@pytest.mark.parametrize("pair", [(LEAST, -1), (1, LEAST)])
def test_quotients_that_there_are_none_of_are_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(ParameterError, match="too large"):
        folded("Div", *(np.array([n]) for n in pair))


@pytest.mark.parametrize("value, to", [
    (np.array([2.0**63]), INT64), (np.array([2.0**63], np.float32), INT64), (np.array([2.0**31], np.float32), INT32),
    (np.array([MOST]), FLOAT), (np.array([0.5]), INT64), (np.array([2**31]), INT32),
])  # fmt: skip
def test_a_cast_beyond_the_type_is_refused(value: np.ndarray, to: int) -> None:
    with pytest.raises(ParameterError, match="keeps the values"):
        folded("Cast", value, to=to)


@pytest.mark.parametrize("value, to", [
    (np.array([-(2.0**63)]), INT64), (np.array([2.0**62], np.float32), INT64), (np.array([-(2**31)]), INT32),
    (np.array([LEAST]), FLOAT), (np.array([3.0]), INT32),
])  # fmt: skip
def test_other_casts_keep_the_values(value: np.ndarray, to: int) -> None:
    assert folded("Cast", value, to=to) == value.tolist()


def test_no_conversion_is_left_to_the_processor() -> None:
    """One that saturates, as that of ARM, finds the same."""

    class Saturating(np.ndarray):
        def astype(self, kind, **more):  # type: ignore[no-untyped-def,override]
            kind = np.dtype(kind)
            values = np.asarray(self)
            if kind.kind == "i" and values.dtype.kind == "f":
                info = np.iinfo(kind)
                return np.array([min(max(int(v), info.min), info.max) for v in values.tolist()], kind).view(Saturating)
            return values.astype(kind).view(Saturating)

    single = np.array([2.0**31], np.float32)
    for value, to in ((np.array([2.0**63]), INT64), (single, INT32), (np.array([MOST]), FLOAT)):
        with pytest.raises(ParameterError, match="keeps the values"):
            folded("Cast", value.view(Saturating), to=to)

"""Operators on constants alone: small shapes and paddings that an exporter computes inside the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ml.onnx_reader import Operator
from protocol.errors import ParameterError

MAX_ELEMENTS = 1 << 12  # of an operand or a result
FOLDED = frozenset({
    "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Gather", "Identity", "Mul", "Reshape", "Slice", "Squeeze",
    "Sub", "Transpose", "Unsqueeze",
})

KINDS = {1: np.float32, 6: np.int32, 7: np.int64, 11: np.float64}  # of a Cast, by TensorProto.DataType

Array = npt.NDArray[Any]


def fold(operator: Operator, operands: list[Array | None]) -> Array:
    """The value of an operator on constants; an omitted operand is None.  Raises ParameterError."""
    if operator.kind == "Identity" and operands[0] is not None:
        return operands[0]
    arrays = [np.zeros(0, np.int64) if a is None else a for a in operands]
    if operator.kind not in FOLDED or any(a.size > MAX_ELEMENTS for a in arrays):
        raise operator.fail("one operand must depend on the image")
    first = arrays[0]
    numbers = [[int(n) for n in a.reshape(-1)[:8].tolist()] for a in arrays[1:]]
    try:
        match operator.kind:
            case "Cast":
                return _cast(operator, first)
            case "Concat":
                if sum(a.size for a in arrays) > MAX_ELEMENTS:
                    raise operator.fail("only short vectors are supported")
                return np.concatenate(arrays, operator.integer("axis", 0))
            case "ConstantOfShape":
                value = np.asarray(operator.attributes.get("value", np.zeros(1)))
                if value.dtype.kind not in "if" or value.size != 1:
                    raise operator.fail("only one numeric value is supported")
                if first.size != 1 or not 0 <= first.reshape(-1)[0] <= MAX_ELEMENTS:
                    raise operator.fail("only short vectors are supported")
                return np.full(int(first.reshape(-1)[0]), value.reshape(-1)[0])
            case "Gather":
                if first.ndim != 1:
                    raise operator.fail("only elements of a list are supported")
                return np.asarray(first[arrays[1]])
            case "Add" | "Sub" | "Mul" | "Div":
                return _arithmetic(operator, first, arrays[1])
            case "Reshape":
                return first.reshape(numbers[0])
            case "Squeeze":
                return first.squeeze(tuple(numbers[0]) if len(arrays) > 1 else None)
            case "Transpose":
                return first.transpose(operator.numbers("perm"))
            case "Unsqueeze":
                return np.expand_dims(first, tuple(numbers[0]))
            case _:  # Slice
                starts, ends, axes, steps = [*numbers, [], []][:4]
                for start, end, axis, step in zip(
                    starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True
                ):
                    # Minus infinity, as exporters write it, is the end of a walk backwards.
                    stop = None if step < 0 and end < -first.shape[axis] else end
                    first = first[(slice(None),) * (axis % first.ndim) + (slice(start, stop, step),)]
                return first
    except ParameterError:
        raise
    except (ValueError, IndexError, TypeError, ArithmeticError):
        raise operator.fail("the constants do not fit each other") from None


def _cast(operator: Operator, value: Array) -> Array:
    """The same numbers of another type.  One that rounds them, or has no such numbers, would make another network."""
    kind = KINDS.get(operator.integer("to", 0))
    if kind is not None:
        with np.errstate(all="ignore"):
            cast = value.astype(kind)
            # What is out of range becomes another integer on another machine.
            fits = all(_fits(a, b) for a, b in ((value, cast), (cast, value)))
            if fits and np.array_equal(cast.astype(value.dtype), value):
                return cast.astype(np.int64 if cast.dtype.kind == "i" else np.float64)
    raise operator.fail("only a cast that keeps the values of a constant is supported")


def _fits(value: Array, other: Array) -> bool:
    """Whether a conversion to the type of the other array is one to integers that has them all, or to real numbers."""
    if other.dtype.kind != "i" or value.dtype.kind == "i":
        return True
    limit = 2.0 ** (8 * other.dtype.itemsize - 1)
    return bool(((-limit <= value) & (value < limit)).all())


def _arithmetic(operator: Operator, a: Array, b: Array) -> Array:
    """Of short vectors: sizes that an exporter computes."""
    if max(a.ndim, b.ndim) > 1 or {a.dtype.kind, b.dtype.kind} != {"i"} or (operator.kind == "Div" and not b.all()):
        raise operator.fail("only integers, of constants, are supported")
    match operator.kind:
        case "Add":
            return np.asarray(a + b)
        case "Sub":
            return np.asarray(a - b)
        case "Mul":
            return np.asarray(a * b)
        case _:
            if any((n == np.iinfo(n.dtype).min).any() for n in (a, b)):  # which has no absolute value
                raise operator.fail("a constant is too large")
            return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))

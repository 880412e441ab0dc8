"""Scalar functions of one activation: what a chain of elementwise operators computes, and its exact table.

An activation table may hold any function, so whatever ONNX composes of one tensor and numbers (SiLU, both GELUs, hard
swish, in one operator or in ten) costs one lookup.  Values are found by elementwise IEEE double operations in a fixed
order, without libm, so that every machine rounds the same table.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from ml.rounding import Steps
from protocol.errors import ParameterError

Floats = npt.NDArray[np.float64]
Reals = npt.NDArray[Any]  # float64 or float32

MAX_SIZE = 64  # operators in one expression
LN2 = 0.6931471805599453
TWO_OVER_SQRT_PI = 1.1283791670955126
SQRT_HALF = 0.7071067811865476
SQRT_TWO_OVER_PI = 0.7978845608028654


@dataclass(frozen=True)
class Expression:
    """kind: x | affine a e + b | add e f | mul e f | relu e | leaky e, slope | clip e, low, high | exp, erf, sigmoid,
    softplus, tanh e.  parameters: a, b; the slope; low, high.  steps: those of the file that make an affine map."""

    kind: str
    arguments: tuple[Expression, ...] = ()
    parameters: tuple[float, ...] = ()
    steps: tuple[tuple[float, float], ...] = ()

    @property
    def size(self) -> int:
        return 1 + sum(e.size for e in self.arguments)

    @property
    def cost(self) -> int:
        """Elementwise operations of an evaluation, about."""
        own = {"exp": 50, "sigmoid": 60, "softplus": 130, "tanh": 65, "erf": 450}.get(self.kind, 3)
        own += 3 * len(self.steps[1:])
        return own + sum(e.cost for e in self.arguments)

    @property
    def homogeneous(self) -> bool:
        """f(c x) = c f(x) for every c > 0: channels may then have their own scales."""
        if self.kind == "affine" and self.parameters[1] != 0:
            return False
        return self.kind in ("x", "affine", "add", "relu", "leaky") and all(e.homogeneous for e in self.arguments)

    def affine(self, a: float, b: float) -> Expression:
        """a * self + b.  Raises ParameterError for numbers that overflow."""
        if not (isfinite(a) and isfinite(b)):
            raise ParameterError("ONNX model: a chain of scalar operators overflows")
        if (a, b) == (1.0, 0.0):
            return self
        if self.kind == "affine":
            c, d = self.parameters
            if not (isfinite(a * c) and isfinite(a * d + b)):
                raise ParameterError("ONNX model: a chain of scalar operators overflows")
            return Expression("affine", self.arguments, (a * c, a * d + b), (*self.steps, (a, b)))
        return Expression("affine", (self,), (a, b), ((a, b),))

    def add(self, other: Expression) -> Expression:
        return Expression("add", (self, other))

    def mul(self, other: Expression) -> Expression:
        return Expression("mul", (self, other))

    def relu(self) -> Expression:
        return self if self.kind == "relu" else Expression("relu", (self,))

    def clip(self, low: float, high: float) -> Expression:
        return self.relu() if (low, high) == (0.0, np.inf) else Expression("clip", (self,), (low, high))

    def split(self) -> tuple[Expression, float, float, Steps]:
        """(e, a, b, steps) with self = a e + b: the linear end of an expression needs no table."""
        if self.kind != "affine":
            return self, 1.0, 0.0, ()
        return self.arguments[0], self.parameters[0], self.parameters[1], self.steps

    def rebased(self) -> tuple[Expression, float, float, Steps]:
        """(f, a, b, steps) with self(x) = f(a x + b): the linear start of an expression needs no table either."""
        starts = set(self._starts())
        if len(starts) != 1:
            return self, 1.0, 0.0, ()
        (start,) = starts
        return self._replace(start, X), *start.split()[1:]

    def _starts(self) -> list[Expression]:
        if self.kind == "x" or (self.kind == "affine" and self.arguments[0].kind == "x"):
            return [self]
        return [start for e in self.arguments for start in e._starts()]

    def _replace(self, old: Expression, new: Expression) -> Expression:
        if self == old:
            return new
        return Expression(self.kind, tuple(e._replace(old, new) for e in self.arguments), self.parameters, self.steps)

    def __call__(self, x: Reals) -> Reals:
        """Its values at x.  float64: exactly, about, and at most 2^40 in size; float32: as a runtime rounds them."""
        values = [e(x) for e in self.arguments]
        match self.kind:
            case "x":
                result = x
            case "affine":
                result = values[0]
                for a, b in self.steps if x.dtype == np.float32 else [self.parameters]:
                    result = a * result + b
            case "add":
                result = values[0] + values[1]
            case "mul":
                result = values[0] * values[1]
            case "relu":
                result = np.maximum(values[0], 0.0)
            case "leaky":
                result = np.where(values[0] < 0, self.parameters[0] * values[0], values[0])
            case "clip":
                result = np.minimum(np.maximum(values[0], self.parameters[0]), self.parameters[1])
            case _:
                result = _FUNCTIONS[self.kind](values[0])
        if x.dtype == np.float32:
            return result
        return np.minimum(np.maximum(result, -(2.0**40)), 2.0**40)  # nothing overflows


def exponential(x: Reals) -> Reals:
    """e^x to about 15 digits, for x up to 27; beyond, its value there."""
    x = np.minimum(np.maximum(x, -700.0), 27.0)
    k = np.rint(x / LN2)
    r = (x - k * LN2) / 16.0
    series = np.ones_like(r)
    for n in range(12, 0, -1):
        series = 1.0 + series * r / n
    for _ in range(4):
        series = series * series
    return np.ldexp(series, k.astype(np.int32))


def sigmoid(x: Reals) -> Reals:
    """1 / (1 + e^-x)."""
    e = exponential(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


def tanh(x: Reals) -> Reals:
    return 2.0 * sigmoid(2.0 * x) - 1.0


def softplus(x: Reals) -> Reals:
    """ln(1 + e^x) = max(x, 0) + 2 artanh(e / (2 + e)) with e = e^-|x|, whose series has a ratio of 1/9 at most."""
    e = exponential(-np.abs(x))
    t = e / (2.0 + e)
    square, total = t * t, np.zeros_like(t)
    for n in range(35, 0, -2):
        total = total * square + 1.0 / n
    return np.maximum(x, 0.0) + 2.0 * t * total


def erf(x: Reals) -> Reals:
    """The error function: 2 / sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1) / (1 3 5 ... (2n+1)), Abramowitz & Stegun 7.1.6."""
    y = np.minimum(np.abs(x), 6.0)  # 1 - erf(6) < 2^-55
    square = y * y
    term, total = y.copy(), y.copy()
    for n in range(1, 120):
        term = term * (2.0 * square) / (2 * n + 1)
        total = total + term
    value = np.minimum(TWO_OVER_SQRT_PI * exponential(-square) * total, 1.0)
    return np.where(x < 0, -value, value)


_FUNCTIONS = {"exp": exponential, "sigmoid": sigmoid, "softplus": softplus, "tanh": tanh, "erf": erf}

X = Expression("x")
RELU = X.relu()


def elu(x: Expression, alpha: float) -> Expression:
    """x above 0, else alpha (e^x - 1) (Clevert et al. 2016)."""
    below = Expression("exp", (x.clip(-np.inf, 0.0),)).affine(1.0, -1.0)
    return x.relu().add(below.affine(alpha, 0.0))


def gelu(x: Expression, approximate: bool) -> Expression:
    """x Phi(x) (Hendrycks and Gimpel 2016), or its approximation by tanh."""
    if approximate:
        inner = x.add(x.mul(x).mul(x).affine(0.044715, 0.0)).affine(SQRT_TWO_OVER_PI, 0.0)
        gate = Expression("tanh", (inner,))
    else:
        gate = Expression("erf", (x.affine(SQRT_HALF, 0.0),))
    return x.mul(gate.affine(0.5, 0.5))

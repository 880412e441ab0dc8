"""Tables of curves against a hundred digits, and the algebra that moves linear ends out of them."""

from __future__ import annotations

from decimal import Decimal, localcontext
from math import erf as reference_erf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.expressions import RELU, Expression, X, erf, exponential, gelu, sigmoid, tanh
from protocol.errors import ParameterError

POINTS = np.concatenate([np.linspace(-30, 27, 400), np.linspace(-1, 1, 100), [0.0, -1e-9, 1e-9, -700.0, 60.0]])


def exact_exp(x: float) -> float:
    with localcontext() as context:
        context.prec = 60
        return float(Decimal(x).exp())


def test_functions_are_exact_to_thirteen_digits() -> None:
    x = POINTS[np.abs(POINTS) < 27]
    exp = np.array([exact_exp(v) for v in x.tolist()])
    assert np.allclose(exponential(x), exp, rtol=1e-13, atol=0)
    assert np.allclose(sigmoid(x), exp / (1 + exp), rtol=1e-13, atol=0)
    assert np.allclose(tanh(x), (exp * exp - 1) / (exp * exp + 1), rtol=0, atol=1e-14)
    assert np.allclose(erf(x), [reference_erf(v) for v in x.tolist()], rtol=0, atol=1e-14)


def test_functions_saturate_without_warnings() -> None:
    x = np.array([-(2.0**40), -800.0, 800.0, 2.0**40])
    with np.errstate(all="raise", under="ignore"):
        assert sigmoid(x).tolist() == [pytest.approx(0, abs=1e-300), pytest.approx(0, abs=1e-300), 1, 1]
        assert np.allclose([tanh(x), erf(x)], [[-1, -1, 1, 1]] * 2, rtol=0, atol=1e-14)
        assert np.isfinite(exponential(x)).all()


def test_gelu() -> None:
    x = np.linspace(-8, 8, 200)
    expected = [v * (1 + reference_erf(v / np.sqrt(2))) / 2 for v in x.tolist()]
    assert np.allclose(gelu(X, False)(x), expected, rtol=0, atol=1e-13)
    assert np.allclose(gelu(X, True)(x), expected, rtol=0, atol=2e-3)


EXPRESSIONS = st.recursive(
    st.just(X),
    lambda e: st.one_of(
        st.builds(lambda a, s, t: a.affine(s, t), e, st.floats(-3, 3), st.floats(-3, 3)),
        st.builds(lambda a, b: a.add(b), e, e), st.builds(lambda a, b: a.mul(b), e, e),
        st.builds(lambda a: a.relu(), e), st.builds(lambda a: a.clip(-1.0, 2.0), e),
        st.builds(lambda a: Expression("tanh", (a,)), e), st.builds(lambda a: Expression("leaky", (a,), (0.1,)), e),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=100)
@given(EXPRESSIONS)
def test_linear_ends_move_out(e: Expression) -> None:
    x = np.linspace(-3, 3, 21)
    inner, a, b, _ = e.split()
    core, c, d, _ = inner.rebased()
    assert np.allclose(a * core(c * x + d) + b, e(x), rtol=1e-9, atol=1e-9)
    if e.homogeneous:
        assert np.allclose(e(4 * x), 4 * e(x), rtol=1e-9, atol=1e-9)


def test_homogeneous_functions() -> None:
    leaky = Expression("leaky", (X,), (0.3,))
    assert X.homogeneous and RELU.homogeneous and leaky.homogeneous and RELU.affine(2.0, 0.0).add(X).homogeneous
    assert not X.affine(1.0, 1.0).homogeneous and not RELU.clip(0.0, 6.0).homogeneous and not X.mul(X).homogeneous


def test_overflowing_chains_are_refused() -> None:
    big = X.affine(1e300, 0.0)
    with pytest.raises(ParameterError, match="overflows"):
        big.affine(1e300, 0.0)

"""The gamma function's logarithm and its derivative in ONNX."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["digamma", "lgamma"]

# C. Lanczos, "A precision approximation of the gamma function", SIAM J. Numer. Anal. B, 1964
_LANCZOS = (
    0.99999999999980993,
    676.5203681218851,
    -1259.1392167224028,
    771.32342877765313,
    -176.61502916214059,
    12.507343278686905,
    -0.13857109526572012,
    9.9843695780195716e-6,
    1.5056327351493116e-7,
)
# Bernoulli numbers over 2k: Abramowitz and Stegun, 6.3.18
_ASYMPTOTIC = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132)
_SHIFTED = 6  # from here on five terms of the series do in float32


def _operators() -> Any:
    import onnxscript

    return onnxscript.opset18


def lgamma(self: Any) -> Any:
    """log |gamma(x)|; below 1/2 by reflection."""
    op = _operators()

    def number(value: float) -> Any:
        return op.CastLike(op.Constant(value_float=value), self)

    low = op.Less(self, number(0.5))
    x = op.Sub(op.Where(low, op.Sub(number(1.0), self), self), number(1.0))
    total = number(_LANCZOS[0])
    for k, c in enumerate(_LANCZOS[1:], 1):
        total = op.Add(total, op.Div(number(c), op.Add(x, number(float(k)))))
    t = op.Add(x, number(7.5))
    found = op.Add(
        op.Sub(op.Mul(op.Add(x, number(0.5)), op.Log(t)), t),
        op.Add(op.Log(total), number(0.5 * math.log(2 * math.pi))),
    )
    # The sine of a whole number times pi is 0, whatever pi is rounded to
    rest = op.Sub(self, op.Floor(self))
    sine = op.Sin(op.Mul(number(math.pi), rest))
    mirrored = op.Sub(op.Sub(number(math.log(math.pi)), op.Log(op.Abs(sine))), found)
    return op.Where(low, mirrored, found)


def digamma(self: Any) -> Any:
    """The derivative of ``lgamma``; below 1/2 by reflection."""
    op = _operators()

    def number(value: float) -> Any:
        return op.CastLike(op.Constant(value_float=value), self)

    low = op.Less(self, number(0.5))
    x = op.Where(low, op.Sub(number(1.0), self), self)
    total = number(0.0)
    for k in range(_SHIFTED):
        total = op.Sub(total, op.Div(number(1.0), op.Add(x, number(float(k)))))
    x = op.Add(x, number(float(_SHIFTED)))
    inverse = op.Div(number(1.0), op.Mul(x, x))
    series = number(0.0)
    for c in reversed(_ASYMPTOTIC):
        series = op.Mul(inverse, op.Add(series, number(c)))
    found = op.Sub(op.Add(total, op.Log(x)), op.Add(op.Div(number(0.5), x), series))
    turn = op.Mul(number(math.pi), op.Sub(self, op.Floor(self)))
    mirrored = op.Sub(found, op.Div(op.Mul(number(math.pi), op.Cos(turn)), op.Sin(turn)))
    return op.Where(low, mirrored, found)

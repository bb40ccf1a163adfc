"""Distances between rows in ONNX."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["cdist"]


def cdist(x1: Any, x2: Any, p: float = 2.0, compute_mode: int | None = None) -> Any:
    """The distance in the ``p`` norm of each row of ``x1`` (..., rows, n) to each of ``x2`` (...,
    others, n): (..., rows, others)."""
    import onnxscript

    op: Any = onnxscript.opset18
    between = op.Constant(value_ints=[-2])
    before = op.Constant(value_ints=[-3])
    last = op.Constant(value_ints=[-1])
    gaps = op.Abs(op.Sub(op.Unsqueeze(x1, between), op.Unsqueeze(x2, before)))
    if p == 2:
        return op.ReduceL2(gaps, last, keepdims=0)
    if p == 1:
        return op.ReduceSum(gaps, last, keepdims=0)
    if p == math.inf:
        return op.ReduceMax(gaps, last, keepdims=0)
    zero = op.CastLike(op.Constant(value_float=0.0), x1)
    if p == 0:
        return op.ReduceSum(op.CastLike(op.Greater(gaps, zero), x1), last, keepdims=0)
    power = op.CastLike(op.Constant(value_float=float(p)), x1)
    root = op.CastLike(op.Constant(value_float=1 / p), x1)
    return op.Pow(op.ReduceSum(op.Pow(gaps, power), last, keepdims=0), root)

"""Reductions of what is scattered to the same place, for torch's ONNX exporter."""

from __future__ import annotations

from typing import Any

__all__ = ["scatter_reduce"]

_REDUCTIONS = {"sum": "add", "mean": "add", "prod": "mul", "amax": "max", "amin": "min"}
_LARGE = 3.4028234663852886e38
_NEUTRAL = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "amax": -_LARGE, "amin": _LARGE}


def scatter_reduce(
    self: Any, dim: int, index: Any, src: Any, reduce: str, include_self: bool = True
) -> Any:
    """``self`` with what ``src`` holds reduced at ``index`` along ``dim``; what stands there itself
    takes part where ``include_self`` says so.

    The exporter leaves ``include_self`` out, and has no mean."""
    import onnxscript

    op: Any = onnxscript.opset18

    def like(value: float, other: Any) -> Any:
        return op.Expand(op.CastLike(op.Constant(value_float=value), self), op.Shape(other))

    at = op.Cast(index, to=7)
    if list(src.shape) != list(index.shape):
        rank = len(index.shape)
        axes = op.Constant(value_ints=list(range(rank)))
        src = op.Slice(src, op.Constant(value_ints=[0] * rank), op.Shape(index), axes)
    base = self
    if not include_self:
        base = op.ScatterElements(self, at, like(_NEUTRAL[reduce], index), axis=dim)
    made = op.ScatterElements(base, at, src, axis=dim, reduction=_REDUCTIONS[reduce])
    if reduce != "mean":
        return made
    counted = like(1.0 if include_self else 0.0, self)
    count = op.ScatterElements(counted, at, like(1.0, index), axis=dim, reduction="add")
    return op.Div(made, op.Max(count, op.CastLike(op.Constant(value_float=1.0), self)))

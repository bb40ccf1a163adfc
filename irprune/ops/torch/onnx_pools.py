"""Adaptive pools in ONNX, right at every size of the image: torch's exporter has none for most of
them, and writes the others for the size of the example alone.

Bin ``i`` of ``n`` over a dimension of ``size`` is what lies from ``floor(i * size / n)`` to
``ceil((i + 1) * size / n)``. Bins of several dimensions are products of such, so that one
dimension after the other is pooled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["POOLS", "reads_positions"]


def _binned(op: Any, x: Any, axis: int, count: int, largest: bool) -> Any:
    """``x`` with ``axis`` pooled to ``count`` bins."""
    size = x.shape[axis] if x.shape is not None else None
    if isinstance(size, int):
        starts = [i * size // count for i in range(count)]
        ends = [-(-(i + 1) * size // count) for i in range(count)]
        longest = max(b - a for a, b in zip(starts, ends, strict=True))
        first, last = (op.Constant(value_ints=v) for v in (starts, ends))
        steps = op.Constant(value_ints=list(range(longest)))
    else:
        length = op.Shape(x, start=axis, end=axis + 1)
        bins = op.Constant(value_ints=list(range(count)))
        many = op.Constant(value_ints=[count])
        first = op.Div(op.Mul(bins, length), many)
        one = op.Constant(value_ints=[1])
        above = op.Mul(op.Add(bins, one), length)
        last = op.Div(op.Add(above, op.Sub(many, one)), many)
        widths = op.ReduceMax(op.Sub(last, first), keepdims=0)
        steps = op.Range(op.Constant(value_int=0), widths, op.Constant(value_int=1))
    behind = op.Constant(value_ints=[1])
    first, last = op.Unsqueeze(first, behind), op.Unsqueeze(last, behind)
    places = op.Add(first, op.Unsqueeze(steps, op.Constant(value_ints=[0])))
    final = op.Sub(last, op.Constant(value_ints=[1]))
    # What lies behind a bin is its last element once more
    read = op.Gather(x, op.Min(places, final), axis=axis)
    over = op.Constant(value_ints=[axis + 1])
    if largest:
        return op.ReduceMax(read, over, keepdims=0)
    rank = len(x.shape)
    inside = op.CastLike(op.LessOrEqual(places, final), x)
    widths = op.CastLike(op.Sub(last, first), x)
    shares = op.Unsqueeze(
        op.Div(inside, widths), op.Constant(value_ints=list(range(2, 2 + rank - 1 - axis)))
    )
    return op.ReduceSum(op.Mul(read, shares), over, keepdims=0)


def _pooled(dims: int, largest: bool) -> Callable[..., Any]:
    def pool(self: Any, output_size: Sequence[Any]) -> Any:
        import onnxscript

        op: Any = onnxscript.opset18
        rank = len(self.shape)
        counts = list(output_size) * (dims if len(output_size) == 1 else 1)
        if all(n == 1 for n in counts) and not largest:
            over = op.Constant(value_ints=list(range(rank - dims, rank)))
            return op.ReduceMean(self, over, keepdims=1)
        made = self
        for axis, count in zip(range(rank - dims, rank), counts, strict=True):
            size = made.shape[axis] if made.shape is not None else None
            if count is not None and count != size:
                made = _binned(op, _with_shape(made, self, axis), axis, count, largest)
        return (made, made) if largest else made

    return pool


def _with_shape(made: Any, source: Any, axis: int) -> Any:
    """``made``, which has the rank of ``source`` and its sizes from ``axis`` on."""
    if made.shape is None and made is not source:
        import onnxscript

        made.shape = onnxscript.ir.Shape([*([None] * axis), *source.shape[axis:]])
    return made


POOLS: dict[str, Callable[..., Any]] = {
    f"aten.adaptive_{kind}_pool{dims}d.default": _pooled(dims, kind == "max")
    for kind in ("max", "avg")
    for dims in (1, 2, 3)
}


def reads_positions(node: Any) -> bool:
    """Whether the positions are read that a max pool of a program gives besides."""
    return any(user.args[1] == 1 and user.users for user in node.users if len(user.args) > 1)

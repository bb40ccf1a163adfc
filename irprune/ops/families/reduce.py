"""Reductions: the reduced axis may shrink where the value can be taken over those present."""

from __future__ import annotations

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.families.norm import masked_mean
from irprune.ops.families.shape import position
from irprune.ops.registry import Arg, Sample, op

_X = Arg((2, 6, 5))


def reduced(node: Node) -> list[int]:
    """The reduced dimensions, counted from the front."""
    rank, dims = node.operand(0).rank, node.attrs.get("dim")
    if dims is None or dims == []:
        return list(range(rank))
    return sorted(position(d, rank) for d in ([dims] if isinstance(dims, int) else dims))


def _reduce(axes: Axes, node: Node) -> None:
    own, gone = axes.of(node.operand(0)), set(reduced(node))
    keep = node.attrs.get("keepdim", False)
    made = tuple(axes.one if k in gone else a for k, a in enumerate(own) if keep or k not in gone)
    for value in node.outputs:
        value.axes = made


def _filled(neutral: float):  # type: ignore[no-untyped-def]
    def silence(torch, node, operands, present, run):  # type: ignore[no-untyped-def]
        x = operands[0]
        mask = present(node.operand(0), reduced(node))
        if mask is not None:
            x = torch.where(mask, x, torch.full((), neutral, dtype=x.dtype, device=x.device))
        return run(x, *operands[1:])
    return silence


def _mean_silence(torch, node, operands, present, run):  # type: ignore[no-untyped-def]
    dims = reduced(node)
    mask = present(node.operand(0), dims)
    if mask is None:
        return run(*operands)
    y = masked_mean(torch, operands[0], dims, mask)
    return y if node.attrs.get("keepdim") else y.squeeze(dims)


op("mean", _reduce, aten=("mean.dim", "mean.default"), silence=_mean_silence, samples=(Sample((_X,), {"dim": [1], "keepdim": True}, free=3),))
op("sum", _reduce, aten=("sum.dim_IntList", "sum.default"), silence=_filled(0.0), samples=(Sample((_X,), {"dim": [1, -1], "keepdim": False}, free=3),))
op("amax", _reduce, aten=("amax.default",), silence=_filled(float("-inf")), samples=(Sample((_X,), {"dim": [1], "keepdim": True}, free=3),))


def _same(axes: Axes, node: Node) -> None:
    node.out.axes = axes.of(node.operand(0))


op("softmax", _same, aten=("softmax.int", "_softmax.default"), silence=_filled(float("-inf")), samples=(Sample((_X,), {"dim": 1}, free=3),))

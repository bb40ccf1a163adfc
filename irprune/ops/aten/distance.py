"""Similarities and distances of two tensors: the compared dimension contracts, so what is dropped
of it counts as equal."""

from __future__ import annotations

from functools import partial
from typing import Any

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ir.size import same
from irprune.ops.aten.contraction import zeroed
from irprune.ops.aten.shape import position
from irprune.ops.registry import Arg, Sample, Unsupported
from irprune.ops.registry import op as declare

op = partial(declare, family="distance")


def _compared(node: Node) -> int:
    """The compared dimension of the operands broadcast together, counted from the end."""
    rank = max(node.operand(0).rank, node.operand(1).rank)
    return position(node.attrs.get("dim", -1), rank) - rank


def _compare(axes: Axes, node: Node) -> None:
    a, b = axes.of(node.operand(0)), axes.of(node.operand(1))
    rank, d = max(len(a), len(b)), _compared(node)
    a, b = (axes.one,) * (rank - len(a)) + a, (axes.one,) * (rank - len(b)) + b
    if not same(a[d].size, b[d].size):
        raise Unsupported(f"{node.op} over a dimension that broadcasts")
    made = []
    for x, y in zip(a, b, strict=True):
        if x.size != 1 and y.size != 1:
            axes.unify(x, y)
        made.append(y if x.size == 1 else x)
    made[rank + d] = axes.one
    node.out.axes = tuple(
        x for k, x in enumerate(made) if k != rank + d or node.attrs.get("keepdim")
    )


def _similarity_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    d = _compared(node)
    return run(
        *(zeroed(torch, x, present(node.operand(i), [x.dim() + d])) for i, x in enumerate(operands))
    )


def _distance_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    """The small number that torch adds to every difference is left out along with the absent
    ones."""
    a, b = operands
    mask = present(node.operand(0), [a.dim() - 1])
    if mask is None:
        return run(a, b)
    return torch.linalg.vector_norm(
        zeroed(torch, a - b + node.attrs["eps"], mask), node.attrs["p"], -1, node.attrs["keepdim"]
    )


op(
    "cosine_similarity",
    _compare,
    silence=_similarity_silence,
    aten=("cosine_similarity.default",),
    samples=(
        Sample((Arg((2, 6, 5)), Arg((6, 5))), {"dim": 1}, free=3),
        Sample((Arg((4, 6)), Arg((4, 6))), {"dim": -1}, free=2),
    ),
)
op(
    "pairwise_distance",
    _compare,
    silence=_distance_silence,
    aten=("pairwise_distance.default",),
    samples=(
        Sample((Arg((4, 6)), Arg((4, 6))), free=2),
        Sample((Arg((4, 6)), Arg((1, 6))), {"p": 1.0, "keepdim": True}, free=2),
    ),
)

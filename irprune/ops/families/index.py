"""Reading by position: the indexed axis freezes, the index tensor's own axes take its place, the others pass."""

from __future__ import annotations

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node
from irprune.ops.registry import Arg, Sample, op


def _embedding(axes: Axes, node: Node) -> None:
    table, index = axes.of(node.operand(0)), axes.of(node.operand(1))
    axes.freeze(table[0], f"indexed at run time by '{node.operand(1).name}'")
    node.out.axes = (*index, *table[1:])


op("embedding", _embedding, aten=("embedding.default",), samples=(Sample((Arg((9, 6)), Arg((2, 5), "i64", 0, 9)), free=3),))


def _index(axes: Axes, node: Node) -> None:
    """Advanced indexing: operands are the tensor and one index per leading dimension (None passes it)."""
    own, index = axes.of(node.operand(0)), node.inputs[1:]
    used = [k for k, v in enumerate(index) if v is not None]
    picked: list[Axis] = []
    rank = max(v.rank for v in index if v is not None)
    for j in range(rank):
        at: Axis = axes.one
        for k in used:
            value = node.operand(k + 1)
            axes.freeze(own[k], f"indexed by '{value.name}'")
            dims = axes.of(value)
            if len(dims) > j - rank + len(dims) >= 0:
                a = dims[j - rank + len(dims)]
                if a.size != 1:
                    if at is not axes.one:
                        axes.unify(at, a)
                    at = a
        picked.append(at)
    rest = [a for k, a in enumerate(own) if k not in used]
    adjacent = used == list(range(used[0], used[-1] + 1))
    front = used[0] if adjacent else 0
    node.out.axes = (*rest[:front], *picked, *rest[front:])


op("index", _index, aten=("index.Tensor",),
   samples=(Sample((Arg((9, 6)), Arg((2, 5), "i64", 0, 9)), free=3), Sample((Arg((4, 9, 6)), None, Arg((5,), "i64", 0, 9)), free=3)))

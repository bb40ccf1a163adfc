"""Linear maps and matrix products: the contracted axes are one, the result takes the free ones."""

from __future__ import annotations

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node
from irprune.ops.registry import Arg, Sample, op

op("linear", "*b i , o i , o? -> *b o", aten=("linear.default",),
   samples=(Sample((Arg((2, 5, 6)), Arg((4, 6)), Arg((4,))), free=4), Sample((Arg((6,)), Arg((4, 6)), None), free=2)))


def _matmul(axes: Axes, node: Node) -> None:
    a, b = axes.of(node.operand(0)), axes.of(node.operand(1))
    axes.unify(a[-1], b[-2 if len(b) > 1 else 0])
    batch: list[Axis] = []
    free = [a[-2]] * (len(a) > 1) + [b[-1]] * (len(b) > 1)
    rank = node.out.rank - len(free)
    for k in range(rank):
        own = [x for side in (a[:-2], b[:-2]) if (x := side[k - rank] if len(side) >= rank - k else None) is not None and x.size != 1]
        if len(own) == 2:
            axes.unify(*own)
        batch.append(own[0] if own else axes.one)
    node.out.axes = (*batch, *free)


def _matmul_macs(node: Node) -> tuple[Axis, ...]:
    return (*(node.out.axes or ()), (node.operand(0).axes or ())[-1])


def _matmul_silence(torch, node, operands, present, run):  # type: ignore[no-untyped-def]
    a, b = operands
    zero = torch.zeros((), dtype=a.dtype, device=a.device)
    for_a, for_b = present(node.operand(0), [a.dim() - 1]), present(node.operand(1), [max(b.dim() - 2, 0)])
    return run(a if for_a is None else torch.where(for_a, a, zero), b if for_b is None else torch.where(for_b, b, zero))


op("matmul", _matmul, aten=("matmul.default", "bmm.default", "mm.default", "mv.default", "dot.default"), onnx=("MatMul",), macs=_matmul_macs,
   silence=_matmul_silence,
   samples=(Sample((Arg((2, 1, 4, 6)), Arg((3, 6, 5))), free=5), Sample((Arg((3, 4, 6)), Arg((3, 6, 5))), free=4, target="aten.bmm.default")))

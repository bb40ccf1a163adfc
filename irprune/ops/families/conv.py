"""Convolutions: channels contract within groups, spatial and kernel dimensions are fixed."""

from __future__ import annotations

from irprune.ir.axis import Axis
from irprune.ir.graph import Node
from irprune.ops.registry import Arg, Cut, Sample, op


def _macs(node: Node) -> tuple[Axis, ...]:
    return (*(node.out.axes or ()), *(node.operand(1).axes or ())[1:])


def _transposed_macs(node: Node) -> tuple[Axis, ...]:
    return (*(node.operand(0).axes or ()), *(node.operand(1).axes or ())[1:])


def _resize(node: Node, cut: Cut) -> None:
    x, w = node.operand(0).axes, node.operand(1).axes
    assert x is not None and w is not None
    if node.attrs.get("groups", 1) != 1:
        whole, inner = (node.out.axes or ())[1] if node.op == "conv_transpose" else x[1], cut.size(w[1])
        node.attrs["groups"] = cut.size(whole) // inner


def _call(node: Node) -> str:
    kind = "conv_transpose{}d.{}" if node.op == "conv_transpose" else "conv{}d.default"
    return "aten." + kind.format(node.operand(1).rank - 2, "input" if node.operand(1).rank == 4 or node.op == "conv_transpose" else "default")


op("conv", "n (g i) *s , (g o) i *k , (g o)? -> n (g o) *t", fixed="k s t", sizes={"g": "groups"}, roles={"g": "group"},
   aten=("conv2d.default", "conv1d.default", "conv3d.default", "conv2d.padding", "conv1d.padding", "conv3d.padding"),
   call=_call, resize=_resize, macs=_macs,
   samples=(Sample((Arg((2, 6, 5, 5)), Arg((4, 6, 3, 3)), Arg((4,))), {"groups": 1}, free=3),
            Sample((Arg((2, 6, 5, 5)), Arg((4, 3, 3, 3)), Arg((4,))), {"groups": 2}, free=4),
            Sample((Arg((2, 6, 5, 5)), Arg((6, 1, 3, 3)), None), {"groups": 6}, free=2)))
op("conv_transpose", "n (g i) *s , (g i) o *k , (g o)? -> n (g o) *t", fixed="k s t", sizes={"g": "groups"}, roles={"g": "group"},
   aten=("conv_transpose2d.input", "conv_transpose1d.default", "conv_transpose3d.input"), call=_call, resize=_resize, macs=_transposed_macs,
   samples=(Sample((Arg((2, 6, 5, 5)), Arg((6, 4, 3, 3)), Arg((4,))), {"groups": 1}, free=3),))

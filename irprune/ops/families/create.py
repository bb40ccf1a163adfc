"""Tensors made from sizes alone: free until something freezes them, folded to a constant when they must shrink."""

from __future__ import annotations

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.families.shape import out_shape
from irprune.ops.registry import Cut, Sample, op


def _fresh(axes: Axes, node: Node) -> None:
    for value in node.outputs:
        value.axes = tuple(axes.leaf(s) for s in value.shape)


def _size(node: Node, cut: Cut) -> None:
    node.attrs["size"] = out_shape(cut, node)


for _name in ("zeros", "ones", "full", "empty"):
    op(_name, _fresh, resize=_size, creates=True, aten=(f"{_name}.{'memory_format' if _name == 'empty' else 'default'}",),
       samples=(Sample((), {"size": [4, 6], **({"fill_value": 2.0} if _name == "full" else {})}, free=2),) if _name != "empty" else ())
op("arange", _fresh, creates=True, aten=("arange.default", "arange.start", "arange.start_step"))

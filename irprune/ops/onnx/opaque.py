"""ONNX nodes whose use a reader does not cover: kept as they are, their axes frozen with what the
reader said."""

from __future__ import annotations

from functools import partial

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.registry import Unsupported
from irprune.ops.registry import op as declare

op = partial(declare, family="opaque")

__all__: list[str] = []


def _refuse(axes: Axes, node: Node) -> None:
    raise Unsupported(node.attrs["why"])


op("opaque", _refuse, unread=True)

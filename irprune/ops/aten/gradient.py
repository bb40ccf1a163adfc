"""Operators that change what gradients do, and no value."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from irprune.ir.graph import Node
from irprune.ops.aten.elementwise import broadcast
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare
from irprune.ops.traits import CarriedFunction

op = partial(declare, family="gradient")

_X = Arg((2, 6, 5))

op(
    "stop_gradient",
    broadcast,
    aten=("detach.default", "detach_copy.default"),
    samples=(Sample((_X,), free=3),),
    stops=True,
    idle=lambda node: node.attrs.get("idle", False),
    free=True,
    rearranges=True,
)


def _carried(torch: Any, node: Node, operands: Sequence[Any]) -> Any:
    from irprune.ops.training import gradient_to

    return gradient_to(*operands)  # type: ignore[no-untyped-call]


op(
    "gradient_to",
    broadcast,
    run=CarriedFunction(_carried, "gradient_to"),
    samples=(Sample((_X, _X), free=3),),
    doc="The first operand; its gradients go to the second.",
)

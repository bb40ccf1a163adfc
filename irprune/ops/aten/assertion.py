"""Operators that refuse values by which forward would go another way than it was captured."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from irprune.errors import OtherOutcome
from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare
from irprune.ops.traits import CarriedFunction

op = partial(declare, family="assertion")


def _asserted(axes: Axes, node: Node) -> None:
    """What is looked at stays as it is."""
    for value in node.inputs:
        for a in axes.of(value) if value is not None else ():
            axes.freeze(a, "forward goes by its values")
    node.out.axes = ()


def _assert_value(torch: Any, node: Node, operands: Sequence[Any]) -> Any:
    from irprune.ops.assertions import assert_value

    try:
        return assert_value(*operands, **node.attrs)  # type: ignore[no-untyped-call]
    except ValueError as other:
        raise OtherOutcome(str(other)) from other


op(
    "assert_value",
    _asserted,
    run=CarriedFunction(_assert_value, "assert_value"),
    samples=(
        Sample(
            (Arg((), "i64", values=(3,)),),
            {"left": None, "relation": "==", "right": 3, "dim": None, "where": "here"},
            free=0,
        ),
        Sample(
            (Arg((4, 2)),),
            {"left": None, "relation": ">", "right": 3, "dim": 0, "where": "here"},
            free=0,
        ),
    ),
    asserts=True,
    free=True,
    doc="Raises unless a value, or a size, is what forward went by when it was captured.",
)


def _dependent(axes: Axes, node: Node) -> None:
    node.out.axes = axes.of(node.operand(0))


def _with_dependencies(torch: Any, node: Node, operands: Sequence[Any]) -> Any:
    return operands[0]


op(
    "with_dependencies",
    _dependent,
    run=CarriedFunction(_with_dependencies, "with_dependencies"),
    samples=(Sample((Arg((2, 6, 5)), Arg((), "bool")), free=3),),
    is_view=True,
    free=True,
    rearranges=True,
    doc="The first operand; the others have been computed then.",
)

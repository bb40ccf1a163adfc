"""Operators that put tensors together: concatenation is a sum of axes, stacking a fresh frozen
one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node, Value
from irprune.ops.aten.shape import position
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare

op = partial(declare, family="join")

_X = Arg((2, 6, 5))


def _rows(axes: Axes, node: Node) -> list[tuple[Axis, ...]]:
    """The axes of the operands; the empty tensor of shape (0,) takes no part, as in torch."""
    return [axes.of(v) for v in node.inputs if v is not None and v.shape != (0,)]


def _concatenated(axes: Axes, rows: Sequence[tuple[Axis, ...]], dim: int) -> tuple[Axis, ...]:
    out: list[Axis] = []
    for k, first in enumerate(rows[0]):
        if k == dim:
            out.append(axes.sum(r[k] for r in rows))
            continue
        for r in rows[1:]:
            axes.unify(first, r[k])
        out.append(first)
    return tuple(out)


def _cat(axes: Axes, node: Node) -> None:
    rows = _rows(axes, node)
    node.out.axes = _concatenated(axes, rows, position(node.attrs["dim"], len(rows[0])))


def _stack(axes: Axes, node: Node) -> None:
    rows = _rows(axes, node)
    for r in rows[1:]:
        for a, b in zip(rows[0], r, strict=True):
            axes.unify(a, b)
    out = list(rows[0])
    out.insert(
        position(node.attrs["dim"], len(out) + 1),
        axes.frozen(len(rows), "number of stacked tensors"),
    )
    node.out.axes = tuple(out)


op(
    "cat",
    _cat,
    aten={"cat.default": {}, "concat.default": {}, "concatenate.default": {}},
    samples=(
        Sample(((Arg((2, 6)), Arg((2, 4))),), {"dim": -1}, free=3),
        Sample(((Arg((2, 1, 5)), Arg((2, 4, 5)), Arg((2, 1, 5))),), {"dim": 1}, free=3),
    ),
    rearranges=True,
)
op(
    "stack",
    _stack,
    aten=("stack.default",),
    samples=(Sample(((_X, _X),), {"dim": 1}, free=3), Sample(((_X, _X),), {"dim": -1}, free=3)),
    rearranges=True,
)


def _along(rank: int) -> Any:
    """Concatenation of operands that have first been given ``rank`` dimensions, along the last of
    these."""

    def rule(axes: Axes, node: Node) -> None:
        rows = [_widened(axes, r, rank) for r in _rows(axes, node)]
        node.out.axes = _concatenated(axes, rows, rank - 1)

    return rule


def _widened(axes: Axes, own: tuple[Axis, ...], rank: int) -> tuple[Axis, ...]:
    lead = [axes.one] * max(min(rank, 2) - len(own), 0)
    return (*lead, *own, *[axes.one] * max(rank - len(own) - len(lead), 0))


def _hstack(axes: Axes, node: Node) -> None:
    rows = [_widened(axes, r, 1) for r in _rows(axes, node)]
    node.out.axes = _concatenated(axes, rows, min(1, len(rows[0]) - 1))


def _vstack(axes: Axes, node: Node) -> None:
    node.out.axes = _concatenated(axes, [_widened(axes, r, 2) for r in _rows(axes, node)], 0)


def _column_stack(axes: Axes, node: Node) -> None:
    """Vectors become columns."""
    rows = [r if len(r) > 1 else (r[0] if r else axes.one, axes.one) for r in _rows(axes, node)]
    node.out.axes = _concatenated(axes, rows, 1)


op(
    "hstack",
    _hstack,
    aten=("hstack.default",),
    samples=(
        Sample(((Arg((4,)), Arg((6,))),), free=2),
        Sample(((Arg((2, 4)), Arg((2, 6))),), free=3),
    ),
    rearranges=True,
)
op(
    "vstack",
    _vstack,
    aten=("vstack.default",),
    samples=(
        Sample(((Arg((4,)), Arg((4,))),), free=1),
        Sample(((Arg((2, 4)), Arg((3, 4))),), free=3),
    ),
    rearranges=True,
)
op(
    "dstack",
    _along(3),
    aten=("dstack.default",),
    samples=(
        Sample(((Arg((2, 4, 6)), Arg((2, 4, 3))),), free=4),
        Sample(((Arg((4,)), Arg((4,))),), free=1),
    ),
    rearranges=True,
)
op(
    "column_stack",
    _column_stack,
    aten=("column_stack.default",),
    samples=(Sample(((Arg((4,)), Arg((4, 6))),), free=2),),
    rearranges=True,
)

# -- by broadcasting -------------------------------------------------------------------------------


def _broadcast_tensors(axes: Axes, node: Node) -> None:
    """All results have one shape; what an operand lacks of it is expanded."""
    shape = node.out.shape
    out: list[Axis | None] = [None] * len(shape)
    for r in (axes.of(v) for v in node.inputs if v is not None):
        for k, a in enumerate(r, len(shape) - len(r)):
            if a.size != 1:
                known = out[k]
                if known is not None:
                    axes.unify(known, a)
                out[k] = known or a
    made = tuple(a or axes.one for a in out)
    for value in node.outputs:
        value.axes = made


def _meshgrid(axes: Axes, node: Node) -> None:
    own = [axes.of(v)[0] if v.rank else axes.one for v in _given(node)]
    if node.attrs.get("indexing") == "xy" and len(own) > 1:
        own[:2] = own[1::-1]
    for value in node.outputs:
        value.axes = tuple(own)


def _given(node: Node) -> list[Value]:
    return [v for v in node.inputs if v is not None]


op(
    "broadcast_tensors",
    _broadcast_tensors,
    aten=("broadcast_tensors.default",),
    samples=(Sample(((Arg((2, 1, 5)), Arg((6, 1)), Arg(())),), free=3),),
    rearranges=True,
)
op(
    "meshgrid",
    _meshgrid,
    aten=("meshgrid.indexing", "meshgrid.default"),
    samples=(
        Sample(
            ((Arg((2,)), Arg((6,)), Arg((5,))),),
            {"indexing": "xy"},
            free=3,
            target="aten.meshgrid.indexing",
        ),
        Sample(
            ((Arg((2,)), Arg((6,))),), {"indexing": "ij"}, free=2, target="aten.meshgrid.indexing"
        ),
        Sample(((Arg((2,)), Arg((6,))),), free=2, target="aten.meshgrid.default"),
    ),
)

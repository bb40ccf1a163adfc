"""Writing by position: the written axis freezes, for its indices come from a tensor; the others
pass."""

from __future__ import annotations

from functools import partial

from irprune.ir.axis import Axes
from irprune.ir.graph import Node, Value
from irprune.ops.aten.index import indexed
from irprune.ops.aten.shape import position
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare

op = partial(declare, family="scatter")


def _scatter(axes: Axes, node: Node) -> None:
    """``operand[index] = source`` along one dimension; in the others index and source go along with
    the operand, or cover a part of it."""
    own = axes.of(node.operand(0))
    others = [axes.of(v) for v in node.inputs[1:] if v is not None and v.rank == len(own)]
    for k, a in enumerate(own):
        along = k == position(node.attrs["dim"], len(own))
        for other in others:
            if along or other[k].size != a.size:
                why = f"indexed by '{node.operand(1).name}'" if along else "scattered in part"
                for b in (a, *(o[k] for o in others)):
                    axes.freeze(b, why)
            else:
                axes.unify(a, other[k])
    node.out.axes = own


_OWN, _INDEX, _SOURCE = Arg((9, 6)), Arg((5, 6), "i64", 0, 9), Arg((5, 6))
# No place twice: the order of writing is not defined
_ONCE = Arg((4, 6), "i64", values=tuple(k for k in (3, 0, 7, 5) for _ in range(6)))
op(
    "scatter",
    _scatter,
    aten=("scatter.src", "scatter.value", "scatter.reduce", "scatter.value_reduce"),
    samples=(
        Sample((_OWN, _ONCE, Arg((4, 6))), {"dim": 0}, free=1, target="aten.scatter.src"),
        Sample(
            (Arg((4, 9)), Arg((2, 3), "i64", values=(1, 2, 3, 4, 5, 6)), Arg((4, 3))),
            {"dim": -1},
            free=0,
            target="aten.scatter.src",
        ),
        Sample((_OWN, _INDEX), {"dim": 0, "value": 0.5}, free=1, target="aten.scatter.value"),
        Sample(
            (_OWN, _INDEX, _SOURCE),
            {"dim": 0, "reduce": "add"},
            free=1,
            target="aten.scatter.reduce",
        ),
        Sample(
            (_OWN, _INDEX),
            {"dim": 0, "value": 2.0, "reduce": "multiply"},
            free=1,
            target="aten.scatter.value_reduce",
        ),
    ),
)
op(
    "scatter_add",
    _scatter,
    aten=("scatter_add.default",),
    samples=(
        Sample((_OWN, _INDEX, _SOURCE), {"dim": 0}, free=1),
        Sample((Arg((2, 9, 6)), Arg((2, 5, 6), "i64", 0, 9), Arg((2, 5, 6))), {"dim": 1}, free=2),
    ),
)
op(
    "scatter_reduce",
    _scatter,
    aten=("scatter_reduce.two",),
    samples=tuple(
        Sample((_OWN, _INDEX, _SOURCE), {"dim": 0, "reduce": r, "include_self": False}, free=1)
        for r in ("sum", "mean", "amax", "prod")
    ),
)


def _index_add(axes: Axes, node: Node) -> None:
    """Whole slices are written at the places that a list names."""
    own, index = axes.of(node.operand(0)), axes.of(node.operand(1))
    d = position(node.attrs["dim"], len(own))
    source = axes.of(node.operand(2)) if node.has(2) and node.operand(2).rank == len(own) else ()
    for a in (own[d], *index, *source[d : d + 1]):
        axes.freeze(a, f"indexed by '{node.operand(1).name}'")
    for k, b in enumerate(source):
        if k != d:
            axes.unify(own[k], b)
    node.out.axes = own


_LIST = Arg((4,), "i64", values=(3, 0, 7, 5))
_DIM = {"dim": 0}
op(
    "index_add",
    _index_add,
    aten=("index_add.default",),
    samples=(Sample((_OWN, _LIST, Arg((4, 6))), {**_DIM, "alpha": 2.0}, free=1),),
)
op(
    "index_copy",
    _index_add,
    aten=("index_copy.default",),
    samples=(Sample((_OWN, _LIST, Arg((4, 6))), _DIM, free=1),),
)
op(
    "index_reduce",
    _index_add,
    aten=("index_reduce.default",),
    samples=(Sample((_OWN, _LIST, Arg((4, 6))), {**_DIM, "reduce": "prod"}, free=1),),
)
op(
    "index_fill",
    _index_add,
    aten=("index_fill.int_Scalar", "index_fill.int_Tensor"),
    samples=(
        Sample(
            (Arg((6, 9)), _LIST),
            {"dim": -1, "value": 2.0},
            free=1,
            target="aten.index_fill.int_Scalar",
        ),
        Sample((_OWN, _LIST, Arg(())), _DIM, free=1, target="aten.index_fill.int_Tensor"),
    ),
)


def _index_put(axes: Axes, node: Node) -> None:
    """``operand[index] = values``; the values broadcast to what the index picks."""
    own = axes.of(node.operand(0))
    index = node.inputs[1:] if "values" in node.attrs else node.inputs[1:-1]
    picked, made = indexed(axes, node, index)
    for k in made:
        axes.freeze(picked[k], "places that are written")
    values = (
        axes.of(node.inputs[-1])
        if "values" not in node.attrs and node.inputs[-1] is not None
        else ()
    )
    for k, b in enumerate(values, len(picked) - len(values)):
        if k in made:
            axes.freeze(b, "places that are written")
        elif b.size != 1:
            axes.unify(picked[k], b)
    node.out.axes = own


_LISTS = (Arg((4,), "i64", values=(3, 0, 7, 5)),)
op(
    "index_put",
    _index_put,
    aten=("index_put.default", "_unsafe_index_put.default"),
    samples=(
        Sample((_OWN, _LISTS, Arg((4, 6))), {"accumulate": True}, free=1),
        Sample((Arg((2, 9, 6)), (None, *_LISTS), Arg((4, 1))), free=2),
        Sample((Arg((2, 9, 6)), (None, *_LISTS), Arg((6,))), free=2),
        Sample(
            (Arg((2, 3, 6)), (Arg((2, 3), "bool", values=(1, 0, 1, 1, 0, 0)),), Arg((6,))), free=1
        ),
        Sample(
            (Arg((5, 2, 3)), (None, Arg((2, 3), "bool", values=(1, 0, 1, 1, 0, 0))), Arg(())),
            free=1,
        ),
    ),
)


def _masked_scatter(axes: Axes, node: Node) -> None:
    """Where the mask is true, the source's elements one after the other: last dimensions along
    which the mask is constant pass."""
    own, source = axes.of(node.operand(0)), axes.of(node.operand(2))
    same = min(_constant_tail(node.operand(1), len(own)), len(source))
    while same and [a.size for a in own[-same:]] != [b.size for b in source[-same:]]:
        same -= 1
    for a in (
        *own[: len(own) - same],
        *axes.of(node.operand(1))[: len(own) - same],
        *source[: len(source) - same],
    ):
        axes.freeze(a, "filled one after the other")
    for a, b in zip(own[len(own) - same :], source[len(source) - same :], strict=True):
        axes.unify(a, b)
    for a, b in zip(
        own,
        axes.of(node.operand(1))[-len(own) :] if node.operand(1).rank == len(own) else (),
        strict=False,
    ):
        if b.size != 1:
            axes.unify(a, b)
    node.out.axes = own


def _constant_tail(mask: Value, rank: int) -> int:
    """How many of the last dimensions of a mask hold one value each, as far as the graph shows:
    they were expanded."""
    tail = 0
    while tail < rank and _is_expanded(mask, tail):
        tail += 1
    return tail


def _is_expanded(value: Value, k: int) -> bool:
    """Whether the dimension that is ``k``-th from the last was expanded from size 1."""
    while True:
        if k >= value.rank or value.shape[value.rank - 1 - k] == 1:
            return True
        node = value.producer
        if node is None or node.op not in ("expand", "expand_as", "identity", "cast"):
            return False
        value = node.operand(0)


op(
    "masked_scatter",
    _masked_scatter,
    aten=("masked_scatter.default",),
    samples=(
        Sample(
            (
                Arg((2, 5, 6)),
                Arg((2, 5, 1), "bool", values=(1, 0, 0, 1, 1, 0, 0, 1, 0, 1)),
                Arg((7, 6)),
            ),
            free=1,
        ),
        Sample((Arg((2, 3)), Arg((2, 3), "bool", values=(1, 0, 1, 1, 0, 0)), Arg((7,))), free=0),
    ),
)

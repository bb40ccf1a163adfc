"""Operators that look at order along an axis: running sums go on over those present; what counts
positions freezes them."""

from __future__ import annotations

from functools import partial

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.aten.reduce import INF, filled, like_operand, numbered, reduced, reduction
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare

op = partial(declare, family="order")

_X = Arg((2, 6, 5))

# -- running along an axis -------------------------------------------------------------------------

for _name, _element in (("cumsum", 0.0), ("cumprod", 1.0), ("logcumsumexp", -INF)):
    op(
        _name,
        like_operand,
        silence=filled(_element),
        aten=(f"{_name}.default",),
        samples=(Sample((_X,), {"dim": 1}, free=3), Sample((_X,), {"dim": -1}, free=3)),
    )


for _name, _element in (("cummax", -INF), ("cummin", INF)):
    op(
        _name,
        numbered(like_operand),
        silence=filled(_element),
        aten=(f"{_name}.default",),
        samples=(Sample((_X,), {"dim": 1}, free=2), Sample((_X,), {"dim": 1}, free=3, read=(0,))),
    )


# -- by rank or place ------------------------------------------------------------------------------


def _hold(axes: Axes, node: Node) -> list[int]:
    """Freeze the dimensions along which positions or ranks are counted."""
    dims = reduced(node)
    for d in dims:
        axes.freeze(axes.of(node.operand(0))[d], f"ranked by {node.op}")
    return dims


def _reduce_held(axes: Axes, node: Node) -> None:
    _hold(axes, node)
    reduction(axes, node)


def _ranked(axes: Axes, node: Node) -> None:
    """Along the held dimension the results have indices of their own."""
    own, dims = axes.of(node.operand(0)), _hold(axes, node)
    for value in node.outputs:
        value.axes = tuple(
            axes.frozen(s, f"ranked by {node.op}") if k in dims else own[k]
            for k, s in enumerate(value.shape)
        )


for _name in ("argmax", "argmin"):
    op(
        _name,
        _reduce_held,
        aten=(f"{_name}.default",),
        samples=(Sample((_X,), {"dim": 1}, free=2), Sample((_X,), free=0)),
    )
for _name in ("median", "nanmedian"):
    op(
        _name,
        _reduce_held,
        aten=(f"{_name}.dim", f"{_name}.default"),
        samples=(
            Sample((_X,), {"dim": 1, "keepdim": True}, free=2),
            Sample((_X,), free=0, target=f"aten.{_name}.default"),
        ),
    )
op(
    "mode",
    _reduce_held,
    aten=("mode.default",),
    samples=(Sample((Arg((4, 6), "i64", 0, 3),), {"dim": 1}, free=1),),
)
op(
    "kthvalue",
    _reduce_held,
    aten=("kthvalue.default",),
    samples=(Sample((_X,), {"k": 2, "dim": 1}, free=2),),
)
op("topk", _ranked, aten=("topk.default",), samples=(Sample((_X,), {"k": 3, "dim": 1}, free=2),))
op(
    "sort",
    _ranked,
    aten=("sort.default", "sort.stable"),
    samples=(
        Sample((_X,), {"dim": 1, "descending": True}, free=2),
        Sample((_X,), {"stable": True, "dim": 1}, free=2, target="aten.sort.stable"),
    ),
)
op(
    "argsort",
    _ranked,
    aten=("argsort.default", "argsort.stable"),
    samples=(
        Sample((_X,), {"dim": 1}, free=2),
        Sample((_X,), {"stable": True, "dim": 1}, free=2, target="aten.argsort.stable"),
    ),
)


def _msort(axes: Axes, node: Node) -> None:
    first, *rest = axes.of(node.operand(0))
    axes.freeze(first, "ranked by msort")
    node.out.axes = (axes.frozen(first.size, "ranked by msort"), *rest)


op("msort", _msort, aten=("msort.default",), samples=(Sample((_X,), free=2),))


def _quantile(axes: Axes, node: Node) -> None:
    """One result per quantile: an axis in front where they come as a list."""
    dims, own = set(_hold(axes, node)), axes.of(node.operand(0))
    keep = node.attrs.get("keepdim", False)
    made = [axes.one if k in dims else a for k, a in enumerate(own) if keep or k not in dims]
    asked = axes.of(node.operand(1)) if node.has(1) else ()
    node.out.axes = (*asked, *made)


op(
    "quantile",
    _quantile,
    aten=("quantile.default", "quantile.scalar", "nanquantile.default", "nanquantile.scalar"),
    samples=(
        Sample((_X, Arg((3,), low=0.1, high=0.9)), {"dim": 1}, free=3),
        *(
            Sample((_X,), {"q": 0.3, "dim": 1, "keepdim": True}, free=2, target=f"aten.{n}.scalar")
            for n in ("quantile", "nanquantile")
        ),
    ),
)


def _diff(axes: Axes, node: Node) -> None:
    """Neighbours are subtracted; what is put before and after joins but along that dimension."""
    own = axes.of(node.operand(0))
    dims = _hold(axes, node)
    for value in node.inputs[1:]:
        for k, a in enumerate(axes.of(value)) if value is not None else ():
            if k in dims:
                axes.freeze(a, "neighbours are subtracted")
            else:
                axes.unify(own[k], a)
    node.out.axes = tuple(
        axes.frozen(s, "differences of neighbours") if k in dims else own[k]
        for k, s in enumerate(node.out.shape)
    )


op(
    "diff",
    _diff,
    aten=("diff.default",),
    samples=(
        Sample((_X,), {"dim": 1}, free=2),
        Sample((_X, Arg((2, 1, 5)), Arg((2, 2, 5))), {"n": 2, "dim": 1}, free=2),
    ),
)


def _counted(axes: Axes, node: Node) -> None:
    """The values of a whole tensor are counted into bins."""
    for value in node.inputs:
        for a in axes.of(value) if value is not None else ():
            axes.freeze(a, f"counted by {node.op}")
    node.out.axes = tuple(axes.frozen(s, f"bins of {node.op}") for s in node.out.shape)


op("histc", _counted, aten=("histc.default",), samples=(Sample((_X,), {"bins": 4}, free=0),))
op(
    "bincount",
    _counted,
    counts=True,
    aten=("bincount.default",),
    samples=(Sample((Arg((6,), "i64", 0, 4),), free=0),),
)

"""Operators that regroup, move and repeat dimensions without touching a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node, Value
from irprune.ir.size import Size, Sym, probe_of, same
from irprune.ops.registry import Arg, Cut, Sample, same_type
from irprune.ops.registry import op as declare

__all__ = ["out_shape", "position", "resized", "respell"]

op = partial(declare, family="shape")

_X = Arg((2, 6, 5))


def position(dim: int, rank: int) -> int:
    """``dim`` counted from the front."""
    return dim + rank if dim < 0 else dim


def out_shape(cut: Cut, node: Node, i: int = 0) -> list[Size]:
    """The shape of result ``i`` after the cut."""
    return [cut.size(a) for a in node.outputs[i].axes or ()]


def resized(old: Sequence[Size], axes: Sequence[Axis], cut: Cut) -> list[Size]:
    """The sizes ``old`` of dimensions ``axes`` after the cut; what does not change stays as it was
    written, -1 and symbols too."""
    return [
        cut.size(a) if cut.changes(a) and not same(o, -1) else o
        for o, a in zip(old, axes, strict=True)
    ]


def respell(
    node: Node,
    op: str,
    attrs: dict[str, Any],
    target: str,
    operands: Sequence[Value | None] | None = None,
) -> None:
    """Turn ``node`` into another operator, of which ``target`` is the ATen overload and whose first
    operand is ``self``."""
    node.op, node.attrs = op, attrs
    if operands is not None:
        node.set_inputs(operands)
    if node.origin.dialect == "aten":
        node.origin = replace(node.origin, target=target, layout=(("self", 0),))


# -- regrouping ------------------------------------------------------------------------------------


def _reshape(axes: Axes, node: Node) -> None:
    node.out.axes = tuple(axes.regroup(axes.of(node.operand(0)), node.out.shape))


def _set_shape(node: Node, cut: Cut) -> None:
    if "shape" in node.attrs:
        node.attrs["shape"] = resized(node.attrs["shape"], node.out.axes or (), cut)


op(
    "reshape",
    _reshape,
    resize=_set_shape,
    onnx=("Reshape",),
    idle=same_type,
    strides={
        "aten.view.default": "aten.reshape.default",
        "aten._unsafe_view.default": "aten.reshape.default",
    },
    aten={
        "reshape.default": {},
        "view.default": {"size": "shape"},
        "_unsafe_view.default": {"size": "shape"},
    },
    samples=(
        Sample((Arg((2, 12, 5)),), {"shape": [2, 3, 4, 5]}, free=4),
        Sample((Arg((2, 3, 4, 5)),), {"shape": [6, -1]}, free=4),
        Sample((Arg((2, 6)),), {"shape": [1, 2, 6, 1]}, free=2),
        Sample((Arg((2, 12)),), {"shape": [2, 4, 3]}, free=3, target="aten.view.default"),
        Sample((Arg((4, 6)),), {"shape": [-1]}, free=2, target="aten._unsafe_view.default"),
    ),
    is_view=True,
    rearranges=True,
)
op(
    "flatten",
    _reshape,
    idle=same_type,
    aten=("flatten.using_ints", "ravel.default"),
    samples=(
        Sample((Arg((2, 3, 4, 5)),), {"start_dim": 1, "end_dim": 2}, free=4),
        Sample((Arg((3, 4)),), free=2, target="aten.ravel.default"),
    ),
    is_view=True,
    rearranges=True,
)


def _unflatten_resize(node: Node, cut: Cut) -> None:
    d, old = position(node.attrs["dim"], node.operand(0).rank), node.attrs["sizes"]
    node.attrs["sizes"] = resized(old, (node.out.axes or ())[d : d + len(old)], cut)


op(
    "unflatten",
    _reshape,
    resize=_unflatten_resize,
    aten=("unflatten.int",),
    samples=(
        Sample((Arg((2, 12)),), {"dim": -1, "sizes": [3, -1]}, free=3),
        Sample((Arg((12, 5)),), {"dim": 0, "sizes": [2, 3, 2]}, free=4),
    ),
    is_view=True,
    rearranges=True,
)


def _reshape_as_resize(node: Node, cut: Cut) -> None:
    """The shape is written out: the tensor that lent it may have been cut otherwise."""
    respell(
        node, "reshape", {"shape": out_shape(cut, node)}, "aten.reshape.default", node.inputs[:1]
    )


op(
    "reshape_as",
    _reshape,
    resize=_reshape_as_resize,
    aten=("reshape_as.default", "view_as.default"),
    samples=(
        Sample((Arg((2, 12)), Arg((2, 3, 4))), free=6),
        Sample((Arg((2, 12)), Arg((2, 3, 4))), free=6, target="aten.view_as.default"),
    ),
    is_view=True,
    rearranges=True,
)


# -- moving ----------------------------------------------------------------------------------------


def _permute(axes: Axes, node: Node) -> None:
    a = axes.of(node.operand(0))
    node.out.axes = tuple(a[d] for d in node.attrs["dims"])


def _transpose(axes: Axes, node: Node) -> None:
    a = list(axes.of(node.operand(0)))
    i, j = node.attrs["dim0"], node.attrs["dim1"]
    if a:
        a[i], a[j] = a[j], a[i]
    node.out.axes = tuple(a)


def _movedim(axes: Axes, node: Node) -> None:
    a = axes.of(node.operand(0))
    many = [
        [d] if isinstance(d, int) else d for d in (node.attrs["source"], node.attrs["destination"])
    ]
    source, goal = ([position(d, len(a)) for d in dims] for dims in many)
    rest = iter(x for k, x in enumerate(a) if k not in source)
    node.out.axes = tuple(
        a[source[goal.index(k)]] if k in goal else next(rest) for k in range(len(a))
    )


def _reverse(axes: Axes, node: Node) -> None:
    node.out.axes = axes.of(node.operand(0))[::-1]


def _swap_last(axes: Axes, node: Node) -> None:
    *lead, a, b = axes.of(node.operand(0))
    node.out.axes = (*lead, b, a)


def _keeps_order(node: Node) -> bool:
    return [position(d, node.out.rank) for d in node.attrs["dims"]] == list(range(node.out.rank))


op(
    "permute",
    _permute,
    idle=_keeps_order,
    aten=("permute.default",),
    samples=(Sample((_X,), {"dims": [2, 0, -2]}, free=3),),
    is_view=True,
    rearranges=True,
)
op(
    "transpose",
    _transpose,
    aten={
        "transpose.int": {},
        "swapaxes.default": {"axis0": "dim0", "axis1": "dim1"},
        "swapdims.default": {},
    },
    samples=(Sample((_X,), {"dim0": 1, "dim1": -1}, free=3),),
    is_view=True,
    rearranges=True,
)
_MOVE = {"source": [0, -1], "destination": [-1, 1]}
op(
    "movedim",
    _movedim,
    aten=("movedim.intlist", "movedim.int", "moveaxis.intlist", "moveaxis.int"),
    samples=tuple(
        Sample(
            (Arg((2, 6, 5, 3)),),
            {"source": 1, "destination": -1} if t.endswith("int") else _MOVE,
            free=4,
            target=f"aten.{t}",
        )
        for t in ("movedim.intlist", "movedim.int", "moveaxis.intlist", "moveaxis.int")
    ),
    is_view=True,
    rearranges=True,
)
op(
    "t",
    _reverse,
    aten=("t.default", "numpy_T.default"),
    samples=(
        Sample((Arg((2, 6)),), free=2),
        Sample((Arg((6,)),), free=1),
        Sample((_X,), free=3, target="aten.numpy_T.default"),
    ),
    is_view=True,
    rearranges=True,
)
op(
    "mT",
    _swap_last,
    aten=("mT.default", "adjoint.default", "mH.default"),
    samples=(Sample((_X,), free=3),),
    is_view=True,
    rearranges=True,
)


def _unsqueeze(axes: Axes, node: Node) -> None:
    a = list(axes.of(node.operand(0)))
    a.insert(position(node.attrs["dim"], len(a) + 1), axes.one)
    node.out.axes = tuple(a)


def _squeezed(node: Node) -> list[int]:
    """The dimensions that leave: those named whose size is 1."""
    dims, shape = node.attrs.get("dim"), node.operand(0).shape
    named = range(len(shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    return sorted({d for k in named if shape[d := position(k, len(shape))] == 1} if shape else ())


def _squeeze(axes: Axes, node: Node) -> None:
    gone = _squeezed(node)
    node.out.axes = tuple(x for k, x in enumerate(axes.of(node.operand(0))) if k not in gone)


def _squeeze_resize(node: Node, cut: Cut) -> None:
    """A dimension that is cut down to one index stays: those that leave are named."""
    gone = _squeezed(node)
    if any(cut.size(a) == 1 and d not in gone for d, a in enumerate(node.operand(0).axes or ())):
        respell(node, "squeeze", {"dim": gone}, "aten.squeeze.dims")


op(
    "unsqueeze",
    _unsqueeze,
    aten=("unsqueeze.default",),
    samples=(Sample((_X,), {"dim": -2}, free=3), Sample((Arg(()),), {"dim": 0}, free=0)),
    is_view=True,
    rearranges=True,
)
op(
    "squeeze",
    _squeeze,
    resize=_squeeze_resize,
    idle=same_type,
    call=lambda node: f"aten.squeeze.dim{'s' if isinstance(node.attrs.get('dim'), list) else ''}",
    aten=("squeeze.dim", "squeeze.default", "squeeze.dims"),
    samples=(
        Sample((Arg((2, 1, 6)),), {"dim": 1}, free=2, target="aten.squeeze.dim"),
        Sample((Arg((2, 1, 6)),), {"dim": -1}, free=2, target="aten.squeeze.dim"),
        Sample((Arg((2, 1, 2)),), free=2, target="aten.squeeze.default"),
        Sample((Arg((1, 2, 1, 6)),), {"dim": [0, -1]}, free=2, target="aten.squeeze.dims"),
    ),
    is_view=True,
    rearranges=True,
)


def _at_least(rank: int) -> Any:
    def rule(axes: Axes, node: Node) -> None:
        for value, made in zip(node.inputs, node.outputs, strict=True):
            a = axes.of(value) if value is not None else ()
            if rank == 3 and len(a) in (1, 2):  # (n) becomes (1, n, 1), (m, n) becomes (m, n, 1)
                made.axes = (*[axes.one] * (2 - len(a)), *a, axes.one)
            else:
                made.axes = (*[axes.one] * (rank - len(a)), *a)

    return rule


for _rank in (1, 2, 3):
    op(
        f"atleast_{_rank}d",
        _at_least(_rank),
        aten=(f"atleast_{_rank}d.default", f"atleast_{_rank}d.Sequence"),
        samples=(
            *(
                Sample((Arg(s),), free=len(s), target=f"aten.atleast_{_rank}d.default")
                for s in ((), (6,), (2, 6), (2, 6, 5, 3))
            ),
            Sample(((Arg((6,)), Arg((2, 6))),), free=3, target=f"aten.atleast_{_rank}d.Sequence"),
        ),
        is_view=True,
        rearranges=True,
    )

# -- repeating -------------------------------------------------------------------------------------


def _expand(axes: Axes, node: Node) -> None:
    """A size 1 that is expanded gives a fresh axis: the repeats of grouped-query attention are its
    indices."""
    own = axes.of(node.operand(0))
    shape = node.out.shape
    shift = len(shape) - len(own)
    node.out.axes = tuple(
        own[k - shift]
        if k >= shift and probe_of(own[k - shift].size) == probe_of(s)
        else axes.leaf(s)
        for k, s in enumerate(shape)
    )


def _expand_as(axes: Axes, node: Node) -> None:
    own, other = axes.of(node.operand(0)), axes.of(node.operand(1))
    for a, b in zip(own, other[len(other) - len(own) :], strict=True):
        if a.size != 1:
            axes.unify(a, b)
    node.out.axes = other


op(
    "expand",
    _expand,
    resize=_set_shape,
    idle=same_type,
    aten={"expand.default": {"size": "shape"}, "broadcast_to.default": {"size": "shape"}},
    samples=(
        Sample((Arg((2, 1, 5)),), {"shape": [3, -1, 6, 5]}, free=4, target="aten.expand.default"),
        Sample(
            (Arg((2, 1, 5)),), {"shape": [3, 2, 6, 5]}, free=4, target="aten.broadcast_to.default"
        ),
    ),
    is_view=True,
    rearranges=True,
)
op(
    "expand_as",
    _expand_as,
    idle=same_type,
    aten=("expand_as.default",),
    samples=(Sample((Arg((1, 5)), Arg((3, 6, 5))), free=3),),
    is_view=True,
    rearranges=True,
)


def _repeated(axes: Axes, node: Node) -> list[Axis]:
    own = axes.of(node.operand(0))
    return [axes.one] * (node.out.rank - len(own)) + list(own)


def _times(node: Node) -> list[Size]:
    """How often each dimension of the result repeats the operand's."""
    times = node.attrs["repeats"]
    return [1] * (node.out.rank - len(times)) + list(times)


def _repeat(axes: Axes, node: Node) -> None:
    """The copies are a fresh outer axis."""
    node.out.axes = tuple(
        axes.product((axes.leaf(t), a))
        for a, t in zip(_repeated(axes, node), _times(node), strict=True)
    )


def _repeat_resize(node: Node, cut: Cut) -> None:
    own = node.operand(0).axes or ()
    shift = node.out.rank - len(own)
    pairs = zip(_times(node), node.out.axes or (), strict=True)
    node.attrs["repeats"] = [
        _copies(t, cut, a, own[k - shift] if k >= shift else None) for k, (t, a) in enumerate(pairs)
    ]


def _copies(times: Size, cut: Cut, whole: Axis, one: Axis | None) -> Size:
    if isinstance(times, Sym) or not cut.changes(whole):
        return times
    return probe_of(cut.size(whole)) // (probe_of(cut.size(one)) if one is not None else 1)


def _repeat_interleave(axes: Axes, node: Node) -> None:
    """The copies are a fresh inner axis."""
    own = list(axes.of(node.operand(0)))
    dim, times = node.attrs.get("dim"), node.attrs["repeats"]
    if dim is None:
        own, dim = [axes.product(own)], 0
    own[dim] = axes.product((own[dim], axes.leaf(times)))
    node.out.axes = tuple(own)


def _repeat_interleave_resize(node: Node, cut: Cut) -> None:
    own, dim = node.operand(0).axes or (), node.attrs.get("dim")
    made = (node.out.axes or ())[0 if dim is None else dim]
    if not cut.changes(made):
        return
    if not isinstance(node.attrs["repeats"], Sym):
        held = 1
        for a in own if dim is None else [own[dim]]:
            held *= probe_of(cut.size(a))
        node.attrs["repeats"] = probe_of(cut.size(made)) // held
    if node.attrs.get("output_size") is not None:
        node.attrs["output_size"] = cut.size(made)


def _repeat_by_tensor(axes: Axes, node: Node) -> None:
    """How often each index is repeated is known at run time."""
    own, dim = list(axes.of(node.operand(0))), node.attrs.get("dim")
    axes.freeze(
        axes.of(node.operand(1))[0] if node.operand(1).rank else axes.one, "repeated at run time"
    )
    for a in own if dim is None else [own[dim]]:
        axes.freeze(a, "repeated at run time")
    if dim is None:
        own, dim = [axes.one], 0
    own[dim] = axes.frozen(node.out.shape[dim], "repeated at run time")
    node.out.axes = tuple(own)


op(
    "repeat",
    _repeat,
    resize=_repeat_resize,
    aten={"repeat.default": {}, "tile.default": {"dims": "repeats"}},
    samples=(
        Sample((Arg((2, 5)),), {"repeats": [3, 1, 2]}, free=4, target="aten.repeat.default"),
        Sample((Arg((2, 1)),), {"repeats": [1, 6]}, free=2, target="aten.repeat.default"),
        Sample((Arg((2, 5, 3)),), {"repeats": [2, 1]}, free=4, target="aten.tile.default"),
    ),
    rearranges=True,
)
op(
    "repeat_interleave",
    _repeat_interleave,
    resize=_repeat_interleave_resize,
    aten=("repeat_interleave.self_int",),
    samples=(
        Sample((Arg((2, 5)),), {"repeats": 3, "dim": -1, "output_size": 15}, free=3),
        Sample((Arg((2, 5)),), {"repeats": 3, "dim": None}, free=3),
    ),
    rearranges=True,
)
op(
    "repeat_interleave_by",
    _repeat_by_tensor,
    counts=True,
    aten={"repeat_interleave.self_Tensor": {"repeats": "counts"}},
    samples=(
        Sample((Arg((2, 3)), Arg((3,), "i64", values=(1, 0, 2))), {"dim": 1}, free=1),
        Sample((Arg((3,)), Arg((3,), "i64", values=(1, 0, 2))), {"dim": None}, free=0),
    ),
    rearranges=True,
)

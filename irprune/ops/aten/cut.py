"""Operators that take tensors apart: a piece of a dimension is a summand of its axis.

After the choice the places are counted anew: what comes before a cut is how many indices are kept
before it."""

from __future__ import annotations

from bisect import bisect_left
from functools import partial

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node
from irprune.ir.size import Size, Sym, identical, is_static, probe_of, same
from irprune.ops.aten.shape import position, respell
from irprune.ops.registry import Arg, Cut, Sample, Unsupported, same_type
from irprune.ops.registry import op as declare

__all__ = ["slice_bounds"]

op = partial(declare, family="cut")

# -- into several ----------------------------------------------------------------------------------


def _dim(node: Node) -> int:
    """The dimension that is cut; ``hsplit`` and its kin mean one by name."""
    rank = node.operand(0).rank
    named = {"hsplit": min(1, rank - 1), "vsplit": 0, "dsplit": 2}
    return named[node.op] if node.op in named else position(node.attrs.get("dim", 0), rank)


def _pieces(axes: Axes, node: Node) -> None:
    """The dimension is cut where the results end."""
    own, d = axes.of(node.operand(0)), _dim(node)
    sizes = [v.shape[d] for v in node.outputs]
    if same(sum(sizes[1:], start=sizes[0]), own[d].size):
        pieces = axes.cut(own[d], sizes)
    elif is_static((own[d].size, *sizes)):
        raise Unsupported("pieces that overlap")
    else:
        axes.freeze(own[d], "cut at run time")
        pieces = [axes.frozen(s, "cut at run time") for s in sizes]
    for value, piece in zip(node.outputs, pieces, strict=True):
        value.axes = (*own[:d], piece, *own[d + 1 :])


def _split_resize(node: Node, cut: Cut) -> None:
    """Equal pieces need not stay equal: explicit sizes take their place."""
    d = _dim(node)
    pieces = [(v.axes or ())[d] for v in node.outputs]
    if any(map(cut.changes, pieces)):
        respell(
            node,
            "split",
            {"split_sizes": [cut.size(a) for a in pieces], "dim": d},
            "aten.split_with_sizes.default",
        )


_S = "aten.split_with_sizes.default"
op(
    "split",
    _pieces,
    resize=_split_resize,
    aten={
        "split_with_sizes.default": {},
        "split.Tensor": {},
        "split.sizes": {"split_size": "split_sizes"},
        "chunk.default": {},
        "tensor_split.sections": {},
        "tensor_split.indices": {},
        "unsafe_split.Tensor": {},
        "unsafe_split_with_sizes.default": {},
        "unsafe_chunk.default": {},
    },
    samples=(
        Sample((Arg((2, 10)),), {"split_sizes": [6, 4], "dim": 1}, free=3, target=_S),
        Sample((Arg((10, 2)),), {"split_sizes": [1, 7, 2]}, free=3, target=_S),
        Sample((Arg((2, 10)),), {"split_size": 4, "dim": -1}, free=4, target="aten.split.Tensor"),
        Sample(
            (Arg((2, 10)),), {"split_sizes": [6, 4], "dim": -1}, free=3, target="aten.split.sizes"
        ),
        Sample((Arg((2, 8)),), {"chunks": 2, "dim": -1}, free=3, target="aten.chunk.default"),
        Sample((Arg((2, 7)),), {"chunks": 3, "dim": 1}, free=3, target="aten.chunk.default"),
        Sample((Arg((2, 7)),), {"chunks": 1, "dim": 1}, free=2, target="aten.chunk.default"),
        Sample(
            (Arg((2, 7)),), {"sections": 3, "dim": 1}, free=4, target="aten.tensor_split.sections"
        ),
        Sample(
            (Arg((2, 9)),),
            {"indices": [2, 5], "dim": -1},
            free=4,
            target="aten.tensor_split.indices",
        ),
        Sample(
            (Arg((2, 9)),),
            {"indices": [5, 2], "dim": -1},
            free=0,
            target="aten.tensor_split.indices",
        ),
        Sample((Arg((10, 2)),), {"split_size": 4}, free=4, target="aten.unsafe_split.Tensor"),
        Sample(
            (Arg((2, 10)),),
            {"split_sizes": [6, 4], "dim": 1},
            free=3,
            target="aten.unsafe_split_with_sizes.default",
        ),
        Sample(
            (Arg((2, 8)),), {"chunks": 2, "dim": -1}, free=3, target="aten.unsafe_chunk.default"
        ),
    ),
    is_view=True,
    rearranges=True,
)
for _name, _shape in (("hsplit", (3, 8)), ("vsplit", (8, 3)), ("dsplit", (3, 2, 8))):
    op(
        _name,
        _pieces,
        resize=_split_resize,
        aten=(f"{_name}.int", f"{_name}.array"),
        samples=(
            Sample(
                (Arg(_shape),), {"sections": 2}, free=len(_shape) + 1, target=f"aten.{_name}.int"
            ),
            Sample(
                (Arg(_shape),), {"indices": [3]}, free=len(_shape) + 1, target=f"aten.{_name}.array"
            ),
        ),
        is_view=True,
        rearranges=True,
    )


def _unbind(axes: Axes, node: Node) -> None:
    own = axes.of(node.operand(0))
    d = position(node.attrs["dim"], len(own))
    axes.freeze(own[d], "indexed by unbind")
    for value in node.outputs:
        value.axes = (*own[:d], *own[d + 1 :])


op(
    "unbind",
    _unbind,
    aten=("unbind.int",),
    samples=(
        Sample((Arg((3, 6)),), {"dim": 0}, free=1),
        Sample((Arg((6, 3)),), {"dim": -1}, free=1),
    ),
    is_view=True,
    rearranges=True,
)


def _glu(axes: Axes, node: Node) -> None:
    """The first half times the sigmoid of the second: the halves are one axis."""
    own = list(axes.of(node.operand(0)))
    d = position(node.attrs["dim"], len(own))
    half = node.out.shape[d]
    first, second = axes.cut(own[d], [half, half])
    axes.unify(first, second)
    own[d] = first
    node.out.axes = tuple(own)


op(
    "glu",
    _glu,
    aten=("glu.default",),
    samples=(
        Sample((Arg((2, 8)),), {"dim": -1}, free=2),
        Sample((Arg((2, 8, 3)),), {"dim": 1}, free=3),
    ),
)

# -- one index -------------------------------------------------------------------------------------


def _index(node: Node, size: int) -> int:
    return position(probe_of(node.attrs["index"]), size)


def _picked(axes: Axes, node: Node, d: int) -> Axis:
    """The axis of size 1 that ``select`` takes out of dimension ``d``; it is never dropped."""
    own, index = axes.of(node.operand(0)), node.attrs["index"]
    a = own[d]
    if axes.is_frozen(a) or isinstance(a.size, Sym) or isinstance(index, Sym):
        axes.freeze(a, "indexed at run time")
        return axes.one
    at = _index(node, a.size)
    return axes.cut(a, [at, 1, a.size - at - 1])[1]


def _select(axes: Axes, node: Node) -> None:
    own = axes.of(node.operand(0))
    d = position(node.attrs["dim"], len(own))
    _picked(axes, node, d)
    node.out.axes = (*own[:d], *own[d + 1 :])


def _select_resize(node: Node, cut: Cut) -> None:
    a = (node.operand(0).axes or ())[position(node.attrs["dim"], node.operand(0).rank)]
    if cut.changes(a):
        node.attrs["index"] = _before(cut, a, _index(node, a.size))  # type: ignore[arg-type]


def _before(cut: Cut, a: Axis, place: int) -> int:
    """How many indices of ``a`` are kept before ``place``."""
    return bisect_left(cut.kept(a), place)


def _select_scatter(axes: Axes, node: Node) -> None:
    own, source = axes.of(node.operand(0)), axes.of(node.operand(1))
    d = position(node.attrs["dim"], len(own))
    _picked(axes, node, d)
    for a, b in zip((*own[:d], *own[d + 1 :]), source, strict=True):
        axes.unify(a, b)
    node.out.axes = own


op(
    "select",
    _select,
    resize=_select_resize,
    aten=("select.int",),
    samples=(
        Sample((Arg((3, 6)),), {"dim": 0, "index": 1}, free=1),
        Sample((Arg((3, 6)),), {"dim": 1, "index": -2}, free=2),
        Sample((Arg((3, 6)),), {"dim": 1, "index": 2}, free=3),
    ),
    is_view=True,
    rearranges=True,
)
op(
    "select_scatter",
    _select_scatter,
    resize=_select_resize,
    aten=("select_scatter.default",),
    samples=(Sample((Arg((3, 6)), Arg((3,))), {"dim": 1, "index": 2}, free=3),),
)

# -- a range ---------------------------------------------------------------------------------------


def slice_bounds(size: int, start: Size | None, end: Size | None) -> tuple[int, int]:
    """``start`` and ``end`` clamped into 0..size as Python slices are."""
    first, last, _ = slice(
        start if start is None else probe_of(start), end if end is None else probe_of(end)
    ).indices(size)
    return first, max(first, last)


def _sliced(axes: Axes, node: Node, d: int, size: Size) -> Axis:
    """The axis of ``size`` that a slice with ``start``, ``end`` and ``step`` takes out of dimension
    ``d``."""
    a, step = axes.of(node.operand(0))[d], node.attrs.get("step", 1)
    start, end = node.attrs.get("start"), node.attrs.get("end")
    if identical(a.size, size):
        return a
    if isinstance(a.size, Sym) or isinstance(size, Sym) or isinstance(start, Sym):
        axes.freeze(a, "sliced at run time")
        return axes.frozen(size, "sliced at run time")
    if axes.is_frozen(a):
        return axes.cut(a, [size, a.size - size])[0]
    first, last = slice_bounds(a.size, start, end)
    if step == 1:
        before, piece, after = first, last - first, a.size - last
        return axes.cut(a, [before, piece, after])[1] if piece else axes.leaf(0)
    return _strided(axes, a, first, last, step)


def _strided(axes: Axes, a: Axis, first: int, last: int, step: int) -> Axis:
    """Every ``step``-th index: the axis is blocks × step, and what remains behind the last whole
    block freezes."""
    total = probe_of(a.size)
    blocks, rest = divmod(total, step)
    if first >= step or last + step - 1 < total or not blocks:
        axes.freeze(a, "strided slice of a part")
        return axes.frozen(len(range(first, last, step)), "strided slice of a part")
    body, tail = axes.cut(a, [blocks * step, rest]) if rest else (a, axes.one)
    outer, inner = axes.split(body, blocks)
    if outer is None or inner is None:
        axes.freeze(a, "strided slice of an axis that is grouped otherwise")
        return axes.frozen(
            len(range(first, last, step)), "strided slice of an axis that is grouped otherwise"
        )
    axes.freeze(inner, "stride of a slice")
    axes.freeze(tail, "rest of a strided slice")
    return axes.sum((outer, axes.leaf(1))) if first < rest else outer


def _bounds_resize(node: Node, cut: Cut) -> None:
    """A slice with step 1 runs over what is kept of its range; one with a stride runs to the end as
    before."""
    a = (node.operand(0).axes or ())[position(node.attrs["dim"], node.operand(0).rank)]
    if not cut.changes(a) or isinstance(a.size, Sym) or node.attrs.get("step", 1) != 1:
        return
    if node.op == "narrow":
        first = position(probe_of(node.attrs["start"]), a.size)
        last = first + probe_of(node.attrs["length"])
        node.attrs["start"] = _before(cut, a, first)
        node.attrs["length"] = _before(cut, a, last) - node.attrs["start"]
        return
    first, last = slice_bounds(a.size, node.attrs.get("start"), node.attrs.get("end"))
    node.attrs["start"], node.attrs["end"] = _before(cut, a, first), _before(cut, a, last)


def _slice(axes: Axes, node: Node) -> None:
    own = list(axes.of(node.operand(0)))
    d = position(node.attrs["dim"], len(own))
    own[d] = _sliced(axes, node, d, node.out.shape[d])
    node.out.axes = tuple(own)


def _narrow(axes: Axes, node: Node) -> None:
    own = list(axes.of(node.operand(0)))
    d = position(node.attrs["dim"], len(own))
    a, start, length = own[d], node.attrs["start"], node.attrs["length"]
    if any(isinstance(s, Sym) for s in (a.size, start, length)):
        axes.freeze(a, "sliced at run time")
        own[d] = axes.frozen(node.out.shape[d], "sliced at run time")
    else:
        first = position(probe_of(start), probe_of(a.size))
        own[d] = axes.cut(a, [first, length, a.size - first - length])[1] if length != a.size else a
    node.out.axes = tuple(own)


def _slice_scatter(axes: Axes, node: Node) -> None:
    """The range is overwritten: the source is a piece of the whole."""
    own, source = axes.of(node.operand(0)), axes.of(node.operand(1))
    d = position(node.attrs["dim"], len(own))
    piece = _sliced(axes, node, d, source[d].size)
    for k, (a, b) in enumerate(zip(own, source, strict=True)):
        axes.unify(piece if k == d else a, b)
    node.out.axes = own


op(
    "slice",
    _slice,
    resize=_bounds_resize,
    idle=same_type,
    aten=("slice.Tensor",),
    samples=(
        Sample((Arg((2, 10)),), {"dim": 1, "start": 2, "end": 7}, free=4),
        Sample((Arg((2, 10)),), {"dim": -1, "start": -4, "end": 2**63 - 1}, free=3),
        Sample((Arg((2, 10)),), {"dim": 1, "start": None, "end": -3}, free=3),
        Sample((Arg((2, 10)),), {"dim": 1, "end": 50}, free=2),
        Sample((Arg((2, 8)),), {"dim": 1, "start": 1, "step": 2}, free=2),
        Sample((Arg((2, 8)),), {"dim": 1, "start": 3, "end": 8, "step": 4}, free=2),
        Sample((Arg((2, 9)),), {"dim": 1, "step": 2}, free=2),
        Sample((Arg((2, 9)),), {"dim": 1, "start": 1, "step": 2}, free=2),
        Sample((Arg((2, 9)),), {"dim": 1, "start": 4, "step": 2}, free=1),
        Sample((Arg((9, 2)),), {"dim": 0, "end": 4, "step": 3}, free=1),
    ),
    is_view=True,
    rearranges=True,
)
op(
    "narrow",
    _narrow,
    resize=_bounds_resize,
    aten=("narrow.default", "narrow_copy.default"),
    samples=(
        Sample((Arg((2, 10)),), {"dim": 1, "start": 2, "length": 5}, free=4),
        Sample((Arg((2, 10)),), {"dim": -1, "start": -4, "length": 4}, free=3),
        Sample((Arg((2, 10)),), {"dim": 1, "start": 0, "length": 10}, free=2),
    ),
    is_view=True,
    rearranges=True,
)
op(
    "slice_scatter",
    _slice_scatter,
    resize=_bounds_resize,
    aten=("slice_scatter.default",),
    samples=(
        Sample((Arg((2, 10)), Arg((2, 5))), {"dim": 1, "start": 2, "end": 7}, free=4),
        Sample((Arg((2, 10)), Arg((2, 3))), {"dim": 1, "start": -3}, free=3),
        Sample((Arg((2, 8)), Arg((2, 4))), {"dim": 1, "start": 1, "step": 2}, free=2),
        Sample((Arg((8, 2)), Arg((8, 2))), {}, free=2),
    ),
)

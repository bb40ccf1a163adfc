"""Reading by position: the indexed axis freezes, the index tensor's own axes take its place, the
others pass.

An index list that is a constant of the model and consists of a few runs is known before the model
runs: it cuts the axis into the runs, and the list is rewritten after the choice."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node, TensorType, Value, Weight
from irprune.ir.size import Size, Sym
from irprune.ops.arrays import as_numpy, is_meta
from irprune.ops.aten.shape import position
from irprune.ops.registry import Arg, Cut, Sample, Unsupported
from irprune.ops.registry import op as declare
from irprune.ops.rule import nn_layers

__all__ = ["constant_list", "indexed", "recounted", "taken", "transposition"]

op = partial(declare, family="index")

RUNS = 64
"""The most runs of consecutive indices that a constant list is cut into."""
_LONG = 65536  # longer lists are not read: they do not consist of a few runs that anyone prunes


def constant_list(value: Value) -> NDArray[np.int64] | None:
    """The indices in ``value`` where it is one list, stored in the model and read as it is; else
    None."""
    while value.producer is not None:
        if value.producer.op != "identity":
            return None
        value = value.producer.operand(0)
    if (
        not isinstance(value, Weight)
        or value.kind == "parameter"
        or value.rank != 1
        or value.dtype not in ("i64", "i32")
    ):
        return None
    if isinstance(value.shape[0], Sym) or not 0 < value.shape[0] <= _LONG:
        return None
    array = value.load()
    return None if is_meta(array) else as_numpy(array).astype(np.int64)


def _pick(axes: Axes, a: Axis, value: Value) -> Axis | None:
    """The axis that the constant list ``value`` takes out of ``a``, a sum of its runs; None where
    it must be frozen instead."""
    chosen = constant_list(value)
    picked = taken(axes, a, chosen) if chosen is not None else None
    if picked is not None:
        axes.freeze(axes.of(value)[0], "a list of indices")
    return picked


def taken(axes: Axes, a: Axis, chosen: NDArray[np.int64]) -> Axis | None:
    """The axis of the indices ``chosen`` of ``a``: its factors in another order where they are a
    transposition (channels that are shuffled), else a sum of its runs; None where those are too
    many or ``a`` is frozen."""
    if isinstance(a.size, Sym) or axes.is_frozen(a):
        return None
    chosen = np.where(chosen < 0, chosen + a.size, chosen)
    levels = transposition(chosen, a.size)
    if levels is not None:
        return _transposed(axes, a, levels)
    breaks = np.flatnonzero(np.diff(chosen) != 1) + 1
    if len(breaks) >= RUNS or chosen.min() < 0 or chosen.max() >= a.size:
        return None
    runs = [(int(r[0]), int(r[-1]) + 1) for r in np.split(chosen, breaks)]
    edges = sorted({0, a.size, *(e for run in runs for e in run)})
    pieces = dict(zip(edges, axes.cut(a, [hi - lo for lo, hi in pairwise(edges)]), strict=False))
    return axes.sum(pieces[e] for first, last in runs for e in edges if first <= e < last)


def transposition(chosen: NDArray[np.int64], size: int) -> list[tuple[int, int]] | None:
    """Count and stride of each dimension of the result, from outer to inner, where ``chosen`` is
    ``arange(size)`` with its dimensions in another order. None where it is anything else, or the
    identity.

    The innermost stride is that of the first two indices, as far as it goes; what is left, one
    index of each such run, is looked at in the same way."""
    levels: list[tuple[int, int]] = []
    if len(chosen) != size:
        return None
    while len(chosen) > 1:
        steps = np.diff(chosen)
        stride = int(steps[0])
        other = np.flatnonzero(steps != stride)
        count = int(other[0]) + 1 if len(other) else len(chosen)
        if stride <= 0 or len(chosen) % count:
            return None
        rows = chosen.reshape(-1, count)
        if (rows != rows[:, :1] + stride * np.arange(count)).any():
            return None
        levels.append((count, stride))
        chosen = rows[:, 0]
    if len(levels) < 2 or chosen[0] != 0:
        return None
    expected = 1
    for count, stride in sorted(levels, key=lambda level: level[1]):
        if stride != expected:
            return None
        expected *= count
    return levels[::-1]


def _transposed(axes: Axes, a: Axis, levels: list[tuple[int, int]]) -> Axis | None:
    """``a`` as the product of its factors in the order of ``levels``; None where it is grouped
    otherwise."""
    by_stride: dict[int, Axis] = {}
    rest = a
    for count, stride in sorted(levels, key=lambda level: -level[1])[:-1]:
        outer, inner = axes.split(rest, count)
        if outer is None or inner is None:
            return None
        by_stride[stride], rest = outer, inner
    by_stride[1] = rest
    return axes.product([by_stride[stride] for _, stride in levels])


def _rewrite(node: Node, i: int, a: Axis, made: Axis, cut: Cut) -> None:
    """Operand ``i``, a constant list, counted in what is kept of ``a``."""
    old = node.operand(i)
    chosen = constant_list(old)
    if chosen is None or not cut.changes(a):
        return
    fresh = recounted(chosen, a, made, cut).astype(np.int32 if old.dtype == "i32" else np.int64)
    if node.graph is None:
        return
    name = f"folded.{node.out.name}_index"
    node.set_input(
        i,
        node.graph.add_weight(
            Weight(name, TensorType(old.dtype, (len(fresh),)), lambda: fresh, "constant")
        ),
    )


def recounted(chosen: NDArray[np.int64], a: Axis, made: Axis, cut: Cut) -> NDArray[np.int64]:
    """Those of the indices ``chosen`` of ``a`` that are kept, ``made`` being their axis, counted in
    what is kept of ``a``."""
    picked = np.where(chosen < 0, chosen + int(a.size), chosen)[np.asarray(cut.kept(made))]  # type: ignore[arg-type]
    return np.searchsorted(np.asarray(cut.kept(a)), picked)


# -- one index list --------------------------------------------------------------------------------


def _index_select(axes: Axes, node: Node) -> None:
    own, index = list(axes.of(node.operand(0))), axes.of(node.operand(1))
    if own:
        d = position(node.attrs["dim"], len(own))
        picked = _pick(axes, own[d], node.operand(1))
        if picked is None:
            axes.freeze(own[d], f"indexed by '{node.operand(1).name}'")
            picked = index[0] if index else axes.one
        own[d] = picked
    node.out.axes = tuple(own)


def _index_select_resize(node: Node, cut: Cut) -> None:
    d = position(node.attrs["dim"], node.operand(0).rank)
    _rewrite(node, 1, (node.operand(0).axes or ())[d], (node.out.axes or ())[d], cut)


def _along_dim(node: Node) -> list[tuple[int, Size]]:
    dim = node.attrs.get("dim")
    return [] if dim is None else [(1, node.operand(0).shape[dim])]


_ROWS = Arg((9, 6))
_LIST = Arg((5,), "i64", values=(4, 5, 6, 0, 1))
op(
    "index_select",
    _index_select,
    resize=_index_select_resize,
    aten=("index_select.default",),
    samples=(
        Sample((_ROWS, Arg((5,), "i64", 0, 9)), {"dim": 0}, free=2),
        Sample((Arg((2, 9, 3)), Arg((4,), "i64", 0, 9)), {"dim": -2}, free=3),
        Sample((_ROWS, _LIST), {"dim": 0}, free=5),
        Sample(
            (Arg((12, 5)), Arg((12,), "i64", values=(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11))),
            {"dim": 0},
            free=3,
        ),
        Sample((_ROWS, Arg((3,), "i32", values=(5, 4, 5))), {"dim": -1}, free=2),
    ),
    indexes=_along_dim,
)


def _embedding(axes: Axes, node: Node) -> None:
    table, index = axes.of(node.operand(0)), axes.of(node.operand(1))
    axes.freeze(table[0], f"indexed at run time by '{node.operand(1).name}'")
    node.out.axes = (*index, *table[1:])


def _embedding_bag(axes: Axes, node: Node) -> None:
    """Rows of the table summed (averaged, compared) bag by bag; what the backward pass wants
    besides is frozen."""
    table = axes.of(node.operand(0))
    axes.freeze(table[0], f"indexed at run time by '{node.operand(1).name}'")
    for value in node.inputs[1:]:
        for a in axes.of(value) if value is not None else ():
            axes.freeze(a, "bags")
    width = table[1]
    for value in node.outputs:
        value.axes = tuple(
            width if k == 1 else axes.frozen(s, "bags") for k, s in enumerate(value.shape)
        )


_ID = Arg((2, 5), "i64", 0, 9)
op(
    "embedding",
    _embedding,
    aten=("embedding.default",),
    samples=(
        Sample((_ROWS, _ID), free=3),
        Sample((_ROWS, Arg((), "i64", 0, 9)), {"padding_idx": 3}, free=1),
    ),
    operands=("table", "index"),
    indexes=lambda node: ((1, node.operand(0).shape[0]),),
    nn_layer=nn_layers.EMBEDDING,
)
_BAG = {"scale_grad_by_freq": False, "sparse": False, "include_last_offset": False}
_BAGS = (_ROWS, Arg((7,), "i64", 0, 9), Arg((3,), "i64", values=(0, 2, 5)))
op(
    "embedding_bag",
    _embedding_bag,
    aten=("embedding_bag.default", "embedding_bag.padding_idx"),
    samples=(
        Sample(_BAGS, {**_BAG, "mode": 1}, free=1, target="aten.embedding_bag.default"),
        Sample(_BAGS, {**_BAG, "mode": 2}, free=1, target="aten.embedding_bag.default"),
        Sample(
            (*_BAGS, Arg((7,))),
            {**_BAG, "mode": 0, "padding_idx": 0},
            free=1,
            target="aten.embedding_bag.padding_idx",
        ),
    ),
)

# -- several index tensors -------------------------------------------------------------------------


def indexed(axes: Axes, node: Node, index: list[Value | None]) -> tuple[list[Axis], range]:
    """The axes of ``operand(0)[index]`` and which of them the index tensors made; the indexed
    dimensions freeze.

    ``index`` has one tensor per leading dimension, None passing it; a mask covers as many
    dimensions as it has."""
    own = axes.of(node.operand(0))
    rest: list[Axis] = []
    places: list[int] = []
    made: list[
        tuple[Axis, ...] | None
    ] = []  # None for a mask: one dimension, of a size known at run time
    d = 0
    for k, value in enumerate(index):
        if value is None:
            rest.append(own[d])
            d += 1
            continue
        masks = value.dtype in ("bool", "u8")
        for a in own[d : d + (value.rank if masks else 1)]:
            axes.freeze(a, f"indexed by '{value.name}'")
        d += value.rank if masks else 1
        places.append(k)
        made.append(None if masks else axes.of(value))
        for a in axes.of(value) if masks else ():
            axes.freeze(a, "a mask known at run time")
    rest += own[d:]
    adjacent = places == list(range(places[0], places[-1] + 1))
    front = sum(v is None for v in index[: places[0]]) if adjacent else 0
    rank = max(1 if m is None else len(m) for m in made)
    picked: list[Axis] = []
    for j in range(rank):
        found: list[Axis] = []
        for m in made:
            if m is not None and len(m) >= rank - j and m[j - rank].size != 1:
                found.append(m[j - rank])
            elif m is None and j == rank - 1 and node.op == "index":
                found.append(axes.frozen(node.out.shape[front + j], "a mask known at run time"))
        for a in found[1:]:
            axes.unify(found[0], a)
        picked.append(found[0] if found else axes.one)
    return [*rest[:front], *picked, *rest[front:]], range(front, front + rank)


def _one_list(node: Node) -> int | None:
    """The dimension that a single list of indices picks from."""
    used = [k for k, v in enumerate(node.inputs[1:]) if v is not None]
    return (
        used[0]
        if len(used) == 1
        and node.operand(used[0] + 1).rank == 1
        and node.operand(used[0] + 1).dtype in ("i64", "i32")
        else None
    )


def _index(axes: Axes, node: Node) -> None:
    d = _one_list(node)
    if d is not None:
        own = list(axes.of(node.operand(0)))
        picked = _pick(axes, own[d], node.operand(d + 1))
        if picked is not None:
            own[d] = picked
            node.out.axes = tuple(own)
            return
    node.out.axes = tuple(indexed(axes, node, node.inputs[1:])[0])


def _index_resize(node: Node, cut: Cut) -> None:
    d = _one_list(node)
    if d is not None:
        _rewrite(node, d + 1, (node.operand(0).axes or ())[d], (node.out.axes or ())[d], cut)


_MASK = Arg((2, 3), "bool", values=(1, 0, 1, 1, 0, 0))
op(
    "index",
    _index,
    resize=_index_resize,
    aten=("index.Tensor", "_unsafe_index.Tensor"),
    samples=(
        Sample((_ROWS, (Arg((2, 5), "i64", 0, 9),)), free=3),
        Sample((Arg((4, 9, 6)), (None, Arg((5,), "i64", 0, 9))), free=3),
        Sample((Arg((4, 9, 6)), (Arg((5,), "i64", 0, 4), Arg((3, 1), "i64", 0, 9))), free=3),
        Sample((Arg((4, 9, 6)), (Arg((5,), "i64", 0, 4), None, Arg((5,), "i64", 0, 6))), free=2),
        Sample((Arg((2, 3, 6)), (_MASK,)), free=1),
        Sample((Arg((5, 2, 3, 6)), (None, _MASK)), free=2),
        Sample((Arg((4, 9)), (None, _LIST)), free=5),
        Sample((_ROWS, (Arg((), "i64", 0, 9),)), free=1),
    ),
)


def _gather(axes: Axes, node: Node) -> None:
    """The result has the index tensor's shape; where that is shorter than the operand, only the
    first indices are read."""
    own, index = axes.of(node.operand(0)), axes.of(node.operand(1))
    for k, (a, b) in enumerate(zip(own, index, strict=False)):
        if k == position(node.attrs["dim"], len(own)):
            axes.freeze(a, f"indexed by '{node.operand(1).name}'")
        elif a.size == b.size:
            axes.unify(a, b)
        else:
            axes.freeze(a, "gathered in part")
            axes.freeze(b, "gathered in part")
    node.out.axes = index


def _take_along_dim(axes: Axes, node: Node) -> None:
    own, index, dim = axes.of(node.operand(0)), axes.of(node.operand(1)), node.attrs.get("dim")
    if dim is None:
        raise Unsupported("taken from all dimensions at once")
    out: list[Axis] = []
    for k, (a, b) in enumerate(zip(own, index, strict=True)):
        if k == position(dim, len(own)):
            axes.freeze(a, f"indexed by '{node.operand(1).name}'")
            out.append(b)
        else:
            if 1 not in (a.size, b.size):
                axes.unify(a, b)
            out.append(b if a.size == 1 else a)
    node.out.axes = tuple(out)


def _take(axes: Axes, node: Node) -> None:
    for a in axes.of(node.operand(0)):
        axes.freeze(a, f"indexed by '{node.operand(1).name}'")
    node.out.axes = axes.of(node.operand(1))


op(
    "gather",
    _gather,
    aten=("gather.default",),
    samples=(
        Sample((Arg((2, 9, 6)), Arg((2, 5, 6), "i64", 0, 9)), {"dim": 1}, free=3),
        Sample((Arg((2, 9)), Arg((2, 4), "i64", 0, 9)), {"dim": -1}, free=2),
        Sample((Arg((4, 9)), Arg((2, 5), "i64", 0, 9)), {"dim": 1}, free=1),
    ),
    indexes=_along_dim,
)
op(
    "take_along_dim",
    _take_along_dim,
    aten=("take_along_dim.default",),
    samples=(
        Sample((Arg((2, 9, 6)), Arg((2, 5, 1), "i64", 0, 9)), {"dim": 1}, free=3),
        Sample((Arg((2, 9)), Arg((3,), "i64", 0, 9)), {"dim": None}, free=0),
    ),
    indexes=_along_dim,
)
op(
    "take",
    _take,
    aten=("take.default",),
    samples=(Sample((Arg((4, 6)), Arg((2, 5), "i64", 0, 24)), free=2),),
)

# -- positions as values ---------------------------------------------------------------------------


def _run_time(axes: Axes, node: Node) -> None:
    raise Unsupported("positions that are known at run time")


def _item(axes: Axes, node: Node) -> None:
    """One number of a tensor; its attribute ``symbol`` names the size that it tells."""
    for a in axes.of(node.operand(0)):
        axes.freeze(a, "read as a number")
    node.out.axes = ()


op(
    "item",
    _item,
    counts=True,
    aten=("item.default", "_local_scalar_dense.default"),
    doc="a number that stands in shapes",
)
op(
    "nonzero",
    _run_time,
    counts=True,
    aten=("nonzero.default", "argwhere.default"),
    samples=(Sample((Arg((2, 3)),), free=0),),
)
op(
    "masked_select",
    _run_time,
    counts=True,
    aten=("masked_select.default",),
    samples=(Sample((Arg((2, 3)), _MASK), free=0),),
)

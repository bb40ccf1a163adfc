"""Reading and writing by position, as ONNX spells it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.ir.axis import Axes
from irprune.ir.graph import Node, TensorType, Value, Weight
from irprune.ir.size import Size, Sym, probe_of
from irprune.ops import layered
from irprune.ops.aten.index import recounted, taken
from irprune.ops.onnx.importer import OnnxNode, Step, UnsupportedUse, runs, sampled, spell, use
from irprune.ops.onnx.types import like, position
from irprune.ops.registry import Arg, Cut, Sample, Unsupported
from irprune.ops.registry import op as declare
from irprune.ops.traits import Role

op = partial(declare, family="index")

__all__: list[str] = []


def constant_of(value: Value) -> NDArray[np.int64] | None:
    """Integers that are stored in the model, or laid out from such ones as exporters do for
    indices; else None."""
    node = value.producer
    if node is None:
        stored = (
            isinstance(value, Weight)
            and value.kind != "parameter"
            and value.dtype in ("i64", "i32")
            and value.type.static
        )
        return np.asarray(value.load(), dtype=np.int64) if stored else None  # type: ignore[attr-defined]
    read = (
        [constant_of(v) for v in node.inputs if v is not None]
        if node.op in _LAYS_OUT and value.type.static
        else [None]
    )
    arrays = [a for a in read if a is not None]
    if len(arrays) < len(read):
        return None
    if node.op == "cat":
        return np.concatenate(arrays, axis=node.attrs["dim"])
    if node.op == "expand":
        return np.broadcast_to(arrays[0], value.shape)  # type: ignore[arg-type]
    return (
        arrays[0].transpose(node.attrs["dims"])
        if node.op == "permute"
        else arrays[0].reshape(value.shape)  # type: ignore[arg-type]
    )


_LAYS_OUT = ("identity", "unsqueeze", "squeeze", "reshape", "expand", "permute", "cat")


def _gathered_roles(node: Node) -> tuple[Role, ...]:
    """Rows of a stored matrix that are read by index are a table."""
    stored = isinstance(node.operand(0), Weight) and node.operand(0).rank == 2
    return ("table", "index") if stored and node.attrs["dim"] == 0 else ("data", "index")


def _along_dim(node: Node) -> list[tuple[int, Size]]:
    return [(1, node.operand(0).shape[node.attrs["dim"]])]


def _into_places(node: Node) -> list[tuple[int, Size]]:
    """Each row of the index names a place in several dimensions."""
    batch, depth = node.attrs.get("batch_dims", 0), node.operand(1).shape[-1]
    places = node.operand(0).shape[batch : batch + depth] if isinstance(depth, int) else ()
    return [(1, s) for s in places]


def _gather_rule(axes: Axes, node: Node) -> None:
    own, index = axes.of(node.operand(0)), axes.of(node.operand(1))
    d = node.attrs["dim"]
    axes.freeze(own[d], f"indexed at run time by '{node.operand(1).name}'")
    node.out.axes = (*own[:d], *index, *own[d + 1 :])


def _taken_rule(axes: Axes, node: Node) -> None:
    """A constant list of indices."""
    own = axes.of(node.operand(0))
    d = node.attrs["dim"]
    axes.freeze(own[d], "indexed by a constant list")
    node.out.axes = (
        *own[:d],
        *(axes.frozen(s, "a constant list of indices") for s in node.attrs["shape"]),
        *own[d + 1 :],
    )


def _gather(node: OnnxNode) -> Step:
    """One constant index selects, indices in a row are a slice, a table read at run time is an
    embedding."""
    x, dim = node.shape(), position(node.attrs.get("axis", 0), node.rank())
    index = node.constant(1)
    at = node.shape(1)
    kind = [like(node, shape=(*x[:dim], *at, *x[dim + 1 :]))]
    if index is not None and index.dtype != object:
        if index.ndim == 0:
            return Step("select", (0,), {"dim": dim, "index": int(index)}, kind)
        if index.ndim == 1 and index.size and isinstance(x[dim], int):
            flat = index.astype(np.int64) % x[dim]  # type: ignore[operator]
            if (np.diff(flat) == 1).all():
                return Step(
                    "slice",
                    (0,),
                    {"dim": dim, "start": int(flat[0]), "end": int(flat[-1]) + 1, "step": 1},
                    kind,
                )
            if index.min() >= 0 and index.max() < x[dim]:
                return Step("index_select", (0, 1), {"dim": dim}, kind)
    return Step("gather_at", (0, 1), {"dim": dim}, kind)


op(
    "gather_at",
    _gather_rule,
    run=runs("gather_at"),
    samples=(
        Sample((Arg((9, 6)), Arg((2, 5), "i64", 0, 9)), {"dim": 0}, free=3),
        Sample((Arg((4, 9, 6)), Arg((3,), "i64", -9, 9)), {"dim": 1}, free=3),
    ),
    operands=_gathered_roles,
    layered=layered.as_embedding,
    indexes=_along_dim,
)


def _write_gather(edit: Any, node: Node) -> None:
    """A list of indices in a row that was read as a slice moves with what is dropped before it."""
    if node.op == "slice":
        made = list(range(node.attrs["start"], node.attrs["end"]))
        now = edit.value(1)
        size = node.operand(0).shape[node.attrs["dim"]]
        if now is None or [int(v) % size for v in now] != made:
            edit.input(1, made)


spell(("gather_at", "select", "slice", "index_select"), "Gather", read=_gather, write=_write_gather)


def _elements_rule(axes: Axes, node: Node) -> None:
    """The indexed dimension freezes; in the others the index has the data's indices, where it is as
    long."""
    own, index = axes.of(node.operand(0)), axes.of(node.operand(1))
    d = node.attrs["dim"]
    axes.freeze(own[d], "indexed at run time")
    if node.op == "scatter_elements":
        axes.freeze(index[d], "what is written")
    for k, (a, b) in enumerate(zip(own, index, strict=True)):
        if k == d:
            continue
        if a.size == b.size:
            axes.unify(a, b)
        else:
            axes.freeze(a, "indexed by fewer rows")
            axes.freeze(b, "indexed by fewer rows")
    node.out.axes = index if node.op == "gather_elements" else own
    for value in node.inputs[2:]:
        if value is not None:
            for a, b in zip(axes.of(value), index, strict=True):
                axes.unify(a, b)


def _gather_elements(node: OnnxNode) -> Step:
    return Step(
        "gather_elements",
        None,
        {"dim": position(node.attrs.get("axis", 0), node.rank())},
        [like(node, shape=node.shape(1))],
    )


def _scatter_elements(node: OnnxNode) -> Step:
    return Step(
        "scatter_elements",
        None,
        {
            "dim": position(node.attrs.get("axis", 0), node.rank()),
            "reduction": node.attrs.get("reduction", "none"),
        },
        [like(node)],
    )


_INDEX = Arg((2, 3), "i64", 0, 6)
op(
    "gather_elements",
    _elements_rule,
    run=runs("gather_elements"),
    samples=(Sample((Arg((2, 6)), _INDEX), {"dim": 1}, free=2),),
    indexes=_along_dim,
)
op(
    "scatter_elements",
    _elements_rule,
    run=runs("scatter_elements"),
    samples=(
        Sample(
            (Arg((2, 6)), Arg((2, 3), "i64", values=(0, 2, 4, 1, 3, 5)), Arg((2, 3))),
            {"dim": 1, "reduction": "none"},
            free=1,
        ),
    ),
    learned=False,
    indexes=_along_dim,
)
spell("gather_elements", "GatherElements", read=_gather_elements)
spell("scatter_elements", "ScatterElements", "Scatter", read=_scatter_elements)


def _nd_rule(axes: Axes, node: Node) -> None:
    """The last dimension of the index names a place in the leading dimensions after the batch; what
    lies behind passes."""
    own, index = axes.of(node.operand(0)), axes.of(node.operand(1))
    if node.op == "scatter_nd" and (lists := _grid(node)) is not None:
        _write_grid(axes, node, lists)
        return
    batch = node.attrs.get("batch_dims", 0)
    depth = node.operand(1).shape[-1]
    axes.freeze(index[-1], "places in several dimensions")
    if not isinstance(depth, int):
        raise Unsupported("places in an unknown number of dimensions")
    for a, b in zip(own[:batch], index[:batch], strict=True):
        axes.unify(a, b)
    for a in own[batch : batch + depth]:
        axes.freeze(a, "indexed at run time")
    picked = (*index[:-1], *own[batch + depth :])
    if node.op == "gather_nd":
        node.out.axes = picked
        return
    for a in index[batch:-1]:
        axes.freeze(a, "what is written")
    for a, b in zip(axes.of(node.operand(2)), picked, strict=True):
        axes.unify(a, b)
    node.out.axes = own


def _grid(node: Node) -> list[NDArray[np.int64]] | None:
    """The indices of each dimension that is written to where they are constants of the model and
    every combination of them is written once, in order: a write to a slice. Else None."""
    index, own = constant_of(node.operand(1)), node.operand(0).shape
    if index is None or index.size == 0 or index.ndim != index.shape[-1] + 1:
        return None
    first = [(0,) * k + (slice(None),) + (0,) * (index.ndim - 2 - k) for k in range(index.ndim - 1)]
    lists = [index[(*at, k)] for k, at in enumerate(first)]
    if any(
        isinstance(s, Sym) or len(np.unique(many % s)) != len(many)
        for many, s in zip(lists, own, strict=False)
    ):
        return None
    whole = np.stack(np.meshgrid(*lists, indexing="ij"), axis=-1)
    return (
        [many % s for many, s in zip(lists, own, strict=False)]  # type: ignore[operator]
        if np.array_equal(whole, index)
        else None
    )


def _write_grid(axes: Axes, node: Node, lists: list[NDArray[np.int64]]) -> None:
    own, written = axes.of(node.operand(0)), axes.of(node.operand(2))
    for a in axes.of(node.operand(1)):
        axes.freeze(a, "a list of indices")
    for k, (a, b) in enumerate(zip(own, written, strict=True)):
        picked = (
            a
            if k >= len(lists) or np.array_equal(lists[k], np.arange(probe_of(a.size)))
            else taken(axes, a, lists[k])
        )
        if picked is None:
            axes.freeze(a, "places that are written")
            axes.freeze(b, "what is written")
        else:
            axes.unify(picked, b)
    node.out.axes = own


def _grid_resize(node: Node, cut: Cut) -> None:
    """The places are counted anew."""
    own, written, lists = node.operand(0).axes or (), node.operand(2).axes or (), _grid(node)
    if lists is None or not any(map(cut.changes, own[: len(lists)])):
        return
    now = [
        recounted(many, a, b, cut) if cut.changes(a) else many
        for many, a, b in zip(lists, own, written, strict=False)
    ]
    if node.graph is None:
        return
    fresh = np.stack(np.meshgrid(*now, indexing="ij"), axis=-1)
    kind = TensorType("i64", fresh.shape)
    node.set_input(
        1, node.graph.add_weight(Weight(f"{node.out.name}.places", kind, lambda: fresh, "constant"))
    )


def _gather_nd(node: OnnxNode) -> Step:
    batch, index = node.attrs.get("batch_dims", 0), node.shape(1)
    if not isinstance(index[-1], int):
        raise UnsupportedUse("a GatherND of unknown depth")
    return Step(
        "gather_nd",
        None,
        {"batch_dims": batch},
        [like(node, shape=(*index[:-1], *node.shape()[batch + index[-1] :]))],
    )


def _scatter_nd(node: OnnxNode) -> Step:
    return Step(
        "scatter_nd", None, {"reduction": node.attrs.get("reduction", "none")}, [like(node)]
    )


op(
    "gather_nd",
    _nd_rule,
    run=runs("gather_nd"),
    samples=(
        Sample((Arg((4, 5, 6)), Arg((3, 2), "i64", 0, 4)), {"batch_dims": 0}, free=2),
        Sample((Arg((2, 5, 6)), Arg((2, 3, 1), "i64", 0, 5)), {"batch_dims": 1}, free=3),
    ),
    indexes=_into_places,
)
op(
    "scatter_nd",
    _nd_rule,
    run=runs("scatter_nd"),
    resize=_grid_resize,
    samples=(
        Sample(
            (Arg((8, 6)), Arg((4, 1), "i64", values=(2, 3, 4, 7)), Arg((4, 6))),
            {"reduction": "none"},
            free=4,
        ),
        Sample(
            (Arg((2, 5)), Arg((2, 2, 2), "i64", values=(0, 1, 0, 2, 1, 1, 1, 2)), Arg((2, 2))),
            {"reduction": "add"},
            free=3,
        ),
        Sample(
            (Arg((4, 6)), Arg((3, 1), "i64", values=(0, 2, 0)), Arg((3, 6))),
            {"reduction": "add"},
            free=1,
        ),
    ),
    learned=False,
    indexes=_into_places,
)
spell("gather_nd", "GatherND", read=_gather_nd)
spell("scatter_nd", "ScatterND", read=_scatter_nd)


def _one_hot(node: OnnxNode) -> Step:
    depth = node.sizes(1)
    index = node.shape(0)
    values = node.given(2)
    if depth is None or values is None:
        raise UnsupportedUse("a OneHot whose values are computed at run time")
    axis = node.attrs.get("axis", -1)
    at = axis + len(index) + 1 if axis < 0 else axis
    off, on = values.reshape(-1).tolist()
    kind = TensorType(node.type(2).dtype, (*index[:at], depth[0], *index[at:]))
    return Step(
        "one_hot_at",
        (0,),
        {"depth": depth[0], "dim": at, "off": off, "on": on, "dtype": kind.dtype},
        [kind],
    )


def _one_hot_rule(axes: Axes, node: Node) -> None:
    own, d = axes.of(node.operand(0)), node.attrs["dim"]
    node.out.axes = (*own[:d], axes.frozen(node.attrs["depth"], "classes of one_hot"), *own[d:])


op(
    "one_hot_at",
    _one_hot_rule,
    run=runs("one_hot_at"),
    samples=(
        Sample(
            (Arg((2, 5), "i64", 0, 4),),
            {"depth": 4, "dim": 1, "off": 0.0, "on": 1.0, "dtype": "f32"},
            free=2,
        ),
    ),
    learned=False,
    indexes=lambda node: ((0, node.attrs["depth"]),),
)
spell("one_hot_at", "OneHot", read=_one_hot)

# -- samples ---------------------------------------------------------------------------------------

_X = Arg((4, 9, 6))
sampled(
    "Gather",
    use(_X, Arg((3, 2), "i64", 0, 4), free=4, axis=0),
    use(_X, Arg((3,), "i64", -9, 9), free=3, axis=1),
    use(Arg((9, 6)), Arg((2, 5), "i64", 0, 9), free=3),
    use(_X, Arg((), "i64", values=(-2,)), free=3, axis=1),
    use(_X, Arg((3,), "i64", values=(2, 3, 4)), free=5, axis=1),
    use(_X, Arg((3,), "i64", values=(2, 0, 4)), free=3, axis=1),
    use(Arg((5, 6)), Arg((6,), "i64", values=(0, 2, 4, 1, 3, 5)), free=3, axis=1),
    use(Arg((5, 6)), Arg((6,), "i32", values=(3, 4, 5, 0, 1, 2)), free=3, axis=1),
)
sampled("GatherElements", use(Arg((2, 6)), _INDEX, free=2, axis=1))
sampled(
    "ScatterElements",
    use(Arg((2, 6)), Arg((2, 3), "i64", values=(0, 2, 4, 1, 3, 5)), Arg((2, 3)), free=1, axis=1),
)
sampled(
    "Scatter",
    use(
        Arg((2, 6)),
        Arg((2, 3), "i64", values=(0, 2, 4, 1, 3, 5)),
        Arg((2, 3)),
        free=1,
        axis=1,
        opset=9,
    ),
)
sampled(
    "GatherND",
    use(Arg((4, 5, 6)), Arg((3, 2), "i64", 0, 4), free=2),
    use(Arg((2, 5, 6)), Arg((2, 3, 1), "i64", 0, 5), free=3, batch_dims=1),
)
sampled(
    "ScatterND",
    use(Arg((8, 6)), Arg((4, 1), "i64", values=(2, 3, 4, 7)), Arg((4, 6)), free=4),
    use(Arg((4, 6)), Arg((3, 1), "i64", values=(0, 2, 0)), Arg((3, 6)), free=1, reduction="add"),
)
_DEPTH, _PAIR = Arg((), "i64", values=(4,)), Arg((2,), values=(0.0, 1.0))
sampled("OneHot", use(Arg((2, 5), "i64", 0, 4), _DEPTH, _PAIR, free=2, axis=1))

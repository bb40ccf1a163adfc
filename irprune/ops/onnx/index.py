"""Reading and writing by position, as ONNX spells it."""

from __future__ import annotations

from typing import Any

import numpy as np

from irprune.ir.axis import Axes
from irprune.ir.graph import Node, TensorType
from irprune.ops.onnx.spell import OnnxNode, Step, Unread, runs, spell
from irprune.ops.onnx.types import like, position
from irprune.ops.registry import Arg, Sample, op

__all__: list[str] = []


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
    node.out.axes = (*own[:d], *(axes.frozen(s, "a constant list of indices") for s in node.attrs["shape"]), *own[d + 1 :])


def _gather(node: OnnxNode) -> Step:
    """One constant index selects, indices in a row are a slice, a table read at run time is an embedding."""
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
                return Step("slice", (0,), {"dim": dim, "start": int(flat[0]), "end": int(flat[-1]) + 1, "step": 1}, kind)
    if dim == 0 and len(x) == 2:
        return Step("gather_rows", (0, 1), {"dim": 0}, kind)
    return Step("gather_at", (0, 1), {"dim": dim}, kind)


for _name in ("gather_rows", "gather_at"):
    op(
        _name,
        _gather_rule,
        run=runs("gather_at"),
        samples=(
            Sample((Arg((9, 6)), Arg((2, 5), "i64", 0, 9)), {"dim": 0}, free=3),
            *((Sample((Arg((4, 9, 6)), Arg((3,), "i64", -9, 9)), {"dim": 1}, free=3),) if _name == "gather_at" else ()),
        ),
    )


def _write_gather(edit: Any, node: Node) -> None:
    """A list of indices in a row that was read as a slice moves with what is dropped before it."""
    if node.op == "slice":
        made = list(range(node.attrs["start"], node.attrs["end"]))
        now = edit.value(1)
        size = node.operand(0).shape[node.attrs["dim"]]
        if now is None or [int(v) % size for v in now] != made:
            edit.input(1, made, edit.dtype(1))


spell(("gather_at", "gather_rows", "select", "slice"), "Gather", read=_gather, write=_write_gather)


def _elements_rule(axes: Axes, node: Node) -> None:
    """The indexed dimension freezes; in the others the index has the data's indices, where it is as long."""
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
    return Step("gather_elements", None, {"dim": position(node.attrs.get("axis", 0), node.rank())}, [like(node, shape=node.shape(1))])


def _scatter_elements(node: OnnxNode) -> Step:
    return Step(
        "scatter_elements",
        None,
        {"dim": position(node.attrs.get("axis", 0), node.rank()), "reduction": node.attrs.get("reduction", "none")},
        [like(node)],
    )


_INDEX = Arg((2, 3), "i64", 0, 6)
op("gather_elements", _elements_rule, run=runs("gather_elements"), samples=(Sample((Arg((2, 6)), _INDEX), {"dim": 1}, free=2),))
op(
    "scatter_elements",
    _elements_rule,
    run=runs("scatter_elements"),
    samples=(Sample((Arg((2, 6)), Arg((2, 3), "i64", values=(0, 2, 4, 1, 3, 5)), Arg((2, 3))), {"dim": 1, "reduction": "none"}, free=1),),
)
spell("gather_elements", "GatherElements", read=_gather_elements)
spell("scatter_elements", "ScatterElements", "Scatter", read=_scatter_elements)


def _nd_rule(axes: Axes, node: Node) -> None:
    """The last dimension of the index names a place in the leading dimensions after the batch; what lies behind passes."""
    own, index = axes.of(node.operand(0)), axes.of(node.operand(1))
    batch = node.attrs.get("batch_dims", 0)
    depth = node.operand(1).shape[-1]
    axes.freeze(index[-1], "places in several dimensions")
    if not isinstance(depth, int):
        from irprune.ops.registry import Unsupported

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


def _gather_nd(node: OnnxNode) -> Step:
    batch, index = node.attrs.get("batch_dims", 0), node.shape(1)
    if not isinstance(index[-1], int):
        raise Unread("a GatherND of unknown depth")
    return Step("gather_nd", None, {"batch_dims": batch}, [like(node, shape=(*index[:-1], *node.shape()[batch + index[-1] :]))])


def _scatter_nd(node: OnnxNode) -> Step:
    return Step("scatter_nd", None, {"reduction": node.attrs.get("reduction", "none")}, [like(node)])


op(
    "gather_nd",
    _nd_rule,
    run=runs("gather_nd"),
    samples=(
        Sample((Arg((4, 5, 6)), Arg((3, 2), "i64", 0, 4)), {"batch_dims": 0}, free=2),
        Sample((Arg((2, 5, 6)), Arg((2, 3, 1), "i64", 0, 5)), {"batch_dims": 1}, free=3),
    ),
)
op(
    "scatter_nd",
    _nd_rule,
    run=runs("scatter_nd"),
    samples=(Sample((Arg((4, 6)), Arg((3, 1), "i64", values=(0, 2, 3)), Arg((3, 6))), {"reduction": "none"}, free=1),),
)
spell("gather_nd", "GatherND", read=_gather_nd)
spell("scatter_nd", "ScatterND", read=_scatter_nd)


def _one_hot(node: OnnxNode) -> Step:
    depth = node.sizes(1)
    index = node.shape(0)
    values = node.given(2)
    if depth is None or values is None:
        raise Unread("a OneHot whose values are computed at run time")
    axis = node.attrs.get("axis", -1)
    at = axis + len(index) + 1 if axis < 0 else axis
    off, on = values.reshape(-1).tolist()
    kind = TensorType(node.type(2).dtype, (*index[:at], depth[0], *index[at:]))
    return Step("one_hot_at", (0,), {"depth": depth[0], "dim": at, "off": off, "on": on, "dtype": kind.dtype}, [kind])


def _one_hot_rule(axes: Axes, node: Node) -> None:
    own, d = axes.of(node.operand(0)), node.attrs["dim"]
    node.out.axes = (*own[:d], axes.frozen(node.attrs["depth"], "classes of one_hot"), *own[d:])


op(
    "one_hot_at",
    _one_hot_rule,
    run=runs("one_hot_at"),
    samples=(Sample((Arg((2, 5), "i64", 0, 4),), {"depth": 4, "dim": 1, "off": 0.0, "on": 1.0, "dtype": "f32"}, free=2),),
)
spell("one_hot_at", "OneHot", read=_one_hot)

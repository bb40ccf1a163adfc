"""Operators that move, group, join and cut dimensions without touching a value."""

from __future__ import annotations

from collections.abc import Sequence

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node
from irprune.ir.size import Size, Sym, probe_of, same
from irprune.ops.registry import Arg, Cut, Sample, Unsupported, op

__all__ = ["position"]

_X = Arg((2, 6, 5))


def position(dim: int, rank: int) -> int:
    """``dim`` counted from the front."""
    return dim + rank if dim < 0 else dim


def out_shape(cut: Cut, node: Node, i: int = 0) -> list[Size]:
    """The shape of result ``i`` after the cut."""
    return [cut.size(a) for a in node.outputs[i].axes or ()]


# -- regrouping ------------------------------------------------------------------------------------------------------


def _reshape(axes: Axes, node: Node) -> None:
    node.out.axes = tuple(axes.regroup(axes.of(node.operand(0)), node.out.shape))


def _set_shape(node: Node, cut: Cut) -> None:
    if "shape" in node.attrs and any(cut.changes(a) for a in node.out.axes or ()):
        node.attrs["shape"] = out_shape(cut, node)


op("reshape", _reshape, resize=_set_shape, onnx=("Reshape",),
   aten={"reshape.default": {}, "view.default": {"size": "shape"}, "_unsafe_view.default": {"size": "shape"}},
   samples=(Sample((Arg((2, 12, 5)),), {"shape": [2, 3, 4, 5]}, free=4), Sample((Arg((2, 3, 4, 5)),), {"shape": [6, 20]}, free=4),
            Sample((Arg((2, 6)),), {"shape": [1, 2, 6, 1]}, free=2)))
op("flatten", _reshape, aten=("flatten.using_ints",), samples=(Sample((Arg((2, 3, 4, 5)),), {"start_dim": 1, "end_dim": 2}, free=4),))


def _unflatten_resize(node: Node, cut: Cut) -> None:
    out = out_shape(cut, node)
    d, n = position(node.attrs["dim"], node.operand(0).rank), len(node.attrs["sizes"])
    node.attrs["sizes"] = out[d:d + n]


op("unflatten", _reshape, resize=_unflatten_resize, aten=("unflatten.int",),
   samples=(Sample((Arg((2, 12)),), {"dim": -1, "sizes": [3, -1]}, free=3),))
op("reshape_as", _reshape, aten=("reshape_as.default", "view_as.default"), samples=(Sample((Arg((2, 12)), Arg((2, 3, 4))), free=None),))


# -- moving ----------------------------------------------------------------------------------------------------------


def _permute(axes: Axes, node: Node) -> None:
    a = axes.of(node.operand(0))
    node.out.axes = tuple(a[d] for d in node.attrs["dims"])


def _transpose(axes: Axes, node: Node) -> None:
    a = list(axes.of(node.operand(0)))
    i, j = node.attrs["dim0"], node.attrs["dim1"]
    if a:
        a[i], a[j] = a[j], a[i]
    node.out.axes = tuple(a)


def _reverse(axes: Axes, node: Node) -> None:
    node.out.axes = axes.of(node.operand(0))[::-1]


op("permute", _permute, aten=("permute.default",), samples=(Sample((_X,), {"dims": [2, 0, -2]}, free=3),))
op("transpose", _transpose, aten={"transpose.int": {}, "swapaxes.default": {"axis0": "dim0", "axis1": "dim1"}},
   samples=(Sample((_X,), {"dim0": 1, "dim1": -1}, free=3),))
op("t", _reverse, aten=("t.default", "numpy_T.default"), samples=(Sample((Arg((2, 6)),), free=2),))


def _unsqueeze(axes: Axes, node: Node) -> None:
    a = list(axes.of(node.operand(0)))
    a.insert(position(node.attrs["dim"], len(a) + 1), axes.one)
    node.out.axes = tuple(a)


def _squeeze(axes: Axes, node: Node) -> None:
    """Only dimensions of size 1 leave, so what stays is what the result's rank says."""
    a = axes.of(node.operand(0))
    dims = node.attrs.get("dim")
    dims = range(len(a)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {position(d, len(a)) for d in dims}
    node.out.axes = tuple(x for k, x in enumerate(a) if not (k in gone and x.size == 1))


op("unsqueeze", _unsqueeze, aten=("unsqueeze.default",), samples=(Sample((_X,), {"dim": -2}, free=3),))
op("squeeze", _squeeze, aten=("squeeze.dim", "squeeze.default", "squeeze.dims"), samples=(Sample((Arg((2, 1, 6)),), {"dim": 1}, free=2),))


def _expand(axes: Axes, node: Node) -> None:
    """A size 1 that is expanded gives a fresh axis: the repeats of grouped-query attention are its indices."""
    own = axes.of(node.operand(0))
    shape = node.out.shape
    shift = len(shape) - len(own)
    node.out.axes = tuple(
        own[k - shift] if k >= shift and probe_of(own[k - shift].size) == probe_of(s) else axes.leaf(s) for k, s in enumerate(shape)
    )


def _expand_resize(node: Node, cut: Cut) -> None:
    if "shape" in node.attrs:
        old = node.attrs["shape"]
        node.attrs["shape"] = [o if isinstance(o, int) and o == -1 else n for o, n in zip(old, out_shape(cut, node), strict=True)]


def _expand_as(axes: Axes, node: Node) -> None:
    own, other = axes.of(node.operand(0)), axes.of(node.operand(1))
    shift = len(other) - len(own)
    for k, a in enumerate(own, shift):
        if a.size != 1:
            axes.unify(a, other[k])
    node.out.axes = other


op("expand", _expand, resize=_expand_resize, aten={"expand.default": {"size": "shape"}, "broadcast_to.default": {"size": "shape"}},
   samples=(Sample((Arg((2, 1, 5)),), {"shape": [3, -1, 6, 5]}, free=4),))
op("expand_as", _expand_as, aten=("expand_as.default",), samples=(Sample((Arg((1, 5)), Arg((6, 5))), free=2),))


def _repeat(axes: Axes, node: Node) -> None:
    own = list(axes.of(node.operand(0)))
    times: Sequence[Size] = node.attrs["repeats"]
    own = [axes.one] * (len(times) - len(own)) + own
    node.out.axes = tuple(axes.product((axes.frozen(t, "repeat count"), a)) for a, t in zip(own, times, strict=True))


def _repeat_interleave(axes: Axes, node: Node) -> None:
    own = list(axes.of(node.operand(0)))
    dim, times = node.attrs.get("dim"), node.attrs["repeats"]
    if dim is None:
        own, dim = [axes.product(own)], 0
    own[dim] = axes.product((own[dim], axes.frozen(times, "repeat count")))
    node.out.axes = tuple(own)


op("repeat", _repeat, aten={"repeat.default": {}, "tile.default": {"dims": "repeats"}}, samples=(Sample((Arg((2, 5)),), {"repeats": [3, 1, 2]}, free=2),))
op("repeat_interleave", _repeat_interleave, aten=("repeat_interleave.self_int",), samples=(Sample((Arg((2, 5)),), {"repeats": 3, "dim": 1}, free=2),))


# -- joining and cutting ---------------------------------------------------------------------------------------------


def _cat(axes: Axes, node: Node) -> None:
    values = [v for v in node.inputs if v is not None and v.shape != (0,)]
    rows = [axes.of(v) for v in values]
    dim = position(node.attrs["dim"], len(rows[0]))
    out: list[Axis] = []
    for k, first in enumerate(rows[0]):
        if k == dim:
            out.append(axes.sum(r[k] for r in rows))
            continue
        for r in rows[1:]:
            axes.unify(first, r[k])
        out.append(first)
    node.out.axes = tuple(out)


op("cat", _cat, aten={"cat.default": {}, "concat.default": {}, "concatenate.default": {}},
   samples=(Sample((Arg((2, 6)), Arg((2, 4))), {"dim": -1}, free=3),))


def _stack(axes: Axes, node: Node) -> None:
    rows = [axes.of(v) for v in node.inputs if v is not None]
    for r in rows[1:]:
        for a, b in zip(rows[0], r, strict=True):
            axes.unify(a, b)
    out = list(rows[0])
    out.insert(position(node.attrs["dim"], len(out) + 1), axes.frozen(len(rows), "number of stacked tensors"))
    node.out.axes = tuple(out)


op("stack", _stack, aten=("stack.default",), samples=(Sample((_X, _X), {"dim": 1}, free=3),))


def _pieces(axes: Axes, node: Node) -> None:
    """Split, chunk: the dimension is cut where the results end."""
    own = axes.of(node.operand(0))
    d = position(node.attrs["dim"], len(own))
    cuts = axes.cut(own[d], [v.shape[d] for v in node.outputs])
    for value, piece in zip(node.outputs, cuts, strict=True):
        value.axes = (*own[:d], piece, *own[d + 1:])


def _split_resize(node: Node, cut: Cut) -> None:
    """Equal pieces need not stay equal: explicit sizes take their place."""
    d = position(node.attrs["dim"], node.operand(0).rank)
    sizes = [cut.size((v.axes or ())[d]) for v in node.outputs]
    if sizes == [v.shape[d] for v in node.outputs]:
        return
    node.attrs = {"split_sizes": sizes, "dim": node.attrs["dim"]}
    if node.origin.dialect == "aten":
        node.origin.target = "aten.split_with_sizes.default"
        node.origin.layout = (("self", 0),)


op("split", _pieces, resize=_split_resize,
   aten=("split_with_sizes.default", "split.Tensor", "split.sizes", "chunk.default", "tensor_split.sections", "tensor_split.indices"),
   samples=(Sample((Arg((2, 10)),), {"split_sizes": [6, 4], "dim": 1}, free=3),
            Sample((Arg((2, 8)),), {"chunks": 2, "dim": -1}, free=3, target="aten.chunk.default")))


def _unbind(axes: Axes, node: Node) -> None:
    own = axes.of(node.operand(0))
    d = position(node.attrs["dim"], len(own))
    axes.freeze(own[d], "indexed by unbind")
    for value in node.outputs:
        value.axes = (*own[:d], *own[d + 1:])


op("unbind", _unbind, aten=("unbind.int",), samples=(Sample((Arg((3, 6)),), {"dim": 0}, free=1),))


def _select(axes: Axes, node: Node) -> None:
    own = axes.of(node.operand(0))
    d = position(node.attrs["dim"], len(own))
    axes.freeze(own[d], "indexed by a constant")
    node.out.axes = (*own[:d], *own[d + 1:])


op("select", _select, aten=("select.int",), samples=(Sample((Arg((3, 6)),), {"dim": 0, "index": 1}, free=1),))


def slice_bounds(size: int, start: Size | None, end: Size | None) -> tuple[int, int]:
    """``start`` and ``end`` clamped into 0..size as Python slices are."""
    first, last, _ = slice(start if start is None else probe_of(start), end if end is None else probe_of(end)).indices(size)
    return first, max(first, last)


def _slice(axes: Axes, node: Node) -> None:
    own = list(axes.of(node.operand(0)))
    d, step = position(node.attrs["dim"], len(own)), node.attrs.get("step", 1)
    a = own[d]
    if same(a.size, node.out.shape[d]):
        pass
    elif isinstance(a.size, Sym) or isinstance(node.out.shape[d], Sym):
        own[d] = axes.frozen(node.out.shape[d], "dynamic slice")
    elif axes.is_frozen(a):
        own[d] = axes.frozen(node.out.shape[d], "slice of a frozen axis")
    elif step == 1:
        first, last = slice_bounds(a.size, node.attrs.get("start"), node.attrs.get("end"))
        sizes = [first, last - first, a.size - last]
        pieces = iter(axes.cut(a, [s for s in sizes if s]))
        own[d] = [next(pieces) if s else None for s in sizes][1] or axes.leaf(0)
    elif a.size % step == 0 and node.attrs.get("end") in (None, 2**63 - 1, a.size):
        outer, inner = axes.split(a, a.size // step)
        if outer is None or inner is None:
            raise Unsupported("strided slice of an axis that is grouped otherwise")
        axes.freeze(inner, "stride of a slice")
        own[d] = outer
    else:
        raise Unsupported("strided slice with a remainder")
    node.out.axes = tuple(own)


def _slice_resize(node: Node, cut: Cut) -> None:
    d = position(node.attrs["dim"], node.operand(0).rank)
    a = (node.operand(0).axes or ())[d]
    if not cut.changes(a) or isinstance(a.size, Sym) or node.attrs.get("step", 1) != 1:
        return
    first, last = slice_bounds(a.size, node.attrs.get("start"), node.attrs.get("end"))
    kept = cut.kept(a)
    start = sum(1 for k in kept if k < first)
    node.attrs["start"], node.attrs["end"] = start, start + cut.size((node.out.axes or ())[d])


op("slice", _slice, resize=_slice_resize, aten={"slice.Tensor": {}},
   samples=(Sample((Arg((2, 10)),), {"dim": 1, "start": 2, "end": 7}, free=4), Sample((Arg((2, 8)),), {"dim": 1, "start": 1, "step": 2}, free=2)))

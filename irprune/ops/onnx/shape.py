"""Operators that move, group, join and cut dimensions, as ONNX spells them: targets are constants
or shape arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from irprune.ir.graph import Node
from irprune.ir.size import Size, Sym, is_static, probe_of, product, same
from irprune.ops.onnx.importer import (
    PREVIOUS,
    Edit,
    InvalidOperands,
    OnnxNode,
    Step,
    UnsupportedUse,
    extended,
    sampled,
    spell,
    use,
)
from irprune.ops.onnx.norm import nothing
from irprune.ops.onnx.types import agree, broadcast, like, position
from irprune.ops.registry import Arg, amend
from irprune.ops.registry import op as declare

__all__ = ["resolved"]

op = partial(declare, family="shape")


def whole(value: Size) -> int:
    """``value``, which must be known. Raises UnsupportedUse where it is not."""
    if isinstance(value, Sym):
        raise UnsupportedUse("an axis or a step that is known only at run time")
    return value


def resolved(target: Sequence[Size], shape: Sequence[Size], allowzero: bool = False) -> list[Size]:
    """What a Reshape of ``shape`` to ``target`` gives: 0 copies a size, -1 is what is left. Raises
    UnsupportedUse where it does not fit."""
    out: list[Size] = []
    for k, s in enumerate(target):
        if isinstance(s, int) and s == 0 and not allowzero:
            if k >= len(shape):
                raise UnsupportedUse("a Reshape that copies a size which is not there")
            out.append(shape[k])
        else:
            out.append(s)
    if -1 not in [s for s in out if isinstance(s, int)]:
        return out
    at = next(k for k, s in enumerate(out) if isinstance(s, int) and s == -1)
    rest, parts = out[:at] + out[at + 1 :], list(shape)
    for s in list(rest):  # sizes on both sides cancel, which keeps expressions short
        twin = next(
            (
                k
                for k, w in enumerate(parts)
                if (isinstance(s, Sym) or isinstance(w, Sym)) and same(w, s)
            ),
            None,
        )
        if twin is not None:
            del parts[twin]
            rest.remove(s)
    over, under = product(parts), product(rest)
    if probe_of(under) == 0:
        raise UnsupportedUse("a Reshape of an empty tensor with a size to be found")
    if probe_of(over) % probe_of(under):
        raise (InvalidOperands if is_static((over, under)) else UnsupportedUse)(
            f"a Reshape of {[str(s) for s in shape]} to {[str(s) for s in target]}"
        )
    out[at] = over // under
    return out


def _reshape(node: OnnxNode) -> Step:
    target = node.moved("shape", 1, 5)
    shape = resolved(target or [], node.shape(), bool(node.attrs.get("allowzero", 0)))
    if is_static((*node.shape(), *shape)) and product(shape) != product(node.shape()):
        raise InvalidOperands(f"{list(node.shape())} cannot be reshaped to {shape}")
    return Step("reshape", (0,), {"shape": shape}, [like(node, shape=shape)])


def _write_reshape(edit: Edit, node: Node) -> None:
    """The target is left as it is where it still gives the wanted shape; a single dynamic size
    becomes -1."""
    wanted, shape, zero = (
        list(node.attrs["shape"]),
        node.operand(0).shape,
        bool(edit.attrs.get("allowzero", 0)),
    )
    now = edit.value(1)
    if now is not None:
        try:
            if agree(resolved(now, shape, zero), wanted):
                return
        except UnsupportedUse:
            pass
    edit.input(1, shortest(wanted, shape, zero, now))


def shortest(
    wanted: Sequence[Size], shape: Sequence[Size], allowzero: bool, now: Sequence[Size] | None
) -> list[Size]:
    """``wanted`` with copied sizes as 0 and one size as -1 where that spares arithmetic; the file's
    own 0 and -1 are kept."""
    out = list(wanted)
    if now is not None and len(now) == len(out):
        for mark in ((), (-1,), (0, -1)):
            tried = [
                n if isinstance(n, int) and n in mark else w
                for n, w in zip(now, wanted, strict=True)
            ]
            if not any(isinstance(s, Sym) for s in tried):
                return tried
    dynamic = [k for k, s in enumerate(out) if isinstance(s, Sym)]
    for k in list(dynamic):
        if not allowzero and k < len(shape) and same(shape[k], out[k]) and len(dynamic) > 1:
            out[k] = 0
            dynamic.remove(k)
    if len(dynamic) == 1:
        out[dynamic[0]] = -1
    return out


def _flatten(node: OnnxNode) -> Step:
    x, axis = node.shape(), node.attrs.get("axis", 1)
    axis = axis + len(x) if axis < 0 else axis
    shape = [product(x[:axis]), product(x[axis:])]
    return Step("reshape", (0,), {"shape": shape}, [like(node, shape=shape)])


spell("reshape", "Reshape", read=_reshape, write=_write_reshape)
spell("reshape", "Flatten", read=_flatten, write=nothing)


def _transpose(node: OnnxNode) -> Step:
    x = node.shape()
    order = list(node.attrs.get("perm", range(len(x))[::-1]))
    return Step("permute", (0,), {"dims": order}, [like(node, shape=tuple(x[d] for d in order))])


spell("permute", "Transpose", read=_transpose)


def _unsqueeze(node: OnnxNode) -> list[Step]:
    """One step per dimension, from the front: positions count in the result."""
    dims = node.moved("axes", 1, 13) or []
    shape = list(node.shape())
    rank = len(shape) + len(dims)
    steps: list[Step] = []
    for d in sorted(position(int(d), rank) for d in dims):  # type: ignore[arg-type]
        shape.insert(d, 1)
        steps.append(
            Step("unsqueeze", (PREVIOUS if steps else 0,), {"dim": d}, [like(node, shape=shape)])
        )
    return steps or [Step("identity", (0,), {}, [like(node)])]


def _squeeze(node: OnnxNode) -> list[Step]:
    """One step per dimension, from the back."""
    shape = list(node.shape())
    dims = node.moved("axes", 1, 13)
    if dims is None:
        dims = [k for k, s in enumerate(shape) if s == 1]
    steps: list[Step] = []
    for d in sorted((position(int(d), len(shape)) for d in dims), reverse=True):  # type: ignore[arg-type]
        del shape[d]
        steps.append(
            Step("squeeze", (PREVIOUS if steps else 0,), {"dim": d}, [like(node, shape=shape)])
        )
    return steps or [Step("identity", (0,), {}, [like(node)])]


def _write_squeeze(edit: Edit, *nodes: Node) -> None:
    """A dimension that is cut down to one index stays: those that leave are named."""
    if all(n.op == "identity" for n in nodes):
        edit.become("Identity")
    elif edit.attrs.get("axes") is None and not edit.given(1):
        dims = [
            d
            for n in nodes
            if n.op == "squeeze"
            for d in (n.attrs["dim"] if isinstance(n.attrs["dim"], list) else [n.attrs["dim"]])
        ]
        edit.moved("axes", 1, 13, sorted(dims))


spell(("unsqueeze", "identity"), "Unsqueeze", read=_unsqueeze, write=nothing)
spell(("squeeze", "identity"), "Squeeze", read=_squeeze, write=_write_squeeze)


def _expand(node: OnnxNode) -> Step:
    x, target = node.shape(), node.sizes(1) or []
    shape = broadcast((x, target))
    return Step("expand", (0,), {"shape": list(shape)}, [like(node, shape=shape)])


def _write_expand(edit: Edit, node: Node) -> None:
    wanted, shape, now = list(node.attrs["shape"]), node.operand(0).shape, edit.value(1)
    if now is not None:
        try:
            if agree(broadcast((shape, now)), wanted):
                return
        except UnsupportedUse:
            pass
    shift = len(wanted) - len(shape)
    edit.input(
        1, [1 if k >= shift and same(shape[k - shift], s) else s for k, s in enumerate(wanted)]
    )


spell("expand", "Expand", read=_expand, write=_write_expand)


def _tile(node: OnnxNode) -> Step:
    x, times = node.shape(), node.sizes(1) or []
    return Step(
        "repeat",
        (0,),
        {"repeats": times},
        [like(node, shape=tuple(s * t for s, t in zip(x, times, strict=True)))],
    )


def _write_tile(edit: Edit, node: Node) -> None:
    edit.input(1, node.attrs["repeats"])


spell("repeat", "Tile", read=_tile, write=_write_tile)

# -- joining and cutting ---------------------------------------------------------------------------


def _concat(node: OnnxNode) -> Step:
    rank = node.rank()
    dim = position(node.attrs["axis"], rank)
    total: Size = 0
    for i in range(len(node.types)):
        total = total + node.shape(i)[dim]
    shape = [
        next(
            (
                s[k]
                for s in (node.shape(i) for i in range(len(node.types)))
                if isinstance(s[k], int)
            ),
            node.shape(0)[k],
        )
        for k in range(rank)
    ]
    shape[dim] = total
    return Step("cat", None, {"dim": dim}, [like(node, shape=shape)])


spell("cat", "Concat", read=_concat)


def _split(node: OnnxNode) -> Step:
    x = node.shape()
    dim = position(node.attrs.get("axis", 0), len(x))
    sizes = node.moved("split", 1, 13)
    count = node.results
    if sizes is None:
        if isinstance(x[dim], Sym):
            raise UnsupportedUse("a Split of a dynamic size into equal parts")
        each = -(-probe_of(x[dim]) // count)
        sizes = [*[each] * (count - 1), probe_of(x[dim]) - each * (count - 1)]
    types = [like(node, shape=(*x[:dim], s, *x[dim + 1 :])) for s in sizes]
    return Step("split", (0,), {"split_sizes": sizes, "dim": dim}, types)


def _write_split(edit: Edit, node: Node) -> None:
    """Equal parts need not stay equal: explicit sizes take the place of ``num_outputs``."""
    sizes = node.attrs["split_sizes"]
    if edit.opset < 13:
        if "split" in edit.attrs or len(set(map(str, sizes))) > 1:
            edit.moved("split", 1, 13, sizes)
        return
    if not edit.given(1):
        total, count = probe_of(node.operand(0).shape[node.attrs["dim"]]), len(sizes)
        each = -(-total // count)
        even = [each] * (count - 1) + [total - each * (count - 1)]
        if [probe_of(s) for s in sizes] == even and (edit.opset >= 18 or even[-1] == each):
            return
        edit.attr("num_outputs", None)
    edit.moved("split", 1, 13, sizes)


spell("split", "Split", read=_split, write=_write_split)


def _bounds(size: Size, start: Size, end: Size, step: int) -> tuple[Size, Size, Size]:
    """Start, end and length of a slice as ONNX clamps them, symbols where a bound is one. Raises
    UnsupportedUse where no expression says it."""
    if all(isinstance(v, int) for v in (size, start, end)):
        last = None if step < 0 and int(end) < -int(size) else int(end)  # type: ignore[arg-type]
        clamped = slice(int(start), last, step).indices(int(size))  # type: ignore[arg-type]
        return clamped[0], clamped[1], len(range(clamped[0], clamped[1], step))
    first = start + size if isinstance(start, int) and start < 0 else start
    stop = (
        size
        if (isinstance(end, int) and end >= 2**31 - 1) or same(end, size)
        else end + size
        if isinstance(end, int) and end < 0
        else end
    )
    if step != 1:
        if step > 0 and first == 0 and same(stop, size):
            return first, stop, (size + (step - 1)) // step
        raise UnsupportedUse("a strided slice of a dynamic size")
    if isinstance(size, Sym) and isinstance(stop, int) and isinstance(first, int):
        if not 0 <= first <= stop <= size.probe:
            raise UnsupportedUse(f"a slice {first}:{stop} of a dynamic size")
        # As long as it says, unless the tensor is shorter
        return (
            first,
            stop,
            Sym.of("-", Sym.of("min", size, stop), first),
        )
    length = stop - first
    if probe_of(length) < 0:
        raise UnsupportedUse("a slice whose bounds cross")
    return first, stop, length


def _slice(node: OnnxNode) -> list[Step]:
    x = node.shape()
    if node.opset < 10:
        starts, ends = list[Size](node.attrs["starts"]), list[Size](node.attrs["ends"])
        dims, strides = (
            list[Size](node.attrs.get("axes", range(len(starts)))),
            list[Size]([1] * len(starts)),
        )
    else:
        starts, ends = node.sizes(1) or [], node.sizes(2) or []
        dims = (node.sizes(3) or []) if node.has(3) else [*range(len(starts))]
        strides = (node.sizes(4) or []) if node.has(4) else [1] * len(starts)
    shape, steps = list(x), list[Step]()
    for d, start, end, step in zip(dims, starts, ends, strides, strict=True):
        d, step = position(whole(d), len(x)), whole(step)
        first, stop, length = _bounds(x[d], start, end, step)
        shape[d] = length
        if step < 0 and not (isinstance(first, int) and isinstance(stop, int)):
            raise UnsupportedUse("a slice backwards over a dynamic size")
        kind = [like(node, shape=tuple(shape))]
        if step < 0:  # the same elements forwards, then turned around
            last = int(first) + (int(probe_of(length)) - 1) * step  # type: ignore[arg-type]
            first, stop, step = (last, int(first) + 1, -step) if probe_of(length) else (0, 0, 1)  # type: ignore[arg-type]
            back = [Step("flip", (PREVIOUS,), {"dims": [d]}, kind)]
        else:
            back = []
        attrs = {"dim": d, "start": first, "end": stop, "step": step}
        steps += [Step("slice", (PREVIOUS if steps else 0,), attrs, kind), *back]
    return steps or [Step("identity", (0,), {}, [like(node)])]


def _write_slice(edit: Edit, *nodes: Node) -> None:
    """Only bounds of dimensions that shrink are written anew."""
    nodes = tuple(n for n in nodes if n.op == "slice")  # a flip turns around what stays
    if not nodes:
        return
    changed = [
        n.operand(0).shape[n.attrs["dim"]] != was
        for n, was in zip(nodes, edit.sizes(0, [n.attrs["dim"] for n in nodes]), strict=True)
    ]
    for i, name, key in ((1, "starts", "start"), (2, "ends", "end")):
        now = edit.value(i) if edit.opset >= 10 else edit.attrs[name]
        if now is None:
            continue
        made = [n.attrs[key] if c else v for n, c, v in zip(nodes, changed, now, strict=True)]
        if not agree(made, now):
            edit.moved(name, i, 10, made)


spell(("slice", "flip", "identity"), "Slice", read=_slice, write=_write_slice)


def _pad(node: OnnxNode) -> Step:
    """Torch counts from the last dimension, before and after; ONNX first all befores, then all
    afters."""
    rank = node.rank()
    mode = node.attrs.get("mode", "constant")
    pads = (
        list(node.attrs.get("pads", node.attrs.get("paddings", ())))
        if node.opset < 11
        else node.sizes(1) or []
    )
    value, filled = node.attrs.get("value", 0.0), False
    if node.opset >= 11 and node.has(2):
        given = node.constant(2)
        filled = given is None
        value = given.item() if given is not None and given.size else 0.0
    dims = list(range(rank))
    if node.opset >= 18 and node.has(3):
        dims = [position(int(d), rank) for d in node.sizes(3) or []]  # type: ignore[arg-type]
    before, after = [0] * rank, [0] * rank  # type: list[Size], list[Size]
    for k, d in enumerate(dims):
        before[d], after[d] = pads[k], pads[len(dims) + k]
    flat = [p for d in range(rank - 1, -1, -1) for p in (before[d], after[d])]
    shape = tuple(s + b + a for s, b, a in zip(node.shape(), before, after, strict=True))
    if mode != "constant":
        return Step("pad", (0,), {"pad": flat, "mode": mode}, [like(node, shape=shape)])
    if filled:
        return Step("pad", (0, 2), {"pad": flat, "mode": "constant"}, [like(node, shape=shape)])
    return Step(
        "pad", (0,), {"pad": flat, "mode": "constant", "value": value}, [like(node, shape=shape)]
    )


def _plain_pad(node: Node) -> str:
    """torch reflects and repeats only at the last dimensions, and pads with a number alone."""
    plain = node.attrs.get("mode", "constant") == "constant" and not node.has(1)
    return "aten.pad.default" if plain else ""


def _write_pad(edit: Edit, node: Node) -> None:
    flat, rank = node.attrs["pad"], node.operand(0).rank
    before, after = (
        [flat[2 * (rank - 1 - d)] for d in range(rank)],
        [flat[2 * (rank - 1 - d) + 1] for d in range(rank)],
    )
    dims = edit.value(3) if edit.opset >= 18 and edit.given(3) else None
    order = [position(int(d), rank) for d in dims] if dims is not None else list(range(rank))  # type: ignore[arg-type]
    made = [before[d] for d in order] + [after[d] for d in order]
    now = edit.value(1) if edit.opset >= 11 else list(edit.attrs.get("pads", ()))
    if now is None or not agree(made, now):
        edit.moved("pads", 1, 11, made)


extended("pad", "pad_by")
amend("pad", call=_plain_pad)
spell("pad", "Pad", read=_pad, write=_write_pad)


def _trilu(node: OnnxNode) -> Step:
    k = node.given(1)
    attrs = {"upper": bool(node.attrs.get("upper", 1)), "diagonal": 0 if k is None else int(k)}
    return Step("triangle", (0,), attrs, [like(node)])


amend("triangle", call=lambda node: f"aten.tri{'u' if node.attrs['upper'] else 'l'}.default")
spell("triangle", "Trilu", "com.microsoft::Trilu", read=_trilu)

# -- samples ---------------------------------------------------------------------------------------

_X = Arg((2, 6, 5))


def _list(*values: int) -> Arg:
    return Arg((len(values),), "i64", values=values)


sampled("Reshape", use(_X, _list(2, -1), free=3), use(_X, _list(0, 2, 3, 5), free=4))
sampled("Reshape", use(_X, _list(12, 5), free=3), use(Arg((12, 5)), _list(2, 6, 5), free=3))
sampled("Flatten", use(_X, free=3), use(_X, free=3, axis=2))
sampled("Transpose", use(_X, free=3), use(_X, free=3, perm=[1, 0, 2]))
sampled("Unsqueeze", use(_X, _list(0, -1), free=3), use(_X, free=3, opset=11, axes=[1]))
sampled("Unsqueeze", use(_X, Arg((0,), "i64", values=()), free=3))
sampled("Squeeze", use(Arg((2, 1, 5, 1)), _list(1, -1), free=2), use(Arg((2, 1, 5, 1)), free=2))
sampled("Squeeze", use(Arg((2, 1, 5)), free=2, opset=11, axes=[1]), use(_X, free=3))
sampled("Expand", use(Arg((6, 1)), _list(2, 6, 5), free=3), use(_X, _list(1, 1), free=3))
sampled("Tile", use(_X, _list(1, 2, 1), free=4), use(_X, _list(3, 1, 1), free=4))
sampled("Concat", use(_X, Arg((2, 4, 5)), free=4, axis=1), use(_X, free=3, axis=-1))
sampled(
    "Split",
    use(_X, _list(2, 4), free=4, axis=1, read=(0, 1)),
    use(_X, free=4, axis=1, read=(0, 1)),
    use(_X, free=4, opset=11, axis=1, split=[2, 4], read=(0, 1)),
    use(_X, free=5, opset=18, axis=1, num_outputs=3, read=(0, 1, 2)),
)
sampled(
    "Slice",
    use(_X, _list(1), _list(5), _list(1), free=3),
    use(_X, _list(1, 0), _list(-1, 3), _list(1, 2), free=4),
    use(_X, _list(0), _list(6), _list(1), _list(2), free=3),
    use(_X, _list(-1), _list(-100), _list(1), _list(-1), free=2),
    use(_X, free=3, opset=9, starts=[1], ends=[5], axes=[1]),
    use(_X, _list(), _list(), _list(), free=3),
)
sampled(
    "Pad",
    use(_X, _list(0, 1, 0, 0, 2, 0), free=4),
    use(_X, _list(0, 1, 0, 0, 2, 0), Arg((), values=(0.5,)), free=4),
    use(_X, _list(0, 1, 0, 0, 2, 0), Arg(()), free=4),
    use(_X, _list(0, 0, 1, 0, 0, 2), free=2, mode="reflect"),
    use(_X, _list(0, 0, 1, 0, 0, 2), free=2, mode="edge"),
    use(_X, _list(1, 2), None, _list(1), free=4, opset=18),
    use(_X, free=4, opset=10, pads=[0, 1, 0, 0, 2, 0]),
)
_K = Arg((), "i64", values=(1,))
sampled(
    "Trilu com.microsoft::Trilu",
    use(Arg((3, 4, 5)), _K, free=1),
    use(Arg((3, 4, 5)), free=1, upper=0),
)

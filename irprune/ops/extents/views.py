"""Operators that regroup, move, repeat or take out dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from irprune.ir.graph import Node
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Size, Sym
from irprune.ops.extents import extents
from irprune.ops.extents.helpers import broadcast, dims_of, index_of, present

__all__: list[str] = []


def _filled(shape: Sequence[Size], wanted: Sequence[Size], sizes: OpenSizes) -> tuple[Size, ...]:
    """``wanted`` with the size that is -1 worked out; the number of elements is that of
    ``shape``."""
    given = [s for s in wanted if isinstance(s, Sym) or s != -1]
    before, after = _uncommon(list(shape), given)
    left, right = sizes.product(before), sizes.product(after)
    if len(given) == len(wanted):
        sizes.meet(left, right)
        return tuple(wanted)
    missing = left if right == 1 else sizes.of("//", left, right)
    return tuple(missing if not isinstance(s, Sym) and s == -1 else s for s in wanted)


def _uncommon(a: list[Size], b: list[Size]) -> tuple[list[Size], list[Size]]:
    """``a`` and ``b`` without the sizes that stand in both."""
    rest = list(b)
    left = []
    for s in a:
        if s in rest:
            rest.remove(s)
        else:
            left.append(s)
    return left, rest


@extents("reshape")
def reshape(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The sizes that are given."""
    return [_filled(node.operand(0).shape, node.attrs["shape"], sizes)]


@extents("reshape_as")
def reshape_as(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Those of the other operand."""
    return [_filled(node.operand(0).shape, node.operand(1).shape, sizes)]


@extents("flatten")
def flatten(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Dimensions from start to end become their product."""
    shape = node.operand(0).shape
    if not shape:
        return [(1,)]
    start = index_of(node.attrs.get("start_dim", 0), len(shape))
    end = index_of(node.attrs.get("end_dim", -1), len(shape))
    return [(*shape[:start], sizes.product(shape[start : end + 1]), *shape[end + 1 :])]


@extents("unflatten")
def unflatten(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """A dimension becomes several."""
    shape = node.operand(0).shape
    d = index_of(node.attrs["dim"], len(shape))
    return [(*shape[:d], *_filled([shape[d]], node.attrs["sizes"], sizes), *shape[d + 1 :])]


@extents("permute")
def permute(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Dimensions in another order."""
    shape = node.operand(0).shape
    return [tuple(shape[d] for d in node.attrs["dims"])]


@extents("transpose")
def transpose(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Two dimensions change places."""
    shape = list(node.operand(0).shape)
    if shape:
        a, b = (index_of(node.attrs[k], len(shape)) for k in ("dim0", "dim1"))
        shape[a], shape[b] = shape[b], shape[a]
    return [tuple(shape)]


@extents("movedim")
def movedim(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Dimensions move to other places, the rest keep their order."""
    shape = node.operand(0).shape
    source, target = node.attrs["source"], node.attrs["destination"]
    if not isinstance(source, (list, tuple)):
        source, target = [source], [target]
    at = {
        index_of(t, len(shape)): index_of(s, len(shape))
        for s, t in zip(source, target, strict=True)
    }
    rest = iter(d for d in range(len(shape)) if d not in at.values())
    return [tuple(shape[at[d] if d in at else next(rest)] for d in range(len(shape)))]


@extents("t", "mT")
def reverse(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The dimensions backwards, or the last two swapped."""
    shape = node.operand(0).shape
    if node.op == "t" or len(shape) < 2:
        return [tuple(reversed(shape))]
    return [(*shape[:-2], shape[-1], shape[-2])]


@extents("unsqueeze")
def unsqueeze(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """A dimension of size 1 more."""
    shape = list(node.operand(0).shape)
    shape.insert(index_of(node.attrs["dim"], len(shape) + 1), 1)
    return [tuple(shape)]


@extents("squeeze")
def squeeze(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Dimensions of size 1 go; whether an open one is of size 1 is decided here."""
    shape = node.operand(0).shape
    asked = dims_of(node.attrs.get("dim"), len(shape))
    return [tuple(s for d, s in enumerate(shape) if d not in asked or not _is_one(s, sizes))]


def _is_one(s: Size, sizes: OpenSizes) -> bool:
    return sizes.decided(s, "==", 1)


@extents("expand")
def expand(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The sizes that are given, -1 for those of the operand."""
    shape, wanted = node.operand(0).shape, node.attrs["shape"]
    lead = len(wanted) - len(shape)
    out: list[Size] = []
    for d, w in enumerate(wanted):
        if d < lead:
            out.append(w)
        elif not isinstance(w, Sym) and w == -1:
            out.append(shape[d - lead])
        else:
            out.append(sizes.broadcast(shape[d - lead], w) if shape[d - lead] != w else w)
    return [tuple(out)]


@extents("expand_as")
def expand_as(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The sizes of the other operand."""
    return [broadcast((v.shape for v in present(node)), sizes)]


@extents("broadcast_tensors")
def broadcast_tensors(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """All operands' shapes, stretched to each other."""
    return [broadcast((v.shape for v in present(node)), sizes)] * len(node.outputs)


@extents("repeat")
def repeat(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Each dimension as often as is said."""
    shape, times = list(node.operand(0).shape), list(node.attrs["repeats"])
    width = max(len(shape), len(times))
    shape[:0] = [1] * (width - len(shape))
    times[:0] = [1] * (width - len(times))
    return [tuple(sizes.product(pair) for pair in zip(shape, times, strict=True))]


@extents("repeat_interleave")
def repeat_interleave(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """One dimension as often as is said."""
    shape, times = node.operand(0).shape, node.attrs["repeats"]
    if node.attrs.get("dim") is None:
        return [(sizes.product((*shape, times)),)]
    d = index_of(node.attrs["dim"], len(shape))
    return [(*shape[:d], sizes.product((shape[d], times)), *shape[d + 1 :])]


# -- taking out ------------------------------------------------------------------------------------


def _place(x: Any, size: Size, sizes: OpenSizes) -> Any:
    """A bound of a slice as a position between 0 and ``size``."""
    if not isinstance(x, Sym) and not isinstance(size, Sym):
        return min(max(x + size if x < 0 else x, 0), size)
    if not isinstance(x, Sym):
        if x == 0:
            return 0
        if x >= 2**62:
            return size
        if x > 0:
            return sizes.of("min", x, size)
        return sizes.of("max", sizes.of("+", size, x), 0)
    if sizes.value(x) < 0:
        sizes.decided(x, "<", 0)
        return sizes.of("max", sizes.of("+", size, x), 0)
    sizes.decided(x, ">=", 0)
    return sizes.of("min", x, size)


@extents("slice")
def slice_(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """From start to end, both held within the dimension."""
    shape = node.operand(0).shape
    d = index_of(node.attrs.get("dim", 0), len(shape))
    start, end, step = (node.attrs.get(k) for k in ("start", "end", "step"))
    size = shape[d]
    first = _place(0 if start is None else start, size, sizes)
    last = size if end is None else _place(end, size, sizes)
    length: Any = last if first == 0 else sizes.of("max", sizes.of("-", last, first), 0)
    if step not in (None, 1):
        length = sizes.of("//", sizes.of("+", length, sizes.of("-", step, 1)), step)
    return [(*shape[:d], length, *shape[d + 1 :])]


@extents("narrow")
def narrow(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """As many as are asked for."""
    shape = node.operand(0).shape
    d = index_of(node.attrs["dim"], len(shape))
    return [(*shape[:d], node.attrs["length"], *shape[d + 1 :])]


@extents("select")
def select(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """One dimension less."""
    shape = node.operand(0).shape
    d = index_of(node.attrs.get("dim", 0), len(shape))
    return [(*shape[:d], *shape[d + 1 :])]


@extents("unbind")
def unbind(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """A result for each index: their number is the size."""
    shape = node.operand(0).shape
    d = index_of(node.attrs.get("dim", 0), len(shape))
    sizes.fixed(shape[d])
    return [(*shape[:d], *shape[d + 1 :])] * len(node.outputs)


@extents("split")
def split(node: Node, sizes: OpenSizes) -> list[tuple[Size | None, ...]]:
    """Pieces: their sizes are given, or follow from their number or from their size."""
    shape, attrs, count = node.operand(0).shape, node.attrs, len(node.outputs)
    d = index_of(attrs.get("dim", 0), len(shape))
    size: Any = shape[d]
    pieces: list[Any]
    if "split_sizes" in attrs:
        pieces = list(attrs["split_sizes"])
        sizes.meet(size, sizes.sum(pieces))
    elif "indices" in attrs:
        bounds = [0, *(_place(i, size, sizes) for i in attrs["indices"]), size]
        pieces = [_difference(b, a, sizes) for a, b in pairwise(bounds)]
    elif "sections" in attrs:
        base, rest = sizes.of("//", size, count), sizes.of("%", size, count)
        pieces = [
            sizes.of("+", base, sizes.of("min", sizes.of("max", sizes.of("-", rest, k), 0), 1))
            for k in range(count)
        ]
    else:
        step: Any = attrs.get("split_size")
        if step is None:
            step = sizes.of("//", sizes.of("+", size, attrs["chunks"] - 1), attrs["chunks"])
        # the last piece has at least one: else there would be another number of pieces
        sizes.decided(size, ">", sizes.product((step, count - 1)))
        sizes.decided(size, "<=", sizes.product((step, count)))
        pieces = [step] * (count - 1)
        pieces.append(_difference(size, sizes.product((step, count - 1)), sizes))
    return [(*shape[:d], p, *shape[d + 1 :]) for p in pieces]


@extents("hsplit", "vsplit", "dsplit")
def split_along(node: Node, sizes: OpenSizes) -> list[tuple[Size | None, ...]]:
    """Pieces of a dimension that the name says, whose size they fix."""
    shape = node.operand(0).shape
    d = {"vsplit": 0, "dsplit": 2}.get(node.op, 0 if len(shape) == 1 else 1)
    sizes.fixed(shape[d])
    return [(*shape[:d], v.shape[d], *shape[d + 1 :]) for v in node.outputs]


def _difference(a: Any, b: Any, sizes: OpenSizes) -> Any:
    return a if b == 0 else sizes.of("-", a, b)


@extents("glu")
def glu(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Half of a dimension."""
    shape = node.operand(0).shape
    d = index_of(node.attrs.get("dim", -1), len(shape))
    return [(*shape[:d], sizes.of("//", shape[d], 2), *shape[d + 1 :])]


@extents("unfold")
def unfold(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Windows along a dimension; their own size comes last."""
    shape, attrs = node.operand(0).shape, node.attrs
    d, window = index_of(attrs["dimension"], len(shape)), attrs["size"]
    left = sizes.of("//", sizes.of("-", shape[d], window), attrs["step"])
    return [(*shape[:d], sizes.of("+", left, 1), *shape[d + 1 :], window)]


@extents("rot90")
def rot90(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Two dimensions change places at every other turn."""
    shape = list(node.operand(0).shape)
    a, b = (index_of(d, len(shape)) for d in node.attrs.get("dims") or (0, 1))
    if node.attrs.get("k", 1) % 2:
        shape[a], shape[b] = shape[b], shape[a]
    return [tuple(shape)]


@extents("view_as_complex", "view_as_real")
def pairs(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """A last dimension of two goes, or comes."""
    shape = node.operand(0).shape
    return [shape[:-1] if node.op == "view_as_complex" else (*shape, 2)]


@extents("pixel_shuffle", "pixel_unshuffle")
def pixels(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Channels become positions, or the other way round."""
    *lead, c, h, w = node.operand(0).shape
    up = node.op == "pixel_shuffle"
    r = node.attrs["upscale_factor" if up else "downscale_factor"]
    inner = sizes.of("//" if up else "*", c, r * r)
    outer = [sizes.of("*" if up else "//", s, r) for s in (h, w)]
    return [(*lead, inner, *outer)]


@extents("diagonal")
def diagonal(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The two dimensions become the length of their diagonal, which is last."""
    shape = node.operand(0).shape
    a = index_of(node.attrs.get("dim1", 0), len(shape))
    b = index_of(node.attrs.get("dim2", 1), len(shape))
    offset = node.attrs.get("offset", 0)
    one: Any = shape[a] if offset >= 0 else sizes.of("+", shape[a], offset)
    other: Any = sizes.of("-", shape[b], offset) if offset > 0 else shape[b]
    length = one if one == other else sizes.of("max", sizes.of("min", one, other), 0)
    return [(*(s for d, s in enumerate(shape) if d not in (a, b)), length)]


@extents("atleast_1d", "atleast_2d", "atleast_3d")
def at_least(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Dimensions of size 1 are added up to a rank."""
    rank = int(node.op[-2])
    out = []
    for v in present(node):
        shape = v.shape
        if rank == 3 and len(shape) in (1, 2):
            shape = (1, *shape, 1) if len(shape) == 1 else (*shape, 1)
        out.append((*[1] * (rank - len(shape)), *shape))
    return out

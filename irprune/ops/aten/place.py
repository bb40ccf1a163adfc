"""Operators that move indices from one dimension to another, or in which the place of an index
matters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node
from irprune.ir.size import Sym
from irprune.ops.aten.shape import position
from irprune.ops.registry import Arg, Cut, Rule, Sample, Unsupported
from irprune.ops.registry import op as declare

op = partial(declare, family="place")

_X = Arg((2, 6, 5))

# -- between channels and positions ----------------------------------------------------------------


def _pixel_shuffle(axes: Axes, node: Node) -> None:
    """Channels are c × r × r, rows become h × r and columns w × r."""
    *lead, channels, h, w = axes.of(node.operand(0))
    r = node.attrs["upscale_factor"]
    c, square = axes.split(channels, channels.size // (r * r))
    down, across = axes.split(square, r) if square is not None else (None, None)
    if c is None or down is None or across is None:
        raise Unsupported("pixel shuffle of channels that are grouped otherwise")
    for a in (down, across):
        axes.freeze(a, "upscale factor")
    node.out.axes = (*lead, c, axes.product((h, down)), axes.product((w, across)))


def _pixel_unshuffle(axes: Axes, node: Node) -> None:
    *lead, c, rows, columns = axes.of(node.operand(0))
    r = node.attrs["downscale_factor"]
    h, down = axes.split(rows, rows.size // r)
    w, across = axes.split(columns, columns.size // r)
    if h is None or down is None or w is None or across is None:
        raise Unsupported("pixel unshuffle of positions that are grouped otherwise")
    for a in (down, across):
        axes.freeze(a, "downscale factor")
    node.out.axes = (*lead, axes.product((c, down, across)), h, w)


op(
    "pixel_shuffle",
    _pixel_shuffle,
    aten=("pixel_shuffle.default",),
    samples=(
        Sample((Arg((2, 12, 3, 5)),), {"upscale_factor": 2}, free=4),
        Sample((Arg((18, 3, 5)),), {"upscale_factor": 3}, free=3),
        Sample((Arg((2, 4, 3, 5)),), {"upscale_factor": 2}, free=3),
    ),
    rearranges=True,
)
op(
    "pixel_unshuffle",
    _pixel_unshuffle,
    aten=("pixel_unshuffle.default",),
    samples=(
        Sample((Arg((2, 3, 4, 10)),), {"downscale_factor": 2}, free=4),
        Sample((Arg((3, 6, 9)),), {"downscale_factor": 3}, free=3),
    ),
    rearranges=True,
)


def _channel_shuffle(axes: Axes, node: Node) -> None:
    """Channels g × c become c × g."""
    n, channels, *rest = axes.of(node.operand(0))
    g, c = axes.split(channels, node.attrs["groups"])
    if g is None or c is None:
        raise Unsupported("channel shuffle of channels that are grouped otherwise")
    node.out.axes = (n, axes.product((c, g)), *rest)


def _channel_shuffle_resize(node: Node, cut: Cut) -> None:
    """The groups that keep a channel; all that do keep the same number."""
    channels = (node.operand(0).axes or ())[1]
    per_group = int(channels.size) // int(node.attrs["groups"])  # type: ignore[arg-type]
    node.attrs["groups"] = len({int(k) // per_group for k in cut.kept(channels)})


op(
    "channel_shuffle",
    _channel_shuffle,
    resize=_channel_shuffle_resize,
    aten=("channel_shuffle.default", "native_channel_shuffle.default"),
    samples=(Sample((Arg((2, 6, 3, 5)),), {"groups": 2}, free=5),),
    rearranges=True,
)


def _unfold(axes: Axes, node: Node) -> None:
    """Windows over one dimension, their inside as a new last one. Windows that do not overlap are a
    product; the others freeze it."""
    own = list(axes.of(node.operand(0)))
    if not own:
        raise Unsupported("windows over a scalar")
    d, size, step = (
        position(node.attrs["dimension"], len(own)),
        node.attrs["size"],
        node.attrs["step"],
    )
    a, count = own[d], node.out.shape[d]
    windows: Axis | None = None
    inside: Axis | None = None
    if size == step and not isinstance(a.size, Sym) and not isinstance(count, Sym):
        rest = a.size - count * size
        windows, inside = axes.split(axes.cut(a, [count * size, rest])[0] if rest else a, count)
        if inside is not None and rest:
            axes.freeze(inside, "windows with a rest")  # of smaller windows there would be one more
    if windows is None or inside is None:
        axes.freeze(a, "windows that overlap")
        windows, inside = (
            axes.frozen(count, "windows that overlap"),
            axes.frozen(size, "windows that overlap"),
        )
    own[d] = windows
    node.out.axes = (*own, inside)


def _unfold_resize(node: Node, cut: Cut) -> None:
    *_, inside = node.out.axes or ()
    if cut.changes(inside):
        node.attrs["size"] = node.attrs["step"] = cut.size(inside)


op(
    "unfold",
    _unfold,
    resize=_unfold_resize,
    aten=("unfold.default",),
    samples=(
        Sample((Arg((2, 8, 5)),), {"dimension": 1, "size": 3, "step": 1}, free=2),
        Sample((Arg((2, 6)),), {"dimension": -1, "size": 3, "step": 3}, free=3),
        Sample((Arg((2, 8)),), {"dimension": 1, "size": 3, "step": 3}, free=3),
        Sample((Arg((8,)),), {"dimension": 0, "size": 5, "step": 5}, free=1),
        Sample((Arg((2, 6)),), {"dimension": 1, "size": 6, "step": 6}, free=2),
    ),
    is_view=True,
    rearranges=True,
)

# -- where the order matters -----------------------------------------------------------------------


def _fixed(dims: Sequence[int] | str, reason: str) -> Rule:
    """A rule that passes every dimension but ``dims`` (or those in the attribute of that name),
    which freeze."""

    def rule(axes: Axes, node: Node) -> None:
        own = list(axes.of(node.operand(0)))
        for d in node.attrs[dims] if isinstance(dims, str) else dims:
            own[d] = _moved(axes, own[d], reason)
        node.out.axes = tuple(own)

    return rule


def _moved(axes: Axes, a: Axis, reason: str) -> Axis:
    """``a`` frozen, and the axis that its indices make in another order."""
    axes.freeze(a, reason)
    return axes.frozen(a.size, reason)


def _roll(axes: Axes, node: Node) -> None:
    """A shift moves what is dropped to another place; a shift by nothing does not."""
    own, dims = list(axes.of(node.operand(0))), node.attrs["dims"]
    for d, by in (
        zip(dims, node.attrs["shifts"], strict=True) if dims else ((k, 1) for k in range(len(own)))
    ):
        if by != 0:
            own[d] = _moved(axes, own[d], "shifted along")
    node.out.axes = tuple(own)


op(
    "roll",
    _roll,
    aten=("roll.default",),
    samples=(
        Sample((_X,), {"shifts": [1, -2], "dims": [0, -1]}, free=1),
        Sample((_X,), {"shifts": [3], "dims": []}, free=0),
        Sample((_X,), {"shifts": [0, 1], "dims": [1, 2]}, free=2),
    ),
    rearranges=True,
)
op(
    "flip",
    _fixed("dims", "put in reverse order"),
    aten=("flip.default",),
    samples=(Sample((_X,), {"dims": [-1]}, free=2), Sample((_X,), {"dims": [0, 1]}, free=1)),
    rearranges=True,
)
op(
    "fliplr",
    _fixed((1,), "put in reverse order"),
    aten=("fliplr.default",),
    samples=(Sample((_X,), free=2),),
    rearranges=True,
)
op(
    "flipud",
    _fixed((0,), "put in reverse order"),
    aten=("flipud.default",),
    samples=(Sample((_X,), free=2),),
    rearranges=True,
)


def _rot90(axes: Axes, node: Node) -> None:
    own = list(axes.of(node.operand(0)))
    i, j = node.attrs["dims"]
    if node.attrs["k"] % 4:
        own[i], own[j] = (_moved(axes, own[d], "put in reverse order") for d in (i, j))
    if node.attrs["k"] % 2:
        own[i], own[j] = own[j], own[i]
    node.out.axes = tuple(own)


op(
    "rot90",
    _rot90,
    aten=("rot90.default",),
    samples=(
        Sample((_X,), {"k": 1, "dims": [0, 1]}, free=1),
        Sample((_X,), {"k": 4, "dims": [0, -1]}, free=3),
        Sample((_X,), {"k": -2, "dims": [1, 2]}, free=1),
    ),
    rearranges=True,
)
op(
    "triangle",
    _fixed((-2, -1), "one side of the diagonal"),
    aten=("tril.default", "triu.default"),
    samples=(
        Sample((Arg((2, 4, 4)),), {"diagonal": 1}, free=1),
        Sample((Arg((4, 6)),), {"diagonal": 0}, free=0),
    ),
)

# -- the diagonal ----------------------------------------------------------------------------------


def _diagonal(axes: Axes, node: Node) -> None:
    """Both dimensions are one axis where the diagonal is the main one of a square; otherwise they
    freeze."""
    own = axes.of(node.operand(0))
    i, j = (position(node.attrs[k], len(own)) for k in ("dim1", "dim2"))
    rest = [a for k, a in enumerate(own) if k not in (i, j)]
    node.out.axes = (*rest, _along_diagonal(axes, node, own[i], own[j], node.attrs["offset"]))


def _along_diagonal(axes: Axes, node: Node, a: Axis, b: Axis, offset: int) -> Axis:
    if offset == 0 and a.size == b.size:
        axes.unify(a, b)
        return a
    axes.freeze(a, "a diagonal beside the main one")
    axes.freeze(b, "a diagonal beside the main one")
    return axes.frozen(node.out.shape[-1], "a diagonal beside the main one")


def _diag_embed(axes: Axes, node: Node) -> None:
    *rest, a = axes.of(node.operand(0))
    rank = node.out.rank
    i, j = (position(node.attrs[k], rank) for k in ("dim1", "dim2"))
    node.out.axes = tuple(_spread(axes, node, a, rest, {i, j}, node.attrs["offset"]))


def _spread(
    axes: Axes, node: Node, a: Axis, rest: list[Axis], square: set[int], offset: int
) -> list[Axis]:
    """The dimensions of a result that has ``a`` on a diagonal of the dimensions ``square`` and
    ``rest`` in the others."""
    lead, beside = iter(rest), "a diagonal beside the main one"
    if offset:
        axes.freeze(a, beside)
    return [
        (axes.frozen(s, beside) if offset else a) if k in square else next(lead)
        for k, s in enumerate(node.out.shape)
    ]


def _diag(axes: Axes, node: Node) -> None:
    own, offset = axes.of(node.operand(0)), node.attrs["diagonal"]
    if len(own) == 1:
        node.out.axes = tuple(_spread(axes, node, own[0], [], {0, 1}, offset))
    else:
        node.out.axes = (_along_diagonal(axes, node, own[0], own[1], offset),)


_MAIN = {"offset": 0, "dim1": -1, "dim2": 0}
op(
    "diagonal",
    _diagonal,
    aten={"diagonal.default": {}, "linalg_diagonal.default": {"A": "self"}},
    samples=(
        Sample((Arg((6, 5, 6)),), _MAIN, free=2),
        Sample((Arg((6, 5, 6)),), {**_MAIN, "offset": 1}, free=1),
        Sample((Arg((4, 5, 6)),), _MAIN, free=1),
    ),
    is_view=True,
    rearranges=True,
)
op(
    "diag_embed",
    _diag_embed,
    aten=("diag_embed.default",),
    samples=(
        Sample((Arg((2, 6)),), {"offset": 0, "dim1": 0, "dim2": -1}, free=2),
        Sample((Arg((2, 6)),), {"offset": -1, "dim1": 1, "dim2": 2}, free=1),
    ),
)
op(
    "diag",
    _diag,
    aten=("diag.default",),
    samples=(
        Sample((Arg((6,)),), {"diagonal": 0}, free=1),
        Sample((Arg((6,)),), {"diagonal": 2}, free=0),
        Sample((Arg((6, 6)),), {"diagonal": 0}, free=1),
        Sample((Arg((4, 6)),), {"diagonal": 0}, free=0),
    ),
)


def _memory(axes: Axes, node: Node) -> None:
    raise Unsupported("a view by strides in memory")


op(
    "as_strided",
    _memory,
    aten=("as_strided.default",),
    strides={"aten.as_strided.default": ""},
    samples=(
        Sample((Arg((4, 6)),), {"size": [3, 3], "stride": [6, 1], "storage_offset": 1}, free=0),
    ),
    is_view=True,
    rearranges=True,
)

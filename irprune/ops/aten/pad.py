"""Padding: along a dimension that may shrink, a sum with fresh axes of padded indices, which may
shrink too."""

from __future__ import annotations

from functools import partial

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node
from irprune.ir.size import Size, Sym, probe_of
from irprune.ops.aten.pool import image, spatial
from irprune.ops.registry import Arg, Cut, Sample
from irprune.ops.registry import op as declare

op = partial(declare, family="pad")

_X = Arg((2, 6, 5))


def _widths(node: Node) -> list[tuple[Size, Size]]:
    """Padding before and after each dimension; negative where it takes away."""
    rank, pad = node.operand(0).rank, list(node.attrs["pad"])
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    return [(0, 0)] * (rank - len(pairs)) + pairs[::-1]


def _padded(axes: Axes, a: Axis, before: Size, after: Size, size: Size) -> Axis:
    if before == 0 and after == 0:
        return a
    if (
        axes.is_frozen(a)
        or isinstance(a.size, Sym)
        or isinstance(before, Sym)
        or isinstance(after, Sym)
    ):
        axes.freeze(a, "padded dimension")
        return axes.frozen(size, "padded dimension")
    first, last = max(-before, 0), max(-after, 0)
    middle = axes.cut(a, [first, a.size - first - last, last])[1] if first or last else a
    return axes.sum((axes.leaf(max(before, 0)), middle, axes.leaf(max(after, 0))))


def _constant_pad(axes: Axes, node: Node) -> None:
    """What is padded is the same at every index, so any number of them may be dropped."""
    own = axes.of(node.operand(0))
    node.out.axes = tuple(
        _padded(axes, a, *w, s) for a, w, s in zip(own, _widths(node), node.out.shape, strict=True)
    )


def _reflected(axes: Axes, node: Node) -> None:
    """Reflecting, repeating and wrapping read the dimension's own indices."""
    own, widths = axes.of(node.operand(0)), _widths(node)
    for a, w in zip(own, widths, strict=True):
        if w != (0, 0):
            axes.freeze(a, f"padded by {node.attrs.get('mode', node.op)}")
    padded = (axes.frozen(s, "padded dimension") for s in node.out.shape)
    node.out.axes = tuple(
        a if w == (0, 0) else p for a, w, p in zip(own, widths, padded, strict=True)
    )


def _pad(axes: Axes, node: Node) -> None:
    (_constant_pad if node.attrs.get("mode", "constant") == "constant" else _reflected)(axes, node)


def _resize(node: Node, cut: Cut) -> None:
    """Kept indices before and after what stays are counted anew."""
    made: list[Size] = []
    for a, out, (before, after) in zip(
        node.operand(0).axes or (), node.out.axes or (), _widths(node), strict=True
    ):
        if (before, after) != (0, 0) and (cut.changes(a) or cut.changes(out)):
            before, after = _counted(a, out, before, cut), _counted(a, out, after, cut, last=True)
        made = [before, after, *made]
    node.attrs["pad"] = made[: len(node.attrs["pad"])]


def _counted(a: Axis, out: Axis, width: Size, cut: Cut, last: bool = False) -> int:
    """How many of the ``width`` outermost indices are kept: of the padded axis, or of the operand's
    where they are taken away."""
    longer = out if probe_of(width) > 0 else a
    end = probe_of(longer.size) - 1
    count = sum(bool((end - k if last else k) < abs(probe_of(width))) for k in cut.kept(longer))
    return count if longer is out else -count


op(
    "pad",
    _pad,
    resize=_resize,
    aten=("pad.default", "constant_pad_nd.default"),
    samples=(
        Sample((_X,), {"pad": [3, 2]}, free=5),
        Sample((_X,), {"pad": [0, 0, 4, 3]}, free=5),
        Sample((_X,), {"pad": [-2, 2, 0, -2]}, free=6),
        Sample((_X,), {"pad": [2, 3], "value": 7.0}, free=5, target="aten.constant_pad_nd.default"),
        Sample((_X,), {"pad": [1, 2], "mode": "reflect"}, free=2, target="aten.pad.default"),
        Sample((_X,), {"pad": [1, 2], "mode": "circular"}, free=2, target="aten.pad.default"),
    ),
)
for _d in (1, 2, 3):
    for _way in ("reflection", "replication"):
        op(
            f"{_way}_pad{_d}d",
            spatial(_d),
            aten=(f"{_way}_pad{_d}d.default",),
            samples=(Sample((image(_d, 4),), {"padding": [1, 2] * _d}, free=2),),
        )
op(
    "pad_circular",
    _reflected,
    aten=("_pad_circular.default",),
    samples=(Sample((_X,), {"pad": [1, 2]}, free=2),),
)

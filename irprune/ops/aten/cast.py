"""Operators that keep every element where it is: copies, changes of type, device and memory layout,
overwriting."""

from __future__ import annotations

from functools import partial

from irprune.ir.axis import Axes
from irprune.ir.dtype import is_integer
from irprune.ir.graph import Node
from irprune.ir.size import same
from irprune.ops.aten.elementwise import broadcast
from irprune.ops.registry import Arg, Sample, Unsupported, same_type
from irprune.ops.registry import op as declare

op = partial(declare, family="cast")

_X = Arg((2, 6, 5))
_Y = Arg((6, 1))

op(
    "identity",
    broadcast,
    idle=lambda node: True,
    onnx=("Identity",),
    samples=(Sample((_X,), free=3),),
    aten=(
        "contiguous.default",
        "alias.default",
        "clone.default",
        "lift_fresh_copy.default",
        "lift_fresh.default",
        "lift.default",
        "positive.default",
        "alias_copy.default",
    ),
    free=True,
    rearranges=True,
)


def _first(axes: Axes, node: Node) -> None:
    """The other operand gives its type and device alone."""
    node.out.axes = axes.of(node.operand(0))


def _casts_nothing(node: Node) -> bool:
    """An integer stays what it is. A floating-point type may be that of the whole model, which its
    user changes later: the cast stays."""
    return same_type(node) and (node.out.dtype == "bool" or is_integer(node.out.dtype))


op(
    "cast",
    broadcast,
    idle=_casts_nothing,
    aten=("to.dtype", "to.dtype_layout", "to.device", "_to_copy.default"),
    samples=(
        Sample((_X,), {"dtype": "f64"}, free=3),
        Sample((_X,), {"dtype": "i64"}, free=3),
        Sample((_X,), {"dtype": "bool"}, free=3, target="aten.to.dtype_layout"),
        Sample((_X,), {"dtype": "i32", "device": "cpu"}, free=3, target="aten.to.device"),
    ),
    free=True,
    rearranges=True,
)
op(
    "cast_like",
    _first,
    aten=("type_as.default", "to.other"),
    onnx=("CastLike",),
    samples=(Sample((_X, Arg((3,), "i64", 0, 3)), free=4),),
    free=True,
    rearranges=True,
)


def _bits(axes: Axes, node: Node) -> None:
    own = axes.of(node.operand(0))
    if own and not same(own[-1].size, node.out.shape[-1]):
        raise Unsupported("elements read as others of another width")
    node.out.axes = own


op(
    "view_dtype",
    _bits,
    aten=("view.dtype",),
    strides={"aten.view.dtype": ""},
    samples=(Sample((_X,), {"dtype": "i64"}, free=3), Sample((_X,), {"dtype": "i32"}, free=0)),
    free=True,
)
op(
    "copy",
    broadcast,
    aten=("copy.default",),
    samples=(Sample((_X, _Y), free=3), Sample((_X, Arg((2, 6, 5), "i64", 0, 3)), free=3)),
    free=True,
)
op(
    "fill",
    broadcast,
    aten=("fill.Scalar", "fill.Tensor", "zero.default"),
    samples=(
        Sample((_X,), {"value": 2.0}, free=3),
        Sample((_X, Arg(())), free=3, target="aten.fill.Tensor"),
        Sample((_X,), free=3, target="aten.zero.default"),
    ),
    free=True,
)

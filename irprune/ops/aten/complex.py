"""Complex numbers as pairs: the pair is a dimension of two that stays."""

from __future__ import annotations

from functools import partial

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.aten.elementwise import broadcast
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare

op = partial(declare, family="complex")

_C = Arg((2, 6, 5), "c64")
_X = Arg((2, 6, 5))
_Y = Arg((6, 1))


def _paired(axes: Axes, node: Node) -> None:
    own = axes.of(node.operand(0))
    axes.freeze(own[-1], "real and imaginary part")
    node.out.axes = own[:-1]


def _pairs(axes: Axes, node: Node) -> None:
    node.out.axes = (*axes.of(node.operand(0)), axes.frozen(2, "real and imaginary part"))


op(
    "view_as_complex",
    _paired,
    strides={"aten.view_as_complex.default": ""},
    aten=("view_as_complex.default", "view_as_complex_copy.default"),
    samples=(Sample((Arg((4, 6, 2)),), free=2),),
    is_view=True,
    even_strides=True,
)
op(
    "view_as_real",
    _pairs,
    aten=("view_as_real.default", "view_as_real_copy.default"),
    samples=(Sample((_C,), free=3),),
    is_view=True,
)
for _names in ("real", "imag", "conj _conj conj_physical resolve_conj", "resolve_neg", "angle"):
    _name, *_ = _names.split()
    op(
        _name,
        broadcast,
        aten=[f"{n}.default" for n in _names.split()],
        samples=(Sample((_C,), free=3),),
    )
op("complex", broadcast, aten=("complex.default",), samples=(Sample((_X, _Y), free=3),))
op("polar", broadcast, aten=("polar.default",), samples=(Sample((_X, _Y), free=3),))

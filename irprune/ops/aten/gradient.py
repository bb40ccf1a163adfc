"""Operators that change what gradients do, and no value."""

from __future__ import annotations

from functools import partial

from irprune.ops.aten.elementwise import broadcast
from irprune.ops.onnx.importer import runs
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare

op = partial(declare, family="gradient")

_X = Arg((2, 6, 5))

op(
    "stop_gradient",
    broadcast,
    aten=("detach.default", "detach_copy.default"),
    samples=(Sample((_X,), free=3),),
    stops=True,
    free=True,
    rearranges=True,
)


op(
    "gradient_to",
    broadcast,
    run=runs("gradient_to"),
    samples=(Sample((_X, _X), free=3),),
    doc="The first operand; its gradients go to the second.",
)

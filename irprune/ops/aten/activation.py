"""Activations and dropout: element-wise, but for the weight of ``prelu``, which lies along the
channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.aten.elementwise import broadcast
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare
from irprune.ops.traits import CarriedFunction

op = partial(declare, family="activation")

_X = Arg((2, 6, 5), low=-4.0, high=4.0)

for _name, _onnx in (
    ("relu", "Relu"),
    ("relu6", ""),
    ("silu", ""),
    ("mish", "Mish"),
    ("hardswish", "HardSwish"),
    ("hardsigmoid", ""),
    ("hardtanh", ""),
    ("elu", ""),
    ("celu", ""),
    ("selu", ""),
    ("leaky_relu", ""),
    ("softplus", ""),
    ("log_sigmoid", ""),
    ("hardshrink", ""),
    ("softshrink", ""),
):
    op(
        _name,
        broadcast,
        aten=(f"{_name}.default",),
        onnx=(_onnx,) if _onnx else (),
        samples=(Sample((_X,), free=3),),
        joins=_name == "relu",
    )
op(
    "sigmoid",
    broadcast,
    aten=("sigmoid.default", "special_expit.default"),
    onnx=("Sigmoid",),
    samples=(Sample((_X,), free=3),),
)
op("tanh", broadcast, aten=("tanh.default",), onnx=("Tanh",), samples=(Sample((_X,), free=3),))
op(
    "gelu",
    broadcast,
    aten=("gelu.default",),
    samples=(Sample((_X,), {"approximate": "tanh"}, free=3), Sample((_X,), free=3)),
)
op(
    "threshold",
    broadcast,
    aten=("threshold.default",),
    samples=(Sample((_X,), {"threshold": 0.1, "value": 20.0}, free=3),),
)
op(
    "rrelu",
    broadcast,
    aten=("rrelu.default",),
    samples=(Sample((_X,), {"training": False}, free=3),),
    trains=("lower", "upper", "training"),
)


def _prelu(axes: Axes, node: Node) -> None:
    """One slope for all, or one per channel: dimension 1, or the only one there is."""
    own, slope = axes.of(node.operand(0)), axes.of(node.operand(1))
    if slope and slope[0].size != 1:
        axes.unify(own[min(1, len(own) - 1)], slope[0])
    node.out.axes = own


op(
    "prelu",
    _prelu,
    aten=("prelu.default",),
    samples=(
        Sample((_X, Arg((6,))), free=3),
        Sample((_X, Arg((1,))), free=3),
        Sample((Arg((6,)), Arg((1,))), free=1),
    ),
)
op(
    "prelu_kernel",
    broadcast,
    aten=("_prelu_kernel.default",),
    samples=(Sample((_X, Arg((1, 6, 1))), free=3),),
)

_KEPT = {"p": 0.5, "train": False}
op(
    "dropout",
    broadcast,
    idle=lambda node: node.attrs.get("p") == 0,
    aten=(
        "dropout.default",
        "feature_dropout.default",
        "alpha_dropout.default",
        "feature_alpha_dropout.default",
    ),
    samples=(Sample((_X,), _KEPT, free=3),),
    drops=True,
    trains=("p", "train"),
)


def _drop_path(torch: Any, node: Node, operands: Sequence[Any]) -> Any:
    from irprune.ops.training import drop_path

    return drop_path(*operands, **node.attrs)  # type: ignore[no-untyped-call]


op(
    "drop_path",
    broadcast,
    run=CarriedFunction(_drop_path, "drop_path"),
    idle=lambda node: node.attrs.get("p") == 0,
    samples=(Sample((_X,), {"p": 0.2, "mode": "row", "training": False}, free=3),),
    trains=("p", "mode", "training"),
    doc="Stochastic depth: in training, samples (or the whole batch) become 0 at random.",
)
op(
    "native_dropout",
    broadcast,
    aten=("native_dropout.default",),
    samples=(Sample((_X,), _KEPT, free=3),),
)

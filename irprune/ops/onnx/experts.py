"""``com.microsoft::MoE``: layers of which each row takes a few, as its router says."""

from __future__ import annotations

from functools import partial
from typing import Any

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.aten.contraction import zeroed
from irprune.ops.onnx.importer import OnnxNode, Step, UnsupportedUse, runs, sampled, spell, use
from irprune.ops.onnx.norm import nothing
from irprune.ops.onnx.types import like
from irprune.ops.registry import Arg, Sample, Unsupported
from irprune.ops.registry import op as declare

op = partial(declare, family="experts")

__all__: list[str] = []

_UP, _UP_BIAS, _DOWN, _DOWN_BIAS = 2, 3, 4, 5


def _rule(axes: Axes, node: Node) -> None:
    """Experts have the same hidden channels. Their number stays, and so does the width: the kernel
    of onnxruntime 1.31 for the CPU may write its result over its input, so that nothing about the
    values of either can be proven there."""
    x, router = axes.of(node.operand(0)), axes.of(node.operand(1))
    up, down = axes.of(node.operand(_UP)), axes.of(node.operand(_DOWN))
    stacks = [up[0], down[0], router[-1]]
    stacks += [axes.of(node.operand(i))[0] for i in (_UP_BIAS, _DOWN_BIAS) if node.has(i)]
    for a in stacks:
        axes.freeze(a, "experts")
    axes.unify(axes.product(x[:-1]), axes.product(router[:-1]))
    axes.unify(x[-1], up[2])
    axes.unify(down[1], x[-1])
    axes.freeze(x[-1], "width of MoE, whose kernel in onnxruntime may overwrite its input")
    hidden = up[1]
    if node.attrs["kind"] == "swiglu":
        outer, pair = axes.split(up[1], down[2].size)
        if outer is None or pair is None:
            raise Unsupported("hidden channels that are grouped otherwise than in pairs")
        axes.freeze(pair, "a gate and what it lets through")
        hidden = outer
    axes.unify(hidden, down[2])
    if node.has(_UP_BIAS):
        axes.unify(axes.of(node.operand(_UP_BIAS))[1], up[1])
    if node.has(_DOWN_BIAS):
        axes.unify(axes.of(node.operand(_DOWN_BIAS))[1], down[1])
    node.out.axes = (*x[:-1], down[1])


def _silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    made = list(operands)
    made[_DOWN] = zeroed(torch, made[_DOWN], present(node.operand(_DOWN), [2]))
    return run(*made)


def _macs(node: Node) -> tuple[Any, ...]:
    x = node.operand(0).axes or ()
    up, down = (node.operand(i).axes or () for i in (_UP, _DOWN))
    each = ((*x[:-1], *up[1:]), (*x[:-1], *down[1:]))
    return each * int(node.attrs["k"])


_KINDS = ("relu", "gelu", "silu", "identity", "swiglu")


def _read(node: OnnxNode) -> Step:
    a = node.attrs
    kind = a.get("activation_type", "relu")
    if node.has(6) or node.has(7) or a.get("use_sparse_mixer", 0) or kind not in _KINDS:
        raise UnsupportedUse("a MoE with a third layer, a sparse mixer or another activation")
    if kind == "swiglu" and a.get("swiglu_fusion", 0) != 1:
        raise UnsupportedUse("a MoE whose gates do not lie beside what they let through")
    attrs = {
        "k": a.get("k", 1),
        "kind": kind,
        "normalise": a.get("normalize_routing_weights", 0),
        "alpha": a.get("activation_alpha", 1.0),
        "beta": a.get("activation_beta", 0.0),
        "limit": a.get("swiglu_limit"),
    }
    return Step("mixture_of_experts", None, attrs, [like(node)])


_ATTRS = {"k": 2, "kind": "relu", "normalise": 0, "alpha": 1.0, "beta": 0.0, "limit": None}
_WIDE = (Arg((5, 6)), Arg((5, 3)))
op(
    "mixture_of_experts",
    _rule,
    run=runs("mixture_of_experts"),
    silence=_silence,
    macs=_macs,
    samples=(
        Sample((*_WIDE, Arg((3, 8, 6)), Arg((3, 8)), Arg((3, 6, 8)), Arg((3, 6))), _ATTRS, free=2),
        Sample(
            (*_WIDE, Arg((3, 16, 6)), None, Arg((3, 6, 8))), {**_ATTRS, "kind": "swiglu"}, free=2
        ),
    ),
    operands=("data", "", "weight", "bias", "weight", "bias"),
)
spell("mixture_of_experts", "com.microsoft::MoE", read=_read, write=nothing)

# -- samples ---------------------------------------------------------------------------------------

sampled(
    "com.microsoft::MoE",
    use(*_WIDE, Arg((3, 8, 6)), Arg((3, 8)), Arg((3, 6, 8)), Arg((3, 6)), free=2, k=2),
    use(
        *_WIDE,
        Arg((3, 8, 6)),
        None,
        Arg((3, 6, 8)),
        free=2,
        activation_type="silu",
        normalize_routing_weights=1,
        k=2,
    ),
    use(*_WIDE, Arg((3, 8, 6)), None, Arg((3, 6, 8)), free=2, activation_type="gelu", k=1),
    use(
        *_WIDE,
        Arg((3, 16, 6)),
        Arg((3, 16)),
        Arg((3, 6, 8)),
        Arg((3, 6)),
        free=2,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.7,
        activation_beta=1.0,
        k=2,
    ),
)

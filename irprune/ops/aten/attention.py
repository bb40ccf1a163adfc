"""Fused attention: heads and positions are shared, head_dim contracts between query and key, its
scale is pinned."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node
from irprune.ops.aten.contraction import zeroed
from irprune.ops.registry import Arg, Cut, Sample
from irprune.ops.registry import op as declare
from irprune.ops.traits import Kind, attention_kinds

op = partial(declare, family="attention")


def _sdpa(axes: Axes, node: Node) -> None:
    q, k, v = (axes.of(node.operand(i)) for i in range(3))
    axes.unify(q[-1], k[-1])
    axes.unify(k[-2], v[-2])
    axes.freeze(k[-2], "positions that softmax runs over")
    if node.attrs.get("is_causal"):
        axes.freeze(q[-2], "positions in causal order")
    batch = [
        _shared(axes, [x[d] for x in (q, k, v) if len(x) >= -d]) for d in range(-_lead(node), -2)
    ]
    if node.attrs.get("enable_gqa") and batch:
        batch[-1] = _grouped_heads(axes, q[-3], k[-3], v[-3])
    if node.has(3):
        for a, b in zip(axes.of(node.operand(3))[::-1], (k[-2], q[-2], *batch[::-1]), strict=False):
            if a.size != 1 and b.size != 1:
                axes.unify(a, b)
    node.out.axes = (*batch, q[-2], v[-1])
    # Log-sum-exp or weights per head and position; what the backward pass wants besides
    for value in node.outputs[1:]:
        known = (*batch, q[-2], k[-2])[: value.rank]
        same = value.rank == len(known) > len(batch) and all(
            a.size == s for a, s in zip(known, value.shape, strict=True)
        )
        value.axes = (
            known
            if same
            else tuple(axes.frozen(s, "kept for the backward pass") for s in value.shape)
        )


def _kernel(axes: Axes, node: Node) -> None:
    """Kernels that want one head size for all three operands, those of a GPU a multiple of
    eight."""
    _sdpa(axes, node)
    heads = [axes.of(node.operand(i))[-1] for i in range(3)]
    axes.unify(heads[0], heads[2])
    if "for_cpu" not in node.origin.target:
        axes.freeze(heads[0], "head size of a GPU kernel")


def _lead(node: Node) -> int:
    return max(node.operand(i).rank for i in range(3))


def _shared(axes: Axes, many: list[Axis]) -> Axis:
    """One dimension of batch or heads; sizes 1 broadcast."""
    wide = [a for a in many if a.size != 1]
    for a in wide[1:]:
        if a.size == wide[0].size:
            axes.unify(wide[0], a)
    return wide[0] if wide else many[0]


def _grouped_heads(axes: Axes, q: Axis, k: Axis, v: Axis) -> Axis:
    """Query heads are key heads × repeats."""
    axes.unify(k, v)
    groups, repeats = axes.split(q, k.size)
    if groups is None or repeats is None:
        axes.freeze(q, "query heads that do not group over the key heads")
        axes.freeze(k, "query heads that do not group over the key heads")
    else:
        axes.unify(groups, k)
    return q


def _pin_scale(node: Node, cut: Cut) -> None:
    """The default scale 1/sqrt(head_dim) hides a size: what it was is written out."""
    head = (node.operand(0).axes or ())[-1]
    if node.attrs.get("scale") is None and cut.changes(head):
        node.attrs["scale"] = float(head.size) ** -0.5  # type: ignore[arg-type]


def _kinds(node: Node) -> Iterable[Kind]:
    q, k, v = (node.operand(i).axes or () for i in range(3))
    return attention_kinds(q, k, v)


def _sdpa_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    q, k, *rest = operands
    q = zeroed(torch, q, present(node.operand(0), [q.dim() - 1]))
    return run(q, zeroed(torch, k, present(node.operand(1), [k.dim() - 1])), *rest)


def _sdpa_macs(node: Node) -> tuple[tuple[Axis, ...], ...]:
    """Query times key, then the weights times the values."""
    q, k, v = (node.operand(i).axes or () for i in range(3))
    *batch, positions, _ = node.out.axes or ()
    return (*batch, positions, k[-2], q[-1]), (*batch, positions, k[-2], v[-1])


_Q, _K, _V = Arg((2, 4, 3, 6)), Arg((2, 4, 5, 6)), Arg((2, 4, 5, 7))
_PLAIN = {"dropout_p": 0.0, "is_causal": False}
op(
    "scaled_dot_product_attention",
    _sdpa,
    resize=_pin_scale,
    silence=_sdpa_silence,
    macs=_sdpa_macs,
    aten=("scaled_dot_product_attention.default",),
    rate="dropout_p",
    samples=(
        Sample((_Q, _K, _V), _PLAIN, free=5),
        Sample((_Q, _K, _V), {**_PLAIN, "is_causal": True, "scale": 0.3}, free=4),
        Sample((_Q, _K, _V, Arg((2, 1, 3, 5))), _PLAIN, free=5),
        Sample((_Q, _K, _V, Arg((4, 1, 5), "bool", values=(1, 1, 0, 1, 1) * 4)), _PLAIN, free=5),
        Sample((_Q, _K, _V, Arg((3, 5))), _PLAIN, free=5),
        Sample((Arg((3, 6)), Arg((5, 6)), Arg((5, 7))), _PLAIN, free=3),
        Sample((_Q, Arg((2, 2, 5, 6)), Arg((2, 2, 5, 7))), {**_PLAIN, "enable_gqa": True}, free=6),
        Sample((_Q, Arg((2, 1, 5, 6)), Arg((2, 1, 5, 7))), {**_PLAIN, "enable_gqa": True}, free=5),
        Sample((_Q, Arg((1, 4, 5, 6)), Arg((2, 4, 5, 7))), _PLAIN, free=5),
    ),
    kinds=_kinds,
)
op(
    "attention_with_weights",
    _sdpa,
    resize=_pin_scale,
    silence=_sdpa_silence,
    macs=_sdpa_macs,
    aten=("_scaled_dot_product_attention_math.default",),
    samples=(
        Sample((_Q, _K, _V), _PLAIN, free=5),
        Sample((_Q, _K, _V, Arg((3, 5))), _PLAIN, free=5),
    ),
    kinds=_kinds,
)
op(
    "fused_attention",
    _kernel,
    resize=_pin_scale,
    silence=_sdpa_silence,
    macs=_sdpa_macs,
    aten=(
        "_scaled_dot_product_flash_attention_for_cpu.default",
        "_scaled_dot_product_flash_attention.default",
        "_scaled_dot_product_efficient_attention.default",
        "_scaled_dot_product_cudnn_attention.default",
    ),
    samples=(
        Sample((_Q, _K, Arg((2, 4, 5, 6)), Arg((2, 1, 3, 5))), _PLAIN, free=4),
        Sample((_Q, _K, Arg((2, 4, 5, 6))), _PLAIN, free=4),
    ),
    kinds=_kinds,
)

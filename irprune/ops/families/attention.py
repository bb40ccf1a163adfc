"""Fused attention: heads and positions are shared, head_dim contracts between query and key, its scale is pinned."""

from __future__ import annotations

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.registry import Arg, Cut, Sample, op


def _sdpa(axes: Axes, node: Node) -> None:
    q, k, v = (axes.of(node.operand(i)) for i in range(3))
    axes.unify(q[-1], k[-1])
    axes.unify(k[-2], v[-2])
    axes.freeze(k[-2], "positions that softmax runs over")
    for i in range(len(q) - 2):
        if node.attrs.get("enable_gqa") and i == len(q) - 3:
            groups, repeats = axes.split(q[i], k[i].size)
            if groups is None or repeats is None:
                axes.freeze(q[i], "query heads that do not group over the key heads")
                axes.freeze(k[i], "query heads that do not group over the key heads")
            else:
                axes.unify(groups, k[i])
            axes.unify(k[i], v[i])
            continue
        for other in (k[i], v[i]):
            if other.size != 1 and q[i].size != 1:
                axes.unify(q[i], other)
    if node.has(3):
        mask = axes.of(node.operand(3))
        for a, b in zip(mask[::-1], (k[-2], *q[:-1][::-1]), strict=False):
            if a.size != 1:
                axes.unify(a, b)
    node.out.axes = (*q[:-1], v[-1])


def _pin_scale(node: Node, cut: Cut) -> None:
    """The default scale 1/sqrt(head_dim) hides a size: what it was is written out."""
    head = (node.operand(0).axes or ())[-1]
    if node.attrs.get("scale") is None and cut.changes(head):
        node.attrs["scale"] = float(head.size) ** -0.5  # type: ignore[arg-type]


def _sdpa_silence(torch, node, operands, present, run):  # type: ignore[no-untyped-def]
    q, k, *rest = operands
    zero = torch.zeros((), dtype=q.dtype, device=q.device)
    for_q, for_k = present(node.operand(0), [q.dim() - 1]), present(node.operand(1), [k.dim() - 1])
    q = q if for_q is None else torch.where(for_q, q, zero)
    k = k if for_k is None else torch.where(for_k, k, zero)
    return run(q, k, *rest)


def _sdpa_macs(node: Node):  # type: ignore[no-untyped-def]
    """Query times key; the product with the values is as large when both head sizes agree, so it is counted by doubling."""
    q, k = node.operand(0).axes or (), node.operand(1).axes or ()
    return (*q, k[-2])


op("scaled_dot_product_attention", _sdpa, resize=_pin_scale, silence=_sdpa_silence, macs=_sdpa_macs,
   aten=("scaled_dot_product_attention.default",),
   samples=(Sample((Arg((2, 3, 4, 6)), Arg((2, 3, 5, 6)), Arg((2, 3, 5, 7))), {"dropout_p": 0.0, "is_causal": False}, free=5),))

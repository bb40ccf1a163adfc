"""Attention and rotary embeddings as single operators of ONNX: heads × head_dim in one dimension or
in two."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from irprune.ir.axis import Axes, Axis, factors
from irprune.ir.graph import Node
from irprune.ir.size import Size, probe_of
from irprune.ops.aten.contraction import zeroed
from irprune.ops.onnx.importer import (
    Edit,
    OnnxNode,
    Step,
    UnsupportedUse,
    runs,
    sampled,
    spell,
    use,
)
from irprune.ops.onnx.types import like
from irprune.ops.registry import Arg, Cut, Sample, Unsupported
from irprune.ops.registry import op as declare
from irprune.ops.traits import Kind, free_factors

__all__ = [
    "apart",
    "attended",
    "attention_parts",
    "counted",
    "kept_heads",
    "masked",
    "opened",
    "resized",
    "shared",
    "silenced",
]

op = partial(declare, family="attention")

# -- attention -------------------------------------------------------------------------------------


def opened(axes: Axes, node: Node, i: int, heads: Size) -> tuple[Axis, Axis, Axis, Axis]:
    """Batch, heads, positions and head_dim of operand ``i``, of three dimensions or of four."""
    own = axes.of(node.operand(i))
    if len(own) == 4:
        return own[0], own[1], own[2], own[3]
    h, d = axes.split(own[2], heads)
    if h is None or d is None:
        raise Unsupported("heads that are grouped otherwise")
    return own[0], h, own[1], d


def shared(axes: Axes, a: Axis, b: Axis) -> None:
    if a.size != 1 and b.size != 1:
        axes.unify(a, b)


def _grouped(axes: Axes, heads: Axis, groups: Axis) -> None:
    """Each key head serves a run of query heads."""
    if heads.size == groups.size:
        axes.unify(heads, groups)
        return
    outer, repeats = axes.split(heads, groups.size)
    if outer is None or repeats is None:
        raise Unsupported("query heads that do not group over the key heads")
    axes.unify(outer, groups)


def masked(axes: Axes, node: Node, i: int, heads: Axis) -> None:
    """Operand ``i`` is added to the products, or says which count: positions, and heads before
    them."""
    mask = axes.of(node.operand(i))
    if len(mask) > 2:
        shared(axes, mask[-3], heads)
    for a in (*mask[-2:], *mask[:-3]):
        axes.freeze(a, "a mask of positions")


def _rule(axes: Axes, node: Node) -> None:
    attended(axes, node)
    if node.has(6):
        shared(axes, axes.of(node.operand(6))[0], axes.of(node.operand(0))[0])


def attended(axes: Axes, node: Node, mask: int = 3, past: tuple[int, int] = (4, 5)) -> None:
    """Heads are shared, head_dim contracts between query and key; where the mask and the past stand
    differs between dialects."""
    attrs = node.attrs
    b, h, s, d = opened(axes, node, 0, attrs["q_num_heads"])
    kb, kh, t, kd = opened(axes, node, 1, attrs["kv_num_heads"])
    vb, vh, vt, dv = opened(axes, node, 2, attrs["kv_num_heads"])
    shared(axes, b, kb)
    shared(axes, b, vb)
    axes.unify(d, kd)
    axes.unify(kh, vh)
    _grouped(axes, h, kh)
    for a in (s, t, vt):
        axes.freeze(a, "positions that softmax runs over")
    if node.has(mask):
        masked(axes, node, mask, h)
    for i, last in zip(past, (kd, dv), strict=True):
        if node.has(i):
            held = axes.of(node.operand(i))
            axes.unify(held[1], kh)
            axes.unify(held[3], last)
            axes.freeze(held[2], "positions of the past")
    whole = axes.of(node.operand(0))
    node.out.axes = (b, h, s, dv) if len(whole) == 4 else (b, s, axes.product((h, dv)))
    for value, last in zip(node.outputs[1:3], (kd, dv), strict=False):
        value.axes = (b, kh, axes.frozen(value.shape[2], "positions"), last)
    for value in node.outputs[3:]:
        value.axes = (b, h, *(axes.frozen(x, "positions") for x in value.shape[2:]))


def resized(node: Node, cut: Cut) -> None:
    """Numbers of heads follow their axes; the default scale hides head_dim, so what it was is
    written out."""
    attrs = node.attrs
    q, k = node.operand(0), node.operand(1)
    if q.rank == 4:
        heads, groups, before, after = (
            cut.size((q.axes or ())[1]),
            cut.size((k.axes or ())[1]),
            q.shape[3],
            cut.size((q.axes or ())[3]),
        )
    else:
        before = q.shape[2] // attrs["q_num_heads"]
        heads, groups = (
            kept_heads(q, attrs["q_num_heads"], cut),
            kept_heads(k, attrs["kv_num_heads"], cut),
        )
        after = cut.size((q.axes or ())[2]) // heads
    if before != after and attrs.get("scale") is None:
        attrs["scale"] = float(before) ** -0.5  # type: ignore[arg-type]
    attrs["q_num_heads"], attrs["kv_num_heads"] = heads, groups


def kept_heads(value: Any, heads: int, cut: Cut) -> int:
    """How many of the outer ``heads`` of the last dimension are left."""
    left, covered = 1, 1
    *_, last = value.axes
    for f in factors(last):
        if covered == heads:
            break
        covered *= probe_of(f.size)
        left *= probe_of(cut.size(f))
    return left


def silenced(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    made = list(operands)
    for i in (0, 1):
        made[i] = zeroed(torch, made[i], present(node.operand(i), [node.operand(i).rank - 1]))
    return run(*made)


def attention_parts(node: Node) -> Iterable[Kind]:
    """Heads and head_dim of query, key and value, which lie in one dimension or in two."""
    a = node.attrs
    for i, heads in enumerate((a["q_num_heads"], a["kv_num_heads"], a["kv_num_heads"])):
        own = node.operand(i).axes or ()
        outer, inner = (factors(own[1]), [own[3]]) if len(own) == 4 else apart(own[-1], heads)
        many = free_factors(outer)
        if i == 0 and len(many) > 1:  # groups of query heads that share a key head
            yield many[0], "kv groups"
        yield from ((h, "heads") for h in many)
        yield from ((d, "head_dim") for d in inner)


def apart(whole: Axis, heads: Size) -> tuple[list[Axis], list[Axis]]:
    """The factors of heads × head_dim: those that make up the ``heads``, and the rest."""
    outer: list[Axis] = []
    covered, rest = 1, list(factors(whole))
    while rest and covered < probe_of(heads):
        outer.append(rest.pop(0))
        covered *= probe_of(outer[-1].size)
    return outer, rest


def counted(node: Node) -> tuple[Any, ...]:
    """Queries with keys, then weights with values: the second is as large as the result, whose
    heads are the queries'."""
    q, k = (node.operand(i).axes or () for i in range(2))
    return (*q, k[-2]), (*(node.out.axes or ()), k[-2])


_KNOWN = {
    "q_num_heads",
    "kv_num_heads",
    "is_causal",
    "scale",
    "softcap",
    "qk_matmul_output_mode",
    "softmax_precision",
}
_KNOWN |= {"left_window_size", "right_window_size"}


def _read(node: OnnxNode) -> Step:
    a = node.attrs
    q, v = node.shape(0), node.shape(2)
    if len(q) == 4:
        heads, groups = q[1], node.shape(1)[1]
        out: tuple[Size, ...] = (*q[:3], v[3])
    else:
        heads, groups = a["q_num_heads"], a["kv_num_heads"]
        out = (q[0], q[1], v[2] // groups * heads)
    attrs = {
        "q_num_heads": heads,
        "kv_num_heads": groups,
        "is_causal": a.get("is_causal", 0),
        "scale": a.get("scale"),
        "softcap": a.get("softcap", 0.0),
        "mode": a.get("qk_matmul_output_mode", 0),
        "results": len(node.outputs),
        "left": a.get("left_window_size", -1),
        "right": a.get("right_window_size", -1),
    }
    if a.get("scale") == 0:
        attrs["scale"] = None
    if set(a) - _KNOWN:
        raise UnsupportedUse(f"an Attention with {', '.join(sorted(set(a) - _KNOWN))}")
    if any(node.outputs[1:]):
        return Step("onnx_attention", None, attrs, [like(node, shape=out), *node.inferred()[1:]])
    return Step(
        "onnx_attention",
        None,
        {**attrs, "results": 1},
        [like(node, shape=out), *node.inferred()[1:]],
    )


def _write(edit: Edit, node: Node) -> None:
    a = node.attrs
    for name in ("q_num_heads", "kv_num_heads"):
        if name in edit.attrs and edit.attrs[name] != a[name]:
            edit.attr(name, a[name])
    if a["scale"] is not None and edit.attrs.get("scale") != a["scale"]:
        edit.attr("scale", a["scale"])


_ATTRS = {
    "q_num_heads": 4,
    "kv_num_heads": 2,
    "is_causal": 0,
    "scale": None,
    "softcap": 0.0,
    "mode": 0,
    "results": 1,
}
_ATTRS |= {"left": -1, "right": -1}
op(
    "onnx_attention",
    _rule,
    run=runs("onnx_attention"),
    resize=resized,
    silence=silenced,
    macs=counted,
    samples=(
        Sample((Arg((2, 4, 3, 6)), Arg((2, 2, 5, 6)), Arg((2, 2, 5, 7))), _ATTRS, free=5),
        Sample((Arg((2, 3, 24)), Arg((2, 5, 12)), Arg((2, 5, 14))), _ATTRS, free=5),
    ),
    kinds=attention_parts,
)
spell("onnx_attention", "Attention", read=_read, write=_write)

# -- rotary embeddings -----------------------------------------------------------------------------


def _rotary(axes: Axes, node: Node) -> None:
    """Pairs of entries turn together: head_dim is 2 × half (half × 2 where they lie side by side),
    half runs along the tables."""
    attrs = node.attrs
    b, _, s, d = opened(axes, node, 0, attrs["num_heads"])
    rotated = attrs["rotated"] or d.size
    turned = axes.cut(d, [rotated, d.size - rotated])[0] if rotated != d.size else d
    outer, inner = axes.split(turned, turned.size // 2 if attrs["interleaved"] else 2)
    if outer is None or inner is None:
        raise Unsupported("a rotation of entries that are grouped otherwise")
    pair, half = (inner, outer) if attrs["interleaved"] else (outer, inner)
    axes.freeze(pair, "pairs that turn together")
    axes.freeze(s, "positions")
    for i in (1, 2):
        table = axes.of(node.operand(i))
        axes.unify(table[-1], half)
        for a in table[:-1]:
            axes.freeze(a, "positions")
    if node.has(3):
        ids = axes.of(node.operand(3))
        if len(ids) == 2:
            shared(axes, ids[0], b)
        for a in ids[1:]:
            axes.freeze(a, "positions")
    node.out.axes = axes.of(node.operand(0))


def _rotary_resize(node: Node, cut: Cut) -> None:
    x, attrs = node.operand(0), node.attrs
    if attrs["rotated"]:
        attrs["rotated"] = 2 * cut.size((node.operand(1).axes or ())[-1])
    attrs["num_heads"] = (
        cut.size((x.axes or ())[1]) if x.rank == 4 else kept_heads(x, attrs["num_heads"], cut)
    )


def _read_rotary(positions: int) -> Any:
    """Where the position ids stand: input 3 in ONNX, 1 in com.microsoft."""

    def read(node: OnnxNode) -> Step:
        a, x = node.attrs, node.shape(0)
        heads = x[1] if len(x) == 4 else a.get("num_heads", 0)
        if not heads or a.get("is_packed_batching", 0) or a.get("scale", 1.0) != 1.0:
            raise UnsupportedUse("a RotaryEmbedding without a number of heads")
        attrs = {
            "num_heads": heads,
            "interleaved": a.get("interleaved", 0),
            "rotated": a.get("rotary_embedding_dim", 0),
        }
        order = (0, 1, 2, 3) if positions == 3 else (0, 2, 3, 1)
        return Step("rotary", order, attrs, [like(node)])

    return read


def _write_rotary(edit: Edit, node: Node) -> None:
    for name, key in (("num_heads", "num_heads"), ("rotary_embedding_dim", "rotated")):
        if edit.attrs.get(name, 0) and edit.attrs[name] != node.attrs[key]:
            edit.attr(name, node.attrs[key])


op(
    "rotary",
    _rotary,
    run=runs("rotary"),
    resize=_rotary_resize,
    samples=(
        Sample(
            (Arg((2, 3, 4, 6)), Arg((4, 3)), Arg((4, 3)), Arg((2, 4), "i64", 0, 4)),
            {"num_heads": 3, "interleaved": 0, "rotated": 0},
            free=3,
        ),
    ),
)
spell("rotary", "RotaryEmbedding", read=_read_rotary(3), write=_write_rotary)
spell("rotary", "com.microsoft::RotaryEmbedding", read=_read_rotary(1), write=_write_rotary)

# -- samples ---------------------------------------------------------------------------------------

sampled(
    "Attention",
    use(Arg((2, 4, 3, 6)), Arg((2, 2, 5, 6)), Arg((2, 2, 5, 7)), free=5, opset=23),
    use(
        Arg((2, 3, 24)),
        Arg((2, 3, 12)),
        Arg((2, 3, 14)),
        free=5,
        opset=23,
        q_num_heads=4,
        kv_num_heads=2,
        is_causal=1,
    ),
)
_TABLE, _IDS = Arg((4, 3)), Arg((2, 4), "i64", 0, 4)
sampled(
    "RotaryEmbedding",
    use(Arg((2, 3, 4, 6)), _TABLE, _TABLE, _IDS, free=3, opset=23),
    use(Arg((2, 4, 18)), _TABLE, _TABLE, _IDS, free=3, opset=23, num_heads=3, interleaved=1),
)
sampled(
    "com.microsoft::RotaryEmbedding",
    use(Arg((2, 3, 4, 6)), _IDS, _TABLE, _TABLE, free=3),
    use(Arg((2, 4, 18)), _IDS, _TABLE, _TABLE, free=3, num_heads=3, interleaved=1),
)

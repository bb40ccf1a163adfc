"""Attention and rotary embeddings as single operators of ONNX: heads × head_dim in one dimension or in two."""

from __future__ import annotations

from typing import Any

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node, TensorType
from irprune.ir.size import Size, probe_of
from irprune.ops.families.contraction import zeroed
from irprune.ops.onnx.spell import Edit, OnnxNode, Step, Unread, runs, spell
from irprune.ops.onnx.types import like
from irprune.ops.registry import Arg, Cut, Sample, Unsupported, op

__all__: list[str] = []

# -- attention -----------------------------------------------------------------------------------------------------------


def _opened(axes: Axes, node: Node, i: int, heads: Size) -> tuple[Axis, Axis, Axis, Axis]:
    """Batch, heads, positions and head_dim of operand ``i``, of three dimensions or of four."""
    own = axes.of(node.operand(i))
    if len(own) == 4:
        return own[0], own[1], own[2], own[3]
    h, d = axes.split(own[2], heads)
    if h is None or d is None:
        raise Unsupported("heads that are grouped otherwise")
    return own[0], h, own[1], d


def _shared(axes: Axes, a: Axis, b: Axis) -> None:
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


def _rule(axes: Axes, node: Node) -> None:
    attrs = node.attrs
    b, h, s, d = _opened(axes, node, 0, attrs["q_num_heads"])
    kb, kh, t, kd = _opened(axes, node, 1, attrs["kv_num_heads"])
    vb, vh, vt, dv = _opened(axes, node, 2, attrs["kv_num_heads"])
    _shared(axes, b, kb)
    _shared(axes, b, vb)
    axes.unify(d, kd)
    axes.unify(kh, vh)
    _grouped(axes, h, kh)
    for a in (s, t, vt):
        axes.freeze(a, "positions that softmax runs over")
    if node.has(3):
        mask = axes.of(node.operand(3))
        if len(mask) > 2:
            _shared(axes, mask[-3], h)
        for a in (*mask[-2:], *mask[:-3]):
            axes.freeze(a, "a mask of positions")
    for i, last in ((4, kd), (5, dv)):
        if node.has(i):
            past = axes.of(node.operand(i))
            axes.unify(past[1], kh)
            axes.unify(past[3], last)
            axes.freeze(past[2], "positions of the past")
    whole = axes.of(node.operand(0))
    node.out.axes = (b, h, s, dv) if len(whole) == 4 else (b, s, axes.product((h, dv)))
    for value, last in zip(node.outputs[1:3], (kd, dv), strict=False):
        value.axes = (b, kh, axes.frozen(value.shape[2], "positions"), last)
    for value in node.outputs[3:]:
        value.axes = (b, h, *(axes.frozen(x, "positions") for x in value.shape[2:]))


def _resize(node: Node, cut: Cut) -> None:
    """Numbers of heads follow their axes; the default scale hides head_dim, so what it was is written out."""
    attrs = node.attrs
    q, k = node.operand(0), node.operand(1)
    if q.rank == 4:
        heads, groups, before, after = cut.size((q.axes or ())[1]), cut.size((k.axes or ())[1]), q.shape[3], cut.size((q.axes or ())[3])
    else:
        before = q.shape[2] // attrs["q_num_heads"]
        heads, groups = _kept_heads(q, attrs["q_num_heads"], cut), _kept_heads(k, attrs["kv_num_heads"], cut)
        after = cut.size((q.axes or ())[2]) // heads
    if before != after and attrs.get("scale") is None:
        attrs["scale"] = float(before) ** -0.5  # type: ignore[arg-type]
    attrs["q_num_heads"], attrs["kv_num_heads"] = heads, groups


def _kept_heads(value: Any, heads: int, cut: Cut) -> int:
    """How many of the outer ``heads`` of the last dimension are left."""
    from irprune.ir.axis import factors

    left, covered = 1, 1
    for f in factors((value.axes or ())[2]):
        if covered == heads:
            break
        covered *= probe_of(f.size)
        left *= probe_of(cut.size(f))
    return left


def _silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    made = list(operands)
    for i in (0, 1):
        made[i] = zeroed(torch, made[i], present(node.operand(i), [node.operand(i).rank - 1]))
    return run(*made)


def _macs(node: Node) -> tuple[Any, ...]:
    """Queries with keys, then weights with values: the second is as large as the result, whose heads are the queries'."""
    q, k = (node.operand(i).axes or () for i in range(2))
    return (*q, k[-2]), (*(node.out.axes or ()), k[-2])


_KNOWN = {"q_num_heads", "kv_num_heads", "is_causal", "scale", "softcap", "qk_matmul_output_mode", "softmax_precision"}


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
    }
    if a.get("scale") == 0:
        attrs["scale"] = None
    if node.has(6):
        raise Unread("an Attention over padded keys")
    if set(a) - _KNOWN:
        raise Unread(f"an Attention with {', '.join(sorted(set(a) - _KNOWN))}")
    if any(node.outputs[1:]):
        return Step("onnx_attention", None, attrs, [like(node, shape=out), *node.inferred()[1:]])
    return Step("onnx_attention", None, {**attrs, "results": 1}, [like(node, shape=out), *node.inferred()[1:]])


def _write(edit: Edit, node: Node) -> None:
    a = node.attrs
    for name in ("q_num_heads", "kv_num_heads"):
        if name in edit.attrs and edit.attrs[name] != a[name]:
            edit.attr(name, a[name])
    if a["scale"] is not None and edit.attrs.get("scale") != a["scale"]:
        edit.attr("scale", a["scale"])


_ATTRS = {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 0, "scale": None, "softcap": 0.0, "mode": 0, "results": 1}
op(
    "onnx_attention",
    _rule,
    run=runs("onnx_attention"),
    resize=_resize,
    silence=_silence,
    macs=_macs,
    samples=(
        Sample((Arg((2, 4, 3, 6)), Arg((2, 2, 5, 6)), Arg((2, 2, 5, 7))), _ATTRS, free=5),
        Sample((Arg((2, 3, 24)), Arg((2, 5, 12)), Arg((2, 5, 14))), _ATTRS, free=5),
    ),
)
spell("onnx_attention", "Attention", read=_read, write=_write)


def _read_multi_head(node: OnnxNode) -> Step:
    """``com.microsoft::MultiHeadAttention`` with query, key and value apart, and no state."""
    a = node.attrs
    if (
        any(node.has(i) for i in range(3, len(node.types)) if i != 5)
        or not (node.has(1) and node.has(2))
        or node.rank(0) != 3
        or node.rank(1) != 3
    ):
        raise Unread("a MultiHeadAttention with packed operands, bias, padding or a past")
    q, v = node.shape(0), node.shape(2)
    attrs = {
        "q_num_heads": a["num_heads"],
        "kv_num_heads": a["num_heads"],
        "is_causal": a.get("unidirectional", 0),
        "scale": a.get("scale") or None,
        "softcap": 0.0,
        "mode": 0,
        "results": 1,
    }
    return Step("onnx_attention", (0, 1, 2, 5), attrs, [like(node, shape=(*q[:2], v[2]))])


def _write_multi_head(edit: Edit, node: Node) -> None:
    if edit.attrs["num_heads"] != node.attrs["q_num_heads"]:
        edit.attr("num_heads", node.attrs["q_num_heads"])
    if node.attrs["scale"] is not None and edit.attrs.get("scale") != node.attrs["scale"]:
        edit.attr("scale", node.attrs["scale"])


spell("onnx_attention", "com.microsoft::MultiHeadAttention", read=_read_multi_head, write=_write_multi_head)


# -- attention with its projection ---------------------------------------------------------------------------------------


def _projected(axes: Axes, node: Node) -> None:
    """``com.microsoft::Attention``: one matrix makes query, key and value, one after the other."""
    x, w = axes.of(node.operand(0)), axes.of(node.operand(1))
    sizes, heads = node.attrs["sizes"], node.attrs["num_heads"]
    axes.unify(x[2], w[0])
    axes.freeze(x[1], "positions that softmax runs over")
    q, k, v = axes.cut(w[1], sizes)
    opened = [axes.split(a, heads) for a in (q, k, v)]
    if any(h is None or d is None for h, d in opened):
        raise Unsupported("heads that are grouped otherwise")
    (qh, qd), (kh, kd), (vh, vd) = opened
    for h in (kh, vh):
        axes.unify(qh, h)  # type: ignore[arg-type]
    axes.unify(qd, kd)  # type: ignore[arg-type]
    if node.has(2):
        axes.unify(axes.of(node.operand(2))[0], w[1])
    if node.has(3):
        for a in axes.of(node.operand(3)):
            axes.freeze(a, "a mask of positions")
    if node.has(5):
        bias = axes.of(node.operand(5))
        _shared(axes, bias[1], qh)  # type: ignore[arg-type]
        for a in bias[2:]:
            axes.freeze(a, "positions")
    node.out.axes = (x[0], x[1], axes.product((vh, vd)))  # type: ignore[arg-type]


def _projected_resize(node: Node, cut: Cut) -> None:
    from irprune.ir.axis import factors, parts

    attrs = node.attrs
    width = (node.operand(1).axes or ())[1]
    left: list[int] = []
    sizes, at, total = list(attrs["sizes"]), 0, 0
    for p in parts(width):
        total += probe_of(cut.size(p))
        at += probe_of(p.size)
        if at == sum(sizes[: len(left) + 1]):
            left.append(total)
            total = 0
    kept, covered = 1, 1
    for f in factors((node.out.axes or ())[2]):
        if covered == attrs["num_heads"]:
            break
        covered *= probe_of(f.size)
        kept *= probe_of(cut.size(f))
    before = sizes[0] // attrs["num_heads"]
    if before != left[0] // kept and attrs["scale"] is None:
        attrs["scale"] = float(before) ** -0.5
    attrs["num_heads"], attrs["sizes"] = kept, left


def _projected_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    """Dropped input features are not summed, and the columns of dropped query and key entries are zero."""
    made = list(operands)
    made[0] = zeroed(torch, made[0], present(node.operand(0), [2]))
    made[1] = zeroed(torch, zeroed(torch, made[1], present(node.operand(1), [0])), present(node.operand(1), [1]))
    if len(made) > 2 and made[2] is not None:
        made[2] = zeroed(torch, made[2], present(node.operand(2), [0]))
    return run(*made)


def _read_projected(node: OnnxNode) -> Step:
    a = node.attrs
    if node.has(4) or node.has(6) or any(node.outputs[1:]) or (node.has(3) and node.rank(3) != 2) or a.get("do_rotary", 0):
        raise Unread("a com.microsoft::Attention with a past or an unusual mask")
    width = node.shape(1)[1]
    sizes = list(a.get("qkv_hidden_sizes") or [width // 3] * 3)
    if not isinstance(width, int):
        raise Unread("a com.microsoft::Attention of dynamic width")
    x = node.shape(0)
    attrs = {
        "num_heads": a["num_heads"],
        "sizes": sizes,
        "is_causal": a.get("unidirectional", 0),
        "scale": a.get("scale") or None,
        "filter": a.get("mask_filter_value", -10000.0),
    }
    return Step("projected_attention", (0, 1, 2, 3, 4, 5), attrs, [like(node, shape=(*x[:2], sizes[2]))])


def _write_projected(edit: Edit, node: Node) -> None:
    a = node.attrs
    if edit.attrs["num_heads"] != a["num_heads"]:
        edit.attr("num_heads", a["num_heads"])
    if list(edit.attrs.get("qkv_hidden_sizes") or a["sizes"]) != a["sizes"] or len(set(a["sizes"])) > 1:
        edit.attr("qkv_hidden_sizes", a["sizes"])
    if a["scale"] is not None and edit.attrs.get("scale") != a["scale"]:
        edit.attr("scale", a["scale"])


op(
    "projected_attention",
    _projected,
    run=runs("projected_attention"),
    resize=_projected_resize,
    silence=_projected_silence,
    samples=(
        Sample(
            (Arg((2, 3, 5)), Arg((5, 24)), Arg((24,))),
            {"num_heads": 2, "sizes": [8, 8, 8], "is_causal": 0, "scale": None, "filter": -1e4},
            free=5,
        ),
    ),
)
spell("projected_attention", "com.microsoft::Attention", read=_read_projected, write=_write_projected)

# -- rotary embeddings ---------------------------------------------------------------------------------------------------


def _rotary(axes: Axes, node: Node) -> None:
    """Pairs of entries turn together: head_dim is 2 × half (half × 2 where they lie side by side), half runs along the tables."""
    attrs = node.attrs
    b, _, s, d = _opened(axes, node, 0, attrs["num_heads"])
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
            _shared(axes, ids[0], b)
        for a in ids[1:]:
            axes.freeze(a, "positions")
    node.out.axes = axes.of(node.operand(0))


def _rotary_resize(node: Node, cut: Cut) -> None:
    x, attrs = node.operand(0), node.attrs
    if attrs["rotated"]:
        attrs["rotated"] = 2 * cut.size((node.operand(1).axes or ())[-1])
    attrs["num_heads"] = cut.size((x.axes or ())[1]) if x.rank == 4 else _kept_heads(x, attrs["num_heads"], cut)


def _read_rotary(positions: int) -> Any:
    """Where the position ids stand: input 3 in ONNX, 1 in com.microsoft."""

    def read(node: OnnxNode) -> Step:
        a, x = node.attrs, node.shape(0)
        heads = x[1] if len(x) == 4 else a.get("num_heads", 0)
        if not heads or a.get("is_packed_batching", 0) or a.get("scale", 1.0) != 1.0:
            raise Unread("a RotaryEmbedding without a number of heads")
        attrs = {"num_heads": heads, "interleaved": a.get("interleaved", 0), "rotated": a.get("rotary_embedding_dim", 0)}
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

# -- a residual and its norm -----------------------------------------------------------------------------------------------


def _residual(axes: Axes, node: Node) -> None:
    own = axes.of(node.operand(0))
    for value in node.inputs[1:]:
        if value is not None:
            for a, b in zip(own[len(own) - value.rank :], axes.of(value), strict=True):
                _shared(axes, a, b)
    for value in node.outputs:
        value.axes = own if value.rank == len(own) and value.shape[-1] == own[-1].size else (*own[:-1], axes.one)


def _residual_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    from irprune.ops.families.norm import masked_mean

    x, skip, weight, bias, extra = [*operands, None, None, None][:5]
    if node.attrs["rms"]:
        bias, extra = None, operands[3] if len(operands) > 3 else None
    mask = present(node.operand(0), [node.operand(0).rank - 1])
    if mask is None:
        return run(*operands)
    total = x + skip if extra is None else x + skip + extra
    dims = [node.operand(0).rank - 1]
    y = total if node.attrs["rms"] else total - masked_mean(torch, total, dims, mask)
    y = y * torch.rsqrt(masked_mean(torch, y * y, dims, mask) + node.attrs["eps"]) * weight
    y = y if bias is None else y + bias
    return y if len(node.outputs) == 1 else [y, total, total, total][: len(node.outputs)]


def _read_residual(rms: bool) -> Any:
    def read(node: OnnxNode) -> Step:
        if any(node.outputs[1:3]):
            raise Unread("the statistics of a SkipLayerNormalization are read")
        x = node.shape(0)
        state = TensorType("f32", (*x[:-1], 1))
        attrs = {"eps": node.attrs.get("epsilon", 1e-12), "rms": rms, "results": len(node.outputs)}
        return Step("residual_norm", None, attrs, [like(node), state, state, like(node)][: len(node.outputs)])

    return read


op(
    "residual_norm",
    _residual,
    run=runs("residual_norm"),
    silence=_residual_silence,
    samples=(Sample((Arg((2, 3, 6)), Arg((2, 3, 6)), Arg((6,)), Arg((6,)), Arg((6,))), {"eps": 1e-5, "rms": False, "results": 1}, free=3),),
)


def _nothing(edit: Edit, *nodes: Node) -> None:
    """Nothing of it is a size."""


spell("residual_norm", "com.microsoft::SkipLayerNormalization", read=_read_residual(False), write=_nothing)
spell("residual_norm", "com.microsoft::SkipSimplifiedLayerNormalization", read=_read_residual(True), write=_nothing)

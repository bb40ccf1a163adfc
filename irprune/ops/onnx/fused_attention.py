"""Attention as onnxruntime fuses it (``com.microsoft``): with its projection, with biases, over
caches and rotated queries and keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from irprune.ir.axis import Axes, factors, parts
from irprune.ir.graph import Node, TensorType
from irprune.ir.size import Size, probe_of, same
from irprune.ops.aten.contraction import zeroed
from irprune.ops.onnx.attention import (
    apart,
    attended,
    attention_parts,
    counted,
    masked,
    opened,
    resized,
    shared,
    silenced,
)
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
from irprune.ops.onnx.quant import quiet
from irprune.ops.onnx.types import like
from irprune.ops.registry import Arg, Cut, Sample, Unsupported
from irprune.ops.registry import op as declare
from irprune.ops.traits import Kind, Quantised

op = partial(declare, family="fused_attention")

__all__: list[str] = []

FILTER = -10000.0  # what a masked product is lowered by

# -- query, key and value apart --------------------------------------------------------------------


def _padding(axes: Axes, node: Node, i: int, batch: Any) -> None:
    """Which keys count: a length for each sequence, or a number for each key."""
    if node.has(i):
        own = axes.of(node.operand(i))
        shared(axes, own[0], batch)
        for a in own[1:]:
            axes.freeze(a, "a mask of positions")


def _multi_head(axes: Axes, node: Node) -> None:
    attended(axes, node, mask=5, past=(6, 7))
    _padding(axes, node, 4, axes.of(node.operand(0))[0])
    if node.has(3):
        bias = axes.of(node.operand(3))[0]
        many = [axes.of(node.operand(i)) for i in range(3)]
        widths = [a[2] if len(a) == 3 else axes.product((a[1], a[3])) for a in many]
        axes.unify(bias, axes.sum(widths))


def _multi_head_silence(
    torch: Any, node: Node, operands: Sequence[Any], present: Any, run: Any
) -> Any:
    """Besides query and key, what the bias adds to dropped entries of them."""
    made = list(operands)
    if node.has(3):
        made[3] = zeroed(torch, made[3], present(node.operand(3), [0]))
    return silenced(torch, node, made, present, run)


def _read_multi_head(node: OnnxNode) -> Step:
    a = node.attrs
    more = any(node.has(i) for i in range(8, len(node.types))) or any(node.outputs[3:])
    if not (node.has(1) and node.has(2)) or node.rank(0) != 3 or more:
        raise UnsupportedUse("a MultiHeadAttention with packed operands, shared buffers or beams")
    q, k, v, heads = node.shape(0), node.shape(1), node.shape(2), a["num_heads"]
    width = v[2] if len(v) == 3 else v[1] * v[3]
    total = k[1] if len(k) == 3 else k[2]
    total = total + node.shape(6)[2] if node.has(6) else total
    attrs = {
        "q_num_heads": heads,
        "kv_num_heads": heads,
        "is_causal": a.get("unidirectional", 0),
        "scale": a.get("scale") or None,
        "filter": a.get("mask_filter_value", FILTER),
        "results": len(node.outputs),
    }
    kinds = [
        like(node, shape=(*q[:2], width)),
        like(node, shape=(q[0], heads, total, q[2] // heads)),
    ]
    kinds.append(like(node, shape=(q[0], heads, total, width // heads)))
    return Step("multi_head_attention", None, attrs, kinds[: len(node.outputs)])


def _write_multi_head(edit: Edit, node: Node) -> None:
    for name, key in (("num_heads", "q_num_heads"), ("kv_num_heads", "kv_num_heads")):
        if name in edit.attrs and edit.attrs[name] != node.attrs[key]:
            edit.attr(name, node.attrs[key])
    if node.attrs["scale"] is not None and edit.attrs.get("scale") != node.attrs["scale"]:
        edit.attr("scale", node.attrs["scale"])


_HEADS = {
    "q_num_heads": 4,
    "kv_num_heads": 4,
    "is_causal": 0,
    "scale": None,
    "filter": FILTER,
    "results": 1,
}
op(
    "multi_head_attention",
    _multi_head,
    run=runs("multi_head_attention"),
    resize=resized,
    silence=_multi_head_silence,
    macs=counted,
    samples=(
        Sample((Arg((2, 3, 24)), Arg((2, 5, 24)), Arg((2, 5, 28)), Arg((76,))), _HEADS, free=4),
        Sample(
            (Arg((2, 3, 24)), Arg((2, 4, 5, 6)), Arg((2, 4, 5, 7)), None, Arg((2, 5), "i32", 0, 2)),
            _HEADS,
            free=4,
        ),
    ),
    kinds=attention_parts,
)
spell(
    "multi_head_attention",
    "com.microsoft::MultiHeadAttention",
    read=_read_multi_head,
    write=_write_multi_head,
)

# -- key heads that serve several query heads ------------------------------------------------------


def _group_query(axes: Axes, node: Node) -> None:
    """As attention over a cache. Heads go in groups; their size stays: onnxruntime wants a multiple
    of 8, of 16 with rotary tables."""
    attended(axes, node, mask=10, past=(3, 4))
    _padding(axes, node, 5, axes.of(node.operand(0))[0])
    why = f"head size of GroupQueryAttention, for which onnxruntime wants a multiple of {16 if node.attrs['do_rotary'] else 8}"
    for i, heads in (
        (0, node.attrs["q_num_heads"]),
        (1, node.attrs["kv_num_heads"]),
        (2, node.attrs["kv_num_heads"]),
    ):
        axes.freeze(opened(axes, node, i, heads)[3], why)
    for i in (7, 8):
        for a in axes.of(node.operand(i)) if node.has(i) else ():
            axes.freeze(a, "a table of rotations")
    if node.has(11):  # one number for each query head
        axes.unify(
            axes.of(node.operand(11))[0], opened(axes, node, 0, node.attrs["q_num_heads"])[1]
        )


def _read_group_query(node: OnnxNode) -> Step:
    a = node.attrs
    if (
        not (node.has(1) and node.has(2))
        or node.has(9)
        or a.get("qk_output", 0)
        or any(node.outputs[3:])
    ):
        raise UnsupportedUse("a GroupQueryAttention with packed operands or given positions")
    if any(node.has(i) for i in range(12, len(node.types))) or not a.get("causal", 1):
        raise UnsupportedUse("a GroupQueryAttention with norms, an integer cache or no mask")
    q, k, heads, groups = node.shape(0), node.shape(1), a["num_heads"], a["kv_num_heads"]
    attrs = {
        "q_num_heads": heads,
        "kv_num_heads": groups,
        "is_causal": 1,
        "scale": a.get("scale") or None,
        "softcap": a.get("softcap", 0.0),
        "do_rotary": a.get("do_rotary", 0),
        "rotary_interleaved": a.get("rotary_interleaved", 0),
        "window": a.get("local_window_size", -1),
        "smooth": a.get("smooth_softmax", 0),
        "results": len(node.outputs),
    }
    length: Size | None = k[1]
    if node.has(3):
        found = node.inferred()
        length = (
            found[1].known[2]
            if len(found) > 1 and found[1].shape is not None
            else k[1] + node.shape(3)[2]
        )
    cache = like(node, shape=(q[0], groups, length, k[2] // groups))  # type: ignore[arg-type]
    return Step(
        "group_query_attention", None, attrs, [like(node), cache, cache][: len(node.outputs)]
    )


def _group_query_silence(
    torch: Any, node: Node, operands: Sequence[Any], present: Any, run: Any
) -> Any:
    return silenced(torch, node, list(operands), present, run)


op(
    "group_query_attention",
    _group_query,
    run=runs("group_query_attention"),
    resize=resized,
    silence=_group_query_silence,
    macs=counted,
    kinds=attention_parts,
)
spell(
    "group_query_attention",
    "com.microsoft::GroupQueryAttention",
    read=_read_group_query,
    write=_write_multi_head,
)

# -- attention with its projection -----------------------------------------------------------------


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
    _padding(axes, node, 3, x[0])
    if node.has(5):
        masked(axes, node, 5, qh)  # type: ignore[arg-type]
    node.out.axes = (x[0], x[1], axes.product((vh, vd)))  # type: ignore[arg-type]
    caches = [
        *([axes.of(node.operand(4))] if node.has(4) else []),
        *(axes.of(v) for v in node.outputs[1:]),
    ]
    for cache in caches:  # keys and values of the past in one tensor
        axes.freeze(cache[0], "keys and values")
        shared(axes, cache[1], x[0])
        axes.unify(cache[2], qh)  # type: ignore[arg-type]
        axes.freeze(cache[3], "positions of the past")
        axes.unify(cache[4], kd)  # type: ignore[arg-type]
        axes.unify(cache[4], vd)  # type: ignore[arg-type]


def _projected_resize(node: Node, cut: Cut) -> None:
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
    """Dropped input features are not summed, and the columns of dropped query and key entries are
    zero."""
    made = list(operands)
    made[0] = zeroed(torch, made[0], present(node.operand(0), [2]))
    made[1] = zeroed(
        torch, zeroed(torch, made[1], present(node.operand(1), [0])), present(node.operand(1), [1])
    )
    if len(made) > 2 and made[2] is not None:
        made[2] = zeroed(torch, made[2], present(node.operand(2), [0]))
    return run(*made)


def _projected_kinds(node: Node) -> Iterable[Kind]:
    """Heads and head_dim stand in the result, and in the columns of query and key."""
    heads = node.attrs["num_heads"]
    for whole in ((node.out.axes or ())[2], *parts((node.operand(1).axes or ())[1])):
        outer, inner = apart(whole, heads)
        yield from ((h, "heads") for h in outer)
        yield from ((d, "head_dim") for d in inner)


def _projected_macs(node: Node) -> tuple[Any, ...]:
    """The projection, queries with keys, and weights with values."""
    x, w = node.operand(0).axes or (), node.operand(1).axes or ()
    queries, covered = [], 0
    for p in parts(w[1]):
        if covered < node.attrs["sizes"][0]:
            queries.append(p)
            covered += probe_of(p.size)
    return ((*x[:2], *w), *((*x[:2], x[1], p) for p in queries), (*(node.out.axes or ()), x[1]))


def _read_projected(node: OnnxNode) -> Step:
    a = node.attrs
    x, width = node.shape(0), node.shape(1)[1]
    lengths = node.has(3) and node.rank(3) == 1
    if (
        node.has(6)
        or a.get("do_rotary", 0)
        or (node.has(3) and node.rank(3) > 3)
        or (lengths and not same(node.shape(3)[0], x[0]))
    ):
        raise UnsupportedUse(
            "a com.microsoft::Attention with a shared buffer, a rotation or an unusual mask"
        )
    sizes = list(a.get("qkv_hidden_sizes") or [width // 3] * 3)
    if not isinstance(width, int):
        raise UnsupportedUse("a com.microsoft::Attention of dynamic width")
    heads = a["num_heads"]
    attrs = {
        "num_heads": heads,
        "sizes": sizes,
        "is_causal": a.get("unidirectional", 0),
        "scale": a.get("scale") or None,
        "filter": a.get("mask_filter_value", FILTER),
        "results": len(node.outputs),
    }
    total = x[1] + node.shape(4)[3] if node.has(4) else x[1]
    cache = like(node, shape=(2, x[0], heads, total, sizes[1] // heads))
    return Step(
        "projected_attention",
        (0, 1, 2, 3, 4, 5),
        attrs,
        [like(node, shape=(*x[:2], sizes[2])), cache][: len(node.outputs)],
    )


def _write_projected(edit: Edit, node: Node) -> None:
    a = node.attrs
    if edit.attrs["num_heads"] != a["num_heads"]:
        edit.attr("num_heads", a["num_heads"])
    if (
        list(edit.attrs.get("qkv_hidden_sizes") or a["sizes"]) != a["sizes"]
        or len(set(a["sizes"])) > 1
    ):
        edit.attr("qkv_hidden_sizes", a["sizes"])
    if a["scale"] is not None and edit.attrs.get("scale") != a["scale"]:
        edit.attr("scale", a["scale"])


def _write_quantised(edit: Edit, node: Node) -> None:
    a = node.attrs
    if edit.attrs["num_heads"] != a["num_heads"]:
        edit.attr("num_heads", a["num_heads"])
    if a["scale"] is not None and edit.attrs.get("scale") != a["scale"]:
        edit.attr("scale", a["scale"])


_PROJECTED = {
    "num_heads": 2,
    "sizes": [8, 8, 8],
    "is_causal": 0,
    "scale": None,
    "filter": FILTER,
    "results": 1,
}
op(
    "projected_attention",
    _projected,
    run=runs("projected_attention"),
    resize=_projected_resize,
    silence=_projected_silence,
    macs=_projected_macs,
    samples=(
        Sample((Arg((2, 3, 5)), Arg((5, 24)), Arg((24,))), _PROJECTED, free=5),
        Sample(
            (Arg((2, 3, 5)), Arg((5, 24)), Arg((24,)), Arg((2,), "i32", 1, 4)), _PROJECTED, free=5
        ),
    ),
    kinds=_projected_kinds,
)
spell(
    "projected_attention", "com.microsoft::Attention", read=_read_projected, write=_write_projected
)

# -- the same over integers ------------------------------------------------------------------------


def _quantised(axes: Axes, node: Node) -> None:
    """As projected attention; scales and zero points of the matrix are one, or one a column."""
    _projected(axes, node)
    columns = axes.of(node.operand(1))[1]
    for i in (7, 9):
        for a in axes.of(node.operand(i)) if node.has(i) else ():
            shared(axes, a, columns)


def _quantised_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    """What is dropped has its zero point."""
    made = [*operands, None, None][:10]
    x, w = node.operand(0), node.operand(1)
    made[0] = quiet(torch, made[0], made[8], present(x, [2]), 2)
    for d in (0, 1):
        made[1] = quiet(torch, made[1], made[9], present(w, [d]), 1)
    made[2] = zeroed(torch, made[2], present(node.operand(2), [0]))
    return run(*made[: len(operands)])


def _read_quantised(node: OnnxNode) -> Step:
    a = node.attrs
    x, width = node.shape(0), node.shape(1)[1]
    lengths = node.has(5) and node.rank(5) == 1
    if (
        a.get("do_rotary", 0)
        or a.get("past_present_share_buffer", 0)
        or (node.has(5) and node.rank(5) > 3)
        or (lengths and not same(node.shape(5)[0], x[0]))
        or not isinstance(width, int)
    ):
        raise UnsupportedUse("a QAttention with a shared buffer, a rotation or an unusual mask")
    heads, third = a["num_heads"], width // 3
    attrs = {
        "num_heads": heads,
        "sizes": [third] * 3,
        "is_causal": a.get("unidirectional", 0),
        "scale": a.get("scale") or None,
        "filter": a.get("mask_filter_value", FILTER),
        "results": len(node.outputs),
    }
    total = x[1] + node.shape(8)[3] if node.has(8) else x[1]
    cache = TensorType("f32", (2, x[0], heads, total, third // heads))
    made = [TensorType("f32", (*x[:2], third)), cache]
    operands = (0, 1, 2, 5, 8, None, 3, 4, 6, 7)
    return Step("quantised_attention", operands, attrs, made[: len(node.outputs)])


def _equal_thirds(axes: Axes, node: Node) -> None:
    """QAttention has no sizes of its own: query, key and value are equally wide."""
    _quantised(axes, node)
    q, _, v = axes.cut(axes.of(node.operand(1))[1], node.attrs["sizes"])
    axes.unify(q, v)


_SCALED = (Arg((), low=0.02, high=0.03), Arg((), low=0.01, high=0.02))
_WHOLE = (Arg((2, 3, 5), "u8", 0, 255), Arg((5, 24), "i8", -90, 90), Arg((24,)))
op(
    "quantised_attention",
    _equal_thirds,
    run=runs("quantised_attention"),
    resize=_projected_resize,
    silence=_quantised_silence,
    macs=_projected_macs,
    samples=(
        Sample((*_WHOLE, None, None, None, *_SCALED, Arg((), "u8", 120, 130)), _PROJECTED, free=4),
    ),
    kinds=_projected_kinds,
    operands=("data", "weight", "bias"),
    quantised_as=lambda node: {0: Quantised(6, 8), 1: Quantised(7, 9, 1)},
    rounds=True,
)
spell(
    "quantised_attention",
    "com.microsoft::QAttention",
    read=_read_quantised,
    write=_write_quantised,
)

# -- samples ---------------------------------------------------------------------------------------

_Q, _KV = Arg((2, 3, 24)), Arg((2, 5, 24))
sampled(
    "com.microsoft::MultiHeadAttention",
    use(_Q, _KV, Arg((2, 5, 28)), free=4, num_heads=4),
    use(_Q, _KV, _KV, Arg((72,)), free=4, num_heads=4, scale=0.3),
)
_LENGTHS, _TOTAL = Arg((2,), "i32", 2, 3), Arg((1,), "i32", 3, 4)
sampled(
    "com.microsoft::GroupQueryAttention",
    use(
        Arg((2, 3, 32)),
        Arg((2, 3, 16)),
        Arg((2, 3, 16)),
        None,
        None,
        _LENGTHS,
        _TOTAL,
        free=3,
        num_heads=4,
        kv_num_heads=2,
    ),
    use(
        Arg((2, 3, 32)),
        Arg((2, 3, 16)),
        Arg((2, 3, 16)),
        None,
        None,
        _LENGTHS,
        _TOTAL,
        None,
        None,
        None,
        Arg((1, 4, 3, 3)),
        Arg((4,)),
        free=3,
        num_heads=4,
        kv_num_heads=2,
        local_window_size=2,
    ),
    use(
        Arg((2, 3, 32)),
        Arg((2, 3, 16)),
        Arg((2, 3, 16)),
        None,
        None,
        _LENGTHS,
        _TOTAL,
        free=3,
        num_heads=4,
        kv_num_heads=2,
        smooth_softmax=1,
    ),
)
sampled(
    "com.microsoft::Attention",
    use(Arg((2, 3, 5)), Arg((5, 24)), Arg((24,)), free=5, num_heads=2),
    use(Arg((2, 3, 5)), Arg((5, 24)), Arg((24,)), free=5, num_heads=2, unidirectional=1),
    use(Arg((2, 3, 5)), Arg((5, 20)), Arg((20,)), free=5, num_heads=2, qkv_hidden_sizes=[8, 8, 4]),
)
_ZEROS = (Arg((), "u8", 120, 130, stored=True), Arg((), "i8", -5, 5, stored=True))
_STORED = (
    Arg((5, 24), "i8", -90, 90, stored=True),
    Arg((24,), stored=True),
    Arg((), low=0.02, high=0.03, stored=True),
)
sampled(
    "com.microsoft::QAttention",
    use(_WHOLE[0], *_STORED, Arg((), low=0.01, high=0.02, stored=True), free=4, num_heads=2),
    use(
        _WHOLE[0],
        *_STORED,
        Arg((24,), low=0.01, high=0.02, stored=True),
        Arg((2,), "i32", values=(2, 3)),
        _ZEROS[0],
        Arg((24,), "i8", values=(0,) * 24),
        free=4,
        num_heads=2,
        unidirectional=1,
    ),
)

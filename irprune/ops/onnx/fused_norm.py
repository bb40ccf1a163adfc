"""Norms that onnxruntime fuses with the sum before them: a residual, or the embeddings of a
token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from irprune.ir.axis import Axes
from irprune.ir.graph import Node, TensorType
from irprune.ops.aten.norm import masked_mean
from irprune.ops.onnx.attention import shared
from irprune.ops.onnx.importer import OnnxNode, Step, UnsupportedUse, runs, sampled, spell, use
from irprune.ops.onnx.norm import nothing
from irprune.ops.onnx.types import like
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare
from irprune.ops.traits import Role

op = partial(declare, family="fused_norm")

__all__: list[str] = []


def _normed(
    torch: Any, total: Any, mask: Any, weight: Any, bias: Any, eps: float, rms: bool
) -> Any:
    """The norm of ``total`` over its last dimension, where ``mask`` is true."""
    dims = [total.dim() - 1]
    y = total if rms else total - masked_mean(torch, total, dims, mask)
    y = y * torch.rsqrt(masked_mean(torch, y * y, dims, mask) + eps) * weight
    return y if bias is None else y + bias


# -- a residual ------------------------------------------------------------------------------------


def _residual(axes: Axes, node: Node) -> None:
    own = axes.of(node.operand(0))
    for value in node.inputs[1:]:
        if value is not None:
            for a, b in zip(own[len(own) - value.rank :], axes.of(value), strict=True):
                shared(axes, a, b)
    for value in node.outputs:
        value.axes = (
            own
            if value.rank == len(own) and value.shape[-1] == own[-1].size
            else (*own[:-1], axes.one)
        )


def _residual_silence(
    torch: Any, node: Node, operands: Sequence[Any], present: Any, run: Any
) -> Any:
    x, skip, weight, bias, extra = [*operands, None, None, None][:5]
    if node.attrs["rms"]:
        bias, extra = None, operands[3] if len(operands) > 3 else None
    mask = present(node.operand(0), [node.operand(0).rank - 1])
    if mask is None:
        return run(*operands)
    total = x + skip if extra is None else x + skip + extra
    y = _normed(torch, total, mask, weight, bias, node.attrs["eps"], node.attrs["rms"])
    return y if len(node.outputs) == 1 else [y, total, total, total][: len(node.outputs)]


def _residual_roles(node: Node) -> tuple[Role, ...]:
    after: tuple[Role, ...] = ("bias",) if node.attrs["rms"] else ("bias", "bias")
    return ("summand", "summand", "scale", *after)


def _read_residual(rms: bool) -> Any:
    def read(node: OnnxNode) -> Step:
        if any(node.outputs[1:3]):
            raise UnsupportedUse("the statistics of a SkipLayerNormalization are read")
        x = node.shape(0)
        state = TensorType("f32", (*x[:-1], 1))
        attrs = {"eps": node.attrs.get("epsilon", 1e-12), "rms": rms, "results": len(node.outputs)}
        return Step(
            "residual_norm",
            None,
            attrs,
            [like(node), state, state, like(node)][: len(node.outputs)],
        )

    return read


op(
    "residual_norm",
    _residual,
    run=runs("residual_norm"),
    silence=_residual_silence,
    samples=(
        Sample(
            (Arg((2, 3, 6)), Arg((2, 3, 6)), Arg((6,)), Arg((6,)), Arg((6,))),
            {"eps": 1e-5, "rms": False, "results": 1},
            free=3,
        ),
    ),
    operands=_residual_roles,
)
spell(
    "residual_norm",
    "com.microsoft::SkipLayerNormalization",
    read=_read_residual(False),
    write=nothing,
)
spell(
    "residual_norm",
    "com.microsoft::SkipSimplifiedLayerNormalization",
    read=_read_residual(True),
    write=nothing,
)

# -- embeddings ------------------------------------------------------------------------------------


def _embedded(axes: Axes, node: Node) -> None:
    """Tables of words, positions and segments share their columns; their rows are read at run
    time."""
    ids = axes.of(node.operand(0))
    width = axes.of(node.operand(2))[1]
    for i in (2, 3, 4, 5, 6):
        if node.has(i):
            *rows, columns = axes.of(node.operand(i))
            axes.unify(width, columns)
            for a in rows:
                axes.freeze(a, "rows that are read at run time")
    for i in (1, 7, 8):
        if node.has(i):
            for a, b in zip(ids, axes.of(node.operand(i)), strict=True):
                shared(axes, a, b)
    axes.freeze(ids[1], "positions")
    for value in node.outputs:
        value.axes = (*ids, width) if value.rank == 3 else (ids[0],)


def _embedded_silence(
    torch: Any, node: Node, operands: Sequence[Any], present: Any, run: Any
) -> Any:
    mask = present(node.operand(2), [1])
    if mask is None:
        return run(*operands)
    ids, segments, words, places, kinds, weight, bias, _mask, at = [*operands, None, None][:9]
    at = torch.arange(ids.shape[1], device=ids.device) if at is None else at
    total = torch.embedding(words, ids) + torch.embedding(places, at)
    total = total if kinds is None or segments is None else total + torch.embedding(kinds, segments)
    y = _normed(torch, total, mask, weight, bias, node.attrs["eps"], False)
    return y if len(node.outputs) == 1 else [y, run(*operands)[1], total][: len(node.outputs)]


def _read_embedded(node: OnnxNode) -> Step:
    ids, width = node.shape(0), node.shape(2)[1]
    whole = TensorType(node.type(2).dtype, (*ids, width))
    attrs = {"eps": node.attrs.get("epsilon", 1e-12), "results": len(node.outputs)}
    return Step(
        "embedding_norm",
        None,
        attrs,
        [whole, TensorType("i32", ids[:1]), whole][: len(node.outputs)],
    )


_IDS = Arg((2, 3), "i32", 0, 5)
op(
    "embedding_norm",
    _embedded,
    run=runs("embedding_norm"),
    silence=_embedded_silence,
    samples=(
        Sample(
            (_IDS, _IDS, Arg((5, 6)), Arg((5, 6)), Arg((5, 6)), Arg((6,)), Arg((6,))),
            {"eps": 1e-5, "results": 1},
            free=2,
        ),
        Sample(
            (_IDS, None, Arg((5, 6)), Arg((5, 6)), None, Arg((6,)), Arg((6,))),
            {"eps": 1e-5, "results": 1},
            free=2,
        ),
    ),
    operands=("index", "index", "table", "table", "table", "scale", "bias"),
)
spell(
    "embedding_norm", "com.microsoft::EmbedLayerNormalization", read=_read_embedded, write=nothing
)

# -- samples ---------------------------------------------------------------------------------------

_X, _ROW = Arg((2, 3, 6)), Arg((6,), low=0.5, high=1.5)
sampled(
    "com.microsoft::SkipLayerNormalization",
    use(_X, _X, _ROW, _ROW, _ROW, free=3, epsilon=1e-5),
    use(_X, _X, _ROW, free=3, epsilon=1e-5, read=(0, 3)),
)
sampled(
    "com.microsoft::SkipSimplifiedLayerNormalization",
    use(_X, _X, _ROW, _ROW, free=3, epsilon=1e-5),
    use(_X, _X, _ROW, free=3, epsilon=1e-5, read=(0, 3)),
)
_WORDS = Arg((5, 6))
sampled(
    "com.microsoft::EmbedLayerNormalization",
    use(_IDS, _IDS, _WORDS, _WORDS, _WORDS, _ROW, _ROW, free=2, epsilon=1e-5, read=(0, 1)),
    use(_IDS, None, _WORDS, _WORDS, None, _ROW, _ROW, free=2, epsilon=1e-5, read=(0, 1)),
)

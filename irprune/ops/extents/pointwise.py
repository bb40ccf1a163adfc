"""Operators that work element by element, and norms, which keep the shape of what they scale."""

from __future__ import annotations

from irprune.ir.graph import Node
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Size
from irprune.ops.extents import extents
from irprune.ops.extents.helpers import broadcast, present, same_for_all

__all__ = ["elementwise"]


@extents("eq", "ne")
def elementwise(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The operands' shapes, stretched to each other. It is what operators do whose axis rule is
    broadcasting, and comparisons, whose rule says more."""
    return same_for_all(node, broadcast((v.shape for v in present(node)), sizes))


@extents(
    "prelu",
    "softmax",
    "log_softmax",
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "cummax",
    "cummin",
    "sort",
    "argsort",
    "msort",
    "roll",
    "flip",
    "fliplr",
    "flipud",
    "triangle",
    "pad_circular_same",
    "bernoulli",
    "poisson",
    "cast_like",
    "fft_fftshift",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "index_add",
    "index_copy",
    "index_reduce",
    "index_fill",
    "index_put",
    "masked_scatter",
    "select_scatter",
    "slice_scatter",
    "channel_shuffle",
    "isin",
    "linalg_inv",
    "linalg_matrix_exp",
    "linalg_matrix_power",
)
def like_first(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The shape of the first operand."""
    return same_for_all(node, node.operand(0).shape)


def _channelwise(node: Node, sizes: OpenSizes) -> tuple[Size, ...]:
    shape = list(node.operand(0).shape)
    for v in node.inputs[1:]:
        if v is not None and len(shape) > 1:
            shape[1] = sizes.meet(shape[1], v.shape[0])
    return tuple(shape)


@extents("batch_norm", "instance_norm")
def channelwise(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The first operand's shape; parameters fix its channels."""
    return same_for_all(node, _channelwise(node, sizes))


@extents("layer_norm", "rms_norm")
def trailing(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The first operand's shape, whose last dimensions are those that are normalised."""
    shape = list(node.operand(0).shape)
    last = node.attrs["normalized_shape"]
    for k, s in enumerate(last):
        at = len(shape) - len(last) + k
        shape[at] = sizes.meet(shape[at], s)
    lead = (*shape[: len(shape) - len(last)], *(1 for _ in last))
    return [tuple(shape), *(lead for _ in node.outputs[1:])]


@extents("group_norm")
def group_norm(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """As ``channelwise``: the second dimension is what the parameters scale, and is a multiple of
    the number of groups."""
    shape = _channelwise(node, sizes)
    sizes.fixed(shape[1])
    return [shape]

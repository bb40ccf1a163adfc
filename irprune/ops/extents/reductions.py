"""Reductions, rankings and counts."""

from __future__ import annotations

from typing import Any

from irprune.ir.graph import Node
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Size
from irprune.ops.extents import extents
from irprune.ops.extents.helpers import broadcast, dims_of, index_of, same_for_all

__all__: list[str] = []


@extents(
    "sum",
    "nansum",
    "prod",
    "amax",
    "amin",
    "max_whole",
    "min_whole",
    "logsumexp",
    "any",
    "all",
    "is_all_true",
    "is_any_true",
    "count_nonzero",
    "aminmax",
    "max_dim",
    "min_dim",
    "mean",
    "nanmean",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "vector_norm",
    "norm",
    "frobenius_norm",
    "argmax",
    "argmin",
    "median",
    "nanmedian",
    "mode",
    "kthvalue",
)
def reduce(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The dimensions that are reduced go, or become 1."""
    shape, given = node.operand(0).shape, node.attrs.get("dim")
    if node.op in ("mode", "kthvalue") and given is None:
        given = -1
    if node.op == "frobenius_norm" and given is None:
        given = [-2, -1]
    gone = dims_of(given, len(shape))
    keep = node.attrs.get("keepdim", False)
    return same_for_all(
        node, tuple(1 if d in gone else s for d, s in enumerate(shape) if d not in gone or keep)
    )


@extents("topk")
def topk(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """As many as are asked for."""
    shape = list(node.operand(0).shape)
    if shape:
        shape[index_of(node.attrs.get("dim", -1), len(shape))] = node.attrs["k"]
    return same_for_all(node, tuple(shape))


@extents("diff")
def diff(node: Node, sizes: OpenSizes) -> list[tuple[Size | None, ...]]:
    """One less for each time, and what is put before and after."""
    shape = list(node.operand(0).shape)
    d = index_of(node.attrs.get("dim", -1), len(shape))
    more = [v.shape[d] for v in node.inputs[1:] if v is not None and v.rank == len(shape)]
    shape[d] = sizes.sum((shape[d], *more, -node.attrs.get("n", 1)))
    return [tuple(shape)]


@extents("cosine_similarity", "pairwise_distance")
def compare(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Both shapes, stretched to each other, without the dimension that is compared along."""
    shape = list(broadcast((node.operand(0).shape, node.operand(1).shape), sizes))
    d = index_of(node.attrs.get("dim", 1) if node.op == "cosine_similarity" else -1, len(shape))
    if node.attrs.get("keepdim"):
        shape[d] = 1
    else:
        del shape[d]
    return [tuple(shape)]


@extents("histc", "bincount")
def counted(node: Node, sizes: OpenSizes) -> list[tuple[Any, ...]]:
    """As many as there are bins."""
    return [(node.attrs["bins"],) if node.op == "histc" else (None,)]

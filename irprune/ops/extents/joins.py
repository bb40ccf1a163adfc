"""Operators that put tensors together, or pad one."""

from __future__ import annotations

from typing import Any

from irprune.ir.graph import Node
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Size
from irprune.ops.extents import extents
from irprune.ops.extents.helpers import index_of, present

__all__: list[str] = []


@extents("cat")
def cat(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """One dimension is the sum, the others are the same."""
    return [_joined(node, node.attrs.get("dim", 0), sizes)]


def _joined(node: Node, dim: int, sizes: OpenSizes) -> tuple[Size, ...]:
    shapes = [v.shape for v in present(node) if v.shape != (0,)]
    d = index_of(dim, len(shapes[0]))
    out = list(shapes[0])
    for shape in shapes[1:]:
        for k, s in enumerate(shape):
            out[k] = sizes.sum((out[k], s)) if k == d else sizes.meet(out[k], s)
    return tuple(out)


@extents("hstack", "vstack", "dstack", "column_stack")
def stack_along(node: Node, sizes: OpenSizes) -> list[tuple[Size | None, ...]]:
    """As ``cat`` along a dimension that the name says, where the rank suffices."""
    rank = node.operand(0).rank
    dim = {"hstack": 1, "vstack": 0, "dstack": 2, "column_stack": 1}[node.op]
    if node.op == "hstack" and rank == 1:
        dim = 0
    if rank <= dim or (rank < 2 and node.op != "hstack"):
        return [tuple(None for _ in node.out.shape)]
    return [_joined(node, dim, sizes)]


@extents("stack")
def stack(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """A dimension more, of as many as there are operands."""
    first, *rest = (v.shape for v in present(node))
    out = list(first)
    for shape in rest:
        out = [sizes.meet(a, b) for a, b in zip(out, shape, strict=True)]
    out.insert(index_of(node.attrs.get("dim", 0), len(out) + 1), len(node.inputs))
    return [tuple(out)]


@extents("meshgrid")
def meshgrid(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """A dimension for each operand; the first two change places where indexing is xy."""
    out = [v.shape[0] if v.shape else 1 for v in present(node)]
    if node.attrs.get("indexing") == "xy" and len(out) > 1:
        out[0], out[1] = out[1], out[0]
    return [tuple(out)] * len(node.outputs)


@extents("pad", "pad_circular")
def pad(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """Before and after each dimension, from the last one on."""
    return [_padded(node.operand(0).shape, node.attrs["pad"], sizes)]


@extents(
    "reflection_pad1d",
    "replication_pad1d",
    "reflection_pad2d",
    "replication_pad2d",
    "reflection_pad3d",
    "replication_pad3d",
)
def reflected(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """As ``pad``."""
    return [_padded(node.operand(0).shape, node.attrs["padding"], sizes)]


def _padded(shape: tuple[Size, ...], given: Any, sizes: OpenSizes) -> tuple[Size, ...]:
    out = list(shape)
    for k in range(len(given) // 2):
        out[-1 - k] = sizes.sum((out[-1 - k], given[2 * k], given[2 * k + 1]))
    return tuple(out)

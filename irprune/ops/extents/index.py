"""Reading by index."""

from __future__ import annotations

from irprune.ir.graph import Node
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Size
from irprune.ops.extents import extents
from irprune.ops.extents.helpers import broadcast, index_of

__all__: list[str] = []


@extents("embedding")
def embedding(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The shape of the indices, and the width of the table."""
    return [(*node.operand(1).shape, *node.operand(0).shape[1:])]


@extents("index_select")
def index_select(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """As many as there are indices."""
    shape, index = list(node.operand(0).shape), node.operand(1).shape
    if shape:
        shape[index_of(node.attrs["dim"], len(shape))] = index[0] if index else 1
    return [tuple(shape)]


@extents("gather")
def gather(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The shape of the indices."""
    return [node.operand(1).shape]


@extents("take")
def take(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The shape of the indices."""
    return [node.operand(1).shape]


@extents("bucketize")
def bucketize(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The shape of what is looked up."""
    return [node.operand(0).shape]


@extents("searchsorted")
def searchsorted(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The shape of what is looked up."""
    return [node.operand(1).shape]


@extents("index")
def index(node: Node, sizes: OpenSizes) -> list[tuple[Size | None, ...]]:
    """The indices' common shape stands where they stand, in front where they do not stand
    together; a mask takes as many as it has true elements."""
    shape = node.operand(0).shape
    places = dict(node.origin.layout).get("indices")
    if not isinstance(places, tuple):
        return [tuple(None for _ in node.out.shape)]
    at = {d: node.operand(k) for d, k in enumerate(places) if k is not None and node.has(k)}
    if any(v.dtype in ("bool", "u8") for v in at.values()):
        return [tuple(None for _ in node.out.shape)]
    common = broadcast((v.shape for v in at.values()), sizes)
    first = min(at)
    together = list(at) == list(range(first, first + len(at)))
    start = first if together else 0
    rest = [s for d, s in enumerate(shape) if d not in at]
    return [(*rest[:start], *common, *rest[start:])]

"""What the functions share: operands that are there, dimensions counted from the end, results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from irprune.ir.graph import Node, Value
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Size

__all__ = ["broadcast", "dims_of", "index_of", "present", "same_for_all", "whole"]


def present(node: Node) -> Iterator[Value]:
    """The operands that are there."""
    return (v for v in node.inputs if v is not None)


def broadcast(shapes: Iterable[tuple[Size, ...]], sizes: OpenSizes) -> tuple[Size, ...]:
    """The shape that ``shapes`` have together, sizes of 1 stretched."""
    out: list[Size] = []
    for shape in shapes:
        if len(shape) > len(out):
            out[:0] = [1] * (len(shape) - len(out))
        start = len(out) - len(shape)
        for d, s in enumerate(shape):
            out[start + d] = sizes.broadcast(out[start + d], s)
    return tuple(out)


def same_for_all(node: Node, shape: tuple[Size, ...]) -> list[tuple[Size, ...]]:
    """``shape`` for every result."""
    return [shape] * len(node.outputs)


def index_of(dim: int, rank: int) -> int:
    """``dim`` counted from the start."""
    return dim % rank if rank else 0


def dims_of(given: Any, rank: int) -> set[int]:
    """The dimensions that an attribute names; all where it names none."""
    if given is None or given == []:
        return set(range(rank))
    return {index_of(d, rank) for d in (given if isinstance(given, (list, tuple)) else [given])}


def whole(x: Any, n: int) -> list[Any]:
    """An attribute that is one number, or a list of one or ``n``, as ``n`` numbers."""
    if not isinstance(x, (list, tuple)):
        return [x] * n
    return list(x) * n if len(x) == 1 else list(x)

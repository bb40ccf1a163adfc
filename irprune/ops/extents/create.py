"""Tensors made from sizes."""

from __future__ import annotations

from typing import Any

from irprune.ir.graph import Node
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Size, Sym
from irprune.ops.extents import extents

__all__: list[str] = []


@extents(
    "zeros",
    "new_zeros",
    "ones",
    "new_ones",
    "full",
    "new_full",
    "empty",
    "new_empty",
    "rand",
    "randn",
    "randint",
    "normal_sized",
)
def sized(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """The sizes that are given."""
    return [tuple(node.attrs["size"])]


@extents("scalar_tensor")
def scalar(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """No dimension."""
    return [()]


@extents("arange")
def arange(node: Node, sizes: OpenSizes) -> list[tuple[Size | None, ...]]:
    """``ceil((end - start) / step)``; not told for real numbers, whose rounding decides."""
    start: Any = node.attrs.get("start", 0)
    end: Any = node.attrs["end"]
    step: Any = node.attrs.get("step", 1)
    numbers = (start, end, step)
    if any(isinstance(x, float) or (isinstance(x, Sym) and not x.is_whole) for x in numbers):
        return [(None,)]
    length = end if start == 0 else sizes.of("-", end, start)
    if step == 1:
        return [(length,)]
    return [(sizes.of("neg", sizes.of("//", length, sizes.of("neg", step))),)]


@extents("linspace", "logspace")
def spaced(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """As many as are asked for."""
    return [(node.attrs["steps"],)]


@extents("eye")
def eye(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """A square, or what is given."""
    return [(node.attrs["n"], node.attrs.get("m", node.attrs["n"]))]


@extents("window")
def window(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """As long as is asked for."""
    return [(node.attrs["window_length"],)]


@extents("randperm")
def randperm(node: Node, sizes: OpenSizes) -> list[tuple[Size, ...]]:
    """As many as are asked for."""
    return [(node.attrs["n"],)]


@extents("one_hot")
def one_hot(node: Node, sizes: OpenSizes) -> list[tuple[Size | None, ...]]:
    """A dimension more, of as many as there are classes."""
    classes = node.attrs.get("num_classes", -1)
    known = isinstance(classes, Sym) or classes > 0
    return [(*node.operand(0).shape, classes if known else None)]

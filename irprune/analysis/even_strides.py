"""Leaves whose counts must stay even: what lies in one row with numbers that are taken for pairs,
real and imaginary part, shifts where the pairs begin."""

from __future__ import annotations

from collections.abc import Iterator

from irprune.ir.axis import Axis, factors, find, leaves, parts
from irprune.ir.graph import Graph, Value
from irprune.ops.registry import lookup

__all__ = ["even_leaves"]


def even_leaves(graph: Graph) -> list[Axis]:
    """The leaves of ``graph`` that are pieces of a row of which another piece is viewed as complex
    numbers, without a copy between. torch refuses odd strides and odd beginnings."""
    found: dict[Axis, None] = {}
    for node in graph.nodes:
        entry = lookup(node)
        if entry is None or not entry.even_strides:
            continue
        for value in _viewed(node.operand(0)):
            for axis in value.axes or ():
                for factor in factors(axis):
                    pieces = parts(factor)
                    if len(pieces) > 1:
                        found.update(dict.fromkeys(find(x) for p in pieces for x in leaves(p)))
    return [x for x in found if x.reason is None]


def _viewed(value: Value) -> Iterator[Value]:
    """``value`` and what it is a view of."""
    while True:
        yield value
        entry = lookup(value.producer) if value.producer is not None else None
        if value.producer is None or entry is None or not entry.is_view:
            return
        value = value.producer.operand(0)

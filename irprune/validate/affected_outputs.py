"""Which outputs depend on what was cut: the others agree whatever that did, and prove nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from irprune.ir.axis import leaves
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection

__all__ = ["reached", "reached_of"]

T = TypeVar("T")


def reached(graph: Graph, kept: Selection) -> list[bool]:
    """For each output of ``graph``, whether a weight or a branch that ``kept`` cuts leads to it."""
    led: set[int] = set()
    for weight in graph.weights.values():
        if any(kept.changes(x) for a in weight.axes or () for x in leaves(a)):
            led.add(id(weight))
    for node in graph.nodes:
        cut = any(v.name in kept.dropped for v in node.outputs)
        if cut or any(id(v) in led for v in node.inputs):
            led.update(map(id, node.outputs))
    return [id(v) in led for v in graph.outputs]


def reached_of(graph: Graph, outputs: Sequence[T], places: Sequence[Any] | None = None) -> list[T]:
    """Those of ``outputs`` that depend on what was cut; all where none does.

    Args:
        graph: the analysed original with its choice.
        outputs: what a call gives.
        places: for each of them, which output of the graph it is; by default they are in order.
            What is no number there is none of them.
    """
    assert graph.kept is not None
    of_graph = reached(graph, graph.kept)
    at = range(len(of_graph)) if places is None else [p for p in places if isinstance(p, int)]
    if len(at) != len(outputs):
        return list(outputs)
    return [x for p, x in zip(at, outputs, strict=True) if of_graph[p]] or list(outputs)

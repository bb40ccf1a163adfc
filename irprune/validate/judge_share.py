"""How much of a cut an independent judge can look at."""

from __future__ import annotations

from irprune.ir.axis import leaves
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection

__all__ = ["judged_share"]


def judged_share(graph: Graph, kept: Selection, judged: Selection) -> float:
    """The share of the elements of cut weights whose cut ``judged`` makes whole."""
    cut = sound = 0
    for weight in graph.weights.values():
        axes = {x for a in weight.axes or () for x in leaves(a) if kept.changes(x)}
        size = 1
        for s in weight.type.shape or ():
            size *= s if isinstance(s, int) else 1
        cut += size * bool(axes)
        sound += size * (bool(axes) and all(judged.changes(x) for x in axes))
    return sound / cut if cut else 1.0

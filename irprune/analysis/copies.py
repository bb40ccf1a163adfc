"""Arrays of a file that several layers read: whether a cut that gives some of them a copy of their
own makes the file larger."""

from __future__ import annotations

from irprune.analysis.cost import Costs, repeated
from irprune.ir.axis import Axis, leaves
from irprune.ir.graph import Graph, Weight
from irprune.ir.selection import Selection

__all__ = ["costly_copies"]


def costly_copies(graph: Graph, kept: Selection) -> dict[Axis, str]:
    """The leaves of ``kept`` whose cut adds more bytes to the file than it takes away, and why.

    An array that several layers read is stored once. Where some of them lose indices that others
    need, the cut array stands beside the whole one; that pays only where what else the same indices
    take away is larger than the copy.

    Args:
        graph: an analysed graph whose shared arrays have a weight for each use (``untie``).
        kept: the choice in question.

    Returns:
        Leaves to leave whole, in graph order; empty where the choice makes nothing larger.
    """
    shared: dict[int, list[Weight]] = {}
    for weight in graph.weights.values():
        shared.setdefault(id(weight.load), []).append(weight)
    out: dict[Axis, str] = {}
    costs: Costs | None = None
    for same in shared.values():
        cut = dict.fromkeys(
            x for w in same for a in w.axes or () for x in leaves(a) if x in kept.choice
        )
        if len(same) < 2 or not cut:
            continue
        costs = costs or Costs(graph)
        now = _without(kept, out)
        size = _bytes(graph, costs, now)
        worse = [x for x in cut if _bytes(graph, costs, _without(now, {x: ""})) < size]
        if not worse and _bytes(graph, costs, _without(now, dict.fromkeys(cut, ""))) < size:
            worse = list(cut)  # each by itself takes away as much as it adds, together they add
        for x in worse:
            out[x] = f"a copy of '{same[0].name}', which other layers read whole, is larger"
    return out


def _without(kept: Selection, whole: dict[Axis, str]) -> Selection:
    """``kept`` with the leaves in ``whole`` left whole."""
    return Selection(
        {x: k for x, k in kept.choice.items() if x not in whole},
        {x: h for x, h in kept.within.items() if x not in whole},
        kept.dropped,
    )


def _bytes(graph: Graph, costs: Costs, kept: Selection) -> int:
    """The bytes of what the file stores under ``kept``."""
    counts = kept.counts
    return costs.bytes.at(counts) - repeated(graph, kept)[1]

"""Changes of a graph's weights that are made once, also where the run that makes them is killed and
started again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from irprune.ir.graph import Graph, Weight
from irprune.ops.arrays import is_tensor
from irprune.run.kept_files import KeptFiles
from irprune.run.statistics import load_as, store

__all__ = ["once"]


def once(
    files: KeptFiles | None, graph: Graph, name: str, work: Callable[[], list[str]]
) -> list[str]:
    """Let ``work`` change weights of ``graph``; where an earlier run has kept what they became,
    that is put in their place instead.

    Args:
        files: Where it is kept; None lets ``work`` do it each time.
        graph: The graph.
        name: What tells the change from all others.
        work: Changes weights, and gives lines that the user is told.

    Returns:
        The lines.
    """
    if files is None:
        return work()
    known = files.get(name)
    if known is not None:
        for weight, held in known["weights"].items():
            store(graph.weights[weight], held)
        return list(known["notes"])
    before = [(weight, weight.load) for weight in graph.weights.values()]
    notes = work()
    changed = {w.name: _values(w) for w, load in before if w.load is not load}
    files.put(name, {"weights": changed, "notes": notes})
    return notes


def _values(weight: Weight) -> Any:
    """Those of a weight as a tensor: of its own type where it is one, else exact in float64."""
    held = weight.load()
    return held.detach() if is_tensor(held) else load_as(weight)

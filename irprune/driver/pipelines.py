"""The standard pipelines behind the public calls: a graph is analysed once, and cut as a copy."""

from __future__ import annotations

from irprune.driver.registry import own
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.passes import ANALYSE, CUT, PREPARE

__all__ = ["analyse", "cut_graph"]


def analyse(graph: Graph) -> Graph:
    """Give every dimension of ``graph`` its axis, once, by the pipelines ``prepare`` and
    ``analyse``."""
    if not isinstance(graph, Graph):
        raise IrpruneError(
            f"not a graph: {type(graph).__name__}", "", "give what irprune.capture returns"
        )
    if graph.axes is None:
        for one in own((*PREPARE, *ANALYSE)):
            one.run(graph)
    return graph


def cut_graph(graph: Graph) -> Graph:
    """A copy of the analysed graph, sliced by its choice: the pipeline ``cut``."""
    cut = graph.copy()
    for one in own(CUT):
        one.run(cut)
    return cut

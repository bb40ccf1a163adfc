"""Means that forward writes out, as ``x.sum(-1) / 64``, as means."""

from __future__ import annotations

from irprune.ir.graph import Graph
from irprune.ops.means import MEAN_OF_SUM, become_mean, written_means

__all__ = ["with_means"]


def with_means(graph: Graph) -> None:
    """Let each mean of ``graph`` that is written out be one node."""
    found = [one for one in written_means(graph) if one.total.origin.target in MEAN_OF_SUM]
    for one in found:
        become_mean(graph, one)
    graph.remove_all([one.scaled for one in found])

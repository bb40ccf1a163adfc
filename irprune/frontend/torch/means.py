"""Means that forward writes out, as ``x.sum(-1) / 64``, as means."""

from __future__ import annotations

from irprune.ir.graph import Graph
from irprune.ops.means import written_means

__all__ = ["with_means"]

_SPELLED = {"aten.sum.dim_IntList": "aten.mean.dim", "aten.sum.default": "aten.mean.default"}


def with_means(graph: Graph) -> None:
    """Let each mean of ``graph`` that is written out be one node."""
    found = [one for one in written_means(graph) if one.total.origin.target in _SPELLED]
    for one in found:
        one.total.op = "mean"
        one.total.origin.target = _SPELLED[one.total.origin.target]
        graph.replace(one.scaled.out, one.total.out)
    graph.remove_all([one.scaled for one in found])

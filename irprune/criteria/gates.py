"""Which weights tell the effect of silencing an index: those that read it; where none do, those
that make it."""

from __future__ import annotations

from collections.abc import Sequence

from irprune.criteria.places import places
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group, Member

__all__ = ["gate_places"]


def gate_places(graph: Graph, groups: Sequence[Group]) -> dict[Axis, list[Member]]:
    """For each leaf the members in dimensions that a layer sums over; all its parameters where
    there are none.

    The sum of gradient times weight over the readers is the derivative by a gate on the index. The
    makers (a filter and the batch norm behind it) would count the same effect again, once each."""
    from irprune.analysis.layers import layers

    summed = {(layer.weight.name, dim) for layer in layers(graph) for dim in layer.inputs}
    out = {}
    for leaf, members in places(graph, groups).items():
        reading = [m for m in members if (m.weight.name, m.dim) in summed]
        out[leaf] = reading or [m for m in members if m.weight.rank > 1] or members
    return out

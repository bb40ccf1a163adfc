"""lamp: squared magnitude relative to what would remain above it.

Lee et al., "Layer-Adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from irprune.criteria import Scores, criterion
from irprune.criteria.magnitude import Magnitude
from irprune.criteria.normalise import lamp
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group

__all__ = ["Lamp"]


@criterion("lamp")
@dataclass(frozen=True)
class Lamp:
    """The squared norm of an index over the sum of those at least as large: comparable between
    groups as it is."""

    reduce: str = "mean"

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        norms = Magnitude(reduce=self.reduce).scores(graph, groups, blocks)
        return {leaf: lamp(s) for leaf, s in norms.items()}

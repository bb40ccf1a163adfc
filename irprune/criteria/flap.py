"""flap: how much an input fluctuates around its mean, since the mean can go into the bias.

An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from irprune.criteria import Scores, criterion
from irprune.criteria.consumers import shares
from irprune.criteria.readings import Reading, readings_of
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group

__all__ = ["Flap"]


@criterion("flap")
@dataclass(frozen=True)
class Flap:
    """The variance of an input times the squared norm of the weights that read it, as a share of
    the layer's sum, added up over layers.

    Meant to be followed by a repair that moves means into biases (``repair="bias"`` or
    ``"least_squares"``)."""

    calibration: Any = None

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        return shares(graph, groups, blocks, readings_of(self.calibration, graph, "flap"), _weigh)


def _weigh(reading: Reading) -> Any:
    return reading.weight.square().sum(-1) * reading.variance

"""wanda: weights weighted by the activations they meet.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024; summed
over what an index owns in each layer that reads it, as its structured form in An et al., AAAI 2024.
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

__all__ = ["Wanda"]


@criterion("wanda")
@dataclass(frozen=True)
class Wanda:
    """``|w| * ||x||`` summed over all weights that read an index, as a share of the layer's sum,
    added up over layers."""

    calibration: Any = None

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        return shares(graph, groups, blocks, readings_of(self.calibration, graph, "wanda"), _weigh)


def _weigh(reading: Reading) -> Any:
    return reading.weight.abs().sum(-1) * reading.square.sqrt()

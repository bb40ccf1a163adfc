"""batch_norm_scale: the magnitude of the scale that normalises a channel.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from irprune.criteria import Scores, criterion
from irprune.criteria.places import is_scale, place_of, reduce, reduction
from irprune.criteria.profile import profile
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group

__all__ = ["BatchNormScale"]


@criterion("batch_norm_scale")
@dataclass(frozen=True)
class BatchNormScale:
    """``|gamma|`` of the normalisations in a group, joined by ``reduce``; groups without one have
    no score and stay whole."""

    reduce: str = "mean"

    def __post_init__(self) -> None:
        reduction(self.reduce)

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        scales = [w for w in graph.weights.values() if w.rank == 1 and is_scale(w)]
        gammas = {
            w.name: profile(w.load(), [(0,)], 1.0, f"weight {w.name!r}")[(0,)] for w in scales
        }
        out = {}
        for group in groups:
            members = [m for m in group.members if m.weight.name in gammas]
            rows = [
                place_of(m, blocks.get(group.axis)).gather(gammas[m.weight.name], np.mean)
                for m in members
            ]
            if rows:
                out[group.axis] = reduce(rows, self.reduce)
        return out

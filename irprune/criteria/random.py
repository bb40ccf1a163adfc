"""random and uniform: the baselines that need no weight values.

Random channels as a baseline: Mittal et al., "Recovering from Random Pruning", WACV 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from irprune.criteria import Scores, criterion
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group
from irprune.ir.size import probe_of

__all__ = ["Random", "Uniform"]


def _shape(group: Group, blocks: Mapping[Axis, Axis]) -> tuple[int, ...]:
    outer = blocks.get(group.axis)
    return (group.size,) if outer is None else (probe_of(outer.size), group.size)


@criterion("random")
@dataclass(frozen=True)
class Random:
    """Uniform random scores in [0, 1): the same for the same ``seed`` and group name."""

    seed: int = 0

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        return {
            g.axis: np.random.default_rng([self.seed, crc32(g.name.encode())]).random(
                _shape(g, blocks)
            )
            for g in groups
        }


@criterion("uniform")
@dataclass(frozen=True)
class Uniform:
    """All equal: the first indices stay."""

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        return {g.axis: np.ones(_shape(g, blocks)) for g in groups}

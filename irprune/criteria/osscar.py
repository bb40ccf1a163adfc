"""osscar: greedy selection on the Gram matrix of the repair.

In the manner of Meng et al., "OSSCAR: One-Shot Structured Pruning in Vision and Language Models
with Combinatorial Optimization", ICML 2024: the index whose loss the others make up for best goes
first, they are refitted, and so on. (Their local search by swaps is left out: the order must serve
every ratio.)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irprune.base.progress import tell
from irprune.criteria import Scores, criterion
from irprune.criteria.consumers import whole
from irprune.criteria.obs import Diagonal, Surgeon
from irprune.criteria.reconstruction import by_surgeons
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group

__all__ = ["Osscar"]


@criterion("osscar")
@dataclass(frozen=True)
class Osscar:
    """What the error of the repaired layers grows by when an index goes, in the greedy order of
    going; never less than before.

    ``ridge``, ``weighted``, ``loss`` and ``seed`` as for ``reconstruction``; of what is left
    one in ``steps`` goes at once, before the others are refitted."""

    calibration: Any = None
    ridge: float = 1e-2
    steps: int = 24
    weighted: bool = True
    loss: Any = None
    seed: int = 0

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        out: dict[Axis, Scores] = {}

        def done(leaf: Axis, scores: Scores) -> None:
            out[leaf] = scores
            tell("ranking groups", len(out), len(groups))

        by_surgeons(self, "osscar", graph, groups, blocks, self._order, done)
        return whole(out, graph, groups, blocks)

    def _order(self, many: Sequence[Surgeon | Diagonal], count: int) -> Scores:
        """By how much the error grew when each index went."""
        left = np.arange(count)
        out = np.zeros(count)
        most = 0.0
        while len(left):
            losses = np.sum([s.losses() for s in many], axis=0)[left]
            order = np.argsort(losses, kind="stable")[: -(-len(left) // self.steps)]
            out[left[order]] = np.maximum.accumulate(losses[order].clip(min=most))
            most = max(most, float(losses[order[-1]]))
            gone = left[order]
            left = np.delete(left, order)
            if len(left):
                for s in many:
                    s.drop(gone)
        return out

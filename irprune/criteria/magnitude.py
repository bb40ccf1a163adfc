"""magnitude: the norm of all weights that belong to an index.

Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (L1 of filters); over all coupled
places as in Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from irprune.base.concurrent import concurrently
from irprune.criteria import Scores, criterion
from irprune.criteria.places import place_of, places, reduce, reduction
from irprune.criteria.profile import profile
from irprune.criteria.quantised import numbers
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group
from irprune.ops.registry import may_mask

__all__ = ["Magnitude"]


@criterion("magnitude", refuses_nan=True)
@dataclass(frozen=True)
class Magnitude:
    """The ``p``-norm (1, 2 or inf) of each index, the p-th powers of its places joined by
    ``reduce`` (sum, mean, max, prod).

    With ``reduce="sum"`` it is the norm of everything that an index of the group owns. Biases count
    with ``biases=True``. Raises IrpruneError for weights without values, and for NaN or infinite
    ones."""

    p: float = 2.0
    reduce: str = "mean"
    biases: bool = False

    def __post_init__(self) -> None:
        if self.p not in (1, 2, float("inf")):
            raise IrpruneError(
                f"the norm p is {self.p!r}", "importance 'magnitude'", "p is 1, 2 or inf"
            )
        reduction(self.reduce)

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        found = places(graph, groups, self.biases, integers=True)
        at = {
            leaf: [place_of(m, blocks.get(leaf)) for m in members]
            for leaf, members in found.items()
        }
        wanted: dict[str, dict[tuple[int, ...], None]] = {}
        for many in at.values():
            for p in many:
                wanted.setdefault(p.weight.name, {})[p.dims] = None

        def read(name: str) -> dict[tuple[int, ...], Scores]:
            return profile(
                numbers(graph.weights[name]),
                sorted(wanted[name]),
                float(self.p),
                f"weight {name!r}",
                may_mask(graph.weights[name]),
            )

        along = dict(zip(wanted, concurrently(read, wanted), strict=True))
        join = np.max if self.p == float("inf") else np.sum
        out = {}
        for leaf, many in at.items():
            total = reduce(
                [p.gather(along[p.weight.name][p.dims], join) for p in many], self.reduce
            )
            out[leaf] = np.sqrt(total) if self.p == 2 else total
        return out

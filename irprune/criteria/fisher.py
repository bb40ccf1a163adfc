"""fisher: the diagonal of the Hessian (as the Fisher information) times the squared weights.

LeCun et al., "Optimal Brain Damage", NeurIPS 1989; grouped as in Liu et al., "Group Fisher Pruning
for Practical Network Compression", ICML 2021."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irprune.criteria import Scores, criterion
from irprune.criteria.consumers import whole
from irprune.criteria.gates import gate_places
from irprune.criteria.places import place_of, summed
from irprune.criteria.readings import calibrated
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group
from irprune.run.ranks import Sums

if TYPE_CHECKING:
    from irprune.run.batch import Batch

__all__ = ["Fisher"]


@criterion("fisher")
@dataclass(frozen=True)
class Fisher:
    """``sum(w**2 * mean(g**2)) / 2`` over the weights that read an index: the loss when each of
    them goes, to second order, without cross terms.

    ``loss(outputs, batch)`` as for ``taylor``; ``batch`` samples share a gradient.
    """

    calibration: Any = None
    loss: Any = None
    batch: int = 4
    seed: int = 0

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        from irprune.run.gradients import Gradients
        from irprune.run.total import total

        found = gate_places(graph, groups)
        wanted: dict[str, dict[tuple[int, ...], None]] = {}
        for leaf, members in found.items():
            for m in members:
                wanted.setdefault(m.weight.name, {})[place_of(m, blocks.get(leaf)).dims] = None
        data = calibrated(self.calibration, graph, "fisher", self.batch, derived=True)
        gradients = Gradients(graph, self.loss, self.seed)

        def add(sums: Sums, batch: Batch) -> None:
            sums.add("samples", batch.size)
            for weight, (w, g) in gradients.of(batch).items():
                if weight.name in wanted:
                    square = (w.double() * g.double()).square()
                    for dims in wanted[weight.name]:
                        sums.add((weight.name, dims), summed(square, dims))

        sums = total(data, Sums, add)
        out: dict[Axis, Scores] = {}
        for leaf, members in found.items():
            for m in members:
                place = place_of(m, blocks.get(leaf))
                along = sums.get((m.weight.name, place.dims))
                if along is None:
                    continue
                part = place.gather(along / (2 * sums["samples"]))
                out[leaf] = out[leaf] + part if leaf in out else part
        return whole(out, graph, groups, blocks)

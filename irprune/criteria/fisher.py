"""fisher: the diagonal of the Hessian (as the Fisher information) times the squared weights.

LeCun et al., "Optimal Brain Damage", NeurIPS 1989; grouped as in Liu et al., "Group Fisher Pruning
for Practical Network Compression", ICML 2021."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from irprune.criteria import Scores, criterion
from irprune.criteria.consumers import whole
from irprune.criteria.gates import gate_places
from irprune.criteria.places import place_of, summed
from irprune.criteria.readings import calibrated
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group

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
        from irprune.run.gradients import gradients

        found = gate_places(graph, groups)
        squares: dict[str, Any] = {}
        weights: dict[str, Any] = {}
        samples = 0
        for size, made in gradients(
            graph, calibrated(self.calibration, graph, "fisher", self.batch), self.loss, self.seed
        ):
            samples += size
            for weight, (w, g) in made.items():
                step = g.double().square()
                squares[weight.name] = (
                    squares[weight.name] + step if weight.name in squares else step
                )
                weights[weight.name] = w
        out: dict[Axis, Scores] = {}
        along: dict[tuple[str, tuple[int, ...]], Any] = {}
        for leaf, members in found.items():
            for m in members:
                name, place = m.weight.name, place_of(m, blocks.get(leaf))
                if name not in squares:
                    continue
                if (name, place.dims) not in along:
                    along[name, place.dims] = summed(
                        squares[name] * weights[name].double().square() / (2 * samples), place.dims
                    )
                part = place.gather(along[name, place.dims])
                out[leaf] = out[leaf] + part if leaf in out else part
        return whole(out, graph, groups, blocks)

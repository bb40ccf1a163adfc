"""taylor: how much the loss would change, to first order, if an index were silenced where it is
read.

Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR
2017, and "Importance Estimation for Neural Network Pruning", CVPR 2019 (the squared form). ``sum(g
* w)`` over the weights that read an index is the derivative by a gate on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from irprune.criteria import Scores, criterion
from irprune.criteria.consumers import whole
from irprune.criteria.gates import gate_places
from irprune.criteria.places import place_of, summed
from irprune.criteria.readings import calibrated
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph, Weight
from irprune.ir.group import Group
from irprune.run.ranks import Sums

if TYPE_CHECKING:
    from irprune.run.batch import Batch

__all__ = ["Taylor", "TaylorSquared"]


def _moments(
    criterion: Any,
    name: str,
    graph: Graph,
    groups: Sequence[Group],
    blocks: Mapping[Axis, Axis],
    power: int,
) -> dict[Axis, Scores]:
    from irprune.run.gradients import Gradients
    from irprune.run.total import total

    found = gate_places(graph, groups)
    numbers = {leaf: i for i, leaf in enumerate(found)}
    data = calibrated(criterion.calibration, graph, name, criterion.batch, derived=True)
    gradients = Gradients(graph, criterion.loss, criterion.seed)

    def add(sums: Sums, batch: Batch) -> None:
        made = gradients.of(batch)
        sums.add("samples", batch.size)
        along: dict[tuple[Weight, tuple[int, ...]], Any] = {}
        for leaf, members in found.items():
            gate: Scores | None = None
            for m in members:
                if m.weight not in made:
                    continue
                place = place_of(m, blocks.get(leaf))
                key = (m.weight, place.dims)
                if key not in along:
                    w, g = made[m.weight]
                    along[key] = summed(w.double() * g.double(), place.dims)
                part = place.gather(along[key])
                gate = part if gate is None else gate + part
            if gate is not None:
                sums.add(numbers[leaf], np.abs(gate) ** power)

    sums = total(data, Sums, add)
    out = {x: sums[i] / sums["samples"] for x, i in numbers.items() if i in sums}
    return whole(out, graph, groups, blocks)


@criterion("taylor")
@dataclass(frozen=True)
class Taylor:
    """The mean over batches of ``|sum(g * w)|``.

    ``loss(outputs, batch)`` is a scalar; without it, labels are drawn from the model's own soft
    output (``irprune.run.gradients``). ``batch`` is the number of samples whose gradients are added
    before the absolute value is taken."""

    calibration: Any = None
    loss: Any = None
    batch: int = 4
    seed: int = 0

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        return _moments(self, "taylor", graph, groups, blocks, 1)


@criterion("taylor_squared")
@dataclass(frozen=True)
class TaylorSquared:
    """The mean over batches of ``(sum(g * w))**2``: with drawn labels, the Fisher information of a
    gate on the index (Theis et al., "Faster gaze prediction with dense networks and Fisher
    pruning", 2018)."""

    calibration: Any = None
    loss: Any = None
    batch: int = 4
    seed: int = 0

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        return _moments(self, "taylor_squared", graph, groups, blocks, 2)

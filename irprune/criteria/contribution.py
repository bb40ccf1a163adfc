"""contribution: how much of a layer's result an input makes, by its own energy.

The squared norm of the weights that read an index times its mean square, as Wanda (Sun et al., ICLR
2024) in squares; of a layer with a bias, which can make up for means, times its variance, as in
FLAP (An et al., AAAI 2024). Inputs that make a massive activation at a few positions are ranked
above all others (``irprune.criteria.sinks``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irprune.criteria import Scores, criterion
from irprune.criteria.consumers import readers, whole
from irprune.criteria.readings import Reading, key_of, readings_of
from irprune.criteria.sinks import sinks_of
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group

__all__ = ["Contribution"]


@criterion("contribution")
@dataclass(frozen=True)
class Contribution:
    """The energy that an input gives to the result of each layer that reads it, as a share of the
    layer's sum, added up over layers; sinks above all others."""

    calibration: Any = None

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        found = readers(graph, groups, blocks)
        readings = readings_of(self.calibration, graph, "contribution")
        read = readings.of([r.layer for many in found.values() for r in many], products=True)
        out: dict[Axis, Scores] = {}
        for leaf, many in found.items():
            for r in many:
                reading = read[key_of(r.layer)]
                sinks = sinks_of(reading)
                values = _energy(reading)
                plain = values.masked_fill(sinks, 0.0)
                share = r.gathered((plain / max(float(plain.sum()), 1e-300)).numpy())
                held = r.gathered(sinks.double().numpy())
                share = share + np.where(held > 0, 1.0 + share.max(initial=0.0), 0.0)
                out[leaf] = out[leaf] + share if leaf in out else share
        return whole(out, graph, groups, blocks)


def _energy(reading: Reading) -> Any:
    spread = reading.square if reading.layer.bias is None else reading.variance
    return reading.weight.square().sum(-1) * spread

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

from irprune.base.journal import current
from irprune.criteria import Scores, criterion
from irprune.criteria.consumers import Reader, readers, whole
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
        every = [r for many in found.values() for r in many]
        at = {node: i for i, node in enumerate(graph.nodes)}
        layers = {key_of(r.layer): [r.layer] for r in sorted(every, key=lambda r: at[r.layer.node])}
        shares: dict[int, Scores] = {}
        journal = current()
        for number, r in enumerate(every) if journal is not None else ():
            held = None if journal is None else journal.get("contribution", _name(number, r))
            if held is not None:
                shares[number] = held
        missing = {key_of(r.layer) for number, r in enumerate(every) if number not in shares}
        rest = {key: layer for key, layer in layers.items() if key in missing}
        for some in readings.portions(rest):
            read = readings.of([rest[key][0] for key in some], products=True)
            for number, r in enumerate(every):
                if key_of(r.layer) in read and number not in shares:
                    shares[number] = _share(r, read[key_of(r.layer)])
                    if journal is not None:
                        journal.put("contribution", _name(number, r), shares[number])
        numbered = iter(range(len(every)))
        out: dict[Axis, Scores] = {}
        for leaf, many in found.items():
            for _ in many:
                share = shares[next(numbered)]
                out[leaf] = out[leaf] + share if leaf in out else share
        return whole(out, graph, groups, blocks)


def _name(number: int, reader: Reader) -> str:
    """What tells a share from all others."""
    return f"{number} {key_of(reader.layer)}"


def _share(reader: Reader, reading: Reading) -> Scores:
    """The energy of each index as a share of the layer's, sinks above all others."""
    sinks = sinks_of(reading)
    plain = _energy(reading).masked_fill(sinks, 0.0)
    share = reader.gathered((plain / max(float(plain.sum()), 1e-300)).numpy())
    held = reader.gathered(sinks.double().numpy())
    return np.asarray(share + np.where(held > 0, 1.0 + share.max(initial=0.0), 0.0))


def _energy(reading: Reading) -> Any:
    spread = reading.square if reading.layer.bias is None else reading.variance
    return reading.weight.square().sum(-1) * spread

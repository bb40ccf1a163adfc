"""Where a group is read: the layers that sum over its leaf, and what of their weights and inputs
belongs to which index.

Dropping an index silences it where it is consumed, so data-driven criteria look there: at the
inputs of the layers that read a group rather than at the weights that make it. What is lost is put
in relation to all that a layer gives, so that layers of different scale can be added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from irprune.criteria import Scores
from irprune.criteria.magnitude import Magnitude
from irprune.criteria.places import WeightPlace, place_of
from irprune.criteria.readings import Reading, Readings, key_of
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group, Member
from irprune.ir.size import probe_of

if TYPE_CHECKING:
    from irprune.analysis.layers import Layer

__all__ = ["Reader", "readers", "shares", "whole"]


@dataclass(frozen=True)
class Reader:
    """``layer`` sums over a leaf: ``owner[b, k]`` is the index (in blocks: ``outer * size +
    index``) that input k of block b belongs to, -1 for inputs of other leaves; ``shape`` is that of
    the leaf's scores."""

    layer: Layer
    owner: NDArray[np.int64]
    shape: tuple[int, ...]

    def gathered(self, values: NDArray[Any]) -> Scores:
        """Values per input [b, k] summed onto the leaf's indices."""
        mine = self.owner >= 0
        total = np.bincount(
            self.owner[mine],
            weights=np.asarray(values, dtype=np.float64)[mine],
            minlength=int(np.prod(self.shape)),
        )
        return np.asarray(total.reshape(self.shape), dtype=np.float64)


def readers(
    graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
) -> dict[Axis, list[Reader]]:
    """For each group's leaf the layers that sum over it, in graph order."""
    from irprune.analysis.layers import layers

    members: dict[tuple[str, int], list[tuple[Axis, Member]]] = {}
    for group in groups:
        for m in group.members:
            members.setdefault((m.weight.name, m.dim), []).append((group.axis, m))
    out: dict[Axis, list[Reader]] = {g.axis: [] for g in groups}
    for layer in layers(graph):
        for dim in layer.inputs:
            for leaf, m in members.get((layer.weight.name, dim), ()):
                out[leaf].append(_reader(layer, place_of(m, blocks.get(leaf))))
    return out


def _reader(layer: Layer, place: WeightPlace) -> Reader:
    import torch

    shape = [int(probe_of(s)) for s in layer.weight.shape]
    at = torch.zeros(shape, dtype=torch.int64)
    for d in place.dims:
        at = at * shape[d] + torch.arange(shape[d]).reshape(
            [-1 if k == d else 1 for k in range(len(shape))]
        )
    position = layer.matrix(at)[..., 0].numpy()  # [b, k]: where along the dimensions an input lies
    *own, _ = place.at.shape
    owner = np.full(prod(shape[d] for d in place.dims), -1, dtype=np.int64)
    owner[place.at] = np.arange(prod(own)).reshape(*own, 1)
    return Reader(layer, owner[position], tuple(own))


def whole(
    scores: dict[Axis, Scores], graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
) -> dict[Axis, Scores]:
    """``scores`` with groups that no layer reads (queries and keys, which meet each other) ranked
    by magnitude, at the mean level of the others."""
    missing = [g for g in groups if g.axis not in scores]
    if not missing:
        return scores
    level = float(np.mean([s.mean() for s in scores.values()])) if scores else 1.0
    for leaf, s in Magnitude().scores(graph, missing, blocks).items():
        scores[leaf] = s * (level / s.mean()) if s.mean() > 0 else s
    return {g.axis: scores[g.axis] for g in groups if g.axis in scores}


def shares(
    graph: Graph,
    groups: Sequence[Group],
    blocks: Mapping[Axis, Axis],
    readings: Readings,
    weigh: Callable[[Reading], Any],
) -> dict[Axis, Scores]:
    """What ``weigh`` gives each input of a layer [b, k], as a share of the layer's sum, added up
    over the layers that read an index."""
    found = readers(graph, groups, blocks)
    read = readings.of([r.layer for many in found.values() for r in many], products=False)
    out: dict[Axis, Scores] = {}
    for leaf, many in found.items():
        for r in many:
            values = weigh(read[key_of(r.layer)]).numpy()
            share = r.gathered(values / max(values.sum(), 1e-300))
            out[leaf] = out[leaf] + share if leaf in out else share
    return whole(out, graph, groups, blocks)

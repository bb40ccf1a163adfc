"""fpgm: the distance of an index's weights from those of all others; what lies near the geometric
median is replaceable.

He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
Acceleration", CVPR 2019."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from irprune.criteria import Scores, criterion
from irprune.criteria.places import WeightPlace, place_of, places, reduce, reduction
from irprune.criteria.profile import float_array
from irprune.criteria.quantised import numbers
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group
from irprune.ops.registry import may_mask

__all__ = ["Fpgm"]

_ROWS = 1024  # distances are worked out for so many indices at once


@criterion("fpgm")
@dataclass(frozen=True)
class Fpgm:
    """The sum of Euclidean distances to all other indices, in each place with at least two
    dimensions, joined by ``reduce``."""

    reduce: str = "mean"

    def __post_init__(self) -> None:
        reduction(self.reduce)

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        out = {}
        for leaf, members in places(graph, groups, integers=True).items():
            chosen = [m for m in members if m.weight.rank > 1] or members
            rows = [_distances(place_of(m, blocks.get(leaf))) for m in chosen]
            out[leaf] = reduce(rows, self.reduce)
        return out


def _distances(place: WeightPlace) -> Scores:
    """For each index of the leaf (in each block) the sum of its distances to the others."""
    array, at = float_array(numbers(place.weight), f"weight {place.weight.name!r}"), place.at
    if may_mask(place.weight):  # what is masked is no distance
        array = np.where(np.isneginf(array), array.dtype.type(0), array)
    lines = np.moveaxis(array, place.dims, range(len(place.dims)))
    lines = lines.reshape(prod(lines.shape[: len(place.dims)]), -1)
    rows = lines[at.reshape(-1)].reshape(-1, at.shape[-2], at.shape[-1] * lines.shape[1])
    out = np.empty(rows.shape[:2])
    for b, vectors in enumerate(rows):
        # Distances are the same, and less is lost in the differences below
        vectors = vectors - vectors.mean(axis=0)
        squares = np.square(vectors).sum(axis=1)
        for lo in range(0, len(vectors), _ROWS):
            some = slice(lo, lo + _ROWS)
            gaps = squares[some, None] + squares[None, :] - 2 * (vectors[some] @ vectors.T)
            gaps[np.arange(len(gaps)), np.arange(lo, lo + len(gaps))] = 0.0
            out[b, some] = np.sqrt(gaps.clip(min=0.0)).sum(axis=1)
    return out.reshape(at.shape[:-1])

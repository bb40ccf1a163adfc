"""reconstruction: what a layer's output loses for good when an index is gone and the others are
refitted.

The saliency of optimal brain surgeon (Hassibi and Stork 1993; ``irprune.criteria.obs``), ``osscar``
is its greedy form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from irprune.base.journal import current
from irprune.criteria import Scores, criterion
from irprune.criteria.consumers import Reader, readers, whole
from irprune.criteria.obs import Diagonal, Surgeon
from irprune.criteria.readings import Reading, calibrated, key_of, readings_of
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group

__all__ = ["Reconstruction", "by_surgeons"]


SAMPLES = (32, 64)  # of the calibration data that gradients are taken of: a fourth, within these


@criterion("reconstruction")
@dataclass(frozen=True)
class Reconstruction:
    """The squared error of the least-squares repair when this index alone is dropped, added up over
    layers.

    ``ridge`` is relative to the mean diagonal of the Gram matrix. A layer's error is relative to
    its output, or, ``weighted``, what it costs: times the mean squared gradient of ``loss`` (or of
    labels drawn from the output) by the layer's result; a model without a gradient is judged by the
    relative errors."""

    calibration: Any = None
    ridge: float = 1e-2
    weighted: bool = True
    loss: Any = None
    seed: int = 0

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        """See ``irprune.criteria``."""
        out: dict[Axis, Scores] = {}
        by_surgeons(
            self,
            "reconstruction",
            graph,
            groups,
            blocks,
            lambda many, count: np.sum([s.losses() for s in many], axis=0),
            out.__setitem__,
        )
        return whole(out, graph, groups, blocks)


def by_surgeons(
    criterion: Any,
    name: str,
    graph: Graph,
    groups: Sequence[Group],
    blocks: Mapping[Axis, Axis],
    rank: Callable[[list[Surgeon | Diagonal], int], Scores],
    done: Callable[[Axis, Scores], object],
) -> None:
    """Hand ``done`` the scores of each leaf that layers read: what ``rank`` says to a surgeon for
    each of the layers and the number of the leaf's indices.

    Gram matrices are collected for as many leaves at a time as memory allows. Ranks that share the
    data share the leaves too. What the journal of the run knows is not worked out again.
    """
    readings = readings_of(criterion.calibration, graph, name)
    found = {leaf: many for leaf, many in readers(graph, groups, blocks).items() if many}
    journal, names = current(), {g.axis: g.name for g in groups}
    for leaf in list(found) if journal is not None else ():
        if journal is not None and (held := journal.get(name, names[leaf])) is not None:
            done(leaf, held)
            del found[leaf]

    def kept(leaf: Axis, scores: Scores) -> None:
        if journal is not None:
            journal.put(name, names[leaf], scores)
        done(leaf, scores)

    price: dict[str, float] | None = None
    for some in readings.portions({x: [r.layer for r in many] for x, many in found.items()}):
        read = readings.of([r.layer for x in some for r in found[x]], products=True)
        if price is None:  # behind the first readings, which name what is NaN
            price = prices(criterion, graph, found)
        known = price

        def scored(
            leaf: Axis, read: dict[str, Reading] = read, price: dict[str, float] = known
        ) -> Scores:
            made: list[Surgeon | Diagonal] = []
            for r in found[leaf]:
                key = key_of(r.layer)
                if read[key].products:
                    made.append(Surgeon(r, read[key], criterion.ridge, price.get(key)))
                else:
                    made.append(Diagonal(r, read[key], price.get(key)))
            shape = found[leaf][0].shape
            return rank(made, prod(shape)).reshape(shape)

        readings.data.ranks.share(some, scored, kept)


def prices(
    criterion: Any, graph: Graph, found: Mapping[Axis, Sequence[Reader]]
) -> dict[str, float]:
    """What a squared error of 1 in one element of each layer's result costs; nothing where the
    criterion is not weighted, or where the model has no gradient and no ``loss`` was given."""
    if not criterion.weighted:
        return {}
    from irprune.run.gradients import sensitivities
    from irprune.run.kept_files import kept_files

    layers = {r.layer.node: key_of(r.layer) for many in found.values() for r in many}
    files = kept_files("sensitivities")
    known = None if files is None else files.get("all")
    if known is not None:
        return {key: known[key] for key in layers.values() if key in known}
    data = calibrated(criterion.calibration, graph, "reconstruction", 16, derived=True)
    least, most = SAMPLES
    some = max(least, min(most, data.count() // 4))
    squares = sensitivities(graph, list(layers), data, some, criterion.loss, criterion.seed)
    made = {layers[node]: s / 2 for node, s in squares.items()}
    if files is not None:
        files.put("all", made)
    return made

"""remeasured: what a little more or less of each group costs where a choice has been made.

Errors of single groups add up only roughly: what a group is worth depends on what else is gone. So
the choice is measured again around itself: each group by a step narrower and a step wider, all
others as chosen and refitted, and its scores are scaled so that they say what was seen. A choice
made anew by them loses less, as coordinate moves accepted by the loss do (EvoPress, Sieberling et
al., 2024), at two short runs for each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from irprune.criteria import Scores
from irprune.criteria.consumers import Reader, readers
from irprune.criteria.measured import Probe, Refits, first_reads, inputs_of, put_refit
from irprune.criteria.readings import key_of, readings_of
from irprune.criteria.refit import refitted
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group
from irprune.ir.selection import Selection

if TYPE_CHECKING:
    from irprune.criteria.readings import Reading

__all__ = ["Remeasured", "remeasured"]

ROWS = 8  # of the calibration data that are compared on
STEP = 12  # of a group's size one in so many is the step
FARTHEST = 4.0  # times what was thought, at most
DAMPED = 0.7  # power of the correction: steps of all groups are taken at once


@dataclass(frozen=True)
class Remeasured:
    """``error`` of the choice, and the ``scores`` as they are around it; ``factors`` are what they
    were multiplied by."""

    error: float
    scores: dict[Axis, Scores]
    factors: dict[Axis, float]


def remeasured(
    scores: Mapping[Axis, Scores],
    graph: Graph,
    groups: Sequence[Group],
    blocks: Mapping[Axis, Axis],
    calibration: Any,
    kept: Selection,
    around: bool = True,
) -> Remeasured:
    """Measure around ``kept`` what each group that can be cut costs; ``blocks`` as for criteria.
    Without ``around`` only the error of the choice is measured. Groups that a branch took with it,
    and those of which all was kept for other reasons, keep their scores."""
    readings = readings_of(calibration, graph, "remeasured")
    found = readers(graph, [g for g in groups if g.axis in scores], blocks)
    first = first_reads(graph)
    order = sorted(found, key=lambda leaf: first.get(leaf, len(graph.nodes)))
    probe = Probe(graph, readings.data, len(order), ROWS)
    walk = _Around(
        scores,
        blocks,
        kept,
        found,
        readings.of([r.layer for m in found.values() for r in m], products=True),
    )
    base = {leaf: walk.count(leaf) for leaf in order}
    whole: Refits = {}
    for leaf in order:
        walk.refit(leaf, base[leaf], whole)
    hook = probe.hook(kept, whole)
    error = probe.error(kept, whole)
    out, factors = dict(scores), {}
    for leaf in order if around else ():
        probe.go_to(first.get(leaf, len(graph.nodes)), hook)
        size = scores[leaf].shape[-1]
        step = max(1, size // STEP)
        seen: dict[int, float] = {}
        for count in (max(1, base[leaf] - step), min(size, base[leaf] + step)):
            if count != base[leaf] and base[leaf]:
                refits = dict(whole)
                walk.refit(leaf, count, refits)
                seen[count] = probe.error(walk.chosen(leaf, count), refits)
        if not seen:
            continue
        seen[base[leaf]] = error
        low, high = min(seen), max(seen)
        thought = walk.lost(leaf, low) - walk.lost(leaf, high)
        ratio = (seen[low] - seen[high]) / thought if thought > 0 else 1.0
        factors[leaf] = float(np.clip(ratio, 1 / FARTHEST, FARTHEST) ** DAMPED)
        out[leaf] = scores[leaf] * factors[leaf]
    return Remeasured(error, out, factors)


@dataclass(frozen=True)
class _Around:
    """A choice, and what one group of it is like with another count."""

    scores: Mapping[Axis, Scores]
    blocks: Mapping[Axis, Axis]
    kept: Selection
    found: Mapping[Axis, Sequence[Reader]]
    read: Mapping[str, Reading]

    def count(self, leaf: Axis) -> int:
        """How many are kept."""
        own = self.kept.choice.get(leaf)
        return int((self.scores[leaf] if own is None else own).shape[-1])

    def lowest(self, leaf: Axis, count: int) -> NDArray[np.int64]:
        """The indices that go with ``count`` kept."""
        order = np.argsort(-self.scores[leaf], axis=-1, kind="stable")
        return np.asarray(order[..., count:], dtype=np.int64)

    def lost(self, leaf: Axis, count: int) -> float:
        """What the scores say is lost."""
        gone = np.take_along_axis(self.scores[leaf], self.lowest(leaf, count), -1)
        return float(gone.sum()) / self.scores[leaf][..., 0].size

    def chosen(self, leaf: Axis, count: int) -> Selection:
        """The choice with ``count`` of ``leaf``."""
        choice: dict[Axis, Any] = {x: k for x, k in self.kept.choice.items() if x is not leaf}
        within = {x: h for x, h in self.kept.within.items() if x is not leaf}
        scores = self.scores[leaf]
        if count < scores.shape[-1]:
            order = np.argsort(-scores, axis=-1, kind="stable")
            choice[leaf] = np.sort(order[..., :count], axis=-1)
            if scores.ndim > 1:
                within[leaf] = self.blocks[leaf]
        return Selection(choice, within, self.kept.dropped)

    def refit(self, leaf: Axis, count: int, refits: Refits) -> None:
        """Put the weights of the layers that read ``leaf`` into ``refits``."""
        for reader in self.found[leaf]:
            reading = self.read[key_of(reader.layer)]
            if reading.products is None or not reading.products or reader.layer.shared():
                continue
            refits.pop(reader.layer.node, None)
            if count < self.scores[leaf].shape[-1]:
                gone = inputs_of(reader, self.lowest(leaf, count))
                put_refit(reader, refitted(reading, gone)[0], reading, refits)

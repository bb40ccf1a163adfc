"""low-rank: layers that become two thinner ones, where that loses less than narrower layers do.

Before: ``%y = linear(%x, %w)`` with ``%w: f32[64, 64]``. After ``low-rank`` and ``choose`` with a
budget, or ``low-rank{ranks={"fc*": 16}}``: the graph says that the layer is to be
``linear(linear(%x, %w0), %w1)`` with ``%w0: f32[16, 64]`` and ``%w1: f32[64, 16]``, whose product
is nearest to %w on the calibration data. The model is made that way before it is cut; the proof
compares with it, and it is compared with the original whose weight is that product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from irprune.criteria.measured import set_apart
from irprune.criteria.ranks import rank_scores
from irprune.criteria.readings import readings_of
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.passes.result import PassResult

__all__ = ["LowRank"]


@dataclass(frozen=True)
class LowRank:
    """Let layers become two of lower rank.

    Args:
        ranks: Pattern over weights -> rank, for layers that become two whatever a budget says.
            Without any, every layer may, and a knapsack over a budget chooses the ranks.
        calibration: Inputs, or readings of them; without any, all inputs of a layer count alike.
        measure: Whether what a rank is worth is measured at the model's outputs.

    Raises IrpruneError for a pattern that matches no such layer and for a rank that saves
    nothing."""

    ranks: Mapping[str, int] = field(default_factory=dict)
    calibration: Any = None
    measure: bool = False

    def run(self, graph: Graph) -> PassResult:
        from irprune.analysis.factorable import factorable

        if graph.axes is None:
            raise IrpruneError("nothing is analysed", "low-rank", "run infer-axes first")
        if self.ranks:
            before = graph.low_rank
            graph.low_rank = self._said(graph)
            graph.kept = Selection({}) if graph.kept is None else graph.kept
            return PassResult(graph.low_rank != before)
        able = [one for one in factorable(graph) if one.useful >= 1]
        if not able:
            raise IrpruneError(
                "no layer can become two",
                graph.name,
                "linear layers, matrix products and convolutions of one group of a module or a "
                "file can, where each reads a weight of its own",
            )
        readings = None
        if self.calibration is not None:
            readings = readings_of(self.calibration, graph, "low-rank")
            if self.measure:
                set_apart(readings)
        scores = rank_scores(able, readings, self.measure and readings is not None)
        graph.factorable = {}
        for one in able:
            leaf = graph.axes.leaf(one.size)
            graph.factorable[leaf] = one.name
            graph.scores[leaf] = scores[one.name]
        return PassResult(True)

    def _said(self, graph: Graph) -> dict[str, int]:
        """The rank of each layer that a pattern matches; the last pattern counts."""
        from irprune.analysis.factorable import factorable

        found = factorable(graph)
        out: dict[str, int] = {}
        for pattern, rank in self.ranks.items():
            matched = [
                one
                for one in found
                if fnmatchcase(one.name, pattern)
                or fnmatchcase(one.name.removesuffix(".weight"), pattern)
                or fnmatchcase(one.layer.node.out.name, pattern)
            ]
            if not matched:
                known = ", ".join(one.name for one in found[:4]) or "none"
                raise IrpruneError(
                    f"{pattern!r} matches no layer that can become two",
                    "low_rank",
                    f"there are: {known}",
                )
            for one in matched:
                if not 1 <= rank <= one.useful:
                    raise IrpruneError(
                        f"rank {rank} of {one.name} saves nothing",
                        "low_rank",
                        f"two layers have fewer weights than the one up to rank {one.useful}",
                    )
                out[one.name] = rank
        return {one.name: out[one.name] for one in found if one.name in out}

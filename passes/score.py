"""score: how much each index of each free leaf matters, by a criterion.

Before: groups with no scores. After: ``graph.scores`` holds for each free leaf an array of its
size, larger is more important; for a leaf that may be chosen per block
(``irprune.analysis.blocks``), an array with one row per block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from irprune.analysis.blocks import blocks_of
from irprune.analysis.widths import carriers_of
from irprune.base.extension import is_users, users_code
from irprune.base.near import meant
from irprune.choice.patterns import NamePatterns
from irprune.criteria import Importance, Scores, criteria, named
from irprune.criteria.measured import measured, set_apart
from irprune.criteria.normalise import NORMALISERS, normalised
from irprune.criteria.readings import Readings, readings_of
from irprune.errors import IrpruneError, users_line
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group, groups_of
from irprune.ir.size import probe_of
from irprune.ir.text import to_text
from irprune.ops.arrays import as_tensor
from irprune.passes.result import PassResult

__all__ = ["Score"]


@dataclass(frozen=True)
class Score:
    """Score all free groups by ``importance`` (a name of ``irprune.criteria``, or an object of your
    own).

    ``p``, ``reduce`` (sum, mean, max, prod) and ``seed`` go to criteria that have them,
    ``calibration`` (inputs, or a ``Calibration``) and ``loss`` to those that read data.
    ``normalise`` (none, mean, max, standardisation, lamp, or ``measured`` on the calibration data)
    makes the groups comparable, which all but a local choice read. ``keep``, ``ratios`` and
    ``prefer`` are those of the choice that follows, where it is known: what it will leave whole is
    not measured. With ``drop_blocks`` the loss of whole residual branches is measured too
    (``graph.drops``), so that a knapsack may leave them out. Raises IrpruneError for unknown names
    and for scores that are not finite."""

    importance: str | Importance = "magnitude"
    p: float | None = None
    reduce: str | None = None
    seed: int | None = None
    normalise: str = "mean"
    calibration: Any = None
    loss: Any = None
    keep: tuple[str, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    prefer: str | None = None
    drop_blocks: bool | None = None

    def __post_init__(self) -> None:
        self._criterion()  # its own checks
        if self.normalise not in (*NORMALISERS, "measured"):
            raise IrpruneError(
                f"no normaliser is called {self.normalise!r}",
                "score",
                meant(
                    str(self.normalise),
                    (*NORMALISERS, "measured"),
                    "one of " + ", ".join((*NORMALISERS, "measured")),
                ),
            )
        if self.normalise == "measured" and self.calibration is None:
            raise IrpruneError(
                "normalise='measured' needs calibration data",
                "score",
                "give calibration=, or another normaliser",
            )

    def run(self, graph: Graph) -> PassResult:
        if graph.axes is None:
            raise IrpruneError("nothing is analysed", "score", "run infer-axes first")
        before = graph.scores
        shared = None
        if self.calibration is not None:  # read once for the criterion and for measuring
            shared = readings_of(self.calibration, graph, "score")
            if self.normalise == "measured":
                set_apart(shared)
        criterion = self._criterion(shared)
        free = [g for g in groups_of(graph) if not g.frozen]
        # What stays whole whatever its scores is not worth reading data for
        spared = self._spared(graph, free) if self.calibration is not None else {}
        groups = [g for g in free if g.axis not in spared]
        blocks = blocks_of(graph)
        given = to_text(graph) if is_users(criterion) else ""
        with self._named(criterion):
            made = self._scores(criterion, graph, groups, blocks)
            made = {leaf: np.asarray(scores, np.float64) for leaf, scores in made.items()}
        if given and to_text(graph) != given:
            name = type(criterion).__name__
            raise IrpruneError(f"{name} changed the graph", "score", "a criterion reads it alone")
        for leaf, scores in made.items():
            _check_shape(leaf, scores, groups, blocks)
            if not np.isfinite(scores).all():
                name = next(g.name for g in groups if g.axis is leaf)
                raise IrpruneError(
                    "the importance is NaN or infinite",
                    f"group {name!r}",
                    "check the weights and the calibration data",
                )
        if self.normalise == "measured":
            graph.drops = {}
            graph.scores = measured(
                made,
                graph,
                groups,
                blocks,
                shared,
                spared,
                graph.drops if self.drop_blocks else None,
            )
        else:
            graph.scores = {
                leaf: normalised(scores, self.normalise) for leaf, scores in made.items()
            }
        same = list(before) == list(graph.scores) and all(
            np.array_equal(before[x], s) for x, s in graph.scores.items()
        )
        return PassResult(not same)

    def _scores(
        self,
        criterion: Importance,
        graph: Graph,
        groups: list[Group],
        blocks: Mapping[Axis, Axis],
    ) -> dict[Axis, Scores]:
        """What the criterion says, or has said in an earlier run: of one with a name, and with
        data, it is kept."""
        if self.calibration is None or not isinstance(self.importance, str):
            return criterion.scores(graph, groups, blocks)
        from irprune.run.kept_files import kept_files

        files = kept_files("scores")
        known = None if files is None else files.get("all")
        if known is not None:
            return {g.axis: known[g.name].numpy() for g in groups if g.name in known}
        made = criterion.scores(graph, groups, blocks)
        if files is not None:
            files.put("all", {g.name: as_tensor(made[g.axis]) for g in groups if g.axis in made})
        return made

    def _named(self, criterion: Importance) -> contextlib.AbstractContextManager[None]:
        """What the user's own criterion or loss raises becomes one line with its place; a fault of
        irprune stays what it is."""
        if is_users(criterion):
            return users_code(type(criterion).__module__, type(criterion).__name__)
        return contextlib.nullcontext() if self.loss is None else _loss()

    def _spared(self, graph: Graph, groups: list[Group]) -> dict[Axis, None]:
        """Groups that a choice by ``keep``, ``ratios`` and ``prefer`` will leave whole: they match
        a pattern, or another factor carries the ratio of their product."""
        if self.prefer is None:
            return {}
        names = NamePatterns(graph, groups)
        kept = {leaf for pattern in self.keep for leaf in names.match(pattern, "keep")}
        asked = {x for p in self.ratios for x in names.match(p, "ratios") if p in names.exact}
        able = {g.axis: None for g in groups if g.axis not in kept}
        held = carriers_of(graph, able, self.prefer, asked).held
        return {g.axis: None for g in groups if g.axis in kept or g.axis in held}

    def _criterion(self, shared: Readings | None = None) -> Importance:
        """The criterion with its options; data that it does not read are no mistake, since a repair
        may."""
        data: dict[str, Any] = {}
        if isinstance(self.importance, str):
            made = criteria().get(self.importance)
            has = {f.name for f in fields(made)} if made is not None else set()  # type: ignore[arg-type]
            data = {
                k: v
                for k, v in (("calibration", shared or self.calibration), ("loss", self.loss))
                if v is not None and k in has
            }
        return named(self.importance, p=self.p, reduce=self.reduce, seed=self.seed, **data)


@contextlib.contextmanager
def _loss() -> Iterator[None]:
    """What passed through a line of the user's is a fault of the loss."""
    try:
        yield
    except Exception as failed:
        if isinstance(failed, IrpruneError) or not users_line(failed):
            raise
        with users_code("", "loss"):
            raise


def _check_shape(leaf: Axis, scores: Any, groups: list[Group], blocks: Mapping[Axis, Axis]) -> None:
    """Raises IrpruneError where a criterion gives other than one score for each index of a free
    group (in each block, where those may differ)."""
    group = next((g for g in groups if g.axis is leaf), None)
    if group is None:
        raise IrpruneError(
            "the importance gives scores for what is no free group",
            "score",
            "use the axis of each of the groups that scores is called with",
        )
    allowed: list[tuple[int, ...]] = [(group.size,)]
    if leaf in blocks:
        allowed.append((probe_of(blocks[leaf].size), group.size))
    if np.shape(scores) not in allowed:
        raise IrpruneError(
            f"the importance gives scores of shape {list(np.shape(scores))}",
            f"group {group.name!r}",
            f"the group has {group.size} indices: one score for each",
        )

"""choose: which indices of which leaves are kept.

Before: scores. After: ``graph.kept``, and ``graph.skipped`` with every free leaf that stays whole
and why. A ratio belongs to a width: of a product of free leaves one factor carries it (whole heads
rather than head_dim, channels within the groups of a convolution or norm), the others stay."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np

from irprune.analysis.blocks import blocks_of
from irprune.analysis.branches import branches_of
from irprune.analysis.copies import costly_copies
from irprune.analysis.cost import Timed
from irprune.analysis.even_strides import even_leaves
from irprune.analysis.kinds import KINDS, kinds
from irprune.analysis.widths import PREFER, Carriers, carriers_of, row_step, widths_of
from irprune.base.near import meant
from irprune.choice.budget import check_budget, solve_budget
from irprune.choice.counts import Limits, Rounder
from irprune.choice.patterns import NamePatterns
from irprune.choice.ranking import Loss, Ranking, classes, structure_of
from irprune.choice.scopes import SCOPES
from irprune.choice.uniform import UNIFORM, kinds_of_groups, levelled
from irprune.criteria import Scores
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph, Weight
from irprune.ir.group import Group, groups_of
from irprune.ir.selection import Selection
from irprune.latency.predict import Predictor, aligned_step, step_of
from irprune.latency.table import Table
from irprune.passes.result import PassResult

if TYPE_CHECKING:
    from irprune.analysis.factorable import Factorable

__all__ = ["Choose"]


@dataclass(frozen=True)
class Choose:
    """Drop the least important indices.

    Args:
        ratio: Share of every width that is dropped (of all indices together in the other scopes); 0
            to 1.
        ratios: Pattern -> ratio, for groups to be cut by a ratio of their own; the last pattern
            that matches counts.
        scope: ``local``: every width by its ratio; ``global``: one threshold over all scores;
            ``isomorphic``: one threshold for each set of groups with the same structure;
            ``knapsack``: the counts that meet a budget and lose the least in sum, where scores are
            losses that add up (``normalise="measured"``).
        keep: Patterns over weights, groups (``weight:dim``) and module paths; what they match stays
            whole.
        round_to: Widths go to the nearest multiple, never to zero; ``auto`` takes the multiples
            that onnxruntime likes on this machine (measured: the step of a staircase for
            convolutions, 1 for matrix products); ``aligned`` those that convolutions like on most
            machines: 8, and 4 for narrow ones. Default: ``auto`` with a budget on latency, else
            1.
        divisible_by: Kind of a width -> what its count is divided by among ranks, as in
            ``{"heads": 4}``: a multiple of it stays, also of groups of keys and values. The kinds
            are those of ``irprune inspect``.
        min_channels: Hard lower bound for every group.
        max_ratio: Hard upper bound for the share that any group loses.
        prefer: Which factor of a product carries: ``heads``, ``head_dim``, ``both`` or ``groups``
            (of convolutions and norms).
        per_block: Let an inner axis keep different indices in each index of its outer axis, where
            that is legal.
        budget: ``{"macs": 0.5}``: found by search instead of ``ratio``; keys macs, params, bytes,
            activation; a share (up to 1) or an absolute amount; the largest cost that is not above
            every bound. ``{"latency": 0.5}``, always a share, is a knapsack in every scope:
            ``local`` lets every width give and none be emptied, the others lose the least in sum.
        uniform: Which groups have one count: ``names`` those that repeat in layer after layer,
            ``sizes`` also those of the same size in other parts; "" none
            (``irprune.choice.uniform``).
        times: For latency and ``auto``: a table of times or a predictor of ``irprune.latency``;
            default: measured here.

    At least one index of every leaf stays; equal scores keep the lower index. Raises IrpruneError
    for values out of range, patterns that match nothing and budgets that cannot be met."""

    ratio: float = 0.5
    ratios: Mapping[str, float] = field(default_factory=dict)
    scope: str = "local"
    keep: tuple[str, ...] = ()
    round_to: int | str | None = None
    min_channels: int = 1
    max_ratio: float = 1.0
    prefer: str = "heads"
    per_block: bool = True
    budget: Mapping[str, float] | None = None
    uniform: str = ""
    times: Any = None
    divisible_by: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = {f"ratio of {pattern!r}": ratio for pattern, ratio in self.ratios.items()}
        for name, value in {"ratio": self.ratio, "max_ratio": self.max_ratio, **own}.items():
            if not 0 <= value <= 1:
                raise IrpruneError(
                    f"{name} is {value}",
                    "choose",
                    "a ratio is the share that is dropped, from 0 to 1",
                )
        auto = (
            "auto"
            if self.round_to is None and "latency" in (self.budget or {})
            else 1
            if self.round_to is None
            else self.round_to
        )
        object.__setattr__(self, "round_to", auto)
        for name, number in (("round_to", self.round_to), ("min_channels", self.min_channels)):
            if number in ("auto", "aligned") and name == "round_to":
                continue
            if not isinstance(number, int) or number < 1:
                raise IrpruneError(
                    f"{name} is {number!r}",
                    "choose",
                    "a whole number from 1 on" + (", auto or aligned" * (name == "round_to")),
                )
        for kind, number in self.divisible_by.items():
            if kind not in KINDS:
                raise IrpruneError(
                    f"divisible_by has no kind of width {kind!r}",
                    "choose",
                    meant(kind, KINDS, f"one of {', '.join(KINDS)}"),
                )
            if not isinstance(number, int) or number < 1:
                raise IrpruneError(
                    f"divisible_by of {kind!r} is {number!r}", "choose", "a whole number from 1 on"
                )
        if self.scope not in SCOPES:
            hint = meant(str(self.scope), SCOPES, "one of " + ", ".join(SCOPES))
            raise IrpruneError(f"scope is {self.scope!r}", "choose", hint)
        if self.prefer not in PREFER:
            hint = meant(str(self.prefer), PREFER, "one of " + ", ".join(PREFER))
            raise IrpruneError(f"prefer is {self.prefer!r}", "choose", hint)
        if self.scope == "knapsack" and self.budget is None:
            raise IrpruneError(
                "scope is 'knapsack' without a budget",
                "choose",
                "say what may be left: budget={'macs': 0.5}",
            )
        if self.uniform not in UNIFORM:
            raise IrpruneError(
                f"uniform is {self.uniform!r}",
                "choose",
                meant(str(self.uniform), UNIFORM, "one of names, sizes, or empty"),
            )
        if isinstance(self.keep, str):
            raise IrpruneError(
                f"keep is the text {self.keep!r}", "choose", f"a list of patterns: [{self.keep!r}]"
            )
        if self.budget is not None:
            check_budget(self.budget)

    def run(self, graph: Graph) -> PassResult:
        if graph.axes is None:
            raise IrpruneError("nothing is analysed", "choose", "run infer-axes first")
        before, skipped = graph.kept, graph.skipped
        whole: dict[Axis, str] = {}
        while True:
            setting = _Setting(self, graph, whole)
            counts = self._counts(graph, setting)
            ranks = {graph.factorable[x]: counts.pop(x) for x in setting.ranked if x in counts}
            kept = setting.kept(counts)
            costly = costly_copies(graph, kept)
            if not costly:
                break
            whole.update(costly)  # what is left may be cut otherwise: a budget is met by others
        graph.kept = kept
        graph.low_rank = graph.low_rank if not setting.ranked else ranks
        graph.skipped = setting.skipped(counts)
        return PassResult(not graph.kept.same_as(before) or graph.skipped != skipped)

    def _counts(self, graph: Graph, setting: _Setting) -> dict[Axis, int]:
        """How many indices of each leaf stay: by the ratio, or by the search for the budget."""
        if self.budget is None:
            return setting.counts(self.ratio)
        packing = "latency" in self.budget or self.scope == "knapsack"
        return solve_budget(
            graph,
            self.budget,
            setting.counts,
            setting.rounder,
            setting.order,
            lambda x: x not in setting.own,
            setting.latency,
            Loss(self.scope, setting.flat | setting.worth, setting.groups, graph.drops)
            if packing
            else None,
            setting.first,
            setting.closing,
            setting.ranked,
        )


class _Setting:
    """What does not depend on the ratio, worked out once: who carries, who is kept, the widths and
    the ranks. ``whole`` are leaves that take no part, and why."""

    def __init__(self, options: Choose, graph: Graph, whole: Mapping[Axis, str]) -> None:
        self.options, self.graph = options, graph
        free = [g for g in groups_of(graph) if not g.frozen]
        self.groups = {g.axis: g for g in free}
        self.reasons = dict(whole)  # why a leaf takes no part
        self.own: dict[Axis, float] = {}  # ratios of their own
        asked = self._named(graph, free)
        for leaf in self.groups:
            if leaf not in graph.scores:
                self.reasons.setdefault(leaf, "no importance: the criterion reads nothing of it")
        eligible = {x: None for x in self.groups if x not in self.reasons}
        self.carriers: Carriers = carriers_of(graph, eligible, options.prefer, asked)
        for leaf, carrier in self.carriers.held.items():
            self.reasons[leaf] = (
                f"held: {self.groups[carrier].name} carries the ratio of their product"
            )
        self.first = self._tied(graph, {x for x in eligible if x not in self.reasons})
        self.sizes = {x: self.groups[x].size for x in eligible if x not in self.reasons}
        self.scores = {x: graph.scores[x] for x in self.sizes}
        per_block = options.per_block and any(s.ndim == 2 for s in self.scores.values())
        self.blocks = (
            {x: h for x, h in blocks_of(graph).items() if x in self.sizes} if per_block else {}
        )
        self.flat = {x: self._flat(x) for x in self.sizes}
        self.closing = {
            b.leaf: b
            for b in (branches_of(graph) if graph.drops else ())
            if b.leaf in graph.drops and b.leaf in self.sizes and b.leaf not in self.first
        }
        self.ranked = _ranked(options, graph)
        self.worth = {x: graph.scores[x] for x in self.ranked}
        self.latency, wanted = _timed(options, graph)

        def step(weight: Weight) -> int:
            return lcm(wanted(weight), row_step(weight))

        self.rounder = Rounder(
            self.sizes,
            widths_of(graph, self.sizes, step),
            Limits(options.min_channels, options.max_ratio),
            1
            if isinstance(options.round_to, str) or options.round_to is None
            else options.round_to,
            self._steps(),
        )
        self.singles = {
            x: None for w in self.rounder.widths for x, _ in w.terms if x not in self.sizes
        }
        self.rankings = self._rankings()
        self.unrounded: dict[Axis, str] = {}

    def _named(self, graph: Graph, free: list[Group]) -> dict[Axis, None]:
        """Read ``keep`` and ``ratios``; returns the leaves that a ratio names one by one, which
        then carry it."""
        if not self.options.keep and not self.options.ratios:
            return {}
        names = NamePatterns(graph, free)
        for pattern in self.options.keep:
            for leaf in names.match(pattern, "keep"):
                self.reasons.setdefault(leaf, f"kept: it matches {pattern!r}")
        asked: dict[Axis, None] = {}
        for pattern, ratio in self.options.ratios.items():
            found = names.match(pattern, "ratios")
            self.own.update(dict.fromkeys(found, ratio))
            if pattern in names.exact:
                asked.update(found)
        return asked

    def _tied(self, graph: Graph, able: Container[Axis]) -> dict[Axis, Axis]:
        """For each leaf that shares its count with others the first of them; where one of a kind
        stays whole, all do."""
        out: dict[Axis, Axis] = {}
        if not self.options.uniform:
            return out
        for some in kinds_of_groups(groups_of(graph), self.options.uniform):
            mine = [g for g in some if g.axis in able]
            whole = next((g for g in some if g.axis not in able), None)
            for group in mine:
                if whole is not None:
                    self.reasons[group.axis] = (
                        f"uniform: {whole.name} is of the same kind and stays whole"
                    )
                elif len(some) > 1:
                    out[group.axis] = some[0].axis
        return out

    def _steps(self) -> dict[Axis, int]:
        """What the counts of leaves must be multiples of. Raises IrpruneError for a kind that the
        model does not have."""
        out: dict[Axis, int] = dict.fromkeys(even_leaves(self.graph), 2)
        asked = self.options.divisible_by
        if not asked:
            return out
        found = kinds(self.graph)
        for kind, number in asked.items():
            alike = ("heads", "kv groups") if kind == "heads" else (kind,)
            mine = [x for x, k in found.items() if k in alike]
            if not mine:
                raise IrpruneError(
                    f"divisible_by: the model has no {kind}",
                    self.graph.name,
                    f"there are {', '.join(dict.fromkeys(found.values()))}",
                )
            out.update({x: lcm(number, out.get(x, 1)) for x in mine})
        return out

    def _flat(self, x: Axis) -> Scores:
        """Scores per index, the mean over blocks: of what stands at one rank in each of them where
        every block has its own choice."""
        scores = self.scores[x]
        if scores.ndim == 1:
            return scores
        return np.asarray(
            (np.sort(scores, axis=-1) if x in self.blocks else scores).mean(axis=0),
            dtype=np.float64,
        )

    def _rankings(self) -> list[Ranking]:
        if self.options.scope in ("local", "knapsack"):
            return []
        ranked = [self.groups[x] for x in self.sizes if x not in self.own]
        sets = [ranked] if self.options.scope == "global" else classes(ranked, structure_of)
        return [
            Ranking({g.axis: self.flat[g.axis] for g in some}, self.rounder.low) for some in sets
        ]

    # -- counts ------------------------------------------------------------------------------------

    def targets(self, ratio: float) -> dict[Axis, float]:
        """Exact counts, not whole: by ratio, or by rank."""
        out: dict[Axis, float] = {}
        for x, n in {**self.sizes, **dict.fromkeys(self.singles, 1)}.items():
            keep = 1 - self.own.get(x, ratio)
            out[x] = n * keep ** (1 / self.carriers.sharing.get(x, 1))
        for ranking in self.rankings:
            out.update(ranking.targets(ratio))
        return out

    def counts(self, ratio: float) -> dict[Axis, int]:
        """Whole counts for a ratio, within all caps."""
        target = self.targets(ratio)
        out, self.unrounded = self.rounder.counts(
            {x: t for x, t in target.items() if x in self.sizes or x in self.singles}
        )
        return levelled(out, self.first, self.rounder.step) if self.first else out

    def order(self, counts: Mapping[Axis, int]) -> list[Axis]:
        """The leaves in the order in which a search gives indices back: those furthest below their
        share first, or best score first."""
        if self.options.scope == "local":
            return sorted(counts, key=lambda x: counts[x] / self.sizes[x])
        return sorted(counts, key=lambda x: -_last_dropped(self.flat[x], counts[x]))

    # -- results -----------------------------------------------------------------------------------

    def kept(self, counts: Mapping[Axis, int]) -> Selection:
        """The most important indices of each leaf, per block where that is legal."""
        choice: dict[Axis, np.ndarray] = {}
        within: dict[Axis, Axis] = {}
        for x, n in counts.items():
            if n >= self.sizes[x] or n == 0:
                continue
            scores = self.scores[x]
            if scores.ndim == 2 and x in self.blocks:
                within[x] = self.blocks[x]
            else:
                scores = self.flat[x]
            choice[x] = np.sort(np.argsort(-scores, axis=-1, kind="stable")[..., :n], axis=-1)
        dropped = {b.join.out.name: b.stream for x, b in self.closing.items() if counts[x] == 0}
        return Selection(choice, within, dropped)

    def skipped(self, counts: Mapping[Axis, int]) -> dict[Axis, str]:
        """Every free leaf that stays whole, in graph order, and why."""
        out = {}
        for x, group in self.groups.items():
            if x in self.reasons:
                out[x] = self.reasons[x]
            elif counts[x] == group.size:
                out[x] = self.unrounded.get(x) or self._whole(x, group.size)
        return out

    def _whole(self, x: Axis, size: int) -> str:
        if self.rounder.low[x] == size:
            return f"at most {self.options.max_ratio:g} of it and no fewer than {self.options.min_channels} may be left: its size is {size}"
        if self.own.get(x, 1.0) == 0:
            return "its ratio is 0"
        if self.options.budget is not None:
            return "the budget leaves it whole"
        if self.options.scope == "local" or x in self.own:
            return f"{self.own.get(x, self.options.ratio):g} of {size} rounds to none"
        return "all of it ranks above the threshold"


def _ranked(options: Choose, graph: Graph) -> dict[Axis, Factorable]:
    """The layers that may become two, by the leaf of their rank; none that ``keep`` matches."""
    if not graph.factorable:
        return {}  # without torch, which finds them
    from irprune.analysis.factorable import factorable

    by_name = {one.name: one for one in factorable(graph)}
    return {
        leaf: by_name[name]
        for leaf, name in graph.factorable.items()
        if not any(fnmatchcase(name, pattern) for pattern in options.keep)
    }


def _timed(options: Choose, graph: Graph) -> tuple[Timed | None, Callable[[Weight], int]]:
    """What predicts latency, where there is a budget on it, and the multiple that the widths of a
    weight should have."""
    budgeted, auto = "latency" in (options.budget or {}), options.round_to == "auto"
    if not budgeted and not auto:
        return None, aligned_step if options.round_to == "aligned" else lambda weight: 1
    times = Table.here() if options.times is None else options.times
    table = times.table if isinstance(times, Predictor) else times
    predictor = (
        times if isinstance(times, Predictor) else Predictor(graph, table) if budgeted else None
    )
    return predictor, _step(options, table)


def _last_dropped(scores: Scores, count: int) -> float:
    """The highest score among the dropped."""
    return float(np.sort(scores)[::-1][count]) if count < len(scores) else float("-inf")


def _step(options: Choose, table: Table) -> Callable[[Weight], int]:
    """The multiple that the widths of a weight should have."""
    if options.round_to == "auto":
        return lambda weight: step_of(weight, table)
    return aligned_step if options.round_to == "aligned" else lambda weight: 1

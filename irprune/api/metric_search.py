"""Prune to a metric: the smallest cut whose metric is good enough, found by bisection over the
share that is left.

Importance is scored once; each trial chooses by it, cuts, repairs and is judged. A share that no
cut reaches costs no trial."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irprune.api.candidate import Candidate
from irprune.api.judges import Agreement, Judge, Scored
from irprune.api.latency_search import Latency
from irprune.api.latency_whole import WholeModel
from irprune.api.trials import HEAD, Trial, Trials, TrialsFile, trial_key
from irprune.choice.plan import Plan
from irprune.driver.pipelines import cut_graph
from irprune.errors import IrpruneError, option
from irprune.ir.graph import Graph
from irprune.run.ranks import current

if TYPE_CHECKING:
    from irprune.api.declarations import PruneOptions
    from irprune.api.pruned import Pruned
    from irprune.passes.choose import Choose

__all__ = ["search"]

_NEAREST = 0.01  # shares nearer to each other than this are the same
_HALVINGS = 40  # of the share, whether or not a trial came of them

Cut = Callable[[Graph, bool], "Pruned"]


def search(
    graph: Graph, choose: Choose, values: PruneOptions, cut: Cut
) -> tuple[Trials, Latency | None]:
    """Set ``graph.kept`` to the smallest choice whose metric passes.

    Args:
        graph: The analysed and scored original.
        choose: The pass that chooses; its ratio and budget are not used.
        values: The options of the call: ``evaluate``, ``metric``, ``max_drop``, ``target_metric``,
            ``minimise``, ``points``, ``trials`` and those that they depend on.
        cut: Makes the pruned model of a graph with a choice, repaired and emitted; proven where
            the second argument is true.

    Returns:
        The trials; and with ``minimise="latency"`` what was measured of the cut that was taken.

    Raises:
        IrpruneError: Where the original's metric is no number, or is not good enough itself.
    """
    ranks = current()
    if ranks.size > 1 and values["minimise"] == "latency":
        raise IrpruneError(
            "times of several ranks are not the same",
            option("minimise"),
            "search by latency on one rank (ranks=1), and replay its plan on all",
        )
    judge = _judge(graph, values)
    with contextlib.ExitStack() as open_now:
        clocked = None
        if values["minimise"] == "latency":
            clocked = _Clocked(graph, choose, values, open_now)
            choose = replace(choose, times=clocked.predictor)
        bench = _Bench(graph, choose, values, cut, judge, clocked, open_now)
        trials = bench.begin()
        _bisect(bench, values["points"])
        graph.kept, graph.skipped, graph.low_rank = bench.best
        latency = clocked.measured(graph) if clocked is not None else None
        return trials, latency


def _judge(graph: Graph, values: PruneOptions) -> Judge:
    function = values["evaluate"]
    if function is not None:
        return Scored(function, not values["lower_is_better"])
    return Agreement(values["calibration"], graph, values["metric"])


class _Clocked:
    """The predictor of latency, and the original to measure the result beside."""

    def __init__(
        self, graph: Graph, choose: Choose, values: PruneOptions, held: contextlib.ExitStack
    ) -> None:
        self.threads = values["threads"]
        self.whole: WholeModel = held.enter_context(
            WholeModel(graph, values["device"], self.threads)
        )
        say = values["progress"] or (lambda line: None)
        self.predictor = self.whole.predictor(choose.times, say)

    def share(self, graph: Graph) -> float:
        """The predicted share of the original's latency."""
        kept = graph.kept.choice if graph.kept is not None else {}
        counts = {a: int(k.shape[-1]) for a, k in kept.items()}
        return float(self.predictor.at(counts) / self.predictor.at({}))

    def measured(self, graph: Graph) -> Latency:
        """What the chosen cut takes, measured in turns with the original."""
        import onnxruntime

        before, after = self.whole.beside(graph, cut_graph)
        predicted = self.share(graph) * before.median
        return Latency(
            before,
            after,
            predicted,
            predicted,
            self.whole.provider,
            onnxruntime.__version__,
            self.threads,
            1,
        )


class _Bench:
    """Makes trials and remembers them."""

    def __init__(
        self,
        graph: Graph,
        choose: Choose,
        values: PruneOptions,
        cut: Cut,
        judge: Judge,
        clocked: _Clocked | None,
        held: contextlib.ExitStack,
    ) -> None:
        self.held = held
        self.graph, self.choose, self.values = graph, choose, values
        self.cut, self.judge, self.clocked = cut, judge, clocked
        self.file = TrialsFile(values["trials"])
        self.say = (values["progress"] if current().leads else None) or (lambda line: None)
        self.measure = values["minimise"]
        self.best: Any = (None, {}, {})
        self._trials: Trials | None = None

    @property
    def trials(self) -> Trials:
        """The trials so far; there are some once the search has begun."""
        assert self._trials is not None
        return self._trials

    def begin(self) -> Trials:
        """Judge the original, from which the worst metric that passes follows."""
        replace(self.choose, ratio=0.0, ratios={}, budget=None, scope="local").run(self.graph)
        first = self._trial(1.0, passes=None)
        value, drop, target = first.metric, self.values["max_drop"], self.values["target_metric"]
        if not math.isfinite(value) and target is None:
            raise IrpruneError(
                f"the original's metric is {value}",
                self.judge.name,
                "a drop of it says nothing: give target_metric"
                if not math.isnan(value)
                else "it must be a number",
            )
        if target is None:
            assert isinstance(drop, float)
            target = value - drop * abs(value) if self.judge.higher else value + drop * abs(value)
        trials = Trials(self.measure, self.judge.name, self.judge.higher, float(target))
        if not trials.passes(value):
            raise IrpruneError(
                f"the original's own metric is {value:.5g}",
                self.judge.name,
                f"the target {target:.5g} cannot be kept by a smaller model",
            )
        self._trials = trials
        self._taken(replace(first, passed=True))
        return trials

    def at(self, share: float) -> bool | None:
        """Whether the cut that leaves ``share`` passes; None where there is no such cut."""
        try:
            replace(self.choose, ratio=0.0, budget={self.measure: share}).run(self.graph)
        except IrpruneError as refused:
            if "cannot be met" not in refused.what:
                raise
            return None
        trial = self._trial(share, self.trials.passes)
        for known in self.trials:
            if known.key == trial.key:
                return known.passed
        self._taken(trial)
        return trial.passed

    def _taken(self, trial: Trial) -> None:
        if not self.trials.tried:
            self.say(HEAD)
        self.say(trial.row(len(self.trials)))
        smallest = not self.trials.tried or trial.left < self.trials.best.left
        self.trials.tried.append(trial)
        if trial.passed and smallest:
            self.best = (self.graph.kept, self.graph.skipped, self.graph.low_rank)

    def _trial(self, share: float, passes: Callable[[float], bool] | None) -> Trial:
        """The trial of the present choice, judged unless it is known."""
        repairs = self.values["repair"]
        assert isinstance(repairs, tuple)
        key = trial_key(Plan.from_graph(self.graph), self.judge.identity, repairs)
        done = next((t for t in (self._trials or ()) if t.key == key), None)
        if done is not None:
            return done
        began = time.perf_counter()
        ranks = current()
        known = ranks.first(self.file.known(key))
        if known is not None:
            return replace(known, again=True, passed=passes is None or passes(known.metric))
        first = len(self._trials or ()) == 1  # a fault of the cut shows before the long work
        pruned = self.cut(self.graph, first and bool(self.values["proof"]))
        with contextlib.ExitStack() as kept:
            # The original is run again beside each cut
            place = self.held if passes is None else kept
            folder = place.enter_context(tempfile.TemporaryDirectory(prefix="irprune-"))
            candidate = Candidate(
                pruned, Path(folder), self.values["device"], self.values["threads"]
            )
            metric = ranks.first(self.judge.value(candidate))
        report = pruned.report
        shares = {k: getattr(report, k).left for k in ("macs", "params", "bytes", "activation")}
        latency = self.clocked.share(self.graph) if self.clocked is not None else None
        left = latency if latency is not None else shares[self.measure]
        made = Trial(
            left,
            shares["macs"],
            shares["params"],
            latency,
            metric,
            time.perf_counter() - began,
            passes is None or passes(metric),
            trial_key(Plan.from_graph(self.graph), self.judge.identity, repairs),
        )
        if ranks.leads:
            self.file.add(made)
        return made


def _bisect(bench: _Bench, points: int) -> None:
    """Halve the shares between the smallest that passes and the largest that does not."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        if high - low <= _NEAREST or len(bench.trials) > points:
            return
        share = (low + high) / 2
        if bench.at(share):
            high = min(share, bench.trials.best.left)
        else:
            low = share

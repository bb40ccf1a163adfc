"""Several strategies at once: what they choose follows from statistics that are gathered once for
each criterion; the models are judged in processes of their own, beside each other.

Each is judged in the same way (``irprune.api.sweep_bench``), whoever does it
(``irprune.api.sweep_workers``)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irprune.analysis.cost import MEASURES, Costs
from irprune.api.agreement import check_same, same_scores
from irprune.api.declarations import PruneOptions
from irprune.api.option_kinds import read_share
from irprune.api.options import Options
from irprune.api.study import Study
from irprune.api.sweep_bench import Bench, Call, Job
from irprune.api.sweep_result import Sweep, Swept
from irprune.api.sweep_workers import ENGINES, Judges, values
from irprune.api.trials import trial_key
from irprune.base.near import meant
from irprune.choice.plan import Plan
from irprune.driver.pipelines import analyse
from irprune.errors import IrpruneError, option
from irprune.frontend.capture import capture
from irprune.ir.graph import Graph
from irprune.passes.score import Score
from irprune.run.ranks import Ranks, together

if TYPE_CHECKING:
    from irprune.frontend.capture import Model

__all__ = ["sweep"]

_OWN = (
    "importance",
    "scope",
    "budget",
    "ratio",
    "evaluate",
    "metric",
    "max_drop",
    "target_metric",
    "trials",
)


def sweep(
    model: Model | None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    importance: Sequence[Any] = ("default",),
    scope: Sequence[str] = ("default",),
    budget: Mapping[str, Sequence[float | str]],
    evaluate: Callable[..., float] | str | None = None,
    metric: str | None = None,
    lower_is_better: bool = False,
    workers: int = 1,
    engine: str = "processes",
    storage: str | Path | None = None,
    load: Callable[[], tuple[Any, Sequence[Any], Mapping[str, Any]]] | None = None,
    options: PruneOptions | None = None,
) -> Sweep:
    """Every combination of criteria, scopes and budgets, judged.

    Args:
        model: As for ``irprune.prune``; None where ``load`` makes it.
        args: The positional arguments of an example call.
        kwargs: Its keyword arguments.
        importance: Criteria, as ``irprune.prune`` takes one; ``"default"`` is its default.
        scope: ``local``, ``global``, ``knapsack``, or ``"default"``.
        budget: Shares that may be left, by what they are of: ``{"macs": [0.8, 0.7]}``.
        evaluate: A function of a model that gives its metric, or ``"FILE.py:NAME"``; without one
            agreement with the original on the calibration data is measured.
        metric: How agreement is measured: top1, cosine, snr, iou, perplexity. Default: what fits
            the outputs.
        lower_is_better: What ``evaluate`` returns is an error.
        workers: How many processes judge models at the same time. What they are given must be what
            ``pickle`` takes. Within a ``torch.distributed`` group its ranks do, and this is 1.
        engine: What runs the processes: ``processes`` of this machine, or ``ray``, on the cluster
            that ``ray.init`` was called for, else on this machine.
        storage: A journal of Optuna that keeps the trials; those in it are not judged again.
        load: Makes the model and its example call in each process, in place of pickling them.
        options: Options of ``irprune.prune`` by name that hold for all, as
            ``{"calibration": "images/"}``; none that a sweep varies.

    Returns:
        The trials, the original first. ``irprune.apply_plan`` makes and proves the model of each
        from its plan.

    Raises:
        IrpruneError: For bad input, and for a budget that no choice meets.
    """
    options = PruneOptions(**(options or {}))
    for name in options:
        if name in _OWN:
            raise IrpruneError(f"a sweep has no option {option(name)}", "", "it varies that itself")
    if workers < 1:
        raise IrpruneError(f"{option('workers')} is {workers}", "", "at least 1")
    if engine not in ENGINES:
        hint = meant(engine, ENGINES, f"one of {', '.join(ENGINES)}")
        raise IrpruneError(f"{option('engine')} is {engine!r}", "", hint)
    if evaluate is None and options.get("calibration") is None:
        raise IrpruneError(
            "nothing says how good a model is", "", f"give evaluate or {option('calibration')}"
        )
    strategies = _strategies(options, importance, scope, _shares(budget))
    job = Job(
        model, tuple(args), dict(kwargs or {}), load, options, evaluate, metric, lower_is_better
    )
    with together(options.get("ranks")) as ranks:
        if ranks.size > 1 and (workers > 1 or engine != "processes"):
            raise IrpruneError(
                f"{option('workers', str(workers))} on {ranks.size} ranks",
                f"{option('engine')} {engine}",
                "the ranks judge models at the same time: leave both out",
            )
        call = job.call()
        graph = _captured(call, job.options.values)
        told: dict[str, Any] = {
            "importance": importance,
            "scope": scope,
            "budget": budget,
            "metric": metric,
        }
        told |= {"evaluate": evaluate, "lower_is_better": lower_is_better}
        check_same(ranks, graph, {**job.options.values, **told})
        asked = list(_choices(graph, Options(**options), strategies, ranks))
        with contextlib.closing(Bench(job, call, asked[0].plan)) as bench:
            return _judged(job, bench, graph.name, asked, Judges(ranks, workers, engine), storage)


# -- what is chosen --------------------------------------------------------------------------------


def _shares(budget: Mapping[str, Sequence[float | str]]) -> list[tuple[str, float]]:
    out = []
    for measure, many in budget.items():
        if measure not in MEASURES:
            raise IrpruneError(
                f"a sweep cannot have a budget on {measure!r}",
                "",
                meant(measure, MEASURES, f"one of {', '.join(MEASURES)}"),
            )
        for share in [many] if isinstance(many, (str, float, int)) else many:
            read = read_share(share)
            if not 0 < read < 1:
                raise IrpruneError(
                    f"the share of {measure} is {share!r}", "", "between 0 and 1, as 0.8 or 80%"
                )
            out.append((measure, read))
    if not out:
        raise IrpruneError("no budget is given", "", "as macs=0.8,0.7")
    return out


@dataclass(frozen=True)
class Strategy:
    """One combination: its words, and the options that it is."""

    importance: str
    scope: str
    measure: str
    share: float
    options: Options


def _strategies(
    options: PruneOptions,
    importance: Sequence[Any],
    scope: Sequence[str],
    shares: Sequence[tuple[str, float]],
) -> list[Strategy]:
    """Every combination, the criterion outermost, checked before a model is loaded."""
    out = []
    for criterion, where, (measure, share) in itertools.product(importance, scope, shares):
        varied: Any = {"budget": {measure: share}}
        varied |= {} if criterion == "default" else {"importance": criterion}
        varied |= {} if where == "default" else {"scope": where}
        name = criterion if isinstance(criterion, str) else type(criterion).__name__
        out.append(Strategy(name, where, measure, share, Options(**{**options, **varied})))
    return out


def _captured(call: Call, values: PruneOptions) -> Graph:
    model, args, kwargs = call
    graph = capture(
        model,
        args,
        kwargs,
        values["dynamic_shapes"],
        dynamic=values["dynamic"],
        trust=values["trust"],
    )
    analyse(graph)
    return graph


def _choices(
    graph: Graph, plain: Options, strategies: Sequence[Strategy], ranks: Ranks
) -> Iterator[Swept]:
    """The original and every strategy, with plans and without metrics; a criterion scores once."""
    costs = Costs(graph)
    whole = costs.at({})
    nothing = replace(plain.choose(), ratio=0.0, ratios={}, budget=None, scope="local")

    def row(importance: str, scope: str, measure: str, share: float) -> Swept:
        assert graph.kept is not None
        now = costs.at(graph.kept)
        left = {m: now[m] / whole[m] if whole[m] else 1.0 for m in MEASURES}
        plan = Plan.from_graph(graph)
        return Swept(
            importance,
            scope,
            measure,
            share,
            left[measure],
            left["macs"],
            left["params"],
            float("nan"),
            0.0,
            "",
            plan,
        )

    scored: Score | None = None
    for n, one in enumerate(strategies):
        score = one.options.score()
        if score != scored:
            score.run(graph)
            same_scores(ranks, graph)
            scored = score
        if not n:
            nothing.run(graph)
            yield row("", "", one.measure, 1.0)
        one.options.choose().run(graph)
        yield row(one.importance, one.scope, one.measure, one.share)


# -- how it is judged ------------------------------------------------------------------------------


def _judged(
    job: Job,
    bench: Bench,
    model: str,
    asked: Sequence[Swept],
    judges: Judges,
    storage: str | Path | None,
) -> Sweep:
    """The metric of each plan, in the order in which they were asked for."""
    original, ranks = asked[0].plan, judges.ranks
    value, seconds = ranks.first(bench.value(original))
    judge, repairs = bench.judge, job.options.values["repair"]
    assert isinstance(repairs, tuple)
    rows = [replace(r, key=trial_key(r.plan, judge.identity, repairs)) for r in asked]
    study = None
    if storage is not None and ranks.leads:
        identity = f"{original.source} {judge.identity}"
        study = Study(storage, model, judge.name, judge.higher, identity)
    known = ranks.first({r.key: study.metric_of(r.key) for r in rows} if study else {})
    found = {k: v for k, v in known.items() if v is not None} | {rows[0].key: (value, seconds)}
    named = {r.key: r for r in reversed(rows)}  # of those that cut the same the first
    plans = {r.key: r.plan for r in rows if r.key not in found}

    def keep(key: str) -> Swept:
        row = replace(named[key], metric=found[key][0], seconds=found[key][1])
        if study:
            study.add(row)
        return row

    keep(rows[0].key)
    say = (job.options.values["progress"] if ranks.leads else None) or (lambda line: None)
    for done, (key, made) in enumerate(values(bench, job, original, plans, judges), 1):
        found[key] = made
        row = keep(key)
        say(f"{done} of {len(plans)}: {row.name}: {judge.name} {row.metric:.5g}")
    return Sweep(
        judge.name,
        judge.higher,
        tuple(
            replace(
                r, metric=found[r.key][0], seconds=found[r.key][1], known=bool(known.get(r.key))
            )
            for r in rows
        ),
    )

"""Several strategies at once: what they choose follows from statistics that are gathered once for
each criterion; the models are judged in processes of their own, beside each other.

Each is judged in the same way, on a number of threads that does not depend on how many processes
there are, so that neither do the results. The processes are those of a pool here, actors of Ray
where they are asked for, or the ranks of a ``torch.distributed`` group."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import multiprocessing.util
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from irprune.analysis.cost import MEASURES, Costs
from irprune.api.agreement import check_same, same_scores
from irprune.api.calls import apply_plan
from irprune.api.candidate import Candidate
from irprune.api.declarations import PruneOptions
from irprune.api.judges import Agreement, Judge, Scored
from irprune.api.option_kinds import read_share
from irprune.api.options import Options
from irprune.api.study import Study
from irprune.api.swept import Sweep, Swept
from irprune.api.trials import trial_key
from irprune.api.user_code import callable_at
from irprune.choice.plan import Plan
from irprune.driver.pipelines import analyse
from irprune.errors import IrpruneError, gist, option
from irprune.frontend.capture import capture
from irprune.ir.graph import Graph
from irprune.passes.score import Score
from irprune.run.ranks import Ranks, by_itself, together

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
    model: Any,
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
        model: As for ``irprune.prune``.
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
        raise IrpruneError(f"{option('engine')} is {engine!r}", "", f"one of {', '.join(ENGINES)}")
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


@dataclass(frozen=True)
class Judges:
    """Who judges: ``ranks`` where they are several, else so many ``workers`` of an ``engine``."""

    ranks: Ranks
    workers: int
    engine: str


ENGINES = ("processes", "ray")
Call = tuple[Any, Sequence[Any], Mapping[str, Any]]  # a model and its example call


@dataclass(frozen=True)
class Job:
    """What a process must know to judge plans."""

    model: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    load: Callable[[], Call] | None
    settings: PruneOptions
    evaluate: Callable[..., float] | str | None
    metric: str | None
    lower_is_better: bool

    @property
    def options(self) -> Options:
        """The options, checked."""
        return Options(**self.settings)

    def call(self) -> Call:
        """The model and its example call."""
        return (self.model, self.args, self.kwargs) if self.load is None else self.load()

    def judge(self, graph: Graph) -> Judge:
        """What gives the metric."""
        if self.evaluate is None:
            return Agreement(self.options.values["calibration"], graph, self.metric)
        function = callable_at(self.evaluate) if isinstance(self.evaluate, str) else self.evaluate
        return Scored(function, not self.lower_is_better)


# -- what is chosen --------------------------------------------------------------------------------


def _shares(budget: Mapping[str, Sequence[float | str]]) -> list[tuple[str, float]]:
    out = []
    for measure, many in budget.items():
        if measure not in MEASURES:
            raise IrpruneError(
                f"a sweep cannot have a budget on {measure!r}", "", f"one of {', '.join(MEASURES)}"
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
    for done, (key, made) in enumerate(_values(bench, job, original, plans, judges), 1):
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


def _values(
    bench: Bench, job: Job, original: Plan, plans: Mapping[str, Plan], judges: Judges
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Metric and seconds of each plan by its key, as they come."""
    if judges.ranks.size > 1:
        yield from _on_ranks(bench, plans, judges.ranks)
        return
    workers = min(judges.workers, len(plans))
    if judges.engine == "processes" and workers < 2:
        yield from ((key, bench.value(plan)) for key, plan in plans.items())
        return
    plain: Any = {k: v for k, v in job.settings.items() if k != "progress"}
    job = replace(job, settings=plain)
    try:
        pickle.dumps(job)
    except (pickle.PicklingError, TypeError, AttributeError) as refused:
        raise IrpruneError(
            f"with {option('workers', str(workers))} the model is sent to processes: {refused}",
            "",
            "define its class and evaluate in a module that can be imported, or give load",
        ) from refused
    if judges.engine == "ray":
        yield from _on_ray(job, original, plans, workers)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (job, original)) as pool:
        futures = {pool.submit(_run, plan): key for key, plan in plans.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as died:
            raise IrpruneError(
                "a process of the sweep died", "", f"try fewer {option('workers')}"
            ) from died
        finally:
            pool.shutdown(cancel_futures=True)


def _on_ranks(
    bench: Bench, plans: Mapping[str, Plan], ranks: Ranks
) -> Iterator[tuple[str, tuple[float, float]]]:
    """As many plans at a time as there are ranks, so that what is known is kept as it comes."""
    keys = list(plans)
    for at in range(0, len(keys), ranks.size):
        some = keys[at : at + ranks.size]
        yield from zip(some, ranks.share(some, lambda key: bench.value(plans[key])), strict=True)


def _on_ray(
    job: Job, original: Plan, plans: Mapping[str, Plan], workers: int
) -> Iterator[tuple[str, tuple[float, float]]]:
    """By actors of Ray, each with a model of its own."""
    try:
        ray: Any = import_module("ray")
        pools: Any = import_module("ray.util")
    except ImportError as missing:
        raise IrpruneError(
            "ray is not installed", option("engine", "ray"), "pip install 'irprune[ray]'"
        ) from missing
    began = not ray.is_initialized()
    if began:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        kind = ray.remote(num_cpus=1)(Actor)
        pool = pools.ActorPool([kind.remote(job, original) for _ in range(max(1, workers))])
        yield from pool.map_unordered(lambda actor, item: actor.value.remote(*item), plans.items())
    except ray.exceptions.RayTaskError as failed:
        raise failed.cause if isinstance(failed.cause, IrpruneError) else failed from failed
    except ray.exceptions.RayError as died:
        raise IrpruneError(
            f"a process of the sweep died: {gist(died)}", "", f"try fewer {option('workers')}"
        ) from died
    finally:
        if began:
            ray.shutdown()


class Actor:
    """A bench in a process of Ray."""

    def __init__(self, job: Job, original: Plan) -> None:
        self._bench = Bench(job, job.call(), original)

    def value(self, key: str, plan: Plan) -> tuple[str, tuple[float, float]]:
        """The key again, and the metric and seconds of ``plan``."""
        return key, self._bench.value(plan)


class Bench:
    """Judges the models that plans make of the original, one after the other."""

    def __init__(self, job: Job, call: Call, original: Plan) -> None:
        self.job, self.original = job, original
        self.model, self.args, self.kwargs = call
        self.values = job.options.values
        self.threads = self.values["threads"] or 1
        self._held = contextlib.ExitStack()
        self._judge: Judge | None = None
        self._first = (float("nan"), 0.0)

    @property
    def judge(self) -> Judge:
        """What gives the metric; it has judged the original."""
        if self._judge is None:
            began = time.perf_counter()
            folder = self._held.enter_context(_folder())  # the original is run beside each other
            made = self._made(self.original, False, folder)
            self._judge = self.job.judge(made.pruned.graph)
            self._first = self._judge.value(made), time.perf_counter() - began
        return self._judge

    def value(self, plan: Plan) -> tuple[float, float]:
        """The metric of the model that ``plan`` makes, and the seconds that it took."""
        with _threads(self.threads), by_itself():
            judge, began = self.judge, time.perf_counter()
            if plan is self.original:
                return self._first
            with _folder() as folder:
                made = self._made(plan, self.values["repair"], folder)
                return judge.value(made), time.perf_counter() - began

    def close(self) -> None:
        """Remove what was written for the original."""
        self._held.close()

    def _made(self, plan: Plan, repair: Any, folder: str) -> Candidate:
        values = self.values
        pruned = apply_plan(
            self.model,
            plan,
            self.args,
            self.kwargs,
            proof=False,
            repair=repair,
            calibration=values["calibration"],
            device=values["device"],
            dynamic=values["dynamic"],
            trust=values["trust"],
        )
        return Candidate(pruned, Path(folder), values["device"], self.threads)


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="irprune-")


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch compute on ``count`` threads, where it is used at all."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_BENCH: list[Bench] = []  # of a process of the sweep


def _begin(job: Job, original: Plan) -> None:
    bench = Bench(job, job.call(), original)
    _BENCH.append(bench)
    multiprocessing.util.Finalize(None, bench.close, exitpriority=10)  # atexit is not heard here


def _run(plan: Plan) -> tuple[float, float]:
    return _BENCH[0].value(plan)

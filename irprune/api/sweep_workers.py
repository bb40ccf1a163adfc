"""Who judges the models of a sweep beside each other: processes of a pool here, actors of Ray where
they are asked for, or the ranks of a ``torch.distributed`` group."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import pickle
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from irprune.api.sweep_bench import Bench, Job
from irprune.choice.plan import Plan
from irprune.errors import IrpruneError, gist, option
from irprune.run.ranks import Ranks

__all__ = ["ENGINES", "Judges", "values"]

ENGINES = ("processes", "ray")


@dataclass(frozen=True)
class Judges:
    """Who judges: ``ranks`` where they are several, else so many ``workers`` of an ``engine``."""

    ranks: Ranks
    workers: int
    engine: str


def values(
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


_BENCH: list[Bench] = []  # of a process of the sweep


def _begin(job: Job, original: Plan) -> None:
    bench = Bench(job, job.call(), original)
    _BENCH.append(bench)
    multiprocessing.util.Finalize(None, bench.close, exitpriority=10)  # atexit is not heard here


def _run(plan: Plan) -> tuple[float, float]:
    return _BENCH[0].value(plan)

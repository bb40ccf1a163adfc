"""Iterative pruning: a little at a time, with the user's own training between the steps, resumable.

    for pruned in irprune.schedule(model, (x,), ratio=0.5, steps=5, checkpoint="run/"):
        train(pruned.module)

Each step captures the module of the step before, as the user has trained it, ranks it anew and cuts
it a little further, so that the last step has the size that was asked for. As in Han et al.,
NeurIPS 2015; the cubic pace is that of Zhu and Gupta, "To prune, or not to prune", 2017."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from irprune.analysis.cost import Costs
from irprune.api.calls import apply_plan, prune
from irprune.api.declarations import STEP, StepOptions
from irprune.api.option import documented
from irprune.api.option_kinds import settle_budget
from irprune.api.pruned import Pruned
from irprune.base.near import meant
from irprune.choice.plan import Plan
from irprune.driver.pipelines import analyse
from irprune.errors import IrpruneError
from irprune.frontend.capture import capture
from irprune.run.ranks import together
from irprune.training.baseline import Began
from irprune.training.checkpoint import Checkpoint
from irprune.training.in_step import bring_in_step, is_shard, whole_module
from irprune.training.optimizer import OptimizerState, StepOptimizer

__all__ = ["PACES", "schedule"]

Pace = Callable[[float], float]
PACES: dict[str, Pace] = {"linear": lambda t: t, "cubic": lambda t: 1 - (1 - t) ** 3}


@documented(STEP)
def schedule(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    ratio: float | None = None,
    budget: Mapping[str, float] | None = None,
    steps: int = 5,
    pace: str | Pace = "linear",
    checkpoint: str | Path | None = None,
    **options: Unpack[StepOptions],
) -> Iterator[Pruned]:
    """``steps`` pruned models, each cut further than the one before, which the caller trains
    (``pruned.module``) before going on.

    Within a ``torch.distributed`` group all ranks iterate together and get the same module in every
    step, to be wrapped anew in each. The checkpoint is one of ``torch.distributed.checkpoint``:
    each rank writes the shards that it holds, the first the plans.

    Args:
        model: The module to begin with; it is not changed.
        args: The positional arguments of an example call.
        kwargs: Its keyword arguments.
        ratio: Share of every width that is gone in the end. This or ``budget`` is given.
        budget: Shares of macs, params, bytes or activation that are left in the end.
        steps: How many models.
        pace: How the way is divided: ``linear``, ``cubic`` (most at the beginning), or a function
            from the share of steps done to the share of the way.
        checkpoint: A folder: what was trained is kept there after each step, and the same call
            with the same model goes on behind the last step that was finished.
        **options: Those that ``irprune.api.declarations.StepOptions`` declares.

    Returns:
        An iterator over the steps.

    Raises:
        IrpruneError: For values out of range and for a checkpoint of another schedule.
    """
    if (ratio is None) == (budget is None):
        raise IrpruneError(
            "a schedule needs a ratio or a budget, not both",
            "schedule",
            "for example ratio=0.5 or budget={'macs': 0.5}",
        )
    if not isinstance(steps, int) or steps < 1:
        raise IrpruneError(f"steps is {steps!r}", "schedule", "a whole number from 1 on")
    if ratio is not None and not 0 <= ratio < 1:
        raise IrpruneError(
            f"ratio is {ratio}", "schedule", "the share that is gone in the end, from 0 to below 1"
        )
    if isinstance(pace, str) and pace not in PACES:
        raise IrpruneError(
            f"pace is {pace!r}",
            "schedule",
            meant(pace, PACES, "one of " + ", ".join(PACES) + ", or a function"),
        )
    budget = settle_budget(budget, {})
    way = PACES[pace] if isinstance(pace, str) else pace
    settings = {"ratio": ratio, "budget": dict(budget or {}), "steps": steps}
    return _steps(
        model,
        tuple(args),
        dict(kwargs or {}),
        ratio,
        dict(budget or {}),
        [way((i + 1) / steps) for i in range(steps)],
        None if checkpoint is None else Checkpoint(Path(checkpoint), settings),
        options,
    )


def _steps(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    ratio: float | None,
    budget: dict[str, float],
    ways: list[float],
    checkpoint: Checkpoint | None,
    options: StepOptions,
) -> Iterator[Pruned]:
    plans: list[Plan] = []
    began: Began | None = None
    learned: OptimizerState | None = None
    current = model
    captured = {"dynamic_shapes": options["dynamic_shapes"]} if "dynamic_shapes" in options else {}
    count = options.get("ranks")
    if checkpoint is not None:
        with together(count) as ranks:
            held = checkpoint.read(ranks)
        plans, learned = held.plans, held.optimizer
        for plan in plans:
            current = apply_plan(current, plan, args, kwargs, proof=False, **captured).module
        if held.state is not None:
            current.load_state_dict(held.state)
    bounds = _bounds(model, args, kwargs, budget, captured)
    given = options.get("calibration")
    if isinstance(given, Iterator):  # each step reads it
        options = {**options, "calibration": list(given)}
    if given is None:
        options = {**options, "calibration": False}  # training makes up for it
    for i in range(len(plans), len(ways)):
        before = ways[i - 1] if i else 0.0
        if ratio is not None:
            wanted: dict[str, Any] = {"ratio": 1 - (1 - ratio * ways[i]) / (1 - ratio * before)}
        else:
            wanted = {
                "budget": {
                    k: whole - (whole - last) * ways[i] for k, (whole, last) in bounds.items()
                }
            }
        pruned = prune(current, args, kwargs, **wanted, **options)
        pruned.report.notes.append(f"step {i + 1} of {len(ways)}")
        data = pruned.options.values["calibration"]
        if data is not None:
            began = began or _began(model, args, kwargs, pruned, captured)
            pruned.report.step = began.step(i + 1, len(ways), pruned.whole, pruned.cut)
        step = StepOptimizer(learned)
        step.begin(pruned)
        yield pruned
        plans.append(pruned.plan)
        with together(count) as ranks:
            learned = step.state()
            current = whole_module(pruned)
            bring_in_step(current, ranks)
            if checkpoint is not None:
                # Where it was sharded each rank writes what it holds
                shards = {k: t for k, t in pruned.module.state_dict().items() if is_shard(t)}
                checkpoint.write(ranks, plans, current.state_dict() | shards, learned)


def _began(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    pruned: Pruned,
    captured: dict[str, Any],
) -> Began:
    """The model that the schedule begins with, and the data of ``pruned``, one of its steps."""
    values = pruned.options.values
    graph = analyse(capture(model, args, kwargs, **captured))
    return Began(graph, values["calibration"], values["metric"])


def _bounds(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    budget: dict[str, float],
    captured: dict[str, Any],
) -> dict[str, tuple[float, float]]:
    """For each measure what the whole model costs and what may be left in the end."""
    if not budget:
        return {}
    whole = Costs(analyse(capture(model, args, kwargs, **captured))).at({}).as_dict()
    unknown = [k for k in budget if k not in whole]
    if unknown:
        raise IrpruneError(
            f"no budget on {unknown[0]!r} in a schedule",
            "schedule",
            meant(unknown[0], whole, "one of " + ", ".join(whole)),
        )
    return {
        k: (float(whole[k]), amount * whole[k] if amount <= 1 else amount)
        for k, amount in budget.items()
    }

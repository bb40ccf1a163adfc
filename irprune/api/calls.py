"""The public calls: capture, groups, prune, apply_plan.

Nothing here imports torch until a torch model comes in, so that ONNX files are pruned without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from irprune.analysis.describe import describe
from irprune.api.agreement import check_same, choose_together, same_scores
from irprune.api.checks import check_memory, check_weights, ranked
from irprune.api.declarations import OPTIONS, REPLAY, PruneOptions, ReplayOptions
from irprune.api.exact import choose_fixed, with_masks
from irprune.api.finish import Clock, Miscaptured, finish
from irprune.api.forecast import forecast
from irprune.api.language import settle_for_logits
from irprune.api.option import documented
from irprune.api.option_kinds import INT8
from irprune.api.options import Options, device_of
from irprune.api.pruned import Pruned
from irprune.api.resume import journal_of
from irprune.api.uniform import choose_uniform
from irprune.api.without_data import say_unkept, with_data
from irprune.base.garbage import without_collection
from irprune.base.journal import kept
from irprune.base.memory import within_memory
from irprune.base.progress import listening
from irprune.choice.plan import Plan
from irprune.choice.replay import choose_by_plan
from irprune.criteria import refuses_nan
from irprune.driver.passes import Pass, name_of
from irprune.driver.pipelines import analyse, cut_graph
from irprune.driver.run import run
from irprune.emit.backends.base import backend_of
from irprune.errors import IrpruneError, option
from irprune.frontend.capture import capture, whole_call
from irprune.ir.graph import Graph
from irprune.ir.group import Group, groups_of
from irprune.ir.selection import Selection
from irprune.latency.table import Table
from irprune.passes.low_rank import LowRank
from irprune.run.all_reduce import measured
from irprune.run.ranks import Ranks, current, together
from irprune.run.session import providers_for

if TYPE_CHECKING:
    from irprune.api.latency_search import Latency
    from irprune.api.trials import Trials
    from irprune.frontend.capture import Model

__all__ = ["apply_plan", "groups", "made_by", "prune"]


def groups(graph: Graph) -> list[Group]:
    """The channels of a graph that are cut together or not at all.

    Args:
        graph: What ``irprune.capture`` gives; it is analysed where it was not.

    Returns:
        The groups, free and frozen, in order of first appearance.
    """
    analyse(graph)
    return groups_of(graph)


@documented(OPTIONS)
def prune(
    model: Model,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[PruneOptions],
) -> Pruned:
    """A smaller model, proven equal to ``model`` with the dropped channels silenced. ``model`` is
    not changed.

    Args:
        model: nn.Module, ExportedProgram, "m.pt2", "m.onnx", onnx.ModelProto or
            onnx_graphsurgeon.Graph.
        args: The positional arguments of an example call.
        kwargs: Its keyword arguments.
        **options: Those that ``irprune.api.declarations.PruneOptions`` declares.

    Returns:
        The pruned model, its report, and the ways out.

    Raises:
        IrpruneError: For bad input.
        CheckFailed: Where the proof fails.
    """
    chosen = Options(**options)
    with together(_ranks(options)) as ranks, within_memory(chosen.memory):
        return _prune(model, args, kwargs, chosen, ranks)


def _say_ranks(graph: Graph, options: Options) -> None:
    """Let ``graph`` know which layers may become two, or which will, of what rank."""
    said = options.values["low_rank"]
    if said:
        data = options.readings or options.values["calibration"]
        measured = options.values["normalise"] == "measured"
        LowRank({} if said is True else said, data, measured).run(graph)


def _ranks(options: Mapping[str, Any]) -> int | None:
    """How many ranks are asked for; what is no number of them is refused with the other options."""
    asked = options.get("ranks")
    return asked if OPTIONS["ranks"].fits(asked) else None


def _prune(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    chosen: Options,
    ranks: Ranks,
) -> Pruned:
    fixed = chosen.values["keep_indices"]
    model, masks = with_masks(model, fixed)

    def choose(graph: Graph, chosen: Options, clock: Clock) -> Found:
        if fixed is not None:
            with clock("analyse"):
                check_weights(graph)
                _check_rules(graph, chosen)
            with clock("choose"):
                found = Found(notes=choose_fixed(graph, fixed, masks))
                _say_ranks(graph, chosen)
                return found
        with clock("analyse"):
            importance = chosen.values["importance"]
            read = importance is not None and refuses_nan(importance)
            check_weights(graph, ranked(graph) if read else ())
            _check_rules(graph, chosen)
        with clock("score"):
            settle_for_logits(chosen, graph)
            _say_cost(graph, chosen, ranks)
            chosen.score().run(graph)
            same_scores(ranks, graph)
        if chosen.values["low_rank"]:
            with clock("score"):
                _say_ranks(graph, chosen)
        with clock("choose"):
            if chosen.searches:
                return _searched(graph, chosen)
            return choose_together(ranks, graph, chosen.timed, lambda: _choose(graph, chosen))

    return _pruned(model, args, kwargs, chosen, choose)


def _pruned(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    options: Options,
    choose: Callable[[Graph, Options, Clock], Found],
    plan: Plan | None = None,
) -> Pruned:
    """Capture, choose, cut and prove; where ``forward`` computes otherwise under export, once more
    from a capture of it as it runs."""
    clock = Clock()
    with clock("capture"):
        model, args, kwargs = whole_call(model, args, kwargs)

    def made(method: str) -> Pruned:
        with clock("capture"):
            graph = capture(
                model,
                args,
                kwargs,
                options.values["dynamic_shapes"],
                method,
                dynamic=options.values["dynamic"],
                trust=options.values["trust"],
            )
        _check_device(graph, options.values["device"])
        check_memory(graph)
        with clock("analyse"):
            analyse(graph)
            told = {**options.values, "plan": None if plan is None else plan.as_json()}
            check_same(current(), graph, told)
        with listening(options.values["progress"] if current().leads else None):
            with clock("synthesise"):
                free = plan is None and options.values["keep_indices"] is None
                settled, made_of = with_data(options, graph, chooses=free)
            _check_quantizes(settled)
            budget = settled.values["budget"]
            if settled.values["rotate"]:
                from irprune.api.rotate import rotated

                with clock("rotate"):
                    graph, settled.rotation = rotated(graph, settled)
            with kept(journal_of(graph, settled)):
                found = choose(graph, settled, clock)
                pruned = finish(graph, settled, clock)
                _let_go_of_sums(settled)
        sent = pruned.report.communication["ddp"]  # a ring sends each byte twice
        pruned.report.all_reduce = measured(current(), (sent.before // 2, sent.after // 2))
        settled.values["budget"] = budget
        pruned.report.options = settled.plain()
        pruned.report.latency, pruned.report.trials = found.latency, found.trials
        pruned.report.notes += [*found.notes, *([made_of] if made_of else [])]
        say_unkept(pruned.report, settled)
        return pruned

    short = options.values["calibration"] is None
    try:
        with without_collection() if short else contextlib.nullcontext():
            return made("auto")
    except Miscaptured as failed:
        try:
            pruned = made("run")
        except IrpruneError:
            raise failed from None
        pruned.report.notes.append(
            "captured as it runs, because forward computes otherwise when it is captured for export"
        )
        return pruned


def _let_go_of_sums(options: Options) -> None:
    """Of a run that is kept, remove the files of sums."""
    if options.values["resume"] is not None:
        from irprune.run.kept_files import let_go_of_sums

        let_go_of_sums()


def _check_quantizes(options: Options) -> None:
    """Raises IrpruneError where there are no data to quantise by."""
    if options.values["quantize"] == INT8 and options.values["calibration"] is None:
        raise IrpruneError(
            f"{option('quantize', repr(INT8))} needs data that show the ranges of activations",
            "",
            f"give {option('calibration')}",
        )


def _say_cost(graph: Graph, options: Options, ranks: Ranks) -> None:
    """Tell who listens how long calibration data will take, where scores are measured on them."""
    say, calibration = options.values["progress"], options.values["calibration"]
    if calibration is None or options.values["normalise"] != "measured":
        return
    if any(ranks.gather(say is not None)):  # the data are read by all ranks together
        told = forecast(graph, calibration)
        if say is not None and ranks.leads:
            say(told)


def _check_device(graph: Graph, device: str) -> None:
    """Raises IrpruneError where a GPU is asked for that what proves and times the model lacks."""
    if not device.startswith("cuda"):
        return
    if backend_of(graph).exports:
        device_of(device)
    else:
        providers_for("cuda")


@dataclass(frozen=True)
class Found:
    """What was measured to find a choice: for a budget on latency, and for a metric; and what is to
    be said of it."""

    latency: Latency | None = None
    trials: Trials | None = None
    notes: Sequence[str] = ()  # on what else the choice depends


def _searched(graph: Graph, options: Options) -> Found:
    """Set ``graph.kept`` to the smallest cut that keeps the metric."""
    from irprune.api.metric_search import search

    def cut(chosen: Graph, proof: bool) -> Pruned:
        return finish(chosen, options, Clock(), proof, quietly=True)

    trials, latency = search(graph, options.choose(), options.values, cut)
    return Found(latency, trials)


def _choose(graph: Graph, options: Options) -> Found:
    """Set ``graph.kept``; with a budget on latency by what was measured."""
    choose, values = options.choose(), options.values
    budget = values["budget"] or {}
    if "latency" not in budget:
        if values["uniform"]:
            choose_uniform(graph, choose, lambda trial: trial.run(graph))
        else:
            choose.run(graph)
        origin = choose.times.origin if isinstance(choose.times, Table) else ""
        return Found(notes=[origin] if origin else [])
    from irprune.api.latency_search import choose_in_time

    return Found(
        choose_in_time(
            graph,
            choose,
            budget["latency"],
            cut_graph,
            values["device"],
            values["threads"],
            values["progress"] or (lambda line: None),
        )
    )


def made_by(graph: Graph, passes: Sequence[Pass], proof: bool = True) -> Pruned:
    """The model that a pipeline makes of a graph, proven.

    Args:
        graph: What ``irprune.capture`` gives; it is not changed.
        passes: The passes, in order. What they make is compared with ``graph`` as it is, of which
            the channels that they chose are silenced.
        proof: False leaves the proof out.

    Returns:
        The model, its report, and the ways out.

    Raises:
        IrpruneError: For bad input and what a pass raises.
        CheckFailed: Where the proof fails.
    """
    at = next((i for i, one in enumerate(passes) if name_of(one) == "slice"), len(passes))
    before, ready = graph.copy(), graph.copy()
    analyse(before)
    run(ready, passes[:at])
    chosen = None if ready.kept is None else Plan.from_graph(ready)
    if chosen is None:
        before.kept = Selection({})
    else:
        choose_by_plan(chosen, before)
    before.low_rank = ready.low_rank
    # Where layers are two, what chose them has been heard
    first = [one for one in passes[:at] if not ready.low_rank or name_of(one) not in _DECIDES]

    def made(subject: Graph) -> Graph:
        again = subject.copy()
        plan = Plan.from_graph(subject) if ready.low_rank else chosen
        again.axes = again.kept = None
        run(again, first)
        if plan is not None:  # of other weights the passes choose otherwise
            choose_by_plan(plan, again)
        run(again, passes[at:])
        return again

    return finish(before, Options(proof=proof), Clock(), cuts=made)


_DECIDES = ("score", "low-rank", "choose")


@documented(REPLAY)
def apply_plan(
    model: Model,
    plan: Plan | Mapping[str, Any] | str | Path,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[ReplayOptions],
) -> Pruned:
    """Make exactly the cut that ``plan`` records, on the same model or its ONNX export.

    Args:
        model: As for ``prune``.
        plan: A ``Plan``, its JSON as text or data, or the path of its file.
        args: The positional arguments of an example call.
        kwargs: Its keyword arguments.
        **options: Those that ``irprune.api.declarations.ReplayOptions`` declares.

    Returns:
        The pruned model, its report, and the ways out.

    Raises:
        IrpruneError: For bad input, and for a model that the plan does not fit.
        CheckFailed: Where the proof fails.
    """
    for name in options:
        if name not in REPLAY:
            raise IrpruneError(
                f"a plan is replayed without the option {name!r}",
                "",
                f"it takes {', '.join(REPLAY)}",
            )
    chosen = Options(**options)
    with together(_ranks(options)), within_memory(chosen.memory):
        kept = Plan.read(plan)
        if kept.rotated:
            raise IrpruneError(
                f"the plan is of {kept.rotated[0]} in a basis of calibration data, which it has not",
                kept.model,
                "prune again with the data: rotate=True",
            )

        def choose(graph: Graph, chosen: Options, clock: Clock) -> Found:
            with clock("analyse"):
                check_weights(graph)
                _check_rules(graph, chosen)
            with clock("choose"):
                choose_by_plan(kept, graph)
            return Found()

        return _pruned(model, args, kwargs, chosen, choose, plan=kept)


def _check_rules(graph: Graph, options: Options) -> None:
    if not options.values["strict"]:
        return
    _, _, unruled = describe(graph)
    for op, where in unruled.items():
        raise IrpruneError(
            f"no rule for {op}",
            where.split(";")[0],
            "write one in irprune/ops/aten/, or leave strict out to prune around it",
        )

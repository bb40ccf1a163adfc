"""The public calls: capture, groups, prune, apply_plan.

Nothing here imports torch until a torch model comes in, so that ONNX files are pruned without it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from irprune.analysis.cost import Costs, repeated
from irprune.analysis.describe import describe
from irprune.analysis.memory import Footprint
from irprune.analysis.sizes import shown_sizes
from irprune.api.agreement import check_same, choose_together, same_scores, same_weights
from irprune.api.checks import check_memory, check_weights, ranked
from irprune.api.declarations import OPTIONS, REPLAY, PruneOptions, ReplayOptions
from irprune.api.exact import choose_fixed, with_masks
from irprune.api.forecast import forecast
from irprune.api.language import settle_for_logits
from irprune.api.option import documented
from irprune.api.option_kinds import INT8
from irprune.api.options import Options, device_of
from irprune.api.page import collect
from irprune.api.pruned import Pruned
from irprune.api.report import Change, Report
from irprune.api.resume import journal_of
from irprune.api.uniform import choose_uniform
from irprune.api.without_data import say_unkept, with_data
from irprune.base.garbage import without_collection
from irprune.base.journal import kept
from irprune.base.memory import within_memory
from irprune.base.progress import heard
from irprune.base.tolerance import FLOAT32
from irprune.choice.plan import Plan
from irprune.choice.replay import choose_by_plan
from irprune.criteria import refuses_nan
from irprune.driver.passes import Pass, name_of
from irprune.driver.pipelines import analyse, cut_graph
from irprune.driver.run import run
from irprune.emit.backends.base import backend_of
from irprune.errors import CheckFailed, IrpruneError, option
from irprune.frontend.capture import capture, whole_call
from irprune.ir.graph import Graph
from irprune.ir.group import Group, groups_of
from irprune.ir.selection import Selection
from irprune.latency.table import Table
from irprune.passes.low_rank import LowRank
from irprune.run.all_reduce import measured
from irprune.run.ranks import Ranks, current, together
from irprune.run.session import providers_for
from irprune.validate.prove import prove_cut

if TYPE_CHECKING:
    from irprune.api.latency_search import Latency
    from irprune.api.rotation import Rotation
    from irprune.api.trials import Trials

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
    model: Any,
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
        with heard(options.values["progress"] if current().leads else None):
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
                pruned = _finish(graph, settled, clock)
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
    except _Miscaptured as failed:
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


class _Miscaptured(CheckFailed):
    """The captured graph does not compute what ``forward`` does."""


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
        return _finish(chosen, options, Clock(), proof, quietly=True)

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

    return _finish(before, Options(proof=proof), Clock(), cuts=made)


_DECIDES = ("score", "low-rank", "choose")


@documented(REPLAY)
def apply_plan(
    model: Any,
    plan: Any,
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


class Clock:
    """Seconds by stage, as ``now`` counts them."""

    now: ClassVar[Callable[[], float]] = time.perf_counter

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        now = type(self).now
        began = now()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now() - began


def _finish(
    graph: Graph,
    options: Options,
    clock: Clock,
    proof: bool | None = None,
    quietly: bool = False,
    cuts: Callable[[Graph], Graph] = cut_graph,
) -> Pruned:
    """Slice by ``cuts``, emit, prove and report; ``proof`` is the option's where it is None,
    ``quietly`` tells nobody."""
    whole, low_rank = graph, None
    if graph.low_rank:
        from irprune.api.low_rank import in_two

        with clock("low rank"):
            graph, low_rank = in_two(whole, options)
    with clock("slice"):
        cut = cuts(graph)
    with clock("report"):
        report = _report(whole, graph)
        report.low_rank = low_rank
        report.details = partial(collect, whole)
        values = options.values
        asked = values["budget"] is None and values["ratio"] and values["keep_indices"] is None
        if report.cuts_nothing and asked and not options.searches:
            report.notes.insert(0, _nothing(report))
    pruned = Pruned(graph, cut, report, options, whole)
    if not pruned.from_onnx:
        with clock("emit"):
            pruned.judged  # noqa: B018 - made here, so that its errors come from prune
    if options.values["proof"] if proof is None else proof:
        with clock("proof"):
            _prove(pruned, cuts)
    if options.rotation is not None:
        _keep_scale(pruned, options.rotation)
    if options.values["repair"] and not (options.searches and report.cuts_nothing):
        # Of the cuts of a search nothing but their metric is kept
        with clock("repair"), kept(None) if quietly else contextlib.nullcontext():
            _repair(pruned, None if quietly else options.values["progress"])
    if low_rank is not None and options.values["calibration"] is not None:
        from irprune.api.repair import off_original

        with clock("judge"):
            data = options.readings or options.values["calibration"]
            low_rank.output_error = off_original(whole, cut, data)
    if options.readings is not None:
        from irprune.api.quality import quality

        with clock("judge"):
            report.quality = quality(whole, cut, options.readings.judged)
        if not options.searches:
            options.readings = None  # they are large
    report.seconds = clock.seconds
    return pruned


def _keep_scale(pruned: Pruned, rotation: Rotation) -> None:
    """Scale the norms over rotated widths, after the proof, and put what became of these into the
    report."""
    from irprune.api.rotation import keep_scale

    report = pruned.report
    report.rotation = rotation.alone()
    for name in ("params", "bytes"):
        count: Change = getattr(report, name)
        setattr(report, name, Change(rotation.before(name, count.before), count.after))
    keep_scale(pruned.graph, pruned.cut, report.rotation)
    if report.rotation.scaled and not pruned.from_onnx:
        pruned.renew()


def _repair(pruned: Pruned, say: Callable[[str], None] | None) -> None:
    """Refit the cut weights, after the proof: a repaired model is not the silenced original any
    more, on purpose."""
    from irprune.api.repair import repair

    names = pruned.options.values["repair"]
    assert isinstance(names, tuple)
    if say is not None and current().leads:
        say(f"repairing by {' and '.join(names)}")
    options = pruned.options
    data = options.readings or options.values["calibration"]
    pruned.report.repair = repair(pruned.graph, pruned.cut, data, names)
    same_weights(current(), pruned.cut)
    if not pruned.from_onnx:
        pruned.renew()


def _nothing(report: Report) -> str:
    """That no group was cut, and what most of them are frozen or left whole for."""
    reasons = [g.reason for g in (*report.groups, *report.frozen) if g.reason]
    most = max(dict.fromkeys(reasons), key=reasons.count, default="there are no groups")
    return f"nothing was cut: {most}"


def _report(graph: Graph, ready: Graph) -> Report:
    """What the choice of ``graph`` does; ``ready`` is what is cut: ``graph`` itself, or that of the
    model in which some layers are two."""
    kept = ready.kept if ready.kept is not None else Selection({})
    before, after = Costs(graph).at({}), Costs(ready).at(kept)
    once, now = repeated(graph, Selection({})), repeated(ready, kept)
    free, frozen, unruled = describe(graph)
    macs, activation = (Change(before[k], after[k]) for k in ("macs", "activation"))
    params, size = (
        Change(before[k] - once[i], after[k] - now[i]) for i, k in enumerate(("params", "bytes"))
    )
    footprint, then, counts = Footprint(graph), Footprint(ready), kept.counts
    memory = (
        footprint.memory({}, size.before, activation.before),
        then.memory(counts, size.after, activation.after),
    )
    sent = footprint.communication({}), then.communication(counts)
    return Report(
        graph.name,
        params,
        macs,
        size,
        activation,
        free,
        frozen,
        unruled,
        list(graph.notes),
        sizes=shown_sizes(graph),
        memory=_changes(*memory),
        communication=_changes(*sent),
    )


def _changes(before: Any, after: Any) -> dict[str, Change]:
    """The fields of two dataclasses of counts, side by side."""
    return {k: Change(n, getattr(after, k)) for k, n in asdict(before).items()}


def _prove(pruned: Pruned, cuts: Callable[[Graph], Graph]) -> None:
    """Put the proof into the report. Raises CheckFailed where it fails."""
    report = pruned.report
    report.proof = prove_cut(
        pruned.graph,
        pruned.cut,
        lambda: pruned.judged,
        lambda: device_of(pruned.options.values["device"]),
        pruned.options.values["proof"] == "gradients",
        cuts,
    )
    if cuts is not cut_graph and report.proof is not None and report.proof.shaken is not None:
        second = report.proof.shaken  # passes that compute weights round them to their types
        second.tolerance = max(second.tolerance, FLOAT32)
        second.judge_tolerance = max(second.judge_tolerance, FLOAT32)
    if report.proof is None:
        report.notes.append("no proof: the weights are on the meta device")
        return
    if report.proof.undecided:
        return
    if not report.proof.passed:
        failed = CheckFailed if report.proof.captured else _Miscaptured
        advice = (
            "report this as a bug"
            if not report.proof.vacuous
            else "give an example input on which the outputs vary"
        )
        if report.proof.vacuous and pruned.from_onnx:  # its inputs are drawn
            advice = "its weights may be placeholders"
        elif cuts is not cut_graph:
            advice = "a pass changes what the model computes"
        raise failed(
            f"the proof fails: {report.proof}",
            report.name,
            f"{advice}; {option('proof', 'False')} gives the model unproven",
        )
    derived = report.proof.gradients_passed and not report.proof.training
    if not derived and pruned.options.values["proof"] == "gradients":
        raise CheckFailed(
            f"the proof of gradients fails: {report.proof.notes[-1]}",
            report.name,
            "report this as a bug; proof=True proves the outputs alone",
        )


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

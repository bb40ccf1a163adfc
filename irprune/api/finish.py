"""From a graph with its choice made to what a call gives back: cut, report, emit, prove, repair."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from irprune.analysis.cost import Costs, repeated
from irprune.analysis.describe import describe
from irprune.analysis.memory import Footprint
from irprune.analysis.sizes import shown_sizes
from irprune.api.agreement import same_weights
from irprune.api.options import Options, device_of
from irprune.api.page import collect
from irprune.api.pruned import Pruned
from irprune.api.report import Change, Report
from irprune.base.journal import kept
from irprune.base.tolerance import FLOAT32
from irprune.driver.pipelines import cut_graph
from irprune.errors import CheckFailed, option
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.run.ranks import current
from irprune.validate.prove import prove_cut

if TYPE_CHECKING:
    from irprune.api.rotation import Rotation

__all__ = ["Clock", "Miscaptured", "finish"]


class Miscaptured(CheckFailed):
    """The captured graph does not compute what ``forward`` does."""


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


def finish(
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
    """That no group was cut, and what most is frozen or left whole for: of widths in several
    weights rather than of an input, which stands in one."""
    held: dict[str, int] = {}
    for g in (*report.groups, *report.frozen):
        if g.reason:
            held[g.reason] = held.get(g.reason, 0) + g.size * len(g.members)
    most = max(held, key=lambda reason: held[reason], default="there are no groups")
    return f"nothing was cut: {most}"


def _report(graph: Graph, ready: Graph) -> Report:
    """What the choice of ``graph`` does; ``ready`` is what is cut: ``graph`` itself, or that of the
    model in which some layers are two."""
    kept = ready.kept if ready.kept is not None else Selection({})
    costs = Costs(graph)
    left = costs if ready is graph else Costs(ready)
    before, after = costs.at({}), left.at(kept)
    once, now = repeated(graph, Selection({})), repeated(ready, kept)
    free, frozen, unruled = describe(graph)
    macs, activation = (Change(before[k], after[k]) for k in ("macs", "activation"))
    params, size = (
        Change(before[k] - once[i], after[k] - now[i]) for i, k in enumerate(("params", "bytes"))
    )
    footprint = Footprint(graph, costs.factored)
    then = footprint if left is costs else Footprint(ready, left.factored)
    counts = kept.counts
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
    if cuts is not cut_graph and report.proof is not None and report.proof.second_pass is not None:
        second = report.proof.second_pass  # passes that compute weights round them to their types
        second.tolerance = max(second.tolerance, FLOAT32)
        second.judge_tolerance = max(second.judge_tolerance, FLOAT32)
    if report.proof is None:
        report.notes.append("no proof: the weights are on the meta device")
        return
    if report.proof.undecided:
        return
    if not report.proof.passed:
        failed = CheckFailed if report.proof.captured else Miscaptured
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

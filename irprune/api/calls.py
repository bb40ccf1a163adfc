"""The public calls: capture, groups, prune, apply_plan.

Nothing here imports torch until a torch model comes in, so that ONNX files are pruned without it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from irprune.analysis.cost import Costs, repeated
from irprune.analysis.describe import describe
from irprune.api.checks import check_replay, check_weights, ranked
from irprune.api.options import Options, device_of
from irprune.api.pruned import Pruned
from irprune.api.report import Change, Report
from irprune.choice.plan import Plan
from irprune.choice.replay import choose_by_plan
from irprune.driver.pipelines import analyse, cut_graph
from irprune.errors import CheckFailed, IrpruneError
from irprune.frontend.capture import capture
from irprune.ir.graph import Graph
from irprune.ir.group import Group, groups_of
from irprune.ir.kept import Kept

if TYPE_CHECKING:
    import torch

    from irprune.api.latency_search import Latency

__all__ = ["apply_plan", "groups", "prune"]


def groups(graph: Graph) -> list[Group]:
    """The coupled groups of ``graph``, free and frozen, in order of first appearance; the graph is
    analysed where it was not."""
    analyse(graph)
    return groups_of(graph)


def prune(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    ratio: float = 0.5,
    importance: Any = None,
    scope: str | None = None,
    keep: Sequence[str] = (),
    round_to: int | str | None = None,
    budget: Mapping[str, float | str] | None = None,
    proof: bool = True,
    **more: Any,
) -> Pruned:
    """A smaller model, proven equal to ``model`` with the dropped channels silenced. ``model`` is
    not changed.

    model       nn.Module, ExportedProgram, "m.pt2", "m.onnx", onnx.ModelProto or
                onnx_graphsurgeon.Graph; ``args`` and ``kwargs`` are an example call
    ratio       share of every width that is dropped, 0 to 1; default 0.5
    importance  criterion: a name of ``irprune.criteria`` or an object; default "magnitude", with
                calibration data "osscar"
    scope       "local": every width by its ratio; "global": one threshold; "isomorphic": one for
                each kind of structure; "knapsack": what meets the budget and loses the least, for
                scores that are losses (normalise="measured"; sums of magnitudes are none). Default:
                "knapsack" for a budget where there are calibration data, else "local"
    keep        patterns over weights, groups and module paths that stay whole: ["head*"]
    round_to    widths become multiples of it; "auto": of what onnxruntime likes on this machine, as
                measured (16 for convolutions on AVX-512, 1 for matrix products). Default: 1, with a
                budget on latency "auto"
    budget      {"macs": 0.5}, {"params": ...}, {"bytes": ...}, {"activation": ...}: found in place
                of ``ratio``; shares up to 1 or amounts; several hold together. {"latency": 0.5} or
                {"latency": "3ms"} on onnxruntime: predicted from times of its operators, which are
                measured once and kept in the user's cache, then measured on the cut
                (``irprune.latency``)
    proof       False leaves the proof out
    ratios      pattern -> ratio, for groups to be cut by a ratio of their own
    min_channels
                no group gets narrower than this; default 1
    max_ratio   no group loses a larger share than this; default 1
    prefer      which factor of a product of widths carries its ratio: "heads", "head_dim", "both",
                "groups"
    per_block   False keeps the same inner indices in every head or group; default True, where that
    is legal reduce, normalise, seed
                how importance is joined over a group, made comparable between groups, and drawn
                (``irprune.passes.score``). ``normalise`` is "measured" by default with scope
                "knapsack" and calibration data: by what the outputs lose
    calibration a few hundred inputs for criteria and repairs: an iterable, a tensor, a folder
    (``irprune.run.calibration``)
    loss        ``loss(outputs, batch)`` for gradient criteria; default: labels drawn from the
                model's own output
    repair      "least_squares" (or True), "batch_norm", "bias", "affine", "fold", or several: refit
                what is left to the original on ``calibration``, or on noise where there is none
                (``irprune.api.repair``); the proof is made before. Default: least squares where
                there are calibration data, else none; False leaves it out
    strict      True refuses a model with an operator that no rule covers
    device      where the proof, the comparison and the timing run: "auto" (CUDA where there is
                one), "cpu", "cuda"
    threads     of onnxruntime, for a budget on latency; 0 leaves its default
    progress    called with a line of text where measuring takes its time
    dynamic_shapes
                as in ``torch.export.export``

    Raises IrpruneError for bad input, CheckFailed where the proof fails.
    """
    chosen = Options.of(
        ratio=ratio,
        importance=importance,
        scope=scope,
        keep=keep,
        round_to=round_to,
        budget=budget,
        proof=proof,
        **more,
    )

    def choose(graph: Graph, clock: Clock) -> Latency | None:
        with clock("analyse"):
            check_weights(graph, ranked(graph) if chosen.importance == "magnitude" else ())
            _check_rules(graph, chosen)
        with clock("score"):
            chosen.score().run(graph)
        with clock("choose"):
            return _choose(graph, chosen)

    return _pruned(model, args, kwargs, chosen, choose)


def _pruned(
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    options: Options,
    choose: Callable[[Graph, Clock], Latency | None],
) -> Pruned:
    """Capture, choose, cut and prove; where ``forward`` computes otherwise under export, once more
    from a capture of it as it runs."""
    clock = Clock()

    def made(method: str) -> Pruned:
        with clock("capture"):
            graph = capture(model, args, kwargs, options.dynamic_shapes, method)
        with clock("analyse"):
            analyse(graph)
        latency = choose(graph, clock)
        pruned = _finish(graph, options, clock)
        pruned.report.latency = latency
        return pruned

    try:
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


class _Miscaptured(CheckFailed):
    """The captured graph does not compute what ``forward`` does."""


def _choose(graph: Graph, options: Options) -> Latency | None:
    """Set ``graph.kept``; with a budget on latency by what was measured."""
    choose = options.choose()
    if "latency" not in (options.budget or {}):
        choose.run(graph)
        return None
    from irprune.api.latency_search import choose_in_time

    assert options.budget is not None
    return choose_in_time(
        graph,
        choose,
        options.budget["latency"],
        cut_graph,
        options.device,
        options.threads,
        options.progress or (lambda line: None),
    )


def apply_plan(
    model: Any,
    plan: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    proof: bool = True,
    **more: Any,
) -> Pruned:
    """Make exactly the cut that ``plan`` records, on the same model or its ONNX export.

    ``plan`` is a ``Plan``, its JSON as text or data, or a file's path. ``more`` are the options of
    ``prune`` that do not choose: ``device``, ``dynamic_shapes``. Raises IrpruneError for a model
    that the plan does not fit."""
    check_replay(more)
    chosen = Options.of(proof=proof, **more)
    kept = Plan.read(plan)

    def choose(graph: Graph, clock: Clock) -> None:
        with clock("analyse"):
            check_weights(graph)
        with clock("choose"):
            choose_by_plan(kept, graph)

    return _pruned(model, args, kwargs, chosen, choose)


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


def _finish(graph: Graph, options: Options, clock: Clock) -> Pruned:
    """Slice, emit, prove and report."""
    with clock("slice"):
        cut = cut_graph(graph)
    with clock("report"):
        report = _report(graph)
    pruned = Pruned(graph, cut, report, options)
    if not pruned.from_onnx:
        with clock("emit"):
            pruned.module  # noqa: B018 - made here, so that its errors come from prune
    if options.proof:
        with clock("proof"):
            _prove(pruned)
    if options.repair:
        with clock("repair"):
            _repair(pruned)
    report.seconds = clock.seconds
    return pruned


def _repair(pruned: Pruned) -> None:
    """Refit the cut weights, after the proof: a repaired model is not the silenced original any
    more, on purpose."""
    from irprune.api.repair import repair

    chosen = pruned.options.repair
    done = repair(
        pruned.graph,
        pruned.cut,
        pruned.options.calibration,
        "least_squares" if chosen is True else chosen,
    )
    pruned.report.repair = done
    if not pruned.from_onnx:
        pruned._module = None
        pruned.module  # noqa: B018 - made again from the new weights


def _report(graph: Graph) -> Report:
    costs, kept = Costs(graph), graph.kept if graph.kept is not None else Kept({})
    before, after = costs.at({}), costs.at(kept)
    once, now = repeated(graph, Kept({})), repeated(graph, kept)
    free, frozen, unruled = describe(graph)
    macs, activation = (Change(before[k], after[k]) for k in ("macs", "activation"))
    params, size = (
        Change(before[k] - once[i], after[k] - now[i]) for i, k in enumerate(("params", "bytes"))
    )
    return Report(
        graph.name, params, macs, size, activation, free, frozen, unruled, list(graph.notes)
    )


def _prove(pruned: Pruned) -> None:
    """Put the proof into the report. Raises CheckFailed where it fails."""
    report = pruned.report
    if pruned.from_onnx:
        from irprune.validate.onnx_proof import prove_onnx
        from irprune.validate.onnx_shaken import same_choice

        def again(model: Any) -> tuple[Graph, Graph] | None:
            twin = analyse(capture(model))
            twin.kept = same_choice(pruned.graph, twin)
            return None if twin.kept is None else (twin, cut_graph(twin))

        report.proof = prove_onnx(pruned.graph, pruned.cut, again)
    else:
        from irprune.emit.torch.module import emit_module
        from irprune.validate.proof import prove

        if any(t.is_meta for t in pruned.module.state_dict().values()):
            report.notes.append("no proof: the weights are on the meta device")
            return

        def remake(graph: Graph) -> tuple[Graph, torch.nn.Module]:
            cut = cut_graph(graph)
            return cut, emit_module(cut)

        report.proof = prove(pruned.graph, pruned.module, remake, device_of(pruned.options.device))
    if not report.proof.passed:
        failed = CheckFailed if report.proof.captured else _Miscaptured
        advice = (
            "report this as a bug"
            if not report.proof.vacuous
            else "give an example input on which the outputs vary"
        )
        if report.proof.vacuous and pruned.from_onnx:  # its inputs are drawn
            advice = "its weights may be placeholders"
        raise failed(
            f"the proof fails: {report.proof}",
            report.name,
            f"{advice}; proof=False (--no-proof) gives the model unproven",
        )


def _check_rules(graph: Graph, options: Options) -> None:
    if not options.strict:
        return
    _, _, unruled = describe(graph)
    for op, where in unruled.items():
        raise IrpruneError(
            f"no rule for {op}",
            where.split(";")[0],
            "write one in irprune/ops/aten/, or leave strict out to prune around it",
        )

"""What a prune without calibration data goes by: inputs made from what the model itself has stored
(``irprune.run.synthetic``), where it has something, and a plain word where it has not."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from irprune.analysis.cost import Costs
from irprune.analysis.sizes import candidates, example_symbols, input_shapes, shown_sizes
from irprune.api.forecast import duration
from irprune.api.option_kinds import DEAD, SYNTHETIC
from irprune.errors import IrpruneError, option
from irprune.ir.dtype import is_real
from irprune.ir.graph import Graph
from irprune.ops.arrays import as_tensor, is_meta
from irprune.ops.choice import is_choice
from irprune.run.inputs import random_inputs
from irprune.run.norm_statistics import stored
from irprune.run.ranks import current

if TYPE_CHECKING:
    from irprune.api.options import Options
    from irprune.api.report import Report

__all__ = ["say_unkept", "with_data"]

_TRIED = 5  # sizes, where the model does not say which
_MUCH = 0.1  # of the parameters or multiply-accumulates: more is not cut without a loss


def with_data(options: Options, graph: Graph, chooses: bool) -> tuple[Options, str]:
    """``options`` with inputs made for ``graph``, and a note about them: where that is asked for
    and, for a call that ``chooses``, where nothing is said and batch norms tell enough. Otherwise
    as they are, with a note where the data that are given contradict the batch norms.

    Raises:
        IrpruneError: Where it is asked for and cannot be, and where the data never take a branch
            in which something may be cut.
    """
    given = options.values["calibration"]
    asked = isinstance(given, str) and given == SYNTHETIC
    if given is not None and not asked:
        return options, _doubt(options, graph)
    if not asked and not (chooses and _left_open(options)):
        return options, ""
    if any(is_meta(w.load()) for w in graph.weights.values() if w.kind == "parameter"):
        if asked:
            raise IrpruneError(
                "inputs cannot be made: the weights are on the meta device",
                graph.name,
                "load them, or give calibration=",
            )
        return options, ""
    statistics = stored(graph)
    norms = len(statistics)
    if not asked and (not norms or any(map(is_choice, graph.nodes))):
        return options, ""
    if any(map(is_choice, graph.nodes)):
        raise IrpruneError(
            "inputs cannot be made: they decide which branch of an If is taken",
            graph.name,
            "give calibration= that takes each",
        )
    from irprune.run.synthetic import planned, synthetic

    if not any(is_real(v.dtype) or v.rank > 1 for v in graph.inputs):
        raise IrpruneError(
            "inputs cannot be made: none is a tensor of numbers", graph.name, "give calibration="
        )
    symbols, seconds = _running_sizes(graph)
    if symbols is None:
        tried = shown_sizes(graph)
        if not asked:
            return options, ""
        raise IrpruneError(
            "inputs cannot be made: the model does not run at the sizes that were tried, first at "
            f"{tried or 'those of the example call'}",
            graph.name,
            f"give example inputs ({option('args')}) of sizes that it takes",
        )
    shapes = [shape for _, shape in input_shapes(graph, symbols)]
    own = max(1, shapes[0][0]) if shapes and shapes[0] else 1
    plan = planned(Costs(graph, symbols).at({})["macs"] / own, shapes)
    source = (
        f"the statistics of {norms} batch norm{'s' * (norms > 1)}"
        if norms
        else "a natural spectrum and the model's own outputs"
    )
    say: Callable[[str], None] | None = options.values["progress"]
    if say is not None and current().leads:
        takes = duration(plan.forwards * plan.samples / own * seconds)
        say(
            f"no calibration data: {plan.samples} inputs are made from {source}, about {takes}; "
            "calibration=False (--no-calibration) goes without"
        )
    seed = options.values["seed"] or 0
    made = synthetic(graph, shapes, plan, statistics, seed=seed)
    note = (
        f"calibrated on {plan.samples} inputs made from {source}: real ones "
        "(calibration=, --calibration) keep more"
    )
    return options.calibrated(made), note


def _running_sizes(graph: Graph) -> tuple[dict[str, int] | None, float]:
    """Sizes of the inputs' symbols at which the graph runs, the example's or the first plausible
    ones, and the seconds that it takes; None where it runs at none of them."""
    from irprune.run.interpret import evaluate
    from irprune.run.precision import computing_type

    half = computing_type(graph)
    said = graph.source is not None and graph.source.example_shapes() is not None
    for sizes in [example_symbols(graph)] if said else islice(candidates(graph), _TRIED):
        given = random_inputs(graph, sizes)
        inputs = [as_tensor(given[v.name]) for v in graph.inputs]
        try:
            evaluate(graph, inputs, dtype=half)  # the first loads what is loaded once
        except (RuntimeError, IndexError, ValueError, IrpruneError):
            continue  # sizes that shapes do not rule out, but an operator does
        began = time.perf_counter()
        evaluate(graph, inputs, dtype=half)
        return sizes, time.perf_counter() - began
    return None, 0.0


def _doubt(options: Options, graph: Graph) -> str:
    """That the data are not what the batch norms have seen, where that is so."""
    statistics = stored(graph)
    if not statistics and not any(map(is_choice, graph.nodes)):
        return ""
    from irprune.run.branches_taken import check_branches_taken
    from irprune.run.calibration import Calibration
    from irprune.run.contradiction import contradiction

    data = Calibration(options.values["calibration"], graph)
    check_branches_taken(graph, data)
    text = contradiction(graph, data, statistics)
    if text and (say := options.values["progress"]) is not None:
        say(f"warning: {text}")
    return text


def _left_open(options: Options) -> bool:
    """Whether nothing was said about data, criterion or training, and something is to be cut."""
    values = options.values
    return (
        options.open_data
        and values["calibration"] is None
        and not (values["budget"] is None and values["ratio"] == 0)
    )


def say_unkept(report: Report, options: Options) -> None:
    """Note, last, that a model that lost much without any data does not keep its accuracy."""
    lost = 1 - min(report.params.left, report.macs.left)
    exact = options.values["keep_indices"] == DEAD  # nothing is lost
    if options.values["calibration"] is not None or lost <= _MUCH or exact:
        return
    report.notes.append(
        "accuracy is not kept: give a few hundred inputs as calibration= (--calibration FOLDER), "
        "or train what comes out"
    )

"""The defaults for models whose outputs are logits, where there are calibration data: what was best
for decoders without training.

The width of the residual stream stays, since every layer reads it and no choice of its channels is
good; where it was rotated (``irprune.api.rotate``) it competes with the others. Channels are ranked
by what they contribute, widths compete for a budget by the divergence of the next token that their
loss costs, and what is left is refitted by the original's statistics. Statistics are of three
quarters of the samples; losses, and how strongly weights are held back in the refit, are judged on
the others.
"""

from __future__ import annotations

from typing import Any

from irprune.api.options import Options
from irprune.choice.patterns import NamePatterns
from irprune.criteria.readings import Readings, calibrated
from irprune.ir.axis import find
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.run.images import Folder
from irprune.run.logits import logits_of

__all__ = ["settle_for_logits"]

DEFAULTS: dict[str, Any] = {"importance": "contribution", "repair": ("static",)}


def settle_for_logits(options: Options, graph: Graph) -> None:
    """Set the options that were not given, and that have another default where ``graph`` gives
    logits and there are calibration data; a note of the graph says so."""
    values: Any = options.values
    if values["calibration"] is None:
        return
    logits = logits_of(graph)
    if logits is None:
        return
    for name, value in DEFAULTS.items():
        if name not in options.given:
            values[name] = value
    if "drop_blocks" not in options.given:
        values["drop_blocks"] = values["scope"] == "knapsack" and not values["uniform"]
    from irprune.run.held_out import divided

    fit, judged = divided(calibrated(values["calibration"], graph, "score"))
    options.readings = Readings(graph, fit, judged=judged, complete=True)
    stream = {find(x) for x in logits.stream}
    _say_texts(values["calibration"], graph)
    free = [g for g in groups_of(graph) if not g.frozen]
    patterns = NamePatterns(graph, free)
    named = {x for pattern in values["ratios"] for x in patterns.match(pattern, "ratios")}
    stream -= {*named, *graph.rotated}
    kept = [g.name for g in free if g.axis in stream]
    if kept and values["prefer"] == "heads":
        values["keep"] = (*values["keep"], *kept)
        graph.notes.append(
            f"a language model: {kept[0]}, the width of the residual stream, stays whole "
            "(a ratio of its own, ratios=, cuts it)"
        )


def _say_texts(calibration: Any, graph: Graph) -> None:
    """Note where the calibration data are one document: what it lacks counts for nothing then."""
    from irprune.run.texts import documents, has_texts

    if not isinstance(calibration, Folder) or not has_texts(calibration.path):
        return
    if len(documents(calibration.path)) == 1:
        graph.notes.append(
            "calibrated on one document: texts of every kind that the model is used on keep more "
            "(a folder of files; form feeds or lines of <|endoftext|> divide a file)"
        )

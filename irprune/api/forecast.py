"""What calibrated pruning will cost, said before it starts."""

from __future__ import annotations

import time
from typing import Any

from irprune.ir.graph import Graph
from irprune.ir.group import groups_of

__all__ = ["duration", "forecast"]

FORWARDS = 10  # over the calibration data, as ``tools/bench.py --calibrated`` measures them
TIMED = 8  # samples that are timed for it


def forecast(graph: Graph, calibration: Any) -> str:
    """How long scoring the groups of ``graph`` on ``calibration`` and the repair will take, from
    the time of one forward pass of a few samples; it is good to a factor of two."""

    from irprune.run.calibration import Calibration
    from irprune.run.interpret import evaluate
    from irprune.run.precision import computing_type

    data = Calibration(calibration, graph)
    groups = sum(not group.frozen for group in groups_of(graph))
    (batch, *_) = data.joined(TIMED)
    half = computing_type(graph)
    seconds = []
    for _ in range(2):  # the first loads what is loaded once
        began = time.perf_counter()
        evaluate(graph, batch.inputs, dtype=half)
        seconds.append(time.perf_counter() - began)
    whole = FORWARDS * min(seconds) * data.count() / batch.size / data.ranks.size
    return f"about {duration(whole)}: {groups} groups ranked on {data.count()} samples"


def duration(seconds: float) -> str:
    """Seconds up to two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

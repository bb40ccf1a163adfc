"""Whether calibration data look to a model like what it was trained on, as far as its batch norms
tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from irprune.ir.graph import Graph
from irprune.run.calibration import Calibration
from irprune.run.interpret import evaluate
from irprune.run.norm_statistics import NormStatistics
from irprune.run.precision import computing_type

__all__ = ["contradiction"]

SAMPLES = 32
NORMS = 2  # the first ones: what lies behind them has been normalised
# Of the middle channel: deviations that its mean may be off by, and how many times as much it may
# vary. Other data of the kind that a model was trained on stay far within.
OFF, TIMES = 1.5, 4.0


def contradiction(graph: Graph, data: Calibration, statistics: Sequence[NormStatistics]) -> str:
    """What is to be said where activations before the first batch norms have other means and
    deviations than those have stored; "" where they fit, or nothing is stored."""
    first = list(statistics[:NORMS])
    if not first:
        return ""
    wanted = [known.node.operand(0) for known in first]
    half = computing_type(graph)
    rows: list[list[torch.Tensor]] = [[] for _ in first]
    for batch in data.joined(SAMPLES):
        for k, x in enumerate(evaluate(graph, batch.inputs, wanted=wanted, dtype=half)):
            if x is not None:  # it lies in a branch that was not taken
                rows[k].append(x.transpose(0, 1).flatten(1).double())
    for known, some in zip(first, rows, strict=True):
        if not some:
            continue
        seen, spread = torch.cat(some, 1).numpy(), np.sqrt(known.variance)
        off = float(np.median(np.abs(seen.mean(1) - known.mean) / spread))
        times = float(np.median(seen.std(1) / spread))
        if off > OFF or not 1 / TIMES < times < TIMES:
            return (
                f"the calibration data are not what the model was trained on: before "
                f"{known.node.where or known.node.op} a channel is off by {off:.1f} deviations in "
                f"the middle, and varies {times:.2f} times as much as its batch norm has stored; "
                "check the preprocessing"
            )
    return ""

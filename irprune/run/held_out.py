"""Calibration data in two parts: most of the samples to fit to, the others to judge by.

What was fitted to some samples looks better on them than it is. Losses that are to be compared,
the strength of a ridge and the worth of a repair are therefore measured on samples that no
statistic has seen."""

from __future__ import annotations

import torch

from irprune.run.batch import Batch
from irprune.run.calibration import Calibration

__all__ = ["divided"]

ONE_IN = 4  # samples of so many are held out: one of them, drawn at random
LEAST = 8  # samples; of fewer none are held out
ROWS = 4  # that are run at once


def divided(data: Calibration) -> tuple[Calibration, Calibration]:
    """``data`` to fit to, and ``data`` to judge by: all of them both times where there are fewer
    than ``LEAST`` samples, or where the graph takes no other number than an item has.

    The draw depends on the number of a sample alone, so that every rank makes the same."""
    if data.count() < LEAST or not data.resizable:
        return data, data
    draw = torch.Generator().manual_seed(0)
    parts: tuple[list[Batch], list[Batch]] = ([], [])
    number, chosen = 0, 0
    for batch in data.chunks():
        held = torch.zeros(batch.size, dtype=torch.bool)
        for row in range(batch.size):
            if number % ONE_IN == 0:
                chosen = int(torch.randint(ONE_IN, (), generator=draw))
            held[row] = number % ONE_IN == chosen
            number += 1
        for part, which in zip(parts, (~held, held), strict=True):
            for some in torch.split(which.nonzero()[:, 0], ROWS):
                if len(some):
                    part.append(Batch(tuple(t[some] for t in batch.inputs)))
    fit, judged = (Calibration(part, data.graph, samples=None, batch=data.batch) for part in parts)
    return fit, judged

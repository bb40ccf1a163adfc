"""What a task is: a model that people use, data to calibrate and to test on, and a measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Feed", "Run", "Task", "agreement", "boxes_agree", "pool_of"]

Array = NDArray[Any]
Feed = dict[str, Array]
Run = Callable[[Feed], list[Array]]


@dataclass(frozen=True)
class Task:
    """One model and its measure.

    Args:
        name: as the table shows it.
        model: gives the ONNX file.
        calibration: inputs for a seed, as items of ``calibration=``; no test input is among them.
        example: a call at the sizes that costs and latency are meant for.
        answers: what a model says to the test inputs, in the form that ``measure`` compares.
        measure: of a model's answers and the original's: a number, and what it is in words.
        bars: share of the multiply-accumulates: the least (the most, where ``falls``) measure.
        falls: whether less is better.
    """

    name: str
    model: Callable[[], Path]
    calibration: Callable[[int], Sequence[Any]]
    example: Callable[[], Feed]
    answers: Callable[[Run], Any]
    measure: Callable[[Any, Any], float]
    said: str
    bars: Mapping[float, float] = field(default_factory=dict)
    falls: bool = False
    note: Callable[[Any], str] = lambda answers: ""

    def holds(self, left: float, value: float) -> bool | None:
        """Whether ``value`` meets the bar at ``left``; None where there is none."""
        bar = self.bars.get(left)
        return None if bar is None else value <= bar if self.falls else value >= bar


def agreement(ours: Any, theirs: Any) -> float:
    """The share of equal elements."""
    same = [np.equal(a, b) for a, b in zip(ours, theirs, strict=True)]
    return float(np.concatenate([np.reshape(s, -1) for s in same]).mean())


def pool_of(half: int, shortest: int = 0) -> list[str]:
    """Sentences of Python's language reference; the two halves share no topic."""
    from sentences import pool

    return pool(half, shortest)


def boxes_agree(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Twice the boxes that both found over all that each found: (class, left, top, right, bottom)
    of one class that overlap by half of their union, each once."""
    both = every = 0
    for mine, other in zip(ours, theirs, strict=True):
        free = list(range(len(other)))
        for box in mine:
            at = max(free, key=lambda k: _overlap(box, other[k]), default=None)
            if at is not None and _overlap(box, other[at]) >= 0.5:
                both += 1
                free.remove(at)
        every += len(mine) + len(other)
    return 2 * both / every if every else 1.0


def _overlap(a: Any, b: Any) -> float:
    """Intersection over union; 0 for boxes of different classes."""
    if a[0] != b[0]:
        return 0.0
    width, height = min(a[3], b[3]) - max(a[1], b[1]), min(a[4], b[4]) - max(a[2], b[2])
    if width <= 0 or height <= 0:
        return 0.0
    inner = width * height
    whole = (a[3] - a[1]) * (a[4] - a[2]) + (b[3] - b[1]) * (b[4] - b[2]) - inner
    return float(inner / whole)

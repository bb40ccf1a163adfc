"""Latency: several callables timed in turns, so that a noisy machine is noisy for all of them;
medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["NOISY", "Timing", "interleaved", "ratio_of"]

NOISY = 1.2  # between the quartiles of what is compared: beyond it nothing is known for sure


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median, and the quartiles as its spread; ``times`` are those of all
    turns."""

    median: float
    low: float
    high: float
    runs: int
    times: tuple[float, ...] = field(default=(), repr=False, compare=False)

    def over(self, other: Timing) -> Timing:
        """This time as a share of ``other``'s, turn by turn, so that what slows both does not
        count."""
        return _summary([a / b for a, b in zip(self.times, other.times, strict=True)])

    @property
    def noisy(self) -> bool:
        """Whether the quartiles lie too far apart to tell anything for sure."""
        return self.high > NOISY * self.low

    def as_dict(self) -> dict[str, float]:
        return {"median_s": self.median, "low_s": self.low, "high_s": self.high, "runs": self.runs}

    def __str__(self) -> str:
        unit, scale = ("ms", 1e3) if self.median >= 1e-3 else ("us", 1e6)
        return (
            f"{self.median * scale:.3g} {unit} ({self.low * scale:.3g} to {self.high * scale:.3g})"
        )


def ratio_of(after: Timing, before: Timing) -> Timing:
    """The time ``after`` as a share of that ``before``: turn by turn where both have the times of
    as many turns, else of the medians and quartiles."""
    if after.times and len(after.times) == len(before.times):
        return after.over(before)
    middle = before.median
    return Timing(after.median / middle, after.low / middle, after.high / middle, after.runs)


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    seconds: float = 1.0,
    least: int = 5,
    most: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time ``calls`` in turns for about ``seconds`` each; at least ``least`` and at most ``most``
    rounds.

    What is timed follows a call of its own kind, so that caches hold what it reads, as they do
    where it runs alone."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    began = clock()
    for turn in range(most):
        if turn >= least and clock() - began > 2 * seconds * len(calls):
            break
        for name, call in calls.items():
            call()
            start = clock()
            call()
            taken[name].append(clock() - start)
    return {name: _summary(times) for name, times in taken.items()}


def _summary(times: Sequence[float]) -> Timing:
    if len(times) < 2:
        return Timing(times[0], times[0], times[0], len(times), tuple(times))
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(middle, low, high, len(times), tuple(times))

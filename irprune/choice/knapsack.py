"""Counts under a budget: a knapsack over groups, in which each step down saves time, arithmetic or
memory and loses importance.

What a step saves depends on the counts of the neighbours (a layer's cost is a product of two
widths), so there is no table to fill once: the step with the least loss for what it saves is taken,
the savings it changed are worked out again, until the budget holds; then steps are given back or
exchanged as long as that helps. Deterministic; steps may be deep, so that a staircase is taken at
its edge. After HALP (Shen et al., NeurIPS 2022) and ZipLM (Kurtic et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf

from irprune.analysis.cost import Costs
from irprune.ir.axis import Axis

__all__ = ["solve_knapsack"]

_LEVELS = 48  # counts of one leaf that are looked at
_EXCHANGES = 40
_LEAVES = 24  # partners that an exchange tries

Loss = Callable[[Axis, int], float]


def solve_knapsack(
    costs: Costs,
    bounds: Mapping[str, float],
    whole: Mapping[Axis, int],
    levels: Mapping[Axis, Sequence[int]],
    loss: Loss,
) -> dict[Axis, int] | None:
    """Counts whose costs are within all ``bounds`` and that lose little; None where not even the
    lowest levels are.

    ``whole`` are the counts to begin with, ``levels`` for each leaf that may shrink the counts it
    may have, ascending. ``loss(leaf, count)`` falls as the count grows."""
    return _Search(
        costs, bounds, whole, {x: _thinned(some) for x, some in levels.items()}, loss
    ).found()


def _thinned(levels: Sequence[int]) -> list[int]:
    """About ``_LEVELS`` of the counts, the first and the last among them."""
    stride = -(-len(levels) // _LEVELS)
    return sorted({*levels[::-1][::stride], levels[0]})


class _Search:
    def __init__(
        self,
        costs: Costs,
        bounds: Mapping[str, float],
        whole: Mapping[Axis, int],
        levels: Mapping[Axis, list[int]],
        loss: Loss,
    ) -> None:
        self.costs, self.bounds, self.levels, self.loss = costs, bounds, levels, loss
        self.counts = dict(whole)
        self.now = {name: float(costs.measure(name, self.counts)) for name in bounds}
        self.saved: dict[
            Axis, dict[int, dict[str, float]]
        ] = {}  # leaf -> count -> what changes; emptied where a neighbour moved
        # Leaf -> its cheapest step, as it was when last looked at
        self.rates = dict.fromkeys(levels, (-inf, 0))
        self.near = _neighbours(costs, bounds, levels)

    def found(self) -> dict[Axis, int] | None:
        while not self._fits():
            step = self._cheapest()
            if step is None:
                return None
            self._move(*step)
            self.rates[step[0]] = (-inf, 0)
        self._raise()
        for _ in range(_EXCHANGES):
            if not self._exchange():
                break
        return self.counts

    def _fits(self, after: Mapping[str, float] | None = None) -> bool:
        return all(
            self.now[name] + (after or {}).get(name, 0.0) <= bound
            for name, bound in self.bounds.items()
        )

    def _change(self, x: Axis, count: int) -> dict[str, float]:
        """What every bounded cost changes by when ``x`` goes to ``count``."""
        known = self.saved.setdefault(x, {})
        if count not in known:
            more = {**self.counts, x: count}
            known[count] = {
                name: float(self.costs.change(name, x, self.counts, more)) for name in self.bounds
            }
        return known[count]

    def _move(self, x: Axis, count: int) -> None:
        for name, change in self._change(x, count).items():
            self.now[name] += change
        self.counts[x] = count
        for y in self.near[x]:
            self.saved.pop(y, None)

    def _cheapest(self) -> tuple[Axis, int] | None:
        """The step down with the least loss for each share of the excess that it takes away; of
        equals the first leaf, the least step.

        While others shrink, a step saves less and so costs more: the leaf that was cheapest is
        looked at again until it still is."""
        fresh: dict[Axis, None] = {}
        while self.rates:
            x = min(self.rates, key=lambda y: self.rates[y][0])
            if x in fresh:
                rate, count = self.rates[x]
                return (x, count) if rate < inf else None
            self.rates[x] = self._rate(x)
            fresh[x] = None
        return None

    def _rate(self, x: Axis) -> tuple[float, int]:
        """The least loss of a step of ``x`` for what it saves, and where the step goes."""
        best, here = (inf, 0), self.loss(x, self.counts[x])
        for count in _below(self.levels[x], self.counts[x]):
            change = self._change(x, count)
            gain = sum(
                min(-change[name], excess) / bound
                for name, bound in self.bounds.items()
                if (excess := self.now[name] - bound) > 0
            )
            if gain > 0 and (rate := (self.loss(x, count) - here) / gain) < best[0]:
                best = (rate, count)
        return best

    def _raise(self) -> bool:
        """Give steps back that still fit and gain anything, those that gain most first."""
        some = False
        while True:
            fits = [
                (gain, k, x, up)
                for k, (x, levels) in enumerate(self.levels.items())
                if (up := _above(levels, self.counts[x])) is not None
                and (gain := self.loss(x, up) - self.loss(x, self.counts[x])) < 0
                and self._fits(self._change(x, up))
            ]
            if not fits:
                return some
            _, _, x, up = min(fits, key=lambda f: f[:2])
            self._move(x, up)
            some = True

    def _exchange(self) -> bool:
        """One leaf a step up and another as far down as that needs, where less is lost for it."""
        ups = [
            (self.loss(x, up) - self.loss(x, self.counts[x]), k, x, up)
            for k, (x, levels) in enumerate(self.levels.items())
            if (up := _above(levels, self.counts[x])) is not None
        ]
        for gain, _, x, up in sorted(ups, key=lambda f: f[:2])[:_LEAVES]:
            before, now = dict(self.counts), dict(self.now)
            here = self.counts[x]
            self._move(x, up)
            downs = [
                (self.loss(y, down) - self.loss(y, self.counts[y]), k, y, down)
                for k, (y, levels) in enumerate(self.levels.items())
                if y is not x
                for down in _below(levels, self.counts[y])[:2]
                if self._fits(self._change(y, down))
            ]
            if downs and (least := min(downs, key=lambda f: f[:2]))[0] + gain < -1e-12:
                self._move(least[2], least[3])
                return True
            self._move(x, here)
            self.counts, self.now = before, now
        return False


def _below(levels: Sequence[int], count: int) -> list[int]:
    """Levels below ``count``: the nearest ones, then wider and wider apart."""
    lower = [n for n in levels if n < count][::-1]
    return [n for k, n in enumerate(lower) if k < 4 or (k & (k - 1)) == 0 or k == len(lower) - 1]


def _above(levels: Sequence[int], count: int) -> int | None:
    return next((n for n in levels if n > count), None)


def _neighbours(
    costs: Costs, bounds: Mapping[str, float], levels: Mapping[Axis, list[int]]
) -> dict[Axis, list[Axis]]:
    """For each leaf those whose savings depend on its count."""
    if "activation" in bounds:
        return {x: list(levels) for x in levels}
    return {x: [y for y in costs.together(x, list(bounds)) if y in levels] for x in levels}

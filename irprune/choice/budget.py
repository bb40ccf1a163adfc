"""Budgets met exactly: a search over one number (ratio or threshold), then indices given back while the bounds hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from irprune.choice.counts import Rounder
from irprune.cost import MEASURES, Costs
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph

__all__ = ["checked", "met"]

_STEPS = 40  # halvings of the ratio: far below one index of any leaf


def checked(budget: Mapping[str, float]) -> None:
    """Raises IrpruneError for unknown measures and amounts that make no sense."""
    if not budget:
        raise IrpruneError("the budget is empty", "choose", "for example {'macs': 0.5}")
    for name, amount in budget.items():
        if name not in MEASURES:
            raise IrpruneError(f"no budget on {name!r}", "choose", "one of " + ", ".join(MEASURES))
        if not amount > 0:
            raise IrpruneError(f"the budget on {name} is {amount}", "choose", "a share up to 1, or an amount above 1")


def met(
    graph: Graph,
    budget: Mapping[str, float],
    counts_at: Callable[[float], dict[Axis, int]],
    rounder: Rounder,
    order: Callable[[Mapping[Axis, int]], list[Axis]],
    grown: Callable[[Axis], bool] = lambda x: True,
) -> dict[Axis, int]:
    """The counts whose cost is above no bound and to which no single step of any leaf could be added.

    ``counts_at`` gives the counts for a ratio from 0 to 1, ``order`` the leaves in the order in which steps are given back, ``grown``
    which may be. Raises IrpruneError with the smallest reachable cost where a bound cannot be met.
    """
    checked(budget)
    costs = Costs(graph)
    whole = costs.at({})
    bounds = {name: amount * whole[name] if amount <= 1 else amount for name, amount in budget.items()}

    def fits(counts: Mapping[Axis, int]) -> bool:
        return all(costs.measure(name, counts) <= bound for name, bound in bounds.items())

    best = counts_at(0.0)
    if fits(best):
        return best
    low, high = 0.0, 1.0
    best = counts_at(high)
    for name, bound in bounds.items():
        smallest = costs.measure(name, best)
        if smallest > bound:
            raise IrpruneError(f"the budget of {bound:,.0f} {name} cannot be met: the smallest reachable is {smallest:,} "
                               f"({smallest / max(whole[name], 1):.3f} of {whole[name]:,})", "choose", _holding(costs, name, best))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        counts = counts_at(middle)
        if fits(counts):
            best, high = counts, middle
        else:
            low = middle
    return _filled(costs, bounds, best, rounder, [x for x in order(best) if grown(x)])


def _filled(costs: Costs, bounds: Mapping[str, float], counts: dict[Axis, int], rounder: Rounder, order: list[Axis]) -> dict[Axis, int]:
    """Give steps back, one of each leaf in turn, while every bound holds. What does not fit now never will: costs only grow."""
    now = {name: costs.measure(name, counts) for name in bounds}
    active = [x for x in order if x in rounder.growth]
    while active:
        able = []
        for x in active:
            more = {**counts, x: counts[x] + rounder.growth[x]}
            if more[x] > rounder.sizes[x]:
                continue
            then = {name: now[name] + costs.change(name, x, counts, more) for name in bounds}
            if all(then[name] <= bound for name, bound in bounds.items()):
                counts, now = more, then
                able.append(x)
        active = able
    return counts


def _holding(costs: Costs, name: str, counts: Mapping[Axis, int]) -> str:
    """What is left of a measure at its smallest, for the message."""
    found = [f"{source} {amount:,}" + (f" ({why})" if why else "") for source, amount, why in costs.largest(name, counts)[:3]]
    return "what holds it up: " + "; ".join(found)

"""Budgets met exactly: a search over one ratio, then indices given back while the bounds hold.

With a bound on latency, or where scores are losses that add up, it is a knapsack instead
(``irprune.choice.knapsack``): what an index saves differs from width to width."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from irprune.analysis.cost import MEASURES, PART, Costs, Timed
from irprune.analysis.outline import placed
from irprune.analysis.ranked_costs import RankedCosts
from irprune.base.near import meant
from irprune.choice.counts import Rounder
from irprune.choice.knapsack import Loss, solve_knapsack
from irprune.choice.uniform import TiedCosts, tied_loss
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph

if TYPE_CHECKING:
    from irprune.analysis.factorable import Factorable

__all__ = ["check_budget", "flat_budget", "read_latency_budget", "solve_budget"]

OF_PARTS = ("params", "bytes")  # measures that a budget may bound for a part of the weights

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_STEPS = 40  # halvings of the ratio: far below one index of any leaf


def check_budget(budget: Mapping[str, float]) -> None:
    """Raises IrpruneError for unknown measures and amounts that make no sense."""
    if not budget:
        raise IrpruneError("the budget is empty", "choose", "for example {'macs': 0.5}")
    for name, amount in budget.items():
        measure, of_part, _ = name.partition(PART)
        if name not in (*MEASURES, "latency") and not (of_part and measure in OF_PARTS):
            raise IrpruneError(
                f"no budget on {name!r}",
                "choose",
                meant(
                    measure,
                    (*MEASURES, "latency"),
                    "one of " + ", ".join((*MEASURES, "latency")),
                ),
            )
        if name == "latency" and not 0 < amount <= 1:
            raise IrpruneError(
                f"the budget on latency is {amount}", "choose", "the share that is left, up to 1"
            )
        if not amount > 0:
            raise IrpruneError(
                f"the budget on {name} is {amount}",
                "choose",
                "a share up to 1, or an amount above 1",
            )


def flat_budget(budget: Mapping[str, Any]) -> dict[str, Any]:
    """``budget`` with bounds on parts, ``{"params": {"layers*": 0.8}}``, as measures of their own:
    ``{"params of layers*": 0.8}``."""
    out: dict[str, Any] = {}
    for name, amount in budget.items():
        if isinstance(amount, Mapping):
            out.update({f"{name}{PART}{pattern}": share for pattern, share in amount.items()})
        else:
            out[name] = amount
    return out


def read_latency_budget(amount: Any) -> tuple[float, bool]:
    """What a budget on latency says: (share of the original, False) or (seconds, True). Raises
    IrpruneError for what is neither."""
    hint = "a share up to 1 of the original's, or a time with its unit: '3ms', '0.5s', '800us'"
    if isinstance(amount, str):
        text = amount.strip().lower().replace("µ", "u").replace("μ", "u")
        if found := re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?)\s*(s|ms|us)?", text):
            try:
                number = float(found[1])
            except ValueError:
                number = 0.0
            if found[2] and number > 0:
                return number * _UNITS[found[2]], True
            amount = number if not found[2] else amount
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 < amount <= 1:
        raise IrpruneError(f"the budget on latency is {amount!r}", "choose", hint)
    return float(amount), False


def solve_budget(
    graph: Graph,
    budget: Mapping[str, float],
    counts_at: Callable[[float], dict[Axis, int]],
    rounder: Rounder,
    order: Callable[[Mapping[Axis, int]], list[Axis]],
    grown: Callable[[Axis], bool] = lambda x: True,
    latency: Timed | None = None,
    loss: Loss | None = None,
    first: Mapping[Axis, Axis] | None = None,
    emptied: Container[Axis] = (),
    ranked: Mapping[Axis, Factorable] | None = None,
) -> dict[Axis, int]:
    """The counts whose cost is above no bound and to which no single step of any leaf could be
    added.

    ``counts_at`` gives the counts for a ratio from 0 to 1, ``order`` the leaves in the order in
    which steps are given back, ``grown`` which may be. A bound on latency needs ``latency``. With a
    ``loss`` of counts it is a knapsack. Leaves that are tied to a ``first`` have its count; of
    those that may be ``emptied`` a knapsack may keep nothing. ``ranked`` are layers that a knapsack
    may make two, by the leaf whose count is their rank. Raises IrpruneError with the smallest
    reachable cost where a bound cannot be met."""
    check_budget(budget)
    costs = Costs(graph, latency=latency)
    if ranked:
        found = RankedCosts(costs, ranked)
        levels = {x: _rank_levels(one, rounder.round_to) for x, one in ranked.items()}
        counts = _solved(found, budget, counts_at, rounder, order, grown, loss, emptied, levels)
        wasted = [x for x in levels if x in counts and not found.saves(x, counts)]
        return {x: n for x, n in counts.items() if x not in wasted}
    if first:
        tied = TiedCosts(costs, first)
        alone = {x: y is x for x, y in first.items()}
        return tied.spread(
            _solved(
                tied,
                budget,
                _of_firsts(counts_at, alone),
                rounder,
                order,
                lambda x: grown(x) and alone.get(x, True),
                None if loss is None else tied_loss(loss, first),
            )
        )
    return _solved(costs, budget, counts_at, rounder, order, grown, loss, emptied)


def _of_firsts(
    counts_at: Callable[[float], dict[Axis, int]], alone: Mapping[Axis, bool]
) -> Callable[[float], dict[Axis, int]]:
    """Counts of a ratio, without those of leaves that are tied to others."""
    return lambda ratio: {x: n for x, n in counts_at(ratio).items() if alone.get(x, True)}


def _solved(
    costs: Costs,
    budget: Mapping[str, float],
    counts_at: Callable[[float], dict[Axis, int]],
    rounder: Rounder,
    order: Callable[[Mapping[Axis, int]], list[Axis]],
    grown: Callable[[Axis], bool],
    loss: Loss | None,
    emptied: Container[Axis] = (),
    ranks: Mapping[Axis, Sequence[int]] | None = None,
) -> dict[Axis, int]:
    """The search of ``solve_budget``; ``ranks`` are the counts that leaves of ranks may have."""
    whole = {name: costs.measure(name, {}) for name in budget}
    bounds = {
        name: amount * whole[name] if amount <= 1 else amount for name, amount in budget.items()
    }

    def fits(counts: Mapping[Axis, int]) -> bool:
        return all(costs.measure(name, counts) <= bound for name, bound in bounds.items())

    best = counts_at(0.0)
    if fits(best):
        return best
    low, high = 0.0, 1.0
    best = counts_at(high)
    for x, some in (ranks or {}).items():
        best = _least(costs, bounds, best, x, some)
    for name, bound in bounds.items():
        smallest = costs.measure(name, best)
        if smallest > bound:
            raise IrpruneError(
                f"the budget of {_shown(name, bound)} {name} cannot be met: the smallest reachable is "
                f"{_shown(name, smallest)} ({smallest / (whole[name] or 1):.3f} of {_shown(name, whole[name])})",
                "choose",
                _share_hint(name, budget[name]) + _holding(costs, name, best),
            )
    if loss is not None:
        begun = counts_at(0.0)
        levels: dict[Axis, Sequence[int]] = {
            x: [*([0] if x in emptied else []), *rounder.levels(x)] for x in begun if grown(x)
        }
        for x, some in (ranks or {}).items():
            begun[x], levels[x] = some[-1], some
        found = solve_knapsack(costs, bounds, begun, levels, loss)
        return _filled(
            costs,
            bounds,
            best if found is None else found,
            rounder,
            [x for x in order(_without(best, ranks)) if grown(x) and (found is None or found[x])],
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        counts = counts_at(middle)
        if fits(counts):
            best, high = counts, middle
        else:
            low = middle
    return _filled(
        costs, bounds, best, rounder, [x for x in order(_without(best, ranks)) if grown(x)]
    )


def _without(counts: Mapping[Axis, int], ranks: Container[Axis] | None) -> dict[Axis, int]:
    """``counts`` of widths alone."""
    return {x: n for x, n in counts.items() if not ranks or x not in ranks}


def _rank_levels(one: Factorable, step: int) -> list[int]:
    """The ranks that a layer may have as two, and the one by which it stays one."""
    step = step if one.useful >= 4 * step else 1
    return [*range(step, one.useful + 1, step), one.size]


def _least(
    costs: Costs,
    bounds: Mapping[str, float],
    counts: dict[Axis, int],
    x: Axis,
    levels: Sequence[int],
) -> dict[Axis, int]:
    """``counts`` with the lowest rank of ``x`` where that costs less than the layer as one."""
    lowest = {**counts, x: levels[0]}
    return lowest if all(costs.change(n, x, counts, lowest) < 0 for n in bounds) else counts


def _filled(
    costs: Costs,
    bounds: Mapping[str, float],
    counts: dict[Axis, int],
    rounder: Rounder,
    order: list[Axis],
) -> dict[Axis, int]:
    """Give steps back, one of each leaf in turn, while every bound holds. What does not fit now
    never will: costs only grow."""
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


def _share_hint(name: str, amount: float) -> str:
    """What a small amount was perhaps meant to be."""
    if not 1 < amount <= 100 or name == "latency":
        return ""
    return f"{amount:g} is an amount, a share is written {amount / 100:g} or {amount:g}%; "


def _holding(costs: Costs, name: str, counts: Mapping[Axis, int]) -> str:
    """What is left of a measure at its smallest, for the message."""
    found = [
        f"{placed(source)} {_shown(name, amount)}" + (f" ({why})" if why else "")
        for source, amount, why in costs.largest(name, counts)[:3]
    ]
    return "what holds it up: " + "; ".join(found)


def _shown(name: str, amount: float) -> str:
    """An amount of a measure, for people."""
    return f"{amount * 1e3:,.3g} ms" if name == "latency" else f"{amount:,.0f}"

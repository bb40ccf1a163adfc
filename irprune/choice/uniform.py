"""One count for groups that repeat: what configs of model libraries can say, which know one width
for all layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import lcm

from irprune.analysis.cost import Costs, Counts
from irprune.ir.axis import Axis
from irprune.ir.group import Group
from irprune.ir.size import Sym

__all__ = ["UNIFORM", "TiedCosts", "kinds_of_groups", "levelled", "tied_loss"]

UNIFORM = ("", "names", "sizes", "equal")


def kinds_of_groups(groups: Sequence[Group], by: str) -> list[list[Group]]:
    """Groups that are to have one count, in order of first appearance.

    Args:
        groups: Those to sort, frozen ones among them.
        by: ``names``: those whose places have the same names but for the numbers in them, as
            ``layers.3.fc1`` and ``layers.5.fc1`` have; ``sizes``: those of one size whose places
            are in as many weights of a layer, so that an encoder's and a decoder's are one kind;
            ``equal``: those of one size, wherever they are; "": each alone.
    """
    keys: dict[str, Callable[[Group], object]] = {
        "names": _names,
        "sizes": _shape,
        "equal": lambda group: group.size,
    }
    found: dict[object, list[Group]] = {}
    for number, group in enumerate(groups):
        key = keys[by](group) if by else number
        found.setdefault(key, []).append(group)
    return list(found.values())


def _names(group: Group) -> object:
    places = {(re.sub(r"\d+", "#", m.weight.name), m.dim, m.slot.stride) for m in group.members}
    return group.size, tuple(sorted(places))


def _shape(group: Group) -> object:
    roles = {(m.dim, m.weight.rank, m.slot.stride) for m in group.members}
    return group.size, group.role, tuple(sorted(roles))


def levelled(
    counts: Mapping[Axis, int], first: Mapping[Axis, Axis], steps: Mapping[Axis, int]
) -> dict[Axis, int]:
    """``counts`` with one count for the leaves that are tied to the same ``first``: their mean, to
    the next lower multiple of all their steps that is not below the least of them."""
    found: dict[Axis, list[Axis]] = {}
    for x in counts:
        found.setdefault(first.get(x, x), []).append(x)
    out = {}
    for x, tied in found.items():
        step, whole = lcm(*(steps.get(y, 1) for y in tied)), x.size
        least, mean = min(counts[y] for y in tied), sum(counts[y] for y in tied) // len(tied)
        assert not isinstance(whole, Sym)
        down, up = mean - mean % step, min(-(-least // step) * step, whole)
        out[x] = mean if mean == whole else max(down, up)
    return {x: out[first.get(x, x)] for x in counts}


class TiedCosts(Costs):
    """Costs of counts in which every leaf has the count of the one that it is tied to."""

    def __init__(self, costs: Costs, first: Mapping[Axis, Axis]) -> None:
        self.__dict__.update(costs.__dict__)
        self._first = first
        self._tied: dict[Axis, list[Axis]] = {}
        for x, y in first.items():
            self._tied.setdefault(y, []).append(x)

    def spread(self, counts: Counts) -> dict[Axis, int]:
        """``counts`` with those of the tied leaves."""
        return {**counts, **{x: counts[y] for x, y in self._first.items() if y in counts}}

    def measure(self, name: str, counts: Counts) -> float:
        """As of ``Costs``."""
        return super().measure(name, self.spread(counts))

    def change(self, name: str, leaf: Axis, before: Counts, after: Counts) -> float:
        """By how much a measure grows when ``leaf`` and all that are tied to it change."""
        if len(self._tied.get(leaf, (leaf,))) == 1:
            return super().change(name, leaf, self.spread(before), self.spread(after))
        return self.measure(name, after) - self.measure(name, before)

    def together(self, leaf: Axis, names: Iterable[str]) -> dict[Axis, None]:
        """As of ``Costs``, of all that are tied to ``leaf``."""
        some = tuple(names)
        near = (
            y
            for x in self._tied.get(leaf, [leaf])
            for y in super(TiedCosts, self).together(x, some)
        )
        return dict.fromkeys(self._first.get(y, y) for y in near)

    def largest(self, name: str, counts: Counts) -> Sequence[tuple[str, float, str]]:
        """As of ``Costs``."""
        return super().largest(name, self.spread(counts))


def tied_loss(
    loss: Callable[[Axis, int], float], first: Mapping[Axis, Axis]
) -> Callable[[Axis, int], float]:
    """The loss of a count of a leaf and of all that are tied to it."""
    tied: dict[Axis, list[Axis]] = {}
    for x, y in first.items():
        tied.setdefault(y, []).append(x)
    return lambda x, count: sum(loss(y, count) for y in tied.get(x, (x,)))

"""Targets from ranks: one threshold over all groups (global), or over those of equal structure
(isomorphic)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from irprune.ir.axis import Axis
from irprune.ir.group import Group
from irprune.ir.size import probe_of

__all__ = ["Loss", "Ranking", "structure_of"]

Scores = NDArray[np.float64]


class Ranking:
    """All indices of some leaves, least important first; equal scores keep the order of groups and
    indices.

    An index is ranked by the sorted scores of its leaf, so that the ``k`` least of each leaf go
    first whatever their places."""

    def __init__(self, scores: Mapping[Axis, Scores], low: Mapping[Axis, int]) -> None:
        self.leaves = list(scores)
        self.sizes = [len(s) for s in scores.values()]
        owner = np.repeat(np.arange(len(self.leaves)), self.sizes)
        ordered = [np.sort(s) for s in scores.values()]
        values = np.concatenate(ordered) if ordered else np.zeros(0)
        # An index may go when enough of its leaf stay: with ascending scores, these are the first
        # `size - low` of each leaf.
        allowed = [np.arange(n) < n - low[x] for x, n in zip(self.leaves, self.sizes, strict=True)]
        order = np.argsort(values, kind="stable")
        self.droppable = owner[order][
            (np.concatenate(allowed) if allowed else np.zeros(0, dtype=bool))[order]
        ]
        self.total = int(sum(self.sizes))

    def targets(self, ratio: float) -> dict[Axis, float]:
        """Exact counts after the ``ratio`` of all indices that rank lowest is dropped, as far as
        the caps allow."""
        gone = np.bincount(self.droppable[: round(ratio * self.total)], minlength=len(self.leaves))
        return {x: float(n - g) for x, n, g in zip(self.leaves, self.sizes, gone, strict=True)}


class Loss:
    """What is lost when of a leaf the best ``count`` indices are kept, as a knapsack adds it up.

    ``local``: the inverse of the share of its importance that is left, so that every width gives
    and none is emptied. ``global`` and ``knapsack``: the importance of what is dropped;
    ``isomorphic``: the same, in units of the mean over equal structures. ``drops`` are the losses
    of leaves of which nothing is kept, where that may be."""

    def __init__(
        self,
        scope: str,
        scores: Mapping[Axis, Scores],
        groups: Mapping[Axis, Group],
        drops: Mapping[Axis, float] | None = None,
    ) -> None:
        self.drops = drops or {}
        kept = {x: np.sort(s)[::-1] for x, s in scores.items()}
        # one importance may be below zero: only what lies above the least counts, and a little that
        # all have
        above = {x: (s - min(s.min(initial=0.0), 0.0)) for x, s in kept.items()}
        self.held = {x: np.cumsum(s) for x, s in above.items()}
        self.unit = dict.fromkeys(kept, 1.0)
        self.local = scope == "local"
        for some in (
            classes([groups[x] for x in kept], structure_of) if scope == "isomorphic" else ()
        ):
            mean = float(np.concatenate([above[g.axis] for g in some]).mean()) or 1.0
            self.unit.update({g.axis: mean for g in some})

    def __call__(self, x: Axis, count: int) -> float:
        held = self.held[x]
        if count == 0:  # the whole branch
            return max(self.drops[x], self(x, 1))
        if not self.local:
            return float(held[-1] - held[count - 1]) / self.unit[x]
        # half by importance and half by number: equal or vanishing importance must not make a width
        # free
        share = (held[count - 1] / held[-1] if held[-1] > 0 else 1.0) / 2 + count / len(held) / 2
        return 1 / share - 1


def structure_of(group: Group) -> tuple[object, ...]:
    """What makes groups comparable: the leaf's size and, for each place, the sizes and dimension of
    the weight and who reads it.

    Isomorphic Pruning (Fang et al., ECCV 2024) ranks only among sub-structures of the same
    topology."""
    places = [
        (
            tuple(probe_of(s) for s in m.weight.shape),
            m.dim,
            m.slot.stride,
            tuple(sorted({user.op for user in m.weight.users})),
        )
        for m in group.members
    ]
    return group.size, group.role, tuple(sorted(places))


def classes(groups: Sequence[Group], key: Callable[[Group], object]) -> Iterable[list[Group]]:
    """Groups with equal keys together, in order of first appearance."""
    found: dict[object, list[Group]] = {}
    for group in groups:
        found.setdefault(key(group), []).append(group)
    return found.values()

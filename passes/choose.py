"""choose: which indices of which leaves are kept.

Before: scores. After: ``graph.kept``. A ratio belongs to a width: of a product of free leaves one factor carries it
(whole heads rather than head_dim, channels within the groups of a convolution or norm), the others stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irprune.ir.axis import Axis, factors, find, leaves
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.ir.kept import Kept

__all__ = ["Choose"]


@dataclass(frozen=True)
class Choose:
    """Drop ``ratio`` of every width, the least important indices first."""

    ratio: float = 0.5

    def run(self, graph: Graph) -> bool:
        held = held_factors(graph)
        choice = {}
        for group in groups_of(graph):
            a = group.axis
            if group.frozen or a in held or a not in graph.scores:
                continue
            n = max(1, round(group.size * (1 - self.ratio)))
            if n < group.size:
                order = np.argsort(-graph.scores[a], kind="stable")
                choice[a] = np.sort(order[:n])
        graph.kept = Kept(choice)
        return bool(choice)


def held_factors(graph: Graph) -> dict[Axis, Axis]:
    """Free leaves that stay whole because another factor of the same product carries its ratio: leaf -> a carrier."""
    held: dict[Axis, Axis] = {}
    carriers: dict[Axis, None] = {}
    for product in _products(graph):
        free = [[x for x in leaves(f) if x.reason is None and x.size != 1] for f in product]
        free = [f for f in free if f]
        if len(free) < 2:
            continue
        ranked = sorted(free, key=lambda f: (not any(x in carriers for x in f), all(x in held for x in f), f[0].role == "group"))
        chosen = ranked[0]
        carriers.update(dict.fromkeys(chosen))
        for f in ranked[1:]:
            for x in f:
                if x not in carriers:
                    held.setdefault(x, chosen[0])
    return held


def _products(graph: Graph) -> list[list[Axis]]:
    """The factor lists of all products in the dimensions of weights, once each."""
    seen: dict[Axis, list[Axis]] = {}

    def visit(a: Axis) -> None:
        a = find(a)
        if a in seen or a.kind == "leaf":
            return
        if a.kind == "product":
            seen[a] = factors(a)
        for child in factors(a) if a.kind == "product" else a.children:
            visit(child)

    for weight in graph.weights.values():
        for a in weight.axes or ():
            visit(a)
    return list(seen.values())

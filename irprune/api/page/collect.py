"""What the page shows beyond the numbers of the report, as plain data: the details of the graph,
and the order in which a changed width keeps the channels of a group."""

from __future__ import annotations

from typing import Any

import numpy as np

from irprune.analysis.details import details
from irprune.choice.plan import Plan
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.ir.selection import Selection

__all__ = ["collect"]

_EDITED = 60_000  # channels: with more of them the page has no widths to change


def collect(graph: Graph) -> dict[str, Any]:
    """The data of an analysed graph with its choice."""
    plan = Plan.from_graph(graph) if graph.kept is not None else None
    found = details(graph, plan.source if plan is not None else "").as_dict()
    orders = _orders(graph)
    if plan is not None and orders:
        weights = _whole(graph).as_json()["weights"]
        found |= {"orders": orders, "weights": weights}
        found["plan"] = {**plan.as_json(), "weights": weights}
    return found


def _whole(graph: Graph) -> Plan:
    """A plan that names every free group, with all of its indices: where each stands in weights."""
    free = [g for g in groups_of(graph) if not g.frozen and g.axis in graph.scores]
    kept = Selection({g.axis: np.arange(g.size) for g in free}, {})
    whole = graph.copy()
    names = {g.name: g.axis for g in groups_of(whole)}
    whole.kept = Selection({names[g.name]: kept.choice[g.axis] for g in free}, {})
    return Plan.from_graph(whole)


def _orders(graph: Graph) -> dict[str, Any]:
    """For each group by its number: what a plan says of it, and its indices by importance, the most
    important first; not for groups whose blocks keep indices of their own."""
    groups = groups_of(graph)
    free = [g for g in groups if not g.frozen and g.axis in graph.scores]
    if sum(g.size for g in free) > _EDITED:
        return {}
    choices = {c["name"]: c for c in _whole(graph).as_json()["choices"]}
    out = {}
    for number, group in enumerate(groups):
        scores = graph.scores.get(group.axis)
        own = graph.kept is not None and group.axis in graph.kept.within
        if group.frozen or scores is None or own or group.name not in choices:
            continue
        flat = scores if scores.ndim == 1 else scores.mean(axis=0)
        choice = choices[group.name]
        out[str(number)] = {
            "name": group.name,
            "size": group.size,
            "members": choice["members"],
            "order": np.argsort(-flat, kind="stable").tolist(),
        }
    return out

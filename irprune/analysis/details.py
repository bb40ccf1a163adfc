"""What a report shows beyond its numbers, as plain data: the cost of each layer before and after,
for each group its kind, its curve of scores and the chain behind it, and the drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import numpy as np

from irprune.analysis.cost import Costs, number, size_under
from irprune.analysis.drawing import draw, layer_name
from irprune.analysis.explain import explain
from irprune.analysis.kinds import kinds
from irprune.analysis.outline import blank, fold_names
from irprune.analysis.sizes import example_symbols
from irprune.ir.graph import Graph, Weight
from irprune.ir.group import Group, groups_of
from irprune.ops.registry import lookup

__all__ = ["Details", "GroupDetail", "LayerCost", "details"]

_POINTS = 48  # of a curve
_CHAIN = 24  # lines of an explanation
_MEMBERS = 60


@dataclass(frozen=True)
class LayerCost:
    """A node that multiplies or holds parameters, its costs before and after."""

    name: str
    op: str
    macs: tuple[int, int]
    params: tuple[int, int]


@dataclass(frozen=True)
class GroupDetail:
    """A group: ``alike`` names the repeated blocks that it stands in one of; ``curve`` are its
    scores, largest first, as shares of the largest; ``chain`` is its explanation, for the first of
    those alike."""

    name: str
    alike: str
    kind: str
    size: int
    kept: int
    frozen: bool
    reason: str
    members: tuple[str, ...]
    count: int
    curve: tuple[float, ...] = ()
    chain: tuple[str, ...] = ()


@dataclass(frozen=True)
class Details:
    """All of it; ``source`` is a digest of the structure of the original, ``inputs`` are the names
    and shapes that costs are counted for."""

    layers: tuple[LayerCost, ...] = ()
    groups: tuple[GroupDetail, ...] = ()
    boxes: tuple[dict[str, Any], ...] = ()
    omitted: int = 0
    source: str = ""
    inputs: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass
class _ExplainedNames:
    """The groups alike that were explained."""

    names: dict[str, None] = field(default_factory=dict)

    def first(self, key: str) -> bool:
        new = key not in self.names
        self.names[key] = None
        return new


def details(graph: Graph, source: str = "") -> Details:
    """The details of an analysed graph with its choice."""
    groups, symbols = groups_of(graph), example_symbols(graph)
    kind, seen = kinds(graph), _ExplainedNames()
    alike: dict[tuple[str, int], list[str]] = {}
    for g in groups:
        alike.setdefault((blank(g.name), g.size), []).append(g.name)
    folded = {k: fold_names(v) for k, v in alike.items()}
    drawing = draw(graph, {g.axis: i for i, g in enumerate(groups)})
    return Details(
        tuple(_layers(graph)),
        tuple(
            _group(graph, g, kind.get(g.axis, ""), folded[blank(g.name), g.size], seen)
            for g in groups
        ),
        tuple(asdict(box) for box in drawing.boxes),
        drawing.omitted,
        source,
        tuple((v.name, tuple(number(s, symbols) for s in v.shape)) for v in graph.inputs),
    )


def _group(graph: Graph, group: Group, kind: str, alike: str, seen: _ExplainedNames) -> GroupDetail:
    kept = group.size
    if graph.kept is not None and not group.frozen:
        kept = int(graph.kept.size(group.axis))  # type: ignore[arg-type]
    members = [str(m) for m in group.members]
    chain: Sequence[str] = ()
    if seen.first(alike):
        found = explain(graph, group.name)
        chain = [line for one in found[:1] for line in str(one).splitlines()[:_CHAIN]]
    return GroupDetail(
        group.name,
        alike,
        kind,
        group.size,
        kept,
        bool(group.frozen),
        group.frozen or graph.skipped.get(group.axis, ""),
        tuple(members[:_MEMBERS]),
        len(members),
        _curve(graph, group),
        tuple(chain),
    )


def _curve(graph: Graph, group: Group) -> tuple[float, ...]:
    scores = graph.scores.get(group.axis)
    if scores is None or group.frozen:
        return ()
    flat = scores if scores.ndim == 1 else np.sort(scores, axis=-1).mean(axis=0)
    falling = np.sort(np.asarray(flat, dtype=np.float64))[::-1]
    at = np.unique(np.linspace(0, len(falling) - 1, min(_POINTS, len(falling))).astype(int))
    scale = float(np.abs(falling).max()) or 1.0
    return tuple(round(float(v) / scale, 4) for v in falling[at])


def _layers(graph: Graph) -> list[LayerCost]:
    costs = Costs(graph)
    kept = graph.kept.choice if graph.kept is not None else {}
    counts: Mapping[Any, int] = {a: int(k.shape[-1]) for a, k in kept.items()}
    told: dict[Weight, None] = {}
    memos: tuple[dict[Any, int], dict[Any, int]] = ({}, {})
    out = []
    for node in graph.nodes:
        macs, params = [0, 0], [0, 0]
        entry = lookup(node)
        found: Any = tuple(entry.macs(node)) if entry is not None and entry.macs is not None else ()
        products = found if not found or isinstance(found[0], tuple) else (found,)
        for axes in products:
            for k, now in enumerate(({}, counts)):
                macs[k] += prod(size_under(a, now, costs.symbols, memos[k]) for a in axes)
        for weight in node.inputs:
            if not isinstance(weight, Weight) or weight.kind != "parameter" or weight in told:
                continue
            told[weight] = None
            for k, now in enumerate(({}, counts)):
                sizes = [size_under(a, now, costs.symbols, memos[k]) for a in weight.axes or ()]
                params[k] += prod(sizes or [number(s, {}) for s in weight.shape])
        if macs[0] or params[0]:
            out.append(
                LayerCost(layer_name(node), node.op, (macs[0], macs[1]), (params[0], params[1]))
            )
    return out

"""A graph as a drawing: operators that hold weights or join values, in layers from input to output,
and the lines between them.

What has one input and no weight (activations, reshapes) is left out, so that a line stands for it.
Layers are longest paths from an input; within a layer operators stand near those that they read
(the barycentre heuristic of Sugiyama, Tagawa and Toda, 1981)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from irprune.ir.axis import Axis, leaves
from irprune.ir.graph import Graph, Node, Value, Weight

__all__ = ["MOST", "Box", "Drawing", "draw", "layer_name"]

MOST = 1500  # boxes; a drawing of more says nothing
_SWEEPS = 6


@dataclass(frozen=True)
class Box:
    """An operator: what it is called and is, where it stands (column and layer), the groups that
    run through it, by number, and the boxes that it reads."""

    name: str
    op: str
    column: float
    layer: int
    groups: tuple[int, ...]
    reads: tuple[int, ...]


@dataclass(frozen=True)
class Drawing:
    """The boxes; none where there would be more than ``MOST``."""

    boxes: tuple[Box, ...] = ()
    omitted: int = 0


def draw(graph: Graph, groups: Mapping[Axis, int]) -> Drawing:
    """The drawing of an analysed graph whose groups have the numbers ``groups``."""
    shown = [n for n in graph.nodes if _stands(n)]
    if len(shown) > MOST:
        return Drawing(omitted=len(shown))
    number = {n: i for i, n in enumerate(shown)}
    reads = _reads(graph, number)
    layers = [0] * len(shown)
    for i, sources in enumerate(reads):
        layers[i] = 1 + max((layers[j] for j in sources), default=-1)
    columns = _columns(layers, reads)
    return Drawing(
        tuple(
            Box(layer_name(n), n.op, columns[i], layers[i], _groups(n, groups), tuple(reads[i]))
            for i, n in enumerate(shown)
        )
    )


def _stands(node: Node) -> bool:
    values = {v for v in node.inputs if v is not None and not isinstance(v, Weight)}
    return len(values) > 1 or any(isinstance(v, Weight) for v in node.inputs)


def _reads(graph: Graph, number: Mapping[Node, int]) -> list[list[int]]:
    """For each box those that it reads, through what is left out."""
    from_: dict[Value, list[int]] = {}
    out: list[list[int]] = []
    for node in graph.nodes:
        sources = list(
            dict.fromkeys(i for v in node.inputs if v is not None for i in from_.get(v, ()))
        )
        if node in number:
            out.append(sources)
            sources = [number[node]]
        for value in node.outputs:
            from_[value] = sources
    return out


def _columns(layers: Sequence[int], reads: Sequence[Sequence[int]]) -> list[float]:
    """Where in its layer each box stands, the middle being 0."""
    rows: dict[int, list[int]] = {}
    for i, layer in enumerate(layers):
        rows.setdefault(layer, []).append(i)
    read_by: list[list[int]] = [[] for _ in layers]
    for i, sources in enumerate(reads):
        for j in sources:
            read_by[j].append(i)
    place = [0.0] * len(layers)
    for sweep in range(_SWEEPS):
        near = reads if sweep % 2 == 0 else read_by
        for layer in sorted(rows, reverse=sweep % 2 == 1):
            row = rows[layer]
            row.sort(key=lambda i: (_mean([place[j] for j in near[i]], place[i]), i))
            for k, i in enumerate(row):
                place[i] = k - (len(row) - 1) / 2
    return place


def _mean(numbers: Sequence[float], otherwise: float) -> float:
    return sum(numbers) / len(numbers) if numbers else otherwise


def _groups(node: Node, groups: Mapping[Axis, int]) -> tuple[int, ...]:
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    found = {groups[x] for v in values for a in v.axes or () for x in leaves(a) if x in groups}
    return tuple(sorted(found))


def layer_name(node: Node) -> str:
    """What a reader knows ``node`` by: its module, the name of its weight without the last part, or
    its result."""
    if node.origin.scope:
        return node.origin.scope
    weight = next((v.name for v in node.inputs if isinstance(v, Weight)), "")
    return weight.rpartition(".")[0] or weight or node.outputs[0].name

"""infer-axes: give every dimension its axis, from the rules of the operator table.

Before: ``%y: f32[1, 64] = linear(%x: f32[1, 32], %w: f32[64, 32])``. After: ``%y: f32[1, c1] = linear(%x: f32[1, c0], %w: f32[c1, c0])``.
"""

from __future__ import annotations

from dataclasses import dataclass

from irprune.ir.axis import Axes
from irprune.ir.graph import Graph, Node, Weight
from irprune.ops.registry import Unsupported, lookup

__all__ = ["InferAxes"]


@dataclass(frozen=True)
class InferAxes:
    """Run the rule of every node; freeze what enters, what leaves and what no rule covers."""

    def run(self, graph: Graph) -> bool:
        axes = Axes()
        for value in graph.values():
            value.axes = None
        for value in graph.inputs:
            value.axes = tuple(axes.frozen(s, f"graph input '{value.name}'") for s in value.shape)
        for weight in graph.weights.values():
            axes.of(weight)
        constant = constants(graph)
        for node in graph.nodes:
            axes.node = node
            infer(axes, node, node in constant)
        axes.node = None
        for value in graph.outputs:
            for a in axes.of(value):
                axes.freeze(a, f"graph output '{value.name}'")
        graph.axes = axes
        return True


def infer(axes: Axes, node: Node, constant: bool) -> None:
    """State the relations of one node. What is computed from constants alone and has no rule is free: it can be folded."""
    entry = lookup(node)
    try:
        if entry is None:
            raise Unsupported(f"no rule for {node.op}")
        entry.rule(axes, node)
        if entry.creates and entry.resize is None:
            axes.opened[node.out.name] = None
    except Unsupported as why:
        for value in node.inputs:
            for a in axes.of(value) if value is not None else ():
                axes.freeze(a, str(why))
        if constant:
            axes.opened[node.out.name] = None
        for value in node.outputs:
            value.axes = tuple(axes.leaf(s) if constant else axes.frozen(s, str(why)) for s in value.type.shape or ())


def constants(graph: Graph) -> set[Node]:
    """Nodes computed from buffers, constants and sizes alone: no graph input, no parameter, no symbolic size, nothing drawn at random."""
    known: set[Node] = set()
    for node in graph.nodes:
        entry = lookup(node)
        if entry is not None and entry.random:
            continue
        fixed = all(
            v is None or (v.producer in known if v.producer is not None else isinstance(v, Weight) and v.kind != "parameter")
            for v in node.inputs
        )
        if fixed and all(v.type.static for v in node.outputs):
            known.add(node)
    return known

"""infer-axes: give every dimension its axis, from the rules of the operator table.

Before::

    %up: f32[64, 32] = parameter
    %down: f32[10, 64] = parameter

    %h: f32[1, 64] = linear(%x, %up)
    %y: f32[1, 10] = linear(%h, %down)

After::

    axis c0 = 64

    %up: f32[c0, 32] = parameter
    %down: f32[10, c0] = parameter

    %h: f32[1, c0] = linear(%x, %up)
    %y: f32[1, 10] = linear(%h, %down)
"""

from __future__ import annotations

from dataclasses import dataclass

from irprune.ir.axis import Axes
from irprune.ir.graph import Graph, GraphError, Node
from irprune.ops.registry import Unsupported, lookup
from irprune.passes.fold_constants import constants
from irprune.passes.result import PassResult

__all__ = ["InferAxes"]

_BUGS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class InferAxes:
    """Run the rule of every node; freeze what enters, what leaves and what no rule covers.

    Scores and choices made on earlier axes are forgotten. A rule that fails freezes its node's
    axes, with a note."""

    def run(self, graph: Graph) -> PassResult:
        before = str(graph) if graph.axes is not None else ""
        axes = Axes()
        graph.axes, graph.kept, graph.scores, graph.skipped = axes, None, {}, {}
        for value in graph.values():
            value.axes = None
        for value in graph.inputs:
            value.axes = tuple(
                axes.frozen(s, f"graph input '{value.name}'") for s in value.type.shape or ()
            )
        for weight in graph.weights.values():
            axes.of(weight)
        constant = constants(graph)
        for node in graph.nodes:
            axes.node = node
            infer(axes, node, node in constant)
        axes.node = None
        for value in graph.outputs:
            for a in value.axes or ():
                axes.freeze(a, f"graph output '{value.name}'")
        return PassResult(before != str(graph) if before else True)


def infer(axes: Axes, node: Node, constant: bool) -> None:
    """State the relations of one node. What is computed from constants alone and has no rule is
    free: it can be folded."""
    entry = lookup(node)
    try:
        if entry is None:
            raise Unsupported(f"no rule for {node.op}")
        if any(v is not None and v.type.shape is None for v in node.inputs):
            raise Unsupported("a tensor of unknown rank")
        entry.rule(axes, node)
        for value in node.outputs:
            if value.axes is None or len(value.axes) != len(value.type.shape or value.axes):
                raise ValueError(f"it gives {value} the axes {value.axes}")
        if entry.creates and entry.resize is None:
            axes.opened[node.out.name] = None
    except (Unsupported, GraphError) as why:  # the latter for a tensor of unknown rank
        _freeze(axes, node, str(why), constant)
    except _BUGS as bug:
        text = f"the rule of {node.op} failed: {type(bug).__name__}: {bug}"
        _freeze(axes, node, text, constant)
        if node.graph is not None and (note := f"{text} at {node.where}") not in node.graph.notes:
            node.graph.notes.append(note)


def _freeze(axes: Axes, node: Node, why: str, constant: bool) -> None:
    for value in node.inputs:
        for a in axes.of(value) if value is not None and value.type.shape is not None else ():
            axes.freeze(a, why)
    if constant:
        axes.opened[node.out.name] = None
    for value in node.outputs:
        value.axes = tuple(
            axes.leaf(s) if constant else axes.frozen(s, why) for s in value.type.shape or ()
        )

"""slice: rewrite the graph to the kept indices.

Before, with half of c0 kept::

    axis c0 = 64 keep=[0:32]
    %w: f32[c0, 32] = parameter
    %h: f32[1, c0] = linear(%x, %w)
    %y: f32[1, c0, 1] = reshape(%h) {shape=[1, 64, 1]}

After::

    %w: f32[32, 32] = parameter
    %h: f32[1, 32] = linear(%x, %w)
    %y: f32[1, 32, 1] = reshape(%h) {shape=[1, 32, 1]}

Branches that go as a whole (``kept.dropped``) are taken out first: their sum is its other operand.
Weights are sliced when they are loaded; attributes that hold sizes are rewritten by the operator
table; tensors made from constants alone are folded where an axis of them shrinks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from irprune.analysis.branches import take_out
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph, Node, TensorType, Value
from irprune.ir.selection import Indices, Selection
from irprune.ops.registry import lookup
from irprune.passes.canonicalize import without_stride_dependence
from irprune.passes.fold_constants import fold
from irprune.passes.result import PassResult
from irprune.run.take import kept_indices, take

__all__ = ["Slice"]


@dataclass(frozen=True)
class Slice:
    """Apply ``graph.kept``; the graph's axes are spent afterwards."""

    def run(self, graph: Graph) -> PassResult:
        kept = graph.kept
        if kept is None:
            raise IrpruneError("nothing is chosen", "slice", "run choose first, or set graph.kept")
        if not kept.choice and not kept.dropped:
            return PassResult(False)
        take_out(graph, kept.dropped)
        opened = graph.axes.opened if graph.axes is not None else {}
        folded = [
            n
            for n in graph.nodes
            if opened and n.out.name in opened and any(_shrinks(v, kept) for v in n.outputs)
        ]
        fold(graph, [v for n in folded for v in n.outputs])
        graph.remove_all(folded)
        for node in list(graph.nodes):  # a rule may add nodes around its own
            entry = lookup(node)
            if entry is not None and entry.resize is not None and _touched(node, kept):
                entry.resize(node, kept)
        for weight in graph.weights.values():
            indices = kept_indices(weight, kept)
            if any(i is not None for i in indices):
                weight.load = _sliced(weight.load, indices)
        for value in graph.values():
            # An unused result may have no type
            if value.type.shape is not None and _shrinks(value, kept):
                sizes = zip(value.axes or (), value.shape, strict=True)
                value.type = TensorType(
                    value.dtype, tuple(kept.size(a) if kept.changes(a) else s for a, s in sizes)
                )
        for value in graph.values():
            value.axes = None
        # An attention of narrower values may lay out its result in another way
        without_stride_dependence(graph)
        graph.axes, graph.kept, graph.scores = None, None, {}
        return PassResult(True)


def _touched(node: Node, kept: Selection) -> bool:
    return any(_shrinks(v, kept) for v in (*node.inputs, *node.outputs) if v is not None)


def _shrinks(value: Value, kept: Selection) -> bool:
    return any(kept.changes(a) for a in value.axes or ())


def _sliced(load: Callable[[], Any], indices: list[Indices | None]) -> Callable[[], Any]:
    return lambda: take(load(), indices)

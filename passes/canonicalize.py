"""canonicalize: the same computation in fewer nodes.

Before::

    %a: f32[2, 6] = identity(%x)
    %b: f32[2, 6] = reshape(%a) {shape=[2, 6]}
    %y: f32[2, 6] = relu(%b)

After::

    %y: f32[2, 6] = relu(%x)

What does nothing is the operator table's to say (``Op.idle``): copies, casts of integers to the
type they have, reshapes to the shape that is there, slices of everything, permutations that keep
the order, dropout of nothing."""

from __future__ import annotations

from dataclasses import dataclass

from irprune.ir.graph import Graph, Node
from irprune.ops.registry import lookup
from irprune.passes.result import PassResult

__all__ = ["Canonicalize", "without_stride_dependence"]


@dataclass(frozen=True)
class Canonicalize:
    """Drop what gives back its operand as it is.

    ``views`` respells views as reshapes, which do not depend on how a tensor lies in memory: where
    that is not asked for, copies that a view or an unknown operator may count on stay. Nodes of an
    ONNX file stay, as all in it that pruning need not touch; a result of the graph never becomes
    another result, an input or a weight itself."""

    views: bool = True

    def run(self, graph: Graph) -> PassResult:
        pinned = self._pinned(graph)
        dead: list[Node] = []
        for node in graph.nodes:
            entry = lookup(node)
            if (
                entry is None
                or entry.idle is None
                or node.origin.dialect == "onnx"
                or not node.has(0)
                or not entry.idle(node)
            ):
                continue
            source = node.operand(0)
            if id(node) in pinned and "memory_format" in node.attrs:
                continue
            if any(node.out is v for v in graph.outputs) and (
                source.producer is None or any(source is v for v in graph.outputs)
            ):
                continue
            graph.replace(node.out, source)
            dead.append(node)
        graph.remove_all(dead)
        changed = without_stride_dependence(graph) if self.views and dead else False
        return PassResult(bool(dead) or changed)

    def _pinned(self, graph: Graph) -> set[int]:
        """Nodes from which an operator can be reached that needs its operand to lie in memory in
        some way."""
        pinned: set[int] = set()
        for node in reversed(graph.nodes):
            if any(
                id(user) in pinned for v in node.outputs for user in v.users
            ) or self._needs_layout(node):
                pinned.add(id(node))
        return pinned

    def _needs_layout(self, node: Node) -> bool:
        entry = lookup(node)
        if entry is None:
            return True
        target = node.origin.target
        return target in entry.strides and not (self.views and entry.strides[target])


def without_stride_dependence(graph: Graph) -> bool:
    """Respell views as reshapes: how a tensor lies in memory is not what it was at capture."""
    changed = False
    for node in graph.nodes:
        entry = lookup(node)
        loose = entry.strides.get(node.origin.target, "") if entry is not None else ""
        if loose:
            node.origin.target = loose
            changed = True
    return changed

"""dead-code: drop nodes and weights that no output needs.

Before: ``%y = relu(%x)`` with no reader. After: the line is gone.
"""

from __future__ import annotations

from dataclasses import dataclass

from irprune.ir.graph import Graph

__all__ = ["DeadCode"]


@dataclass(frozen=True)
class DeadCode:
    """Remove what no output needs; random and other effects count as none."""

    def run(self, graph: Graph) -> bool:
        needed = {id(v) for v in graph.outputs}
        dead = []
        for node in reversed(graph.nodes):
            if any(id(v) in needed for v in node.outputs):
                needed.update(id(v) for v in node.inputs if v is not None)
            else:
                dead.append(node)
        graph.remove_all(dead)
        unused = [w.name for w in graph.weights.values() if not w.users and id(w) not in needed]
        for name in unused:
            del graph.weights[name]
        return bool(dead or unused)

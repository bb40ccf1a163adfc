"""dead-code: drop nodes and weights that no output needs.

Before::

    %unused: f32[8] = parameter

    %a: f32[2, 6] = relu(%x)
    %b: f32[2, 6] = rand_like(%a)
    %y: f32[2, 6] = sigmoid(%x)
    return %y

After::

    %y: f32[2, 6] = sigmoid(%x)
    return %y
"""

from __future__ import annotations

from dataclasses import dataclass

from irprune.ir.graph import Graph
from irprune.ir.symbols import backward_slice
from irprune.passes.result import PassResult

__all__ = ["DeadCode"]


@dataclass(frozen=True)
class DeadCode:
    """Remove nodes and weights that no output needs.

    A graph has no effects but its outputs: what is drawn at random and not read goes too. Inputs
    stay, they are the model's signature."""

    def run(self, graph: Graph) -> PassResult:
        alive = dict.fromkeys(backward_slice(graph, graph.outputs))
        dead = [node for node in graph.nodes if node not in alive]
        graph.remove_all(dead)
        returned = {id(v) for v in graph.outputs}
        unused = [w.name for w in graph.weights.values() if not w.users and id(w) not in returned]
        for name in unused:
            del graph.weights[name]
        return PassResult(bool(dead or unused))

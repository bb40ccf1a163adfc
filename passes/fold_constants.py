"""fold-constants: what is computed from stored constants alone is computed now.

Before::

    %scale: f32[6] = buffer
    %half: f32[6] = mul(%scale) {other=0.5}
    %y: f32[2, 6] = mul(%x, %half)

After::

    %folded.half: f32[6] = constant
    %y: f32[2, 6] = mul(%x, %folded.half)

Parameters are no constants: they are trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.size import probe_of
from irprune.ir.symbols import names_in
from irprune.ops.registry import lookup
from irprune.passes.result import PassResult

__all__ = ["FoldConstants", "constants", "fold"]


@dataclass(frozen=True)
class FoldConstants:
    """Replace results computed from buffers, constants and sizes by stored constants.

    ``largest`` bounds the elements of one result. What is drawn at random and what no rule covers
    is left. Runs torch."""

    largest: int = 1 << 22

    def run(self, graph: Graph) -> PassResult:
        known = {node for node in constants(graph) if lookup(node) is not None}
        returned = {id(v) for v in graph.outputs}
        wanted = [
            v
            for node in graph.nodes
            if node in known
            for v in node.outputs
            if (id(v) in returned or any(user not in known for user in v.users))
            and math.prod(map(probe_of, v.shape)) <= self.largest
        ]
        fold(graph, wanted)
        kept = {id(v) for v in graph.outputs}
        dead: dict[Node, None] = {}
        for node in reversed(graph.nodes):
            if node in known and not any(
                id(v) in kept or any(u not in dead for u in v.users) for v in node.outputs
            ):
                dead[node] = None
        graph.remove_all(dead)
        return PassResult(bool(wanted))


def constants(graph: Graph) -> dict[Node, None]:
    """Nodes computed from buffers, constants and sizes alone: no graph input, no parameter, no
    symbolic size, nothing drawn at random."""
    known: dict[Node, None] = {}
    for node in graph.nodes:
        entry = lookup(node)
        if entry is not None and entry.random:
            continue
        fixed = all(
            v is None
            or (
                v.producer in known
                if v.producer is not None
                else isinstance(v, Weight) and v.kind != "parameter"
            )
            for v in node.inputs
        )
        if (
            fixed
            and all(v.type.static for v in node.outputs)
            and not any(names_in(list(node.attrs.values())))
        ):
            known[node] = None
    return known


def fold(graph: Graph, values: Sequence[Value]) -> None:
    """Let stored constants take the place of ``values``, each the result of a node and computed
    from constants alone."""
    if not values:
        return
    from irprune.run.interpret import device_of_weights, evaluate

    for value, tensor in zip(
        values, evaluate(graph, (), wanted=values, device=device_of_weights(graph)), strict=True
    ):
        held = tensor.contiguous()
        constant = Weight(f"folded.{value.name}", value.type, held.clone, "constant")
        constant.axes = value.axes
        graph.add_weight(constant)
        graph.replace(value, constant)

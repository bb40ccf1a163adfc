"""A subgraph that an attribute of a node holds: a branch, a loop's body, the function that defines
an operator."""

from __future__ import annotations

from dataclasses import dataclass

from irprune.ir.graph import Graph

__all__ = ["Body"]


@dataclass(frozen=True)
class Body:
    """A subgraph: the inputs of ``graph`` are its own, then those outside of it, of which ``outer``
    says the operands of the node (their names until all are known)."""

    graph: Graph
    outer: tuple[int | str, ...] = ()

    @property
    def name(self) -> str:
        return f"of {len(self.graph.nodes)} nodes"

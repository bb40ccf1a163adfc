"""Sizes that values decide, such as how many tokens an expert gets: a cut changes them."""

from __future__ import annotations

from irprune.ir.graph import Graph
from irprune.ir.symbols import defined_symbols, names_in
from irprune.ops.registry import lookup

__all__ = ["counted_symbols"]


def counted_symbols(graph: Graph) -> set[str]:
    """The symbols of ``graph`` for sizes that depend on the values of tensors."""
    given = {name for v in graph.inputs for name in names_in(v.type.shape)}
    found: set[str] = set()
    for node in graph.nodes:
        entry = lookup(node)
        masked = any(v is not None and v.dtype == "bool" for v in node.inputs[1:])
        if entry is None or entry.counts or (entry.indexes is not None and masked):
            found.update(name for name, _, _ in defined_symbols(node))
    # What follows has sizes of its own where those are no expressions
    for node in graph.nodes:
        read = [v.type.shape for v in node.inputs if v is not None]
        if found.intersection(names_in([*read, *node.attrs.values()])):
            found.update(name for name, _, _ in defined_symbols(node))
    return found - given

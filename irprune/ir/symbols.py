"""Symbols of sizes: which names stand in a size, and which node tells what a symbol is.

A symbol that stands in no input's shape depends on values. A node tells it while the model runs: by
the shape of a result (``nonzero``), or by the number itself where the node has the attribute
``symbol`` (``item``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from irprune.base.moved import renamed
from irprune.ir.graph import Graph, Node, Value
from irprune.ir.size import Sym, symbols

__all__ = ["backward_slice", "defined_symbols", "names_in"]

__getattr__ = renamed(__name__, {"needed": "backward_slice", "told": "defined_symbols"})


def names_in(x: Any) -> Iterator[str]:
    """The symbols in a size, or in nested lists of attributes, in order; one that stands twice
    comes twice."""
    if isinstance(x, Sym):
        yield from symbols(x)
    elif isinstance(x, (list, tuple)):
        for v in x:
            yield from names_in(v)


def defined_symbols(node: Node) -> Iterator[tuple[str, int, int | None]]:
    """Symbol, position of the result and its dimension (None: the result is the number) for the
    symbols that ``node`` tells."""
    own = node.attrs.get("symbol")
    if isinstance(own, Sym):
        yield own.name, 0, None
    for i, value in enumerate(node.outputs):
        for d, s in enumerate(value.type.shape or ()):
            if isinstance(s, Sym) and s.name:
                yield s.name, i, d


def backward_slice(graph: Graph, targets: Iterable[Value]) -> list[Node]:
    """The nodes that ``targets`` need, in order: those that they are computed from, and those that
    tell the sizes among attributes."""
    given = {name for v in graph.inputs for name in names_in(v.type.shape)}
    teller: dict[str, Node] = {}
    for node in graph.nodes:
        for name, _, _ in defined_symbols(node):
            if name not in given:
                teller.setdefault(name, node)
    wanted = {id(v) for v in targets}
    telling: set[int] = set()
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if id(node) in telling or any(id(v) in wanted for v in node.outputs):
            nodes.append(node)
            wanted.update(id(v) for v in node.inputs if v is not None)
            if teller:
                telling.update(
                    id(teller[name])
                    for name in names_in(list(node.attrs.values()))
                    if name in teller
                )
    return nodes[::-1]

"""Sizes for the symbols of an ONNX model's inputs, to run it at."""

from __future__ import annotations

from collections.abc import Iterator

from irprune.analysis.sizes import candidates, fits
from irprune.ir.graph import Graph
from irprune.ir.symbols import names_in

__all__ = ["plausible"]


def plausible(graph: Graph) -> Iterator[dict[str, int]]:
    """Sizes that were given; for others 2, which is quick, where shapes fit at it, then plausible
    ones with a batch of 2."""
    names = {name for v in graph.inputs for s in v.type.shape or () for name in names_in(s)}
    small = {name: graph.sizes.get(name, 2) for name in sorted(names)}
    if fits(graph, small) or names <= graph.sizes.keys():
        yield small
    if not names <= graph.sizes.keys():
        yield from (sizes for sizes in candidates(graph, batch=2) if sizes != small)

"""Sizes at which an ONNX file runs, where it leaves them open: shapes do not tell all that
operators refuse."""

from __future__ import annotations

from itertools import islice
from typing import Any

from irprune.analysis.sizes import candidates, example_symbols
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.run.inputs import random_inputs
from irprune.run.session import run_session

__all__ = ["sizes_that_run"]

_TRIED = 8


def sizes_that_run(graph: Graph, running: Any) -> dict[str, int]:
    """Sizes of the symbols in the inputs of ``graph``, as costs take them, or the first plausible
    ones at which the session ``running`` of its file takes random inputs; the former where it takes
    none."""
    first = example_symbols(graph)
    if all(v.type.static for v in graph.inputs):
        return first
    for sizes in (first, *islice(candidates(graph), 1, _TRIED)):
        try:
            run_session(running, random_inputs(graph, sizes, default=1))
        except IrpruneError:
            continue
        return sizes
    return first

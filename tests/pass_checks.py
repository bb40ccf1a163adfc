"""Graphs as text with seeded values, and the check of a pass by the text before and after it."""

from __future__ import annotations

import torch

from irprune.driver.instruments import Verify
from irprune.driver.registry import standard
from irprune.driver.run import run
from irprune.ir.graph import Graph, Value
from irprune.ir.parse import from_text
from irprune.ir.size import probe_of
from irprune.ops.dtypes import TO_TORCH
from irprune.run.interpret import evaluate

REGISTRY = standard()


def values(of: Value) -> torch.Tensor:
    """Seeded values of that type: positive, so that they may be variances."""
    generator = torch.Generator().manual_seed(len(of.name))
    return (
        torch.rand([probe_of(s) for s in of.shape], generator=generator)
        .add(0.5)
        .mul(4)
        .to(TO_TORCH[of.dtype])
    )


def filled(text: str, as_numpy: bool = False) -> Graph:
    """The graph of ``text`` with seeded values for its weights."""
    graph = from_text(text)
    for weight in graph.weights.values():
        array = values(weight)
        held = array.numpy() if as_numpy else array
        weight.load = lambda held=held: held
    return graph


def pipeline(graph: Graph, text: str) -> bool:
    """Run a pipeline with the verifier around every pass."""
    return run(graph, REGISTRY.parse(text), [Verify(deep=True)]).changed


def check(text: str, before: str, after: str) -> Graph:
    """``text`` makes ``after`` of ``before``, and nothing more of ``after``; on the same input both
    give the same."""
    graph = filled(before)
    assert str(graph) == before, "the text before is as it would be printed"
    inputs = [values(v) for v in graph.inputs]
    original = evaluate(graph, inputs)
    assert pipeline(graph, text)
    assert str(graph) == after
    for a, b in zip(evaluate(graph, inputs), original, strict=True):
        torch.testing.assert_close(a, b)
    assert not pipeline(graph, text.split(",")[0]), "a second run finds nothing to do"
    return graph

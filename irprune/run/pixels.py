"""The range of pixels that a model takes, where its own first layers make it plain."""

from __future__ import annotations

import torch

from irprune.ir.graph import Graph, Value, Weight
from irprune.ir.size import Sym
from irprune.ops.dtypes import TO_TORCH
from irprune.ops.registry import operand_as
from irprune.run.interpret import evaluate

__all__ = ["plain_pixels"]

# What prepared pixels reach at most, and between black and white at least
_MOST, _LEAST = 4.0, 0.5
_RANGES = ((0.0, 1.0), (0.0, 255.0))


def plain_pixels(graph: Graph) -> tuple[float, float] | None:
    """What black and white are to be for a model whose only input is pictures: 0 and 255 of bytes,
    and the range that operators before the first layer bring to about -1..1. None where they do
    nothing, or where it remains open."""
    if len(graph.inputs) != 1:
        return None
    value = graph.inputs[0]
    if value.dtype == "u8":
        return (0.0, 255.0)
    first = _first_read(graph)
    if first is None or first is value:
        return None
    found = [r for r in _RANGES if _fits(graph, first, r)]
    return found[0] if len(found) == 1 else None


def _first_read(graph: Graph) -> Value | None:
    """What the first layer with a weight reads."""
    for node in graph.nodes:
        weight = operand_as(node, "weight")
        if isinstance(weight, Weight) and weight.rank > 1:
            return operand_as(node, "data") or node.inputs[0]
    return None


def _fits(graph: Graph, first: Value, pixels: tuple[float, float]) -> bool:
    """Whether black and white of this range come out as numbers that layers are trained on."""
    value = graph.inputs[0]
    shape = [
        32 if isinstance(s, Sym) and d > 1 else 1 if isinstance(s, Sym) else int(s)
        for d, s in enumerate(value.shape)
    ]
    ends = []
    for level in pixels:
        flat = torch.full(shape, level, dtype=TO_TORCH[value.dtype])
        try:
            (made,) = evaluate(graph, [flat], wanted=[first])
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False
        if not made.is_floating_point() or not bool(torch.isfinite(made).all()):
            return False
        ends.append(made.double())
    black, white = ends
    reach = max(float(black.abs().max()), float(white.abs().max()))
    return reach <= _MOST and float((white - black).abs().mean()) >= _LEAST

"""A batch of model inputs, and how batches are cut into rows and put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from irprune.ir.graph import Graph
from irprune.ir.size import Sym, same
from irprune.run.interpret import evaluate

__all__ = ["Batch", "any_batch", "batch_size", "rows_of", "split_rows"]


@dataclass(frozen=True)
class Batch:
    """``inputs`` are in the order of the graph's inputs; ``extra`` is what the item held beyond
    them (labels), for the loss."""

    inputs: tuple[torch.Tensor, ...]
    extra: tuple[Any, ...] = ()
    rows: slice | None = None  # which rows of the item this is, where it was cut into pieces
    number: int = 0  # of the chunk, counted over all of the data

    @property
    def size(self) -> int:
        """The number of samples: the first dimension of the first input."""
        return int(self.inputs[0].shape[0]) if self.inputs and self.inputs[0].dim() else 1


def split_rows(batch: Batch, count: int) -> list[Batch]:
    """``batch`` in pieces of at most ``count`` samples."""
    starts = range(0, max(1, batch.size), count)
    return [rows_of(batch, slice(at, min(at + count, batch.size))) for at in starts]


def rows_of(made: Batch, rows: slice) -> Batch:
    own = made.size

    def cut(x: Any) -> Any:
        if isinstance(x, (torch.Tensor, np.ndarray)) and x.ndim and x.shape[0] == own:
            return x[rows]
        return {k: cut(v) for k, v in x.items()} if isinstance(x, dict) else x

    return Batch(
        tuple(cut(x) for x in made.inputs), tuple(cut(x) for x in made.extra), rows, made.number
    )


def batch_size(graph: Graph) -> Any:
    """The first dimension that all inputs share; None where they do not."""
    sizes = [v.shape[0] for v in graph.inputs if v.rank]
    if not sizes or len(sizes) != len(graph.inputs) or any(not same(s, sizes[0]) for s in sizes):
        return None
    return sizes[0]


def any_batch(graph: Graph, first: Batch) -> bool:
    """Whether two samples at once give what each gives alone."""
    own = batch_size(graph)
    if own is None:
        return False
    if isinstance(own, Sym):
        return True
    own = int(own)
    inputs = [x[torch.arange(own) % x.shape[0]] for x in first.inputs]
    turned = [x.roll(1, -1) if x.is_floating_point() else x for x in inputs]
    try:
        alone, other = evaluate(graph, inputs), evaluate(graph, turned)
        both = evaluate(graph, [torch.cat(pair) for pair in zip(inputs, turned, strict=True)])
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False  # a size is written down somewhere in the graph
    return all(
        a.dim() > 0
        and b.shape == (2 * a.shape[0], *a.shape[1:])
        and torch.allclose(torch.cat((a, o)).float(), b.float(), rtol=1e-3, atol=1e-4)
        for a, o, b in zip(alone, other, both, strict=True)
    )

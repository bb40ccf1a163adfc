"""Models whose output are logits over a vocabulary that their inputs index: what such an output has
lost is told by the distributions of the next token, not by squared differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from irprune.ir.axis import Axis, find, leaves
from irprune.ir.dtype import is_real
from irprune.ir.graph import Graph, Value, Weight
from irprune.ir.size import Sym, probe_of, same
from irprune.run.inputs import index_limits

if TYPE_CHECKING:
    import torch

    from irprune.run.batch import Batch

__all__ = ["Logits", "divergence", "logits_of", "same_choice", "shortened", "surprise"]

LENGTH = 96  # tokens of a row that losses are compared on, where the length is open


@dataclass(frozen=True)
class Logits:
    """Output ``output`` of a graph is logits [batch, length, vocabulary]; input ``mask`` [batch,
    length] is 0 where a token is padding, None where there is no such input. ``stream`` are the
    leaves of the width that the logits are a product with: the residual stream's. Input ``tokens``
    [batch, length] are the token numbers that they stand beside, None where there are none."""

    output: int
    mask: int | None
    stream: tuple[Axis, ...]
    tokens: int | None = None

    def weights(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Which tokens count [batch, length]; None for all of them."""
        if self.mask is None or inputs[self.mask].dim() != 2:
            return None
        return inputs[self.mask] != 0


def logits_of(graph: Graph) -> Logits | None:
    """How ``graph`` gives logits: one of its outputs is of floating point, has three dimensions,
    and the last is as large as the table that an integer input indexes. None of other models."""
    sizes = {
        probe_of(size)
        for value, size in index_limits(graph).items()
        if any(value is v for v in graph.inputs) and not isinstance(size, Sym)
    }
    for number, value in enumerate(graph.outputs):
        if not is_real(value.dtype) or value.type.shape is None or value.rank != 3:
            continue
        size = value.shape[-1]
        if isinstance(size, int) and size > 2 and size in sizes:
            return Logits(number, _mask(graph, value), _stream(value), _tokens(graph, value))
    return None


def _tokens(graph: Graph, logits: Value) -> int | None:
    """The input of integers that indexes a table as large as the vocabulary, [batch, length] as the
    logits are."""
    limits = index_limits(graph)
    for number, value in enumerate(graph.inputs):
        fits = value.rank == 2 and value in limits and limits[value] == logits.shape[-1]
        if fits and all(same(a, b) for a, b in zip(value.shape, logits.shape[:2], strict=True)):
            return number
    return None


def _mask(graph: Graph, logits: Value) -> int | None:
    for number, value in enumerate(graph.inputs):
        if "attention_mask" in value.name and value.rank == 2:
            return number
    return None


def _stream(value: Value) -> tuple[Axis, ...]:
    """The leaves of what the product that made ``value`` sums over."""
    node = value.producer
    while node is not None and not any(isinstance(v, Weight) and v.rank == 2 for v in node.inputs):
        before = next((v for v in node.inputs if v is not None), None)
        node = before.producer if before is not None else None
    if node is None:
        return ()
    own = {find(x) for v in node.outputs for a in v.axes or () for x in leaves(a)}
    table = next(v for v in node.inputs if isinstance(v, Weight) and v.rank == 2)
    read = (find(x) for a in table.axes or () for x in leaves(a))
    return tuple(dict.fromkeys(x for x in read if x not in own))


def shortened(graph: Graph, batch: Batch, length: int = LENGTH) -> Batch:
    """``batch`` with the first ``length`` tokens of each row alone, where every input is [batch,
    length] with an open length."""
    if not all(v.rank == 2 and isinstance(v.shape[1], Sym) for v in graph.inputs):
        return batch
    return replace(batch, inputs=tuple(t[:, :length] for t in batch.inputs))


def divergence(
    ours: torch.Tensor, theirs: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[float, int]:
    """The sum over tokens of the Kullback-Leibler divergence of the distributions that logits
    ``ours`` stand for from those of ``theirs`` [batch, length, vocabulary], in nats, and how many
    tokens there are. ``weights`` [batch, length] says which of them count."""
    total, count = 0.0, 0
    # row by row, since vocabularies are large
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if weights is not None:
            a, b = a[weights[number]], b[weights[number]]
        total += float(_rowwise(a.float(), b.float()).sum())
        count += len(a)
    return total, count


def surprise(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """The sum over tokens but the first of each row, in nats, of what ``logits`` [batch, length,
    vocabulary] give for the token ``ids`` [batch, length] that came next."""
    import torch

    return float(
        torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
        )
    )


def same_choice(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """At how many positions both logits [batch, length, vocabulary] have the same likeliest
    token."""
    return int((ours.argmax(-1) == theirs.argmax(-1)).sum())


def _rowwise(a: torch.Tensor, b: torch.Tensor) -> Any:
    mine, right = a.log_softmax(-1), b.log_softmax(-1)
    return (right.exp() * (right - mine)).sum(-1)

"""What a model takes in memory, and what ranks that train it send each other, in bytes: sums of
products of axis sizes like the other costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from irprune.analysis.cost import Counts, Factored, Polynomial
from irprune.analysis.kinds import by_use, kinds
from irprune.ir.axis import Axis, leaves
from irprune.ir.dtype import item_bytes
from irprune.ir.graph import Graph, Node, Weight
from irprune.ops.registry import lookup

__all__ = ["Communication", "Footprint", "Memory"]

_SPREAD = ("heads", "kv groups", "head_dim", "MLP width", "experts' width")


@dataclass(frozen=True)
class Memory:
    """Bytes in memory.

    Attributes:
        weights: All stored arrays.
        gradients: One number for each that is trained, in its own element type.
        optimizer: The two moments of Adam and AdamW, in the element type of the weight.
        activations: Values alive at the worst moment of a call without gradients.
        saved: Results of all operators that make new values: a bound of what the backward pass
            reads, without checkpointing.
        cache: Keys and values of one token over all attention operators.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    saved: int
    cache: int


@dataclass(frozen=True)
class Communication:
    """Bytes that one rank of many sends in a training step; times (N - 1) / N for N ranks, which
    pass messages around a ring.

    Attributes:
        ddp: DistributedDataParallel: one all-reduce of the gradients.
        fsdp: FSDP2: weights gathered for forward and for backward, gradients scattered.
        tensor: Tensor parallel: results of the layers that close an attention or an MLP, reduced
            once in forward, and their inputs' gradients once in backward.
    """

    ddp: int
    fsdp: int
    tensor: int


class Footprint:
    """The polynomials behind ``Memory`` and ``Communication`` of an analysed graph; ``factored`` is
    that of its ``Costs``."""

    def __init__(self, graph: Graph, factored: Factored) -> None:
        self.trained, self.saved, self.cache, self.closing = (
            Polynomial(factored) for _ in range(4)
        )
        for weight in graph.weights.values():
            if weight.trainable:
                self.trained.add(weight.axes or (), item_bytes(weight.dtype))
        spread = _spread(graph)
        for node in graph.nodes:
            entry = lookup(node)
            if entry is None or not entry.is_view:
                for v in node.outputs:
                    if v.type.shape is not None:
                        self.saved.add(v.axes or (), item_bytes(v.dtype))
            for axes in _cached(node):
                self.cache.add(axes, item_bytes(node.outputs[0].dtype))
            if _closes(node, spread):
                self.closing.add(node.out.axes or (), item_bytes(node.out.dtype))

    def memory(self, counts: Counts, stored: int, activation: int) -> Memory:
        """The memory under ``counts``, with bytes of all stored arrays and of activations."""
        trained = self.trained.at(counts)
        return Memory(
            stored, trained, 2 * trained, activation, self.saved.at(counts), self.cache.at(counts)
        )

    def communication(self, counts: Counts) -> Communication:
        """What is sent under ``counts``. A reduction around a ring sends each byte twice, gathering
        and scattering once."""
        trained = self.trained.at(counts)
        return Communication(2 * trained, 3 * trained, 2 * 2 * self.closing.at(counts))


def _spread(graph: Graph) -> set[Axis]:
    """The leaves that tensor parallel divides among ranks."""
    used = by_use(graph)
    found = {**kinds(graph, used), **used}
    return {x for a, kind in found.items() if kind in _SPREAD for x in leaves(a)}


def _cached(node: Node) -> Iterator[tuple[Axis, ...]]:
    """The sizes of a token's keys and of its values, where ``node`` is an attention: those of the
    heads that share none, and of a head."""
    entry = lookup(node)
    if entry is None or entry.kinds is None:
        return
    said = list(entry.kinds(node))
    found = {
        kind: dict.fromkeys(x for a, k in said if k == kind for x in leaves(a))
        for kind in ("kv groups", "heads")
    }
    heads = found["kv groups"] or found["heads"]
    for width, kind in said if heads else ():
        if kind == "head_dim":  # of keys, which is that of queries, and of values
            yield (*heads, width)


def _closes(node: Node, spread: set[Axis]) -> bool:
    """Whether ``node`` is a layer that sums over what is divided among ranks."""
    weights = [v for v in node.inputs if isinstance(v, Weight) and v.rank == 2 and v.trainable]
    data = node.inputs[0] if node.inputs else None
    if len(weights) != 1 or data is None or not data.axes or not node.out.axes:
        return False
    return any(x in spread for x in leaves(data.axes[-1])) and not any(
        x in spread for x in leaves(node.out.axes[-1])
    )

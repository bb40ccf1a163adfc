"""How much memory a graph's activations take when it runs, so that only as many samples run at once
as there is room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from irprune.ir.graph import Graph, Node, Value
from irprune.run.interpret import evaluate
from irprune.run.precision import computing_type

__all__ = ["Activations", "activations"]


@dataclass(frozen=True)
class Activations:
    """Bytes that one sample's activations take: ``largest`` those that are held at once when each
    goes after its last use, ``total`` all of them, which a derivative needs."""

    largest: int
    total: int

    def fitting(self, memory: int, *, derived: bool = False) -> int:
        """How many samples run at once in ``memory`` bytes, one at least."""
        return max(1, memory // max(1, self.total if derived else self.largest))


def activations(graph: Graph, inputs: tuple[torch.Tensor, ...], samples: int) -> Activations:
    """Those of each of ``samples`` samples, measured by running ``inputs``."""
    half = computing_type(graph)
    sizes: dict[Value, int] = {v: _bytes(t) for v, t in zip(graph.inputs, inputs, strict=True)}
    order: list[Node] = []

    def hook(node: Node, operands: list[Any], run: Any) -> Any:
        made = run(*operands)
        many = list(made) if isinstance(made, (list, tuple)) else [made]
        taken = {_place(t) for t in operands if isinstance(t, torch.Tensor)}
        for v, t in zip(node.outputs, many, strict=False):
            own = isinstance(t, torch.Tensor) and _place(t) not in taken
            sizes[v] = _bytes(t) if own else 0
        order.append(node)
        return made

    evaluate(graph, inputs, dtype=half, hook=hook)
    last: dict[Value, int] = {}
    for i, node in enumerate(order):
        last.update((v, i) for v in node.inputs if v is not None)
    now = sum(sizes[v] for v in graph.inputs)
    largest = now
    for i, node in enumerate(order):
        now += sum(sizes[v] for v in node.outputs if v in sizes)
        largest = max(largest, now)
        now -= sum(sizes[v] for v in dict.fromkeys(node.inputs) if v in sizes and last[v] == i)
    count = max(1, samples)
    return Activations(-(-largest // count), -(-sum(sizes.values()) // count))


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(made: Any) -> int:
    if not isinstance(made, torch.Tensor):
        return 0
    return made.nbytes

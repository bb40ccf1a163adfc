"""Where forward records no gradients: what ``detach`` and ``torch.no_grad`` mean for training is
part of the graph, as operators that stop gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from irprune.ir.dtype import element_type
from irprune.ir.graph import Graph, Value, Weight
from irprune.ops.registry import lookup

__all__ = ["GradientStops", "carries_gradient", "without_idle_stops"]


class GradientStops:
    """The values that a run computes while no gradients are recorded.

    Args:
        stopped: records the call that stops the gradient of a value, and gives its result.
    """

    def __init__(self, stopped: Callable[[Value], Value]) -> None:
        self._stopped = stopped
        self._silent: set[Value] = set()
        self._twins: dict[Value, Value] = {}

    def made(self, results: Any) -> None:
        """``results`` were just computed."""
        if not torch.is_grad_enabled():
            self._silent.update(v for v in pytree.tree_leaves(results) if isinstance(v, Value))

    def read(self, operands: Any) -> Any:
        """``operands`` as a call takes them: where gradients are recorded, those that were computed
        without pass none on."""
        if not self._silent or not torch.is_grad_enabled():
            return operands
        return pytree.tree_map_only(Value, self.crossed, operands)

    def crossed(self, value: Value) -> Value:
        """``value``, or where it was computed without gradients, what passes none on to it."""
        if value not in self._silent:
            return value
        if value not in self._twins:
            self._twins[value] = self._stopped(value)
        return self._twins[value]


def _is_continuous(value: Value) -> bool:
    kind = element_type(value.dtype) if value.type.shape is not None else None
    return kind is not None and (kind.is_float or kind.is_complex)


def carries_gradient(value: Value, of_inputs: bool = True) -> bool:
    """Whether a gradient of ``value`` can reach a parameter, or where ``of_inputs`` an input."""
    seen: set[Value] = set()
    todo = [value]
    while todo:
        v = todo.pop()
        if v in seen or not _is_continuous(v):
            continue
        seen.add(v)
        node = v.producer
        if isinstance(v, Weight):
            if v.kind == "parameter":
                return True
        elif node is None:
            if of_inputs:
                return True
        else:
            entry = lookup(node)
            if entry is None or not entry.stops:
                todo += [x for x in node.inputs if x is not None]
    return False


def without_idle_stops(graph: Graph) -> None:
    """Mark what stops a gradient that there cannot be as the copy that it is."""
    carrying: set[Value] = {
        v
        for v in (*graph.inputs, *graph.weights.values())
        if _is_continuous(v) and (not isinstance(v, Weight) or v.kind == "parameter")
    }
    for node in graph.nodes:
        entry = lookup(node)
        carries = any(v in carrying for v in node.inputs if v is not None)
        if entry is not None and entry.stops:
            if not carries:
                node.attrs["idle"] = True
        elif carries:
            carrying.update(v for v in node.outputs if _is_continuous(v))

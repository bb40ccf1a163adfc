"""slice: rewrite the graph to the kept indices.

Before: ``%w: f32[64, 32]``, ``view(%x) {shape=[1, 64]}``. After, with half of both axes kept: ``%w: f32[32, 16]``, ``{shape=[1, 32]}``.
Weights are sliced when they are loaded; attributes that hold sizes are rewritten by the operator table; tensors made from
constants alone are folded where an axis of them shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irprune.ir.graph import Graph, Node, TensorType, Value, Weight
from irprune.ir.kept import Indices, Kept
from irprune.ops.registry import lookup

__all__ = ["Slice", "kept_indices", "take"]


@dataclass(frozen=True)
class Slice:
    """Apply ``graph.kept``; the graph's axes are spent afterwards."""

    def run(self, graph: Graph) -> bool:
        kept = graph.kept
        if kept is None:
            raise ValueError("slice needs a choice: run choose, or set graph.kept")
        if not kept.choice:
            return False
        opened = graph.axes.opened if graph.axes is not None else {}
        for node in [n for n in graph.nodes if opened and n.out.name in opened]:
            if any(kept.changes(a) for v in node.outputs for a in v.axes or ()):
                fold(graph, node)
        for node in graph.nodes:
            entry = lookup(node)
            if entry is not None and entry.resize is not None and _touched(node, kept):
                entry.resize(node, kept)
        for weight in graph.weights.values():
            indices = kept_indices(weight, kept)
            if any(i is not None for i in indices):
                weight.load = _sliced(weight.load, indices)
        for value in graph.values():
            if value.axes and any(kept.changes(a) for a in value.axes):
                value.type = TensorType(value.dtype, tuple(kept.size(a) for a in value.axes))
        for value in graph.values():
            value.axes = None
        graph.axes, graph.kept, graph.scores = None, None, {}
        return True


def _touched(node: Node, kept: Kept) -> bool:
    return any(kept.changes(a) for v in (*node.inputs, *node.outputs) if v is not None for a in v.axes or ())


def kept_indices(weight: Weight, kept: Kept) -> list[Indices | None]:
    """For each dimension of ``weight`` the kept indices in terms of the original, None where all are."""
    return [kept.kept(a) if kept.changes(a) else None for a in weight.axes or ()]


def take(array: Any, indices: Sequence[Indices | None]) -> Any:
    """``array`` (torch or numpy) at ``indices`` along each dimension; a copy."""
    if all(index is None for index in indices):
        return array
    if not hasattr(array, "detach"):
        return _take(array, indices)
    import torch

    array = array.detach()
    if array.device.type == "cpu" and array.layout is torch.strided and array.element_size() in _INTEGERS:
        # numpy copies runs where torch copies elements, and neither waits for other threads nor minds what the bits mean
        raw = array.view(getattr(torch, _INTEGERS[array.element_size()])).numpy()
        return torch.from_numpy(_take(raw, indices)).view(array.dtype)
    for dim, index in enumerate(indices):
        if index is not None:
            array = array.index_select(dim, torch.from_numpy(index).to(array.device))
    return array


_INTEGERS = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}


def _take(array: Any, indices: Sequence[Indices | None]) -> Any:
    cut = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    rows = indices[0]
    if rows is None or len(cut) == 1 or array.size <= _BLOCK:
        for dim, index in cut:
            array = array.take(index, axis=dim)
        return array
    *middle, (last, columns) = cut[1:]
    made = np.empty([n if i is None else len(i) for n, i in zip(array.shape, indices, strict=True)], dtype=array.dtype)
    step = max(1, _BLOCK * array.shape[0] // array.size)
    for at in range(0, len(rows), step):  # what is taken between the dimensions stays in cache
        block = array.take(rows[at:at + step], axis=0)
        for dim, index in middle:
            block = block.take(index, axis=dim)
        block.take(columns, axis=last, out=made[at:at + step], mode="clip")
    return made


_BLOCK = 1 << 16  # elements


def _sliced(load: Callable[[], Any], indices: list[Indices | None]) -> Callable[[], Any]:
    return lambda: take(load(), indices)


def fold(graph: Graph, node: Node) -> None:
    """Replace the results of ``node``, computed from constants alone, by constants."""
    from irprune.validate.interpret import evaluate

    for value, tensor in zip(list(node.outputs), evaluate(graph, (), wanted=node.outputs), strict=True):
        constant = Weight(f"folded.{value.name}", value.type, lambda t=tensor: t, "constant")
        constant.axes = value.axes
        graph.add_weight(constant)
        replace(graph, value, constant)


def replace(graph: Graph, old: Value, new: Value) -> None:
    """Let all readers of ``old``, the graph's outputs among them, read ``new``."""
    old.replace_all_uses(new)
    graph.outputs = [new if v is old else v for v in graph.outputs]

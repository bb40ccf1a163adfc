"""slice: rewrite the graph to the kept indices.

Before, with half of c0 kept::

    axis c0 = 64 keep=[0:32]
    %w: f32[c0, 32] = parameter
    %h: f32[1, c0] = linear(%x, %w)
    %y: f32[1, c0, 1] = reshape(%h) {shape=[1, 64, 1]}

After::

    %w: f32[32, 32] = parameter
    %h: f32[1, 32] = linear(%x, %w)
    %y: f32[1, 32, 1] = reshape(%h) {shape=[1, 32, 1]}

Weights are sliced when they are loaded; attributes that hold sizes are rewritten by the operator table; tensors made from
constants alone are folded where an axis of them shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irprune.errors import IrpruneError
from irprune.ir.graph import Graph, Node, TensorType, Value
from irprune.ir.kept import Indices, Kept
from irprune.ops.registry import lookup
from irprune.passes.canonicalize import loosened
from irprune.passes.fold_constants import fold

__all__ = ["Slice", "kept_indices", "take"]


@dataclass(frozen=True)
class Slice:
    """Apply ``graph.kept``; the graph's axes are spent afterwards."""

    def run(self, graph: Graph) -> bool:
        kept = graph.kept
        if kept is None:
            raise IrpruneError("nothing is chosen", "slice", "run choose first, or set graph.kept")
        if not kept.choice:
            return False
        opened = graph.axes.opened if graph.axes is not None else {}
        folded = [n for n in graph.nodes if opened and n.out.name in opened and any(_shrinks(v, kept) for v in n.outputs)]
        fold(graph, [v for n in folded for v in n.outputs])
        graph.remove_all(folded)
        for node in list(graph.nodes):  # a rule may add nodes around its own
            entry = lookup(node)
            if entry is not None and entry.resize is not None and _touched(node, kept):
                entry.resize(node, kept)
        for weight in graph.weights.values():
            indices = kept_indices(weight, kept)
            if any(i is not None for i in indices):
                weight.load = _sliced(weight.load, indices)
        for value in graph.values():
            if value.type.shape is not None and _shrinks(value, kept):  # an unused result may have no type
                sizes = zip(value.axes or (), value.shape, strict=True)
                value.type = TensorType(value.dtype, tuple(kept.size(a) if kept.changes(a) else s for a, s in sizes))
        for value in graph.values():
            value.axes = None
        loosened(graph)  # an attention of narrower values may lay out its result in another way
        graph.axes, graph.kept, graph.scores = None, None, {}
        return True


def _touched(node: Node, kept: Kept) -> bool:
    return any(_shrinks(v, kept) for v in (*node.inputs, *node.outputs) if v is not None)


def _shrinks(value: Value, kept: Kept) -> bool:
    return any(kept.changes(a) for a in value.axes or ())


def kept_indices(value: Value, kept: Kept) -> list[Indices | None]:
    """For each dimension of ``value`` the kept indices in terms of the original, None where all are.

    Where they depend on another dimension they have as many dimensions as ``value``, to broadcast against what is kept of it: for the
    weight [g o, i, k, k] of a grouped convolution whose inputs i are chosen in each group, [None or kept g o, [kept g o, kept i, 1, 1],
    None, None].
    """
    axes = value.axes or ()
    found: dict[int, Indices | None] = {}

    def along(dim: int) -> Indices | None:
        if dim not in found:
            a = axes[dim]
            found[dim] = None if not kept.changes(a) else within(dim) if kept.table(a).outer else kept.kept(a)
        return found[dim]

    def within(dim: int) -> Indices:
        mask = kept.present(axes, dim)
        at = []  # for every dimension where in the mask what is kept lies
        for d, n in enumerate(mask.shape):
            index = along(d) if d != dim and n != 1 else np.zeros(1, dtype=np.int64)
            at.append(_spread(np.arange(n) if index is None else index, d, len(axes)))
        rows = np.moveaxis(mask, dim, -1)[(*at[:dim], *at[dim + 1:])]  # of size 1 along dim, and all of dim behind
        chosen: Indices = np.nonzero(rows)[-1].reshape(*rows.shape[:-1], -1)
        return chosen.swapaxes(dim, -1)[..., 0]

    return [along(dim) for dim in range(len(axes))]


def _spread(index: Indices, dim: int, rank: int) -> Indices:
    """``index`` as an array of ``rank`` dimensions."""
    return index if index.ndim == rank > 1 else index.reshape([-1 if d == dim else 1 for d in range(rank)])


def take(array: Any, indices: Sequence[Indices | None]) -> Any:
    """``array`` (torch or numpy) at ``indices`` (see ``kept_indices``) along each dimension; a copy."""
    if all(index is None for index in indices):
        return array
    if array.ndim > 1 and (tied := [d for d, index in enumerate(indices) if index is not None and index.ndim > 1]):
        return _take_tied(array, indices, tied)
    if not hasattr(array, "detach"):
        return _take(array, indices)
    import torch

    array = array.detach()
    if array.device.type == "cpu" and array.layout is torch.strided and array.element_size() in _INTEGERS:
        # numpy copies runs where torch copies elements, and waits for no other threads; what it has no name for it takes as bits
        if str(array.dtype) in _SHARED:
            return torch.from_numpy(_take(array.numpy(), indices))
        raw = array.view(getattr(torch, _INTEGERS[array.element_size()])).numpy()
        return torch.from_numpy(_take(raw, indices)).view(array.dtype)
    for dim, index in enumerate(indices):
        if index is not None:
            array = array.index_select(dim, torch.from_numpy(index).to(array.device))
    return array


_SHARED = ("torch.float32", "torch.float64", "torch.float16", "torch.int64", "torch.int32")
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


def _take_tied(array: Any, indices: Sequence[Indices | None], tied: Sequence[int]) -> Any:
    """Where the indices along the dimensions ``tied`` depend on others, all from the first to the last of these are taken as one."""
    shape, rank = tuple(array.shape), array.ndim
    bound = [d for d in range(rank) if d in tied or any(indices[t].shape[d] != 1 for t in tied)]  # type: ignore[union-attr]
    lo, hi = bound[0], bound[-1] + 1
    flat: Any = 0
    for d in range(lo, hi):
        index = indices[d]
        flat = flat * shape[d] + _spread(np.arange(shape[d]) if index is None else index, d, rank)
    flat = flat.reshape(flat.shape[lo:hi])
    made = take(array.reshape(*shape[:lo], -1, *shape[hi:]), [*indices[:lo], flat.reshape(-1), *indices[hi:]])
    return made.reshape(*made.shape[:lo], *flat.shape, *made.shape[lo + 1:])


def _sliced(load: Callable[[], Any], indices: list[Indices | None]) -> Callable[[], Any]:
    return lambda: take(load(), indices)

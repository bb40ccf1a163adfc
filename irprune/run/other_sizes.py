"""The example call at other sizes, for what is proven or exported with open sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from irprune.ir.graph import Graph
from irprune.ir.size import Sym, evaluate, symbols

__all__ = ["at_least", "other_sizes", "resized"]

Call = tuple[tuple[Any, ...], dict[str, Any]]

_LARGE = 16  # from here on another size is tried below the example's first: it costs less


def _symbols(graph: Graph) -> dict[str, bool]:
    """The symbols in the inputs' shapes, and whether each is a batch: the first dimension."""
    out: dict[str, bool] = {}
    for value in graph.inputs:
        for d, size in enumerate(value.type.shape or ()):
            for name in symbols(size):
                out[name] = out.get(name, True) and d == 0
    return out


def _fits(graph: Graph, sizes: Mapping[str, int]) -> bool:
    """Whether the guards hold, and every size is positive."""
    shapes = [[evaluate(s, sizes) for s in v.type.shape or ()] for v in graph.inputs]
    own = {name: shapes[i][d] for name, (i, d) in graph.places.items()}
    positive = all(n > 0 for shape in shapes for n in shape)
    return positive and all(g.holds({**sizes, **own}) for g in graph.guards)


def other_sizes(graph: Graph) -> Iterator[dict[str, int]]:
    """Sizes other than the example's to try, best first: another batch with other lengths and image
    sizes, then another batch alone. None where no size is open."""
    kinds = _symbols(graph)
    if not kinds or not kinds.keys() <= graph.sizes.keys():
        return  # of sizes that torch.export left open the guards are not known
    example = {name: graph.sizes[name] for name in kinds}
    seen = [example]
    for k in range(5):
        for some in (1, 0):  # another batch too; the batch as it is
            tried = {
                name: (n + 1 if some else n) if kinds[name] else _others(n)[k]
                for name, n in example.items()
            }
            if tried not in seen and _fits(graph, tried):
                seen.append(tried)
                yield tried
    for more in (1, -1):
        alone = {name: n + more if kinds[name] else n for name, n in example.items()}
        if alone not in seen and _fits(graph, alone):
            seen.append(alone)
            yield alone


def _others(size: int) -> tuple[int, ...]:
    if size >= 4 * _LARGE:
        return size // 4, size // 2, 2 * size, size - 1, size + 1
    if size >= _LARGE:
        return size // 2, 2 * size, size - 1, size + 1, size + size // 2
    return size + 1, 2 * size, max(size - 1, 1), size + 2, 3 * size


def at_least(graph: Graph, least: int) -> dict[str, int] | None:
    """Sizes of which none is below ``least``, the example's where they are not; None where the
    guards forbid that."""
    sizes = {name: max(graph.sizes.get(name, 0), least) for name in _symbols(graph)}
    return sizes if _fits(graph, sizes) else None


def resized(graph: Graph, places: Sequence[Any], call: Call, sizes: Mapping[str, int]) -> Call:
    """``call`` with inputs of these sizes: elements repeat, or are left out, at the end of each
    dimension. ``places`` says for each leaf which input of ``graph`` it is, if any."""
    leaves, spec = pytree.tree_flatten(call)
    made = []
    for leaf, place in zip(leaves, places, strict=True):
        if isinstance(leaf, torch.Tensor) and isinstance(place, int):
            shape = graph.inputs[place].type.shape or ()
            for d, size in enumerate(shape):
                if isinstance(size, Sym):
                    index = torch.arange(evaluate(size, sizes), device=leaf.device)
                    leaf = leaf.index_select(d, index % leaf.shape[d])
        made.append(leaf)
    out: Call = pytree.tree_unflatten(made, spec)
    return out

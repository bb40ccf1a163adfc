"""The example call at other sizes, for what is proven or exported with open sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from irprune.ir.graph import Graph
from irprune.ir.size import Sym, evaluate
from irprune.run.tried_sizes import guards_hold, open_symbols, tried_sizes

__all__ = ["at_least", "other_sizes", "resized"]

Call = tuple[tuple[Any, ...], dict[str, Any]]


def other_sizes(graph: Graph) -> Iterator[dict[str, int]]:
    """Sizes other than the example's to try, best first: another batch with other lengths and image
    sizes, then another batch alone. None where no size is open."""
    kinds = open_symbols(graph)
    if not kinds or not kinds.keys() <= graph.sizes.keys():
        return  # of sizes that torch.export left open the guards are not known
    yield from tried_sizes(graph, graph.sizes)


def at_least(graph: Graph, least: int) -> dict[str, int] | None:
    """Sizes of which none is below ``least``, the example's where they are not; None where the
    guards forbid that."""
    sizes = {name: max(graph.sizes.get(name, 0), least) for name in open_symbols(graph)}
    return sizes if guards_hold(graph, sizes) else None


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

"""Which tensors of a file were learned, by what its nodes do with them: no file says it."""

from __future__ import annotations

import numpy as np

from irprune.ir.graph import Graph, Node, Weight
from irprune.ops.registry import lookup, quantised_in, readers_of, role_of

__all__ = ["tell_constants"]


def tell_constants(graph: Graph) -> None:
    """A file does not say what was learned: a tensor that is only compared, selected from or
    written into was not, nor were the ones and zeros that exporters give to the norm of groups
    (an instance norm of what was reshaped)."""
    for weight in graph.weights.values():
        readers, seen = list(weight.users), set(weight.users)
        while readers and all(_lays_out(n) or _compares(n) for n in readers):
            readers = [
                u
                for n in readers
                if not _compares(n)
                for v in n.outputs
                for u in v.users
                if u not in seen
            ]
            seen.update(readers)
        if not readers and weight.users:
            weight.kind, weight.trainable = "constant", False
        elif (
            weight.dtype in ("i8", "u8", "i4", "u4")
            and weight.rank > 1
            and any(_learned(n, i) for n, i in readers_of(weight))
        ):
            weight.kind = "parameter"
    for node in graph.nodes:
        made = node.operand(0).producer if node.attrs.get("use_input_stats") else None
        for value in node.inputs[1:] if made is not None and _is_view(made) else ():
            if isinstance(value, Weight) and len(np.unique(value.load())) == 1:
                value.kind, value.trainable = "constant", False


def _is_view(node: Node) -> bool:
    entry = lookup(node)
    return entry is not None and entry.is_view


def _lays_out(node: Node) -> bool:
    """Whether what ``node`` makes holds the elements that it reads."""
    entry = lookup(node)
    return entry is not None and entry.rearranges


def _compares(node: Node) -> bool:
    """Whether what ``node`` reads is no learned number: a mask, a bound, what is written over."""
    entry = lookup(node)
    return entry is not None and not entry.learned


def _learned(node: Node, i: int) -> bool:
    """Whether ``node`` reads the integers of operand ``i`` as what was learned."""
    return i in quantised_in(node) or role_of(node, i) == "weight"

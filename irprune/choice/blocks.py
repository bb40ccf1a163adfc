"""Own choice per block: which leaves may keep different indices in each index of an outer axis.

A leaf d (channels of a norm group, inputs and outputs of a grouped convolution, the size of a head) that never stands
without its outer axis h may keep its own indices in each h, as long as the counts agree. Where d also stands alone (rotary
tables, a norm weight that all heads share), the choice must be the same in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy

from irprune.ir.axis import Axis, factors, find, leaves
from irprune.ir.graph import Graph, Node, Value
from irprune.ir.group import slots_of
from irprune.ir.kept import Indices, Kept
from irprune.ir.size import Sym, probe_of
from irprune.ops.registry import lookup

__all__ = ["blocks_of"]


def blocks_of(graph: Graph) -> dict[Axis, Axis]:
    """Free leaves that may be chosen per block, and the leaf they are within. Needs the axes; looks at every dimension of every value.

    The outer axis stands outside the leaf in the same dimension or is a factor of another one. Of two that always stand together the
    first is the outer one.
    """
    common: dict[Axis, dict[Axis, None]] = {}  # leaf -> the outer axes in all places so far
    slots = {a: _places(a) for value in graph.values() for a in map(find, value.axes or ()) if a.kind != "leaf"}
    order: dict[Axis, int] = {}
    for value in graph.values():
        axes = [find(a) for a in value.axes or ()]
        for dim, a in enumerate(axes):
            beside = [f for k, b in enumerate(axes) if k != dim for f in factors(b) if f.kind == "leaf"]
            for leaf, around in slots[a] if a.kind != "leaf" else [(a, [])]:
                order.setdefault(leaf, len(order))
                if leaf.reason is not None or leaf.size == 1:
                    continue
                here = dict.fromkeys([*around, *beside])
                common[leaf] = here if leaf not in common else {x: None for x in common[leaf] if x in here}
    in_weights = {x for w in graph.weights.values() for a in w.axes or () for x in leaves(a)}
    out = {}
    for leaf, outers in common.items():
        able = [x for x in outers if order[x] < order[leaf] and x.size != 1 and not isinstance(x.size, Sym)]
        if able and leaf in in_weights:
            out[leaf] = max(able, key=lambda x: probe_of(x.size))  # the first of equals: the outermost
    indexed = _indexed(graph, out)
    return {x: h for x, h in out.items() if x not in indexed}


def _places(a: Axis) -> list[tuple[Axis, list[Axis]]]:
    """Each leaf of a dimension, with the leaves that are factors outside it (their stride is the larger)."""
    return [
        (slot.leaf, [f for f, (_, stride) in zip(slot.around, slot.blocks, strict=True) if f.kind == "leaf" and stride > slot.stride])
        for slot in slots_of(a)
    ]


class _Asked(Kept):
    """Answers as if every leaf were halved, and notes which are asked for their indices away from their outer axis."""

    def __init__(self, able: Mapping[Axis, Axis]) -> None:
        super().__init__({x: range((probe_of(x.size) + 1) // 2) for x in able})
        self.able = able
        self.asked: dict[Axis, None] = {}

    def kept(self, axis: Axis) -> Indices:
        self.asked.update(dict.fromkeys(s.leaf for s in slots_of(axis) if s.leaf in self.able and self.able[s.leaf] not in s.around))
        return super().kept(axis)


def _indexed(graph: Graph, able: Mapping[Axis, Axis]) -> dict[Axis, None]:
    """Those of ``able`` whose indices some operator writes into its attributes: it writes one list for all blocks."""
    trial = _Asked(able)
    for node in graph.nodes:
        entry = lookup(node)
        if entry is not None and entry.resize is not None and any(trial.changes(a) for a in _axes_of(node)):
            shadow = copy(node)
            shadow.graph = None  # nothing may be added to the graph in this trial
            shadow.attrs = {k: list(v) if isinstance(v, list) else v for k, v in node.attrs.items()}
            try:
                entry.resize(shadow, trial)
            except Exception:  # an operator that refuses this trial cut: nothing is known of what it would ask
                trial.asked.update(dict.fromkeys(x for a in _axes_of(node) for x in leaves(a)))
    return trial.asked


def _axes_of(node: Node) -> Iterator[Axis]:
    values: Sequence[Value | None] = (*node.inputs, *node.outputs)
    for value in values:
        if value is not None:
            yield from value.axes or ()

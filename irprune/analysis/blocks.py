"""Own choice per block: which leaves may keep different indices in each index of an outer axis.

A leaf d (channels of a norm group, inputs and outputs of a grouped convolution, the size of a head)
that never stands without its outer axis h may keep its own indices in each h, as long as the counts
agree. Where d also stands alone (rotary tables, a norm weight that all heads share), the choice
must be the same in all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import chain

from irprune.ir.axis import Axis, factors, find, leaves
from irprune.ir.graph import Graph, Node, Value
from irprune.ir.group import leaf_positions
from irprune.ir.selection import Indices, Selection
from irprune.ir.size import probe_of, symbol, symbols
from irprune.ops.registry import lookup

__all__ = ["blocks_of"]


def blocks_of(graph: Graph) -> dict[Axis, Axis]:
    """Free leaves that may be chosen per block, and the leaf they are within. Needs the axes; looks
    at every dimension of every value.

    The outer axis stands outside the leaf in the same dimension or is a factor of another one, of
    static size. Of two that always stand together the first is the outer one."""
    told = {n for n, (i, d) in graph.places.items() if graph.inputs[i].shape[d] == symbol(n)}
    common: dict[Axis, dict[Axis, None]] = {}  # leaf -> the outer axes in all places so far
    slots: dict[Axis, list[tuple[Axis, list[Axis]]]] = {}
    order: dict[Axis, int] = {}

    def undecided(leaf: Axis) -> bool:
        return leaf.reason is None and leaf.size != 1 and bool(common.get(leaf, True))

    for value in graph.values():
        axes = [find(a) for a in value.axes or ()]
        inside = [list(leaves(a)) for a in axes]
        if not any(undecided(x) for many in inside for x in many):
            continue
        for x in chain.from_iterable(inside):
            order.setdefault(x, len(order))
        outside = [
            [f for f in factors(a) if f.kind == "leaf" and set(symbols(a.size)) <= told]
            for a in axes
        ]
        for dim, a in enumerate(axes):
            if a not in slots and any(map(undecided, inside[dim])):
                slots[a] = _places(a)
            for leaf, around in slots.get(a, ()):
                if undecided(leaf):
                    here = dict.fromkeys(around) | dict.fromkeys(
                        f for k, many in enumerate(outside) if k != dim for f in many
                    )
                    common[leaf] = (
                        {x: None for x in common[leaf] if x in here} if leaf in common else here
                    )
    in_weights = {x for w in graph.weights.values() for a in w.axes or () for x in leaves(a)}
    out = {}
    for leaf, outers in common.items():
        able = [x for x in outers if order[x] < order[leaf] and x.size != 1]
        if able and leaf in in_weights:
            # The first of equals: the outermost
            out[leaf] = max(able, key=lambda x: probe_of(x.size))
    joined = _indexed(graph, out) | _mixed(graph, out) if out else {}
    return {x: h for x, h in out.items() if x not in joined}


def _places(a: Axis) -> list[tuple[Axis, list[Axis]]]:
    """Each leaf of a dimension, with the leaves that are factors outside it (their stride is the
    larger)."""
    return [
        (
            slot.leaf,
            [
                f
                for f, (_, stride) in zip(slot.around, slot.blocks, strict=True)
                if f.kind == "leaf" and stride > slot.stride
            ],
        )
        for slot in leaf_positions(a)
    ]


class _RecordingSelection(Selection):
    """Answers as if every leaf were halved, and notes which are asked for their indices away from
    their outer axis."""

    def __init__(self, able: Mapping[Axis, Axis]) -> None:
        super().__init__({x: range((probe_of(x.size) + 1) // 2) for x in able})
        self.able = able
        self.asked: dict[Axis, None] = {}

    def kept(self, axis: Axis) -> Indices:
        self.asked.update(
            dict.fromkeys(
                s.leaf
                for s in leaf_positions(axis)
                if s.leaf in self.able and self.able[s.leaf] not in s.around
            )
        )
        return super().kept(axis)


def _indexed(graph: Graph, able: Mapping[Axis, Axis]) -> dict[Axis, None]:
    """Those of ``able`` whose indices some operator writes into its attributes: it writes one list
    for all blocks."""
    trial = _RecordingSelection(able)
    for node in graph.nodes:
        entry = lookup(node)
        if (
            entry is not None
            and entry.resize is not None
            and any(trial.changes(a) for a in _axes_of(node))
        ):
            shadow = copy(node)
            shadow.graph = None  # nothing may be added to the graph in this trial
            shadow.attrs = {k: list(v) if isinstance(v, list) else v for k, v in node.attrs.items()}
            try:
                entry.resize(shadow, trial)
            except (
                Exception
            ):  # an operator that refuses this trial cut: nothing is known of what it would ask
                trial.asked.update(dict.fromkeys(x for a in _axes_of(node) for x in leaves(a)))
    return trial.asked


def _mixed(graph: Graph, able: Mapping[Axis, Axis]) -> dict[Axis, None]:
    """Those of ``able`` whose blocks meet in some operator: it pairs each with each, so that a
    value has the outer axis twice beside them, or its result depends on who is present in all of
    them (a softmax over heads)."""
    out: dict[Axis, None] = {}
    memo: dict[Axis, list[Axis]] = {}
    blocks: dict[Axis, None] = dict.fromkeys(able.values())
    bare: dict[Axis, list[Axis]] = {}  # the blocks that are factors of a dimension

    def held(a: Axis) -> list[Axis]:
        if a not in memo:
            memo[a] = [x for x in leaves(a) if x in able]
            bare[a] = [f for f in factors(a) if f in blocks]
        return memo[a]

    for node in graph.nodes:
        here = dict.fromkeys(x for a in _axes_of(node) for x in held(a))
        if not here:
            continue
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        out.update(
            (x, None)
            for x in here
            if any(
                sum(able[x] in bare[a] and x not in memo[a] for a in v.axes or ()) > 1
                for v in values
            )
        )
        try:
            out.update(
                (x, None)
                for inside, others in _dependent(node)
                for x in others
                if able.get(x) in inside and x not in inside
            )
        except (
            Exception
        ):  # an operator that looks at more than shapes: nothing is known of what it mixes
            out.update(here)
    return out


class _Shape:
    """Stands for an operand where only its shape matters."""

    device = None

    def __init__(self, value: Value) -> None:
        self.shape = value.shape
        self.dtype = value.dtype

    def dim(self) -> int:
        return len(self.shape)


def _dependent(node: Node) -> list[tuple[dict[Axis, None], dict[Axis, None]]]:
    """For each operand the leaves of the dimensions in which the result of ``node`` depends on who
    is present, which the oracle would mask, and those of the others. Raises what the operator
    raises where it needs more than shapes to say so."""
    entry = lookup(node)
    found: list[tuple[dict[Axis, None], dict[Axis, None]]] = []
    if entry is None or entry.silence is None:
        return found
    if entry.letters is not None and not entry.rounds:
        return found

    def present(value: Value, dims: Sequence[int]) -> None:
        sides: tuple[dict[Axis, None], dict[Axis, None]] = ({}, {})
        for d, a in enumerate(value.axes or ()):
            sides[d not in dims].update(dict.fromkeys(leaves(a)))
        found.append(sides)

    entry.silence(
        None, node, [v and _Shape(v) for v in node.inputs], present, lambda *operands: None
    )
    return found


def _axes_of(node: Node) -> Iterator[Axis]:
    values: Sequence[Value | None] = (*node.inputs, *node.outputs)
    for value in values:
        if value is not None:
            yield from value.axes or ()

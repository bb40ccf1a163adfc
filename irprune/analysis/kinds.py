"""What a coupled group is in the field's words: attention heads, head_dim, MLP width, channels
..."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from irprune.ir.axis import Axis, leaves
from irprune.ir.graph import Graph, Node
from irprune.ir.group import Group, groups_of
from irprune.ops.registry import convolution_of, lookup, operand_as

__all__ = ["KINDS", "by_use", "frozen_kinds", "kinds"]

KINDS = (
    "heads",
    "kv groups",
    "head_dim",
    "experts' width",
    "embedding width",
    "MLP width",
    "norm-group channels",
    "grouped channels",
    "recurrent width",
    "channels",
    "other",
)

# what an axis is called only where no attention and no recurrence has it
_WEAKER = ("norm-group channels", "grouped channels", "embedding width")


def kinds(graph: Graph, used: Mapping[Axis, str] | None = None) -> dict[Axis, str]:
    """The kind of every free leaf of an analysed graph that stands in a parameter; ``used`` is what
    ``by_use`` gives, where that is known."""
    found = by_use(graph) if used is None else used
    return {
        g.axis: found.get(g.axis) or _from_members(g)
        for g in groups_of(graph)
        if not g.frozen and any(m.weight.kind == "parameter" for m in g.members)
    }


def frozen_kinds(graph: Graph) -> dict[str, int]:
    """How many axes of a kind the model has that may not change size, of the kinds told from how an
    axis is used."""
    out: dict[str, int] = {}
    for axis, kind in by_use(graph).items():
        if axis.reason is not None and axis.size != 1:
            out[kind] = out.get(kind, 0) + 1
    return out


def by_use(graph: Graph) -> dict[Axis, str]:
    """The kind of leaves, frozen ones too, that an operator gives a part to: attention, recurrence,
    groups, embedding."""
    pairs = [pair for node in graph.nodes for pair in _declared_kinds(node)]
    found: dict[Axis, str] = {}
    for axis, kind in sorted(pairs, key=lambda pair: pair[1] in _WEAKER):
        for x in leaves(axis):
            found.setdefault(x, kind)
    return found


def _declared_kinds(node: Node) -> Iterable[tuple[Axis, str]]:
    """The kinds of the axes of ``node`` that the operator table tells."""
    entry = lookup(node)
    if entry is None:
        return
    if entry.kinds is not None:
        yield from entry.kinds(node)
    geometry = convolution_of(node)
    if geometry is not None and geometry.groups != 1:
        inner = (node.operand(geometry.kernel).axes or ())[1]
        if inner.size != 1:
            yield inner, "grouped channels"
    table = operand_as(node, "table")
    if table is not None:
        yield from ((a, "embedding width") for a in (table.axes or ())[1:])


def _from_members(group: Group) -> str:
    ranks = {m.weight.rank for m in group.members}
    if (
        any(m.weight.rank == 3 and m.dim > 0 for m in group.members)
        and ranks <= {1, 2, 3}
        and not any(convolution_of(n) for m in group.members for n in m.weight.users)
    ):
        return "experts' width"
    if max(ranks) > 2:
        return (
            "embedding width" if sum(m.weight.rank == 2 for m in group.members) > 4 else "channels"
        )
    if max(ranks) == 2:
        return (
            "MLP width"
            if sum(m.weight.rank == 2 for m in group.members) <= 4
            else "embedding width"
        )
    return "other"

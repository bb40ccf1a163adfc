"""What a coupled group is in the field's words: attention heads, head_dim, MLP width, channels
..."""

from __future__ import annotations

from collections.abc import Iterable

from irprune.ir.axis import Axis, factors, leaves
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.group import Group, groups_of

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

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell")


def kinds(graph: Graph) -> dict[Axis, str]:
    """The kind of every free leaf of an analysed graph that stands in a parameter."""
    found = by_use(graph)
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
    found: dict[Axis, str] = {}

    def mark(axes: Iterable[Axis], kind: str) -> None:
        for a in axes:
            for x in leaves(a):
                found.setdefault(x, kind)

    for node in graph.nodes:
        if node.op == "scaled_dot_product_attention":
            _attention(node.operand(0), node.operand(1), mark)
            mark((node.operand(2).axes or ())[-1:], "head_dim")
        elif node.op == "matmul" and _computed(node) and node.operand(0).rank >= 3:
            _scores(node, mark)
        elif node.op == "einsum" and _computed(node) and len(node.inputs) == 2:
            _einsum(node, mark)
        elif node.op in _RECURRENT:
            mark((node.out.axes or ())[-1:], "recurrent width")
    for node in graph.nodes:
        if node.op == "group_norm" and len(factors((node.operand(0).axes or ())[1])) > 1:
            mark(factors((node.operand(0).axes or ())[1])[1:], "norm-group channels")
        elif node.op == "instance_norm" and any(
            x.role == "group" for x in leaves((node.operand(0).axes or ())[1])
        ):
            mark(_free((node.operand(0).axes or ())[2:]), "norm-group channels")
        elif (
            node.op == "conv"
            and node.attrs.get("groups", 1) != 1
            and (node.operand(1).axes or ())[1].size != 1
        ):
            mark((node.operand(1).axes or ())[1:2], "grouped channels")
        elif node.op == "embedding":
            mark((node.operand(0).axes or ())[1:], "embedding width")
    return found


def _computed(node: Node) -> bool:
    return not any(isinstance(v, Weight) for v in node.inputs)


def _attention(query: Value, key: Value, mark) -> None:  # type: ignore[no-untyped-def]
    q, k = query.axes or (), key.axes or ()
    for heads in q[:-2]:
        many = _free(factors(heads))
        if len(many) > 1:  # groups of query heads that share a key head
            mark(many[:1], "kv groups")
        mark(many, "heads")
    mark(_free(k[:-2]), "heads")
    mark(q[-3:-2] if len(q) > 3 else (), "heads")
    mark(q[-1:], "head_dim")


def _free(axes: Iterable[Axis]) -> list[Axis]:
    """The axes that may change size in a part; batches and windows are none of them."""
    return [a for a in axes if any(x.size != 1 and x.reason is None for x in leaves(a))]


def _scores(node: Node, mark) -> None:  # type: ignore[no-untyped-def]
    """A product of two computed tensors: attention written out by hand."""
    a, b = node.operand(0).axes or (), node.operand(1).axes or ()
    heads = _free(a[:-2])
    if node.operand(0).rank > 3 or heads:
        mark(heads, "heads")
        mark(_free((a[-1], b[-1])), "head_dim")


def _einsum(node: Node, mark) -> None:  # type: ignore[no-untyped-def]
    """The same, where both factors have letters that pass through together: heads; the letter that
    goes away is head_dim."""
    terms, _, result = str(node.attrs.get("equation", "")).replace(" ", "").partition("->")
    first, _, second = terms.partition(",")
    for value, letters in ((node.operand(0), first), (node.operand(1), second)):
        for letter, axis in zip(letters, value.axes or (), strict=False):
            if letter in first and letter in second:
                mark(_free((axis,)), "heads" if letter in result else "head_dim")


def _from_members(group: Group) -> str:
    ranks = {m.weight.rank for m in group.members}
    convolved = any(n.op.startswith("conv") for m in group.members for n in m.weight.users)
    if (
        not convolved
        and any(m.weight.rank == 3 and m.dim > 0 for m in group.members)
        and ranks <= {1, 2, 3}
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

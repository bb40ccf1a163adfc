"""Coupled groups: a group is a leaf axis, its members are the places where the leaf stands in
weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from irprune.base.moved import renamed
from irprune.ir.axis import Axis, factors, find, parts
from irprune.ir.graph import Graph, Weight
from irprune.ir.size import Sym, probe_of

__all__ = ["Group", "LeafPosition", "Member", "groups_of", "leaf_positions"]

__getattr__ = renamed(__name__, {"Slot": "LeafPosition", "slots_of": "leaf_positions"})


@dataclass(frozen=True, slots=True)
class LeafPosition:
    """Where a leaf stands in a dimension: ``offset`` of the first element, ``stride`` between its
    indices, and ``blocks``, the (count, stride) of each axis of ``around``, which it repeats over.
    """

    leaf: Axis
    offset: int
    stride: int
    blocks: tuple[tuple[int, int], ...] = ()
    around: tuple[Axis, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """One place of a group: dimension ``dim`` of ``weight``, where it is the ``slot``-th leaf (0 if
    the leaf is the dimension)."""

    weight: Weight
    dim: int
    index: int
    slot: LeafPosition

    def __str__(self) -> str:
        return f"{self.weight.name}:{self.dim}" + (f"/{self.index}" if self.index else "")

    def beside(self, outer: Axis) -> tuple[int, LeafPosition] | None:
        """The other dimension of the weight in which ``outer`` stands, and where; None where it
        stands around this place."""
        if outer in self.slot.around:
            return None
        axes = self.weight.axes or ()
        return next(
            (d, s)
            for d, a in enumerate(axes)
            if d != self.dim
            for s in leaf_positions(a)
            if s.leaf is outer
        )


@dataclass(slots=True)
class Group:
    """Channels that are dropped together. ``size`` counts them; ``frozen`` says why they may not be
    ("" where they may)."""

    axis: Axis
    members: list[Member] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The first member in graph order: stable for the same model."""
        return str(self.members[0])

    @property
    def size(self) -> int:
        return probe_of(self.axis.size)

    @property
    def frozen(self) -> str:
        return str(self.axis.reason) if self.axis.reason is not None else ""

    @property
    def role(self) -> str:
        return self.axis.role


def leaf_positions(
    axis: Axis,
    stride: int = 1,
    offset: int = 0,
    blocks: tuple[tuple[int, int], ...] = (),
    around: tuple[Axis, ...] = (),
) -> list[LeafPosition]:
    """The leaves of a dimension in order, each with where its indices lie."""
    axis = find(axis)
    many = parts(axis)
    if len(many) > 1:
        out = []
        for p in many:
            out += leaf_positions(p, stride, offset, blocks, around)
            offset += stride * probe_of(p.size)
        return out
    many = factors(axis)
    if len(many) == 1:
        return [LeafPosition(axis, offset, stride, blocks, around)]
    out = []
    inner = stride
    strides = []
    for f in reversed(many):
        strides.append(inner)
        inner *= probe_of(f.size)
    strides.reverse()
    for i, f in enumerate(many):
        others = [j for j in range(len(many)) if j != i]
        out += leaf_positions(
            f,
            strides[i],
            offset,
            (*blocks, *((probe_of(many[j].size), strides[j]) for j in others)),
            (*around, *(many[j] for j in others)),
        )
    return out


def groups_of(graph: Graph) -> list[Group]:
    """The groups of an analysed graph, in order of first appearance; leaves of size 1 are no
    groups.

    They are found once for what the axes and the weights are: nearly every stage asks for them."""
    axes = graph.axes
    said = (axes, len(axes.links), axes.count) if axes is not None else None
    state = said, [(w, w.axes) for w in graph.weights.values()]
    if graph.grouped is None or graph.grouped[0] != state:  # each change of axes is in their links
        graph.grouped = state, _collect(graph)
    return list(graph.grouped[1])


def _collect(graph: Graph) -> list[Group]:
    found: dict[Axis, Group] = {}
    slots: dict[Axis, list[tuple[int, LeafPosition]]] = {}
    for weight in graph.weights.values():
        for dim, axis in enumerate(map(find, weight.axes or ())):
            if axis not in slots:
                slots[axis] = [
                    (index, slot)
                    for index, slot in enumerate(leaf_positions(axis))
                    if slot.leaf.size != 1 and not isinstance(slot.leaf.size, Sym)
                ]
            for index, slot in slots[axis]:
                group = found.get(slot.leaf)
                if group is None:
                    group = found[slot.leaf] = Group(slot.leaf)
                group.members.append(Member(weight, dim, index, slot))
    return list(found.values())

"""Channels that nothing makes, or that nothing reads: all weights on one side of them are zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from irprune.criteria.places import elements
from irprune.ir.axis import Axis, leaves
from irprune.ir.graph import Graph, Node, Weight
from irprune.ir.group import Group, Member, groups_of
from irprune.ir.selection import Mask
from irprune.ir.size import probe_of
from irprune.ops.registry import operand_as, readers_of, role_of
from irprune.ops.traits import ADDED

__all__ = ["zero_channels"]

Zero = Callable[[Weight], Mask | None]
_MAKES, _READS, _SCALES = "makes", "reads", "scales"
_SHIFTS, _LAST = "shifts", "shifts what was scaled"


def zero_channels(graph: Graph, zero: Zero, vectors: bool) -> dict[Axis, Mask]:
    """For each free group of an analysed ``graph`` which of its channels are made, or read, by
    zeros alone.

    Args:
        graph: The graph.
        zero: Where the elements of a weight count as zeros: an array of truths of its shape, None
            where none does.
        vectors: Whether what is added to a channel (biases, shifts of norms) must be zero as well
            where no weight makes it.

    Returns:
        Groups with such channels, and which they are; groups at operators that do not say what
        their weights make and read are left out.
    """
    out = {}
    for group in groups_of(graph):
        if group.frozen:
            continue
        gone = _zeros(group, zero, vectors)
        if gone is not None and gone.any():
            out[group.axis] = gone
    return out


def _zeros(group: Group, zero: Zero, vectors: bool) -> Mask | None:
    sides: dict[str, list[Mask]] = {s: [] for s in (_MAKES, _READS, _SCALES, _SHIFTS, _LAST)}
    for member in group.members:
        for side in _sides(member):
            if side not in sides:
                return None
            sides[side].append(_zero_at(member, zero))
    size = probe_of(group.axis.size)
    last = _all(sides[_LAST], size) if vectors else True
    shifts = _all(sides[_SHIFTS], size) if vectors else True
    gone = np.zeros(size, dtype=bool)
    if sides[_MAKES]:
        gone |= _all(sides[_MAKES], size) & shifts & last
    if sides[_SCALES] and len(sides[_SCALES]) == len(sides[_MAKES]):  # each has a norm of its own
        gone |= _all(sides[_SCALES], size) & last
    if sides[_READS]:
        gone |= _all(sides[_READS], size)
    return gone


def _all(masks: Sequence[Mask], size: int) -> NDArray[np.bool_]:
    out = np.ones(size, dtype=bool)
    for mask in masks:
        out &= mask
    return out


def _sides(member: Member) -> list[str]:
    """What a weight does with the channels along a dimension, for each operator that reads it; ""
    where that is not known."""
    out = []
    for node, i in readers_of(member.weight):
        role = role_of(node, i)
        if role in ("scale", "variance"):
            out += [_SCALES] if role == "scale" else []
        elif role in ADDED:
            scaled = operand_as(node, "scale") is not None
            out.append(_LAST if scaled and role == "bias" else _SHIFTS)
        else:
            out.append(_side(member, node) if role in ("weight", "table") else "")
    return out


def _side(member: Member, node: Node) -> str:
    """Whether the channels along a dimension of a matrix or kernel are in what comes out, or are
    summed over."""
    leaf, weight = member.slot.leaf, member.weight
    if sum(leaf in leaves(a) for a in weight.axes or ()) > 1:
        return ""
    if any(leaf in leaves(a) for v in node.outputs for a in v.axes or ()):
        return _MAKES
    data = [v for v in node.inputs if v is not None and v is not weight]
    return _READS if any(leaf in leaves(a) for v in data for a in v.axes or ()) else ""


def _zero_at(member: Member, zero: Zero) -> Mask:
    """Which indices of a group are zero throughout one of its places."""
    zeros = zero(member.weight)
    size = probe_of(member.slot.leaf.size)
    if zeros is None:
        return np.zeros(size, dtype=bool)
    others = tuple(d for d in range(zeros.ndim) if d != member.dim)
    along = np.asarray(zeros.all(axis=others))
    return np.asarray(along[elements(member.slot)].reshape(size, -1).all(axis=-1))

"""From weights to groups: which places of a group count, and how an array along a dimension is
gathered onto a leaf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.base.near import meant
from irprune.criteria.quantised import is_integer, is_step
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis
from irprune.ir.dtype import is_real
from irprune.ir.graph import Graph, Weight
from irprune.ir.group import Group, LeafPosition, Member
from irprune.ir.size import probe_of
from irprune.ops.registry import readers_of, role_of
from irprune.ops.traits import ADDED

__all__ = [
    "REDUCTIONS",
    "WeightPlace",
    "elements",
    "is_bias",
    "is_scale",
    "place_of",
    "places",
    "reduce",
    "reduction",
    "summed",
]

Scores = NDArray[np.float64]
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "prod": np.prod,
}


def is_scale(weight: Weight) -> bool:
    """Whether ``weight`` is the scale of a normalisation, and nothing else."""
    roles = {role_of(node, i) for node, i in readers_of(weight)}
    return roles == {"scale"}


def is_bias(weight: Weight) -> bool:
    """Whether ``weight`` is a vector that a contraction, a normalisation or an addition of its own
    adds, or holds statistics of a norm."""
    if sum(s != 1 for s in weight.shape) > 1 or not weight.users:
        return False
    return all(role_of(node, i) in ADDED for node, i in readers_of(weight))


def places(
    graph: Graph, groups: Sequence[Group], biases: bool = False, integers: bool = False
) -> dict[Axis, list[Member]]:
    """For each group the places that its importance is read from: parameters, each place once,
    without biases unless asked.

    A group that stands only in biases or in arrays that are not trained is read from those. Tied
    weights are one weight. With ``integers`` the weights of quantised layers count, for the numbers
    that they stand for (``quantised.numbers``), and their scales do not; without, for criteria that
    differentiate, only their scales do."""
    weights = graph.weights.values()
    counted = {
        w.name: w.kind == "parameter"
        and (biases or not is_bias(w))
        and not (integers and is_step(w))
        for w in weights
    }
    stored = {w.name: integers and is_integer(w) for w in weights}
    out = {}
    for group in groups:
        if any(stored[m.weight.name] for m in group.members):
            out[group.axis] = [
                m for m in group.members if stored[m.weight.name] or counted[m.weight.name]
            ]
            continue
        real = [m for m in group.members if is_real(m.weight.dtype)]
        chosen = (
            [m for m in real if counted[m.weight.name]]
            or [m for m in real if m.weight.kind == "parameter"]
            or real
        )
        if chosen:
            out[group.axis] = chosen
    return out


@dataclass(frozen=True)
class WeightPlace:
    """Where the indices of a leaf lie in ``weight``: ``at``, of shape ([size of the outer axis,]
    size, elements), numbers the elements of the dimensions ``dims`` in row-major order. There are
    two where the outer axis stands in another dimension, which then comes first."""

    weight: Weight
    dims: tuple[int, ...]
    at: NDArray[np.int64]

    def gather(self, values: NDArray[Any], how: Callable[..., Any] = np.sum) -> Scores:
        """Values along ``dims`` brought onto the leaf: of shape (size,), or (size of the outer
        axis, size)."""
        if self.at.shape[-1] == 1:
            return np.asarray(values.reshape(-1)[self.at[..., 0]], dtype=np.float64)
        return np.asarray(how(values.reshape(-1)[self.at], axis=-1), dtype=np.float64)


def place_of(member: Member, within: Axis | None = None) -> WeightPlace:
    """Where the indices of a group lie in one of its members, apart for each index of
    ``within``."""
    beside = None if within is None else member.beside(within)
    if beside is None:
        return WeightPlace(member.weight, (member.dim,), elements(member.slot, within))
    dim, slot = beside
    rows, own = elements(slot), elements(member.slot)
    at = probe_of(member.weight.shape[member.dim]) * rows[:, None, :, None] + own[None, :, None, :]
    return WeightPlace(member.weight, (dim, member.dim), at.reshape(len(rows), len(own), -1))


def summed(tensor: Any, dims: tuple[int, ...]) -> NDArray[Any]:
    """The sum of a torch tensor over all but ``dims``, these in their order."""
    moved = tensor.movedim(dims, tuple(range(len(dims))))
    total: NDArray[Any] = moved.reshape(*moved.shape[: len(dims)], -1).sum(-1).cpu().numpy()
    return total


def elements(slot: LeafPosition, within: Axis | None = None) -> NDArray[np.int64]:
    """Which elements of the dimension belong to each index of the leaf: of shape ([size of
    ``within``,] size, elements)."""
    at = slot.offset + slot.stride * np.arange(probe_of(slot.leaf.size))
    blocks = list(zip(slot.around, slot.blocks, strict=True))
    if within is not None:
        own = next(i for i, (h, _) in enumerate(blocks) if h is within)
        count, stride = blocks.pop(own)[1]
        at = at[None, :] + stride * np.arange(count)[:, None]
    shape = at.shape
    for _, (count, stride) in blocks:
        at = at[..., None] + stride * np.arange(count)
    return at.reshape(*shape, -1)


def reduction(name: str) -> Callable[..., Any]:
    """How the places of a group are put together. Raises IrpruneError for a name that there is none
    of."""
    if name not in REDUCTIONS:
        raise IrpruneError(
            f"no group reduction is called {name!r}",
            "importance",
            meant(name, REDUCTIONS, "one of " + ", ".join(REDUCTIONS)),
        )
    return REDUCTIONS[name]


def reduce(rows: Sequence[Scores], how: str) -> Scores:
    """The scores of all places of a group as one."""
    return np.asarray(reduction(how)(np.stack(rows), axis=0), dtype=np.float64)

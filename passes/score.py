"""score: how much each index of each free leaf matters, by the weights that hold it.

Before: groups with no scores. After: ``graph.scores`` holds for each free leaf an array of its size, larger is more important.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Slot, groups_of

__all__ = ["Score"]


@dataclass(frozen=True)
class Score:
    """Magnitude of the weights along each index: the ``p``-norm (1 or 2) over all members of the group."""

    p: int = 2

    def run(self, graph: Graph) -> bool:
        profiles: dict[tuple[str, int], NDArray[np.float64]] = {}
        graph.scores = {}
        for group in groups_of(graph):
            if group.frozen:
                continue
            total = np.zeros(group.size)
            for member in group.members:
                key = (member.weight.name, member.dim)
                if key not in profiles:
                    profiles.update(_profiles(member.weight.load(), member.weight, self.p))
                total += gather(profiles[key], member.slot, group.axis)
            graph.scores[group.axis] = total ** (1.0 / self.p)
        return True


def _profiles(array: Any, weight: Any, p: int) -> dict[tuple[str, int], NDArray[np.float64]]:
    """The sum of ``|w|**p`` over all other dimensions, for each dimension that is not frozen whole."""
    out = {}
    if hasattr(array, "detach"):
        array = array.detach()
        array = array.abs() if p == 1 else array.float().square() if array.dtype.itemsize < 4 else array.square()
    else:
        array = np.abs(array.astype(np.float32)) ** p
    for dim in range(array.ndim):
        others = [d for d in range(array.ndim) if d != dim]
        summed = array.sum(dim=others) if hasattr(array, "detach") and others else array.sum(axis=tuple(others)) if others else array
        out[weight.name, dim] = np.asarray(summed.cpu() if hasattr(summed, "cpu") else summed, dtype=np.float64)
    return out


def gather(profile: NDArray[np.float64], slot: Slot, leaf: Axis) -> NDArray[np.float64]:
    """A dimension's profile summed onto the indices of one leaf of it."""
    at = slot.offset + slot.stride * np.arange(int(leaf.size))  # type: ignore[arg-type]
    for count, stride in slot.blocks:
        at = (at[..., None] + stride * np.arange(count))
    return profile[at].reshape(at.shape[0], -1).sum(axis=1)

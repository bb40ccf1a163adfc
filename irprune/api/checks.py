"""The weights that a model brings, checked before anything is computed from them. (Options are
checked by their declarations: ``irprune.api.declarations``.)"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np

from irprune.base.memory import memory_asked
from irprune.errors import IrpruneError, option
from irprune.ir.dtype import is_real
from irprune.ir.graph import Graph, Node, Weight
from irprune.ir.group import groups_of
from irprune.ir.size import probe_of
from irprune.ops.arrays import is_meta, is_tensor

__all__ = ["check_memory", "check_weights", "ranked"]


def check_weights(graph: Graph, skip: Iterable[str] = ()) -> None:
    """Raises IrpruneError for a parameter that holds a NaN: no importance can be told from it;
    ``skip`` names those checked elsewhere."""
    passed = set(skip)
    for weight in graph.weights.values():
        if weight.name in passed or weight.kind != "parameter" or not is_real(weight.dtype):
            continue
        if _has_nan(weight.load()):
            raise IrpruneError(
                "a weight holds NaN",
                weight.name,
                "train or load the model again: NaN weights cannot be ranked",
            )


def check_memory(graph: Graph) -> None:
    """Raises IrpruneError where the user allows less memory than the weights of one operator take,
    in the float64 of the proof: no way of reading gets along with less."""
    asked = memory_asked()
    if asked is None:
        return

    def taken(node: Node) -> int:
        weights = {v for v in node.inputs if isinstance(v, Weight)}
        return sum(8 * prod(map(probe_of, w.shape)) for w in weights)

    largest = max(graph.nodes, key=taken, default=None)
    least = taken(largest) if largest is not None else 0
    if asked < least:
        raise IrpruneError(
            f"{option('memory')} is {asked / 1e6:.3g} MB, and the weights of one operator take "
            f"{least / 1e6:.3g} MB",
            largest.where if largest is not None else "",
            f"give at least {option('memory', f'{-(-least // 1000)}kB')}",
        )


def ranked(graph: Graph) -> list[str]:
    """The matrices and kernels of free groups: what a criterion that ``refuses_nan`` reads."""
    held = {m.weight.name: m.weight for g in groups_of(graph) if not g.frozen for m in g.members}
    return [
        name
        for name, w in held.items()
        if w.kind == "parameter" and sum(s != 1 for s in w.shape) > 1
    ]


def _has_nan(array: Any) -> bool:
    """Whether ``array`` (torch or numpy) holds a NaN; the sum is NaN then, and seldom otherwise."""
    if is_meta(array):
        return False
    array = array.detach() if is_tensor(array) else array
    # A mask of the largest negative numbers is no news
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(array.sum())
    return total != total and bool((array != array).any())

"""What the batch norms of a model have stored of the activations that they were trained on. Needs
no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.ir.graph import Graph, Node, Weight
from irprune.ops.arrays import as_numpy, is_meta, is_tensor
from irprune.ops.registry import is_fixed_norm, operand_as

__all__ = ["NormStatistics", "stored"]


@dataclass(frozen=True)
class NormStatistics:
    """What a batch norm ``node`` has stored of what it reads: mean and variance (with what is added
    to it before the root is taken) of each channel [c], in float64."""

    node: Node
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


def stored(graph: Graph) -> list[NormStatistics]:
    """The batch norms of ``graph`` whose statistics were learned, in graph order; those that a
    layer is made with (mean 0, the same variance everywhere) say nothing."""
    found = []
    for node in graph.nodes:
        if not is_fixed_norm(node):
            continue
        mean, variance = operand_as(node, "mean"), operand_as(node, "variance")
        if not isinstance(mean, Weight) or not isinstance(variance, Weight):
            continue
        m, v = _numbers(mean), _numbers(variance)
        if m is None or v is None or not (np.isfinite(m).all() and np.isfinite(v).all()):
            continue
        if (m == 0).all() and (v == v[:1]).all():
            continue
        found.append(NormStatistics(node, m, v + float(node.attrs.get("eps", 1e-5))))
    return found


def _numbers(weight: Weight) -> NDArray[np.float64] | None:
    """The weight's values; None where it has none."""
    held: Any = weight.load()
    if is_meta(held):
        return None
    if is_tensor(held):
        held = as_numpy(held.detach().float())
    return np.asarray(held, dtype=np.float64).reshape(-1)

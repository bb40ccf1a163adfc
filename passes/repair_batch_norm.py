"""repair-batch-norm: running statistics measured again in the pruned model.

Before: a batch norm whose running mean and variance are those of inputs that have since lost
channels upstream. After: the mean and variance of what it reads now, layer by layer, each measured
behind the ones already repaired.

As in Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", ECCV
2020."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from irprune.analysis.branches import block_ends
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ops.registry import is_fixed_norm, operand_as
from irprune.passes.repairs import repair
from irprune.passes.result import PassResult

if TYPE_CHECKING:
    from irprune.run.calibration import Calibration
    from irprune.run.statistics import Moments, Pair, Stop

__all__ = ["RepairBatchNorm"]


@repair("batch_norm")
@dataclass(frozen=True)
class RepairBatchNorm:
    """Re-estimate every batch norm of a cut graph on ``calibration``; those whose statistics
    several nodes share are left, with a note.

    ``memory`` bounds the bytes of activations held between layers.
    """

    original: Graph
    calibration: Calibration
    memory: int = 1 << 30

    def run(self, graph: Graph) -> PassResult:
        from irprune.run.once import once
        from irprune.run.statistics import Pair

        notes: list[str] = []
        changed = False
        norms = [node for node in graph.nodes if is_fixed_norm(node)]
        if not norms:
            notes.append(
                "no batch norm to measure again: where they are folded into the layers, the repair is 'affine'"
            )
        ends = block_ends(self.original)
        with Pair(self.original, graph, self.calibration, memory=self.memory, ends=ends) as walk:
            for node in norms:
                mean, variance = _own(operand_as(node, "mean")), _own(operand_as(node, "variance"))
                if mean is None or variance is None:
                    notes.append(
                        f"batch norm at {node.where}: its statistics are not its own, left as they were sliced"
                    )
                    continue
                measure = partial(_measure, walk, node, mean, variance)
                once(walk.files, graph, node.outputs[0].name, measure)
                changed = True
        return PassResult(changed, tuple(notes))


def _measure(walk: Pair, node: Node, mean: Weight, variance: Weight) -> list[str]:
    """Let ``mean`` and ``variance`` be those of what ``node`` reads."""
    from irprune.run.statistics import Moments, store

    def add(moments: Moments, stop: Stop) -> None:
        moments.add(stop.operands[0].movedim(1, -1).flatten(0, -2))

    seen = walk.total(node, Moments, add)
    store(mean, seen.mean)
    store(variance, seen.variance)
    return []


def _own(value: Value | None) -> Weight | None:
    return value if isinstance(value, Weight) and sum(value.users.values()) == 1 else None

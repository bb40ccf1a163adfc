"""repair-bias: what the dropped channels gave on average, pushed into the biases of the layers that read them.

Before: a layer whose results lack the dropped channels' contribution. After: the same weights, and a bias (or the running mean of the
batch norm behind it, or the vector added to the result) moved by the mean of what is missing.

As in An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024; measured on the model repaired so
far, so that errors from further up are made good too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from irprune.ir.graph import Graph

if TYPE_CHECKING:
    from irprune.calibration import Calibration
    from irprune.layers import Layer

__all__ = ["RepairAffine", "RepairBias"]


@dataclass(frozen=True)
class RepairBias:
    """Move biases of a cut graph so that every layer's mean result is the original's on ``calibration``.

    ``memory`` bounds the bytes of activations held between layers.
    """

    original: Graph
    calibration: Calibration
    memory: int = 1 << 30
    notes: list[str] = field(default_factory=list, compare=False)

    def run(self, graph: Graph) -> bool:
        return refit(self, graph, scale=False)


@dataclass(frozen=True)
class RepairAffine:
    """Scale and move the results of every layer, channel by channel, so that mean and deviation are the original's on ``calibration``.

    What re-estimating batch norms does, where they are folded into the layers already: the scale goes into the weights, the offset into
    the bias. ``largest`` bounds the scale and its inverse.
    """

    original: Graph
    calibration: Calibration
    largest: float = 8.0
    memory: int = 1 << 30
    notes: list[str] = field(default_factory=list, compare=False)

    def run(self, graph: Graph) -> bool:
        return refit(self, graph, scale=True)


def refit(options: RepairBias | RepairAffine, graph: Graph, scale: bool) -> bool:
    """Walk the layers in order and match the moments of their results."""
    from irprune.layers import layer_of
    from irprune.statistics import Pair, load_as, store

    options.notes.clear()
    changed = False
    with Pair(options.original, graph, options.calibration, memory=options.memory) as walk:
        for node in list(graph.nodes):
            layer = layer_of(node)
            if layer is None or layer.bias is None or walk.twin(node) is None or (scale and layer.shared()):
                if layer is not None:
                    options.notes.append(f"{layer.weight.name}: no bias of its own to move, left as it was sliced")
                continue
            ours, theirs = _moments(layer, walk)
            factor = (theirs[1] / ours[1].clamp(min=1e-12)).sqrt().clamp(1 / options.largest, options.largest) if isinstance(
                options, RepairAffine) else None
            bias = layer.bias.weight
            offset = layer.bias.sign * (theirs[0] - (ours[0] if factor is None else ours[0] * factor))
            held = load_as(bias)
            if factor is not None:
                store(layer.weight, layer.array(layer.matrix(load_as(layer.weight)) * factor[:, None]))
                if bias in node.inputs:  # the layer's own bias is part of what is scaled
                    held = held * factor.reshape(held.shape)
            store(bias, held + offset.reshape(held.shape))
            changed = True
    return changed


def _moments(layer: Layer, walk: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Mean and variance of each output [b, o] as the layer gives it now (with its own bias), and as the original gave it."""
    from irprune.passes.repair_least_squares import offset_of
    from irprune.statistics import load_as

    weight = layer.matrix(load_as(layer.weight))
    count = 0
    sums: list[Any] = [0.0] * 4
    for operands, target, _ in walk.to(layer.node):
        x = layer.rows(operands[layer.at]).transpose(0, 1).double().cpu()
        now = x @ weight
        offset = offset_of(layer, operands)
        if offset is not None:
            now = now + offset.double().cpu().reshape(now.shape[0], 1, -1)
        then = layer.targets(target).transpose(0, 1).double().cpu()
        count += x.shape[1]
        for i, part in enumerate((now, now.square(), then, then.square())):
            sums[i] = sums[i] + part.sum(1)
    a, aa, b, bb = (s / count for s in sums)
    return (a, (aa - a.square()).clamp(min=0)), (b, (bb - b.square()).clamp(min=0))

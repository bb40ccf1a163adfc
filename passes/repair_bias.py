"""repair-bias: what the dropped channels gave on average, pushed into the biases of the layers that
read them.

Before: a layer whose results lack the dropped channels' contribution. After: the same weights, and
a bias (or the running mean of the batch norm behind it, or the vector added to the result) moved by
the mean of what is missing.

As in An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI
2024; measured on the model repaired so far, so that errors from further up are made good too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from irprune.analysis.branches import block_ends
from irprune.ir.graph import Graph
from irprune.passes.repairs import repair
from irprune.passes.result import PassResult
from irprune.run.ranks import Several

if TYPE_CHECKING:
    from irprune.analysis.layers import Layer
    from irprune.run.calibration import Calibration
    from irprune.run.statistics import Moments, Pair, Stop

__all__ = ["RepairAffine", "RepairBias"]


@repair("bias")
@dataclass(frozen=True)
class RepairBias:
    """Move biases of a cut graph so that every layer's mean result is the original's on
    ``calibration``.

    ``memory`` bounds the bytes of activations held between layers.
    """

    original: Graph
    calibration: Calibration
    memory: int = 1 << 30

    def run(self, graph: Graph) -> PassResult:
        return refit(self, graph, scale=False)


@repair("affine")
@dataclass(frozen=True)
class RepairAffine:
    """Scale and move the results of every layer, channel by channel, so that mean and deviation are
    the original's on ``calibration``.

    What re-estimating batch norms does, where they are folded into the layers already: the scale
    goes into the weights, the offset into the bias. ``largest`` bounds the scale and its inverse.
    """

    original: Graph
    calibration: Calibration
    largest: float = 8.0
    memory: int = 1 << 30

    def run(self, graph: Graph) -> PassResult:
        return refit(self, graph, scale=True)


def refit(options: RepairBias | RepairAffine, graph: Graph, scale: bool) -> PassResult:
    """Walk the layers in order and match the moments of their results."""
    from irprune.analysis.layers import layer_of
    from irprune.run.once import once
    from irprune.run.statistics import Pair

    notes: list[str] = []
    changed = False
    ends, memory = block_ends(options.original), options.memory
    with Pair(options.original, graph, options.calibration, memory=memory, ends=ends) as walk:
        for node in list(graph.nodes):
            layer = layer_of(node)
            if (
                layer is None
                or layer.bias is None
                or walk.twin(node) is None
                or (scale and layer.shared())
            ):
                if layer is not None:
                    notes.append(
                        f"{layer.weight.name}: no bias of its own to move, left as it was sliced"
                    )
                continue
            work = partial(_match, options, layer, walk)
            once(walk.files, graph, node.outputs[0].name, work)
            changed = True
    return PassResult(changed, tuple(notes))


def _match(options: RepairBias | RepairAffine, layer: Layer, walk: Pair) -> list[str]:
    """Move, and scale, what a layer with a bias gives."""
    assert layer.bias is not None
    ours, theirs = _moments(layer, walk)
    if isinstance(options, RepairBias):
        layer.bias.move(theirs.mean - ours.mean)
        return []
    factor = (
        (theirs.variance / ours.variance.clamp(min=1e-12))
        .sqrt()
        .clamp(1 / options.largest, options.largest)
    )
    layer.store_matrix(layer.load_matrix() * factor[:, None])
    if layer.bias.node is layer.node:  # the layer's own bias is part of what is scaled
        held = layer.bias.stored.load()
        layer.bias.stored.store(held * factor.reshape(held.shape))
    layer.bias.move(theirs.mean - ours.mean * factor)
    return []


def _moments(layer: Layer, walk: Pair) -> tuple[Moments, Moments]:
    """Those of each output [b, o] as the layer gives it now (with its own bias), and as the
    original gave it."""
    from irprune.run.statistics import Moments

    weight = layer.load_matrix()

    def add(both: Several[Moments], stop: Stop) -> None:
        y = layer.input_rows(stop.operands).transpose(0, 1).double().cpu() @ weight
        offset = layer.offset(stop.operands)
        both[0].add(y if offset is None else y + offset.double().cpu().reshape(y.shape[0], 1, -1))
        both[1].add(layer.output_rows(stop.target, stop.operands).transpose(0, 1))

    now, then = walk.total(layer.node, lambda: Several((Moments(), Moments())), add)
    return now, then

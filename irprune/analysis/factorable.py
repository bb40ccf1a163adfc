"""Layers that may become two thinner ones."""

from __future__ import annotations

from dataclasses import dataclass

from irprune.analysis.layers import Layer, layers
from irprune.frontend.onnx.source import OnnxSource
from irprune.frontend.torch.low_rank import can_split as can_split_module
from irprune.frontend.torch.source import find_torch_source
from irprune.ir.dtype import is_real
from irprune.ir.graph import Graph
from irprune.ops.registry import convolution_of

__all__ = ["Factorable", "factorable"]

LEAST = 8  # inputs and outputs that a layer must have to be worth two


@dataclass(frozen=True)
class Factorable:
    """A ``layer`` that may become two; ``inputs`` and ``outputs`` are the dimensions of its weight
    that the first and the second of them have."""

    layer: Layer
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of its weight."""
        return self.layer.weight.name

    @property
    def size(self) -> int:
        """The rank that it has at most: the lesser of inputs and outputs."""
        _, k, o = self.layer.blocks
        return min(k, o)

    @property
    def useful(self) -> int:
        """The highest rank at which two layers have fewer weights than the one; 0 for none."""
        _, k, o = self.layer.blocks
        return (k * o - 1) // (k + o)


def factorable(graph: Graph) -> list[Factorable]:
    """The layers of an analysed ``graph`` that may become two, in its order: products with one
    stored matrix that nobody else reads, and convolutions of one group."""
    return [one for layer in layers(graph) if (one := _factorable(graph, layer)) is not None]


def _factorable(graph: Graph, layer: Layer) -> Factorable | None:
    weight = layer.weight
    stored = layer.stored
    plain = stored.direct and stored.how is None and is_real(weight.dtype)
    if not plain or weight.kind != "parameter" or layer.shared() or weight.axes is None:
        return None
    geometry = convolution_of(layer.node)
    if geometry is not None:
        if geometry.transposed or geometry.groups != 1:
            return None
        inputs, outputs = tuple(range(1, weight.rank)), (0,)
    else:
        if weight.rank != 2 or len(layer.inputs) != 1:
            return None
        inputs, outputs = layer.inputs, (1 - layer.inputs[0],)
    blocks, k, o = layer.blocks
    if blocks != 1 or min(k, o) < LEAST:
        return None
    return Factorable(layer, inputs, outputs) if _is_held(graph, layer) else None


def _is_held(graph: Graph, layer: Layer) -> bool:
    """Whether the model behind ``graph`` holds the layer in a form that has one as two."""
    source = graph.source
    if isinstance(source, OnnxSource):
        from irprune.frontend.onnx.low_rank import can_split

        return can_split(source, layer.node, layer.by)
    torch_source = find_torch_source(graph)
    return torch_source is not None and can_split_module(torch_source.module, layer.weight.name)

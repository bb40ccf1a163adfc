"""untie: an array of an ONNX file whose uses do not agree gets a copy for each of them (copy on
write).

Before, one matrix twice, the second time in front of a graph output::

    %w: f32[32, 32] = parameter

    %h: f32[1, 32] = matmul(%x, %w)
    %y: f32[1, 32] = matmul(%z, %w)

After::

    axis c0 = 32

    %w: f32[32, c0] = parameter
    %"w@2": f32[32, 32] = parameter

    %h: f32[1, c0] = matmul(%x, %w)
    %y: f32[1, 32] = matmul(%z, %"w@2")

In a file one array may stand for several weights that happen to be equal (tools merge those). It
stays one where nothing would be gained: tied embeddings, layers that are used twice. In a module
tied parameters were tied by somebody, and stay so."""

from __future__ import annotations

from dataclasses import dataclass

from irprune.frontend.onnx.source import OnnxSource
from irprune.ir.axis import leaves
from irprune.ir.graph import Graph, Weight
from irprune.passes.infer_axes import InferAxes
from irprune.passes.result import PassResult

__all__ = ["Untie"]


@dataclass(frozen=True)
class Untie:
    """Try it on a copy of the analysed graph, and keep the copies of those arrays that get a free
    axis by it."""

    def run(self, graph: Graph) -> PassResult:
        source = graph.source
        if not isinstance(source, OnnxSource) or graph.axes is None:
            return PassResult(False)
        stored = source.stored
        shared = [
            w
            for w in graph.weights.values()
            if w.name in stored and w.kind == "parameter" and sum(w.users.values()) > 1
        ]
        held = [w.name for w in shared if _has_frozen(w)]
        if not held:
            return PassResult(False)
        trial = graph.copy()
        copies = {name: _split(trial, trial.weights[name]) for name in held}
        InferAxes().run(trial)
        gained = [
            name
            for name in held
            if max(map(_free, (trial.weights[name], *copies[name]))) > _free(graph.weights[name])
        ]
        for name in gained:
            for copy in _split(graph, graph.weights[name]):
                stored[copy.name] = stored[name]
        if gained:
            InferAxes().run(graph)
        return PassResult(bool(gained))


def _has_frozen(weight: Weight) -> bool:
    """Whether a dimension of ``weight`` may not shrink."""
    return any(x.reason is not None and x.size != 1 for a in weight.axes or () for x in leaves(a))


def _free(weight: Weight) -> int:
    """How many of the leaves in ``weight`` may shrink."""
    return sum(x.reason is None and x.size != 1 for a in weight.axes or () for x in leaves(a))


def _split(graph: Graph, weight: Weight) -> list[Weight]:
    """A weight of its own for every use but the first."""
    out = []
    uses = [(node, i) for node in graph.nodes for i, v in enumerate(node.inputs) if v is weight]
    for node, i in uses[1:]:
        n = 2
        while f"{weight.name}@{n}" in graph.weights:
            n += 1
        copy = graph.add_weight(
            Weight(
                f"{weight.name}@{n}",
                weight.type,
                weight.load,
                weight.kind,
                trainable=weight.trainable,
            )
        )
        node.set_input(i, copy)
        out.append(copy)
    return out

"""A file in which means that are written out, a ReduceSum and one over how many it sums, are means.

Files of XLA's (JAX, by way of TensorFlow) spell every mean so. The result is the same but for
rounding, one node shorter, and right at every width."""

from __future__ import annotations

import onnx

from irprune.frontend.onnx.order import opset_of
from irprune.frontend.onnx.source import NodePlace
from irprune.ir.graph import Graph
from irprune.ops.means import MEAN_OF_SUM, written_means

__all__ = ["with_means"]

_INPUT = 18  # the opset from which on a mean takes its dimensions as an input


def with_means(graph: Graph, model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy of ``model``, which ``graph`` was read from, with a ReduceMean for each of its means
    that are written out; None where there are none."""
    spelled: dict[int, onnx.NodeProto | None] = {}
    given = opset_of(model) or 1
    for one in written_means(graph):
        total, scaled = one.total.origin.raw, one.scaled.origin.raw
        if not isinstance(total, NodePlace) or not isinstance(scaled, NodePlace):
            continue
        own = model.graph.node[total.index]
        kind = MEAN_OF_SUM.get(own.op_type)
        whole = total.steps == scaled.steps == 1 and not own.domain
        if kind is None or not whole:
            continue
        made = onnx.helper.make_node(
            kind,
            own.input if given >= _INPUT else own.input[:1],
            [one.scaled.out.name],
            own.name,
            keepdims=int(one.total.attrs["keepdim"]),
        )
        if given < _INPUT:
            made.attribute.append(onnx.helper.make_attribute("axes", one.dims))
        spelled |= {total.index: made, scaled.index: None}
    if not spelled:
        return None
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    del twin.graph.node[:]
    for index, node in enumerate(model.graph.node):
        new = spelled.get(index, node)
        if new is not None:
            twin.graph.node.append(new)
    return twin

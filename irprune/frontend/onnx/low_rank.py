"""Layers of an ONNX model as two: a product with a thin matrix, and one with another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from irprune.errors import IrpruneError
from irprune.frontend.onnx.order import target_of
from irprune.frontend.onnx.proto import tensor_of
from irprune.frontend.onnx.source import NodePlace, OnnxSource
from irprune.ir.graph import Node
from irprune.ops.onnx.low_rank_forms import as_two, has_form_as_two

__all__ = ["SplitNode", "can_split", "with_products", "with_split_nodes"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SplitNode:
    """What stands in for a node: its weight's tensor, in the layout of the two nodes' own."""

    first: Array
    second: Array

    def names(self, weight: str) -> tuple[str, str]:
        """What the two tensors are called."""
        return f"{weight}.0", f"{weight}.1"


def can_split(source: OnnxSource, node: Node, by: int) -> bool:
    """Whether ``node`` is one node of the file, an operator that has a form as two, and its
    operand ``by`` a tensor of floats that the file stores for it alone."""
    place = node.origin.raw
    if not isinstance(place, NodePlace) or place.steps != 1 or source.calls is not None:
        return False
    proto = source.model.graph.node[place.index]
    slot = place.operands[by] if by < len(place.operands) else None
    weight = node.inputs[by]
    if not has_form_as_two(target_of(proto)) or slot is None or weight is None:
        return False
    stored = source.stored.get(weight.name)
    names = {t.name for t in source.model.graph.initializer}
    taken = {name for n in source.model.graph.node for name in (*n.input, *n.output)} | names
    if stored is None or stored.kind != "initializer" or weight.dtype not in ("f32", "f64", "f16"):
        return False
    free = all(f"{stored.name}.{i}" not in taken for i in (0, 1))
    return (
        free
        and stored.name in names
        and sum(name == stored.name for n in source.model.graph.node for name in n.input) == 1
    )


def with_split_nodes(source: OnnxSource, split: Mapping[str, SplitNode]) -> onnx.ModelProto:
    """The model behind ``source`` with the nodes that read the tensors ``split`` names as two
    nodes each."""
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        weight = next((name for name in node.input if name in split), None)
        nodes += [node] if weight is None else as_two(node, weight, *split[weight].names(weight))
    made = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(made)
    kinds = {t.name: t.data_type for t in graph.initializer}
    rest = [t for t in graph.initializer if t.name not in split]
    for name, one in split.items():
        for own, array in zip(one.names(name), (one.first, one.second), strict=True):
            rest.append(tensor_of(own, array, kinds[name]))
    kept = [TensorProto.FromString(t.SerializeToString()) for t in rest]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    inputs = [v for v in graph.input if v.name not in split]  # before IR version 4 they stand there
    if len(inputs) != len(graph.input):
        copies = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in inputs]
        added = [n for name, one in split.items() for n in one.names(name)]
        del graph.input[:]
        graph.input.extend(copies)
        for t in graph.initializer:
            if t.name in added:
                graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    return model


def with_products(source: OnnxSource, products: Mapping[str, Array]) -> onnx.ModelProto:
    """The model behind ``source`` as it is, with the arrays of ``products`` in the place of the
    tensors that they name."""
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    for tensor in model.graph.initializer:
        if tensor.name in products:
            made = tensor_of(tensor.name, products[tensor.name], tensor.data_type)
            if made.dims != tensor.dims:
                raise IrpruneError(f"a product of {list(made.dims)} for '{tensor.name}'")
            tensor.CopyFrom(made)
    return model

"""An independent judge of a cut of an ONNX model: the model itself on onnxruntime, with the weights
that were dropped zeroed. It runs no silencing and no cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from irprune.frontend.onnx.source import onnx_source
from irprune.ir.axis import Axis, find, leaves
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.selection import Selection
from irprune.ops.registry import lookup, role_of
from irprune.validate.judge_share import cut_apart

__all__ = ["judgeable_parts", "zeroed_model"]


def judgeable_parts(
    graph: Graph, kept: Selection, asked: Mapping[Node, Iterable[Axis]]
) -> Selection:
    """The part of ``kept`` for which zeroed weights compute what absent ones do: every sum over a
    dropped axis is a product with a stored weight.

    Args:
        graph: the analysed original.
        kept: what was chosen.
        asked: for nodes that are silenced, the dropped axes that they sum over or mix.

    Returns:
        The choice without the other axes; nothing where a result is drawn at random.
    """
    spoilt = cut_apart(graph, kept)
    for node in graph.nodes:
        entry = lookup(node)
        if entry is not None and entry.random:
            return Selection({})
        held = {
            x
            for i, v in enumerate(node.inputs)
            if isinstance(v, Weight) and role_of(node, i) == "weight" and _is_stored(graph, v)
            for x in _dropped(v, kept)
        }
        spoilt |= set(asked.get(node, ())) - held
    left = {a: k for a, k in kept.choice.items() if a not in spoilt}
    return Selection(left, {a: h for a, h in kept.within.items() if a in left})


def _dropped(value: Value, kept: Selection) -> set[Axis]:
    return {find(x) for a in value.axes or () for x in leaves(a) if kept.changes(x)}


def _is_stored(graph: Graph, weight: Weight) -> bool:
    stored = onnx_source(graph).stored.get(weight.name)
    return stored is not None and stored.kind in ("initializer", "constant")


def zeroed_model(graph: Graph, kept: Selection) -> onnx.ModelProto:
    """A copy of the model behind ``graph``, which holds all of its weights, with zeros at the
    indices that are dropped."""
    source = onnx_source(graph)
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    gone: dict[str, np.ndarray] = {}
    for weight in graph.weights.values():
        axes = weight.axes or ()
        cut = [d for d in range(weight.rank) if kept.changes(axes[d])]
        if not cut or not _is_stored(graph, weight):
            continue
        array = np.array(weight.load())
        for d in cut:
            array[np.broadcast_to(~kept.present(axes, d), array.shape)] = 0
        name = source.stored[weight.name].name
        gone[name] = np.where(array == 0, array, gone[name]) if name in gone else array
    for tensor in model.graph.initializer:
        if tensor.name in gone:
            made = numpy_helper.from_array(gone[tensor.name], tensor.name)
            if made.data_type == tensor.data_type and made.dims == tensor.dims:
                tensor.CopyFrom(made)
    for node in model.graph.node:
        for a in node.attribute:
            if a.name == "value" and node.output[0] in gone:
                a.t.CopyFrom(numpy_helper.from_array(gone[node.output[0]], a.t.name))
    return model

"""An independent judge of a cut of an ONNX model: the model itself on onnxruntime, with the weights
that were dropped zeroed. It runs no silencing and no cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from irprune.emit.onnx.file import without_arrays
from irprune.frontend.onnx.file import Loader
from irprune.frontend.onnx.source import onnx_source
from irprune.ir.axis import Axis, find, leaves
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.selection import Selection
from irprune.ops.registry import lookup, quantised_in, readers_of, role_of
from irprune.validate.judge_share import without
from irprune.validate.onnx_forced_branches import take_branches

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
    spoilt: set[Axis] = set()
    for node in graph.nodes:
        entry = lookup(node)
        if entry is not None and entry.random:
            return Selection({})
        held = {
            x
            for i, v in enumerate(node.inputs)
            if isinstance(v, Weight) and _multiplies(node, i) and _is_stored(graph, v)
            for x in _dropped(v, kept)
        }
        spoilt |= set(asked.get(node, ())) - held
    return without(graph, kept, spoilt)


def _multiplies(node: Node, i: int) -> bool:
    """Whether operand ``i`` is a factor of every term that ``node`` sums up."""
    entry = lookup(node)
    return role_of(node, i) == "weight" or (entry is not None and entry.letters is not None)


def _dropped(value: Value, kept: Selection) -> set[Axis]:
    return {find(x) for a in value.axes or () for x in leaves(a) if kept.changes(x)}


def _is_stored(graph: Graph, weight: Weight) -> bool:
    stored = onnx_source(graph).stored.get(weight.name)
    return stored is not None and stored.kind in ("initializer", "constant")


def zeroed_model(graph: Graph, kept: Selection) -> tuple[onnx.ModelProto, dict[str, Loader]]:
    """A copy of the model behind ``graph``, with zeros at the indices that are dropped, or the
    integers that stand for zeros; and what reads the tensors that lie apart from it."""
    source = onnx_source(graph)
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    take_branches(model, graph)
    data: dict[str, Loader] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            data[tensor.name] = source.files.loader(tensor)
            tensor.CopyFrom(without_arrays(tensor.name, tensor.data_type, tuple(tensor.dims)))
    gone: dict[str, np.ndarray] = {}
    for weight in graph.weights.values():
        axes = weight.axes or ()
        cut = [d for d in range(weight.rank) if kept.changes(axes[d])]
        if not cut or not _is_stored(graph, weight) or _says_integers(weight):
            continue
        name = source.stored[weight.name].name
        if name in data:
            data[name] = _zeroed_when_read(data[name], weight, kept)
            continue
        array = _zeroed(weight, np.array(weight.load()), kept)
        was = array == _nothing(weight, array)
        gone[name] = np.where(was, array, gone[name]) if name in gone else array
    for tensor in model.graph.initializer:
        if tensor.name in gone:
            made = numpy_helper.from_array(gone[tensor.name], tensor.name)
            if made.data_type == tensor.data_type and made.dims == tensor.dims:
                tensor.CopyFrom(made)
    for node in model.graph.node:
        for a in node.attribute:
            if a.name == "value" and node.output[0] in gone:
                a.t.CopyFrom(numpy_helper.from_array(gone[node.output[0]], a.t.name))
    return model, data


def _zeroed(weight: Weight, array: np.ndarray, kept: Selection) -> np.ndarray:
    """``array`` itself, with zeros of ``weight`` at what is dropped."""
    axes = weight.axes or ()
    nothing = np.broadcast_to(_nothing(weight, array), array.shape)
    for d in (d for d in range(weight.rank) if kept.changes(axes[d])):
        gone = np.broadcast_to(~kept.present(axes, d), array.shape)
        array[gone] = nothing[gone]
    return array


def _zeroed_when_read(load: Loader, weight: Weight, kept: Selection) -> Loader:
    return lambda: _zeroed(weight, np.array(load()), kept)


def _says_integers(weight: Weight) -> bool:
    """Whether ``weight`` says what integers stand for."""
    return any(
        at in (how.scale, how.zero, *how.more)
        for node, at in readers_of(weight)
        for how in quantised_in(node).values()
    )


def _nothing(weight: Weight, array: np.ndarray) -> np.ndarray:
    """What stands for zero in ``weight``, in a form that broadcasts against it."""
    for node, i in readers_of(weight):
        how = quantised_in(node).get(i)
        at = None if how is None else how.zero
        zero = node.inputs[at] if at is not None and node.has(at) else None
        if how is not None and isinstance(zero, Weight):
            return how.spread(np.asarray(zero.load()), array.shape).astype(array.dtype)
    return np.zeros((), array.dtype)

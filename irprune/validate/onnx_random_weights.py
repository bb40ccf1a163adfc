"""An ONNX model with random numbers for its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from irprune.emit.onnx.file import without_arrays
from irprune.frontend.onnx.closed_branches import close_branches
from irprune.frontend.onnx.file import Loader
from irprune.frontend.onnx.proto import dense
from irprune.frontend.onnx.source import onnx_source
from irprune.ir.dtype import is_float
from irprune.ir.graph import Graph, Weight
from irprune.ir.group import groups_of
from irprune.ir.selection import Selection
from irprune.ops.onnx.fold import is_constant, is_filled
from irprune.validate.onnx_forced_branches import take_branches
from irprune.validate.random_weights import Draw, is_redrawn, seeds

__all__ = ["same_choice", "with_random_weights"]


def with_random_weights(
    graph: Graph, draw: Draw | None, seed: int = 0
) -> tuple[onnx.ModelProto, dict[str, Loader]]:
    """A copy of the model behind ``graph`` with what ``draw`` makes of its floating-point
    parameters in their places (None: they stay); and what reads or draws the tensors that lie apart
    from it."""
    source = onnx_source(graph)
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    take_branches(model, graph)
    for sparse in model.graph.sparse_initializer:
        model.graph.initializer.append(numpy_helper.from_array(dense(sparse), sparse.values.name))
    del model.graph.sparse_initializer[:]
    model.ir_version = max(model.ir_version, 4)  # before, every initializer had to be an input
    own = seeds(graph, seed)
    moved: dict[str, onnx.TensorProto] = {}
    data = {
        t.name: source.files.loader(t)
        for t in model.graph.initializer
        if t.data_location == onnx.TensorProto.EXTERNAL
    }
    done: set[str] = set()
    for weight in graph.weights.values():
        stored = source.stored.get(weight.name)
        if stored is None or stored.kind == "folded" or stored.name in (*moved, *done):
            continue
        drawn = draw is not None and is_float(weight.dtype) and is_redrawn(weight, graph.kept)
        if drawn:
            assert draw is not None
            if stored.name in data:
                done.add(stored.name)
                data[stored.name] = _drawn(draw, weight, stored.load, own[weight.name])
                continue
            made = draw(weight, np.asarray(stored.load()), own[weight.name])
            moved[stored.name] = numpy_helper.from_array(made, stored.name)
    nodes = [
        n
        for n in model.graph.node
        if not ((is_constant(n.op_type) or is_filled(n.op_type)) and n.output[0] in moved)
    ]
    initializers = [
        without_arrays(t.name, t.data_type, tuple(t.dims))
        if t.name in data
        else moved.pop(t.name, t)
        for t in model.graph.initializer
    ]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*initializers, *moved.values()])
    return close_branches(model), data


def _drawn(draw: Draw, weight: Weight, load: Loader, seed: Any) -> Loader:
    """What draws the numbers of a weight when they are read."""
    return lambda: draw(weight, np.asarray(load()), seed)


def same_choice(graph: Graph, twin: Graph) -> Selection | None:
    """What is kept of ``graph`` as a choice of ``twin``, which has the same structure; None where
    the groups are others."""
    assert graph.kept is not None
    ours, theirs = groups_of(graph), groups_of(twin)
    if [(g.name, g.size, g.frozen) for g in ours] != [(g.name, g.size, g.frozen) for g in theirs]:
        return None
    at = {g.axis: other.axis for g, other in zip(ours, theirs, strict=True)}
    kept = graph.kept
    return Selection(
        {at[a]: k for a, k in kept.choice.items()},
        {at[a]: at[h] for a, h in kept.within.items()},
        kept.dropped,
    )

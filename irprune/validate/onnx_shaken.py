"""An ONNX model with random numbers for weights that say nothing: placeholders, zero-initialised
layers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from irprune.frontend.onnx.source import onnx_source
from irprune.ir.graph import Graph, Weight
from irprune.ir.group import groups_of
from irprune.ir.kept import Kept
from irprune.ops.onnx.fold import is_constant, is_filled
from irprune.ops.registry import readers_of, role_of

__all__ = ["same_choice", "shaken_model"]


def shaken_model(graph: Graph, seed: int = 0) -> onnx.ModelProto:
    """A copy of the model behind ``graph`` with random numbers added to its floating-point
    parameters and, where one is constant, in its place: of a size that lets signals last, scales
    and variances about one."""
    source = onnx_source(graph)
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    model.ir_version = max(model.ir_version, 4)  # before, every initializer had to be an input
    random = np.random.default_rng(seed)
    moved: dict[str, onnx.TensorProto] = {}
    for weight in graph.weights.values():
        stored = source.stored.get(weight.name)
        if (
            weight.kind != "parameter"
            or stored is None
            or stored.kind == "folded"
            or stored.name in moved
        ):
            continue
        array = np.asarray(stored.load())
        fan_in = max(1, array.size // array.shape[0]) if array.ndim > 1 else 100
        noise = (
            random.standard_normal(array.shape) * (1.5 / fan_in) ** 0.5
        )  # with ReLU 2 keeps a signal's size, without it 1
        if (array == array.flat[0]).all():
            array = np.full_like(array, _multiplies(weight))
        made = np.abs(array + noise) if _multiplies(weight) else array + noise
        moved[stored.name] = numpy_helper.from_array(made.astype(array.dtype), stored.name)
    nodes = [
        n
        for n in model.graph.node
        if not ((is_constant(n.op_type) or is_filled(n.op_type)) and n.output[0] in moved)
    ]
    initializers = [moved.pop(t.name, t) for t in model.graph.initializer]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*initializers, *moved.values()])
    return model


def _multiplies(weight: Weight) -> bool:
    """Whether ``weight`` is the scale or the variance of a norm."""
    return any(role_of(node, i) in ("scale", "variance") for node, i in readers_of(weight))


def same_choice(graph: Graph, twin: Graph) -> Kept | None:
    """What is kept of ``graph`` as a choice of ``twin``, which has the same structure; None where
    the groups are others."""
    assert graph.kept is not None
    ours, theirs = groups_of(graph), groups_of(twin)
    if [(g.name, g.size, g.frozen) for g in ours] != [(g.name, g.size, g.frozen) for g in theirs]:
        return None
    at = {g.axis: other.axis for g, other in zip(ours, theirs, strict=True)}
    kept = graph.kept
    return Kept(
        {at[a]: k for a, k in kept.choice.items()}, {at[a]: at[h] for a, h in kept.within.items()}
    )

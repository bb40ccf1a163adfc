"""fold-batch-norm: a batch norm in eval mode becomes part of the layer before it.

Before::

    %h: f32[1, 8, 6, 6] = conv(%x, %conv.weight)
    %y: f32[1, 8, 6, 6] = batch_norm(%h, %norm.weight, %norm.bias, %norm.mean, %norm.var)
        {training=False, eps=1e-05}

After::

    %h: f32[1, 8, 6, 6] = conv(%x, %conv.weight, %conv.bias)

with ``weight * s`` and ``(bias - mean) * s + shift``, where ``s = scale / sqrt(var + eps)``. Half
as many nodes, and nothing left to re-estimate: criteria and repairs that look for batch norms find
none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.ir.graph import Graph, Node, TensorType, Value, Weight
from irprune.passes.result import PassResult

__all__ = ["FoldBatchNorm"]

_LAYERS = ("conv", "linear", "conv_transpose")
Load = Callable[[], Any]


@dataclass(frozen=True)
class FoldBatchNorm:
    """Multiply batch norms in eval mode into the convolution or linear layer whose result they
    alone read."""

    def run(self, graph: Graph) -> PassResult:
        dead = [norm for norm in graph.nodes if norm.op == "batch_norm" and _fold(graph, norm)]
        graph.remove_all(dead)
        return PassResult(bool(dead))


def _fold(graph: Graph, norm: Node) -> bool:
    """Fold ``norm`` where that is sound; whether it was."""
    layer = norm.operand(0).producer
    if (
        layer is None
        or layer.op not in _LAYERS
        or norm.attrs.get("training")
        or not norm.has(3)
        or not norm.has(4)
    ):
        return False
    if (
        layer.out.users != {norm: 1}
        or any(v is layer.out for v in graph.outputs)
        or (layer.op == "linear" and layer.out.rank != 2)
    ):
        return False
    weight, bias = layer.inputs[1], layer.inputs[2] if layer.has(2) else None
    stored = [norm.inputs[i] if norm.has(i) else None for i in (1, 2, 3, 4)]
    if not isinstance(weight, Weight) or not all(
        v is None or isinstance(v, Weight) for v in (bias, *stored)
    ):
        return False
    scale, shift, mean, var = (v.load if isinstance(v, Weight) else None for v in stored)
    assert mean is not None and var is not None
    factor = _Factor(scale, var, float(norm.attrs["eps"]))
    old_weight, old_bias = weight.load, bias.load if isinstance(bias, Weight) else None
    groups = int(layer.attrs.get("groups", 1)) if layer.op == "conv_transpose" else 0

    def new_weight() -> Any:
        old = old_weight()
        return _like(_scaled(_numbers(old), factor(), groups), old)

    def new_bias() -> Any:
        begin = 0.0 if old_bias is None else _numbers(old_bias())
        made = (begin - _numbers(mean())) * factor()
        return _like(made if shift is None else made + _numbers(shift()), old_weight())

    held = _place(graph, weight, weight.name, weight.type, new_weight)
    own = (
        weight.name.removesuffix("weight") + "bias"
        if weight.name.endswith("weight")
        else f"{weight.name}.bias"
    )
    name = bias.name if bias is not None else own
    added = _place(
        graph, bias, name, TensorType(weight.dtype, (layer.out.shape[1],)), new_bias, like=weight
    )
    added.axes = layer.out.axes[1:2] if layer.out.axes is not None else None
    layer.set_inputs([layer.inputs[0], held, added, *layer.inputs[3:]])
    if layer.origin.dialect == "aten" and all(
        argument != "bias" for argument, _ in layer.origin.layout
    ):
        layer.origin.layout = (*layer.origin.layout, ("bias", 2))
    graph.replace(norm.out, layer.out)
    return True


@dataclass(frozen=True)
class _Factor:
    """``scale / sqrt(var + eps)``, computed when it is asked for."""

    scale: Load | None
    var: Load
    eps: float

    def __call__(self) -> NDArray[np.float64]:
        made: NDArray[np.float64] = (_numbers(self.var()) + self.eps) ** -0.5
        return made if self.scale is None else made * _numbers(self.scale())


def _scaled(
    weight: NDArray[np.float64], factor: NDArray[np.float64], groups: int
) -> NDArray[np.float64]:
    """``weight`` times the factor of its output channel: the first dimension, or (transposed)
    groups times the second."""
    if not groups:
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    blocks = weight.reshape(groups, -1, *weight.shape[1:]) * factor.reshape(
        groups, 1, -1, *[1] * (weight.ndim - 2)
    )
    made: NDArray[np.float64] = blocks.reshape(weight.shape)
    return made


def _place(
    graph: Graph,
    old: Value | None,
    name: str,
    type: TensorType,
    load: Load,
    like: Weight | None = None,
) -> Weight:
    """``old`` with other values where only this layer reads it, else a weight of its own."""
    if isinstance(old, Weight) and sum(old.users.values()) == 1 and not old.aliases:
        old.load = load
        return old
    source = old if isinstance(old, Weight) else like
    assert source is not None
    fresh, k = name, 1
    while fresh in graph.weights:
        fresh, k = f"{name}.folded{k}", k + 1
    made = graph.add_weight(Weight(fresh, type, load, source.kind, (), source.trainable))
    made.axes = source.axes if source is old else None
    return made


def _numbers(array: Any) -> NDArray[np.float64]:
    """A torch or numpy array in double precision."""
    return np.asarray(
        array.detach().double().cpu() if hasattr(array, "detach") else array, dtype=np.float64
    )


def _like(numbers: NDArray[np.float64], array: Any) -> Any:
    """``numbers`` as the kind and type of array that ``array`` is."""
    return (
        array.new_tensor(numbers) if hasattr(array, "new_tensor") else numbers.astype(array.dtype)
    )

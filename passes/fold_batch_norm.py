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
from irprune.ops.arrays import as_numpy, like
from irprune.ops.registry import (
    convolution_of,
    is_fixed_norm,
    lookup,
    operand_as,
    place_of,
    quantised_in,
)
from irprune.ops.traits import Role
from irprune.passes.result import PassResult

__all__ = ["FoldBatchNorm"]

Load = Callable[[], Any]


@dataclass(frozen=True)
class FoldBatchNorm:
    """Multiply batch norms in eval mode into the convolution or linear layer whose result they
    alone read."""

    def run(self, graph: Graph) -> PassResult:
        dead = [norm for norm in graph.nodes if is_fixed_norm(norm) and _fold(graph, norm)]
        graph.remove_all(dead)
        return PassResult(bool(dead))


def _fold(graph: Graph, norm: Node) -> bool:
    """Fold ``norm`` where that is sound; whether it was."""
    layer = norm.operand(0).producer
    at = _outputs(layer) if layer is not None else None
    if layer is None or at is None:
        return False
    if layer.out.users != {norm: 1} or any(v is layer.out for v in graph.outputs):
        return False
    weight, bias = operand_as(layer, "weight"), operand_as(layer, "bias")
    if bias is not None and bias.rank != 1:
        return False
    roles: tuple[Role, ...] = ("scale", "bias", "mean", "variance")
    stored = [operand_as(norm, role) for role in roles]
    if not isinstance(weight, Weight) or not all(
        v is None or isinstance(v, Weight) for v in (bias, *stored)
    ):
        return False
    scale, shift, mean, var = (v.load if isinstance(v, Weight) else None for v in stored)
    assert mean is not None and var is not None
    factor = _Factor(scale, var, float(norm.attrs["eps"]))
    old_weight, old_bias = weight.load, bias.load if isinstance(bias, Weight) else None

    def new_weight() -> Any:
        old = old_weight()
        return like(old, _scaled(_numbers(old), factor(), *at))

    def new_bias() -> Any:
        begin = 0.0 if old_bias is None else _numbers(old_bias())
        made = (begin - _numbers(mean())) * factor()
        return like(old_weight(), made if shift is None else made + _numbers(shift()))

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
    place = place_of(layer, "bias")
    given = [held if v is weight else v for v in layer.inputs]
    given += [None] * (place + 1 - len(given))
    given[place] = added
    layer.set_inputs(given)
    if layer.origin.dialect == "aten" and all(
        argument != "bias" for argument, _ in layer.origin.layout
    ):
        layer.origin.layout = (*layer.origin.layout, ("bias", place))
    graph.replace(norm.out, layer.out)
    return True


def _outputs(layer: Node) -> tuple[int, int] | None:
    """The dimension of the weight that makes the channels that a norm scales, and the groups that
    come before them there; None for what is no linear map with a bias of its own."""
    geometry = convolution_of(layer)
    if geometry is not None:
        plain = geometry.linear and geometry.batched and geometry.bias is not None
        held = isinstance(layer.inputs[geometry.kernel], Weight)
        if not plain or not held or quantised_in(layer):
            return None
        return (1, geometry.groups) if geometry.transposed else (0, 1)
    entry = lookup(layer)
    if entry is None or entry.letters is None or layer.out.rank != 2 or quantised_in(layer):
        return None
    at, bias = place_of(layer, "weight"), place_of(layer, "bias")
    if at < 0 or bias < 0 or any(layer.attrs.get(k, 1) != 1 for k in ("alpha", "beta")):
        return None
    *terms, out = entry.letters(layer)
    channel = out[1]
    simple = terms[at].count(channel) == 1 and all(
        channel not in t for i, t in enumerate(terms) if i not in (at, bias)
    )
    return (terms[at].index(channel), 1) if simple else None


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
    weight: NDArray[np.float64], factor: NDArray[np.float64], dim: int, groups: int
) -> NDArray[np.float64]:
    """``weight`` times the factor of its output channel: groups × dimension ``dim``, the groups
    lying along the first dimension."""
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    per: NDArray[np.float64] = factor.reshape(
        groups, *[-1 if d == dim else 1 for d in range(weight.ndim)]
    )
    made: NDArray[np.float64] = (blocks * per).reshape(weight.shape)
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
    """An array of a weight in double precision."""
    return as_numpy(array).astype(np.float64)

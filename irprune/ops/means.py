"""Means that are written out: a sum, then a product with one over how many were summed, or that
quotient.

A mean counts who is present, so that a norm written with it stays a norm when channels leave; the
number in a written-out one would go on counting those that left. Libraries on XLA spell every mean
so, and people do who divide by a width that they know."""

from __future__ import annotations

import math
from dataclasses import dataclass

from irprune.ir.dtype import is_float
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ops.arrays import as_numpy, is_meta
from irprune.ops.aten.reduce import reduced

__all__ = ["MEAN_OF_SUM", "WrittenMean", "become_mean", "written_means"]

# How each dialect spells the mean over what a sum of it is over
MEAN_OF_SUM = {
    "aten.sum.dim_IntList": "aten.mean.dim",
    "aten.sum.default": "aten.mean.default",
    "ReduceSum": "ReduceMean",
}
_TYPES = ("f32", "f64")  # sums of others are rounded before they are divided, as means are not
_EXACT = 1e-6  # how far a stored 1 / n may lie from it, relative


@dataclass(frozen=True)
class WrittenMean:
    """The nodes of one mean: ``total`` sums, ``scaled`` divides by how many; ``dims`` are the
    dimensions that are summed, counted from the front."""

    total: Node
    scaled: Node
    dims: list[int]


def written_means(graph: Graph) -> list[WrittenMean]:
    """The means that are written out in ``graph``, over dimensions of known sizes, each sum read by
    its quotient alone."""
    found = []
    for total in graph.nodes:
        if (
            total.op != "sum"
            or total.out.dtype not in _TYPES
            or total.operand(0).type.shape is None
        ):
            continue
        own, dims = total.operand(0), reduced(total)
        sizes = [s for d in dims if isinstance(s := own.shape[d], int) and s]
        if own.dtype != total.out.dtype or len(sizes) < len(dims):
            continue
        users = list(total.out.users)
        if len(users) != 1 or any(total.out is v for v in graph.outputs):
            continue
        number = _number(users[0], total.out)
        if number is not None and abs(number * math.prod(sizes) - 1) < _EXACT:
            found.append(WrittenMean(total, users[0], dims))
    return found


def _number(node: Node, scaled: Value) -> float | None:
    """What ``node`` multiplies ``scaled`` by; None where that is no single number, or where it does
    more than that."""
    quotient = node.op == "div"
    if not (quotient or node.op == "mul") or node.out.type != scaled.type:
        return None
    if len(node.inputs) == 1 and not set(node.attrs) - {"other", "rounding_mode"}:
        if node.attrs.get("rounding_mode") is not None:
            return None
        other = node.attrs.get("other")
        number = float(other) if isinstance(other, (int, float)) else None
    elif len(node.inputs) == 2 and node.inputs[int(node.inputs[0] is scaled)] is not scaled:
        if quotient and node.inputs[0] is not scaled:
            return None
        number = _stored(node.inputs[int(node.inputs[0] is scaled)])
    else:
        return None
    if number is None or not number:
        return None
    return 1 / number if quotient else number


def _stored(value: Value | None) -> float | None:
    """The number that a weight of one element holds and that is not trained."""
    if not isinstance(value, Weight) or value.kind == "parameter" or value.type.shape is None:
        return None
    if any(s != 1 for s in value.shape) or not is_float(value.dtype):
        return None
    array = value.load()
    return None if is_meta(array) else float(as_numpy(array).reshape(-1)[0])


def become_mean(graph: Graph, one: WrittenMean) -> None:
    """Let the sum of ``one`` be the mean; its quotient is read by nobody then."""
    one.total.op = "mean"
    one.total.origin.target = MEAN_OF_SUM[one.total.origin.target]
    graph.replace(one.scaled.out, one.total.out)

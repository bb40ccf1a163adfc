"""Weights that are stored as integers: which numbers they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.criteria.profile import as_numpy
from irprune.ir.graph import Node, Weight
from irprune.ir.size import probe_of

__all__ = ["is_integer", "is_step", "numbers"]

# operator: operand that is a weight -> operands that are its scale (None: it stands elsewhere) and
# its zero point
_PLACES: Mapping[str, Mapping[int, tuple[int | None, int]]] = {
    "dequantize_linear": {0: (1, 2)},
    "qlinear_gemm": {3: (4, 5)},
    "dynamic_lstm": {1: (8, 9), 2: (10, 11)},
}
_PRODUCTS = (
    "matmul_integer",
    "conv_integer",
    "qlinear_matmul",
    "qlinear_conv",
)  # their attribute says it
_INTEGERS = ("i8", "u8", "i16", "u16")


def _places(node: Node) -> Mapping[int, tuple[int | None, int]]:
    if node.op == "integer_matmul":
        return {1: (2, 3) if node.attrs["dynamic"] else (3, 5)}
    if node.op in _PRODUCTS:
        left, right, scales, zeros, _ = node.attrs["places"]
        return {left: (scales[0], zeros[0]), right: (scales[1], zeros[1])}
    return _PLACES.get(node.op, {})


def _reader(weight: Weight) -> tuple[Node, int] | None:
    """The first node that reads ``weight`` as the integers of a tensor, and where."""
    found = ((n, i) for n in weight.users for i in _places(n) if n.has(i) and n.inputs[i] is weight)
    return next(found, None)


def is_integer(weight: Weight) -> bool:
    """Whether ``weight`` holds the integers of a quantised tensor of at least two dimensions."""
    return weight.dtype in _INTEGERS and weight.rank > 1 and _reader(weight) is not None


def is_step(weight: Weight) -> bool:
    """Whether ``weight`` is the scale of a quantised tensor that is a weight as well."""
    return any(
        scale is not None
        and node.has(scale)
        and node.inputs[scale] is weight
        and isinstance(node.inputs[i], Weight)
        for node in weight.users
        for i, (scale, _) in _places(node).items()
    )


def numbers(weight: Weight) -> Any:
    """What ``weight`` holds; of integers the numbers that they stand for, where no scale is known
    in steps of 1/127."""
    found = _reader(weight) if is_integer(weight) else None
    if found is None:
        return weight.load()
    node, i = found
    scale, zero = _places(node)[i]
    out = as_numpy(weight.load(), weight.name)
    given = node.inputs[zero] if node.has(zero) else None
    out = out - _spread(node, weight, given) if isinstance(given, Weight) else out
    given = node.inputs[scale] if scale is not None and node.has(scale) else None
    return (
        out * _spread(node, weight, given) if isinstance(given, Weight) else out / np.float32(127)
    )


def _spread(node: Node, weight: Weight, given: Weight) -> NDArray[Any]:
    """Scales or zero points against ``weight``: one, one per index of a dimension, one per block of
    it."""
    array = as_numpy(given.load(), given.name)
    if array.size == 1:
        return array.reshape(())
    shape = weight.type.known
    if node.op == "dynamic_lstm":
        return array.reshape(array.shape[0], 1, -1)
    dim = (
        node.attrs["dim"]
        if node.op == "dequantize_linear"
        else 0
        if "conv" in node.op
        else len(shape) - 1
    )
    if array.ndim == len(shape):
        return np.repeat(array, probe_of(shape[dim]) // array.shape[dim], axis=dim)
    if node.op == "qlinear_gemm" and node.attrs["trans_b"]:
        dim = 0
    return array.reshape([-1 if d == dim else 1 for d in range(len(shape))])

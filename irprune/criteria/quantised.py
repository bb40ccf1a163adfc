"""Weights that are stored as integers: which numbers they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.criteria.profile import float_array
from irprune.ir.graph import Node, Weight
from irprune.ir.size import probe_of
from irprune.ops.registry import quantised_in, readers_of

__all__ = ["is_integer", "is_step", "numbers"]

_INTEGERS = ("i8", "u8", "i16", "u16")


def _reader(weight: Weight) -> tuple[Node, int] | None:
    """The first node that reads ``weight`` as the integers of a tensor, and where."""
    return next(((n, i) for n, i in readers_of(weight) if i in quantised_in(n)), None)


def is_integer(weight: Weight) -> bool:
    """Whether ``weight`` holds the integers of a quantised tensor of at least two dimensions."""
    return weight.dtype in _INTEGERS and weight.rank > 1 and _reader(weight) is not None


def is_step(weight: Weight) -> bool:
    """Whether ``weight`` is the scale of a quantised tensor that is a weight as well."""
    return any(
        at in (how.scale, *how.more) and i >= 0 and isinstance(node.inputs[i], Weight)
        for node, at in readers_of(weight)
        for i, how in quantised_in(node).items()
        if i < len(node.inputs)
    )


def numbers(weight: Weight) -> Any:
    """What ``weight`` holds; of integers the numbers that they stand for, where no scale is known
    in steps of 1/127."""
    found = _reader(weight) if is_integer(weight) else None
    if found is None:
        return weight.load()
    node, i = found
    how = quantised_in(node)[i]
    shape = [probe_of(s) for s in weight.shape]
    out = float_array(weight.load(), weight.name)
    zero, scale = (_given(node, at) for at in (how.zero, how.scale))
    out = out if zero is None else out - how.spread(zero, shape)
    return out / np.float32(127) if scale is None else out * how.spread(scale, shape)


def _given(node: Node, at: int | None) -> NDArray[Any] | None:
    """The stored operand ``at`` of ``node``, None where there is none."""
    value = node.inputs[at] if at is not None and node.has(at) else None
    return float_array(value.load(), value.name) if isinstance(value, Weight) else None

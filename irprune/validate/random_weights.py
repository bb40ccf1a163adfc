"""Random numbers for weights, where those of a model say nothing: placeholders, zero-initialised
layers. A cut shows in the outputs only where weights vary."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.ir.graph import Graph, Weight
from irprune.ops.registry import readers_of, role_of

__all__ = ["seeds", "with_random_numbers"]

_PLAIN = 100  # the fan-in that stands for that of a vector


def with_random_numbers(weight: Weight, array: NDArray[Any], seed: int) -> NDArray[Any]:
    """``array``, what ``weight`` holds, with random numbers added and, where it is constant, in its
    place: of a size that lets signals last, scales and variances about one. The same seed gives
    the same numbers; the element type stays."""
    fan_in = max(1, array.size // array.shape[0]) if array.ndim > 1 else _PLAIN
    noise = np.random.default_rng(seed).standard_normal(array.shape)
    noise *= (1.5 / fan_in) ** 0.5  # with ReLU 2 keeps a signal's size, without it 1
    around_one = _multiplies(weight)
    if array.size and (array == array.flat[0]).all():
        array = np.full_like(array, around_one)
    wide = array + noise if array.dtype.kind == "f" else array.astype(np.float64) + noise
    return (np.abs(wide) if around_one else wide).astype(array.dtype)


def seeds(graph: Graph, seed: int) -> dict[str, int]:
    """A seed for each weight of ``graph``, by name."""
    return {name: seed + k for k, name in enumerate(graph.weights)}


def _multiplies(weight: Weight) -> bool:
    """Whether ``weight`` is the scale or the variance of a norm."""
    return any(role_of(node, i) in ("scale", "variance") for node, i in readers_of(weight))

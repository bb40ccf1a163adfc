"""Random numbers for weights, where those of a model say little: placeholders, zero-initialised
layers, layer scales of 1e-6, softmaxes that saturate. A cut shows in the outputs only where weights
vary, and where what they lead to reaches an output."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from irprune.ir.graph import Graph, Weight
from irprune.ir.selection import Selection
from irprune.ops.registry import lookup, readers_of, role_of
from irprune.ops.traits import ADDED

__all__ = ["Draw", "is_redrawn", "redrawn", "seeds", "with_random_numbers"]


class Draw(Protocol):
    """Makes random numbers for a weight that holds an array, from a seed; of ``dtype`` where one is
    given, with the values that they have in the array's own."""

    def __call__(
        self,
        weight: Weight,
        array: NDArray[Any],
        seed: int,
        dtype: np.dtype[Any] | None = None,
        /,
    ) -> NDArray[Any]:
        """The numbers."""


_PLAIN = 100  # the fan-in that stands for that of a vector
_BLOCK = 1 << 18  # numbers that are drawn at a time
_PERIOD = 1_048_573  # a prime, so that no two rows of a matrix hold the same numbers


def with_random_numbers(
    weight: Weight, array: NDArray[Any], seed: int, dtype: np.dtype[Any] | None = None
) -> NDArray[Any]:
    """``array``, what ``weight`` holds, with random numbers added and, where it is constant, in its
    place: of a size that lets signals last, scales and variances about one. The same seed gives
    the same numbers; they are rounded to the array's element type, and are of ``dtype`` where it is
    given."""
    fan_in = max(1, array.size // array.shape[0]) if array.ndim > 1 else _PLAIN
    # With ReLU 2 keeps a signal's size, without it 1
    noise = _normal(array.shape, seed) * (1.5 / fan_in) ** 0.5
    around_one = _multiplies(weight)
    if array.size and (array == array.flat[0]).all():
        array = np.full_like(array, around_one)
    wide = array + noise if array.dtype.kind == "f" else array.astype(np.float64) + noise
    made: NDArray[Any] = (np.abs(wide) if around_one else wide).astype(array.dtype)
    return made if dtype is None else made.astype(dtype)


def redrawn(
    weight: Weight, array: NDArray[Any], seed: int, dtype: np.dtype[Any] | None = None
) -> NDArray[Any]:
    """Random numbers in the place of ``array``, what ``weight`` holds.

    Kernels and matrices keep a signal's size and have rows that are up to four times as large as
    others, so that what has a threshold falls on both sides of it. Vectors that are added lie about
    zero, those that multiply, and variances, about one. What holds infinities (a mask) stays.

    Args:
        weight: whose readers say what the numbers are for.
        array: what it holds; it stays as it is.
        seed: the same seed gives the same numbers.
        dtype: the element type of the result; the values are rounded to that of ``array``.

    Returns:
        An array of the same shape, and of the same element type where no other is asked for.
    """
    own = array.dtype
    dtype = own if dtype is None else dtype
    if not array.size or not np.isfinite(array.astype(np.float32, copy=False)).all():
        return array.astype(dtype, copy=dtype != own)
    roles = {role_of(node, i) for node, i in readers_of(weight)}
    shape = array.shape
    vector = max(shape, default=1) == array.size
    fan_in = 1 if vector else _fan_in(weight, array)
    del array  # the largest weights are not held twice
    if vector:
        made = _normal(shape, seed)
        if _multiplies(weight) or not roles & set(ADDED):
            made = np.float32(1) + np.tanh(made) * np.float32(0.5)
        else:
            made *= np.float32(0.4)
        return made.astype(own, copy=False).astype(dtype, copy=False)
    rows = np.ones(shape[0], np.float32)
    if "table" not in roles:
        rows = 2 ** np.tanh(_normal((shape[0],), seed + 1))
        rows *= np.float32((1.7 / fan_in) ** 0.5)
    out = np.empty(shape, dtype)
    each = out.size // shape[0]
    step = max(1, _BLOCK // each)
    for at in range(0, shape[0], step):  # nor are those in two types
        scale = rows[at : at + step].reshape(-1, *[1] * (len(shape) - 1))
        block = _normal((len(scale), *shape[1:]), seed, skip=at * each)
        block *= scale
        out[at : at + step] = block.astype(own, copy=False)
    return out


def is_redrawn(weight: Weight, kept: Selection | None) -> bool:
    """Whether ``redrawn`` may take the place of ``weight``: parameters and, of buffers, the
    statistics of norms and what the cut itself goes through."""
    if weight.kind == "parameter":
        return True
    if any(role_of(node, i) in ("mean", "variance") for node, i in readers_of(weight)):
        return True
    return (
        weight.kind == "buffer"
        and kept is not None
        and any(kept.changes(a) for a in weight.axes or ())
    )


def seeds(graph: Graph, seed: int) -> dict[str, int]:
    """A seed for each weight of ``graph``, by name."""
    return {name: seed + 7919 * k for k, name in enumerate(graph.weights)}


@lru_cache(maxsize=1)
def _pool() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(_PERIOD, dtype=np.float32)


def _normal(shape: tuple[int, ...], seed: int, skip: int = 0) -> NDArray[np.float32]:
    """Normal numbers, out of one pool: drawing them is what costs most in large weights. They are
    those that follow ``skip`` others of the same seed."""
    pool = _pool()
    start = (int(np.random.default_rng(seed).integers(_PERIOD)) + skip) % _PERIOD
    out = np.empty(shape, np.float32)
    flat = out.reshape(-1)
    at = 0
    while at < flat.size:
        some = pool[start : start + flat.size - at]
        flat[at : at + some.size] = some
        at, start = at + some.size, 0
    return out


def _fan_in(weight: Weight, array: NDArray[Any]) -> int:
    """How many products are summed up for an element of what ``weight`` is multiplied into."""
    for node, i in readers_of(weight):
        entry = lookup(node)
        if array.ndim == 2 and entry is not None and entry.signature is not None:
            summed = [d for d, _ in entry.signature.contracted(node).get(i, ())]
            if summed == [0]:
                return max(1, int(array.shape[0]))
    return max(1, int(array.size) // max(1, int(array.shape[0])))


def _multiplies(weight: Weight) -> bool:
    """Whether ``weight`` is the scale or the variance of a norm."""
    return any(role_of(node, i) in ("scale", "variance") for node, i in readers_of(weight))

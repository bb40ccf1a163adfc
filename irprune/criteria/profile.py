"""Sums of ``|w|`` or ``w**2`` along dimensions of an array: the one pass over the weights that
magnitude needs."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.errors import IrpruneError
from irprune.ops.arrays import as_numpy, is_meta, is_tensor

__all__ = ["float_array", "profile"]

_CHUNK = 1 << 17  # elements worked on at once: half a megabyte stays in cache
_INF = float("inf")
_HUGE = 1e18  # its square still fits 32 bits


def float_array(array: Any, where: str = "") -> NDArray[Any]:
    """A torch tensor or numpy array as a floating-point numpy array, without a copy where it can
    be.

    Raises IrpruneError for a tensor without values (``meta`` device).
    """
    if not is_tensor(array):
        plain: NDArray[Any] = np.asarray(array)
        return plain if plain.dtype in (np.float32, np.float64) else plain.astype(np.float32)
    if is_meta(array):
        raise IrpruneError(
            "a weight has no values: it is on the meta device",
            where,
            "load it, or use importance='random' or 'uniform'",
        )
    if str(array.dtype) not in ("torch.float32", "torch.float64"):
        array = array.float()
    return as_numpy(array)


def _space(chunk: NDArray[Any]) -> NDArray[Any]:
    """Room for an array like ``chunk``, the same for every chunk of a thread: fresh pages would
    cost more than the arithmetic."""
    if chunk.size > _CHUNK:
        return np.empty(chunk.shape, dtype=chunk.dtype)
    held: NDArray[Any] | None = getattr(_own, chunk.dtype.char, None)
    if held is None:
        held = np.empty(_CHUNK, dtype=chunk.dtype)
        setattr(_own, chunk.dtype.char, held)
    return held[: chunk.size].reshape(chunk.shape)


_own = threading.local()


def _without_mask(array: NDArray[Any], masks: bool) -> NDArray[Any] | None:
    """``array`` with zeros for the one huge negative number that masks many positions and weighs
    nothing, and with ``masks`` for -inf; None where it is no mask."""
    if masks and np.isneginf(array).any():
        finite = np.where(np.isneginf(array), array.dtype.type(0), array)
        return finite if np.isfinite(finite).all() else None
    huge = np.abs(array) > _HUGE
    values = array[huge]
    if (
        np.isnan(array).any()
        or values.size * 8 < array.size
        or (values > 0).any()
        or (values != values[0]).any()
    ):
        return None
    cleared: NDArray[Any] = np.where(huge, array.dtype.type(0), array)
    return cleared


def profile(
    array: Any,
    dims: Iterable[tuple[int, ...]],
    p: float = 2.0,
    where: str = "",
    masks: bool = False,
) -> dict[tuple[int, ...], NDArray[np.float64]]:
    """For each of ``dims`` the sum of ``|w|**p`` over all other dimensions (``p`` is 1 or 2; the
    maximum for ``inf``).

    Each is one dimension or two. ``array`` (torch or numpy, any shape with at least one dimension)
    is read once, in chunks, in its own precision (half precisions as float32). With ``masks``, -inf
    weighs nothing: an array that is added or looked up is known by its finite part. Raises
    IrpruneError where a value is NaN or infinite otherwise, naming ``where``."""
    shape = tuple(array.shape)
    if str(array.dtype).removeprefix("torch.") in ("float32", "float64"):
        array = float_array(array, where)  # as it lies; half precisions are widened chunk by chunk
    wanted = list(dims)
    rows = np.zeros(shape[0], dtype=np.float64)
    width = int(np.prod(shape[1:], dtype=np.int64))
    inner = any(0 not in d for d in wanted)
    pairs = {
        d: np.zeros((shape[0], shape[max(d)]), dtype=np.float64)
        for d in wanted
        if 0 in d and len(d) > 1
    }
    rest = np.zeros(width, dtype=np.float64)
    step = max(1, _CHUNK // max(width, 1))
    across = down = np.ones(0, dtype=np.float32)
    with np.errstate(over="ignore"):  # what overflows is seen below
        # An empty weight (no register tokens) weighs nothing
        for at in range(0, shape[0] if width else 0, step):
            chunk = float_array(array[at : at + step], where).reshape(-1, width)
            powers = _space(chunk)
            np.square(chunk, out=powers) if p == 2.0 else np.abs(chunk, out=powers)
            if p == _INF:
                rows[at : at + step] = powers.max(axis=1, initial=0.0)
                rest = np.maximum(rest, powers.max(axis=0))
            else:
                if not at:
                    across, down = (
                        np.ones(width, dtype=powers.dtype),
                        np.ones(len(powers), dtype=powers.dtype),
                    )
                rows[at : at + step] = powers @ across if width > 1 else powers[:, 0]
                if inner:
                    rest += down[: len(powers)] @ powers
            for d, pair in pairs.items():
                pair[at : at + step] = _between(powers, shape, max(d), p)
    if not np.isfinite(rows).all():
        plain = _without_mask(float_array(array), masks)
        if plain is not None:
            return profile(plain, wanted, p, where, masks)
        raise IrpruneError(
            "a weight holds NaN or infinity", where, "repair the model before it is pruned"
        )
    folded = rest.reshape(shape[1:])
    out: dict[tuple[int, ...], NDArray[np.float64]] = {}
    for d in wanted:
        if 0 in d:
            out[d] = rows if len(d) == 1 else pairs[d]
        else:
            others = tuple(k for k in range(len(shape) - 1) if k + 1 not in d)
            out[d] = folded.max(axis=others, initial=0.0) if p == _INF else folded.sum(axis=others)
    return {d: made.T if list(d) != sorted(d) else made for d, made in out.items()}


def _between(powers: NDArray[Any], shape: tuple[int, ...], d: int, p: float) -> NDArray[Any]:
    """Rows of ``powers`` summed over all but dimension ``d`` of the whole array's ``shape``."""
    tail = prod(shape[d + 1 :])
    if p == _INF:
        most: NDArray[Any] = powers.reshape(len(powers), -1, shape[d], tail).max(
            axis=(1, 3), initial=0.0
        )
        return most
    ends = powers.reshape(-1, tail) @ np.ones(tail, dtype=powers.dtype) if tail > 1 else powers
    total: NDArray[Any] = ends.reshape(len(powers), -1, shape[d]).sum(axis=1)
    return total

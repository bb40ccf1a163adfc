"""How far two results lie apart: the one measure that proofs, parity and comparisons use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.ops.arrays import as_numpy

__all__ = ["array_error", "channel_error", "relative_error"]

_LEAST = 1e-12  # a result of zeros has no magnitude to be relative to


def array_error(ours: Any, theirs: Any, least: float = 0.0) -> float:
    """The largest difference of two arrays, relative to the largest finite magnitude of ``theirs``.

    Args:
        ours: an array of numpy or a tensor of torch, of numbers, booleans or strings.
        theirs: what ``ours`` should be.
        least: what the difference is at least relative to.

    Returns:
        0 for equal arrays; infinite where shapes or the places of NaNs differ, where an infinity
        stands beside a number, and where strings differ.
    """
    a, b = as_numpy(ours), as_numpy(theirs)
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    if not (_is_number(a) and _is_number(b)):
        return 0.0 if np.array_equal(a, b) else float("inf")
    wide = np.complex128 if np.iscomplexobj(a) or np.iscomplexobj(b) else np.float64
    x, y = a.astype(wide), b.astype(wide)
    if not np.array_equal(np.isnan(x), np.isnan(y)):
        return float("inf")
    with np.errstate(invalid="ignore"):
        gap = np.where((x == y) | np.isnan(x), 0.0, np.abs(x - y))
    finite = np.abs(y[np.isfinite(y)])
    scale = float(finite.max()) if finite.size else 1.0
    return float(gap.max() / max(scale, least, _LEAST))


def channel_error(ours: Iterable[Any], theirs: Iterable[Any], floor: float) -> float:
    """The largest difference over all outputs, relative to how much what it is in varies.

    In each output, for each index of each dimension (a channel among them), the largest difference
    is divided by the range of the values there, the largest less the smallest: a wrong score is
    seen beside boxes that are 640 times as large.

    Args:
        ours: arrays of numpy or tensors of torch.
        theirs: what ``ours`` should be.
        floor: a range counts as at least this share of the largest magnitude there, below which
            rounding decides.

    Returns:
        0 where all are equal; infinite as for ``array_error``.
    """
    pairs = zip(ours, theirs, strict=True)
    return max((_by_channel(as_numpy(a), as_numpy(b), floor) for a, b in pairs), default=0.0)


def _by_channel(a: NDArray[Any], b: NDArray[Any], floor: float) -> float:
    whole = array_error(a, b)
    if whole == 0 or whole == float("inf") or a.dtype.kind not in "fV":
        return whole
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(y)
    # What is infinite or NaN stands in the same places on both sides
    gap = np.where(finite, np.abs(np.subtract(x, y, where=finite, out=np.zeros_like(y))), 0.0)
    low, high = np.where(finite, y, np.inf), np.where(finite, y, -np.inf)
    found = whole
    for d in (None, *(d for d in range(y.ndim) if 1 < y.shape[d] < y.size)):
        others = tuple(k for k in range(y.ndim) if k != d)
        least, most = low.min(axis=others), high.max(axis=others)
        size = np.maximum(np.abs(least), np.abs(most))
        least, most, size = (np.where(np.isfinite(v), v, 0.0) for v in (least, most, size))
        # What does not vary at all, as a single number, is compared with its size
        scale = np.where(most == least, size, np.maximum(most - least, floor * size))
        scale = np.maximum(scale, _LEAST)
        found = max(found, float(np.max(gap.max(axis=others) / scale)))
    return found


def relative_error(ours: Iterable[Any], theirs: Iterable[Any], share: float = 0.0) -> float:
    """The largest ``array_error`` over all outputs.

    Args:
        ours: arrays of numpy or tensors of torch.
        theirs: what ``ours`` should be.
        share: an output whose largest magnitude is below this share of the largest one of all is
            compared with that share of it.

    Returns:
        0 for no outputs.

    Raises:
        ValueError: where there are more on one side.
    """
    pairs = list(zip(ours, theirs, strict=True))
    least = share * max((_magnitude(b) for _, b in pairs), default=0.0) if share else 0.0
    return max((array_error(a, b, least) for a, b in pairs), default=0.0)


def _magnitude(x: Any) -> float:
    """The largest finite magnitude of what is no text."""
    a = as_numpy(x)
    if not _is_number(a) or a.size == 0:
        return 0.0
    finite = np.abs(a[np.isfinite(a)]) if a.dtype.kind in "fc" else np.abs(a.astype(np.float64))
    return float(finite.max()) if finite.size else 0.0


def _is_number(a: np.ndarray[Any, Any]) -> bool:
    return a.dtype.kind in "fiubcV"  # V: the types of ml_dtypes

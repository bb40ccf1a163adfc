"""How far two results lie apart: the one measure that proofs, parity and comparisons use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from irprune.ops.arrays import as_numpy

__all__ = ["array_error", "relative_error"]

_LEAST = 1e-12  # a result of zeros has no magnitude to be relative to


def array_error(ours: Any, theirs: Any) -> float:
    """The largest difference of two arrays, relative to the largest finite magnitude of ``theirs``.

    Args:
        ours: an array of numpy or a tensor of torch, of numbers, booleans or strings.
        theirs: what ``ours`` should be.

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
    return float(gap.max() / max(scale, _LEAST))


def relative_error(ours: Iterable[Any], theirs: Iterable[Any]) -> float:
    """The largest ``array_error`` over all outputs; 0 for none. Raises ValueError where there are
    more on one side."""
    return max((array_error(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _is_number(a: np.ndarray[Any, Any]) -> bool:
    return a.dtype.kind in "fiubcV"  # V: the types of ml_dtypes

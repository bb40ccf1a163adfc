"""``x[mask] = y``: what is written where a mask says so is a choice between two values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["as_choice"]

_PUTS = (torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


def as_choice(func: Any, args: Sequence[Any]) -> Callable[[], torch.Tensor] | None:
    """What does the same as ``func``, in operators that leave every dimension what it is.

    Positions that a mask selects are known at run time alone; where the same is written to all of
    them, nothing follows from which they are.

    Args:
        func: an overload of ATen.
        args: what it is called with.

    Returns:
        A function that runs those operators; None for any other operator, and where each position
        gets a value of its own.
    """
    if func not in _PUTS or len(args) != 3 or len(args[1]) != 1:
        return None
    x, (mask,), y = args
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        return None
    behind = x.dim() - mask.dim()
    if y.dim() > behind or y.dtype != x.dtype:
        return None

    def choose() -> torch.Tensor:
        chosen = mask[(..., *[None] * behind)] if behind else mask
        made = x.masked_fill(chosen, y) if y.dim() == 0 else torch.where(chosen, y, x)
        return x.copy_(made) if func is _PUTS[0] else made

    return choose

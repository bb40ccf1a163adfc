"""Inputs for proofs and comparisons: random where numbers are continuous, the example's own where
they have a meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["draw", "flat_tensors", "redraw"]


def draw(example: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random numbers with the mean and spread of ``example``; integers and booleans are the
    example's own, a constant stays."""
    if not example.is_floating_point() or example.numel() == 0 or example.is_meta:
        return example
    flat = example.detach().double().cpu()
    spread, middle = float(flat.std(correction=0)), float(flat.mean())
    if not (0 < spread < float("inf")) or not abs(middle) < float("inf"):
        return example
    made = torch.randn(example.shape, generator=generator, dtype=torch.float64) * spread + middle
    return made.to(example.dtype).to(example.device)


def redraw(
    args: Sequence[Any], kwargs: dict[str, Any], seed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``args`` and ``kwargs`` with every floating-point tensor drawn anew; the same seed gives the
    same numbers."""
    generator = torch.Generator().manual_seed(seed)
    made = over_tensors((tuple(args), dict(kwargs)), lambda t: draw(t, generator))
    return made[0], made[1]


def over_tensors(tree: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``tree`` with ``change`` applied to each tensor in it."""
    return pytree.tree_map(lambda x: change(x) if isinstance(x, torch.Tensor) else x, tree)


def flat_tensors(result: Any) -> list[torch.Tensor]:
    """The tensors of a nested result, in order."""
    return [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]

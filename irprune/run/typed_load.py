"""Loaders of weights that give their values in the type in which they are computed with, and hold
them in no other beside: the largest weight is not in memory twice."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from irprune.ir.graph import Weight
from irprune.ops.arrays import as_tensor

__all__ = ["TypedLoad", "load_typed"]


class TypedLoad(ABC):
    """What a weight loads, in its own type or in another."""

    @abstractmethod
    def __call__(self) -> torch.Tensor:
        """The values in the weight's own type."""

    @abstractmethod
    def typed(self, dtype: torch.dtype) -> torch.Tensor:
        """A new tensor of the values in ``dtype``, which the caller may write to."""


def load_typed(weight: Weight, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A new tensor of the values of ``weight`` in ``dtype``, by default its own, which the caller
    may write to."""
    if dtype is None:
        return as_tensor(weight.load()).clone()
    if isinstance(weight.load, TypedLoad):
        return weight.load.typed(dtype)
    return as_tensor(weight.load()).to(dtype, copy=True)

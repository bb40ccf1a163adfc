"""Tensors that a call makes and that outlast it, in memory up to what it may take, beyond that in
temporary files: the repaired weights of a model that is larger than memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable

import torch

from irprune.base.memory import memory_share

__all__ = ["spill"]

_held = 0  # bytes of those in memory that still live


def spill(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """What gives a copy of ``tensor`` whenever it is called; a file that it lies in is gone when
    this is."""
    size = tensor.nbytes
    if tensor.is_cuda or _held + size <= memory_share():
        return _InMemory(tensor)
    return _InFile(tensor)


class _InMemory:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        size = tensor.nbytes
        _count(size)
        weakref.finalize(self, _count, -size)

    def __call__(self) -> torch.Tensor:
        return self.tensor.clone()


class _InFile:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape, self.dtype = tensor.shape, tensor.dtype
        number, self.path = tempfile.mkstemp(prefix="irprune-")
        weakref.finalize(self, os.unlink, self.path)
        with os.fdopen(number, "wb") as out:
            out.write(tensor.reshape(-1).view(torch.uint8).numpy().data)

    def __call__(self) -> torch.Tensor:
        count = self.shape.numel()
        if not count:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.from_file(self.path, size=count, dtype=self.dtype).reshape(self.shape)


def _count(size: int) -> None:
    global _held
    _held += size

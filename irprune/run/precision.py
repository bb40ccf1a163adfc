"""What a comparison must know of the precision of a model: whether it is of 16 bits, and float32 as
it is written, which a GPU does not do by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from irprune.ir.graph import Graph

__all__ = ["computing_type", "full_float32", "has_half_floats"]


def computing_type(graph: Graph) -> torch.dtype | None:
    """The type that a graph is computed in to look at what its values are: float32 where it has
    floats of 16 bits, whose rounding is no part of that; None, as it is, for others."""
    return torch.float32 if graph.has_half_floats else None


def has_half_floats(model: nn.Module) -> bool:
    """Whether a parameter of ``model`` is a float of 16 bits."""
    return any(p.is_floating_point() and p.element_size() == 2 for p in model.parameters())


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Products in all of float32's 24 bits: by default CUDA's convolutions round their operands to
    11 (TF32), an error of 1e-3."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        before = matmul.allow_tf32, cudnn.allow_tf32
    except (
        RuntimeError
    ):  # set operator by operator through torch's newer switches, which these cannot read
        yield
        return
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before

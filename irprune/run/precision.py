"""Float32 as it is written: what a comparison to 1e-4 needs and a GPU does not do by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["full_float32"]


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

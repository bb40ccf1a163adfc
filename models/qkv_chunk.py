"""Fused qkv cut by chunk: the projection's width is the sum of three equal parts, each heads x
head_dim."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import randomize


class ChunkAttention(nn.Module):
    """[batch, length, width] to the same shape."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.enter = nn.Linear(8, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.leave = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.leave(x + self.out(y))


def build(small: bool = False, width: int = 32, heads: int = 4) -> nn.Module:
    return randomize(ChunkAttention(width, heads))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randn(2, 6, 8),), {}


CASE = Case(
    "qkv_chunk",
    ("small", "transformer", "attention", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch"), 1: Dim("length")}},
    left=0.280,
)

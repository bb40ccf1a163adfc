"""Fused qkv cut by split with literal sizes, one key/value head for all query heads (multi-query
attention).

The projection's width is heads x head_dim + head_dim + head_dim, and the lone key head broadcasts
over the queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim

from models import Case, Inputs
from models._weights import randomize


class SplitAttention(nn.Module):
    """[batch, length, 8] to [batch, length, 4]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.enter = nn.Linear(8, width)
        self.qkv = nn.Linear(width, width + 2 * self.head_dim)
        self.out = nn.Linear(width, width)
        self.leave = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        b, n, width = x.shape
        q, k, v = torch.split(self.qkv(x), [width, self.head_dim, self.head_dim], dim=-1)
        q = q.reshape(b, n, self.heads, self.head_dim).permute(0, 2, 1, 3)
        scores = (q @ k.unsqueeze(1).mT) * self.head_dim**-0.5
        y = scores.softmax(-1) @ v.unsqueeze(1)
        return self.leave(x + self.out(y.permute(0, 2, 1, 3).reshape(b, n, width)))


def build(small: bool = False, width: int = 32, heads: int = 4) -> nn.Module:
    return randomize(SplitAttention(width, heads))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randn(2, 6, 8),), {}


CASE = Case(
    "qkv_split",
    ("small", "transformer", "attention", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch"), 1: Dim("length")}},
    left=0.336,
)

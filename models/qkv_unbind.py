"""Fused qkv cut by view and unbind with the heads outermost: the projection's width is heads x 3 x
head_dim."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim

from models import Case, Inputs
from models._weights import randomize


class UnbindAttention(nn.Module):
    """[batch, length, 8] to [batch, length, 4]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.enter = nn.Linear(8, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.leave = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, self.heads, 3, self.head_dim).unbind(3)
        q, k, v = q.transpose(1, 2), k.permute(0, 2, 3, 1), v.transpose(1, 2)
        weights = torch.softmax(torch.matmul(q, k) / self.head_dim**0.5, dim=-1)
        y = torch.matmul(weights, v).transpose(1, 2).contiguous().view(b, n, -1)
        return self.leave(x + self.out(y))


def build(small: bool = False, width: int = 32, heads: int = 4) -> nn.Module:
    return randomize(UnbindAttention(width, heads))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randn(2, 6, 8),), {}


CASE = Case(
    "qkv_unbind",
    ("small", "transformer", "attention", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch"), 1: Dim("length")}},
    left=0.280,
)

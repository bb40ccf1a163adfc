"""Attention in einsum alone: the weights have heads and head_dim as dimensions of their own, and
nothing is reshaped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import Case, Inputs
from models._weights import normal, randomize


class EinsumAttention(nn.Module):
    """[batch, length, 8] to [batch, length, 4]."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.enter = nn.Linear(8, width)
        self.query = normal(width, heads, head_dim, std=width**-0.5)
        self.key = normal(width, heads, head_dim, std=width**-0.5)
        self.value = normal(width, heads, head_dim, std=width**-0.5)
        self.out = normal(heads, head_dim, width, std=(heads * head_dim) ** -0.5)
        self.scale = head_dim**-0.5
        self.leave = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q = torch.einsum("btd,dhk->bthk", x, self.query)
        k = torch.einsum("bsd,dhk->bhsk", x, self.key)
        v = torch.einsum("bsd,dhk->bshk", x, self.value)
        weights = torch.einsum("bthk,bhsk->bhts", q, k).mul(self.scale).softmax(-1)
        y = torch.einsum("bhts,bshk,hkd->btd", weights, v, self.out)
        return self.leave(x + y)


def build(small: bool = False, width: int = 24, heads: int = 4, head_dim: int = 8) -> nn.Module:
    return randomize(EinsumAttention(width, heads, head_dim))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randn(2, 6, 8),), {}


CASE = Case(
    "einsum_attention", ("small", "transformer", "attention"), build, example_inputs, left=0.274
)

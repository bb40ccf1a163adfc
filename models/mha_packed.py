"""Packed nn.MultiheadAttention, once with itself and once with a memory, with and without the
averaged weights.

One parameter holds the three projections; self-attention multiplies by all of it, cross attention
by slices of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import Case, Inputs
from models._weights import randomize


class PackedAttention(nn.Module):
    """Returns [batch, length, 4] and the weights of the cross attention, averaged over heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.enter = nn.Linear(8, width)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, 4)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        x, memory = self.enter(x), self.enter(memory)
        y, _ = self.self_attention(x, x, x, need_weights=False)
        x = self.norm(x + y)
        y, weights = self.cross_attention(x, memory, memory)
        return self.leave(x + y), weights


def build(small: bool = False, width: int = 32, heads: int = 4) -> nn.Module:
    model = randomize(PackedAttention(width, heads))
    for attention in (model.self_attention, model.cross_attention):
        nn.init.normal_(attention.in_proj_bias, std=0.1)
    return model


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randn(2, 6, 8), torch.randn(2, 9, 8)), {}


CASE = Case(
    "mha_packed",
    ("small", "transformer", "attention", "several_outputs"),
    build,
    example_inputs,
    left=0.271,
)

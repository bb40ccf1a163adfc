"""A transformer with mixtures of experts, whose weights are stacked as one parameter [experts, in,
out].

All experts run and a mask keeps the top two, so that the graph has no data-dependent shape. The
hidden axis lies inside the stack and may keep different units in each expert; dropping an expert
also drops a row of the router. After Jiang et al. 2024 (Mixtral, arXiv:2401.04088)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import norm_weight, normal, randomize


class MixtureOfExperts(nn.Module):
    def __init__(self, width: int, hidden: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.chosen = chosen
        self.router = nn.Linear(width, experts, bias=False)
        self.gate = normal(experts, width, hidden, std=width**-0.5)
        self.up = normal(experts, width, hidden, std=width**-0.5)
        self.down = normal(experts, hidden, width, std=hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        tokens = x.reshape(-1, width)
        share = self.router(tokens).softmax(-1)
        top, index = share.topk(self.chosen, dim=-1)
        share = torch.zeros_like(share).scatter(-1, index, top / top.sum(-1, keepdim=True))
        gate = torch.einsum("nd,edf->enf", tokens, self.gate)
        up = torch.einsum("nd,edf->enf", tokens, self.up)
        y = torch.bmm(F.silu(gate) * up, self.down)
        y = torch.einsum("end,ne->nd", y, share)
        return y.view(batch, length, width)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.RMSNorm(width)
        self.experts = MixtureOfExperts(width, hidden, experts, chosen)
        self.norm1.weight, self.norm2.weight = norm_weight(width), norm_weight(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.experts(self.norm2(x))


class MoE(nn.Module):
    """Token ids [batch, length] to logits [batch, length, vocab]."""

    def __init__(
        self,
        vocab: int,
        width: int,
        hidden: int,
        layers: int,
        heads: int,
        experts: int,
        chosen: int,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.blocks = nn.Sequential(
            *(Block(width, hidden, heads, experts, chosen) for _ in range(layers))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(input_ids))))


def build(
    small: bool = False,
    vocab: int = 2048,
    width: int = 256,
    hidden: int = 512,
    layers: int = 4,
    heads: int = 8,
    experts: int = 8,
    chosen: int = 2,
) -> nn.Module:
    if small:
        vocab, width, hidden, layers, heads, experts = 100, 16, 24, 2, 4, 4
    return randomize(MoE(vocab, width, hidden, layers, heads, experts, chosen))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randint(0, 100, (2, 9 if small else 32)),), {}


CASE = Case(
    "moe",
    ("transformer", "language", "dynamic"),
    build,
    example_inputs,
    dynamic={"input_ids": {0: Dim("batch"), 1: Dim("length")}},
    left=0.308,
)

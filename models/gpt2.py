"""GPT-2: the word embedding is also the output projection; linear layers keep [in, out] weights and
go through addmm.

The fused projection is split in three by width, and a causal mask is a slice of a buffer.
Radford et al. 2019; parameter names follow the published checkpoints, sizes are smaller by default
(``layers=12, width=768, heads=12, vocab=50257, positions=1024`` is the published small model).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import normal, randomize


class Conv1D(nn.Module):
    """A linear layer whose weight is [in, out]."""

    def __init__(self, out: int, features: int) -> None:
        super().__init__()
        self.weight = normal(features, out, std=features**-0.5)
        self.bias = normal(out, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return y.view(*x.shape[:-1], self.bias.shape[0])


class Attention(nn.Module):
    bias: Tensor

    def __init__(self, width: int, heads: int, positions: int) -> None:
        super().__init__()
        self.heads = heads
        self.width = width
        mask = torch.ones(positions, positions, dtype=torch.bool).tril()
        self.register_buffer("bias", mask.view(1, 1, positions, positions), persistent=False)
        self.c_attn = Conv1D(3 * width, width)
        self.c_proj = Conv1D(width, width)

    def heads_first(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.width // self.heads).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        q, k, v = (self.heads_first(part) for part in self.c_attn(x).split(self.width, dim=2))
        scores = torch.matmul(q, k.transpose(-1, -2)) / (v.shape[-1] ** 0.5)
        causal = self.bias[:, :, :length, :length]
        scores = torch.where(causal, scores, torch.finfo(scores.dtype).min)
        y = torch.matmul(scores.softmax(-1), v).permute(0, 2, 1, 3).contiguous()
        return self.c_proj(y.view(*y.shape[:-2], self.width))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = Conv1D(4 * width, width)
        self.c_proj = Conv1D(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, positions: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, positions)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, vocab: int, positions: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab, width)
        self.wpe = nn.Embedding(positions, width)
        self.h = nn.ModuleList(Block(width, heads, positions) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x: Tensor = self.wte(input_ids) + self.wpe(positions)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class GPT2(nn.Module):
    """Token ids [batch, length] to logits [batch, length, vocab]."""

    def __init__(self, vocab: int, positions: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.transformer = Transformer(vocab, positions, width, heads, layers)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lm_head(self.transformer(input_ids))


def build(
    small: bool = False,
    vocab: int = 8192,
    positions: int = 256,
    width: int = 384,
    heads: int = 6,
    layers: int = 4,
) -> nn.Module:
    if small:
        vocab, width, heads, layers = 100, 32, 4, 2
    return randomize(GPT2(vocab, positions, width, heads, layers))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randint(0, 100, (2, 12 if small else 64)),), {}


CASE = Case(
    "gpt2",
    ("transformer", "language", "layer_norm", "tied", "dynamic"),
    build,
    example_inputs,
    dynamic={"input_ids": {0: Dim("batch"), 1: Dim("length", max=255)}},
    left=0.333,
)

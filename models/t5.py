"""T5: encoder and decoder, cross attention, a shared table of relative position biases whose
columns are heads.

heads x d_kv differs from the model width (384 against 512), attention has no scale, no layer has a
bias. Raffel et al. 2019 (arXiv:1910.10683); sizes are those of T5 v1.1 small, with gated GELU and a
separate output layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import norm_weight, randomize


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = norm_weight(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class RelativeBias(nn.Module):
    """One learned bias per head and bucket of distances: near ones exact, far ones by logarithm."""

    def __init__(self, heads: int, causal: bool, buckets: int = 32, farthest: int = 128) -> None:
        super().__init__()
        self.table = nn.Embedding(buckets, heads)
        self.causal = causal
        self.buckets = buckets
        self.farthest = farthest

    def bucket(self, offset: Tensor) -> Tensor:
        """The bucket of key position minus query position."""
        buckets = self.buckets
        base = torch.zeros_like(offset)
        if self.causal:
            distance = -torch.clamp(offset, max=0)
        else:
            buckets //= 2
            base = (offset > 0).to(torch.long) * buckets
            distance = offset.abs()
        exact = buckets // 2
        ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.farthest / exact)
        far = exact + (ratio * (buckets - exact)).to(torch.long)
        far = torch.clamp(far, max=buckets - 1)
        return base + torch.where(distance < exact, distance, far)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        bias: Tensor = self.table(self.bucket(positions[None, :] - positions[:, None]))
        bias = bias.permute(2, 0, 1).unsqueeze(0)
        if self.causal:
            future = positions[None, :] > positions[:, None]
            bias = bias + future.to(bias.dtype) * torch.finfo(bias.dtype).min
        return bias


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, d_kv: int) -> None:
        super().__init__()
        self.heads = heads
        self.d_kv = d_kv
        self.q = nn.Linear(width, heads * d_kv, bias=False)
        self.k = nn.Linear(width, heads * d_kv, bias=False)
        self.v = nn.Linear(width, heads * d_kv, bias=False)
        self.o = nn.Linear(heads * d_kv, width, bias=False)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor) -> Tensor:
        batch = x.shape[0]
        q = self.q(x).view(batch, -1, self.heads, self.d_kv).transpose(1, 2)
        k = self.k(source).view(batch, -1, self.heads, self.d_kv).transpose(1, 2)
        v = self.v(source).view(batch, -1, self.heads, self.d_kv).transpose(1, 2)
        weights = (torch.matmul(q, k.transpose(3, 2)) + bias).softmax(-1)
        y = torch.matmul(weights, v).transpose(1, 2).contiguous()
        return self.o(y.view(batch, -1, self.heads * self.d_kv))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(width, hidden, bias=False)
        self.wi_1 = nn.Linear(width, hidden, bias=False)
        self.wo = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class Block(nn.Module):
    """Self-attention, cross attention where ``decoder``, feed-forward; each behind its norm."""

    def __init__(self, width: int, heads: int, d_kv: int, hidden: int, decoder: bool) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attention = Attention(width, heads, d_kv)
        if decoder:
            self.norm2 = RMSNorm(width)
            self.cross = Attention(width, heads, d_kv)
        self.norm3 = RMSNorm(width)
        self.ff = FeedForward(width, hidden)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        memory: Tensor | None = None,
        memory_bias: Tensor | None = None,
    ) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, bias)
        if memory is not None:
            x = x + self.cross(self.norm2(x), memory, memory_bias)
        return x + self.ff(self.norm3(x))


class T5(nn.Module):
    """Source and target ids to logits [batch, target length, vocab]."""

    def __init__(
        self, vocab: int, width: int, heads: int, d_kv: int, hidden: int, layers: int
    ) -> None:
        super().__init__()
        self.shared = nn.Embedding(vocab, width)
        self.encoder_bias = RelativeBias(heads, causal=False)
        self.encoder = nn.ModuleList(
            Block(width, heads, d_kv, hidden, False) for _ in range(layers)
        )
        self.encoder_norm = RMSNorm(width)
        self.decoder_bias = RelativeBias(heads, causal=True)
        self.decoder = nn.ModuleList(Block(width, heads, d_kv, hidden, True) for _ in range(layers))
        self.decoder_norm = RMSNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor
    ) -> Tensor:
        memory: Tensor = self.shared(input_ids)
        padding = (1.0 - attention_mask[:, None, None, :].to(memory.dtype)) * -1e9
        bias = self.encoder_bias(memory) + padding
        for block in self.encoder:
            memory = block(memory, bias)
        memory = self.encoder_norm(memory)
        x: Tensor = self.shared(decoder_input_ids)
        bias = self.decoder_bias(x)
        for block in self.decoder:
            x = block(x, bias, memory, padding)
        return self.lm_head(self.decoder_norm(x))


def build(
    small: bool = False,
    vocab: int = 32128,
    width: int = 512,
    heads: int = 6,
    d_kv: int = 64,
    hidden: int = 1024,
    layers: int = 8,
) -> nn.Module:
    if small:
        vocab, width, heads, d_kv, hidden, layers = 100, 32, 3, 8, 48, 2
    model = randomize(T5(vocab, width, heads, d_kv, hidden, layers))
    for module in model.modules():
        if isinstance(module, Attention):
            # In place of the missing scale
            nn.init.normal_(module.q.weight, std=(width * d_kv) ** -0.5)
    return model


def example_inputs(small: bool = False) -> Inputs:
    source, target = (11, 7) if small else (48, 32)
    mask = torch.ones(2, source, dtype=torch.long)
    mask[1, source // 2 :] = 0
    ids = torch.randint(1, 100, (2, source))
    return (ids,), {"attention_mask": mask, "decoder_input_ids": torch.randint(1, 100, (2, target))}


_BATCH, _SOURCE, _TARGET = Dim("batch"), Dim("source"), Dim("target")
CASE = Case(
    "t5",
    ("transformer", "large", "language", "dynamic"),
    build,
    example_inputs,
    dynamic={
        "input_ids": {0: _BATCH, 1: _SOURCE},
        "attention_mask": {0: _BATCH, 1: _SOURCE},
        "decoder_input_ids": {0: _BATCH, 1: _TARGET},
    },
    left=0.326,
)

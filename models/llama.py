"""LLaMA: grouped-query attention, rotary embeddings, RMS norm, SwiGLU.

A key/value head serves a run of query heads, so heads can go only in whole groups; head_dim is tied
in pairs by the rotation and shared with the frequency table. Touvron et al. 2023
(arXiv:2307.09288). Parameter names follow the published checkpoints; ``build(size="7b")`` under
``torch.device("meta")`` has the shapes of LLaMA-2-7B without its memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import norm_weight, randomize


@dataclass(frozen=True)
class Config:
    vocab: int
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool = False
    theta: float = 10000.0
    eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


SIZES = {
    "tiny": Config(vocab=100, width=32, hidden=48, layers=2, heads=4, kv_heads=2),
    "135m": Config(
        vocab=49152, width=576, hidden=1536, layers=30, heads=9, kv_heads=3, tied=True
    ),  # SmolLM
    "7b": Config(
        vocab=32000, width=4096, hidden=11008, layers=32, heads=32, kv_heads=32
    ),  # LLaMA 2
    "8b": Config(
        vocab=128256, width=4096, hidden=14336, layers=32, heads=32, kv_heads=8, theta=5e5
    ),  # Llama 3
}


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = norm_weight(width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class RotaryEmbedding(nn.Module):
    inv_freq: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        exponent = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        self.register_buffer("inv_freq", 1.0 / config.theta**exponent, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        positions = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
        angles = positions[:, None] * self.inv_freq[None, :].float()
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def repeat_kv(x: Tensor, times: int) -> Tensor:
    """[batch, kv_heads, length, head_dim] with every head ``times`` times in a row."""
    if times == 1:
        return x
    batch, heads, length, head_dim = x.shape
    x = x[:, :, None].expand(batch, heads, times, length, head_dim)
    return x.reshape(batch, heads * times, length, head_dim)


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.groups = config.heads // config.kv_heads
        self.q_proj = nn.Linear(config.width, config.heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(x).view(batch, length, -1, self.head_dim).transpose(1, 2) for p in projections)
        q = q * cos + rotate_half(q) * sin
        k = k * cos + rotate_half(k) * sin
        k, v = repeat_kv(k, self.groups), repeat_kv(v, self.groups)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.width, config.eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)
        self.rotary_emb = RotaryEmbedding(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.embed_tokens(input_ids)
        cos, sin = self.rotary_emb(x)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Llama(nn.Module):
    """Token ids [batch, length] to logits [batch, length, vocab]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.width, config.vocab, bias=False)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lm_head(self.model(input_ids))


def build(small: bool = False, size: str = "135m") -> nn.Module:
    return randomize(Llama(SIZES["tiny" if small else size]))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randint(0, 100, (2, 9 if small else 32)),), {}


CASE = Case(
    "llama",
    ("transformer", "large", "language", "rotary", "dynamic"),
    build,
    example_inputs,
    dynamic={"input_ids": {0: Dim("batch"), 1: Dim("length", max=4096)}},
    left=0.325,
)

"""A BERT encoder: three embeddings added, post-norm blocks, attention written out with views and a
mask, a pooler.

The residual width runs through everything; heads couple query, key, value and output projections.
Devlin et al. 2018 (arXiv:1810.04805); default sizes are those of MiniLM-L6-H384.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import randomize


class Embeddings(nn.Module):
    position_ids: Tensor

    def __init__(self, vocab: int, positions: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("position_ids", torch.arange(positions).unsqueeze(0), persistent=False)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        positions = self.position_ids[:, : input_ids.shape[1]]
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = x + self.position_embeddings(positions)
        return self.dropout(self.norm(x))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)

    def heads_first(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self.heads_first(project(x)) for project in (self.query, self.key, self.value))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.head_dim) + mask
        context = torch.matmul(self.dropout(scores.softmax(-1)), v)
        context = context.permute(0, 2, 1, 3).contiguous()
        return self.output(context.view(*context.shape[:2], self.heads * self.head_dim))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.intermediate = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, width)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        y = self.output(F.gelu(self.intermediate(x)))
        return self.output_norm(x + self.dropout(y))


class Bert(nn.Module):
    """Returns the last hidden state [batch, length, width] and the pooled first token [batch,
    width]."""

    def __init__(
        self, vocab: int, positions: int, width: int, heads: int, hidden: int, layers: int
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(vocab, positions, width)
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(layers))
        self.pooler = nn.Linear(width, width)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = self.embeddings(input_ids, token_type_ids)
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, mask)
        return x, torch.tanh(self.pooler(x[:, 0]))


def build(
    small: bool = False,
    vocab: int = 30522,
    positions: int = 512,
    width: int = 384,
    heads: int = 12,
    hidden: int = 1536,
    layers: int = 6,
) -> nn.Module:
    if small:
        vocab, width, heads, hidden, layers = 100, 32, 4, 64, 2
    return randomize(Bert(vocab, positions, width, heads, hidden, layers))


def example_inputs(small: bool = False) -> Inputs:
    length = 12 if small else 64
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length // 2 :] = 0
    kinds = (torch.arange(length) >= length // 3).long().expand(2, length).contiguous()
    return (torch.randint(1, 100, (2, length)),), {"attention_mask": mask, "token_type_ids": kinds}


_SHAPE = {0: Dim("batch"), 1: Dim("length", max=512)}
CASE = Case(
    "bert",
    ("transformer", "large", "language", "layer_norm", "several_outputs", "dynamic"),
    build,
    example_inputs,
    dynamic={"input_ids": _SHAPE, "attention_mask": _SHAPE, "token_type_ids": _SHAPE},
    left=0.779,
)

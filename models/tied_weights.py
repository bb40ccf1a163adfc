"""Tied weights three ways: a shared parameter, a transposed use of it, and one module called in two
places."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import randomize


class TiedAutoencoder(nn.Module):
    """Token ids [batch, length] to logits [batch, length, vocab] through a bottleneck."""

    def __init__(self, vocab: int, width: int, code: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.encoder = nn.Linear(width, code)
        self.decoder_bias = nn.Parameter(torch.randn(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.norm(self.embedding(input_ids))
        code = F.relu(self.encoder(x))
        x = self.norm(x + F.linear(code, self.encoder.weight.t(), self.decoder_bias))
        return self.head(x)


def build(small: bool = False, vocab: int = 40, width: int = 24, code: int = 16) -> nn.Module:
    return randomize(TiedAutoencoder(vocab, width, code))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randint(0, 40, (2, 7)),), {}


CASE = Case("tied_weights", ("small", "language", "tied"), build, example_inputs, left=0.448)

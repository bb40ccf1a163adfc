"""A sequence tagger: embedding, two bidirectional LSTM layers, linear.

Gates are 4 x hidden, the output of a layer is the sum of its two directions, and each direction may
lose other units."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim

from models import Case, Inputs
from models._weights import randomize


class LSTMTagger(nn.Module):
    def __init__(self, vocab: int, embedding: int, hidden: int, layers: int, tags: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, embedding)
        self.lstm = nn.LSTM(
            embedding, hidden, layers, batch_first=True, dropout=0.2, bidirectional=True
        )
        self.head = nn.Linear(2 * hidden, tags)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x, _ = self.lstm(x)
        return self.head(x)


def build(
    small: bool = False,
    vocab: int = 10000,
    embedding: int = 128,
    hidden: int = 256,
    layers: int = 2,
    tags: int = 32,
) -> nn.Module:
    if small:
        vocab, embedding, hidden, tags = 50, 16, 24, 7
    return randomize(LSTMTagger(vocab, embedding, hidden, layers, tags))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randint(0, 50, (2, 9 if small else 32)),), {}


CASE = Case(
    "lstm_tagger",
    ("recurrent", "language", "dynamic"),
    build,
    example_inputs,
    dynamic={"tokens": {0: Dim("batch")}},
    left=0.271,
)

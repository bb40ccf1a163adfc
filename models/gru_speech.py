"""Speech recognition: a convolutional front end, then bidirectional GRUs whose directions are added
up.

Channels and frequency bins of the front end are flattened into the first GRU's input; batch norms
stand between the GRUs. After Amodei et al. 2015 (Deep Speech 2, arXiv:1512.02595), narrower."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import calibrate, randomize


class BidirectionalGRU(nn.Module):
    def __init__(self, features: int, hidden: int, normed: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features) if normed else None
        self.gru = nn.GRU(features, hidden, batch_first=True, bidirectional=True, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        y, _ = self.gru(x)
        return y.view(y.shape[0], y.shape[1], 2, -1).sum(2)


class DeepSpeech(nn.Module):
    def __init__(self, bins: int, width: int, hidden: int, layers: int, characters: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, (41, 11), (2, 2), padding=(20, 5), bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, (21, 11), (2, 1), padding=(10, 5), bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        features = width * ((bins + 3) // 4)
        self.rnns = nn.Sequential(
            *(BidirectionalGRU(hidden if i else features, hidden, i > 0) for i in range(layers))
        )
        self.norm3 = nn.BatchNorm1d(hidden)
        self.head = nn.Linear(hidden, characters, bias=False)

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = spectrogram.unsqueeze(1)  # [batch, 1, bins, frames]
        x = F.hardtanh(self.norm1(self.conv1(x)), 0.0, 20.0)
        x = F.hardtanh(self.norm2(self.conv2(x)), 0.0, 20.0)
        x = x.flatten(1, 2).transpose(1, 2)
        x = self.rnns(x)
        x = self.head(self.norm3(x.transpose(1, 2)).transpose(1, 2))
        return x.log_softmax(-1)


def build(
    small: bool = False,
    bins: int = 161,
    width: int = 32,
    hidden: int = 512,
    layers: int = 3,
    characters: int = 29,
) -> nn.Module:
    if small:
        bins, width, hidden, layers = 33, 4, 16, 2
    model = randomize(DeepSpeech(bins, width, hidden, layers, characters))
    return calibrate(model, torch.randn(4, bins, 20))


def example_inputs(small: bool = False) -> Inputs:
    bins, frames = (33, 20) if small else (161, 64)
    return (torch.randn(2, bins, frames),), {}


CASE = Case(
    "gru_speech",
    ("recurrent", "large", "batch_norm", "dynamic"),
    build,
    example_inputs,
    dynamic={"spectrogram": {0: Dim("batch")}},
    left=0.297,
)

"""WaveNet: gated dilated convolutions (one half through tanh, the other through a sigmoid) under
weight norm.

The weights are computed from a direction and a length per output channel; all skip outputs are
added into one axis. The last layer's residual output is computed and never used. van den Oord et
al. 2016 (arXiv:1609.03499): 30 layers, on 80 mel bands."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from models import Case, Inputs
from models._weights import randomize


class GatedBlock(nn.Module):
    """Returns the residual stream and this layer's share of the skip sum."""

    def __init__(self, width: int, gate: int, skip: int, dilation: int) -> None:
        super().__init__()
        self.padding = 2 * dilation
        self.conv = nn.Conv1d(width, 2 * gate, 3, dilation=dilation)
        self.residual = nn.Conv1d(gate, width, 1)
        self.skip = nn.Conv1d(gate, skip, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.conv(F.pad(x, (self.padding, 0))).chunk(2, dim=1)
        y = torch.tanh(a) * torch.sigmoid(b)
        return (x + self.residual(y)) * 0.5**0.5, self.skip(y)


class WaveNet(nn.Module):
    """Features [batch, bands, time] to sample scores [batch, levels, time]; causal."""

    def __init__(
        self, bands: int, width: int, gate: int, skip: int, levels: int, cycles: int, dilations: int
    ) -> None:
        super().__init__()
        self.front = nn.Conv1d(bands, width, 1)
        self.blocks = nn.ModuleList(
            GatedBlock(width, gate, skip, 2**i) for _ in range(cycles) for i in range(dilations)
        )
        self.head1 = nn.Conv1d(skip, skip, 1)
        self.head2 = nn.Conv1d(skip, levels, 1)
        self.scale = (cycles * dilations) ** -0.5

    def forward(self, mel: Tensor) -> Tensor:
        x = self.front(mel)
        skips = []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        y = F.relu(sum(skips[1:], skips[0]) * self.scale)
        return self.head2(F.relu(self.head1(y)))


def build(
    small: bool = False,
    bands: int = 80,
    width: int = 64,
    gate: int = 64,
    skip: int = 256,
    levels: int = 256,
    cycles: int = 3,
    dilations: int = 10,
) -> nn.Module:
    if small:
        bands, width, gate, skip, levels, cycles, dilations = 8, 16, 12, 20, 10, 1, 3
    model = randomize(WaveNet(bands, width, gate, skip, levels, cycles, dilations))
    for module in list(model.modules()):
        if isinstance(module, nn.Conv1d):
            weight_norm(module)
    return model


def example_inputs(small: bool = False) -> Inputs:
    bands, time = (8, 24) if small else (80, 256)
    return (torch.randn(2, bands, time),), {}


CASE = Case(
    "wavenet",
    ("cnn", "audio", "weight_norm", "dynamic"),
    build,
    example_inputs,
    dynamic={"mel": {0: Dim("batch"), 2: Dim("time")}},
    left=0.285,
)

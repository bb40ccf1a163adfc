"""One convolution applied twice in a bottleneck: its input and output channels become a single
axis.

A shared head reads two stages as well, so that their widths are coupled without any sum between
them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import randomize


class SharedConv(nn.Module):
    """Images [batch, 3, height, width] to two maps of class scores."""

    def __init__(self, width: int, inner: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.reduce = nn.Conv2d(width, inner, 1)
        self.shared = nn.Conv2d(inner, inner, 3, padding=1)
        self.expand = nn.Conv2d(inner, width, 1)
        self.down = nn.Conv2d(width, width, 3, 2, padding=1)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        y = F.relu(self.reduce(x))
        y = F.relu(self.shared(F.relu(self.shared(y))))
        x = F.relu(self.expand(y))
        return self.head(x), self.head(F.relu(self.down(x)))


def build(small: bool = False, width: int = 24, inner: int = 16, classes: int = 5) -> nn.Module:
    return randomize(SharedConv(width, inner, classes))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randn(2, 3, 10, 10),), {}


CASE = Case(
    "shared_conv", ("small", "cnn", "tied", "several_outputs"), build, example_inputs, left=0.274
)

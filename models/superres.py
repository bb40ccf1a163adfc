"""EDSR x4: residual blocks without norms, and pixel shuffles that read channels as channels x 2 x
2.

Lim et al. 2017 (arXiv:1707.02921), the baseline of 16 blocks and 64 features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import randomize


class ResBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class EDSR(nn.Module):
    mean: Tensor

    def __init__(self, blocks: int, width: int, doublings: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1))
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(
            *(ResBlock(width) for _ in range(blocks)), nn.Conv2d(width, width, 3, padding=1)
        )
        tail: list[nn.Module] = []
        for _ in range(doublings):
            tail += [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2)]
        self.tail = nn.Sequential(*tail, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x - self.mean)
        x = self.tail(x + self.body(x))
        return x + self.mean


def build(small: bool = False, blocks: int = 16, width: int = 64, doublings: int = 2) -> nn.Module:
    if small:
        blocks, width = 2, 16
    return randomize(EDSR(blocks, width, doublings), damp="conv2")


def example_inputs(small: bool = False) -> Inputs:
    size = 12 if small else 48
    return (torch.rand(2, 3, size, size),), {}


CASE = Case(
    "superres",
    ("cnn", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}},
    left=0.259,
)

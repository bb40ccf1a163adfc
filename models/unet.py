"""U-Net: group norms cut channels into groups, transposed convolutions put the output axis second
in the weight.

Skip connections concatenate what an encoder stage and an up-sampling layer made: two axes side by
side in one norm. Ronneberger et al. 2015 (arXiv:1505.04597), with padding and group norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import randomize


class DoubleConv(nn.Module):
    def __init__(self, channels: int, out: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class Up(nn.Module):
    def __init__(self, channels: int, out: int, groups: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, out, 2, 2)
        self.conv = DoubleConv(2 * out, out, groups)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat((skip, self.up(x)), dim=1))


class UNet(nn.Module):
    def __init__(self, widths: Sequence[int], channels: int, classes: int, groups: int) -> None:
        super().__init__()
        ins = (channels, *widths[:-1])
        self.encoder = nn.ModuleList(
            DoubleConv(i, o, groups) for i, o in zip(ins, widths, strict=True)
        )
        pairs = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
        self.decoder = nn.ModuleList(Up(i, o, groups) for i, o in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for index, stage in enumerate(self.encoder):
            x = stage(F.max_pool2d(x, 2) if index else x)
            skips.append(x)
        for stage, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = stage(x, skip)
        return self.head(x)


def build(
    small: bool = False,
    widths: Sequence[int] = (64, 128, 256, 512, 1024),
    channels: int = 3,
    classes: int = 2,
    groups: int = 8,
) -> nn.Module:
    if small:
        widths, groups = (16, 24, 32), 4
    return randomize(UNet(widths, channels, classes, groups))


def example_inputs(small: bool = False) -> Inputs:
    size = 32 if small else 96
    return (torch.randn(2, 3, size, size),), {}


CASE = Case(
    "unet",
    ("cnn", "large", "group_norm", "concat", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch")}},
    left=0.254,
)

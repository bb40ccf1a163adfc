"""MobileNetV3-Large: depthwise convolutions, squeeze-excite gates, hard swish, expansion widths
free inside each block.

Howard et al. 2019 (arXiv:1905.02244). Sizes are those of torchvision's ``mobilenet_v3_large``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import calibrate, randomize


class Row(NamedTuple):
    """One inverted residual block of the published table."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    hard_swish: bool
    stride: int


LARGE = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 64, 24, False, False, 2),
    Row(3, 72, 24, False, False, 1),
    Row(5, 72, 40, True, False, 2),
    Row(5, 120, 40, True, False, 1),
    Row(5, 120, 40, True, False, 1),
    Row(3, 240, 80, False, True, 2),
    Row(3, 200, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 480, 112, True, True, 1),
    Row(3, 672, 112, True, True, 1),
    Row(5, 672, 160, True, True, 2),
    Row(5, 960, 160, True, True, 1),
    Row(5, 960, 160, True, True, 1),
)
SMALL = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 48, 24, False, False, 2),
    Row(5, 72, 24, True, True, 1),
)


# MobileNetV3-Small, with a hidden width of 1024
PUBLISHED_SMALL = (
    Row(3, 16, 16, True, False, 2),
    Row(3, 72, 24, False, False, 2),
    Row(3, 88, 24, False, False, 1),
    Row(5, 96, 40, True, True, 2),
    Row(5, 240, 40, True, True, 1),
    Row(5, 240, 40, True, True, 1),
    Row(5, 120, 48, True, True, 1),
    Row(5, 144, 48, True, True, 1),
    Row(5, 288, 96, True, True, 2),
    Row(5, 576, 96, True, True, 1),
    Row(5, 576, 96, True, True, 1),
)


def round_to_8(value: float) -> int:
    """The multiple of 8 nearest to ``value``, at most 10 % below it."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * value else rounded + 8


class ConvNorm(nn.Sequential):
    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        act: nn.Module | None = None,
    ) -> None:
        conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(
            conv, nn.BatchNorm2d(out, eps=0.001, momentum=0.01), *([] if act is None else [act])
        )


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = round_to_8(channels / 4)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))
        return x * F.hardsigmoid(gate)


class InvertedResidual(nn.Module):
    def __init__(self, channels: int, row: Row) -> None:
        super().__init__()
        act: type[nn.Module] = nn.Hardswish if row.hard_swish else nn.ReLU
        wide = row.expanded
        layers: list[nn.Module] = []
        if wide != channels:
            layers.append(ConvNorm(channels, wide, 1, act=act()))
        layers.append(ConvNorm(wide, wide, row.kernel, row.stride, groups=wide, act=act()))
        if row.squeeze:
            layers.append(SqueezeExcite(wide))
        layers.append(ConvNorm(wide, row.out, 1))
        self.block = nn.Sequential(*layers)
        self.residual = row.stride == 1 and channels == row.out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.residual else y


class MobileNetV3(nn.Module):
    def __init__(self, rows: Sequence[Row], hidden: int, classes: int) -> None:
        super().__init__()
        channels = rows[0].expanded
        layers: list[nn.Module] = [ConvNorm(3, channels, 3, 2, act=nn.Hardswish())]
        for row in rows:
            layers.append(InvertedResidual(channels, row))
            channels = row.out
        layers.append(ConvNorm(channels, 6 * channels, 1, act=nn.Hardswish()))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, hidden),
            nn.Hardswish(),
            nn.Dropout(0.2),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.mean((2, 3)))


def build(
    small: bool = False, rows: Sequence[Row] = LARGE, hidden: int = 1280, classes: int = 1000
) -> nn.Module:
    if small:
        rows, hidden, classes = SMALL, 32, 10
    return calibrate(randomize(MobileNetV3(rows, hidden, classes)), torch.randn(4, 3, 160, 160))


def example_inputs(small: bool = False) -> Inputs:
    size = 32 if small else 224
    return (torch.randn(2, 3, size, size),), {}


CASE = Case(
    "mobilenetv3",
    ("cnn", "large", "batch_norm", "depthwise", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch")}},
    left=0.300,
)

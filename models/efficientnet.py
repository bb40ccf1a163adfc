"""EfficientNet-B0: inverted residuals whose squeeze-excite gate is narrower than a quarter of what
it scales.

Tan and Le 2019 (arXiv:1905.11946). Sizes are those of torchvision's ``efficientnet_b0``, without
stochastic depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import calibrate, randomize


class Stage(NamedTuple):
    """``depth`` blocks of the same width; the first one takes the stride."""

    expand: int
    kernel: int
    stride: int
    out: int
    depth: int


B0 = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
SMALL = (Stage(1, 3, 1, 16, 1), Stage(4, 5, 2, 24, 2))


class ConvNorm(nn.Module):
    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.act = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        gate = self.expand(F.silu(self.reduce(gate)))
        return torch.sigmoid(gate) * x


class InvertedResidual(nn.Module):
    def __init__(self, channels: int, out: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = channels * expand
        self.expand = ConvNorm(channels, wide, 1) if expand != 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.squeeze_excite = SqueezeExcite(wide, max(1, channels // 4))
        self.project = ConvNorm(wide, out, 1, act=False)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.squeeze_excite(self.depthwise(self.expand(x))))
        return y + x if self.residual else y


class EfficientNet(nn.Module):
    def __init__(self, stages: Sequence[Stage], stem: int, classes: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, stem, 3, 2)
        channels = stem
        blocks: list[nn.Module] = []
        for stage in stages:
            for index in range(stage.depth):
                stride = stage.stride if index == 0 else 1
                blocks.append(
                    InvertedResidual(channels, stage.out, stage.expand, stage.kernel, stride)
                )
                channels = stage.out
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(channels, 4 * channels, 1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(4 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.classifier(self.dropout(x))


def build(
    small: bool = False, stages: Sequence[Stage] = B0, stem: int = 32, classes: int = 1000
) -> nn.Module:
    if small:
        stages, stem, classes = SMALL, 16, 10
    return calibrate(randomize(EfficientNet(stages, stem, classes)), torch.randn(4, 3, 160, 160))


def example_inputs(small: bool = False) -> Inputs:
    size = 32 if small else 224
    return (torch.randn(2, 3, size, size),), {}


CASE = Case(
    "efficientnet",
    ("cnn", "large", "batch_norm", "depthwise", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch")}},
    left=0.343,
)

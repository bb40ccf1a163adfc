"""ResNet-50: residual sums couple a whole stage, the bottleneck's inner channels are free.

He et al. 2015 (arXiv:1512.03385), with the stride in the 3x3 convolution. Parameter names follow
torchvision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim

from models import Case, Inputs
from models._weights import calibrate, randomize


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut; ``inner`` is the width of the middle one."""

    def __init__(self, channels: int, inner: int, out: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(y + shortcut)


class ResNet(nn.Module):
    """A stem, four stages of bottlenecks and a linear classifier."""

    def __init__(
        self,
        depths: Sequence[int],
        width: int,
        classes: int,
        groups: int = 1,
        group_width: int | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels = width
        for stage, depth in enumerate(depths):
            inner = (width if group_width is None else groups * group_width) << stage
            out = 4 * width << stage
            blocks: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Bottleneck(channels, inner, out, stride, groups))
                channels = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def build(
    small: bool = False, depths: Sequence[int] = (3, 4, 6, 3), width: int = 64, classes: int = 1000
) -> nn.Module:
    if small:
        depths, width, classes = (2, 2), 16, 10
    return calibrate(randomize(ResNet(depths, width, classes)), torch.randn(8, 3, 64, 64))


def example_inputs(small: bool = False) -> Inputs:
    size = 32 if small else 224
    return (torch.randn(2, 3, size, size),), {}


CASE = Case(
    "resnet50",
    ("cnn", "large", "batch_norm", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch")}},
    left=0.274,
)

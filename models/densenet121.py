"""DenseNet-121: every layer reads the concatenation of all before it, through a norm of its own.

One channel is a member of dozens of norms and convolutions, at a different offset in each.
Huang et al. 2016 (arXiv:1608.06993). Parameter names follow torchvision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import calibrate, randomize


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1)), inplace=True))
        return self.conv2(F.relu(self.norm2(x), inplace=True))


class DenseBlock(nn.ModuleDict):
    def __init__(self, depth: int, channels: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        for index in range(depth):
            self[f"denselayer{index + 1}"] = DenseLayer(
                channels + index * growth, growth, bottleneck
            )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class Transition(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2, 2)


class DenseNet(nn.Module):
    def __init__(
        self, depths: Sequence[int], stem: int, growth: int, bottleneck: int, classes: int
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv0"] = nn.Conv2d(3, stem, 7, 2, padding=3, bias=False)
        layers["norm0"] = nn.BatchNorm2d(stem)
        layers["relu0"] = nn.ReLU(inplace=True)
        layers["pool0"] = nn.MaxPool2d(3, 2, padding=1)
        channels = stem
        for index, depth in enumerate(depths, start=1):
            layers[f"denseblock{index}"] = DenseBlock(depth, channels, growth, bottleneck)
            channels += depth * growth
            if index < len(depths):
                layers[f"transition{index}"] = Transition(channels)
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


def build(
    small: bool = False,
    depths: Sequence[int] = (6, 12, 24, 16),
    stem: int = 64,
    growth: int = 32,
    bottleneck: int = 4,
    classes: int = 1000,
) -> nn.Module:
    if small:
        depths, stem, growth, bottleneck, classes = (2, 3), 16, 8, 2, 10
    return calibrate(
        randomize(DenseNet(depths, stem, growth, bottleneck, classes)), torch.randn(8, 3, 64, 64)
    )


def example_inputs(small: bool = False) -> Inputs:
    size = 32 if small else 224
    return (torch.randn(2, 3, size, size),), {}


CASE = Case(
    "densenet121",
    ("cnn", "large", "batch_norm", "concat", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch")}},
    left=0.323,
)

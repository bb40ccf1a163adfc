"""A CIFAR ResNet that writes its sizes into the code: literal view shapes and zero-padded
shortcuts.

The shortcut between stages takes every second pixel and pads zero channels on both sides (option A
of He et al. 2015, arXiv:1512.03385), so that one axis is the sum of zeros, channels, zeros; every
literal must follow a cut."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import calibrate, randomize


class Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.added = out - channels

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.added:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added // 2))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """Images [batch, 3, 32, 32] to class scores [batch, 10]; no other size is accepted."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        blocks: list[nn.Module] = []
        channels = 32
        for stage, out in enumerate((32, 64, 128)):
            for index in range(depth):
                blocks.append(Block(channels, out, 2 if stage and index == 0 else 1))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.gate = nn.Linear(128, 128)
        self.fc1 = nn.Linear(512, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        pooled = x.view(-1, 128, 64).mean(2)
        x = x * torch.sigmoid(self.gate(pooled)).reshape(-1, 128, 1, 1)
        x = F.avg_pool2d(x, 4)
        x = x.view(-1, 512)
        return self.fc2(F.relu(self.fc1(x)))


def build(small: bool = False, depth: int = 3) -> nn.Module:
    model = randomize(CifarResNet(1 if small else depth))
    return calibrate(model, torch.randn(8, 3, 32, 32))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randn(2, 3, 32, 32),), {}


CASE = Case(
    "hardcoded_view",
    ("cnn", "batch_norm", "hardcoded", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch")}},
    left=0.252,
)

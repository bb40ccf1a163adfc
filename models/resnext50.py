"""ResNeXt-50 32x4d: grouped convolutions, whose channels are groups times channels per group.

Xie et al. 2016 (arXiv:1611.05431). Parameter names follow torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.export import Dim

from models import Case, Inputs
from models._weights import calibrate, randomize
from models.resnet50 import ResNet


def build(
    small: bool = False,
    depths: Sequence[int] = (3, 4, 6, 3),
    width: int = 64,
    classes: int = 1000,
    groups: int = 32,
    group_width: int = 4,
) -> nn.Module:
    if small:
        depths, width, classes, groups = (2, 2), 16, 10, 8
    model = ResNet(depths, width, classes, groups, group_width)
    return calibrate(randomize(model), torch.randn(8, 3, 64, 64))


def example_inputs(small: bool = False) -> Inputs:
    size = 32 if small else 224
    return (torch.randn(2, 3, size, size),), {}


CASE = Case(
    "resnext50",
    ("cnn", "large", "batch_norm", "grouped_conv", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch")}},
    left=0.273,
)

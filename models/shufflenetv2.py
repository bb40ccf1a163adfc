"""ShuffleNetV2 x1.0: channels are halved by chunk, concatenated and shuffled by view, transpose,
flatten.

The shuffle makes one axis a sum (two branches) and a product (groups times channels) at once.
Ma et al. 2018 (arXiv:1807.11164). Sizes are those of torchvision's ``shufflenet_v2_x1_0``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim

from models import Case, Inputs
from models._weights import calibrate, randomize


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave ``groups`` runs of channels."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).flatten(1, 2)


def conv_norm(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out)]


class ShuffleUnit(nn.Module):
    """With stride 1 one half of the channels passes untouched; with stride 2 both branches see them
    all."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        half = out // 2
        self.stride = stride
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                *conv_norm(channels, channels, 3, stride, groups=channels),
                *conv_norm(channels, half, 1),
                nn.ReLU(inplace=True),
            )
        self.branch = nn.Sequential(
            *conv_norm(channels if stride > 1 else half, half, 1),
            nn.ReLU(inplace=True),
            *conv_norm(half, half, 3, stride, groups=half),
            *conv_norm(half, half, 1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            passed, rest = x.chunk(2, dim=1)
            y = torch.cat((passed, self.branch(rest)), dim=1)
        else:
            y = torch.cat((self.shortcut(x), self.branch(x)), dim=1)
        return channel_shuffle(y, 2)


class ShuffleNetV2(nn.Module):
    def __init__(
        self, depths: Sequence[int], widths: Sequence[int], head: int, classes: int
    ) -> None:
        super().__init__()
        channels = 24
        self.stem = nn.Sequential(
            *conv_norm(3, channels, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        units: list[nn.Module] = []
        for depth, width in zip(depths, widths, strict=True):
            units.append(ShuffleUnit(channels, width, 2))
            units.extend(ShuffleUnit(width, width, 1) for _ in range(depth - 1))
            channels = width
        self.stages = nn.Sequential(*units)
        self.head = nn.Sequential(*conv_norm(channels, head, 1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.stages(self.stem(x)))
        return self.fc(x.mean([2, 3]))


def build(
    small: bool = False,
    depths: Sequence[int] = (4, 8, 4),
    widths: Sequence[int] = (116, 232, 464),
    head: int = 1024,
    classes: int = 1000,
) -> nn.Module:
    if small:
        depths, widths, head, classes = (2, 2), (24, 48), 64, 10
    return calibrate(
        randomize(ShuffleNetV2(depths, widths, head, classes)), torch.randn(4, 3, 160, 160)
    )


def example_inputs(small: bool = False) -> Inputs:
    size = 32 if small else 224
    return (torch.randn(2, 3, size, size),), {}


CASE = Case(
    "shufflenetv2",
    ("cnn", "large", "batch_norm", "depthwise", "concat", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch")}},
    left=0.328,
)

"""A custom operator in the middle of a CNN: no rule knows it, so its axes stay and the rest is
pruned around it.

It mirrors the channels, so that a pruner which takes it for element-wise gives wrong results
without an error."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import calibrate, randomize


@torch.library.custom_op("pruning_cases::mirror_channels", mutates_args=())
def mirror_channels(x: Tensor) -> Tensor:
    """[batch, channels, ...] with the channels in reverse order."""
    return x.flip(1).contiguous()


@mirror_channels.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _backward(ctx: object, grad: Tensor) -> Tensor:
    return mirror_channels(grad)


mirror_channels.register_autograd(_backward)


class CustomOp(nn.Module):
    """Images [batch, 3, height, width] to class scores [batch, classes]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, 2, padding=1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.norm(mirror_channels(self.conv2(x))))
        x = F.relu(self.conv3(x))
        return self.head(x.mean((2, 3)))


def build(small: bool = False, width: int = 16, classes: int = 5) -> nn.Module:
    return calibrate(randomize(CustomOp(width, classes)), torch.randn(8, 3, 12, 12))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randn(2, 3, 12, 12),), {}


CASE = Case(
    "unknown_op", ("small", "cnn", "batch_norm", "custom_op"), build, example_inputs, left=0.505
)

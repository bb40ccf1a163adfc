"""In-place operations: relu_, add_, mul_ and copies into slices of a fresh tensor, which is a
concatenation in disguise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import calibrate, randomize


class InPlace(nn.Module):
    """Images [batch, 3, height, width] to class scores [batch, classes]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, width, 3, padding=1)
        self.right = nn.Conv2d(3, 2 * width, 3, padding=1)
        self.norm = nn.BatchNorm2d(3 * width)
        self.conv1 = nn.Conv2d(3 * width, 3 * width, 3, padding=1)
        self.conv2 = nn.Conv2d(3 * width, 3 * width, 1)
        self.scale = nn.Parameter(torch.empty(3 * width, 1, 1).uniform_(0.5, 1.5))
        self.head = nn.Linear(3 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        split = left.shape[1]
        y = left.new_zeros(x.shape[0], split + right.shape[1], *x.shape[2:])
        y[:, :split].copy_(left)
        y[:, split:] = right
        y = self.norm(y)
        residual = self.conv1(F.relu(y)).relu_()
        y.add_(self.conv2(residual))
        y.mul_(self.scale)
        return self.head(y.mean((2, 3)))


def build(small: bool = False, width: int = 8, classes: int = 5) -> nn.Module:
    return calibrate(randomize(InPlace(width, classes)), torch.randn(8, 3, 12, 12))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randn(2, 3, 12, 12),), {}


CASE = Case("inplace", ("small", "cnn", "batch_norm"), build, example_inputs, left=0.285)

"""Weights computed in the forward pass: scaled per output, masked, concatenated from two
parameters.

A group's members are parameters that reach their layer only through arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import norm_weight, normal


class FunctionalWeights(nn.Module):
    """[batch, 12] to [batch, classes]."""

    mask: Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight1 = normal(width, 12, std=12**-0.5)
        self.scale1 = norm_weight(width, 1)
        self.bias1 = normal(width, std=0.1)
        self.upper = normal(width // 2, width, std=width**-0.5)
        self.lower = normal(width - width // 2, width, std=width**-0.5)
        self.register_buffer("mask", (torch.rand(width, width) > 0.3).float())
        self.weight3 = normal(width, classes, std=width**-0.5)
        self.temperature = norm_weight(1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x, self.weight1 * self.scale1, self.bias1))
        weight2 = torch.cat((self.upper, self.lower), 0) * self.mask
        x = F.relu(F.linear(x, weight2)) + x
        return x @ (self.weight3 / self.temperature)


def build(small: bool = False, width: int = 24, classes: int = 5) -> nn.Module:
    return FunctionalWeights(width, classes)


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randn(3, 12),), {}


CASE = Case("functional_weights", ("small",), build, example_inputs, left=0.361)

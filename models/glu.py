"""Gated linear units in three spellings: F.glu, slices, and a view whose inner factor is (value,
gate).

Value and gate must lose the same units, from two halves in one spelling and from neighbouring rows
in another."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import randomize


class GatedUnits(nn.Module):
    """[batch, length, 8] to [batch, length, 4]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.units = width
        self.fc1 = nn.Linear(8, 2 * width)
        self.fc2 = nn.Linear(width, 2 * width)
        self.fc3 = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.fc1(x), dim=-1)
        y = self.fc2(x)
        x = y[..., : self.units] * F.gelu(y[..., self.units :])
        y = self.fc3(x).view(*x.shape[:-1], self.units, 2)
        x = y[..., 0] * torch.sigmoid(y[..., 1])
        return self.head(x)


def build(small: bool = False, width: int = 20) -> nn.Module:
    return randomize(GatedUnits(width))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randn(2, 5, 8),), {}


CASE = Case("glu", ("small",), build, example_inputs, left=0.313)

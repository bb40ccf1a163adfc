"""A branch on a real number that is read from a tensor: no capture covers it, and it must be
refused with the line named."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Case, Inputs
from models._weights import randomize


class EarlyExit(nn.Module):
    """[batch, 8] to [batch, 4]; the second layer runs only when the first is not sure."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, width)
        self.exit1 = nn.Linear(width, 4)
        self.fc2 = nn.Linear(width, width)
        self.exit2 = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        early = self.exit1(x).softmax(-1)
        if float(early.amax(-1).min()) > 0.99:
            return early
        return early + self.exit2(F.relu(self.fc2(x))).softmax(-1)


def build(small: bool = False, width: int = 16) -> nn.Module:
    return randomize(EarlyExit(width))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randn(2, 8),), {}


CASE = Case(
    "refused_control_flow",
    ("small", "refused"),
    build,
    example_inputs,
    refused="data-dependent control flow",
)

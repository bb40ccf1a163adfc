"""A small residual CNN for handwritten digits, 8 x 8 pixels, 10 classes: the net that ``irprune
demo`` trains.

The case where accuracy can be measured before and after pruning; net, data and training are in
``irprune.demo.digits``."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim

from irprune.demo.digits import Block, Data, DigitNet, Part, accuracy, jitter, load_data, train
from models import Case, Inputs
from models._weights import calibrate, randomize

__all__ = [
    "CASE",
    "Block",
    "Data",
    "DigitNet",
    "Part",
    "accuracy",
    "build",
    "example_inputs",
    "jitter",
    "load_data",
    "train",
]


def build(small: bool = False, width: int = 32, depth: int = 2) -> nn.Module:
    if small:
        width, depth = 16, 1
    return calibrate(randomize(DigitNet(width, depth)), torch.randn(64, 1, 8, 8))


def example_inputs(small: bool = False) -> Inputs:
    return (torch.randn(2, 1, 8, 8),), {}


CASE = Case(
    "digits",
    ("cnn", "batch_norm", "trainable", "dynamic"),
    build,
    example_inputs,
    dynamic={"x": {0: Dim("batch")}},
    left=0.259,
)

"""What emitted modules carry of what is only seen in training, in torch: gradients of other values
and stochastic depth."""

# mypy: ignore-errors
from __future__ import annotations

import torch


class GradientTo(torch.autograd.Function):
    """Gives ``value``; its gradient goes to ``carrier`` instead."""

    @staticmethod
    def forward(ctx, value, carrier):
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        return None, gradient


def gradient_to(value, carrier):
    return GradientTo.apply(value, carrier)


def drop_path(x, *, p, mode, training):
    if not training:
        return x
    rows = x.shape[0] if mode == "row" else 1
    kept = x.new_empty([rows] + [1] * (x.dim() - 1)).bernoulli_(1 - p)
    return x * kept / (1 - p)

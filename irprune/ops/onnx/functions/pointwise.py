"""Element-wise operators of ONNX in torch."""

# mypy: ignore-errors
from __future__ import annotations

import torch
import torch.nn.functional as F


def pow_tensor(x, exponent):
    return torch.pow(x, exponent).to(x.dtype)


def sum_of(*xs):
    out = xs[0]
    for x in xs[1:]:
        out = out + x
    return out


def mean_of(*xs):
    out = xs[0]
    for x in xs[1:]:
        out = out + x
    return out / len(xs)


def max_of(*xs):
    out = xs[0]
    for x in xs[1:]:
        out = torch.maximum(out, x)
    return out


def min_of(*xs):
    out = xs[0]
    for x in xs[1:]:
        out = torch.minimum(out, x)
    return out


def selu_scaled(x, *, alpha, gamma):
    return gamma * torch.where(x > 0, x, alpha * (torch.exp(torch.clamp(x, max=0)) - 1))


def hard_sigmoid(x, *, alpha, beta):
    return torch.clamp(alpha * x + beta, 0, 1)


def thresholded_relu(x, *, alpha):
    return torch.where(x > alpha, x, torch.zeros_like(x))


def softsign(x):
    return x / (1 + x.abs())


def shrink(x, *, bias, lambd):
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def swish(x, *, alpha):
    return x * torch.sigmoid(alpha * x)


def quick_gelu(x, *, alpha):
    return x * torch.sigmoid(alpha * x)


def is_infinite(x, *, detect_negative, detect_positive):
    found = torch.zeros_like(x, dtype=torch.bool)
    if detect_negative:
        found = found | torch.isneginf(x)
    if detect_positive:
        found = found | torch.isposinf(x)
    return found


def bias_gelu(x, bias=None, *, approximate):
    return F.gelu(x if bias is None else x + bias, approximate=approximate)


def clip(x, low=None, high=None):
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def dropout_masked(x):
    return x, torch.ones_like(x, dtype=torch.bool)


def swiglu(a, b, *, alpha):
    return a * torch.sigmoid(alpha * a) * b

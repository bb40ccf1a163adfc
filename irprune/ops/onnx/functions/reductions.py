"""Normalisations and reductions of ONNX in torch."""

# mypy: ignore-errors
from __future__ import annotations

import torch
import torch.nn.functional as F


def group_norm_by_group(x, scale, bias, *, num_groups, eps, cudnn_enabled):
    y = x.reshape(x.shape[0], num_groups, -1)
    y = y - y.mean(2, keepdim=True)
    y = y * torch.rsqrt((y * y).mean(2, keepdim=True) + eps)
    return (y * scale.reshape(1, -1, 1) + bias.reshape(1, -1, 1)).reshape(x.shape)


def local_response_norm(x, *, size, alpha, beta, bias):
    y = F.pad((x * x).movedim(1, -1), [(size - 1) // 2, size // 2])
    return x / (bias + alpha / size * y.unfold(-1, size, 1).sum(-1).movedim(-1, 1)) ** beta


def lp_normalize(x, *, dim, p):
    norm = torch.linalg.vector_norm(x, p, dim, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def mean_variance_norm(x, *, dim):
    mean = x.mean(dim, keepdim=True)
    return (x - mean) / (((x * x).mean(dim, keepdim=True) - mean * mean).clamp(min=0).sqrt() + 1e-9)


def reduce_prod(x, *, dim, keepdim):
    for d in sorted(dim, reverse=True):
        x = x.prod(d, keepdim=keepdim, dtype=x.dtype)
    return x


def softmax_joint(x, *, dim):
    return x.flatten(dim[0]).softmax(dim[0]).reshape(x.shape)


def log_softmax_joint(x, *, dim):
    return x.flatten(dim[0]).log_softmax(dim[0]).reshape(x.shape)


def cumprod_reversed(x, *, dim, exclusive, reverse):
    y = x.flip(dim) if reverse else x
    y = (
        torch.cat([torch.ones_like(y.narrow(dim, 0, 1)), y.narrow(dim, 0, y.shape[dim] - 1)], dim)
        if exclusive
        else y
    )
    y = y.cumprod(dim, dtype=x.dtype)
    return y.flip(dim) if reverse else y


def last_argmax(x, *, dim, keepdim):
    return x.shape[dim] - 1 - x.flip(dim).argmax(dim, keepdim)


def last_argmin(x, *, dim, keepdim):
    return x.shape[dim] - 1 - x.flip(dim).argmin(dim, keepdim)


def cumsum_reversed(x, *, dim, exclusive, reverse):
    y = x.flip(dim) if reverse else x
    y = y.cumsum(dim) - y if exclusive else y.cumsum(dim)
    return y.flip(dim) if reverse else y

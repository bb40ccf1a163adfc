"""Reading, writing and padding by position, and tensors made from sizes."""

# mypy: ignore-errors
from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def pad_by(x, value=None, *, pad, mode):
    """Reflecting, repeating and wrapping in any dimensions, by indices. A ``value`` that is known
    only at run time stands where a padded mask is false."""
    if mode == "constant":
        inside = F.pad(torch.ones_like(x, dtype=torch.bool), pad)
        return torch.where(inside, F.pad(x, pad), value.to(x.dtype).reshape([]))
    for i in range(0, len(pad), 2):
        before, after, d = pad[i], pad[i + 1], x.dim() - 1 - i // 2
        if before == 0 and after == 0:
            continue
        size = x.shape[d]
        at = torch.arange(-before, size + after, device=x.device)
        if mode == "edge":
            at = at.clamp(0, size - 1)
        elif mode == "wrap":
            at = at % size
        else:
            span = max(2 * (size - 1), 1)
            at = at % span
            at = torch.where(at >= size, span - at, at) if size > 1 else torch.zeros_like(at)
        x = x.index_select(d, at)
    return x


def gather_at(x, index, *, dim):
    size = x.shape[dim]
    flat = torch.where(index < 0, index + size, index).reshape(-1)
    return (
        x.index_select(dim, flat.long()).unflatten(dim, index.shape)
        if index.dim()
        else x.index_select(dim, flat.long()).squeeze(dim)
    )


def gather_elements(x, index, *, dim):
    return x.gather(dim, torch.where(index < 0, index + x.shape[dim], index).long())


def scatter_elements(x, index, updates, *, dim, reduction):
    index = torch.where(index < 0, index + x.shape[dim], index).long()
    if reduction == "none":
        return x.scatter(dim, index, updates)
    return x.scatter_reduce(
        dim, index, updates, {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    )


def gather_nd(x, index, *, batch_dims):
    depth = index.shape[-1]
    lead = [
        torch.arange(index.shape[b], device=x.device).reshape(
            [-1 if k == b else 1 for k in range(index.dim() - 1)]
        )
        for b in range(batch_dims)
    ]
    places = (
        [
            torch.where(p < 0, p + x.shape[batch_dims + k], p).long()
            for k, p in enumerate(index.unbind(-1))
        ]
        if depth
        else []
    )
    return x[(*lead, *places)]


def scatter_nd(x, index, updates, *, reduction):
    places = tuple(
        torch.where(p < 0, p + x.shape[k], p).long() for k, p in enumerate(index.unbind(-1))
    )
    if reduction in ("none", "add"):
        return x.index_put(places, updates, accumulate=reduction == "add")
    width = math.prod(x.shape[len(places) :])
    flat = torch.zeros_like(places[0])
    for k, p in enumerate(places):
        flat = flat * x.shape[k] + p
    rows = flat.reshape(-1, 1).expand(-1, width)
    how = {"mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return (
        x.reshape(-1, width)
        .scatter_reduce(0, rows, updates.reshape(-1, width), how)
        .reshape(x.shape)
    )


def one_hot_at(index, *, depth, dim, off, on, dtype):
    index = torch.where(index < 0, index + depth, index).unsqueeze(dim)
    classes = torch.arange(depth, device=index.device).reshape(
        [-1 if k == dim else 1 for k in range(index.dim())]
    )
    return torch.where(
        index == classes,
        torch.full((), on, dtype=dtype, device=index.device),
        torch.full((), off, dtype=dtype, device=index.device),
    )


def sizes(*, values, shape, dtype, device=None):
    flat = [torch.scalar_tensor(v, dtype=dtype, device=device) for v in values]
    return (
        torch.stack(flat).reshape(shape) if flat else torch.zeros(shape, dtype=dtype, device=device)
    )


def arange_from(*, start, end, step, dtype, device=None):
    return torch.arange(start, end, step, dtype=dtype, device=device)


def eye_like(x, *, diagonal, dtype):
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return (torch.arange(x.shape[1], device=x.device) == rows + diagonal).to(dtype)

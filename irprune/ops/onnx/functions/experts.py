"""Mixtures of experts and products with numbers of four bits, in torch."""

# mypy: ignore-errors
from __future__ import annotations

import torch
import torch.nn.functional as F


def mixture_of_experts(
    x, router, up, up_bias, down, down_bias=None, *, k, kind, normalise, alpha, beta, limit
):
    """Each row goes to the ``k`` experts that score highest, weighted by softmax over all."""
    rows, router = x.reshape(-1, x.shape[-1]), router.reshape(-1, router.shape[-1])
    shares, chosen = router.softmax(-1).topk(k, -1)
    shares = shares / shares.sum(-1, keepdim=True) if normalise else shares
    h = torch.einsum("nh,nkih->nki", rows, up[chosen])
    h = h if up_bias is None else h + up_bias[chosen]
    if kind == "swiglu":
        gate, linear = h[..., 0::2], h[..., 1::2]
        if limit is not None:
            gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
        h = gate * torch.sigmoid(alpha * gate) * (linear + beta)
    elif kind == "gelu":
        h = F.gelu(h, approximate="tanh")
    elif kind != "identity":
        h = {"relu": F.relu, "silu": F.silu}[kind](h)
    y = torch.einsum("nki,nkoi->nko", h, down[chosen])
    y = y if down_bias is None else y + down_bias[chosen]
    return (y * shares[..., None]).sum(1).reshape(*x.shape[:-1], -1)


def matmul_bnb4(x, matrix, largest, *, n, k, block_size, table):
    """``matrix`` holds two places of ``table`` a byte, the first in the upper half; ``largest`` is
    what a block of them is scaled by."""
    matrix = matrix.flatten().to(torch.int64)
    places = torch.stack([matrix >> 4, matrix & 15], -1).flatten()[: n * k]
    numbers = torch.tensor(table, dtype=x.dtype, device=x.device)[places]
    scales = largest.to(x.dtype).repeat_interleave(block_size)[: n * k]
    return x @ (numbers * scales).reshape(n, k).T
